"""The chips of each batch, their windows, flips and rotations: all randomness of loading.

Everything is a pure function of (seed, epoch, position of the chip in ``indices``): the same under
any number of workers and ranks, and after a restart in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, DataError
from multimae_eo.sources.base import Indices

ChipRef = tuple[int, int]
"""A chip's position in ``indices``, and its index in the source."""


class ChipBatchSampler:
    """The chips of each batch of one epoch, on one rank, from ``start_batch`` on.

    In training the order is shuffled and a last, smaller batch is dropped (unless it is the only
    one); in evaluation chips come in order and all are given. With ``locality`` the shuffle keeps
    near what lies near, for stores larger than memory: see ``local_shuffle``. Rank r of w takes
    every w-th chip; in training all ranks get equally many.
    """

    def __init__(
        self,
        indices: Indices,
        *,
        batch_size: int,
        shuffle: bool,
        seed: tuple[int, int],
        share: tuple[int, int] = (0, 1),
        start_batch: int = 0,
        locality: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be ≥ 1, got {batch_size}")
        rank, world_size = share
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank must be in [0, world_size), got {rank} of {world_size}")
        order = np.arange(len(indices))
        if shuffle:
            if len(indices) < world_size:
                raise DataError(f"{len(indices)} chips to train on, for {world_size} process(es)")
            order = local_shuffle(np.random.default_rng(seed), len(indices), locality)
            order = order[: len(order) - len(order) % world_size]
        self._order = order[rank::world_size]
        self._indices = np.asarray(indices)
        self._size = batch_size
        self._start = start_batch
        full_batches = len(self._order) // batch_size
        self._count = max(1, full_batches) if shuffle else -(-len(self._order) // batch_size)

    def __len__(self) -> int:
        """Batches of the whole epoch, whatever the start."""
        return self._count

    def __iter__(self) -> Iterator[list[ChipRef]]:
        for k in range(self._start, self._count):
            mine = self._order[k * self._size : (k + 1) * self._size]
            yield list(zip(mine.tolist(), self._indices[mine].tolist(), strict=True))


# Runs of neighbours that share a window of the local shuffle.
_RUNS = 8


def local_shuffle(rng: np.random.Generator, count: int, locality: int) -> Indices:
    """A permutation of ``count`` positions; 0 ≤ ``locality``.

    0: any order. Else positions are cut into runs of neighbours, the runs shuffled, and chips then
    shuffled within windows of ``locality`` of them (eight runs): while a window is read, no more
    than its chips need to stay in memory, and all of them are used.
    """
    if locality < 0:
        raise ConfigError(f"data.locality must be ≥ 0 chips, got {locality}")
    if not 0 < locality < count:
        return rng.permutation(count)
    run = max(1, locality // _RUNS)
    starts = rng.permutation(-(-count // run)) * run
    order = np.concatenate([np.arange(s, min(s + run, count)) for s in starts.tolist()])
    for start in range(0, count, locality):
        order[start : start + locality] = rng.permutation(order[start : start + locality])
    return order


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """Flips and rotations of chips: ``across``, ``down`` bool (n,), then ``rot90`` times int
    (n,)."""

    across: npt.NDArray[np.bool_]
    down: npt.NDArray[np.bool_]
    rot90: npt.NDArray[np.int64]

    @property
    def code(self) -> npt.NDArray[np.int64]:
        """One of eight per chip: bit 0 flip across, bit 1 flip down, bit 2 then transpose."""
        across = self.across ^ np.isin(self.rot90, (1, 2))
        down = self.down ^ np.isin(self.rot90, (2, 3))
        return across + 2 * down + 4 * (self.rot90 % 2)


class EpochRandom:
    """The random numbers of one epoch, for every chip."""

    def __init__(self, seed: tuple[int, int], count: int, *, flips: bool, rot90: bool) -> None:
        self._seed, self._count = seed, count
        self._flips, self._rot90 = flips, rot90

    @cached_property
    def _drawn(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        rng = np.random.default_rng((*self._seed, 1))
        return rng.integers(16, size=self._count, dtype=np.uint8), rng.random(
            (self._count, 2), dtype=np.float32
        )

    def orientation(self, positions: Indices) -> Orientation:
        """The orientation of the chips at these positions of ``indices``."""
        bits = self._drawn[0][positions].astype(np.int64)
        return Orientation(
            across=(bits & 1 > 0) & self._flips,
            down=(bits & 2 > 0) & self._flips,
            rot90=(bits >> 2) * self._rot90,
        )

    def corners(self, positions: Indices, choices: int | npt.NDArray[np.int64]) -> Indices:
        """Row and column (n, 2) of the windows, each one of ``choices`` (scalar or (n,))."""
        corners: Indices = (self._drawn[1][positions] * np.reshape(choices, (-1, 1))).astype(
            np.int64
        )
        return corners
