"""Batches of raw chips for training and evaluation, from any source.

What is random is drawn by ``sampler``; chips of a store are copied by ``gather``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, ContractError, DataError
from multimae_eo.loading.gather import Gatherer, Windows
from multimae_eo.loading.sampler import ChipBatchSampler, ChipRef, EpochRandom, Orientation
from multimae_eo.loading.workers import ChipLoader, HandedOver, start_worker, usable_workers
from multimae_eo.modality import Modality
from multimae_eo.sample import Batch, Pixels, Sample, collate, crop, flip, stack_labels
from multimae_eo.sources.base import Indices, Source
from multimae_eo.store.reader import ChipStore

# Chips read to learn how the modalities' sizes compare, where no chip has them all.
_SURVEYED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _ChipWindow:
    """The window of one chip: a square of ``size`` of ``side`` px, flipped and rotated."""

    top: int
    left: int
    size: int
    side: int
    across: bool = False
    down: bool = False
    rot90: int = 0

    @classmethod
    def drawn(
        cls, corner: Indices, size: int, side: int, orientation: Orientation, chip: int
    ) -> _ChipWindow:
        """The view of chip number ``chip`` of ``orientation``."""
        return cls(
            top=int(corner[0]),
            left=int(corner[1]),
            size=size,
            side=side,
            across=bool(orientation.across[chip]),
            down=bool(orientation.down[chip]),
            rot90=int(orientation.rot90[chip]),
        )

    def of_sample(self, sample: Sample) -> Sample:
        """The view of any sample; ContractError where it does not fall on pixel edges."""
        if self.size != self.side:
            top, left, size = (n / self.side for n in (self.top, self.left, self.size))
            sample = crop(sample, top=top, left=left, size=size)
        return flip(sample, horizontal=self.across, vertical=self.down, rot90=self.rot90)

    def of(self, array: Pixels) -> Pixels:
        """The view of (…, H, W) whose pixel edges it falls on."""
        if self.size != self.side:
            array_side = array.shape[-1]
            top, left, size = (
                n * array_side // self.side for n in (self.top, self.left, self.size)
            )
            array = array[..., top : top + size, left : left + size]
        if self.across:
            array = array[..., ::-1]
        if self.down:
            array = array[..., ::-1, :]
        return np.rot90(array, self.rot90, axes=(-2, -1)) if self.rot90 else array


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
        """``augment``: random windows, flips, rot90. ``seed``: (seed, epoch)."""
        self.source = source
        self.modalities = source.modalities.select(modalities)
        self.chip = chip
        self.windows, flips, self.rot90 = augment
        self.random = EpochRandom(seed, len(indices), flips=flips, rot90=self.rot90)
        self._surveyed = np.asarray(indices)[:_SURVEYED].tolist()
        self._gatherer = Gatherer(source) if isinstance(source, ChipStore) else None

    def __getitems__(self, chips: Sequence[ChipRef]) -> Batch:
        """The batch of these chips; called by torch's fetcher.

        Within a batch, chips with equal flips and rotations are adjacent.
        """
        codes = self.random.orientation(np.array([position for position, _ in chips])).code
        chips = [chips[i] for i in np.argsort(codes, kind="stable")]
        if self._gatherer is not None and self._uniform(self._gatherer.store):
            return self._gathered(self._gatherer, chips)
        return collate([self._sample(*chip) for chip in chips], self.modalities)

    def _sample(self, position: int, index: int) -> Sample:
        sample = self.source.read(index, list(self.modalities))
        for name, pixels in sample.pixels.items():
            height, width = pixels.shape[-2:]
            if height != width and (self.chip is not None or self.rot90):
                raise ContractError(
                    f"{sample.key}: {name} is {height}×{width} px; windows and rotations need "
                    "squares"
                )
        sides = {n: p.shape[-1] for n, p in sample.pixels.items()}
        return self._view(position, sample.key, sides, np.shape(sample.label)).of_sample(sample)

    def _view(
        self, position: int, key: str, sides: Mapping[str, int], label: tuple[int, ...]
    ) -> _ChipWindow:
        """What to show of a chip, by its modalities' sides and its label's shape."""
        at = np.array([position])
        orientation = self.random.orientation(at)
        size = finest_side = 1
        corner = np.zeros((1, 2), np.int64)
        if self.chip is not None and sides:
            # Of the finest modality, which this chip may lack.
            finest_side = math.ceil(max(side / self._shares[n] for n, side in sides.items()))
            size = self.chip
            corner = self._corners(at, key, finest_side, self._step(label, finest_side))
        return _ChipWindow.drawn(corner[0], size, finest_side, orientation, 0)

    def _corners(
        self, positions: Indices, key: str, finest_side: int, step: int | Indices
    ) -> Indices:
        """Corners (n, 2) of the windows, in pixels of the finest modality, ``step`` apart."""
        size = self.chip or finest_side
        if size > finest_side:
            raise ContractError(
                f"{key}: {finest_side} px is smaller than the window of {size} px (data.chip)"
            )
        last = (finest_side - size) // np.broadcast_to(step, positions.shape)
        if not self.windows:
            return np.repeat((last // 2 * step)[:, None], 2, axis=1)
        corners: Indices = self.random.corners(positions, last + 1) * np.reshape(step, (-1, 1))
        return corners

    def _label_corners(
        self, positions: Indices, key: str, finest_side: int, labels: Sequence[npt.ArrayLike]
    ) -> Indices:
        """Corners of the windows of chips with these labels."""
        if self.chip is None:
            return np.zeros((len(positions), 2), np.int64)
        shapes = [np.shape(x) for x in labels]
        steps = {shape: self._step(shape, finest_side) for shape in set(shapes)}
        return self._corners(positions, key, finest_side, np.array([steps[x] for x in shapes]))

    def _step(self, label: tuple[int, ...], finest_side: int) -> int:
        """Pixels of the finest modality that are whole pixels of all, and of a label map."""
        step = self._modality_step
        return (
            math.lcm(step, Fraction(label[-1], finest_side).denominator)
            if len(label) == 2
            else step
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
    def _modality_step(self) -> int:
        return math.lcm(*(share.denominator for share in self._shares.values()))

    def _uniform(self, store: ChipStore) -> bool:
        """Whether windows fall on pixel edges of every modality, and of label maps; of images."""
        if any(n in store.series for n in self.modalities):
            return False
        shapes = [store.arrays[n][0] for n in self.modalities if n in store.arrays]
        if store.label_shape is not None and len(store.label_shape) == 2:
            shapes.append(store.label_shape)
        if self.chip is None and not self.rot90:
            return bool(shapes)
        finest_side = max((s[-1] for s in shapes), default=1)
        return bool(shapes) and all(
            s[-2] == s[-1] and (self.chip or finest_side) * s[-1] % finest_side == 0 for s in shapes
        )

    def _gathered(self, gatherer: Gatherer, chips: Sequence[ChipRef]) -> Batch:
        """The very batch that ``collate`` would give, copied straight from the memory maps."""
        import torch

        store = gatherer.store
        at, indices = np.array(chips, dtype=np.int64).T
        chosen = indices.tolist()
        keys = tuple(store.keys[i] for i in chosen)
        having = [n for n in self.modalities if n in store.arrays]
        finest_side = max(store.arrays[n][0][-1] for n in having)
        labels = [store.label(i) for i in chosen]
        orientation = self.random.orientation(at)
        corners, codes = self._label_corners(at, keys[0], finest_side, labels), orientation.code
        if len(store.label_shape or ()) == 2:
            size = self.chip or finest_side
            views = [
                _ChipWindow.drawn(corners[b], size, finest_side, orientation, b)
                for b in range(len(at))
            ]
            labels = [None if x is None else v.of(x) for v, x in zip(views, labels, strict=True)]
        pixels, valid = {}, {}
        shape = (len(chips), len(self.modalities))
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
                window = (self.chip * height // finest_side, self.chip * width // finest_side)
            windows = Windows(
                indices=indices, corners=corners * width // finest_side, size=window, codes=codes
            )
            pixels[name] = gatherer.pixels(name, windows)
            ok = gatherer.validity(name, windows)
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
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic], list[int]]:
    """Scale, offset and level index of chips that have a modality."""
    scales, offsets, levels, words = store.calibrations(modality.name)
    codes = levels[indices].tolist()
    level_of_code = {code: modality.level_index(words[code]) for code in set(codes)}
    return scales[indices], offsets[indices], [level_of_code[code] for code in codes]


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
    world_size: int = 1,
    flips: bool = True,
    rot90: bool = False,
    locality: int = 0,
    pin_memory: bool | None = None,
) -> ChipLoader:
    """A DataLoader of Batches over some of a source's chips; one epoch's, or what is left of it.

    ``modalities`` (default: all) and ``chip``, the side of the window in pixels of the finest
    modality (default: entire chips), define the windows. ``train``: shuffled, random windows,
    ``flips`` and ``rot90``; else all chips in order, centre windows. ``seed`` and ``epoch`` decide
    all that is random. ``start_batch``: the rest of the epoch from there, unchanged. ``locality``:
    shuffle within so many chips that lie near each other (0: over all; for stores larger than
    memory). ``workers`` read ahead and change nothing. ``rank`` of ``world_size`` processes takes
    its share. ``pin_memory``: page-locked batches (default: where there is a CUDA device).

    Raises ConfigError for an option out of range or an unknown modality, DataError where there is
    no chip to train on; while loading, ContractError for a window larger than a chip or beside
    pixels' edges.
    """
    import torch

    names = list(source.modalities) if modalities is None else list(modalities)
    if chip is not None and chip < 1:
        raise ConfigError(f"data.chip must be ≥ 1 px, got {chip}")
    drawn = (seed, epoch)
    augment = (train, train and flips, train and rot90)
    sampler = ChipBatchSampler(
        indices,
        batch_size=batch_size,
        shuffle=train,
        seed=drawn,
        share=(rank, world_size),
        start_batch=start_batch,
        locality=locality,
    )
    workers = usable_workers(workers)
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


def _workers_context() -> object:
    """Forked from a clean process that has imported what workers need; spawned on Windows.

    Lightning and our own caches start threads; forking this process could hang.
    """
    import multiprocessing

    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "torch.utils.data", "pyarrow.parquet", __name__])
    return context


def _as_is(batch: object) -> object:
    return batch
