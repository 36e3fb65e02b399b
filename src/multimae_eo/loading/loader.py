"""Batches of raw chips for training and evaluation, from any source.

What is random is drawn by ``sampler``; chips of a store are copied by ``gather``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, ContractError, DataError
from multimae_eo.loading.gather import Gatherer, Windows
from multimae_eo.loading.sampler import ChipBatchSampler, Draws, Orientation, Place
from multimae_eo.loading.workers import ChipLoader, HandedOver, start_worker
from multimae_eo.modality import Modality
from multimae_eo.sample import Batch, Sample, collate, crop, flip, stack_labels
from multimae_eo.sources.base import Indices, Source
from multimae_eo.store.reader import ChipStore

# Chips read to learn how the modalities' sizes compare, where no chip has them all.
_SURVEYED = 32


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

    @classmethod
    def drawn(cls, corner: Indices, size: int, whole: int, how: Orientation, chip: int) -> _View:
        """The view of one of the chips that ``how`` is of."""
        return cls(
            top=int(corner[0]),
            left=int(corner[1]),
            size=size,
            whole=whole,
            across=bool(how.across[chip]),
            down=bool(how.down[chip]),
            turns=int(how.turns[chip]),
        )

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
        self.chip = chip
        self.windows, flips, self.turns = augment
        self.draws = Draws(seed, len(indices), flips=flips, turns=self.turns)
        self._surveyed = np.asarray(indices)[:_SURVEYED].tolist()
        self._gatherer = Gatherer(source) if isinstance(source, ChipStore) else None

    def __getitems__(self, places: Sequence[Place]) -> Batch:
        """The batch of these places; called by torch's fetcher.

        Within a batch, chips that are flipped and turned alike lie together.
        """
        codes = self.draws.orientation(np.array([place for place, _ in places])).code
        places = [places[i] for i in np.argsort(codes, kind="stable")]
        if self._gatherer is not None and self._uniform(self._gatherer.store):
            return self._gathered(self._gatherer, places)
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
        at = np.array([place])
        how = self.draws.orientation(at)
        size = whole = 1
        corner = np.zeros((1, 2), np.int64)
        if self.chip is not None and sides:
            # Of the finest modality, which this chip may lack.
            whole = math.ceil(max(side / self._shares[n] for n, side in sides.items()))
            size = self.chip
            corner = self._corners(at, key, whole, self._step(label, whole))
        return _View.drawn(corner[0], size, whole, how, 0)

    def _corners(self, places: Indices, key: str, whole: int, step: int | Indices) -> Indices:
        """Corners (n, 2) of the windows, in pixels of the finest modality, ``step`` apart."""
        size = self.chip or whole
        if size > whole:
            raise ContractError(
                f"{key}: {whole} px is smaller than the window of {size} px (data.chip)"
            )
        last = (whole - size) // np.broadcast_to(step, places.shape)
        if not self.windows:
            return np.repeat((last // 2 * step)[:, None], 2, axis=1)
        corners: Indices = self.draws.corners(places, last + 1) * np.reshape(step, (-1, 1))
        return corners

    def _label_corners(
        self, places: Indices, key: str, whole: int, labels: Sequence[Any]
    ) -> Indices:
        """Corners of the windows of chips with these labels."""
        if self.chip is None:
            return np.zeros((len(places), 2), np.int64)
        shapes = [np.shape(x) for x in labels]
        steps = {shape: self._step(shape, whole) for shape in set(shapes)}
        return self._corners(places, key, whole, np.array([steps[x] for x in shapes]))

    def _step(self, label: tuple[int, ...], whole: int) -> int:
        """Pixels of the finest modality that are whole pixels of all, and of a label map."""
        step = self._modality_step
        return math.lcm(step, Fraction(label[-1], whole).denominator) if len(label) == 2 else step

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
    def _modality_step(self) -> int:
        return math.lcm(*(share.denominator for share in self._shares.values()))

    def _uniform(self, store: ChipStore) -> bool:
        """Whether windows fall on pixel edges of every modality, and of label maps."""
        shapes = [store.arrays[n][0] for n in self.modalities if n in store.arrays]
        if store.label_shape is not None and len(store.label_shape) == 2:
            shapes.append(store.label_shape)
        if self.chip is None and not self.turns:
            return bool(shapes)
        whole = max((s[-1] for s in shapes), default=1)
        return bool(shapes) and all(
            s[-2] == s[-1] and (self.chip or whole) * s[-1] % whole == 0 for s in shapes
        )

    def _gathered(self, gatherer: Gatherer, places: Sequence[Place]) -> Batch:
        """The very batch that ``collate`` would give, copied straight from the memory maps."""
        import torch

        store = gatherer.store
        at, indices = np.array(places, dtype=np.int64).T
        chosen = indices.tolist()
        keys = tuple(store.keys[i] for i in chosen)
        having = [n for n in self.modalities if n in store.arrays]
        whole = max(store.arrays[n][0][-1] for n in having)
        labels = [store.label(i) for i in chosen]
        how = self.draws.orientation(at)
        corners, codes = self._label_corners(at, keys[0], whole, labels), how.code
        if len(store.label_shape or ()) == 2:
            size = self.chip or whole
            views = [_View.drawn(corners[b], size, whole, how, b) for b in range(len(at))]
            labels = [None if x is None else v.of(x) for v, x in zip(views, labels, strict=True)]
        pixels, valid = {}, {}
        shape = (len(places), len(self.modalities))
        present = np.zeros(shape, bool)
        scale, offset = np.ones(shape, np.float32), np.zeros(shape, np.float32)
        level = np.zeros(shape, np.int64)
        for name in having:
            modality, column = self.modalities[name], self.modalities.index(name)
            has = present[:, column] = store.rows(name)[indices] >= 0
            if not has.any():
                continue
            (_, height, width), _ = store.arrays[name]
            window = (height, width)
            if self.chip is not None:
                window = (self.chip * height // whole, self.chip * width // whole)
            wanted = Windows(
                indices=indices, corners=corners * width // whole, size=window, codes=codes
            )
            pixels[name] = gatherer.pixels(name, wanted)
            ok = gatherer.validity(name, wanted)
            if ok is not None:
                valid[name] = ok
            scale[has, column], offset[has, column], level[has, column] = _calibrations(
                store, modality, indices[has]
            )
        lacking = np.flatnonzero(~present.any(axis=1)).tolist()
        if lacking:
            raise DataError(
                f"{keys[lacking[0]]}: has none of the modalities {', '.join(self.modalities)}"
            )
        return Batch(
            modalities=self.modalities,
            keys=keys,
            pixels=pixels,
            valid=valid,
            present=torch.from_numpy(present),
            scale=torch.from_numpy(scale),
            offset=torch.from_numpy(offset),
            level=torch.from_numpy(level),
            labels=stack_labels(labels),
            complete=bool(present.all()) and not valid,
        )


def _calibrations(
    store: ChipStore, modality: Modality, indices: Indices
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], list[int]]:
    """Scale, offset and level index of chips that have a modality."""
    scales, offsets, levels, words = store.calibrations(modality.name)
    codes = levels[indices].tolist()
    known = {code: modality.level_index(words[code]) for code in set(codes)}
    return scales[indices], offsets[indices], [known[code] for code in codes]


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
    locality: int = 0,
    pin_memory: bool | None = None,
) -> ChipLoader:
    """A DataLoader of Batches over some of a source's chips; one epoch's, or what is left of it.

    ``modalities`` (default: all) and ``chip``, the side of the window in pixels of the finest
    modality (default: whole chips), say what is shown. ``train``: shuffled, random windows,
    ``flips`` and quarter ``turns``; else all chips in order, centre windows. ``seed`` and ``epoch``
    decide all that is random. ``start_batch``: the rest of the epoch from there, unchanged.
    ``locality``: shuffle within so many chips that lie near each other (0: over all; for stores
    larger than memory). ``workers`` read ahead and change nothing. ``rank`` of ``world`` processes
    takes its share. ``pin_memory``: page-locked batches (default: where there is a CUDA device).

    Raises ConfigError for an option out of range or an unknown modality, DataError where there is
    no chip to train on; while loading, ContractError for a window larger than a chip or beside
    pixels' edges.
    """
    import torch

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
        locality=locality,
    )
    dataset = ChipDataset(source, names, indices=indices, chip=chip, seed=drawn, augment=augment)
    return ChipLoader(
        HandedOver(dataset),  # type: ignore[arg-type]  # torch calls __getitems__ with a whole batch
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=start_worker if workers else None,
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
