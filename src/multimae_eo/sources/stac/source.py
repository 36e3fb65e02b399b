"""An area described by a STAC file: items found in APIs or static catalogues, read window by
window on one grid, and merged into one picture. See docs/stac.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, DataError, FormatError
from multimae_eo.geo import Window
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Calibration, Dates, Pixels, Sample, Validity, stack_dates
from multimae_eo.sources.acquisition_dates import days_since_1970
from multimae_eo.sources.raster.grid import Bounds, Grid, overlap
from multimae_eo.sources.raster.warped import open_header, reading
from multimae_eo.sources.scene.chip_rule import CloudRule
from multimae_eo.sources.scene.chips import SceneChips
from multimae_eo.sources.scene.scene import check_classes, class_ids, coarser_window
from multimae_eo.sources.stac.calibration import Common, common_calibration
from multimae_eo.sources.stac.items import (
    StacItem,
    asset_of,
    box_of,
    find_items,
    item_errors,
    locate_assets,
    require_stac,
)
from multimae_eo.sources.stac.stac_file import (
    Series,
    StacModality,
    StacSearch,
    StacSpec,
    read_stac_file,
)

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

# Footprints in STAC are rounded; the rasters themselves decide.
_MARGIN = 32
_PERIODS: Mapping[Series, int] = {"": 0, "days": len("2021-05-27"), "months": len("2021-05")}
"""How many characters of a time are equal in one date of a series."""


@dataclass(frozen=True, kw_only=True)
class _StacLayer:
    """A modality's items in the order in which they are used, and where each may lie.

    ``assets``: per item, the asset of each band. ``dtype``: of the pixels in the rasters.
    """

    requested: StacModality
    items: tuple[StacItem, ...]
    windows: tuple[Window, ...]
    assets: Mapping[str, tuple[str, ...]]
    calibration: Common
    dtype: np.dtype[np.generic]

    def touching(self, window: Window) -> list[StacItem]:
        """The items that may lie in a window, in the same order."""
        placed = zip(self.items, self.windows, strict=True)
        return [item for item, covered in placed if overlap(covered, window) is not None]


class StacArea:
    """A STAC file (YAML), opened: everything is searched, nothing read but a few headers.

    Attributes as ``Scene``'s, with ``ratios`` always applied.

    Raises ConfigError for an invalid file (or a library that is missing), DataError when the search
    has no result, FormatError for a catalogue or raster that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        require_stac()
        spec = read_stac_file(Path(path))
        self.name = spec.name
        self.chip_rule = rule = spec.chip_rule
        if rule is not None and rule.label and spec.modalities[rule.label].series:
            raise ConfigError(f"{path}: chips: label: {rule.label} is a series; labels are one map")
        self.modalities = ModalitySet(m.spec.modality for m in spec.modalities.values())
        self.ratios: Mapping[str, int] = {n: m.ratio for n, m in spec.modalities.items()}
        self.grid = _grid(spec)
        self._area = _on_grid(spec)
        items_of: dict[StacSearch, tuple[StacItem, ...]] = {}
        self._layers: dict[str, _StacLayer] = {}
        for name, requested in spec.modalities.items():
            where = f"{spec.file}: modalities.{name}"
            if requested.search not in items_of:
                items_of[requested.search] = find_items(requested.search, spec.area, where)
            items = items_of[requested.search]
            # Items of others: any key may be missing or of another type.
            with item_errors(requested.search.catalogue):
                self._layers[name] = _layer(items, requested, self.grid, where)

    def read(self, window: Window, names: Sequence[str] | None = None) -> Sample:
        """The modalities with any valid pixel in ``window``, as ``Scene.read``.

        ``time``: of the items behind the first of them, an interval where there are several.
        """
        pixels: dict[str, Pixels] = {}
        valid: dict[str, Validity] = {}
        calibration: dict[str, Calibration] = {}
        dates: dict[str, Dates] = {}
        times: list[str] = []
        for name, layer in self._layers.items():
            if names is not None and name not in names:
                continue
            touching = layer.touching(window)
            if not touching:
                continue
            values, ok, used, days = _read(layer, touching, self.grid, window, name)
            if not ok.any():
                continue
            if days is not None:
                dates[name] = days
            pixels[name] = values
            if not ok.all():
                valid[name] = ok
            stored = layer.calibration.stored
            level = str(layer.requested.spec.level.default or "")
            calibration[name] = Calibration(scale=stored.scale, offset=stored.offset, level=level)
            times = times or sorted({item.time for item in used})
        return Sample(
            key=f"{self.name}@{window.row},{window.col}",
            pixels=pixels,
            valid=valid,
            calibration=calibration,
            geometry=self.grid.footprint(window),
            time="/".join(dict.fromkeys((times[0], times[-1]))) if times else None,
            dates=dates,
        )

    def contains_chip(self, window: Window) -> bool:
        """Whether a chip touches the area."""
        import shapely

        # Not odc-geo's boxes: a country has millions of chips, and each of those parses a CRS.
        chip = shapely.box(*self.grid.footprint(window).bounds)
        return bool(shapely.intersects(self._area, chip))

    def cloud_ids(self, window: Window, rule: CloudRule) -> npt.NDArray[np.generic]:
        """The valid class ids of the cloud modality in a window, flat."""
        return class_ids(self.read(window, [rule.modality]), rule.modality)


