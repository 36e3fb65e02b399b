"""Reading, computing and writing at the same time: reader threads ahead, one thread behind.

Queues are bounded, so memory is; an error in any thread is raised where its result is asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np

from multimae_eo.geo import Window
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Batch, Sample, collate
from multimae_eo.scenes.blend import Bool
from multimae_eo.scenes.tiling import Cut, Tile
from multimae_eo.sources.scene.chips import Area

A = TypeVar("A")
B = TypeVar("B")

READERS = 4
_BEHIND = 4


def ahead(
    work: Callable[[A], B], items: Iterable[A], lane: Callable[[A], int], *, threads: int
) -> Iterator[B]:
    """``work`` of each item, in order, done by threads; at most ``threads`` + 1 results wait.

    Items of equal ``lane`` (modulo the number of threads) are done by the same thread.
    """
    left = iter(items)
    pools = [ThreadPoolExecutor(1, thread_name_prefix="reader") for _ in range(threads)]

    def begun(count: int) -> list[Future[B]]:
        return [pools[lane(item) % threads].submit(work, item) for item in islice(left, count)]

    try:
        waiting = deque(begun(threads + 1))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(begun(1))
            yield done
    finally:
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)


class Behind:
    """One thread that does what it is told, in order, while the caller goes on.

    ``do`` waits while too much is left to do; it and the end of the ``with`` raise what went wrong.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Behind:
        return self

    def do(self, work: Callable[..., None], *arguments: Any) -> None:
        """Have ``work`` done."""
        while len(self._waiting) >= _BEHIND:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(work, *arguments))

    def __exit__(self, kind: object, *rest: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        for future in () if kind is not None else self._waiting:
            future.result()


@dataclass(frozen=True)
class Piece:
    """A window with something observed: the inputs' pixels, and where any is valid on the grid,
    bool (chip, chip). ``floor``: see ``Tile``."""

    window: Window
    sample: Sample
    observed: Bool
    floor: int


class Mapper(Protocol):
    """What a model is asked for, window by window."""

    @property
    def modalities(self) -> ModalitySet:
        """The inputs, as the scene has them."""

    def __call__(self, batch: Batch) -> tuple[Sequence[int], Mapping[str, Any]]:
        """The batch's rows that can be predicted, and float32 NumPy arrays, each with such rows."""


def pieces(
    area: Area, mapper: Mapper, cut: Cut, block: tuple[int, int], *, readers: int = READERS
) -> Iterator[Piece]:
    """All windows of a block with any valid pixel of the inputs, in the order of their tiles."""
    names = mapper.modalities.names

    def read(tile: Tile) -> list[Piece]:
        whole = area.read(tile.bounds, names)
        found = (_piece(area, whole, tile, w, cut) for w in tile.windows) if whole.pixels else ()
        return [p for p in found if p is not None]

    # A thread has GDAL handles of its own, with blocks in their cache: it reads its own columns.
    for tile in ahead(read, cut.tiles(block), lambda t: t.column, threads=readers):
        yield from tile


def mapped(
    found: Iterable[Piece], mapper: Mapper, batch_size: int
) -> Iterator[list[tuple[Piece, dict[str, Any]]]]:
    """Batches of windows with what the mapper says of each: arrays without the batch axis.

    A batch for which the device has no memory is halved.
    """
    left = iter(found)
    parts = iter(lambda: list(islice(left, batch_size)), [])

    def collated(part: list[Piece]) -> tuple[list[Piece], Batch]:
        return part, collate([p.sample for p in part], mapper.modalities)

    for part, batch in ahead(collated, parts, lambda _: 0, threads=1):
        yield _said(part, batch, mapper)


def _said(part: list[Piece], batch: Batch, mapper: Mapper) -> list[tuple[Piece, dict[str, Any]]]:
    import torch

    try:
        rows, said = mapper(batch)
    except torch.OutOfMemoryError:
        if len(part) == 1:
            raise
    else:
        return [(part[row], {n: v[i] for n, v in said.items()}) for i, row in enumerate(rows)]
    # Outside of the handler, which would keep the failed batch's tensors alive.
    half = len(part) // 2
    first, second = torch.arange(half), torch.arange(half, len(part))
    return _said(part[:half], batch.take(first), mapper) + _said(
        part[half:], batch.take(second), mapper
    )


def _piece(area: Area, whole: Sample, tile: Tile, window: Window, cut: Cut) -> Piece | None:
    """Cut a window out of a tile; modalities without a valid pixel are absent from it."""
    pixels, valid = {}, {}
    observed = np.zeros((window.height, window.width), dtype=bool)
    for name, array in whole.pixels.items():
        ratio = cut.ratios[name]
        down, right = window.row - tile.bounds.row, window.col - tile.bounds.col
        at = np.s_[
            :,
            down // ratio : (down + window.height) // ratio,
            right // ratio : (right + window.width) // ratio,
        ]
        ok = whole.valid[name][at] if name in whole.valid else None
        if ok is not None and not ok.any():
            continue
        pixels[name] = array[at]
        if ok is None or ok.all():
            observed[:] = True
            continue
        valid[name] = ok
        observed |= ok.any(axis=0).repeat(ratio, axis=0).repeat(ratio, axis=1)
    if not pixels:
        return None
    key = f"{area.name}@{window.row},{window.col}"
    sample = replace(
        whole, key=key, pixels=pixels, valid=valid, geometry=area.grid.footprint(window)
    )
    return Piece(window, sample, observed, tile.floor)
