"""Tiling of a scene: windows of the model's chip size, read in tiles, resumed in blocks.

All numbers are pixels of the scene's grid. A modality whose pixels are ``ratio`` times coarser is
cut at the same ground, so every edge is a multiple of all ratios.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from multimae_eo.errors import ConfigError, ContractError
from multimae_eo.geo import Window, window_starts
from multimae_eo.sources.raster.grid import Grid

# A block repeats the windows that reach into it from above: 24 rows of windows lose a twenty-fourth
# at half overlap. A tile's pixels are read once, so a larger one is warped less often.
_BLOCK_ROWS = 24
_TILE_ROWS, _TILE_COLUMNS = 4, 16


@dataclass(frozen=True)
class Tile:
    """Windows that are read at once, within ``bounds``.

    No window of this tile or of a later one reaches above the row ``floor``. ``column``: its index
    from the left, from 0.
    """

    bounds: Window
    windows: tuple[Window, ...]
    floor: int
    column: int


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The windows of a scene: all pairs of ``tops`` and ``lefts``, ``chip`` × ``chip`` pixels.

    ``ratios``: for each modality of the model, how many of the grid's pixels make one of its own.
    ``dates``: of the longest series, 1 for images.
    """

    grid: Grid
    chip: int
    ratios: Mapping[str, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    dates: int = 1

    @property
    def unit(self) -> int:
        """Every edge is a multiple of it."""
        return math.lcm(*self.ratios.values())

    @property
    def shape(self) -> tuple[int, int]:
        """The grid's height and width, rounded up to the unit."""
        return _up(self.grid.height, self.unit), _up(self.grid.width, self.unit)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First row and last row + 1 of each block; together they are all rows."""
        return list(pairwise([*self.tops[::_BLOCK_ROWS], self.shape[0]]))

    def tiles(self, block: tuple[int, int]) -> Iterator[Tile]:
        """The tiles of all windows that touch a block, from top to bottom."""
        first, last = block
        touching = [t for t in self.tops if t < last and t + self.chip > first]
        for rows in _runs(touching, _TILE_ROWS):
            columns = max(1, _TILE_COLUMNS // self.dates)
            for column, cols in enumerate(_runs(self.lefts, columns)):
                windows = tuple(
                    Window(row=row, col=col, height=self.chip, width=self.chip)
                    for row in rows
                    for col in cols
                )
                bounds = Window(
                    row=rows[0],
                    col=cols[0],
                    height=rows[-1] + self.chip - rows[0],
                    width=cols[-1] + self.chip - cols[0],
                )
                yield Tile(bounds, windows, rows[0], column)


def make_tiling(
    grid: Grid,
    sizes: Mapping[str, int],
    ratios: Mapping[str, int],
    *,
    chip: int | None = None,
    overlap: float = 0.5,
    dates: int = 1,
) -> Tiling:
    """Cut a scene for a model whose chips have ``sizes``, by modality, in their own pixels.

    ``ratios``: of each input in the scene. ``chip``: another side of the windows.
    ``overlap``: share of a window's side, in [0, 1). ``dates``: of the longest series.

    Raises ContractError where the scene's resolutions are not those the model has learnt,
    ConfigError for a chip that is not whole pixels of every modality.
    """
    grounds = {n: sizes[n] * ratio for n, ratio in ratios.items()}
    if len(set(grounds.values())) > 1:
        sides = ", ".join(f"{n} {side} px" for n, side in grounds.items())
        raise ContractError(
            f"the model's chips cover different ground in this scene ({sides} of its grid); give "
            "coarser modalities the `ratio:` that the model was trained with"
        )
    side = next(iter(grounds.values()))
    for name, size in sizes.items():
        if side % size:
            raise ContractError(
                f"the model's chips have {size} px of {name} on {side} px of the scene's grid, "
                "which is not a whole ratio; name the finest modality first in the scene file"
            )
    all_ratios = {name: side // size for name, size in sizes.items()}
    unit, length = math.lcm(*all_ratios.values()), chip or side
    if length < 1 or length % unit:
        raise ConfigError(f"chip: {length} px is not whole pixels of all modalities; choose "
                          f"a multiple of {unit}")  # fmt: skip
    step = max(1, round(length * (1 - overlap) / unit))
    tops, lefts = (
        tuple(unit * s for s in window_starts(-(-size // unit), length // unit, step))
        for size in (grid.height, grid.width)
    )
    return Tiling(grid=grid, chip=length, ratios=all_ratios, tops=tops, lefts=lefts, dates=dates)


def tiling_in_cells(tiling: Tiling, field: str, overlap: float) -> Tiling:
    """The same scene's tiling for one prediction per window, as ``field`` on a grid of cells.

    A cell is the part of a window's side that does not overlap, as nearly as it divides the window.
    Windows start at cells; the last reach over the edges, and none is moved.
    """
    most = max(1, round(1 / (1 - overlap)))
    parts = max(p for p in range(1, most + 1) if tiling.chip % (p * tiling.unit) == 0)
    cell = tiling.chip // parts
    tops, lefts = (
        tuple(cell * s for s in window_starts(-(-size // cell), parts, 1))
        for size in (tiling.grid.height, tiling.grid.width)
    )
    return replace(tiling, ratios={**tiling.ratios, field: cell}, tops=tops, lefts=lefts)


def _up(length: int, unit: int) -> int:
    return -(-length // unit) * unit


def _runs(items: Sequence[int], count: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), count):
        yield items[start : start + count]
