"""What is predicted: the kind of a data set's labels, and the statistics of its training labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import DataError
from multimae_eo.modality import class_ids

TaskName = Literal["classification", "segmentation", "regression"]
LabelKind = Literal["class", "multilabel", "map", "value", "value map"]

_KINDS: Mapping[LabelKind, tuple[TaskName, str]] = {
    "class": ("classification", "one class per chip"),
    "multilabel": ("classification", "a multi-hot vector per chip"),
    "map": ("segmentation", "a map of classes per chip"),
    "value": ("regression", "a number per chip"),
    "value map": ("regression", "a map of numbers per chip"),
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Labels of one kind, described by the training chips.

    ``classes``: names, in the order of the outputs; empty for values. ``class_ids``: the ids by
    which the user's files call them, where those do not follow from the names. ``counts``:
    training chips (pixels, for maps) of each class. ``total``: labelled training chips (pixels).
    ``mean``, ``std``: of values, which are predicted standardised; in maps, NaN is ignored.
    """

    kind: LabelKind
    classes: tuple[str, ...] = ()
    class_ids: tuple[int, ...] = ()
    counts: tuple[float, ...] = ()
    total: float = 0.0
    mean: float = 0.0
    std: float = 1.0

    @property
    def outputs(self) -> int:
        """Numbers predicted per chip or pixel."""
        return max(1, len(self.classes))

    @property
    def output_ids(self) -> tuple[int, ...]:
        """The id of each class in maps and tables."""
        return class_ids(self.classes, self.class_ids)

    @property
    def dense(self) -> bool:
        """Whether labels are maps."""
        return self.kind in ("map", "value map")

    @property
    def numeric(self) -> bool:
        """Whether labels are values, not classes."""
        return self.kind in ("value", "value map")

    @property
    def task(self) -> TaskName:
        """The task that such labels serve."""
        return _KINDS[self.kind][0]

    def to_dict(self) -> dict[str, object]:
        """A JSON-ready dictionary; ``from_dict`` is its inverse."""
        record = asdict(self)
        if not self.class_ids:
            del record["class_ids"]
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Target:
        """Rebuild a target written by ``to_dict``."""
        lists = {k: tuple(record.get(k, ())) for k in ("classes", "class_ids", "counts")}
        return cls(**{**record, **lists})


class TargetScan:
    """Learns a Target from training labels, one at a time.

    ``where``: what messages call the data. ``class_names``, ``ids``: the source's.
    """

    def __init__(
        self,
        task: TaskName,
        class_names: Sequence[str],
        where: str,
        *,
        ids: Sequence[int] = (),
    ) -> None:
        self._ids = tuple(ids)
        self._task, self._names, self._where = task, tuple(class_names), where
        self._kind: LabelKind | None = None
        self._counts = np.zeros(len(self._names))
        self._total = self._sum = self._square = 0.0

    def add(self, label: object) -> bool:
        """Count a label; False where it has no value (none, or all ignored).

        Raises DataError where it is not of the task's kind, or beyond the classes.
        """
        array = None if label is None else np.asarray(label)
        kind = None if array is None else kind_of(array, self._task)
        if array is None or kind is None:
            return False
        if self._kind is None:
            self._kind = kind
        if kind != self._kind or _KINDS[kind][0] != self._task:
            raise DataError(
                f"{self._where}: labels are {_KINDS[kind][1]}; {self._task} needs "
                + " or ".join(text for task, text in _KINDS.values() if task == self._task)
            )
        if kind in ("value", "value map"):
            finite = array[np.isfinite(array)].astype(np.float64)
            self._total, self._sum = self._total + finite.size, self._sum + float(finite.sum())
            self._square += float((finite**2).sum())
            return bool(finite.size)
        return self._count(array, kind)

    def _count(self, array: npt.NDArray[np.number], kind: LabelKind) -> bool:
        if kind == "multilabel":
            counts, total = (array > 0).astype(np.float64), 1.0
        else:
            class_indices = array[array >= 0].ravel()
            counts, total = np.bincount(class_indices).astype(np.float64), float(len(class_indices))
        if not total:
            return False
        if self._names and len(counts) > len(self._names):
            raise DataError(
                f"{self._where}: a label of class {len(counts) - 1}, but {len(self._names)} "
                f"classes ({', '.join(self._names)})"
            )
        size = max(len(counts), len(self._counts))
        self._counts = np.pad(self._counts, (0, size - len(self._counts)))
        self._counts[: len(counts)] += counts
        self._total += total
        return True

    def target(self) -> Target:
        """What was learnt; DataError where no label was seen."""
        if self._kind is None or not self._total:
            raise DataError(
                f"{self._where}: no training chip has a label; declare `labels:` in the dataset "
                "file, or prepare the store again from labelled data"
            )
        if self._kind in ("value", "value map"):
            mean = self._sum / self._total
            std = float(np.sqrt(max(self._square / self._total - mean**2, 0.0)))
            return Target(kind=self._kind, total=self._total, mean=mean, std=std or 1.0)
        names = self._names or tuple(str(i) for i in range(len(self._counts)))
        if len(names) < 2 and self._kind != "multilabel":
            raise DataError(f"{self._where}: labels are all of one class; need two or more")
        return Target(
            kind=self._kind,
            classes=names,
            class_ids=self._ids if self._ids != class_ids(names) else (),
            counts=tuple(self._counts.tolist()),
            total=self._total,
        )


def kind_of(label: npt.NDArray[np.generic], task: TaskName) -> LabelKind | None:
    """The kind of a label, a NumPy array; None where it is of no kind known.

    Whole numbers are values where the task is regression, else classes.
    """
    is_integer = label.dtype.kind in "biu"
    if label.ndim == 0:
        return "class" if is_integer and task != "regression" else "value"
    if label.ndim == 1:
        return "multilabel"
    if label.ndim > 2:
        return None
    return "map" if is_integer and task != "regression" else "value map"
