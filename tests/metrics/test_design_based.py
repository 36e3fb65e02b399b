"""Design-based accuracy: held against a published example, and against simulated truth."""

from __future__ import annotations

import numpy as np
import pytest

from multimae_eo.errors import DataError
from multimae_eo.metrics.design_based import (
    ReferenceSample,
    allocate,
    compare_accuracy,
    estimate_accuracy,
    sample_size,
)

# Olofsson et al. (2014), tables 8 and 9: deforestation, forest gain, stable forest, non-forest.
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PIXELS = {0: 200_000, 1: 150_000, 2: 3_200_000, 3: 6_450_000}
HECTARES = 900_000


def published() -> ReferenceSample:
    rows, columns = np.indices(COUNTS.shape)
    mapped = np.repeat(rows.ravel(), COUNTS.ravel())
    return ReferenceSample(
        map_class=mapped,
        reference_class=np.repeat(columns.ravel(), COUNTS.ravel()),
        stratum=mapped,
        stratum_sizes=PIXELS,
    )


def test_published_example_to_the_printed_digit() -> None:
    accuracy = estimate_accuracy(published())
    np.testing.assert_array_equal(accuracy.counts, COUNTS)
    assert accuracy.proportions.sum() == pytest.approx(1)
    assert (round(accuracy.overall.value, 2), round(accuracy.overall.half_width, 2)) == (0.95, 0.02)
    users = [(round(e.value, 2), round(e.half_width, 2)) for e in accuracy.users.values()]
    assert users == [(0.88, 0.07), (0.73, 0.10), (0.93, 0.04), (0.96, 0.02)]
    assert [round(e.value, 2) for e in accuracy.producers.values()] == [0.75, 0.85, 0.93, 0.96]
    areas = [round(e.scaled(HECTARES).value) for e in accuracy.area.values()]
    assert areas == [21_158, 11_686, 285_770, 581_386]
    widths = [e.scaled(HECTARES).standard_error * 1.96 for e in accuracy.area.values()]
    np.testing.assert_allclose(widths, [6_158, 3_756, 15_510, 16_282], rtol=2e-3)


def test_errors_of_producers_accuracy_equal_the_published_equation() -> None:
    """Olofsson et al. (2014), equation 7, written out; it leaves the finite population out."""
    n, size = COUNTS.sum(axis=1), np.array([*PIXELS.values()], dtype=float)
    accuracy = estimate_accuracy(published())
    for j, estimate in accuracy.producers.items():
        users, producers = COUNTS[j, j] / n[j], estimate.value
        total = sum(size[i] * COUNTS[i, j] / n[i] for i in range(4))
        commission = size[j] ** 2 * (1 - producers) ** 2 * users * (1 - users) / (n[j] - 1)
        omission = sum(
            size[i] ** 2 * COUNTS[i, j] / n[i] * (1 - COUNTS[i, j] / n[i]) / (n[i] - 1)
            for i in range(4)
            if i != j
        )
        expected = np.sqrt(commission + producers**2 * omission) / total
        assert estimate.standard_error == pytest.approx(expected, rel=1e-3)


def test_a_second_published_example() -> None:
    """Olofsson et al. (2013), table 4: deforestation, forest, non-forest."""
    counts = np.array([[97, 0, 3], [3, 279, 18], [2, 1, 97]])
    rows, columns = np.indices(counts.shape)
    mapped = np.repeat(rows.ravel(), counts.ravel())
    accuracy = estimate_accuracy(
        ReferenceSample(
            map_class=mapped,
            reference_class=np.repeat(columns.ravel(), counts.ravel()),
            stratum=mapped,
            stratum_sizes={0: 22_353, 1: 1_122_543, 2: 610_228},
        )
    )
    printed = [[0.012, 0, 0.0004], [0.006, 0.595, 0.038], [0.007, 0.003, 0.337]]
    np.testing.assert_allclose(accuracy.proportions, printed, atol=6e-4)
    assert round(accuracy.overall.value, 2) == 0.94
    assert [round(e.value, 2) for e in accuracy.users.values()] == [0.97, 0.93, 0.97]
    producers = [round(e.value, 2) for e in accuracy.producers.values()]
    assert producers[:2] == [0.48, 0.99]


def test_published_sample_size() -> None:
    weights = {0: 0.02, 1: 0.015, 2: 0.32, 3: 0.645}
    expected = {0: 0.7, 1: 0.6, 2: 0.9, 3: 0.95}
    assert sample_size(weights, expected_users=expected, standard_error=0.01) == 641


