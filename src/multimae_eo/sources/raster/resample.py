"""Interpolation of rasters with invalid pixels, which never contribute to a result.

Written in NumPy because GDAL's warper applies one kind of mask at a time: with a mask beside
nodata, or nodata in some bands only, it ignores one of them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from multimae_eo.geo import Window
from multimae_eo.sample import Pixels, Validity
from multimae_eo.sources.raster.grid import Grid

if TYPE_CHECKING:
    from affine import Affine

Coordinates = npt.NDArray[np.float64]

_EXACT = 1e-6
"""Of a pixel: how far coordinates may be from the exact ones, and what counts as a tie."""
_NODES = 8
_FULL_KERNEL = 3.0
"""Above this ratio of pixel sizes, pixels are averaged in blocks before the kernel is applied."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the pixels of a grid lie in a raster: both transforms, north-up, and both CRS."""

    grid: Grid
    crs: str
    transform: Affine

    def coordinates(self, window: Window) -> tuple[Coordinates, Coordinates]:
        """Rows and columns in the raster (0 is its upper or left edge) of the centres of a
        window's pixels, each (H, W); not finite where they lie nowhere."""
        rows = 0.5 + np.arange(window.row, window.row + window.height, dtype=np.float64)
        cols = 0.5 + np.arange(window.col, window.col + window.width, dtype=np.float64)
        if self.crs == self.grid.crs:
            raster, grid = self.transform, self.grid.transform
            y = ((grid.f - raster.f) + rows * grid.e) / raster.e
            x = ((grid.c - raster.c) + cols * grid.a) / raster.a
            shape = (window.height, window.width)
            return np.broadcast_to(y[:, None], shape), np.broadcast_to(x[None], shape)
        positions = self._interpolated(rows, cols)
        return (
            self._exact(*np.meshgrid(rows, cols, indexing="ij")) if positions is None else positions
        )

    def _exact(self, rows: Coordinates, cols: Coordinates) -> tuple[Coordinates, Coordinates]:
        from rasterio.warp import transform

        grid, raster = self.grid.transform, self.transform
        xs, ys = grid.c + cols * grid.a, grid.f + rows * grid.e
        x, y = transform(self.grid.crs, self.crs, xs.ravel(), ys.ravel())
        row = ((np.asarray(y) - raster.f) / raster.e).reshape(rows.shape)
        col = ((np.asarray(x) - raster.c) / raster.a).reshape(rows.shape)
        return row, col

    def _interpolated(
        self, rows: Coordinates, cols: Coordinates
    ) -> tuple[Coordinates, Coordinates] | None:
        """Cubic interpolation between exact nodes; None where it is not as good as exact.

        Projections are smooth: over some kilometres a cubic is off by a billionth of a pixel.
        """
        if len(rows) * len(cols) <= 4 * (_NODES + 3) ** 2:
            return None
        nodes_y, weights_y = _cubic(rows)
        nodes_x, weights_x = _cubic(cols)
        exact = self._exact(*np.meshgrid(nodes_y, nodes_x, indexing="ij"))
        if not all(np.isfinite(e).all() for e in exact):
            return None
        positions = [weights_y @ e @ weights_x.T for e in exact]
        # The error of a cubic is largest between its nodes.
        at_y = np.linspace(0, len(rows) - 1, 5).astype(int)
        at_x = np.linspace(0, len(cols) - 1, 5).astype(int)
        checks = self._exact(*np.meshgrid(rows[at_y], cols[at_x], indexing="ij"))
        for value, check in zip(positions, checks, strict=True):
            if not np.abs(value[np.ix_(at_y, at_x)] - check).max() <= _EXACT / 10:
                return None
        return positions[0], positions[1]

    def ratios(self) -> tuple[float, float]:
        """The raster's pixels per pixel of the grid, down and across, in the grid's middle."""
        row, col = self.grid.height // 2, self.grid.width // 2
        y, x = self.coordinates(Window(row=row, col=col, height=2, width=2))
        down = math.hypot(y[1, 0] - y[0, 0], y[0, 1] - y[0, 0])
        across = math.hypot(x[1, 0] - x[0, 0], x[0, 1] - x[0, 0])
        return (
            down if math.isfinite(down) and down > 0 else 1.0,
            across if math.isfinite(across) and across > 0 else 1.0,
        )


def _cubic(positions: Coordinates) -> tuple[Coordinates, Coordinates]:
    """Nodes (N,) around positions (P,), and Lagrange weights (P, N)."""
    step = max((positions[-1] - positions[0]) / _NODES, 1e-9)
    nodes = positions[0] + step * np.arange(-1, _NODES + 2)
    cell = np.clip(((positions - positions[0]) / step).astype(int), 0, _NODES - 1)
    t = (positions - positions[0]) / step - cell
    weights = np.zeros((len(positions), len(nodes)))
    each = np.arange(len(positions))
    weights[each, cell] = -t * (t - 1) * (t - 2) / 6
    weights[each, cell + 1] = (t + 1) * (t - 1) * (t - 2) / 2
    weights[each, cell + 2] = -(t + 1) * t * (t - 2) / 2
    weights[each, cell + 3] = (t + 1) * t * (t - 1) / 6
    return nodes, weights


