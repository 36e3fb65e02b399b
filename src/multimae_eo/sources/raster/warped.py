"""Rasters seen on another grid, window by window; opened when read, in each process for itself.

What a window holds does not depend on which windows were read, nor on their size.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, FormatError
from multimae_eo.geo import Window
from multimae_eo.sample import Pixels, Validity
from multimae_eo.sources.raster.arrays import cube_stamp
from multimae_eo.sources.raster.calibration import Linear, physical
from multimae_eo.sources.raster.grid import Bounds, Grid, overlap
from multimae_eo.sources.raster.header import (
    RasterHeader,
    crs_text,
    dataset_header,
    require_upright,
    same_crs,
)
from multimae_eo.sources.raster.reading import open_dataset, read_window, valid_pixels
from multimae_eo.sources.raster.remote import remote_settings, with_attempts
from multimae_eo.sources.raster.resample import (
    Placement,
    bilinear,
    block_factor,
    block_means,
    in_type,
    nearest,
)
from multimae_eo.sources.yaml_section import one_line

_TOLERANCE = 1e-6
_OPEN_AT_MOST = 64
_CACHE_BYTES = 256 * 2**20
_TILE = 256
_TILE_CACHE_BYTES = 96 * 2**20
_SOURCE_SIDE = 2048
"""Pixels of a raster, a side, that a tile may need at once."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One raster on a grid. ``path``: a file, or a link that GDAL opens. ``covers``: the grid's
    pixels that it may touch.

    ``nodata``: declared raw values that replace the file's tag, None to use it;
    ``class_map_nodata``: those of the class map, used where none are declared. ``names``: of all
    bands, as declared. ``nearest``: take the nearest pixel (classes); otherwise bilinear.
    """

    path: str
    grid: Grid
    covers: Window
    nodata: tuple[float, ...] | None
    nearest: bool
    class_map_nodata: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    def read(self, bands: Sequence[int], window: Window) -> tuple[Pixels, Validity]:
        """1-based bands of a window inside the grid: pixels (C, H, W) in the raster's type, 0
        where nothing was observed; validity (1 or C, H, W).

        FormatError when the file cannot be read.
        """

        def read() -> tuple[Pixels, Validity]:
            with reading(self.path):
                return _pool.get(self).read(bands, window)

        return with_attempts(self.path, read, lambda: _pool.forget(self))


@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """Rasters of one layer: the first with a valid pixel wins. ``dtype``: of its pixels.

    ``calibrations``: of each view's bands where the views differ: pixels are then physical.
    """

    views: tuple[View, ...]
    bands: tuple[tuple[int, ...], ...]
    dtype: str
    calibrations: tuple[tuple[Linear, ...], ...] = ()

    def read(self, window: Window) -> tuple[Pixels, Validity]:
        """A window, which may reach over the edges: pixels (C, H, W), valid (1 or C, H, W).

        Invalid pixels are 0.
        """
        parts = [overlap(window, view.covers) for view in self.views]
        given = [i for i, part in enumerate(parts) if part is not None]
        if len(given) == 1 and parts[given[0]] == window and not self.calibrations:
            pixels, seen = self.views[given[0]].read(self.bands[given[0]], window)
            return pixels.astype(self.dtype, copy=False), seen
        values = np.zeros((len(self.bands[0]), window.height, window.width), dtype=self.dtype)
        ok = np.zeros(values.shape, dtype=bool)
        for index in given:
            part = parts[index]
            assert part is not None
            pixels, seen = self.views[index].read(self.bands[index], part)
            if self.calibrations:
                pixels = physical(pixels, self.calibrations[index])
            at = _within(window, part)
            fresh = ~ok[at] & seen
            values[at] = np.where(fresh, pixels, values[at])
            ok[at] |= fresh
        return values, ok[:1] if (ok == ok[:1]).all() else ok


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn what rasterio raises about ``path`` into a FormatError."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    try:
        with remote_settings(path):
            yield
    except (RasterioError, CPLE_BaseError, OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read: {one_line(error)}; restore the file") from error


@contextmanager
def bounded_cache() -> Iterator[None]:
    """GDAL's cache of blocks held to 256 MiB; it grows with the machine's memory otherwise."""
    import rasterio

    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES):
        yield


def open_header(path: Path | str) -> RasterHeader:
    """The header of a georeferenced raster; FormatError without georeferencing, or when rotated."""
    with reading(path), open_dataset(path) as dataset:
        header = dataset_header(path, dataset)
    if header.crs is None:
        raise FormatError(f"{path}: has no CRS, so nothing can be placed on its grid; assign it")
    require_upright(header)
    if header.geometry is None:
        raise FormatError(f"{path}: has a CRS but no transform; georeference it (gdal_edit.py)")
    return header


def describe(path: Path) -> tuple[Grid, Bounds]:
    """A raster's own grid, north-up, and its bounds; FormatError without CRS, or rotated."""
    header = open_header(path)
    assert header.crs is not None
    assert header.geometry is not None
    height, width = header.shape
    grid = Grid(crs=header.crs, transform=header.transform, height=height, width=width)
    return grid, header.geometry.bounds


