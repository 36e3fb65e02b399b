"""Folds keep locations together, and pooled scores weigh locations, not chips."""

from __future__ import annotations

import numpy as np
import pytest
import water_folds
from hypothesis import given
from hypothesis import strategies as st

from multimae_eo.evaluation.trials import FINETUNING, Trial
from multimae_eo.metrics.intervals import hierarchical_interval
from multimae_eo.metrics.task_metrics import Counts, MapCounts


def test_chips_of_one_location_are_recognised():
    rng = np.random.default_rng(0)
    first, second = rng.normal(100, 20, (2, 64))
    sea = np.zeros(64)
    chips = np.stack([first, second, first + rng.normal(0, 0.5, 64), first + 50, sea, sea])
    assert water_folds.locations(chips).tolist() == [0, 1, 0, 2, 3, 3]


@given(
    sizes=st.lists(st.integers(1, 5), min_size=12, max_size=40),
    count=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_every_chip_is_tested_once_and_no_location_is_in_two_splits(sizes, count, seed):
    location = np.repeat(np.arange(len(sizes)), sizes)
    folds = water_folds.folds(location, count, 3, seed)
    assert len(folds) == count
    tested = np.sum([[s == "test" for s in splits] for splits in folds], axis=0)
    assert (tested == 1).all()
    for splits in folds:
        for which in set(location):
            assert len({s for s, at in zip(splits, location, strict=True) if at == which}) == 1
        assert splits.count("val") >= 3
    held_out = [splits.count("test") for splits in folds]
    assert max(held_out) - min(held_out) <= max(sizes)


def trial(keys: tuple[str, ...], hits: list[list[float]]) -> Trial:
    """A trial of maps of 10 px with so many right of either class; half of each class is true."""
    hit = np.array(hits)
    counts = Counts(hit, np.full_like(hit, 5.0), np.full_like(hit, 5.0))
    maps = MapCounts(kind="segmentation", keys=keys, counts=counts, class_names=("land", "water"))
    return Trial(
        inputs="optical", features="pre-trained", method=FINETUNING, percent=10.0,
        train_chips=len(keys), chosen=("–",), predictions=(maps,), seconds=0.0, validation=(0.5,),
    )  # fmt: skip


def test_folds_are_joined_and_seeds_stay_apart():
    location = {"a": 0, "b": 0, "c": 1}
    one, two = trial(("a", "b"), [[5, 5], [0, 0]]), trial(("c",), [[5, 5]])
    other, same = trial(("b", "a"), [[5, 5], [5, 5]]), trial(("c",), [[5, 5]])
    joined = water_folds.pooled([one, two, other, same], location)
    assert len(joined.scores) == 2
    assert joined.train_chips == (2, 1)
    ones = np.ones((1, 2))
    # Of 15 px of either class 10 are right: 10 / (15 + 15 - 10).
    assert float(joined.scores[0](ones)[0]) == pytest.approx(0.5)
    assert float(joined.scores[1](ones)[0]) == pytest.approx(1.0)
    # The second location alone.
    assert float(joined.scores[0](np.array([[0.0, 1.0]]))[0]) == pytest.approx(1.0)
    assert hierarchical_interval(joined.scores, 2).value == pytest.approx(0.75)