def nearest(
    pixels: Pixels, valid: Validity, rows: Coordinates, cols: Coordinates
) -> tuple[Pixels, Validity]:
    """The pixel under each position: values (C, H, W), 0 where not valid; validity alike.

    ``pixels`` and ``valid``: (C, h, w); ``rows``, ``cols``: (H, W) in pixels from their corner.
    """
    row, col, inside = _under(rows, cols, pixels.shape[1:])
    ok = valid[:, row, col] & inside
    return np.where(ok, pixels[:, row, col], 0).astype(pixels.dtype), ok


def bilinear(
    pixels: Pixels,
    valid: Validity,
    rows: Coordinates,
    cols: Coordinates,
    ratios: tuple[float, float] = (1.0, 1.0),
) -> tuple[npt.NDArray[np.float64], Validity]:
    """The mean of the valid pixels around each position, weighted by distance; see ``nearest``.

    A position is valid where the pixel under it is. ``ratios``: pixels per output pixel, down and
    across; the kernel widens where they exceed 1, so that fine pixels are not skipped. Values are
    float64; ``in_type`` rounds them.
    """
    row, col, inside = _under(rows, cols, pixels.shape[1:])
    ok = valid[:, row, col] & inside
    reach = [max(1.0, r) if r > 1 / 0.95 else 1.0 for r in ratios]
    total = np.zeros(ok.shape)
    weight = np.zeros(ok.shape)
    values = np.where(valid, pixels, 0).astype(np.float64)
    all_valid = bool(valid.all())
    centre = [np.where(inside, c - 0.5, 0.0) for c in (rows, cols)]
    first = [np.floor(c - (r - 1)).astype(np.int64) for c, r in zip(centre, reach, strict=True)]
    steps = [range(math.ceil(2 * r) + (r > 1)) for r in reach]
    height, width = pixels.shape[1:]
    for down, right in itertools.product(*steps):
        at = (first[0] + down, first[1] + right)
        share = np.ones(rows.shape)
        for pixel, middle, r in zip(at, centre, reach, strict=True):
            share = share * np.maximum(0.0, 1 - np.abs(pixel - middle) / r)
        share[(at[0] < 0) | (at[0] >= height) | (at[1] < 0) | (at[1] >= width)] = 0.0
        y, x = np.clip(at[0], 0, height - 1), np.clip(at[1], 0, width - 1)
        total += share * values[:, y, x]
        weight += share if all_valid else share * valid[:, y, x]
    mean = np.divide(total, weight, out=np.zeros_like(total), where=ok & (weight > 0))
    return mean, ok


def in_type(values: npt.NDArray[np.float64], dtype: np.dtype[np.generic]) -> Pixels:
    """Interpolated values in the raster's dtype; integers are rounded half up."""
    return (values if dtype.kind == "f" else np.floor(values + 0.5)).astype(dtype)


def _under(
    rows: Coordinates, cols: Coordinates, shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Validity]:
    """Row and column of the pixel under each position, and whether there is one."""
    with np.errstate(invalid="ignore"):
        inside = (
            (rows > -_EXACT) & (rows < shape[0] - _EXACT)
            & (cols > -_EXACT) & (cols < shape[1] - _EXACT)
        )  # fmt: skip
    row = np.floor(np.where(inside, rows, 0.0) + _EXACT).astype(np.int64)
    col = np.floor(np.where(inside, cols, 0.0) + _EXACT).astype(np.int64)
    return row, col, inside


def block_factor(ratio: float) -> int:
    """How many pixels are averaged along an axis before the kernel; 1 for none."""
    return 1 if ratio <= _FULL_KERNEL else int(ratio // 2)


def block_means(pixels: Pixels, valid: Validity, down: int, right: int) -> tuple[Pixels, Validity]:
    """Means of the valid pixels of blocks of ``down`` × ``right``: float64 (C, h, w), validity.

    The last blocks may be smaller. A block is valid where any of its pixels is.
    """
    _, height, width = pixels.shape
    values = np.where(valid, pixels, 0).astype(np.float64)
    for axis, size, step in ((1, height, down), (2, width, right)):
        edges = np.arange(0, size, step)
        values = np.add.reduceat(values, edges, axis=axis)
    number = np.add.reduceat(
        np.add.reduceat(valid.astype(np.float64), np.arange(0, height, down), axis=1),
        np.arange(0, width, right), axis=2,
    )  # fmt: skip
    ok = number > 0
    return np.divide(values, number, out=np.zeros_like(values), where=ok), ok