@pytest.mark.parametrize("allocation", ["proportional", "equal", "neyman"])
def test_allocation_adds_up_and_leaves_none_out(allocation) -> None:
    weights = {1: 0.001, 5: 0.2, 9: 0.799}
    users = {1: 0.6, 5: 0.8, 9: 0.95}
    units = allocate(150, weights, allocation=allocation, expected_users=users, least=5)
    assert sum(units.values()) == 150
    assert min(units.values()) >= 5
    assert allocation == "equal" or units[9] > units[1]
    with pytest.raises(DataError, match="too small"):
        allocate(10, weights, least=5)


def world(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A map of 10,000 pixels in blocks, and a truth that differs from it here and there."""
    blocks = rng.choice(3, (25, 25), p=[0.15, 0.35, 0.5])
    mapped = np.kron(blocks, np.ones((4, 4), dtype=int))
    wrong = rng.random(mapped.shape) < np.array([0.25, 0.15, 0.1])[mapped]
    truth = np.where(wrong, rng.choice(3, mapped.shape), mapped)
    return mapped, truth


def drawn(design: str, mapped: np.ndarray, truth: np.ndarray, rng) -> ReferenceSample:
    flat, reference = mapped.ravel(), truth.ravel()
    if design == "cluster":
        block = (np.indices(mapped.shape) // 4 * np.array([25, 1])[:, None, None]).sum(0).ravel()
        chosen = rng.choice(625, 60, replace=False)
        rows = np.flatnonzero(np.isin(block, chosen))
        return ReferenceSample(
            map_class=flat[rows], reference_class=reference[rows], cluster=block[rows],
            stratum=np.zeros(len(rows), dtype=int), stratum_sizes={0: 625},
        )  # fmt: skip
    if design == "random":
        rows = rng.choice(flat.size, 400, replace=False)
        strata, sizes = np.zeros(400, dtype=int), {0: flat.size}
    else:
        sizes = {c: int((flat == c).sum()) for c in range(3)}
        rows = np.concatenate(
            [rng.choice(np.flatnonzero(flat == c), 130, replace=False) for c in range(3)]
        )
        strata = flat[rows]
    return ReferenceSample(
        map_class=flat[rows], reference_class=reference[rows], stratum=strata, stratum_sizes=sizes
    )


@pytest.mark.slow
@pytest.mark.parametrize("design", ["random", "stratified", "cluster"])
def test_intervals_hold_the_truth_as_often_as_they_say(design) -> None:
    """95 % intervals of overall accuracy and of areas, over 1,000 draws."""
    rng = np.random.default_rng(7)
    mapped, truth = world(rng)
    overall, areas = (mapped == truth).mean(), [(truth == c).mean() for c in range(3)]
    hits = np.zeros(4)
    for _ in range(1000):
        accuracy = estimate_accuracy(drawn(design, mapped, truth, rng))
        for k, (estimate, value) in enumerate(
            zip([accuracy.overall, *accuracy.area.values()], [overall, *areas], strict=True)
        ):
            low, high = estimate.interval
            hits[k] += low <= value <= high
    assert np.all((hits / 1000 >= 0.93) & (hits / 1000 <= 0.97)), hits / 1000


def test_paired_comparison_is_narrower_than_two_samples() -> None:
    sample = published()
    other = sample.map_class.copy()
    other[:20] = 3  # twenty of the deforestation units missed
    difference = compare_accuracy(sample, other_map_class=other)
    assert difference.value > 0
    assert difference.standard_error < estimate_accuracy(sample).overall.standard_error
    same = compare_accuracy(sample, other_map_class=sample.map_class)
    assert (same.value, same.standard_error) == (0, 0)


def test_what_cannot_be_estimated_is_refused() -> None:
    ones = np.ones(3, dtype=int)
    with pytest.raises(DataError, match="no size is given for strata"):
        ReferenceSample(map_class=ones, reference_class=ones, stratum=ones, stratum_sizes={})
    with pytest.raises(DataError, match="no unit was drawn from strata"):
        ReferenceSample(
            map_class=ones, reference_class=ones, stratum=ones, stratum_sizes={1: 9, 2: 5}
        )
    alone = ReferenceSample(
        map_class=ones[:1], reference_class=ones[:1], stratum=ones[:1], stratum_sizes={1: 9}
    )
    with pytest.raises(DataError, match="at least two"):
        estimate_accuracy(alone)
