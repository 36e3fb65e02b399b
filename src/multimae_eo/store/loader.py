"""Batches of raw chips for training and evaluation, from any source.

Everything random (order, windows, flips, turns) is a pure function of (seed, epoch, place in the
epoch): the same under any number of workers, and after a restart in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from multimae_eo.errors import ConfigError, ContractError
from multimae_eo.sample import Batch, Sample, collate, crop, flip
from multimae_eo.sources.base import Indices, Source

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

Place = tuple[int, int]
"""Where a chip stands in the epoch, and its index in the source."""


class ChipBatchSampler:
    """Places of each batch of one epoch, on one rank, from ``start_batch`` on.

    In training the order is shuffled and a last, smaller batch is dropped (unless it is the only
    one); in evaluation chips come in order and all are given. Rank r of w takes every w-th chip;
    in training all ranks get equally many.
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
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be ≥ 1, got {batch_size}")
        rank, world = share
        order = np.arange(len(indices))
        if shuffle:
            order = np.random.default_rng(seed).permutation(len(indices))
            order = order[: len(order) - len(order) % world] if len(order) >= world else order
        mine = order[rank::world]
        whole = len(mine) // batch_size
        count = max(1, whole) if shuffle else -(-len(mine) // batch_size)
        self._batches = [
            [(int(p), int(indices[p])) for p in mine[k * batch_size : (k + 1) * batch_size]]
            for k in range(count)
        ]
        self._start = start_batch

    def __len__(self) -> int:
        """Batches of the whole epoch, whatever the start."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Place]]:
        yield from self._batches[self._start :]


class ChipDataset:
    """Reads the chips of a batch, cuts and flips them, and stacks them."""

    def __init__(
        self,
        source: Source,
        modalities: Sequence[str],
        *,
        chip: int | None,
        seed: tuple[int, int],
        augment: tuple[bool, bool, bool],
    ) -> None:
        """``augment``: random windows, flips, quarter turns. ``seed``: (seed, epoch)."""
        self.source = source
        self.modalities = source.modalities.select(modalities)
        self.chip, self.seed = chip, seed
        self.windows, self.flips, self.turns = augment

    def __getitems__(self, places: Sequence[Place]) -> Batch:
        """The batch of these places; called by torch's fetcher."""
        return collate([self._chip(*place) for place in places], self.modalities)

    def _chip(self, place: int, index: int) -> Sample:
        sample = self.source.read(index, list(self.modalities))
        rng = np.random.default_rng((*self.seed, place))
        across, down, turned = (int(n) for n in rng.integers((2, 2, 4)))
        if self.chip is not None:
            sample = self._window(sample, rng)
        if self.flips or self.turns:
            sample = flip(
                sample,
                horizontal=self.flips and bool(across),
                vertical=self.flips and bool(down),
                turns=turned if self.turns else 0,
            )
        return sample

    def _window(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """One window for all modalities, on pixel edges of the coarsest."""
        sides = [p.shape[-2:] for p in sample.pixels.values()]
        height, width = max(s[0] for s in sides), max(s[1] for s in sides)
        if height != width:
            raise ContractError(f"{sample.key}: {height}×{width} px; chips are square")
        if self.chip is None or height == self.chip:
            return sample
        if self.chip > height:
            raise ContractError(
                f"{sample.key}: {height} px is smaller than the window of {self.chip} px "
                "(data.chip)"
            )
        # Steps that are whole pixels of every modality.
        step = height // int(np.gcd.reduce([s[0] for s in sides]))
        places = (height - self.chip) // step
        at = rng.integers(places + 1, size=2) if self.windows else np.array([places // 2] * 2)
        top, left = (int(n) * step / height for n in at)
        return crop(sample, top=top, left=left, size=self.chip / height)


def make_loader(  # noqa: PLR0913 - each is a choice of the caller's, and none goes with another
    source: Source,
    indices: Indices,
    *,
    batch_size: int,
    modalities: Sequence[str] | None = None,
    chip: int | None = None,
    train: bool = False,
    seed: int = 0,
    epoch: int = 0,
    start_batch: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    flips: bool = True,
    turns: bool = False,
) -> DataLoader[Batch]:
    """A DataLoader of Batches over some of a source's chips.

    Args:
        source: any source.
        indices: its chips to load.
        batch_size: chips per batch.
        modalities: which (default: all).
        chip: side of the window in pixels of the finest modality (default: whole chips).
        train: shuffled, random windows, flips and turns; else in order, centre windows.
        seed: with ``epoch``, decides all that is random.
        epoch: see ``seed``.
        start_batch: skip so many batches; the rest equal those of the whole epoch.
        workers: processes that read ahead; they change nothing else.
        rank: this process's number.
        world: number of processes that share the chips.
        flips: flip at random, in training.
        turns: turn by quarters at random, in training.
    """
    import torch
    from torch.utils.data import DataLoader

    names = list(source.modalities) if modalities is None else list(modalities)
    sampler = ChipBatchSampler(
        indices,
        batch_size=batch_size,
        shuffle=train,
        seed=(seed, epoch),
        share=(rank, world),
        start_batch=start_batch,
    )
    dataset = ChipDataset(
        source,
        names,
        chip=chip,
        seed=(seed, epoch),
        augment=(train, train and flips, train and turns),
    )
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # torch calls __getitems__ with a whole batch
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=torch.cuda.is_available(),
        # Lightning and our own caches start threads; forking after that can hang.
        multiprocessing_context="forkserver" if workers else None,
    )


def _as_is(batch: Batch) -> Batch:
    return batch
