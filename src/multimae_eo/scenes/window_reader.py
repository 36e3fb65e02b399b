"""Reads a scene's windows: tiles of many windows at once, by threads ahead of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from multimae_eo.geo import Window
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Sample
from multimae_eo.scenes.threads import prefetch
from multimae_eo.scenes.tiling import Tile, Tiling
from multimae_eo.sources.scene.chips import Area

READERS = 4


@dataclass(frozen=True, kw_only=True)
class SceneWindow:
    """A window with at least one valid pixel.

    ``sample``: the inputs' pixels. ``observed``: where any input is valid, bool (chip, chip) on the
    scene's grid. ``floor``: see ``Tile``.
    """

    window: Window
    sample: Sample
    observed: npt.NDArray[np.bool_]
    floor: int


def read_windows(
    area: Area,
    inputs: ModalitySet,
    tiling: Tiling,
    blocks: Sequence[tuple[int, int]],
    *,
    readers: int = READERS,
) -> Iterator[SceneWindow | None]:
    """All windows of blocks with a valid pixel in ``inputs``, in the order of their tiles.

    None ends each block.
    """
    names = inputs.names

    def read(tile: Tile | None) -> Sequence[SceneWindow | None]:
        if tile is None:
            return [None]
        sample = area.read(tile.bounds, names)
        if not sample.pixels:
            return []
        windows = (_cut_window(area, sample, tile, w, tiling.ratios) for w in tile.windows)
        return [w for w in windows if w is not None]

    # A thread has GDAL handles of its own, with blocks in their cache: it reads its own columns.
    tiles = (tile for block in blocks for tile in (*tiling.tiles(block), None))
    for windows in prefetch(read, tiles, lambda t: t.column if t else 0, threads=readers):
        yield from windows


def _cut_window(
    area: Area, tile_sample: Sample, tile: Tile, window: Window, ratios: Mapping[str, int]
) -> SceneWindow | None:
    """Cut a window out of a tile; modalities, and dates, without a valid pixel are absent."""
    pixels, valid = {}, {}
    dated: dict[str, npt.NDArray[np.bool_]] = {}
    observed = np.zeros((window.height, window.width), dtype=bool)
    down, right = window.row - tile.bounds.row, window.col - tile.bounds.col
    for name, array in tile_sample.pixels.items():
        ratio = ratios[name]
        slices = np.s_[
            ...,
            down // ratio : (down + window.height) // ratio,
            right // ratio : (right + window.width) // ratio,
        ]
        mask = tile_sample.valid[name][slices] if name in tile_sample.valid else None
        if mask is not None and not mask.any():
            continue
        pixels[name] = array[slices]
        if mask is None or mask.all():
            observed[:] = True
            continue
        valid[name] = mask
        if name in tile_sample.dates:
            dated[name] = np.asarray(mask.any(axis=(1, 2, 3)))
        seen = mask.reshape(-1, *mask.shape[-2:]).any(axis=0)
        observed |= seen.repeat(ratio, axis=0).repeat(ratio, axis=1)
    if not pixels:
        return None
    sample = replace(
        tile_sample,
        key=f"{area.name}@{window.row},{window.col}",
        pixels=pixels,
        valid=valid,
        geometry=area.grid.footprint(window),
        dates={n: d for n, d in tile_sample.dates.items() if n in pixels},
    )
    if dated:
        sample = sample.at_dates(dated)
    return SceneWindow(window=window, sample=sample, observed=observed, floor=tile.floor)
