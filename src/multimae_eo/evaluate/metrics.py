"""Metrics of predictions over chips, each with a 95 % bootstrap interval over chips.

What a metric needs of a chip is kept per chip (a pixel-by-pixel confusion matrix for maps), so that
whole chips are resampled: pixels of one chip are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.evaluate.probes import RESAMPLES, bootstrap_interval
from multimae_eo.model.target import LabelKind

Array = npt.NDArray[Any]
Metric = Callable[[Array, Array], float]

_RANKED_RESAMPLES = 200
"""Average precision sorts all chips for every class: fewer resamples."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric's value and its 95 % interval over resampled chips."""

    value: float
    low: float
    high: float


def scores(
    kind: LabelKind, truth: Array, guess: Array, classes: Sequence[str], *, seed: int = 0
) -> dict[str, Score]:
    """All metrics of a kind of label, by name.

    class: ``truth`` int (N,), ``guess`` probabilities (N, C). multilabel: both (N, C). value: both
    (N,). map: both the confusion matrices (N, C, C) of ``confusion``, truth by row.
    """
    found = {}
    for name, (metric, resamples) in _metrics(kind, truth, guess, classes).items():
        low, high = bootstrap_interval(metric, truth, guess, seed=seed, resamples=resamples)
        found[name] = Score(value=metric(truth, guess), low=low, high=high)
    return found


def _metrics(
    kind: LabelKind, truth: Array, guess: Array, classes: Sequence[str]
) -> dict[str, tuple[Metric, int]]:
    size = len(classes)
    if kind == "value":
        return {n: (m, RESAMPLES) for n, m in (("R2", r2), ("RMSE", rmse), ("MAE", mae))}
    if kind == "multilabel":
        return {
            "mAP": (mean_average_precision, _RANKED_RESAMPLES),
            "micro F1": (lambda t, g: _f1(_hits(t, g > 0.5).sum(axis=1)), RESAMPLES),
            "macro F1": (lambda t, g: _f1(_hits(t, g > 0.5)), RESAMPLES),
        }
    if kind == "class":
        return {
            "accuracy": (lambda t, g: float((t == g.argmax(axis=1)).mean()), RESAMPLES),
            "macro F1": (
                lambda t, g: macro_f1(confusion(t, g.argmax(axis=1), size)),
                RESAMPLES,
            ),
        }
    table: dict[str, tuple[Metric, int]] = {
        "mIoU": (lambda t, g: float(np.nanmean(iou(t.sum(axis=0)))), RESAMPLES),
        "pixel accuracy": (lambda t, g: _share(t.sum(axis=0)), RESAMPLES),
    }
    seen = np.flatnonzero(np.isfinite(iou(truth.sum(axis=0))))
    for i in seen.tolist():
        table[f"IoU {classes[i]}"] = (_iou_of(i), RESAMPLES)
    return table


def confusion(truth: Array, guess: Array, size: int) -> npt.NDArray[np.int64]:
    """Counts (C, C) of labels by true class (row) and guessed class; -1 is ignored."""
    ok = truth >= 0
    pairs = truth[ok].astype(np.int64) * size + guess[ok].astype(np.int64)
    return np.bincount(pairs.ravel(), minlength=size * size).reshape(size, size)


def iou(matrix: Array) -> npt.NDArray[np.float64]:
    """Intersection over union per class (C,); NaN for a class neither there nor guessed."""
    hit = np.diag(matrix).astype(np.float64)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan)


def macro_f1(matrix: Array) -> float:
    """Mean F1 over the classes there or guessed, from a confusion matrix."""
    hit = np.diag(matrix)
    return _f1(np.stack([hit, matrix.sum(axis=0) - hit, matrix.sum(axis=1) - hit]))


def mean_average_precision(truth: Array, guess: Array) -> float:
    """Mean average precision over the classes that any chip has."""
    from sklearn.metrics import average_precision_score

    there = [i for i in range(truth.shape[1]) if truth[:, i].any()]
    found = [average_precision_score(truth[:, i], guess[:, i]) for i in there]
    return float(np.mean(found)) if found else float("nan")


def r2(truth: Array, guess: Array) -> float:
    """Coefficient of determination; 0 predicts no better than the mean of these chips."""
    spread = ((truth - truth.mean()) ** 2).sum()
    return float(1 - ((truth - guess) ** 2).sum() / spread) if spread else float("nan")


def rmse(truth: Array, guess: Array) -> float:
    """Root mean square error, in the labels' unit."""
    return float(np.sqrt(((truth - guess) ** 2).mean()))


def mae(truth: Array, guess: Array) -> float:
    """Mean absolute error, in the labels' unit."""
    return float(np.abs(truth - guess).mean())


def _iou_of(index: int) -> Metric:
    return lambda t, g: float(iou(t.sum(axis=0))[index])


def _share(matrix: Array) -> float:
    return float(np.trace(matrix) / max(matrix.sum(), 1))


def _hits(truth: Array, guess: Array) -> Array:
    """True positives, false positives and false negatives per class: (3, C)."""
    there = truth > 0
    counts: Array = np.stack([there & guess, ~there & guess, there & ~guess]).sum(axis=1)
    return counts


def _f1(counts: Array) -> float:
    """F1 from (3,) or, averaged over the classes there or guessed, from (3, C)."""
    hit, wrong, missed = counts.reshape(3, -1).astype(np.float64)
    total = 2 * hit + wrong + missed
    return float((2 * hit / np.maximum(total, 1))[total > 0].mean()) if total.any() else 0.0
