"""Layers of a scene and maps of it, warped to Web Mercator for tiles and statistics."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from multimae_eo.demo.drawing import Palette, in_palette
from multimae_eo.errors import FormatError
from multimae_eo.geo import Window
from multimae_eo.metrics.reconstruction_scores import class_index
from multimae_eo.modality import Band, ClassMapEntry, Modality
from multimae_eo.reports.pictures import Look, Stretch, look_of, picture, stretch_of
from multimae_eo.scenes.raster_output import class_names_in
from multimae_eo.sources.raster.grid import Grid, overlap
from multimae_eo.sources.raster.reading import open_dataset
from multimae_eo.sources.raster.warped import reading
from multimae_eo.sources.scene.scene import Scene

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

Array = npt.NDArray[np.float32]
Bounds = tuple[float, float, float, float]

MERCATOR = "EPSG:3857"
HALF = math.pi * 6378137.0
TILE = 256
_OVERVIEW = 1024


@dataclass(frozen=True)
class Frame:
    """A grid in Web Mercator: its upper left corner, metres per pixel, and pixels."""

    west: float
    north: float
    step: float
    height: int
    width: int

    @property
    def bounds(self) -> Bounds:
        """(left, bottom, right, top)."""
        right, bottom = self.west + self.width * self.step, self.north - self.height * self.step
        return self.west, bottom, right, self.north

    @property
    def transform(self) -> object:
        """The affine transform."""
        from affine import Affine

        return Affine(self.step, 0, self.west, 0, -self.step, self.north)


def tile_frame(z: int, x: int, y: int) -> Frame:
    """A tile of the usual web pyramid."""
    side = 2 * HALF / 2**z
    return Frame(-HALF + x * side, HALF - y * side, side / TILE, TILE, TILE)


def frame_over(bounds: Bounds, most: int, least_step: float = 0.0) -> Frame:
    """A frame over Mercator bounds with at most ``most`` pixels a side."""
    left, bottom, right, top = bounds
    step = max((right - left) / most, (top - bottom) / most, least_step, 1e-3)
    return Frame(left, top, step, max(1, math.ceil((top - bottom) / step)),
                 max(1, math.ceil((right - left) / step)))  # fmt: skip


class MapLayer(Protocol):
    """A raster that can be warped to any frame. ``modality``: its bands, unit or classes.
    ``grid``: of its pixels. ``pixel``: their side in Web Mercator's metres."""

    modality: Modality
    grid: Grid
    pixel: float

    @property
    def stretch(self) -> Stretch:
        """The values that its colours span."""

    def warp(self, frame: Frame) -> Array:
        """(C, H, W) physical values or class indices, NaN for nodata."""

    def read(self, window: Window) -> Array:
        """The same of a window of ``grid``, pixel by pixel."""

    def thinned(self) -> tuple[Array, Grid]:
        """The same of every n-th pixel, at most about 1000 a side, and their grid."""


def observed(values: Array) -> npt.NDArray[np.bool_]:
    """Where all bands hold a value: bool (H, W)."""
    return np.asarray(np.isfinite(values).all(axis=0), np.bool_)


def draw(layer: MapLayer, frame: Frame, palette: Palette = "official") -> npt.NDArray[np.uint8]:
    """A layer as RGBA (H, W, 4), transparent for nodata. ``palette``: of its classes."""
    values = layer.warp(frame)
    ok = observed(values)
    if not ok.any():
        return np.zeros((*ok.shape, 4), np.uint8)
    # A metre of rise over a pixel is as steep as the pixel is small.
    steep = replace(layer.stretch, steepness=layer.stretch.steepness * layer.pixel / frame.step)
    if layer.modality.categorical:
        values = np.where(ok, values, -1)
    drawn = in_palette(layer.modality, palette)
    image = picture(drawn, values, valid=ok[None], stretch=steep)
    return np.dstack([image, np.where(ok, 255, 0).astype(np.uint8)])


def value_range(layer: MapLayer) -> tuple[float, float] | None:
    """The values of the darkest and lightest colour of a one-band layer; None for others."""
    if look_of(layer.modality) in (Look.SCALAR, Look.RELIEF):
        return layer.stretch.low[0], layer.stretch.high[0]
    return None