def open_stac(path: Path) -> SceneChips:
    """The chips of a STAC file."""
    return SceneChips(StacArea(path))


def _grid(spec: StacSpec) -> Grid:
    """Pixels at whole multiples of the resolution (and of every coarser one) over the area."""
    from affine import Affine

    side = spec.resolution * math.lcm(*(m.ratio for m in spec.modalities.values()))
    left, bottom, right, top = _bounds(box_of(spec.area), spec.crs, spec.file)
    left, top = math.floor(left / side) * side, math.ceil(top / side) * side
    return Grid(
        crs=spec.crs,
        transform=Affine(spec.resolution, 0, left, 0, -spec.resolution, top),
        height=math.ceil((top - bottom) / side) * round(side / spec.resolution),
        width=math.ceil((right - left) / side) * round(side / spec.resolution),
    )


def _bounds(box: Bounds, crs: str, where: Path) -> Bounds:
    from rasterio.warp import transform_bounds

    with reading(where):
        bounds: Bounds = transform_bounds("EPSG:4326", crs, *box)
    if not all(math.isfinite(v) for v in bounds):
        raise DataError(f"{where}: the area cannot be placed in {crs}; choose the CRS of its zone")
    return bounds


def _on_grid(spec: StacSpec) -> BaseGeometry:
    """The area as a shapely geometry in the grid's CRS, prepared for many tests."""
    import shapely
    from odc.geo.geom import Geometry

    area = Geometry(dict(spec.area), "EPSG:4326").to_crs(spec.crs, resolution=0.01).geom
    shapely.prepare(area)
    return area


def _layer(
    items: Sequence[StacItem], requested: StacModality, grid: Grid, where: str
) -> _StacLayer:
    if requested.composite == "least_cloudy":
        items = sorted(items, key=lambda i: (i.cloud is None, i.cloud, i.time))
    placed = [
        (i, grid.window_of(_bounds(i.bbox, grid.crs, Path(i.id)), margin=_MARGIN)) for i in items
    ]
    used = [(i, window) for i, window in placed if window is not None]
    if not used:
        raise DataError(f"{where}: none of {len(items)} items touches the grid")
    kept = tuple(i for i, _ in used)
    assets = {i.id: locate_assets(i, requested, where) for i in kept}
    return _StacLayer(
        requested=requested,
        items=kept,
        windows=tuple(window for _, window in used),
        assets=assets,
        calibration=common_calibration(kept, assets, requested, where),
        dtype=_dtype(kept[0], assets[kept[0].id]),
    )


def _dtype(item: StacItem, keys: Sequence[str]) -> np.dtype[np.generic]:
    """The dtype of an item's bands, by their rasters' headers."""
    dtypes = [
        open_header(str(item.assets[key]["href"])).dtype
        for key in dict.fromkeys(asset_of(item, k)[0] for k in keys)
    ]
    dtype = np.result_type(*dtypes)
    if dtype.kind not in "uif":
        raise FormatError(f"item {item.id}: dtype {dtype} cannot be a band")
    return dtype


