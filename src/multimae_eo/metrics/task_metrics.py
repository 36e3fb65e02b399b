"""Predictions of labelled chips and their scores: overall, per class, and calibration.

N chips, C classes, R weightings of the chips. Scores follow scikit-learn's definitions; they are
written as functions of the chips' weights so that ``metrics.intervals`` can resample them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import DataError
from multimae_eo.metrics.intervals import WeightedScore
from multimae_eo.metrics.regression import RegressionSums, ratio

Array = npt.NDArray[np.float64]
TaskKind = Literal["classification", "multilabel", "segmentation", "regression"]
BINS = 15
_MAP_AXES = 3
_ROWS = 64  # weightings sorted at once


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions of labelled chips, of any model.

    ``truth``, ``predicted``: class indices (N,); 0 and 1 (N, C) for several labels per chip; maps
    (N, H, W) of class indices, truth -1 where ignored; or values (N,), or maps of values
    (N, H, W), truth NaN where there is none. ``probability``: (N, C), or
    (N, H, W), that of the predicted class, in [0, 1]; for several labels it is what ranks chips.
    Raises DataError for shapes that do not fit.
    """

    kind: TaskKind
    keys: tuple[str, ...]
    truth: npt.NDArray[Any]
    predicted: npt.NDArray[Any]
    class_names: tuple[str, ...] = ()
    probability: npt.NDArray[np.generic] | None = None

    def __post_init__(self) -> None:
        if self.truth.shape != self.predicted.shape or len(self.truth) != len(self.keys):
            raise DataError(
                f"predictions: {len(self.keys)} chips, truth {self.truth.shape}, "
                f"predicted {self.predicted.shape}; these must agree"
            )
        axes = {"classification": 1, "multilabel": 2, "segmentation": 3, "regression": 1}[self.kind]
        maps = self.kind == "regression" and self.truth.ndim == _MAP_AXES
        if (self.truth.ndim != axes and not maps) or not len(self.truth):
            raise DataError(
                f"predictions: {self.kind} needs {axes} axes and chips, got {self.truth.shape}"
            )
        finite = (self.predicted,) if maps else (self.predicted, self.truth)
        if self.kind == "regression" and not all(np.isfinite(v).all() for v in finite):
            raise DataError("predictions: values that are not finite")
        if self.kind == "multilabel" and self.probability is None:
            raise DataError("predictions: several labels per chip need probabilities to rank by")

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def counts(self) -> Counts:
        """Per chip and class: hits, true and predicted. Raises DataError for values."""
        if self.kind == "regression":
            raise DataError("predictions: values have no classes")
        truth, predicted = self.truth, self.predicted
        if self.kind == "multilabel":
            is_true, is_predicted = truth > 0, predicted > 0
            parts = (is_true & is_predicted, is_true, is_predicted)
            return Counts(*(p.astype(np.float64) for p in parts))
        classes = max(len(self.class_names), int(max(truth.max(), predicted.max())) + 1)
        chip = np.arange(len(truth)).reshape(-1, *[1] * (truth.ndim - 1))
        chip = np.broadcast_to(chip, truth.shape)
        seen = truth >= 0

        def tally(values: npt.NDArray[np.generic], where: npt.NDArray[np.bool_]) -> Array:
            at = chip[where] * classes + values[where].astype(np.int64)
            result = np.bincount(at, minlength=len(truth) * classes)
            return result.reshape(len(truth), classes).astype(np.float64)

        return Counts(
            tally(truth, seen & (truth == predicted)), tally(truth, seen), tally(predicted, seen)
        )

    def name_of(self, index: int) -> str:
        """A class's name, or its index where it has none."""
        return _name_of(self.class_names, index)


@dataclass(frozen=True, kw_only=True)
class MapCounts:
    """Predicted maps of which only each chip's ``counts`` are kept: all that their scores need."""

    kind: TaskKind
    keys: tuple[str, ...]
    counts: Counts
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def name_of(self, index: int) -> str:
        """A class's name, or its index where it has none."""
        return _name_of(self.class_names, index)


Judged = Predictions | MapCounts


