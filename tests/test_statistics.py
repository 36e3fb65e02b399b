"""Statistics: parts merge to one pass, nodata never counts, and odd numbers do no harm."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from multimae_eo.catalog import make_class_map, make_modality
from multimae_eo.errors import ContractError, DataError
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sample import Calibration, Sample
from multimae_eo.statistics import Moments, Statistics, moments_from

HEIGHTS = ModalitySet([make_modality("elevation", sensor_name="dem", bands=("elevation",))])
COVER = ModalitySet([make_class_map("cover", class_map_name="esa_worldcover")])
PAIR = ModalitySet([make_modality("s2", sensor_name="sentinel2", bands=("B4", "B10"))])


def heights(key: str, pixels: np.ndarray, valid: np.ndarray | None = None) -> Sample:
    return Sample(
        key=key, pixels={"elevation": pixels}, valid={} if valid is None else {"elevation": valid}
    )


def of(modalities: ModalitySet, samples: list[Sample]) -> Statistics:
    found = Statistics(modalities)
    for sample in samples:
        found.update(sample)
    return found


@settings(max_examples=60)
@given(
    values=hnp.arrays(
        np.float64, st.tuples(st.integers(2, 40)), elements=st.floats(-1e6, 1e6, width=32)
    ),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    order=st.randoms(use_true_random=False),
    shift=st.sampled_from([0.0, 1e3, 1e7]),
)
def test_parts_in_any_order_merge_to_one_pass(values, cuts, order, shift):
    """A shift of 1e7 with unit spread is where the textbook formula loses every digit."""
    values = values + shift
    edges = [0, *sorted(min(c, len(values)) for c in cuts), len(values)]
    parts = [values[a:b] for a, b in pairwise(edges)]
    order.shuffle(parts)
    merged = Moments.empty(1)
    for part in parts:
        merged = merged.merge(Moments.of(part[None], None))
    once = Moments.of(values[None], None)
    assert merged.count[0] == once.count[0] == len(values)
    assert merged.minimum[0] == values.min()
    assert merged.maximum[0] == values.max()
    size = max(np.abs(values).max(), 1.0)
    assert merged.mean[0] == pytest.approx(values.mean(), rel=1e-10, abs=1e-10)
    assert merged.mean[0] == pytest.approx(once.mean[0], rel=1e-10, abs=1e-10)
    assert merged.std[0] == pytest.approx(values.std(), rel=1e-10, abs=1e-10 * size)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), workers=st.integers(1, 4))
def test_statistics_of_any_partition_equal_those_of_all_chips(data, workers):
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    samples = []
    for i in range(9):
        ok = rng.random((1, 5, 5)) > 0.4
        samples.append(heights(f"c{i}", rng.normal(500, 90, (1, 5, 5)).astype(np.float32), ok))
    owner = [data.draw(st.integers(0, workers - 1)) for _ in samples]
    parts = [
        of(HEIGHTS, [s for s, o in zip(samples, owner, strict=True) if o == w])
        for w in range(workers)
    ]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    kept = np.concatenate(
        [s.pixels["elevation"][s.valid["elevation"]].astype(np.float64) for s in samples]
    )
    found = merged.moments["elevation"][""]
    assert found.count[0] == len(kept)
    assert found.mean[0] == pytest.approx(kept.mean(), rel=1e-10)
    assert found.std[0] == pytest.approx(kept.std(), rel=1e-10)


def test_nodata_is_skipped_whatever_it_holds():
    pixels = np.array([[[1.0, 3.0], [np.nan, 9e30]]])
    found = of(HEIGHTS, [heights("a", pixels, np.array([[[True, True], [False, False]]]))])
    moments = found.moments["elevation"][""]
    assert (moments.count[0], moments.mean[0], moments.std[0]) == (2, 2.0, 1.0)
    assert (moments.minimum[0], moments.maximum[0]) == (1.0, 3.0)


def test_one_mask_counts_for_all_bands_and_masks_per_band_for_their_own():
    pixels = np.array([[[2, 4]], [[10, 30]]], np.uint16)
    how = {"s2": Calibration(level="l2a")}
    shared = Sample(
        key="a", pixels={"s2": pixels}, valid={"s2": np.array([[[True, False]]])}, calibration=how
    )
    own = replace(shared, valid={"s2": np.array([[[True, True]], [[False, True]]])})
    assert of(PAIR, [shared]).moments["s2"]["l2a"].mean.tolist() == [2, 10]
    assert of(PAIR, [own]).moments["s2"]["l2a"].mean.tolist() == [3, 30]
    assert of(PAIR, [own]).moments["s2"]["l1c"].count.tolist() == [0, 0]


@given(scale=st.floats(-10, 10).filter(lambda s: abs(s) > 1e-3), offset=st.floats(-100, 100))
def test_moments_are_of_physical_values(scale, offset):
    raw = np.array([[[1, 2], [5, 9]]], np.int16)
    sample = replace(
        heights("a", raw), calibration={"elevation": Calibration(scale=scale, offset=offset)}
    )
    found = of(HEIGHTS, [sample]).moments["elevation"][""]
    physical = raw * scale + offset
    assert found.mean[0] == pytest.approx(physical.mean(), rel=1e-9, abs=1e-9)
    assert found.std[0] == pytest.approx(physical.std(), rel=1e-9, abs=1e-9)
    assert found.minimum[0] == pytest.approx(physical.min())
    assert found.maximum[0] == pytest.approx(physical.max())


def test_a_constant_band_normalises_to_zero_and_never_blows_up():
    for value in (0, 7, 30000):
        mean, std = of(HEIGHTS, [heights("a", np.full((1, 3, 3), value, np.int32))]).mean_std(
            "elevation"
        )
        assert (mean[0, 0], std[0, 0]) == (value, 1.0)


def test_a_level_without_data_takes_the_others_numbers():
    how = {"s2": Calibration(scale=1e-4, level="l1c")}
    pixels = np.arange(8, dtype=np.uint16).reshape(2, 2, 2) * 1000
    found = of(PAIR, [Sample(key="a", pixels={"s2": pixels}, calibration=how)])
    mean, std = found.mean_std("s2")
    assert mean.shape == (2, 2), "levels × bands"
    assert np.array_equal(mean[0], mean[1])
    assert np.array_equal(std[0], std[1])
    assert mean[0].tolist() == pytest.approx([0.15, 0.55])


def test_a_band_that_no_chip_has_is_named_with_the_remedy():
    """B10 of L2A: there is nothing to normalise with, and a guess would be silent."""
    pixels = np.array([[[2, 4]], [[0, 0]]], np.uint16)
    ok = np.array([[[True, True]], [[False, False]]])
    sample = Sample(
        key="a",
        pixels={"s2": pixels},
        valid={"s2": ok},
        calibration={"s2": Calibration(level="l2a")},
    )
    with pytest.raises(DataError, match=r"'s2': no valid pixel in band\(s\) B10; .* leave it out"):
        of(PAIR, [sample]).mean_std("s2")


@pytest.mark.parametrize("value", [1.5e308, -1.797e308, np.inf, -np.inf, np.nan])
def test_values_without_mean_and_variance_are_refused_with_the_chips_name(value):
    """An undeclared nodata value of float64 rasters would make every number infinite."""
    pixels = np.array([[[1.0, value], [3.0, 4.0]]])
    found = Statistics(HEIGHTS)
    with pytest.raises(DataError, match=r"^chip-9: elevation: values from .* as nodata"):
        found.update(heights("chip-9", pixels))
    assert found.moments["elevation"][""].count[0] == 0, "what was refused left no trace"


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("part", ["count", "mean", "m2", "minimum"])
def test_statistics_that_are_not_finite_are_neither_written_read_nor_used(part, value):
    statistics = of(HEIGHTS, [heights("a", np.array([[[1.0, 2.0], [3.0, 4.0]]]))])
    record = statistics.to_dict()
    record["continuous"]["elevation"][""][part] = [value]
    with pytest.raises(DataError, match=r"statistics of elevation: .* NaN or infinite"):
        Statistics.from_dict(HEIGHTS, json.loads(json.dumps(record)))
    getattr(statistics.moments["elevation"][""], part)[:] = value
    with pytest.raises(DataError, match=r"statistics of elevation: .* NaN or infinite"):
        statistics.to_dict()
    if part == "mean":
        with pytest.raises(DataError, match=r"'elevation': .* NaN or infinite"):
            statistics.mean_std("elevation")


def test_huge_values_that_have_a_variance_are_kept_and_survive_json():
    pixels = np.array([[[1.0, 3e38], [3.0, -3e38]]], np.float32)
    found = of(HEIGHTS, [heights("a", pixels)])
    again = Statistics.from_dict(HEIGHTS, json.loads(json.dumps(found.to_dict())))
    mean, std = again.mean_std("elevation")
    assert np.isfinite(mean).all()
    assert std[0, 0] == pytest.approx(pixels.astype(np.float64).std(), rel=1e-10)


def test_classes_are_counted_in_legend_order_and_only_where_valid():
    ids = np.array([[[10, 10, 80, 0], [100, 0, 10, 0]]], np.uint8)
    found = of(COVER, [Sample(key="a", pixels={"cover": ids}, valid={"cover": ids != 0})])
    modality: Modality = COVER["cover"]
    counts = dict(zip(modality.class_names, found.class_counts["cover"], strict=True))
    assert {k: v for k, v in counts.items() if v} == {
        "tree cover": 3, "permanent water": 1, "moss and lichen": 1,
    }  # fmt: skip


@settings(max_examples=30)
@given(
    values=hnp.arrays(np.float64, (1, 3, 3), elements=st.floats(-1e9, 1e9)),
    more=hnp.arrays(np.float64, (1, 2, 2), elements=st.floats(-1e9, 1e9)),
)
def test_json_gives_back_every_bit_and_the_fingerprint_follows_the_numbers(values, more):
    found = of(HEIGHTS, [heights("a", values)])
    again = Statistics.from_dict(HEIGHTS, json.loads(json.dumps(found.to_dict())))
    for key in ("count", "mean", "m2", "minimum", "maximum"):
        ours, theirs = (getattr(s.moments["elevation"][""], key) for s in (found, again))
        assert ours.tobytes() == theirs.tobytes() or (ours == theirs).all()
    assert again.fingerprint == found.fingerprint
    assert len(found.fingerprint) == 16
    again.update(heights("b", more))
    assert again.fingerprint != found.fingerprint


def test_the_empty_statistics_survive_json():
    empty = Statistics(HEIGHTS)
    again = Statistics.from_dict(HEIGHTS, json.loads(json.dumps(empty.to_dict())))
    assert again.moments["elevation"][""].minimum[0] == np.inf
    assert again.moments["elevation"][""].maximum[0] == -np.inf
    both = again.merge(of(HEIGHTS, [heights("a", np.ones((1, 2, 2)))]))
    assert both.moments["elevation"][""].count[0] == 4


def test_sets_of_other_modalities_are_not_merged_but_united():
    first = of(HEIGHTS, [heights("a", np.full((1, 2, 2), 3.0))])
    ids = np.full((1, 2, 2), 10, np.uint8)
    second = of(COVER, [Sample(key="b", pixels={"cover": ids})])
    with pytest.raises(ContractError, match="different modality sets"):
        first.merge(second)
    both = first.union(second)
    assert both.modalities.names == ("elevation", "cover")
    assert both.moments["elevation"][""].mean[0] == 3
    assert both.class_counts["cover"][0] == 4
    assert both.select(["cover"]).modalities.names == ("cover",)
    twice = first.union(first)
    assert twice.moments["elevation"][""].count[0] == 8


def test_published_moments_give_back_their_mean_and_deviation():
    found = Statistics(HEIGHTS)
    found.moments["elevation"][""] = moments_from([571.0], [42.0])
    mean, std = found.mean_std("elevation")
    assert (mean[0, 0], std[0, 0]) == pytest.approx((571.0, 42.0))