def view_on(
    path: Path | str,
    grid: Grid,
    *,
    nodata: Sequence[float] | None,
    class_map_nodata: Sequence[float] = (),
    names: Sequence[str] = (),
    nearest: bool,
) -> View | None:
    """A view of a raster on a grid, None where they do not meet; arguments as ``View``'s.

    FormatError without CRS, or when rotated.
    """
    from rasterio.warp import transform_bounds

    header = open_header(path)
    assert header.geometry is not None
    with reading(path):
        bounds = transform_bounds(header.crs, grid.crs, *header.geometry.bounds)
    covers = grid.window_of(bounds) if np.isfinite(bounds).all() else None
    if covers is None:
        return None
    return View(
        path=str(path),
        grid=grid,
        covers=covers,
        nodata=None if nodata is None else tuple(nodata),
        class_map_nodata=tuple(class_map_nodata),
        names=tuple(names),
        nearest=nearest,
    )


def grid_crs(text: str, where: str) -> str:
    """A checked CRS; ConfigError when it is none."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return crs_text(CRS.from_user_input(text))
    except (CRSError, ValueError) as error:  # "EPSG:x" makes rasterio convert x to a number
        raise ConfigError(
            f"{where}: {text!r} is no CRS; write an authority code such as EPSG:32630"
        ) from error


def stamp(path: str) -> int:
    """When a local file was written, so that a replaced one is opened again; 0 for others."""
    written = cube_stamp(path)
    if written is not None:
        return written
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


_numbers = itertools.count()
"""Of open rasters; an ``id`` is given again to a later one."""


class _Open:
    """An open raster. Where its pixels are the view's own, they are read as they are; elsewhere
    the grid is filled in fixed tiles, so that a pixel does not depend on the window."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.number = next(_numbers)
        self.dataset = open_dataset(view.path, sharing=False)
        try:
            self.header = dataset_header(view.path, self.dataset)
            require_upright(self.header)
            self.placement = _placement(self.header, view.grid)
            self.shift = _shift(self.placement, view.grid)
            self.ratios = self.placement.ratios() if self.shift is None else (1.0, 1.0)
        except BaseException:
            self.dataset.close()
            raise
        finest = _SOURCE_SIDE / max(1.0, *self.ratios)
        self.side = max(8, min(_TILE, 2 ** int(np.log2(finest))))

    def close(self) -> None:
        self.dataset.close()

    def read(self, bands: Sequence[int], window: Window) -> tuple[Pixels, Validity]:
        """As ``View.read``."""
        at = tuple(b - 1 for b in bands)
        asked = inside = None
        if self.shift is not None:
            extent = Window(row=0, col=0, height=self.header.shape[0], width=self.header.shape[1])
            row, col = window.row + self.shift[0], window.col + self.shift[1]
            asked = Window(row=row, col=col, height=window.height, width=window.width)
            inside = overlap(asked, extent)
            if inside == asked:
                return self._observed(at, inside)
        pixels = np.zeros((len(at), window.height, window.width), self.header.dtype)
        ok = np.zeros(pixels.shape, dtype=bool)
        if asked is not None:
            if inside is not None:
                target = _within(asked, inside)
                pixels[target], ok[target] = self._observed(at, inside)
        else:
            for tile in _tiles(window, self.side, self.view.grid):
                part = overlap(tile, window)
                if part is not None:
                    values, seen = _pool.tile(self, at, tile)
                    cut, target = _within(tile, part), _within(window, part)
                    pixels[target], ok[target] = values[cut], seen[cut]
        return pixels, ok[:1] if (ok == ok[:1]).all() else ok

    def tile(self, at: tuple[int, ...], tile: Window) -> tuple[Pixels, Validity]:
        """Bands of a tile of the grid: values and validity, both (C, H, W)."""
        rows, cols = self.placement.coordinates(tile)
        height, width = self.header.shape
        with np.errstate(invalid="ignore"):
            near = (rows > -1) & (rows < height + 1) & (cols > -1) & (cols < width + 1)
        if not near.any():
            shape = (len(at), tile.height, tile.width)
            return np.zeros(shape, self.header.dtype), np.zeros(shape, dtype=bool)
        factors = (1, 1)
        if not self.view.nearest:
            factors = block_factor(self.ratios[0]), block_factor(self.ratios[1])
        margin = [f * (2 + int(r / f)) for f, r in zip(factors, self.ratios, strict=True)]
        span = [
            _span(positions[near], size, more, step)
            for positions, size, more, step in zip(
                (rows, cols), (height, width), margin, factors, strict=True
            )
        ]
        part = Window(
            row=span[0][0], col=span[1][0],
            height=span[0][1] - span[0][0], width=span[1][1] - span[1][0],
        )  # fmt: skip
        pixels, seen = self._observed(at, part)
        seen = np.broadcast_to(seen, pixels.shape)
        rows, cols = rows - part.row, cols - part.col
        if self.view.nearest:
            return nearest(pixels, seen, rows, cols)
        if factors != (1, 1):
            pixels, seen = block_means(pixels, seen, *factors)
            rows, cols = rows / factors[0], cols / factors[1]
        ratios = self.ratios[0] / factors[0], self.ratios[1] / factors[1]
        values, ok = bilinear(pixels, seen, rows, cols, ratios)
        return in_type(values, self.header.dtype), ok

    def _observed(self, at: tuple[int, ...], window: Window) -> tuple[Pixels, Validity]:
        """Bands of a window of the raster, 0 where not observed; validity (1 or C, H, W)."""
        view = self.view
        alpha = self.header.alpha_band(at, view.names)
        read = at if alpha is None else (*at, alpha)
        pixels, mask = read_window(self.dataset, self.header, read, window)
        if alpha is not None:
            clear, pixels = pixels[-1:] > 0, pixels[:-1]
            if mask is not None and len(mask) > 1:
                mask = mask[:-1]
            mask = clear if mask is None else mask & clear
        ok = valid_pixels(
            pixels, self.header.unobserved(at, view.nodata, view.class_map_nodata), mask
        )
        if ok is None:
            return pixels, np.ones((1, window.height, window.width), dtype=bool)
        np.copyto(pixels, 0, where=~ok)
        return pixels, ok


