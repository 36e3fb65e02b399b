"""The witnesses of band order, on spectra whose order is known."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimae_eo.catalog import make_modality
from multimae_eo.doctor import inspect
from multimae_eo.doctor.order import disorder
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Calibration
from tests.support.planting import STANDARD, Arrays


def slow_disorder(distance, order):
    total, triples = 0.0, 0
    for a, b, c in combinations(order, 3):
        total += max(0.0, distance[a, b] - distance[a, c])
        total += max(0.0, distance[b, c] - distance[a, c])
        triples += 1
    return total / triples


@given(st.lists(st.floats(0, 10), min_size=4, max_size=7, unique=True))
def test_points_on_a_line_are_in_order_only_when_sorted(places):
    at = np.array(places)
    distance = np.abs(at[:, None] - at[None])
    ascending = [int(i) for i in np.argsort(at)]
    assert disorder(distance, ascending) == 0.0
    assert disorder(distance, ascending[::-1]) == 0.0
    assert disorder(distance, list(range(len(at)))) == pytest.approx(
        slow_disorder(distance, list(range(len(at))))
    )


@given(st.permutations(range(6)), st.integers(0, 1000))
def test_disorder_equals_its_definition(order, seed):
    random = np.random.default_rng(seed).random((6, 6))
    distance = random + random.T
    assert disorder(distance, list(order)) == pytest.approx(slow_disorder(distance, order))


def scene(seed, bands=STANDARD, size=48):
    """Vegetation, soil and water in patches: reflectance x 10000 of Sentinel-2, (C, H, W).

    Bands of 20 and 60 m are drawn coarse and repeated, as producers do.
    """
    rng = np.random.default_rng(seed)
    spectra = {
        "B1": (900, 1100, 1000), "B2": (700, 1000, 850), "B3": (800, 1200, 650),
        "B4": (450, 1500, 400), "B5": (1100, 1750, 330), "B6": (2600, 1950, 260),
        "B7": (3300, 2100, 240), "B8": (3500, 2250, 190), "B8A": (3700, 2350, 170),
        "B9": (1200, 800, 90), "B10": (12, 14, 10), "B11": (1800, 2950, 60), "B12": (850, 2450, 40),
    }  # fmt: skip
    cover = rng.random((3, size // 6, size // 6)) ** 3
    fine = np.kron(cover / cover.sum(0), np.ones((6, 6)))
    fine = fine * (0.85 + 0.3 * rng.random((3, size, size)))
    native = {b.name: int((b.gsd_m or 10) // 10) for b in
              make_modality("s2", sensor_name="sentinel2", bands=bands).bands}  # fmt: skip
    found = []
    for name in bands:
        step = native[name]
        layer = np.tensordot(spectra[name], fine, axes=1)
        coarse = layer.reshape(size // step, step, size // step, step).mean((1, 3))
        found.append(np.kron(coarse, np.ones((step, step))) + rng.normal(0, 2, layer.shape) * (
            name == "B10"))  # fmt: skip
    return np.stack(found).clip(1).astype(np.uint16)


def examined(order):
    """Findings for 12 scenes whose files hold ``order`` under the standard names."""
    modality = make_modality("s2", sensor_name="sentinel2", bands=STANDARD)
    chips = [scene(seed)[[STANDARD.index(b) for b in order]] for seed in range(12)]
    how = {"s2": Calibration(scale=1e-4, level="l1c")}
    return inspect(Arrays(ModalitySet([modality]), chips, calibration=how)).of("band-order")


def test_the_right_order_is_not_suspected():
    assert examined(STANDARD) == ()


def test_b8a_last_is_suspected_without_real_data():
    last = [b for b in STANDARD if b != "B8A"] + ["B8A"]
    assert {"s2/B9", "s2/B10", "s2/B12"} <= {f.where for f in examined(last)}


def test_bands_of_other_resolution_are_suspected():
    swapped = ["B8A" if b == "B8" else "B8" if b == "B8A" else b for b in STANDARD]
    findings = {f.where: f.what for f in examined(swapped)}
    assert "sharp" in findings["s2/B8A"]
    assert "smooth" in findings["s2/B8"]


def test_reversed_bands_are_suspected():
    visible = [b for b in STANDARD if b not in ("B9", "B10")]
    modality = make_modality("s2", sensor_name="sentinel2", bands=tuple(visible))
    chips = [scene(seed, tuple(visible))[::-1] for seed in range(12)]
    how = {"s2": Calibration(scale=1e-4, level="l2a")}
    findings = inspect(Arrays(ModalitySet([modality]), chips, calibration=how)).of("band-order")
    assert any("reversed" in f.what for f in findings)