def _name_of(names: Sequence[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


@dataclass(frozen=True)
class Counts:
    """Chips or pixels (N, C) of each class: predicted rightly, true, and predicted."""

    hit: Array
    true: Array
    predicted: Array

    @classmethod
    def of_confusion(cls, confusion: npt.NDArray[np.int64]) -> Counts:
        """From a confusion matrix with true classes in rows: one row of counts."""
        parts = (np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0))
        return cls(*(part[None].astype(np.float64) for part in parts))

    def weighted(self, weights: Array) -> Counts:
        """Sums over weighted chips: (R, C)."""
        return Counts(weights @ self.hit, weights @ self.true, weights @ self.predicted)

    @property
    def f1(self) -> Array:
        """2·hit / (true + predicted); NaN for classes that occur in neither."""
        return ratio(2 * self.hit, self.true + self.predicted)

    @property
    def micro_f1(self) -> Array:
        """F1 of all classes counted together: (R,)."""
        return ratio(2 * self.hit.sum(axis=1), (self.true + self.predicted).sum(axis=1))

    @property
    def iou(self) -> Array:
        """Intersection over union; NaN for classes that occur in neither."""
        return ratio(self.hit, self.true + self.predicted - self.hit)

    @property
    def mean_iou(self) -> Array:
        """Mean of ``iou`` over the classes it is defined for: (R,)."""
        return _class_mean(self.iou)

    @property
    def accuracy(self) -> Array:
        """Share that was predicted rightly: (R,)."""
        return ratio(self.hit.sum(axis=1), self.true.sum(axis=1))


def scores_of(predictions: Judged) -> dict[str, WeightedScore]:
    """The scores of a kind of task, by name, the one that matters first.

    classification: accuracy, macro F1. multilabel: mAP, macro and micro F1. segmentation: mIoU,
    accuracy (over pixels that are not ignored). regression: R², RMSE, MAE (lower is better). Means
    over classes leave out classes that neither truth nor predictions hold, as scikit-learn does.
    """
    if isinstance(predictions, Predictions) and predictions.kind == "regression":
        return RegressionSums.of(predictions.truth, predictions.predicted).scores()
    counts = predictions.counts

    def accuracy(weights: Array) -> Array:
        return counts.weighted(weights).accuracy

    def macro_f1(weights: Array) -> Array:
        return _class_mean(counts.weighted(weights).f1)

    def mean_iou(weights: Array) -> Array:
        return counts.weighted(weights).mean_iou

    if predictions.kind == "classification":
        return {"accuracy": accuracy, "macro F1": macro_f1}
    if isinstance(predictions, MapCounts) or predictions.kind == "segmentation":
        return {"mIoU": mean_iou, "accuracy": accuracy}
    return {
        "mAP": _mean_average_precision(predictions),
        "macro F1": macro_f1,
        "micro F1": lambda weights: counts.weighted(weights).micro_f1,
    }


def all_scores(predictions: Judged) -> dict[str, WeightedScore]:
    """The scores of a kind of task; of maps also ``IoU NAME``, each class's own."""
    result = scores_of(predictions)
    if predictions.kind == "segmentation":
        result |= {f"IoU {name}": score for name, score in class_iou(predictions).items()}
    return result


def class_iou(predictions: Judged) -> dict[str, WeightedScore]:
    """Intersection over union of each class that is there or predicted, by its name."""
    counts = predictions.counts
    there = np.flatnonzero((counts.true + counts.predicted).sum(axis=0))

    def score(index: int) -> WeightedScore:
        return lambda weights: counts.weighted(weights).iou[:, index]

    return {predictions.name_of(i): score(i) for i in there.tolist()}


def values_of(predictions: Judged) -> dict[str, float]:
    """The scores of all chips, each weighing the same."""
    ones = np.ones((1, len(predictions)))
    return {name: float(score(ones)[0]) for name, score in scores_of(predictions).items()}


def chip_outcomes(predictions: Judged) -> Array:
    """How right each chip is, higher is better: (N,), what paired tests compare.

    1 or 0; F1 of the chip's labels; share of its labelled pixels, NaN without any; or minus the
    squared error.
    """
    if isinstance(predictions, Predictions) and predictions.kind == "regression":
        sums = RegressionSums.of(predictions.truth, predictions.predicted)
        return sums.outcomes()
    counts = predictions.counts
    if predictions.kind != "multilabel":
        return counts.accuracy
    return np.nan_to_num(counts.micro_f1, nan=1.0)  # no label, and none predicted


def class_scores(predictions: Predictions) -> list[dict[str, object]]:
    """A row per class: its name, chips or pixels of it, F1 and IoU, None where it does not occur.

    With several labels per chip, average precision, too.
    """
    ones = np.ones((1, len(predictions)))
    total = predictions.counts.weighted(ones)
    unit = "pixels" if predictions.kind == "segmentation" else "chips"
    rows: list[dict[str, object]] = [
        {
            "class": predictions.name_of(i),
            unit: int(total.true[0, i]),
            "F1": _finite_or_none(total.f1[0, i]),
            "IoU": _finite_or_none(total.iou[0, i]),
        }
        for i in range(total.true.shape[1])
    ]
    if predictions.kind == "multilabel":
        precision = average_precision(predictions.truth, _scores(predictions), ones)[0]
        for row, value in zip(rows, precision, strict=True):
            row["average precision"] = _finite_or_none(value)
    return rows


def confusion(predictions: Predictions) -> npt.NDArray[np.int64]:
    """Chips or pixels by true (rows) and predicted class (columns): (C, C).

    Raises DataError for tasks in which a chip has several labels or a value.
    """
    if predictions.kind not in ("classification", "segmentation"):
        raise DataError(f"{predictions.kind} has no confusion matrix")
    seen = predictions.truth >= 0
    classes = predictions.counts.true.shape[1]
    return confusion_matrix(predictions.truth[seen], predictions.predicted[seen], classes)


def confusion_matrix(
    truth: npt.NDArray[np.generic], predicted: npt.NDArray[np.integer], classes: int
) -> npt.NDArray[np.int64]:
    """Counts by true (rows) and predicted class (columns), of class indices: (C, C)."""
    pairs = truth.astype(np.int64) * classes + predicted
    return np.bincount(pairs.ravel(), minlength=classes**2).reshape(classes, classes)


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Predictions by bins of confidence: mean confidence, accuracy, count.

    ``error``: the expected calibration error, the mean gap weighted by the count.
    """

    confidence: Array
    right: Array
    count: npt.NDArray[np.int64]

    @property
    def error(self) -> float:
        """The expected calibration error in [0, 1]."""
        total = self.count.sum()
        return float((np.abs(self.right - self.confidence) * self.count).sum() / max(total, 1))


def reliability(
    confidence: npt.NDArray[np.generic], right: npt.NDArray[np.bool_], *, bins: int = BINS
) -> Reliability:
    """Bins of equal width over [0, 1] (Guo et al. 2017); empty bins are left out.

    confidence: probabilities of any shape; right: bools, aligned. Raises DataError outside [0, 1].
    """
    p = np.asarray(confidence, np.float64).ravel()
    ok = np.asarray(right, bool).ravel()
    if p.shape != ok.shape or not ((p >= -1e-6) & (p <= 1 + 1e-6)).all():
        raise DataError("reliability: expected a probability from 0 to 1 for each prediction")
    bin_index = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(bin_index, minlength=bins)
    kept = count > 0
    sums = [np.bincount(bin_index, weights=w, minlength=bins) for w in (p, ok.astype(np.float64))]
    mean, share = (s[kept] / count[kept] for s in sums)
    return Reliability(confidence=mean, right=share, count=count[kept])


def reliability_of(predictions: Predictions) -> Reliability | None:
    """Reliability of the predicted classes (of every label's yes, for several); None without."""
    p = predictions.probability
    if p is None or predictions.kind == "regression":
        return None
    right = predictions.truth == predictions.predicted
    if predictions.kind == "multilabel":
        return reliability(p, predictions.truth > 0)
    if predictions.kind == "classification":
        p = np.take_along_axis(p, predictions.predicted[:, None].astype(np.int64), axis=1)[:, 0]
    seen = predictions.truth >= 0
    return reliability(p[seen], right[seen])


def average_precision(
    truth: npt.NDArray[np.generic], scores: npt.NDArray[Any], weights: Array
) -> Array:
    """Average precision of each class under each weighting of the chips: (R, C).

    truth: 0 or 1 (N, C). scores: (N, C). weights: (R, N). NaN for classes without a true chip.
    """
    result = np.empty((len(weights), truth.shape[1]))
    for c in range(truth.shape[1]):
        order = np.argsort(-scores[:, c], kind="stable")
        ranked = scores[order, c]
        # Precision is that of a threshold: chips of equal score pass it together.
        last = np.searchsorted(-ranked, -ranked, side="right") - 1
        is_true = truth[order, c] > 0
        for start in range(0, len(weights), _ROWS):
            w = weights[start : start + _ROWS, order]
            hits = w * is_true
            precision = ratio(np.cumsum(hits, axis=1)[:, last], np.cumsum(w, axis=1)[:, last])
            result[start : start + _ROWS, c] = ratio(
                (hits * np.nan_to_num(precision)).sum(axis=1), hits.sum(axis=1)
            )
    return result


def _mean_average_precision(predictions: Predictions) -> WeightedScore:
    truth, scores = predictions.truth, _scores(predictions)
    return lambda weights: _class_mean(average_precision(truth, scores, weights))


def _scores(predictions: Predictions) -> npt.NDArray[np.generic]:
    assert predictions.probability is not None
    return predictions.probability


def _class_mean(values: Array) -> Array:
    """Mean over the classes that are defined: (R, C) → (R,), NaN where none is."""
    finite = np.isfinite(values)
    return ratio(np.where(finite, values, 0.0).sum(axis=1), finite.sum(axis=1))


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
