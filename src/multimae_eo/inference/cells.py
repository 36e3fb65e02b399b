"""Label maps on a grid of cells, as a linear model of patches is fitted to them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def class_pixels(
    labels: npt.NDArray[np.generic], grid: tuple[int, int], classes: int
) -> npt.NDArray[np.float32]:
    """Pixels of each class in each cell of ``grid``: (N, rows · columns, classes).

    labels: (N, H, W); negative ones are ignored.
    """
    cell = cell_of(labels.shape[1:], grid)
    cells = grid[0] * grid[1]
    counts = np.zeros((len(labels), cells, classes), np.float32)
    for row, label in enumerate(labels.astype(np.int64)):
        seen = label >= 0
        tally = np.bincount(cell[seen] * classes + label[seen], minlength=cells * classes)
        counts[row] = tally.reshape(-1, classes)
    return counts


def mean_values(labels: npt.NDArray[np.generic], grid: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Mean of the finite values in each cell of ``grid``, NaN where there is none: (N, cells).

    labels: (N, H, W).
    """
    cell = cell_of(labels.shape[1:], grid).ravel()
    means = np.full((len(labels), grid[0] * grid[1]), np.nan)
    for row, label in enumerate(labels.reshape(len(labels), -1).astype(np.float64)):
        seen = np.isfinite(label)
        count = np.bincount(cell[seen], minlength=means.shape[1])
        total = np.bincount(cell[seen], weights=label[seen], minlength=means.shape[1])
        np.divide(total, count, out=means[row], where=count > 0)
    return means


def cell_of(pixels: tuple[int, ...], grid: tuple[int, int]) -> npt.NDArray[np.int64]:
    """The cell that each pixel lies in: (H, W)."""
    (height, width), (rows, columns) = pixels, grid
    down = np.arange(height) * rows // height
    across = np.arange(width) * columns // width
    cells: npt.NDArray[np.int64] = down[:, None] * columns + across[None, :]
    return cells
