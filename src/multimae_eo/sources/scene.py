"""A scene: rasters of one area, each in its own CRS, grid and tiles, read window by window.

The scene's grid is that of the first modality's first raster. Everything else is warped onto it as
it is read, never as a whole: bilinear for measurements, nearest for classes. See docs/scenes.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, DataError, FormatError
from multimae_eo.geo import Geometry, Window
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Calibration, Sample
from multimae_eo.sources.band_match import locate_bands
from multimae_eo.sources.dataset_schema import MODALITY_KEYS, ModalitySpec, modality_spec
from multimae_eo.sources.rasters import read_header, valid_pixels
from multimae_eo.sources.yaml_section import Section, load_yaml, one_line

SCENE_KEYS = ("name", "root", "time", "file_bands", "modalities")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid of a scene's output: CRS (authority or WKT), affine transform, shape in pixels."""

    crs: str
    transform: Any
    height: int
    width: int


@dataclass
class _Layer:
    """One modality's rasters. ``views``: (VRT on the scene's grid, the pixels it may cover)."""

    spec: ModalitySpec
    paths: tuple[Path, ...]
    bands: tuple[int, ...] = ()
    views: list[tuple[Any, Window]] = field(default_factory=list)


class Scene:
    """A scene file (YAML), opened. ``read`` gives a window of it as a Sample.

    Raises ConfigError for what the file says, FormatError for rasters that cannot be used (no CRS,
    rotated, damaged), DataError for a raster that lies wholly elsewhere.
    """

    def __init__(self, path: Path) -> None:
        top = Section.of(str(path), load_yaml(path), SCENE_KEYS)
        records = top.get("modalities", {})
        if not isinstance(records, Mapping) or not records:
            raise top.error("modalities", "name at least one modality")
        self.name = top.text("name", path.stem)
        self.time = top.text("time") or None
        root = path.parent / top.text("root", ".")
        self._layers = {
            str(name): _layer(top, str(name), record, root) for name, record in records.items()
        }
        self.modalities = ModalitySet(layer.spec.modality for layer in self._layers.values())
        self.grid = _grid_of(next(iter(self._layers.values())).paths[0])
        for layer in self._layers.values():
            _open(layer, self.grid)

    def read(self, window: Window, names: Sequence[str] | None = None) -> Sample:
        """The modalities with any valid pixel in ``window``, which may reach over the edges.

        Pixels outside the grid are invalid. Every modality has the window's size.
        """
        pixels: dict[str, Any] = {}
        valid: dict[str, Any] = {}
        calibration: dict[str, Calibration] = {}
        for name, layer in self._layers.items():
            if names is not None and name not in names:
                continue
            values, ok = self._mosaic(layer, window)
            if not ok.any():
                continue
            pixels[name] = values
            if not ok.all():
                valid[name] = ok
            spec = layer.spec
            calibration[name] = Calibration(
                scale=spec.modality.scale,
                offset=spec.modality.offset,
                level=str(spec.level.default or ""),
            )
        return Sample(
            key=f"{self.name}@{window.row},{window.col}",
            pixels=pixels,
            valid=valid,
            calibration=calibration,
            geometry=self._footprint(window),
            time=self.time,
        )

    def _footprint(self, window: Window) -> Geometry:
        left, top = self.grid.transform @ (window.col, window.row)
        right, bottom = self.grid.transform @ (
            window.col + window.width,
            window.row + window.height,
        )
        return Geometry(crs=self.grid.crs, bounds=(left, bottom, right, top))

    def _mosaic(
        self, layer: _Layer, window: Window
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Pixels (C, H, W) and validity (1 or C, H, W): the first raster that has a pixel wins."""
        count = len(layer.bands)
        shape = (count, window.height, window.width)
        values = np.zeros(shape, dtype=layer.views[0][0].dtypes[0])
        ok = np.zeros(shape, dtype=bool)
        for view, covers in layer.views:
            part = _overlap(window, covers, self.grid)
            if part is None:
                continue
            with _reading(Path(view.name)):
                read = view.read(
                    [*layer.bands, view.count],
                    window=((part.row, part.row + part.height), (part.col, part.col + part.width)),
                )
            own, alpha = read[:-1], read[-1:] > 0
            listed = [layer.spec.modality.nodata] * count
            seen = valid_pixels(own, listed, np.broadcast_to(alpha, own.shape))
            at = (
                slice(None),
                slice(part.row - window.row, part.row - window.row + part.height),
                slice(part.col - window.col, part.col - window.col + part.width),
            )
            fresh = ~ok[at] & (True if seen is None else seen)
            values[at] = np.where(fresh, own, values[at])
            ok[at] |= fresh
        _check_classes(layer, values, ok)
        return values, ok[:1] if (ok == ok[:1]).all() else ok


def _layer(top: Section, name: str, record: object, root: Path) -> _Layer:
    section = Section.of(f"{top.where}: modalities.{name}", record or {}, MODALITY_KEYS)
    value = section.get("path")
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(p, str) and p for p in listed):
        raise section.error("path", "expected a raster, or a list of rasters")
    rest = {k: v for k, v in section.record.items() if k != "path"}
    paths: list[Path] = []
    for text in listed:
        found = sorted(root.glob(text)) if any(c in text for c in "*?[") else [root / text]
        if not found:
            raise section.error("path", f"no file matches {text!r} in {root}")
        paths += found
    return _Layer(modality_spec(top, name, rest), tuple(paths))


def _grid_of(path: Path) -> Grid:
    import rasterio

    read_header(path)
    with _reading(path), rasterio.open(path) as dataset:
        if dataset.crs is None:
            raise FormatError(
                f"{path}: has no CRS, so nothing can be placed on its grid; assign it"
            )
        if not dataset.transform.is_rectilinear or dataset.transform.e >= 0:
            raise FormatError(f"{path}: its grid is rotated or south-up; warp it north-up first")
        authority = dataset.crs.to_authority()
        return Grid(
            crs=":".join(authority) if authority else dataset.crs.to_wkt(),
            transform=dataset.transform,
            height=dataset.height,
            width=dataset.width,
        )


def _open(layer: _Layer, grid: Grid) -> None:
    """Open a view of every raster on the scene's grid."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT
    from rasterio.warp import transform_bounds

    modality = layer.spec.modality
    for path in layer.paths:
        header = read_header(path)
        bands = tuple(b + 1 for b in locate_bands(header, modality, layer.spec.rule))
        if layer.bands and bands != layer.bands:
            raise FormatError(f"{path}: its bands are ordered unlike {layer.paths[0].name}'s")
        layer.bands = bands
        with _reading(path):
            dataset = rasterio.open(path)
            if dataset.crs is None:
                raise FormatError(f"{path}: has no CRS; assign it")
            listed = layer.spec.nodata if layer.spec.nodata is not None else modality.nodata
            nodata = dataset.nodata if layer.spec.nodata is None else None
            view = WarpedVRT(
                dataset,
                crs=grid.crs,
                transform=grid.transform,
                height=grid.height,
                width=grid.width,
                resampling=Resampling.nearest if modality.categorical else Resampling.bilinear,
                src_nodata=listed[0] if listed and nodata is None else nodata,
                add_alpha=True,
            )
            covers = _pixels(grid, transform_bounds(dataset.crs, grid.crs, *dataset.bounds))
        if covers is not None:
            layer.views.append((view, covers))
    if not layer.views:
        raise DataError(
            f"{layer.paths[0]}: {modality.name} does not overlap the scene's grid at all; check "
            "its CRS and extent"
        )


def _pixels(grid: Grid, bounds: tuple[float, float, float, float]) -> Window | None:
    """The grid's pixels that bounds may touch, with a margin for the kernel."""
    corners = [~grid.transform @ (x, y) for x in bounds[0::2] for y in bounds[1::2]]
    cols, rows = [c for c, _ in corners], [r for _, r in corners]
    top, left = max(0, int(min(rows)) - 2), max(0, int(min(cols)) - 2)
    bottom, right = min(grid.height, int(max(rows)) + 3), min(grid.width, int(max(cols)) + 3)
    if bottom <= top or right <= left:
        return None
    return Window(row=top, col=left, height=bottom - top, width=right - left)


def _overlap(a: Window, b: Window, grid: Grid) -> Window | None:
    top, left = max(a.row, b.row, 0), max(a.col, b.col, 0)
    bottom = min(a.row + a.height, b.row + b.height, grid.height)
    right = min(a.col + a.width, b.col + b.width, grid.width)
    if bottom <= top or right <= left:
        return None
    return Window(row=top, col=left, height=bottom - top, width=right - left)


def _check_classes(layer: _Layer, values: npt.NDArray[Any], ok: npt.NDArray[np.bool_]) -> None:
    from multimae_eo.errors import LegendError

    modality = layer.spec.modality
    if not modality.categorical:
        return
    foreign = sorted(set(np.unique(values[ok]).tolist()) - set(modality.class_ids))
    if foreign:
        raise LegendError(
            f"{layer.paths[0]}: {modality.name}: class id {foreign[0]} is not in the legend "
            f"({', '.join(map(str, modality.class_ids))}); add it, or list it under nodata"
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    from rasterio.errors import RasterioError

    try:
        yield
    except (RasterioError, OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read: {one_line(error)}; restore the file") from error


def require_scene_modalities(scene: Scene, names: Sequence[str]) -> None:
    """ConfigError unless the scene has every named modality."""
    from multimae_eo.errors import did_you_mean

    for name in names:
        if name not in scene.modalities:
            raise ConfigError(
                f"{scene.name}: no modality {name!r}; {did_you_mean(name, scene.modalities)}"
            )
