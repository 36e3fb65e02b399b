"""The interface of every source of chips: keys, splits, modalities, and one chip as a Sample."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import DataError, SplitError, did_you_mean
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Batch, Sample, collate
from multimae_eo.statistics import Statistics

Indices = npt.NDArray[np.int64]

_SPLIT_NAMES = {
    "train": ("train", "training", "trn", "tr"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing", "tst", "te"),
}


def split_name(name: str) -> str:
    """``train``, ``val`` or ``test`` where a common spelling of it is given, else the name."""
    low = name.strip().lower().strip("_-")
    return next((split for split, same in _SPLIT_NAMES.items() if low in same), name)


class Source(ABC):
    """A data set of chips. Subclasses set the attributes below and implement ``read``.

    Sources travel to worker processes by pickling: open files lazily and per process.

    ``name``: for messages. ``modalities``: what chips may hold. ``keys``: one unique, stable name
    per chip, in order. ``split_of``: the split of each key ("" for none), aligned with ``keys``.
    ``class_names``: names of label classes, empty where there are no class labels. ``class_ids``:
    the ids of the classes in the user's files, empty where an id is its position in the list.
    ``notes``: what was left out on opening, a line each. ``outward_links``: of the symbolic links
    among the files that lead outside the data set, a line each.
    """

    name: str
    modalities: ModalitySet
    keys: Sequence[str]
    split_of: Sequence[str]
    class_names: tuple[str, ...] = ()
    class_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    outward_links: tuple[str, ...] = ()

    @abstractmethod
    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """Read chip ``index``; only the modalities ``names`` (all by default) that it has."""

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _index(self) -> Mapping[str, int]:
        return {key: i for i, key in enumerate(self.keys)}

    def index_of(self, key: str) -> int:
        """Position of a key; DataError names the nearest."""
        if key not in self._index:
            near = did_you_mean(key, list(self.keys)[:2000]).split("; valid")[0]
            raise DataError(f"{self.name}: no chip {key!r}; {near[:200]}")
        return self._index[key]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in order of first appearance."""
        return tuple(dict.fromkeys(s for s in self.split_of if s))

    def split(self, name: str) -> Indices:
        """Indices of a split's chips, in order; SplitError when it is unknown or empty."""
        canonical = name if name in self.split_of else split_name(name)
        indices = np.array(
            [i for i, s in enumerate(self.split_of) if s == canonical], dtype=np.int64
        )
        if not len(indices):
            have = {s: sum(1 for x in self.split_of if x == s) for s in self.splits}
            raise SplitError(
                f"{self.name}: split {name!r} is empty; splits: "
                + (", ".join(f"{k} ({v})" for k, v in have.items()) or "none are declared")
            )
        return indices

    def train_val(self, *, val_fraction: float = 0.1) -> tuple[Indices, Indices]:
        """Training and validation chips.

        Uses the splits ``train`` and ``val``. Chips without any split are divided by a hash of
        their key, so that the division is stable when chips are added. Chips of other splits
        (``test``) are never returned.
        """
        train, val = [], []
        no_val = "val" not in self.splits
        for i, (key, split) in enumerate(zip(self.keys, self.split_of, strict=True)):
            if split == "val" or (
                split in ("", "train") and no_val and hashed_fraction(key) < val_fraction
            ):
                val.append(i)
            elif split in ("", "train"):
                train.append(i)
        if not train:
            raise SplitError(f"{self.name}: no chip to train on; splits: {self.splits or 'none'}")
        return np.array(train, dtype=np.int64), np.array(val, dtype=np.int64)

    def batch(self, keys: Iterable[str], names: Sequence[str] | None = None) -> Batch:
        """Read chips by key into one Batch (on the CPU)."""
        chosen = self.modalities if names is None else self.modalities.select(names)
        return collate([self.read(self.index_of(k), names) for k in keys], chosen)

    def statistics(self, indices: Iterable[int] | None = None) -> Statistics:
        """One pass over the given chips (all by default)."""
        statistics = Statistics(self.modalities)
        for i in range(len(self)) if indices is None else indices:
            statistics.update(self.read(int(i)))
        return statistics


def hashed_fraction(key: str) -> float:
    """A stable, uniform number in [0, 1) from a key."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class ConcatSource(Source):
    """Several sources as one: modalities are united, chips keep what they have.

    Keys are prefixed with the source's name. Sources whose classes differ lose their labels: class
    0 of one is not class 0 of another.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise DataError("no source to concatenate")
        self.sources = tuple(sources)
        self.name = "+".join(s.name for s in sources)
        self.modalities = sources[0].modalities
        for source in sources[1:]:
            self.modalities = self.modalities.union(source.modalities)
        names = [s.name for s in sources]
        if len(set(names)) != len(names):
            raise DataError(f"two sources are called the same: {names}; give each its own `name:`")
        self.keys = [f"{s.name}/{k}" for s in sources for k in s.keys]
        self.split_of = [x for s in sources for x in s.split_of]
        self._starts = np.cumsum([0, *(len(s) for s in sources)])
        kinds = {s.class_names for s in sources if s.class_names}
        self._labelled = len(kinds) <= 1
        self.class_names = kinds.pop() if len(kinds) == 1 else ()
        ids = {s.class_ids for s in sources if s.class_names}
        self.class_ids = ids.pop() if self._labelled and len(ids) == 1 else ()
        self.notes = tuple(f"{s.name}: {note}" for s in sources for note in s.notes)
        self.outward_links = tuple(f"{s.name}: {x}" for s in sources for x in s.outward_links)

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """Read from the source that holds the chip, with that source's calibration."""
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        source = self.sources[which]
        mine = None if names is None else [n for n in names if n in source.modalities]
        sample = source.read(index - int(self._starts[which]), mine)
        calibration = {n: sample.calibration_of(source.modalities[n]) for n in sample.pixels}
        return Sample(
            key=self.keys[index],
            pixels=sample.pixels,
            valid=sample.valid,
            calibration=calibration,
            geometry=sample.geometry,
            time=sample.time,
            label=sample.label if self._labelled else None,
            dates=sample.dates,
        )
