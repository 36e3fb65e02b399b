"""Rasters seen on another grid, window by window; opened when read, in each process for itself.

What a window holds does not depend on which windows were read, nor on their size.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from multimae_eo.errors import ConfigError, FormatError
from multimae_eo.geo import Window
from multimae_eo.sample import Pixels, Validity
from multimae_eo.sources.raster.grid import Bounds, Grid, overlap
from multimae_eo.sources.raster.reading import valid_pixels
from multimae_eo.sources.yaml_section import one_line

# GDAL's default of 1/8 pixel puts a hundredth of the nearest pixels in the wrong place.
_TOLERANCE = 1e-6
_OPEN_AT_MOST = 64
_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class View:
    """One raster on a grid. ``path``: a file, or whatever else GDAL opens. ``covers``: the grid's
    pixels that it may touch.

    ``nodata``: the raw value that must not enter the interpolation; None for none.
    ``nearest``: take the nearest pixel (classes); otherwise bilinear.
    """

    path: str
    grid: Grid
    covers: Window
    nodata: float | None
    nearest: bool

    def read(self, bands: Sequence[int], window: Window) -> tuple[Pixels, Validity]:
        """1-based bands of a window inside the grid: pixels (C, H, W), seen (1, H, W).

        FormatError when the file cannot be read.
        """
        with reading(self.path):
            return _pool.get(self).read(bands, window)


@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """Rasters of one layer: the first with a valid pixel wins. ``dtype``: of its pixels.

    ``nodata``: raw values that mean "never observed", beyond the view's own.
    """

    views: tuple[View, ...]
    bands: tuple[int, ...]
    dtype: str
    nodata: tuple[float, ...]

    def read(self, window: Window) -> tuple[Pixels, Validity]:
        """A window, which may reach over the edges: pixels (C, H, W), valid (1 or C, H, W).

        Invalid pixels are 0.
        """
        count = len(self.bands)
        values = np.zeros((count, window.height, window.width), dtype=self.dtype)
        ok = np.zeros(values.shape, dtype=bool)
        for view in self.views:
            part = overlap(window, view.covers)
            if part is None:
                continue
            own, seen = view.read(self.bands, part)
            fine = valid_pixels(own, [self.nodata] * count, np.broadcast_to(seen, own.shape))
            at = _within(window, part)
            fresh = ~ok[at] & (True if fine is None else fine)
            values[at] = np.where(fresh, own, values[at])
            ok[at] |= fresh
        return values, ok[:1] if (ok == ok[:1]).all() else ok


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn what rasterio raises about ``path`` into a FormatError."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    try:
        yield
    except (RasterioError, CPLE_BaseError, OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read: {one_line(error)}; restore the file") from error


@contextmanager
def bounded_cache() -> Iterator[None]:
    """GDAL's cache of blocks held to 256 MiB; it grows with the machine's memory otherwise."""
    import rasterio

    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES):
        yield


def describe(path: Path) -> tuple[Grid, Bounds]:
    """A raster's own grid, and its bounds; FormatError without CRS, or not north-up."""
    import rasterio

    with reading(path), rasterio.open(path) as dataset:
        if dataset.crs is None:
            raise FormatError(
                f"{path}: has no CRS, so nothing can be placed on its grid; assign it"
            )
        if not dataset.transform.is_rectilinear or dataset.transform.e >= 0:
            raise FormatError(f"{path}: its grid is rotated or south-up; warp it north-up first")
        grid = Grid(
            crs=crs_text(dataset.crs),
            transform=dataset.transform,
            height=dataset.height,
            width=dataset.width,
        )
        return grid, tuple(dataset.bounds)


def view_on(
    path: Path | str,
    grid: Grid,
    *,
    nodata: Sequence[float] | None,
    fallback: Sequence[float] = (),
    nearest: bool,
) -> View | None:
    """A view of a raster on a grid, None where they do not meet.

    ``nodata``: values that replace the file's own; ``fallback``: where neither is declared. The
    first of them is kept out of the interpolation. FormatError without CRS, or when rotated.
    """
    import rasterio
    from rasterio.warp import transform_bounds

    with reading(path), rasterio.open(path) as dataset:
        if dataset.crs is None:
            raise FormatError(f"{path}: has no CRS; assign it")
        if not dataset.transform.is_rectilinear:
            raise FormatError(f"{path}: its grid is rotated; warp it north-up first")
        own = () if dataset.nodata is None else (dataset.nodata,)
        kept_out = next(iter((own or fallback) if nodata is None else nodata), None)
        if kept_out is None and np.dtype(dataset.dtypes[0]).kind == "f":
            kept_out = float("nan")  # else one NaN spoils its neighbours
        bounds = transform_bounds(dataset.crs, grid.crs, *dataset.bounds)
    covers = grid.place(bounds) if np.isfinite(bounds).all() else None
    if covers is None:
        return None
    return View(path=str(path), grid=grid, covers=covers, nodata=kept_out, nearest=nearest)


def crs_text(crs: Any) -> str:
    """The authority string (``EPSG:32630``) of a rasterio CRS, else its WKT."""
    authority = crs.to_authority()
    return ":".join(authority) if authority else str(crs.to_wkt())