def _span(positions: npt.NDArray[np.float64], size: int, margin: int, step: int) -> tuple[int, int]:
    """First and last + 1 of the pixels of an axis that positions need, the first a multiple."""
    first = min(max(0, int(np.floor(positions.min())) - margin), size - 1) // step * step
    return first, max(first + 1, min(size, int(np.ceil(positions.max())) + margin))


def _tiles(window: Window, side: int, grid: Grid) -> Iterator[Window]:
    """The tiles of the grid that a window touches, cut to the grid."""
    for row in range(window.row // side * side, window.row + window.height, side):
        for col in range(window.col // side * side, window.col + window.width, side):
            tile_window = Window(row=row, col=col, height=side, width=side)
            tile = overlap(tile_window, grid.extent)
            if tile is not None:
                yield tile


def _within(window: Window, part: Window) -> tuple[slice, slice, slice]:
    """Where ``part`` lies in an array (C, H, W) of ``window``."""
    row, col = part.row - window.row, part.col - window.col
    return slice(None), slice(row, row + part.height), slice(col, col + part.width)


def _placement(header: RasterHeader, grid: Grid) -> Placement:
    if header.crs is None or header.transform is None:
        raise FormatError(f"{header.path}: has no CRS; assign it")
    crs = grid.crs if same_crs(header.crs, grid.crs) else header.crs
    return Placement(grid=grid, crs=crs, transform=header.transform)


def _shift(placement: Placement, grid: Grid) -> tuple[int, int] | None:
    """Rows and columns from the grid to the raster's own pixels, None where they differ."""
    if placement.crs != grid.crs:
        return None
    raster = placement.transform
    col, row = ~raster @ (grid.transform.c, grid.transform.f)
    right, bottom = ~raster @ (grid.transform @ (grid.width, grid.height))
    shift = (round(row), round(col))
    ends = (row, col, bottom - grid.height, right - grid.width)
    if any(abs(e - s) > _TOLERANCE for e, s in zip(ends, shift * 2, strict=True)):
        return None
    return shift


Handles = OrderedDict[tuple[View, int], _Open]
Tile = tuple[Pixels, Validity]


@dataclass
class _Tiles:
    """The tiles read last, up to a number of bytes."""

    held: OrderedDict[tuple[object, ...], Tile] = field(default_factory=OrderedDict)
    size: int = 0

    def add(self, key: tuple[object, ...], tile: Tile) -> None:
        self.held[key] = tile
        self.size += sum(a.nbytes for a in tile)
        while self.size > _TILE_CACHE_BYTES and len(self.held) > 1:
            _, old = self.held.popitem(last=False)
            self.size -= sum(a.nbytes for a in old)

    def drop(self, raster: _Open) -> None:
        """Forget the tiles of a raster that is closed."""
        for key in [k for k in self.held if k[0] == raster.number]:
            self.size -= sum(a.nbytes for a in self.held.pop(key))


class _Pool(threading.local):
    """The open rasters of one thread of one process, the least recently read closed first.

    GDAL's handles may not be used by two threads at once.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.open: Handles = OrderedDict()
        self.inherited: Handles = OrderedDict()
        self.tiles = _Tiles()

    def get(self, view: View) -> _Open:
        if self.process != os.getpid():
            # GDAL's handles do not survive a fork, and closing them is the parent's business.
            self.inherited, self.open = self.open, OrderedDict()
            self.tiles = _Tiles()
            self.process = os.getpid()
        key = (view, stamp(view.path))
        if key in self.open:
            self.open.move_to_end(key)
            return self.open[key]
        while len(self.open) >= _OPEN_AT_MOST:
            _, old = self.open.popitem(last=False)
            self.tiles.drop(old)
            old.close()
        self.open[key] = _Open(view)
        return self.open[key]

    def forget(self, view: View) -> None:
        """Close the raster of a view, so that it is opened again."""
        for key in [k for k in self.open if k[0] == view]:
            raster = self.open.pop(key)
            self.tiles.drop(raster)
            raster.close()

    def tile(self, raster: _Open, at: tuple[int, ...], tile: Window) -> Tile:
        """A tile of an open raster, kept for the windows that overlap it."""
        key = (raster.number, at, tile)
        if key in self.tiles.held:
            self.tiles.held.move_to_end(key)
            return self.tiles.held[key]
        made = raster.tile(at, tile)
        self.tiles.add(key, made)
        return made


_pool = _Pool()
