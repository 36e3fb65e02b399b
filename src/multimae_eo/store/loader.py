"""Batches of raw chips for training and evaluation, from any source.

Everything random (order, windows, flips, turns) is a pure function of (seed, epoch, position of
the chip in ``indices``): the same under any number of workers, and after a restart in the middle
of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, ContractError, DataError
from multimae_eo.sample import Batch, Sample, collate, crop, flip
from multimae_eo.sources.base import Indices, Source
from multimae_eo.store.reader import ChipStore

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

Place = tuple[int, int]
"""A chip's position in ``indices``, and its index in the source."""

# Chips read to learn how the modalities' sizes compare, where no chip has them all.
_SURVEYED = 32


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
        if not 0 <= rank < world:
            raise ConfigError(f"rank must be in [0, world), got {rank} of {world}")
        order = np.arange(len(indices))
        if shuffle:
            if len(indices) < world:
                raise DataError(f"{len(indices)} chips to train on, for {world} process(es)")
            order = np.random.default_rng(seed).permutation(len(indices))
            order = order[: len(order) - len(order) % world]
        self._order = order[rank::world]
        self._indices = np.asarray(indices)
        self._size = batch_size
        self._start = start_batch
        whole = len(self._order) // batch_size
        self._count = max(1, whole) if shuffle else -(-len(self._order) // batch_size)

    def __len__(self) -> int:
        """Batches of the whole epoch, whatever the start."""
        return self._count

    def __iter__(self) -> Iterator[list[Place]]:
        for k in range(self._start, self._count):
            mine = self._order[k * self._size : (k + 1) * self._size]
            yield list(zip(mine.tolist(), self._indices[mine].tolist(), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What is shown of one chip: a square of ``size`` of ``whole`` px, flipped and turned."""

    top: int
    left: int
    size: int
    whole: int
    across: bool = False
    down: bool = False
    turns: int = 0

    def of_sample(self, sample: Sample) -> Sample:
        """The view of any sample; ContractError where it does not fall on pixel edges."""
        if self.size != self.whole:
            top, left, size = (n / self.whole for n in (self.top, self.left, self.size))
            sample = crop(sample, top=top, left=left, size=size)
        return flip(sample, horizontal=self.across, vertical=self.down, turns=self.turns)

    def of(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The view of (…, H, W) whose pixel edges it falls on."""
        if self.size != self.whole:
            side = array.shape[-1]
            top, left, size = (n * side // self.whole for n in (self.top, self.left, self.size))
            array = array[..., top : top + size, left : left + size]
        if self.across:
            array = array[..., ::-1]
        if self.down:
            array = array[..., ::-1, :]
        return np.rot90(array, self.turns, axes=(-2, -1)) if self.turns else array


class ChipDataset:
    """Reads the chips of a batch, cuts and flips them, and stacks them."""

    def __init__(
        self,
        source: Source,
        modalities: Sequence[str],
        *,
        indices: Indices,
        chip: int | None,
        seed: tuple[int, int],
        augment: tuple[bool, bool, bool],
    ) -> None:
        """``augment``: random windows, flips, quarter turns. ``seed``: (seed, epoch)."""
        self.source = source
        self.modalities = source.modalities.select(modalities)
        self.chip, self.seed = chip, seed
        self.windows, self.flips, self.turns = augment
        self._surveyed = np.asarray(indices)[:_SURVEYED].tolist()

    def __getitems__(self, places: Sequence[Place]) -> Batch:
        """The batch of these places; called by torch's fetcher."""
        if isinstance(self.source, ChipStore) and self._uniform(self.source, places):
            return self._gathered(self.source, places)
        return collate([self._sample(*place) for place in places], self.modalities)

    def _sample(self, place: int, index: int) -> Sample:
        sample = self.source.read(index, list(self.modalities))
        for name, pixels in sample.pixels.items():
            height, width = pixels.shape[-2:]
            if height != width and (self.chip is not None or self.turns):
                raise ContractError(
                    f"{sample.key}: {name} is {height}×{width} px; windows and turns need squares"
                )
        sides = {n: p.shape[-1] for n, p in sample.pixels.items()}
        return self._view(place, sample.key, sides, np.shape(sample.label)).of_sample(sample)

    def _view(
        self, place: int, key: str, sides: Mapping[str, int], label: tuple[int, ...]
    ) -> _View:
        """What to show of a chip, by its modalities' sides and its label's shape."""
        rng = np.random.default_rng((*self.seed, place))
        across, down, turns = rng.integers((2, 2, 4)).tolist()
        top = left = 0
        size = whole = 1
        if self.chip is not None and sides:
            # Of the finest modality, which this chip may lack.
            whole = math.ceil(max(side / self._shares[n] for n, side in sides.items()))
            size = self.chip
            if size > whole:
                raise ContractError(
                    f"{key}: {whole} px is smaller than the window of {size} px (data.chip)"
                )
            step = self._step
            if len(label) == 2:
                step = math.lcm(step, Fraction(label[-1], whole).denominator)
            places = (whole - size) // step
            at = [places // 2] * 2
            if self.windows:
                at = rng.integers(places + 1, size=2).tolist()
            top, left = at[0] * step, at[1] * step
        return _View(
            top=top,
            left=left,
            size=size,
            whole=whole,
            across=self.flips and bool(across),
            down=self.flips and bool(down),
            turns=turns if self.turns else 0,
        )

    @cached_property
    def _shares(self) -> dict[str, Fraction]:
        """Each modality's side as a share of the finest's, over the same ground."""
        if isinstance(self.source, ChipStore):
            sides = {n: s[-1] for n, (s, _) in self.source.arrays.items() if n in self.modalities}
            return {n: Fraction(side, max(sides.values())) for n, side in sides.items()}
        shares: dict[str, Fraction] = {}
        for index in self._surveyed:
            sample = self.source.read(index, list(self.modalities))
            sides = {n: p.shape[-1] for n, p in sample.pixels.items()}
            for name, side in sides.items():
                # A chip that lacks the finest modality makes the others look finer than they are.
                share = Fraction(side, max(sides.values()))
                shares[name] = min(share, shares.get(name, share))
            if len(sides) == len(self.modalities):
                break
        return {n: shares.get(n, Fraction(1)) for n in self.modalities}

    @cached_property
    def _step(self) -> int:
        """Pixels of the finest modality that are whole pixels of every modality."""
        return math.lcm(*(share.denominator for share in self._shares.values()))

    def _uniform(self, store: ChipStore, places: Sequence[Place]) -> bool:
        """Whether every chip has every modality, and windows fall on pixel edges of all."""
        chosen = [index for _, index in places]
        if not all(
            n in store.arrays and (store.rows(n)[chosen] >= 0).all() for n in self.modalities
        ):
            return False
        shapes = [store.arrays[n][0] for n in self.modalities]
        if store.label_shape is not None and len(store.label_shape) == 2:
            shapes.append(store.label_shape)
        if self.chip is None and not self.turns:
            return True
        whole = max(store.arrays[n][0][-1] for n in self.modalities)
        return all(s[-2] == s[-1] and (self.chip or whole) * s[-1] % whole == 0 for s in shapes)

    def _gathered(self, store: ChipStore, places: Sequence[Place]) -> Batch:
        """The very batch that ``collate`` would give, copied straight from the memory maps."""
        import torch

        indices = [index for _, index in places]
        sides = {n: store.arrays[n][0][-1] for n in self.modalities}
        keys = tuple(store.keys[i] for i in indices)
        labels = [store.label(i) for i in indices]
        views = [
            self._view(place, key, sides, np.shape(label))
            for (place, _), key, label in zip(places, keys, labels, strict=True)
        ]
        labels = [v.of(x) if np.ndim(x) == 2 else x for v, x in zip(views, labels, strict=True)]
        pixels, valid = {}, {}
        shape = (len(places), len(self.modalities))
        scale, offset = np.empty(shape, np.float32), np.empty(shape, np.float32)
        level = np.empty(shape, np.int64)
        for column, (name, modality) in enumerate(self.modalities.items()):
            pixels[name] = torch.from_numpy(
                _stacked([v.of(store.pixels(i, name)) for v, i in zip(views, indices, strict=True)])
            )
            masks = [store.valid(i, name) for i in indices]
            ok = _stacked_masks(
                [None if m is None else v.of(m) for v, m in zip(views, masks, strict=True)]
            )
            if ok is not None:
                valid[name] = torch.from_numpy(ok)
            for b, i in enumerate(indices):
                how = store.calibration(i, name)
                scale[b, column], offset[b, column] = how.scale, how.offset
                level[b, column] = modality.level_index(how.level)
        unlabelled = any(x is None for x in labels)
        return Batch(
            modalities=self.modalities,
            keys=keys,
            pixels=pixels,
            valid=valid,
            present=torch.ones(shape, dtype=torch.bool),
            scale=torch.from_numpy(scale),
            offset=torch.from_numpy(offset),
            level=torch.from_numpy(level),
            labels=None if unlabelled else torch.from_numpy(np.stack(labels)),
            complete=not valid,
        )


def _stacked(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Stacked in C order: ``np.stack`` would keep the order of flipped and turned views."""
    stacked = np.empty((len(arrays), *arrays[0].shape), arrays[0].dtype)
    for place, array in enumerate(arrays):
        stacked[place] = array
    return stacked


def _stacked_masks(masks: Sequence[npt.NDArray[np.bool_] | None]) -> npt.NDArray[np.bool_] | None:
    """Validity (B, 1 or C, H, W) where None means all valid; None where everything is."""
    some = [m for m in masks if m is not None and not m.all()]
    if not some:
        return None
    channels = max(len(m) for m in masks if m is not None)
    ok = np.ones((len(masks), channels, *some[0].shape[1:]), dtype=bool)
    for place, mask in enumerate(masks):
        if mask is not None:
            ok[place] = mask
    return ok


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
    pin_memory: bool | None = None,
) -> DataLoader[Batch]:
    """A DataLoader of Batches over some of a source's chips; one epoch's, or what is left of it.

    ``modalities`` (default: all) and ``chip``, the side of the window in pixels of the finest
    modality (default: whole chips), say what is shown. ``train``: shuffled, random windows,
    ``flips`` and quarter ``turns``; else all chips in order, centre windows. ``seed`` and ``epoch``
    decide all that is random. ``start_batch``: the rest of the epoch from there, unchanged.
    ``workers`` read ahead and change nothing. ``rank`` of ``world`` processes takes its share.
    ``pin_memory``: page-locked batches (default: where there is a CUDA device).

    Raises ConfigError for an option out of range or an unknown modality, DataError where there is
    no chip to train on; while loading, ContractError for a window larger than a chip or beside
    pixels' edges.
    """
    import torch
    from torch.utils.data import DataLoader

    names = list(source.modalities) if modalities is None else list(modalities)
    if chip is not None and chip < 1:
        raise ConfigError(f"data.chip must be ≥ 1 px, got {chip}")
    drawn = (seed, epoch)
    augment = (train, train and flips, train and turns)
    sampler = ChipBatchSampler(
        indices,
        batch_size=batch_size,
        shuffle=train,
        seed=drawn,
        share=(rank, world),
        start_batch=start_batch,
    )
    dataset = ChipDataset(source, names, indices=indices, chip=chip, seed=drawn, augment=augment)
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # torch calls __getitems__ with a whole batch
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        multiprocessing_context=_workers_context() if workers else None,
        # Its own generator: a loader must not move the global one, on which a resumed run relies.
        generator=torch.Generator().manual_seed(seed),
    )


def _workers_context() -> Any:
    """Forked from a clean process that has imported what workers need.

    Lightning and our own caches start threads; forking this process could hang.
    """
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "torch.utils.data", "pyarrow.parquet", __name__])
    return context


def _as_is(batch: Any) -> Any:
    return batch