def grid_crs(text: str, where: str) -> str:
    """A checked CRS; ConfigError when it is none."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return crs_text(CRS.from_user_input(text))
    except CRSError as error:
        raise ConfigError(
            f"{where}: {text!r} is no CRS; write an authority code such as EPSG:32630"
        ) from error


def stamp(path: str) -> int:
    """When a local file was written, so that a replaced one is opened again; 0 for others."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


class _Open:
    """An open raster. Where its pixels are the view's own, they are read as they are: GDAL's
    warping gives the same (``tests/sources/test_warped.py``) in many times the time."""

    def __init__(self, view: View) -> None:
        import rasterio

        self.dataset = rasterio.open(view.path, sharing=False)
        try:
            self.nodata = view.nodata
            self.shift = _shift(self.dataset, view)
            self.warped: Any = _warped(self.dataset, view) if self.shift is None else None
        except BaseException:
            self.dataset.close()
            raise

    def close(self) -> None:
        if self.warped is not None:
            self.warped.close()
        self.dataset.close()

    def read(self, bands: Sequence[int], window: Window) -> tuple[Pixels, Validity]:
        """As ``View.read``."""
        if self.shift is None:
            # The last band is the alpha.
            read = self.warped.read([*bands, self.warped.count], window=_bounds(window))
            return read[:-1], read[-1:] > 0
        whole = Window(row=0, col=0, height=self.dataset.height, width=self.dataset.width)
        asked = replace(window, row=window.row + self.shift[0], col=window.col + self.shift[1])
        pixels = np.zeros((len(bands), window.height, window.width), self.dataset.dtypes[0])
        seen = np.zeros((1, window.height, window.width), dtype=bool)
        inside = overlap(asked, whole)
        if inside is None:
            return pixels, seen
        at = _within(asked, inside)
        if self.nodata is None:
            pixels[at], seen[at] = self.dataset.read(list(bands), window=_bounds(inside)), True
            return pixels, seen
        # As when warping, a pixel is unseen where all bands of the file are nodata.
        read = self.dataset.read(window=_bounds(inside))
        pixels[at] = read[[b - 1 for b in bands]]
        for band in read:
            seen[at] |= band != int(self.nodata)
        return pixels, seen


def _within(window: Window, part: Window) -> tuple[slice, slice, slice]:
    """Where ``part`` lies in an array (C, H, W) of ``window``."""
    row, col = part.row - window.row, part.col - window.col
    return slice(None), slice(row, row + part.height), slice(col, col + part.width)


def _bounds(window: Window) -> tuple[tuple[int, int], tuple[int, int]]:
    return (window.row, window.row + window.height), (window.col, window.col + window.width)


def _shift(dataset: Any, view: View) -> tuple[int, int] | None:
    """Rows and columns from the grid to the raster's own pixels, where warping would only copy.

    That is where they coincide, and what was observed follows from the values alone: integers
    without a mask.
    """
    import rasterio
    from rasterio.enums import MaskFlags

    own, grid = dataset.transform, view.grid.transform
    if crs_text(dataset.crs) != view.grid.crs or not own.is_rectilinear:
        return None
    col, row = ~own @ (grid.c, grid.f)
    right, bottom = ~own @ (grid @ (view.grid.width, view.grid.height))
    shift = (round(row), round(col))
    ends = (row, col, bottom - view.grid.height, right - view.grid.width)
    if any(abs(e - s) > _TOLERANCE for e, s in zip(ends, shift * 2, strict=True)):
        return None
    kinds = set(dataset.dtypes)
    plain = len(kinds) == 1 and np.dtype(dataset.dtypes[0]).kind in "ui"
    masks = all(f in ([MaskFlags.all_valid], [MaskFlags.nodata]) for f in dataset.mask_flag_enums)
    if not (plain and masks):
        return None
    if view.nodata is None:
        return shift
    told = float(view.nodata).is_integer() and rasterio.dtypes.in_dtype_range(
        view.nodata, dataset.dtypes[0]
    )
    return shift if told else None


def _warped(dataset: Any, view: View) -> Any:
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.vrt import WarpedVRT

    return WarpedVRT(
        dataset,
        crs=view.grid.crs,
        transform=view.grid.transform,
        height=view.grid.height,
        width=view.grid.width,
        resampling=Resampling.nearest if view.nearest else Resampling.bilinear,
        src_nodata=view.nodata,
        add_alpha=dataset.colorinterp[-1] != ColorInterp.alpha,
        tolerance=_TOLERANCE,
    )


Handles = OrderedDict[tuple[View, int], _Open]


class _Pool(threading.local):
    """The open rasters of one thread of one process, the least recently read closed first.

    GDAL's handles may not be used by two threads at once.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.open: Handles = OrderedDict()
        self.inherited: Handles = OrderedDict()

    def get(self, view: View) -> _Open:
        if self.process != os.getpid():
            # GDAL's handles do not survive a fork, and closing them is the parent's business.
            self.inherited, self.open = self.open, OrderedDict()
            self.process = os.getpid()
        key = (view, stamp(view.path))
        if key in self.open:
            self.open.move_to_end(key)
            return self.open[key]
        while len(self.open) >= _OPEN_AT_MOST:
            self.open.popitem(last=False)[1].close()
        self.open[key] = _Open(view)
        return self.open[key]


_pool = _Pool()