def _read(
    layer: _StacLayer, items: Sequence[StacItem], grid: Grid, window: Window, name: str
) -> tuple[Pixels, Validity, list[StacItem], Dates | None]:
    """As ``_merged``; of a series (T, …), of the dates with a valid pixel, and their days since
    1970: the mean of a date's items."""
    period = _PERIODS[layer.requested.series]
    if not period:
        return (*_merged(layer, items, grid, window, name), None)
    by_period: dict[str, list[StacItem]] = {}
    for item in items:
        by_period.setdefault(item.time[:period], []).append(item)
    images = [_merged(layer, by_period[p], grid, window, name) for p in sorted(by_period)]
    days = [
        float(np.mean([days_since_1970(i.time) for i in used] or [0.0])) for _, _, used in images
    ]
    pixels, valid, dates = stack_dates([(values, ok) for values, ok, _ in images], days)
    return pixels, valid, [item for _, _, used in images for item in used], dates


def _merged(
    layer: _StacLayer, items: Sequence[StacItem], grid: Grid, window: Window, name: str
) -> tuple[Pixels, Validity, list[StacItem]]:
    """Pixels (C, H, W), validity (1, H, W) and the items that gave them.

    A pixel is taken from an item only where all bands are valid, so that no pixel mixes dates but
    in a median.
    """
    requested = layer.requested
    layer_window = coarser_window(window, requested.ratio, name)
    shape = (requested.spec.modality.channels, layer_window.height, layer_window.width)
    values = np.full(shape, np.nan)
    stack: list[npt.NDArray[Any]] = []
    used: list[StacItem] = []
    for item in items:
        read = _observed(layer, item, layer_window, grid.coarser(requested.ratio))
        fresh = np.isfinite(read) & (np.isnan(values) if requested.composite != "median" else True)
        if not fresh.any():
            continue
        used.append(item)
        if requested.composite == "median":
            stack.append(read)
            continue
        values = np.where(fresh, read, values)
        if np.isfinite(values).all():
            break
    ok: Validity = np.isfinite(values)[:1]
    if stack:
        ok = np.isfinite(np.stack(stack)[:, :1]).any(axis=0)
        # nanmedian warns where no item has a value.
        values = np.nanmedian(np.where(ok, stack, 0.0), axis=0)
    return _stored(layer, values, ok, name), ok, used


def _observed(
    layer: _StacLayer, item: StacItem, window: Window, grid: Grid
) -> npt.NDArray[np.float64]:
    """An item's values (C, H, W) as they will be stored, NaN where not valid or masked."""
    from multimae_eo.sources.stac.read import ReadOptions, read_item

    requested, modality = layer.requested, layer.requested.spec.modality
    exact = layer.dtype.itemsize <= 2 or layer.dtype == np.float32
    options = ReadOptions(
        grid=grid,
        nodata=requested.spec.nodata,
        class_map_nodata=modality.nodata,
        nearest=modality.categorical,
        dtype="float32" if exact else "float64",
        raw=str(layer.dtype),
    )
    tags = layer.calibration.bands.get(item.id, ()) if requested.check else ()
    read = read_item(item, layer.assets[item.id], window, options, tags).astype(np.float64)
    read[:, np.isnan(read).any(axis=0)] = np.nan
    if requested.mask is not None and np.isfinite(read).any():
        classes = ReadOptions(grid=grid, nodata=None, nearest=True, dtype="float64")
        ids = read_item(item, [requested.mask.asset], window, classes)[0]
        read[:, np.isnan(ids) | np.isin(ids, requested.mask.classes)] = np.nan
    common = layer.calibration
    if common.by_item is not None:
        scale, offset = (
            np.array([getattr(c, part) for c in common.by_item[item.id]])[:, None, None]
            for part in ("scale", "offset")
        )
        return np.asarray(read * scale + offset)
    return read + common.shift[item.id]


def _stored(layer: _StacLayer, values: npt.NDArray[np.float64], ok: Validity, name: str) -> Pixels:
    """Values in the type of the store, 0 where invalid."""
    dtype = np.dtype(np.float32) if layer.calibration.by_item is not None else layer.dtype
    filled = np.where(ok, values, 0.0)
    if dtype.kind != "f":
        filled = np.rint(filled)
        limits = np.iinfo(dtype.name)
        if filled.min() < limits.min or filled.max() > limits.max:
            raise DataError(
                f"{name}: values from {filled.min():g} to {filled.max():g} do not fit {dtype} once "
                "its items' offsets are made alike; narrow the dates to one processing baseline"
            )
    pixels = filled.astype(dtype)
    check_classes(layer.requested.spec.modality, pixels, np.broadcast_to(ok, pixels.shape), name)
    return pixels
