"""Scores equal scikit-learn's and hand computation; weights equal repeated chips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.errors import DataError
from multimae_eo.metrics.task_metrics import (
    Predictions,
    average_precision,
    chip_outcomes,
    class_scores,
    confusion,
    reliability,
    reliability_of,
    scores_of,
    values_of,
)


def predictions(kind: str, seed: int = 0, chips: int = 30) -> Predictions:
    rng = np.random.default_rng(seed)
    probability = None
    truth: np.ndarray
    if kind == "classification":
        truth = rng.integers(0, 4, chips)
        probability = rng.dirichlet(np.ones(4), chips)
        predicted = probability.argmax(axis=1)
    elif kind == "multilabel":
        truth = rng.integers(0, 2, (chips, 4))
        probability = np.round(0.4 * truth + 0.6 * rng.random((chips, 4)), 1)
        predicted = (probability >= 0.5).astype(int)
    elif kind == "segmentation":
        truth = rng.integers(-1, 3, (chips, 5, 5))
        predicted = np.where(rng.random(truth.shape) < 0.6, np.maximum(truth, 0), 2)
        probability = rng.random(truth.shape)
    else:
        truth = rng.standard_normal(chips) * 3 + 100
        predicted = truth + rng.standard_normal(chips)
    return Predictions(
        kind=kind,  # type: ignore[arg-type]
        keys=tuple(f"c{i}" for i in range(chips)),
        truth=truth,
        predicted=predicted,
        probability=probability,
    )


KINDS = ("classification", "multilabel", "segmentation", "regression")


def test_scores_equal_scikit_learns():
    from sklearn import metrics as sk

    p = predictions("classification")
    assert values_of(p) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(p.truth, p.predicted),
            "macro F1": sk.f1_score(p.truth, p.predicted, average="macro"),
        }
    )
    p = predictions("multilabel")
    assert values_of(p) == pytest.approx(
        {
            "mAP": sk.average_precision_score(p.truth, p.probability, average="macro"),
            "macro F1": sk.f1_score(p.truth, p.predicted, average="macro"),
            "micro F1": sk.f1_score(p.truth, p.predicted, average="micro"),
        }
    )
    p = predictions("segmentation")
    seen = p.truth >= 0
    assert values_of(p) == pytest.approx(
        {
            "mIoU": sk.jaccard_score(p.truth[seen], p.predicted[seen], average="macro"),
            "accuracy": sk.accuracy_score(p.truth[seen], p.predicted[seen]),
        }
    )
    p = predictions("regression")
    assert values_of(p) == pytest.approx(
        {
            "R2": sk.r2_score(p.truth, p.predicted),
            "RMSE": sk.root_mean_squared_error(p.truth, p.predicted),
            "MAE": sk.mean_absolute_error(p.truth, p.predicted),
        }
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_two_is_a_chip_twice(kind):
    """What the bootstrap relies on."""
    p = predictions(kind)
    rng = np.random.default_rng(1)
    for _ in range(20):
        drawn = rng.integers(0, len(p), len(p))
        weights = np.bincount(drawn, minlength=len(p)).astype(np.float64)[None]
        repeated = Predictions(
            kind=p.kind,
            keys=tuple(p.keys[i] for i in drawn),
            truth=p.truth[drawn],
            predicted=p.predicted[drawn],
            probability=None if p.probability is None else p.probability[drawn],
        )
        weighed = {name: score(weights)[0] for name, score in scores_of(p).items()}
        assert weighed == pytest.approx(values_of(repeated), nan_ok=True)


@given(st.integers(0, 2**31), st.integers(2, 25))
@settings(max_examples=60, deadline=None)
def test_average_precision_with_ties_and_weights_equals_scikit_learns(seed, chips):
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (chips, 1))
    scores = rng.integers(0, 4, (chips, 1)) / 3
    weights = rng.integers(0, 3, (3, chips)).astype(np.float64)
    for row, found in zip(weights, average_precision(truth, scores, weights)[:, 0], strict=True):
        if (row * truth[:, 0]).sum() == 0:
            assert np.isnan(found)
            continue
        theirs = average_precision_score(truth[:, 0], scores[:, 0], sample_weight=row)
        assert found == pytest.approx(theirs, abs=1e-12)


def test_iou_and_confusion_by_hand():
    p = Predictions(
        kind="segmentation",
        keys=("a", "b"),
        truth=np.array([[[0, 0], [1, 1]], [[-1, -1], [1, 0]]]),
        predicted=np.array([[[0, 1], [1, 1]], [[0, 1], [1, 1]]]),
        class_names=("land", "water", "ice"),
    )
    assert confusion(p).tolist() == [[1, 2, 0], [0, 3, 0], [0, 0, 0]]
    rows = {r["class"]: r for r in class_scores(p)}
    assert rows["land"] == {"class": "land", "pixels": 3, "F1": 0.5, "IoU": pytest.approx(1 / 3)}
    assert rows["water"]["IoU"] == pytest.approx(3 / 5)
    assert rows["ice"] == {"class": "ice", "pixels": 0, "F1": None, "IoU": None}
    assert values_of(p)["mIoU"] == pytest.approx((1 / 3 + 3 / 5) / 2), "ice is left out"
    assert chip_outcomes(p).tolist() == [0.75, 0.5]


def test_outcomes_by_hand():
    p = Predictions(
        kind="multilabel",
        keys=("a", "b", "c"),
        truth=np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]]),
        predicted=np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
        probability=np.zeros((3, 3)),
    )
    assert chip_outcomes(p).tolist() == [0.5, 1.0, 0.0]
    unlabelled = Predictions(
        kind="segmentation",
        keys=("a",),
        truth=np.full((1, 2, 2), -1),
        predicted=np.zeros((1, 2, 2), int),
        class_names=("land",),
    )
    assert np.isnan(chip_outcomes(unlabelled)).all()
    assert chip_outcomes(predictions("regression")).max() <= 0


def test_reliability_by_hand():
    found = reliability(np.array([0.1, 0.15, 0.9, 1.0]), np.array([0, 1, 1, 1], bool), bins=5)
    assert found.confidence == pytest.approx([0.125, 0.95])
    assert found.right == pytest.approx([0.5, 1.0])
    assert found.count.tolist() == [2, 2]
    assert found.error == pytest.approx((0.375 + 0.05) / 2)


def test_honest_probabilities_have_no_calibration_error_and_boastful_ones_have():
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    right = rng.random(200_000) < p
    assert reliability(p, right).error < 0.006
    assert reliability(np.sqrt(p), right).error == pytest.approx(1 / 6, abs=0.01)


def test_reliability_is_of_the_guessed_class_and_leaves_ignored_pixels_out():
    p = predictions("classification")
    assert p.probability is not None
    found = reliability_of(p)
    assert found is not None
    assert found.count.sum() == len(p)
    assert (found.confidence * found.count).sum() == pytest.approx(p.probability.max(axis=1).sum())
    maps = predictions("segmentation")
    found = reliability_of(maps)
    assert found is not None
    assert found.count.sum() == (maps.truth >= 0).sum()
    assert reliability_of(predictions("regression")) is None


def test_predictions_that_do_not_fit_are_refused():
    zeros = np.zeros(3, int)
    with pytest.raises(DataError, match="must agree"):
        Predictions(kind="classification", keys=("a",), truth=zeros, predicted=zeros)
    with pytest.raises(DataError, match="needs 3 axes"):
        Predictions(kind="segmentation", keys=("a", "b", "c"), truth=zeros, predicted=zeros)
    with pytest.raises(DataError, match="need probabilities"):
        Predictions(kind="multilabel", keys=("a",), truth=zeros[None], predicted=zeros[None])
    with pytest.raises(DataError, match="not finite"):
        Predictions(kind="regression", keys=("a",), truth=np.ones(1), predicted=np.array([np.nan]))
    with pytest.raises(DataError, match="from 0 to 1"):
        reliability(np.array([1.2]), np.array([True]))
    with pytest.raises(DataError, match="no confusion"):
        confusion(predictions("multilabel"))


def test_confusion_equals_scikit_learns():
    from sklearn.metrics import confusion_matrix

    for kind in ("classification", "segmentation"):
        p = predictions(kind)
        seen = p.truth >= 0
        assert np.array_equal(confusion(p), confusion_matrix(p.truth[seen], p.predicted[seen]))
