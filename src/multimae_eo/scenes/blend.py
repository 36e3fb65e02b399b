"""Overlapping windows put back together, a few rows at a time.

Each pixel is the weighted mean of all windows over it, with smooth weights that fall towards a
window's edge and sum to one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multimae_eo.geo import Window
from multimae_eo.scenes.tiling import Tiling

Array = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

_ROWS_AT_ONCE = 32
"""Rows that are passed on together: copies of them are made for each raster."""


@dataclass(frozen=True)
class BlendedRows:
    """Finished rows from the grid's row ``top``.

    ``values[field]``: (C, n, W) at the field's own resolution; fields that no window has had yet
    are missing. ``observed``: bool (n, W) on the grid, where any input was valid. Widths are
    rounded up to the tiling's unit.
    """

    top: int
    values: Mapping[str, Array]
    observed: Bool


def blend_weights(chip: int) -> Array:
    """Smooth weights of a window, (chip, chip): a raised cosine in each direction, all > 0."""
    wave = np.sin(np.pi * (np.arange(chip) + 0.5) / chip) ** 2
    return np.outer(wave, wave).astype(np.float32)


def coarser_mask(mask: Bool, ratio: int) -> Bool:
    """Where any of ``ratio`` × ``ratio`` pixels is True: (n, W) → (n / ratio, W / ratio)."""
    height, width = mask.shape
    cells = mask.reshape(height // ratio, ratio, width // ratio, ratio)
    return np.asarray(cells.any(axis=(1, 3)))


class WindowBlender:
    """The rows of a block that are not final yet; ``emit`` is called with those that are.

    ``ratios``: of each field of the windows.
    """

    def __init__(
        self,
        tiling: Tiling,
        block: tuple[int, int],
        ratios: Mapping[str, int],
        emit: Callable[[BlendedRows], None],
    ) -> None:
        tiles = list(tiling.tiles(block))
        self.tiling, self.block, self.ratios, self.emit = tiling, block, ratios, emit
        self.base = tiles[0].floor
        self.height = max(t.bounds.height for t in tiles)
        self.width = tiling.shape[1]
        self.step = -(-_ROWS_AT_ONCE // tiling.unit) * tiling.unit
        self.observed = np.zeros((self.height, self.width), dtype=bool)
        self.sums: dict[str, Array] = {}
        self.weights = {r: blend_weights(tiling.chip // r) for r in set(ratios.values())}
        self.totals = {
            r: np.zeros((self.height // r, self.width // r), np.float32) for r in self.weights
        }

    def add(self, window: Window, values: Mapping[str, Array], observed: Bool, floor: int) -> None:
        """Add a window: (C, h, w) per field, bool (chip, chip). Rows above ``floor`` are final."""
        self._finish_above(floor)
        row, width = window.row - self.base, min(window.width, self.width - window.col)
        at = np.s_[row : row + window.height, window.col : window.col + width]
        self.observed[at] |= observed[:, :width]
        for ratio, total in self.totals.items():
            total[_coarser(at, ratio)] += self.weights[ratio][:, : width // ratio]
        for name, value in values.items():
            ratio = self.ratios[name]
            if name not in self.sums:
                shape = (len(value), self.height // ratio, self.width // ratio)
                self.sums[name] = np.zeros(shape, np.float32)
            cols = width // ratio
            weighted = value[..., :cols] * self.weights[ratio][:, :cols]
            self.sums[name][(slice(None), *_coarser(at, ratio))] += weighted

    def finish(self) -> None:
        """Emit what is left of the block."""
        self._finish_above(self.block[1])

    def _finish_above(self, row: int) -> None:
        first, last = self.block
        while self.base < min(row, last):
            count = min(min(row, last) - self.base, self.height)
            if self.base < first:  # rows of the block above, which has all of them
                count = min(count, first - self.base)
            else:
                for start in range(0, count, self.step):
                    self.emit(self._rows(start, min(start + self.step, count)))
            for array in (self.observed, *self.totals.values(), *self.sums.values()):
                _shift(array, count * array.shape[-2] // self.height)
            self.base += count

    def _rows(self, start: int, end: int) -> BlendedRows:
        """Finished rows, counted from ``base``."""
        values = {}
        for name, total in self.sums.items():
            ratio = self.ratios[name]
            rows = slice(start // ratio, end // ratio)
            share = np.maximum(self.totals[ratio][rows], np.float32(1e-30))
            values[name] = np.divide(total[:, rows], share, dtype=np.float32)
        return BlendedRows(self.base + start, values, self.observed[start:end].copy())


def _coarser(at: tuple[slice, slice], ratio: int) -> tuple[slice, slice]:
    rows, cols = (slice(s.start // ratio, s.stop // ratio) for s in at)
    return rows, cols


def _shift(rows: npt.NDArray[np.generic], count: int) -> None:
    """Drop the first rows and make room for new ones at the end."""
    kept = rows.shape[-2] - count
    rows[..., :kept, :] = rows[..., count:, :].copy()
    rows[..., kept:, :] = 0
