"""The aggregate score against SciPy's trimmed mean, and its edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean

from multimae_eo.errors import ConfigError, DataError, FormatError
from multimae_eo.evaluation.geobench_score import (
    aggregate,
    interquartile_mean,
    load_normaliser,
    normalise,
)
from tests.support.geobench_files import write_geobench

SPANS = {"m-eurosat": (0.5, 0.9), "m-so2sat": (0.2, 0.6), "m-forestnet": (0.1, 0.5)}
SCORES = st.lists(st.floats(-2, 2), min_size=1, max_size=30)


@given(scores=SCORES)
def test_interquartile_mean_is_scipys(scores):
    assert interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25), abs=1e-12)


@given(scores=SCORES, order=st.randoms())
def test_interquartile_mean_is_between_the_extremes_in_any_order(scores, order):
    found = interquartile_mean(scores)
    assert min(scores) - 1e-12 <= found <= max(scores) + 1e-12
    shuffled = order.sample(scores, len(scores))
    assert interquartile_mean(shuffled) == pytest.approx(found, abs=1e-12)


def test_one_failed_seed_in_eight_does_not_matter():
    assert interquartile_mean([0.9] * 7 + [-50.0]) == pytest.approx(0.9)
    assert np.mean([0.9] * 7 + [-50.0]) < 0


def test_normalised_scores_by_hand():
    assert normalise("m-eurosat", [0.5, 0.7, 0.9, 1.0, 0.3], SPANS) == pytest.approx(
        [0.0, 0.5, 1.0, 1.25, -0.5]
    )


def test_aggregate_by_hand():
    scores = {"m-eurosat": [0.7, 0.7], "m-so2sat": [0.6, 0.6], "m-forestnet": [0.1, 0.1]}
    found = aggregate(scores, SPANS, seed=1)
    # 0 0 | .5 .5 1 1 sorted; one of six is cut at either end.
    assert found.score == pytest.approx((0 + 0.5 + 0.5 + 1.0) / 4)
    assert found.low == found.high == pytest.approx(found.score), "equal seeds leave no doubt"


def test_the_bootstrap_is_stratified_by_data_set():
    """Each draw has every data set's share: without strata these two would give any of 0 to 1."""
    spans = {"a": (0.0, 1.0), "b": (0.0, 1.0)}
    found = aggregate({"a": [0.0] * 10, "b": [1.0] * 10}, spans, resamples=200)
    assert (found.score, found.low, found.high) == (0.5, 0.5, 0.5)


def test_interval_widens_with_the_spread_of_seeds_and_repeats():
    rng = np.random.default_rng(0)
    width = []
    for spread in (0.001, 0.05):
        scores = {n: (0.5 + spread * rng.normal(size=10)).tolist() for n in SPANS}
        found = aggregate(scores, SPANS, seed=3)
        assert found == aggregate(scores, SPANS, seed=3)
        assert found.low <= found.score <= found.high
        width.append(found.high - found.low)
    assert width[0] < 0.1 * width[1]


def test_normaliser_of_a_benchmark_folder(tmp_path):
    folder = write_geobench(tmp_path, "m-nz-cattle", size=8, chips=(1, 1, 1))
    spans = load_normaliser(folder.parent / "normalizer.json")
    assert set(spans) == {"m-pv4ger-seg", "m-chesapeake", "m-cashew-plant", "m-SA-crop-type",
                          "m-nz-cattle", "m-NeonTree"}  # fmt: skip
    assert spans["m-nz-cattle"] == (0.3, 0.9)


@pytest.mark.parametrize(
    "record",
    ["{", "[]", "{}", '{"a": 1}', '{"a": [1]}', '{"a": [0.9, 0.3]}', '{"a": [0, NaN]}',
     '{"a": ["0", "1"]}', '{"a": [true, false]}'],
)  # fmt: skip
def test_normalisers_that_are_none(tmp_path, record):
    path = tmp_path / "normalizer.json"
    path.write_text(record)
    with pytest.raises(FormatError, match=r"normalizer\.json"):
        load_normaliser(path)


def test_complaints(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_normaliser(tmp_path / "normalizer.json")
    with pytest.raises(ConfigError, match="no normaliser for 'm-eurosad'; did you mean"):
        aggregate({"m-eurosad": [0.5]}, SPANS)
    for scores in ([], [float("nan")], [[0.1]]):
        with pytest.raises(DataError, match="m-so2sat"):
            aggregate({"m-so2sat": scores}, SPANS)  # type: ignore[dict-item]
    for call in (lambda: aggregate({}, SPANS), lambda: interquartile_mean([])):
        with pytest.raises(DataError, match="no scores"):
            call()
