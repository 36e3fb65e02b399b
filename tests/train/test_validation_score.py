"""The score that chooses the best weights is that of the project's metrics, on any batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics

from multimae_eo.network.target import LabelKind, Target
from multimae_eo.train.validation_score import ValidationScore

CHIPS, CLASSES = 23, 3


def data(kind: LabelKind) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions as a model gives them, and labels, some of them ignored."""
    generator = torch.Generator().manual_seed(3)
    size = {"map": (5, 4), "value map": (5, 4)}.get(kind, ())
    if kind in ("value", "value map"):
        labels = torch.randn(CHIPS, *size, generator=generator) + 100
        predictions = labels + torch.randn(labels.shape, generator=generator)
        labels[0] = torch.nan
        return predictions, labels
    probability = torch.rand(CHIPS, CLASSES, *size, generator=generator)
    if kind == "multilabel":
        return probability, (torch.rand(CHIPS, CLASSES, generator=generator) < 0.4).float()
    return probability, torch.randint(-1, CLASSES, (CHIPS, *size), generator=generator)


def expected(kind: LabelKind, predictions: np.ndarray, labels: np.ndarray) -> float:
    if kind == "multilabel":
        return float(metrics.average_precision_score(labels, predictions, average="macro"))
    if kind in ("value", "value map"):
        ok = np.isfinite(labels)
        return math.sqrt(metrics.mean_squared_error(labels[ok], predictions[ok]))
    ok, predicted = labels >= 0, predictions.argmax(axis=1)
    if kind == "class":
        return float(metrics.accuracy_score(labels[ok], predicted[ok]))
    return float(metrics.jaccard_score(labels[ok], predicted[ok], average="macro"))


@pytest.mark.parametrize("kind", ["class", "multilabel", "map", "value", "value map"])
@pytest.mark.parametrize("batch", [1, 7, CHIPS])
def test_equals_scikit_learn_in_any_batches(kind, batch):
    predictions, labels = data(kind)
    names = () if kind in ("value", "value map") else ("a", "b", "c")
    score = ValidationScore(Target(kind=kind, classes=names))
    for _ in range(2):  # The second validation forgets the first.
        score.reset()
        for start in range(0, CHIPS, batch):
            score.update(predictions[start : start + batch], labels[start : start + batch])
        value = score.compute()
        assert value == pytest.approx(expected(kind, predictions.numpy(), labels.numpy()), abs=1e-6)
    assert score.rule.sign == (1.0 if kind in ("value", "value map") else -1.0)


def test_without_labels_there_is_no_score():
    score = ValidationScore(Target(kind="value"))
    assert math.isnan(score.compute())
    score.update(torch.zeros(2), torch.full((2,), torch.nan))
    assert math.isnan(score.compute())