class SceneLayer:
    """A modality of a scene. A coarse copy of it is made when a frame is first drawn."""

    def __init__(self, scene: Scene, modality: Modality) -> None:
        self.modality, self._scene = modality, scene
        self._ratio = scene.ratios[modality.name]
        self.grid = scene.grid.coarser(self._ratio)
        self._lock = threading.Lock()
        self._coarse: tuple[Array, int] | None = None
        self._stretch: Stretch | None = None
        self.pixel = mercator_pixel(scene)

    @property
    def stretch(self) -> Stretch:
        """Fitted to the whole scene."""
        self._overview()
        assert self._stretch is not None
        return self._stretch

    def warp(self, frame: Frame) -> Array:
        """See ``MapLayer``."""
        from rasterio._err import CPLE_BaseError
        from rasterio.warp import transform_bounds

        grid = self._scene.grid
        try:
            bounds = transform_bounds(MERCATOR, grid.crs, *frame.bounds)
        except CPLE_BaseError:  # a frame that the CRS does not reach is empty
            bounds = (math.inf,) * 4
        window = grid.window_of(bounds) if all(map(math.isfinite, bounds)) else None
        if window is None:
            return np.full((self.modality.channels, frame.height, frame.width), np.nan, np.float32)
        if window.height * window.width > _OVERVIEW**2:
            values, factor = self._overview()
            return self._warped(values, Window(row=0, col=0, height=0, width=0), factor, frame)
        return self._warped(*self._read(window, self._ratio), self._ratio, frame)

    def read(self, window: Window) -> Array:
        """See ``MapLayer``."""
        sides = ("row", "col", "height", "width")
        scaled = Window(**{side: getattr(window, side) * self._ratio for side in sides})
        return self._read(scaled, self._ratio)[0]

    def thinned(self) -> tuple[Array, Grid]:
        """See ``MapLayer``."""
        coarse, factor = self._overview()
        return coarse, self._scene.grid.coarser(factor)

    def _read(self, window: Window, unit: int) -> tuple[Array, Window]:
        """Values of at least a window, at the layer's own resolution."""
        row, col = window.row // unit * unit, window.col // unit * unit
        height, width = (
            -(-(end - start) // unit) * unit
            for start, end in ((row, window.row + window.height), (col, window.col + window.width))
        )
        aligned = Window(row=row, col=col, height=height, width=width)
        sample = self._scene.read(aligned, [self.modality.name])
        raw = sample.pixels.get(self.modality.name)
        if raw is None:
            shape = (self.modality.channels, height // unit, width // unit)
            return np.full(shape, np.nan, np.float32), aligned
        calibration = sample.calibration_of(self.modality)
        ok = np.broadcast_to(sample.valid.get(self.modality.name, True), raw.shape)
        if self.modality.categorical:
            values = class_index(raw, self.modality)
            return np.where(ok & (values >= 0), values, np.nan).astype(np.float32), aligned
        physical = raw * calibration.scale + calibration.offset
        return np.where(ok, physical, np.nan).astype(np.float32), aligned

    def _overview(self) -> tuple[Array, int]:
        with self._lock:
            if self._coarse is None:
                grid, unit = self._scene.grid, self._ratio
                thin = max(1, -(-max(grid.height, grid.width) // (_OVERVIEW * unit)))
                rows = []
                step = unit * thin * max(1, 512 // (unit * thin))
                for top in range(0, grid.height, step):
                    strip = overlap(
                        Window(row=top, col=0, height=step, width=grid.width), grid.extent
                    )
                    assert strip is not None
                    rows.append(self._read(strip, unit)[0][:, ::thin, ::thin])
                coarse = np.concatenate(rows, axis=1)
                self._coarse = coarse, unit * thin
                ok = observed(coarse)[None]
                fit = stretch_of(self.modality, coarse.astype(np.float64), ok)
                self._stretch = replace(fit, steepness=fit.steepness * thin)
            return self._coarse

    def _warped(self, values: Array, window: Window, factor: int, frame: Frame) -> Array:
        from affine import Affine

        shift = Affine.translation(window.col, window.row) @ Affine.scale(factor)
        return warp_array(values, (self._scene.grid.crs, self._scene.grid.transform @ shift),
                          frame, nearest=self.modality.categorical)  # fmt: skip


class FileLayer:
    """A raster file: written by this package, or any other GeoTIFF.

    ``modality``: of its values (default: by its tags). ``stretch``: of the layer it is compared
    with. Raises FormatError where the file cannot be read as a georeferenced raster.
    """

    def __init__(
        self, path: Path, modality: Modality | None = None, stretch: Stretch | None = None
    ) -> None:
        from rasterio.warp import transform_bounds

        self.path = path
        with reading(path), open_dataset(path) as file:
            if file.crs is None:
                raise FormatError(f"{path}: has no CRS, so it cannot be shown on a map")
            self.modality = modality or modality_of(file, path.stem)
            self.bounds = transform_bounds(file.crs, MERCATOR, *file.bounds)
            self.pixel = (self.bounds[2] - self.bounds[0]) / file.width
            crs, shape = file.crs.to_wkt(), {"height": file.height, "width": file.width}
            self.grid = Grid(crs=crs, transform=file.transform, **shape)
        if stretch is None:
            values = self.warp(frame_over(self.bounds, 512))
            ok = observed(values)[None]
            coarser = frame_over(self.bounds, 512).step / self.pixel
            fit = stretch_of(self.modality, values.astype(np.float64), ok)
            stretch = replace(fit, steepness=fit.steepness * coarser)
        self._stretch = stretch

    @property
    def stretch(self) -> Stretch:
        """The values that its colours span."""
        return self._stretch

    def warp(self, frame: Frame) -> Array:
        """See ``MapLayer``."""
        from rasterio.vrt import WarpedVRT
        from rasterio.warp import Resampling

        resampling = Resampling.nearest if self.modality.categorical else Resampling.bilinear
        with (
            reading(self.path),
            open_dataset(self.path) as file,
            WarpedVRT(
                file, crs=MERCATOR, transform=frame.transform, height=frame.height,
                width=frame.width, resampling=resampling, add_alpha=file.nodata is None,
            ) as warped,
        ):  # fmt: skip
            return self._values(warped.read(self._bands, masked=True))

    @property
    def _bands(self) -> list[int]:
        return list(range(1, self.modality.channels + 1))

    def read(self, window: Window) -> Array:
        """See ``MapLayer``."""
        from rasterio.windows import Window as RasterWindow

        part = RasterWindow(window.col, window.row, window.width, window.height)
        with reading(self.path), open_dataset(self.path) as file:
            return self._values(file.read(self._bands, window=part, masked=True))

    def thinned(self) -> tuple[Array, Grid]:
        """See ``MapLayer``."""
        factor = -(-max(self.grid.height, self.grid.width) // _OVERVIEW)
        grid = self.grid.coarser(factor)
        shape = (self.modality.channels, grid.height, grid.width)
        with reading(self.path), open_dataset(self.path) as file:
            return self._values(file.read(self._bands, out_shape=shape, masked=True)), grid

    def _values(self, values: np.ma.MaskedArray) -> Array:
        """Masked raw values as those of ``MapLayer``."""
        ok = ~np.ma.getmaskarray(values)
        raw = values.filled(0)
        if self.modality.categorical:
            index = class_index(raw, self.modality)
            return np.where(ok & (index >= 0), index, np.nan).astype(np.float32)
        return np.where(ok, raw, np.nan).astype(np.float32)


def projected(crs: str, x: float, y: float) -> tuple[float, float] | None:
    """A point in Web-Mercator metres in another CRS; None where that CRS does not reach."""
    from rasterio._err import CPLE_BaseError
    from rasterio.warp import transform

    try:
        (easting,), (northing,) = transform(MERCATOR, crs, [x], [y])
    except CPLE_BaseError:
        return None
    return (easting, northing) if math.isfinite(easting) and math.isfinite(northing) else None


def warp_array(
    values: Array, georeference: tuple[str, object], frame: Frame, *, nearest: bool
) -> Array:
    """(C, h, w) warped to a frame; NaN for nodata. ``georeference``: its CRS and transform."""
    from rasterio.warp import Resampling, reproject

    out = np.full((len(values), frame.height, frame.width), np.nan, np.float32)
    reproject(
        values.astype(np.float32, copy=False), out, src_crs=georeference[0],
        src_transform=georeference[1],
        src_nodata=np.nan, dst_crs=MERCATOR, dst_transform=frame.transform, dst_nodata=np.nan,
        resampling=Resampling.nearest if nearest else Resampling.bilinear,
    )  # fmt: skip
    return out


def scene_bounds(scene: Scene) -> Bounds:
    """A scene's bounds in Web Mercator."""
    from rasterio.warp import transform_bounds

    bounds = scene.grid.footprint(scene.grid.extent).bounds
    left, bottom, right, top = transform_bounds(scene.grid.crs, MERCATOR, *bounds)
    return left, bottom, right, top


def mercator_pixel(scene: Scene) -> float:
    """The side of a scene's pixel in Web Mercator's metres."""
    left, _, right, _ = scene_bounds(scene)
    return (right - left) / scene.grid.width


def modality_of(file: DatasetReader, name: str) -> Modality:
    """The modality of an open raster, from its tags, colour table and band names."""
    tags = file.tags()
    table: dict[int, tuple[int, ...]] = {}
    if file.count == 1 and np.dtype(file.dtypes[0]).kind in "iu":
        try:
            table = file.colormap(1)
        except ValueError:
            table = {}
    named = class_names_in(tags)
    if not named and table:
        named = {i: f"class {i}" for i, c in table.items() if c[:3] != (0, 0, 0)}
    if file.count == 1 and len(named) >= 2:
        classes = tuple(
            ClassMapEntry(id=i, name=n, color=_rgb(table.get(i))) for i, n in sorted(named.items())
        )
        return Modality(name=tags.get("modality", name), kind="categorical",
                        bands=(Band(name="class"),), classes=classes)  # fmt: skip
    texts = [d or f"band {i}" for i, d in enumerate(file.descriptions, start=1)]
    bands = [f"{t} ({i})" if texts.count(t) > 1 else t for i, t in enumerate(texts)]
    return Modality(name=tags.get("modality", name), unit=tags.get("unit", ""),
                    bands=tuple(Band(name=b) for b in bands[:3]))  # fmt: skip


def _rgb(colour: tuple[int, ...] | None) -> tuple[int, int, int]:
    return (120, 120, 120) if colour is None else (colour[0], colour[1], colour[2])
