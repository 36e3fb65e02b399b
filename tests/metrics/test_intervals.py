"""Intervals cover what they promise, and tests give the p-values worked out by hand."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.errors import ConfigError, DataError
from multimae_eo.metrics import intervals as statistics
from multimae_eo.metrics.intervals import (
    hierarchical_interval,
    holm,
    mcnemar,
    mean_score,
    paired_interval,
    permutation_test,
    score_interval,
)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_agree_with_scipy(method):
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).exponential(size=60)
    mine = score_interval(mean_score(values), 60, method=method, resamples=20_000, seed=1)
    theirs = stats.bootstrap(
        (values,), np.mean, method=method, n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert mine.value == pytest.approx(values.mean())
    assert (mine.low, mine.high) == pytest.approx(tuple(theirs), abs=0.015)


def test_bca_moves_towards_the_long_tail_of_a_skewed_score():
    values = np.random.default_rng(3).lognormal(sigma=1.2, size=50)
    plain = score_interval(mean_score(values), 50, resamples=4000)
    moved = score_interval(mean_score(values), 50, method="bca", resamples=4000)
    assert moved.low > plain.low
    assert moved.high > plain.high + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_95_percent_intervals_cover_the_true_accuracy_in_about_95_percent(method):
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        right = rng.random(150) < 0.8
        found = score_interval(mean_score(right), 150, method=method, resamples=300, seed=trial)
        covered += found.low <= 0.8 <= found.high
    assert 0.91 <= covered / 400 <= 0.98


@pytest.mark.slow
def test_intervals_over_seeds_cover_where_intervals_over_chips_do_not():
    """Outcomes depend on the seed and on the chip; the truth is the mean over both."""
    rng = np.random.default_rng(1)
    chips, seeds, trials = 100, 10, 200
    both = only_chips = 0
    for trial in range(trials):
        of_seed = 0.15 * rng.standard_normal(seeds)
        of_chip = 0.5 * rng.standard_normal(chips)
        noise = 0.3 * rng.standard_normal((seeds, chips))
        scores = [mean_score(row) for row in of_seed[:, None] + of_chip + noise]
        found = hierarchical_interval(scores, chips, resamples=300, seed=trial)
        both += found.low <= 0 <= found.high
        alone = score_interval(scores[0], chips, resamples=300, seed=trial)
        only_chips += alone.low <= 0 <= alone.high
    assert both / trials >= 0.91
    assert only_chips / trials < 0.75, "one seed's chips know nothing of other seeds"


def test_one_seed_is_the_interval_over_chips():
    score = mean_score(np.random.default_rng(0).random(40))
    assert hierarchical_interval([score], 40, seed=5) == score_interval(score, 40, seed=5)


def test_blocks_of_resamples_change_nothing_but_memory(monkeypatch):
    values = np.random.default_rng(0).random(30)
    whole = score_interval(mean_score(values), 30, method="bca")
    monkeypatch.setattr(statistics, "_BLOCK", 200)
    parts = score_interval(mean_score(values), 30, method="bca")
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.01)


def test_a_constant_outcome_has_an_interval_of_no_width():
    for method in ("percentile", "bca"):
        found = score_interval(mean_score(np.ones(20)), 20, method=method)
        assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


def bootstrap_interval(metric, truth, guess, *, seed, resamples=1000):
    """The percentile interval by drawing chips, as a textbook has it."""
    rng = np.random.default_rng(seed)
    chosen = (rng.integers(0, len(truth), len(truth)) for _ in range(resamples))
    return tuple(np.quantile([metric(truth[c], guess[c]) for c in chosen], [0.025, 0.975]))


def test_weights_say_the_same_as_drawing_chips():
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 3, 300), rng.integers(0, 3, 300)
    drawn = bootstrap_interval(lambda t, g: float((t == g).mean()), truth, guess, seed=0)
    weighed = score_interval(mean_score(truth == guess), 300, seed=0)
    assert drawn == pytest.approx((weighed.low, weighed.high), abs=0.02)


def test_the_interval_of_an_accuracy_is_the_binomial_one():
    right = np.random.default_rng(0).random(400) >= 0.2
    accuracy = right.mean()
    found = score_interval(mean_score(right), 400, resamples=4000)
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / 400)
    assert (found.low, found.high) == pytest.approx((accuracy - half, accuracy + half), abs=0.006)


def test_a_paired_difference_is_narrower_than_two_intervals_suggest():
    rng = np.random.default_rng(0)
    hard = rng.standard_normal(200)
    first, second = hard + 0.1 + 0.05 * rng.standard_normal(200), hard
    found = paired_interval([mean_score(first)], [mean_score(second)], 200)
    assert found.value == pytest.approx((first - second).mean())
    assert 0.08 < found.low < found.high < 0.12
    alone = score_interval(mean_score(first), 200)
    assert alone.high - alone.low > 5 * (found.high - found.low)


@pytest.mark.parametrize("seeds", [(1, 3), (3, 1), (3, 3)])
def test_paired_differences_of_several_seeds_are_those_of_means(seeds):
    rng = np.random.default_rng(0)
    first, second = (rng.random((n, 50)) for n in seeds)
    found = paired_interval(
        [mean_score(row) for row in first], [mean_score(row) for row in second], 50
    )
    assert found.value == pytest.approx(first.mean() - second.mean())


def test_mcnemar_by_hand():
    # 5 chips only the first has right, 1 only the second: 2 · P(X ≤ 1), X ~ Binomial(6, 1/2).
    first = [True] * 5 + [False] + [True] * 10
    second = [False] * 5 + [True] + [True] * 10
    assert mcnemar(first, second) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(second, first) == mcnemar(first, second)
    assert mcnemar(first, first) == 1.0
    many = np.arange(3000) < 1400
    assert mcnemar(many, ~many) == pytest.approx(
        2 * sum(comb(3000, i) for i in range(1401)) / 2**3000
    )


def test_permutation_by_hand_and_as_mcnemar():
    # Differences 1, 2, 3: only +++ and --- are as extreme, 2 of 8.
    assert permutation_test([1, 2, 3], [0, 0, 0]) == pytest.approx(2 / 8)
    # Differences 1, 2, -3: sums are 0, which every exchange reaches.
    assert permutation_test([1, 2, 0], [0, 0, 3]) == 1.0
    rng = np.random.default_rng(0)
    first, second = rng.random(16) < 0.8, rng.random(16) < 0.4
    assert permutation_test(first, second) == pytest.approx(mcnemar(first, second))


def test_a_drawn_permutation_test_nears_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    first = rng.standard_normal(80)
    second = first + 0.25 + rng.standard_normal(80)
    theirs = stats.permutation_test(
        (first, second),
        lambda a, b: np.mean(a - b),
        permutation_type="samples",
        n_resamples=9999,
        rng=np.random.default_rng(1),
    )
    assert permutation_test(first, second) == pytest.approx(theirs.pvalue, abs=0.015)


def test_p_values_of_equal_configurations_are_uniform():
    rng = np.random.default_rng(0)
    p = [
        permutation_test(rng.standard_normal(30), rng.standard_normal(30), resamples=199)
        for _ in range(400)
    ]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(p) == pytest.approx(0.5, abs=0.05)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_holm_lies_between_the_raw_and_bonferronis(p):
    corrected = np.array(holm(p))
    assert (corrected >= np.array(p)).all()
    assert (corrected <= np.minimum(np.array(p) * len(p), 1)).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(corrected[order]) >= 0).all()


def test_what_makes_no_interval_is_told():
    score = mean_score([1.0, 0.0])
    with pytest.raises(DataError, match="no chips"):
        score_interval(score, 0)
    with pytest.raises(ConfigError, match=r"level: a share between 0 and 1, got 95"):
        score_interval(score, 2, level=95)
    with pytest.raises(ConfigError, match="no interval method 'normal'"):
        score_interval(score, 2, method="normal")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="same chips"):
        permutation_test([1, 2, 3], [1, 2])
    with pytest.raises(DataError, match="finite"):
        permutation_test([1.0, np.nan], [1.0, 2.0])
    with pytest.raises(DataError, match="from 0 to 1"):
        holm([0.5, 1.5])
    with pytest.raises(DataError, match="not a number"):
        score_interval(lambda w: np.full(len(w), np.nan), 3)
