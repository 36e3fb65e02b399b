"""Label fractions are nested, stratified, complete in classes, and the same again."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.errors import ConfigError, DataError
from multimae_eo.evaluation.fractions import Strata, label_fractions

PERCENTS = (1.0, 5.0, 10.0, 25.0, 50.0, 100.0)


@st.composite
def labels(draw):
    """Labels of some chips, of any kind, and the number of classes."""
    kind = draw(st.sampled_from(["class", "classes", "map", "value"]))
    count, classes = draw(st.integers(1, 120)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    share = rng.dirichlet(np.full(classes, 0.5))
    if kind == "class":
        return list(rng.choice(classes, count, p=share)), classes
    if kind == "classes":
        return list((rng.random((count, classes)) < share).astype(np.float32)), classes
    if kind == "map":
        maps = rng.choice(classes, (count, 4, 4), p=share)
        return list(np.where(rng.random(maps.shape) < 0.3, -1, maps)), classes
    return list(rng.standard_normal(count).astype(np.float32)), 1


@given(labels(), st.integers(0, 5))
@settings(max_examples=120, deadline=None)
def test_fractions_are_nested_complete_and_the_same_again(drawn, seed):
    values, classes = drawn
    strata = Strata.of(values, classes)
    found = label_fractions(strata, PERCENTS, seed=seed)
    assert found[100.0].tolist() == list(range(len(values)))
    for small, large in pairwise(PERCENTS):
        assert set(found[small]) <= set(found[large])
    known = strata.presence.any(axis=0)
    for percent, rows in found.items():
        assert np.array_equal(np.unique(rows), rows)
        assert strata.presence[rows].any(axis=0).tolist() == known.tolist(), percent
        least = max(1, round(percent / 100 * len(values)))
        assert least <= len(rows) <= max(least, classes)
    again = label_fractions(strata, (10.0,), seed=seed)
    assert again[10.0].tolist() == found[10.0].tolist(), "whatever else is asked for"


@given(st.integers(0, 2**31), st.sampled_from([10.0, 25.0, 50.0]))
@settings(max_examples=60, deadline=None)
def test_every_class_has_its_share(seed, percent):
    values = np.random.default_rng(seed).choice(5, 400, p=[0.5, 0.25, 0.15, 0.07, 0.03])
    strata = Strata.of(list(values), 5)
    rows = label_fractions(strata, (percent,), seed=seed % 7)[percent]
    share = len(rows) / 400
    for c in range(5):
        mine, all_of_it = int((values[rows] == c).sum()), int((values == c).sum())
        assert abs(mine - share * all_of_it) <= 2


def test_other_seeds_draw_other_chips_and_all_are_drawn_alike_often():
    strata = Strata.of([0] * 30 + [1] * 10, 2)
    drawn = [label_fractions(strata, (25,), seed=s)[25.0] for s in range(400)]
    assert len({tuple(rows) for rows in drawn}) > 350
    often = np.bincount(np.concatenate(drawn), minlength=40) / 400
    assert often == pytest.approx(np.full(40, 0.25), abs=0.09)


def test_strata_by_kind():
    hot = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 1, 0]], np.float32)
    # Class 2 is the rarest (1 chip), then 1 (2), then 0 (4); chips without a class stand apart.
    assert Strata.of(list(hot), 3).stratum.tolist() == [1, 0, 2, 3, 1]
    maps = [np.array([[0, 2], [2, -1]]), np.array([[1, 1], [0, -1]]), np.full((2, 2), -1)]
    strata = Strata.of(maps, 3)
    assert strata.stratum.tolist() == [2, 1, 3]
    assert strata.presence.tolist() == [[True, False, True], [True, True, False], [False] * 3]
    values = Strata.of([np.float32(v) for v in range(100)], 1)
    assert np.bincount(values.stratum).tolist() == pytest.approx([10] * 10, abs=1)
    assert values.presence.shape == (100, 0)


def test_a_small_fraction_keeps_a_chip_of_the_rarest_class():
    values = [0] * 970 + [1] * 28 + [2] * 2
    for seed in range(10):
        rows = label_fractions(Strata.of(values, 3), (1,), seed=seed)[1.0]
        assert len(rows) == 10
        assert {values[i] for i in rows} == {0, 1, 2}


@pytest.mark.parametrize("percent", [0, -1, 100.5, float("nan")])
def test_percentages_out_of_range_are_refused(percent):
    with pytest.raises(ConfigError, match="above 0 and up to 100"):
        label_fractions(Strata.of([0, 1], 2), (percent,))


def test_labels_that_make_no_strata_are_refused():
    with pytest.raises(DataError, match="several kinds"):
        Strata.of([1, np.zeros(3)], 3)
    with pytest.raises(DataError, match="class 3; classes are 0 to 2"):
        Strata.of([np.array(3)], 3)
    with pytest.raises(DataError, match="no labels"):
        Strata.of([], 3)
