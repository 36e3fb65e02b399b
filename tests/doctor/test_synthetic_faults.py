"""Every kind of fault, planted in the synthetic world: the doctor names it, and only then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from multimae_eo.doctor import Diagnosis, inspect
from multimae_eo.errors import ClassMapError, ConfigError, FormatError
from multimae_eo.geo import Geometry
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Calibration
from multimae_eo.sources.synthetic import SyntheticSource
from tests.support.marks import mostly_slow
from tests.support.planting import Planted, interpolated

OPTICAL = ("rgb", "ired", "sired", "ebands")
SPLITS = ["train", "test"] * 20


@pytest.fixture(scope="module")
def world():
    return SyntheticSource(40, 64, seed=3)


def found(diagnosis: Diagnosis, check: str, where: str = ""):
    """The findings of a check that name ``where``."""
    return [f for f in diagnosis.of(check) if where in f.where]


def test_clean_world_has_no_error_and_no_suspicion(world):
    diagnosis = inspect(world)
    serious = [f for f in diagnosis.findings if f.severity != "note"]
    assert {f.check for f in serious} <= {"class-balance"}, serious
    assert diagnosis.counts["error"] == 0
    assert diagnosis.chips == diagnosis.examined == 40
    assert diagnosis.splits == {"train": 28, "val": 4, "test": 8}
    assert diagnosis.present["radar"] == 40


def test_reflectance_times_10000_without_a_scale(world):
    def edit(pixels, i):
        return {"calibration": {n: Calibration(scale=1.0, level="l2a") for n in OPTICAL}}

    findings = inspect(Planted(world, edit)).of("wrong-scale")
    assert {f.where for f in findings} == set(OPTICAL)
    assert all(f.severity == "error" and "0.0001" in f.remedy for f in findings)


def test_eight_bit_pictures_declared_as_reflectance(world):
    def edit(pixels, i):
        for name in OPTICAL:
            pixels[name] = np.clip(pixels[name] / 10000 * 255, 0, 255).astype(np.uint8)

    (finding,) = inspect(Planted(world, edit)).of("wrong-scale")
    assert finding.severity == "error"
    assert "8-bit" in finding.remedy


def test_reflectance_already_scaled(world):
    def edit(pixels, i):
        for name in OPTICAL:
            pixels[name] = (pixels[name] * 1e-4).astype(np.float32)

    (finding,) = inspect(Planted(world, edit)).of("wrong-scale")
    assert finding.severity == "error"
    assert "`scale: 1`" in finding.remedy


def test_some_chips_on_another_scale(world):
    def edit(pixels, i):
        if i < 3:
            pixels["rgb"] = (pixels["rgb"] * 1e-4).astype(np.float32)

    findings = found(inspect(Planted(world, edit)), "wrong-scale", "rgb")
    assert findings[0].evidence["chips"] == 3
    assert set(findings[0].chips) == set(world.keys[:3])


def test_linear_power_declared_as_decibel(world):
    def edit(pixels, i):
        pixels["radar"] = 10 ** (pixels["radar"] / 10)

    (finding,) = inspect(Planted(world, edit)).of("decibel")
    assert (finding.severity, finding.where) == ("error", "radar")


def test_decibel_declared_as_linear_power(world):
    modalities = ModalitySet(
        replace(m, unit="linear power") if n == "radar" else m for n, m in world.modalities.items()
    )
    (finding,) = inspect(Planted(world, lambda p, i: None, modalities=modalities)).of("decibel")
    assert "these are dB" in finding.what


def test_constant_band_and_constant_chips(world):
    def edit(pixels, i):
        pixels["sired"][1] = 7
        if i < 5:
            pixels["elevation"][:] = 12

    diagnosis = inspect(Planted(world, edit))
    assert found(diagnosis, "constant", "sired/B12")[0].severity == "error"
    (chips,) = found(diagnosis, "constant", "elevation")
    assert (chips.evidence["chips"], chips.severity) == (5, "warning")


def test_duplicated_bands_exact_and_stretched(world):
    def exact(pixels, i):
        pixels["rgb"][2] = pixels["rgb"][0]

    (finding,) = inspect(Planted(world, exact)).of("duplicate-bands")
    assert (finding.where, finding.severity) == ("rgb/B4, rgb/B2", "error")

    def stretched(pixels, i):
        pixels["sired"][1] = pixels["rgb"][0] * 1.7 + 130

    (finding,) = inspect(Planted(world, stretched)).of("duplicate-bands")
    assert finding.where == "rgb/B4, sired/B12"
    assert finding.evidence["correlation"] > 0.999


@pytest.mark.parametrize(
    ("first", "second"),
    [(("rgb", 0), ("ebands", 1)), (("rgb", 1), ("ired", 1))],
    ids=["red-nir", "green-rededge"],
)
def test_swapped_optical_bands(world, first, second):
    (a, i), (b, j) = first, second

    def edit(pixels, _):
        pixels[a][i], pixels[b][j] = pixels[b][j].copy(), pixels[a][i].copy()

    findings = inspect(Planted(world, edit)).of("band-order")
    names = {world.modalities[a].band_names[i], world.modalities[b].band_names[j]}
    assert any(names <= {w.split("/")[1] for w in f.where.split(", ")} for f in findings)


def test_swapped_polarisations(world):
    def edit(pixels, i):
        pixels["radar"] = pixels["radar"][::-1]

    (finding,) = found(inspect(Planted(world, edit)), "band-order", "radar")
    assert finding.evidence["VH"] > finding.evidence["VV"]


def test_undeclared_nodata_and_declared_nodata(world):
    def hidden(pixels, i):
        if i % 4 == 0:
            pixels["rgb"][:, :20, :20] = 0
            pixels["elevation"][:, 40:, 40:] = -9999

    diagnosis = inspect(Planted(world, hidden))
    (optical,) = found(diagnosis, "undeclared-nodata", "rgb")
    (relief,) = found(diagnosis, "undeclared-nodata", "elevation")
    # Over dark water three bands may be 0 by measurement; no height is -9999.
    assert (optical.severity, relief.severity) == ("warning", "error")
    assert "nodata: 0" in optical.remedy
    assert relief.evidence["value"] == -9999
    assert relief.evidence["chips"] == 10

    declared = inspect(SyntheticSource(40, 64, seed=3, nodata=1.0))
    assert not declared.of("undeclared-nodata")
    for finding in declared.of("nodata"):
        assert 0.02 < float(finding.evidence["nodata"].split()[0]) / 100 < 0.3
    assert {f.where for f in declared.of("nodata")} == set(world.modalities) - {"landcover"}


def test_saturated_pixels(world):
    def edit(pixels, i):
        pixels["rgb"] = np.minimum(pixels["rgb"], 1100)

    findings = found(inspect(Planted(world, edit)), "saturation", "rgb")
    assert {f.where for f in findings} == {"rgb/B4", "rgb/B3", "rgb/B2"}
    assert all(f.evidence["value"] == 1100 for f in findings)


def test_class_ids_outside_the_legend(world):
    def edit(pixels, i):
        if i < 2:
            pixels["landcover"][:, :4, :4] = 77

    (finding,) = inspect(Planted(world, edit)).of("class-ids")
    assert finding.evidence["ids"] == [77.0]
    assert finding.evidence["chips"] == 2
    assert finding.severity == "error"


@pytest.mark.slow
def test_interpolated_class_maps(world):
    ids = world.modalities["landcover"].class_ids

    def legal(pixels, i):
        pixels["landcover"] = interpolated(pixels["landcover"], ids)

    (finding,) = inspect(Planted(world, legal)).of("interpolated-classes")
    assert finding.severity == "error"

    def fractions(pixels, i):
        low = pixels["landcover"].astype(np.float32)
        pixels["landcover"] = 0.75 * low + 0.25 * np.roll(low, 1, 2)

    (finding,) = inspect(Planted(world, fractions)).of("class-ids")
    assert "no whole numbers" in finding.what


@pytest.mark.parametrize("name", mostly_slow(["radar", "landcover", "sired"], fast=["radar"]))
def test_misregistration_in_pixels(world, name):
    def edit(pixels, i):
        pixels[name] = np.roll(pixels[name], (3, -2), (1, 2))

    findings = inspect(Planted(world, edit)).of("misregistration")
    (mine,) = [f for f in findings if f.severity == "warning"]
    assert mine.where == name
    assert mine.evidence["pixels (down, right)"] == [3, -2]


def test_identical_chips_within_and_between_splits(world):
    def edit(pixels, i):
        if i in (5, 6):  # train 4 again, as test 5 and train 6
            pixels.update(world.read(4).pixels)

    diagnosis = inspect(Planted(world, edit, splits=SPLITS))
    (leak,) = diagnosis.of("leak")
    (twins,) = diagnosis.of("duplicates")
    assert (leak.severity, twins.severity) == ("error", "warning")
    assert leak.evidence["pairs"] == 2
    assert twins.evidence["pairs"] == 1
    assert set(twins.chips) == {world.keys[4], world.keys[6]}


def test_one_picture_with_other_noise_leaks(world):
    def edit(pixels, i):
        if i == 7:
            noise = np.random.default_rng(0)
            pixels.update(world.read(4).pixels)
            for name in OPTICAL:
                p = pixels[name]
                pixels[name] = p + noise.integers(0, 3, p.shape).astype(p.dtype)

    (leak,) = inspect(Planted(world, edit, splits=SPLITS)).of("leak")
    assert leak.severity == "error"
    assert set(leak.chips) == {world.keys[4], world.keys[7]}


def test_one_place_in_two_seasons_leaks(world):
    def edit(pixels, i):
        if i == 7:
            noise = np.random.default_rng(0)
            pixels.update(world.read(4).pixels)
            for name in OPTICAL:
                p = pixels[name]
                pixels[name] = (1.2 * p + noise.normal(60, 60, p.shape)).clip(1).astype(p.dtype)

    (leak,) = inspect(Planted(world, edit, splits=SPLITS)).of("leak")
    assert leak.severity == "warning"
    assert "two dates" in leak.what
    assert set(leak.chips) == {world.keys[4], world.keys[7]}


def test_overlapping_footprints_between_splits(world):
    def edit(pixels, i):
        if i == 35:  # a test chip, moved half onto the first training chip
            left, bottom, right, top = world.read(0).geometry.bounds
            half = (right - left) / 2
            moved = (left + half, bottom, right + half, top)
            return {"geometry": Geometry(crs="EPSG:32633", bounds=moved)}
        return None

    (finding,) = [
        f for f in inspect(Planted(world, edit)).of("spatial-leak") if f.severity == "error"
    ]
    assert finding.where == "splits test and train"
    # It also covers half of the first chip's right-hand neighbour.
    assert finding.evidence["pairs"] == 2
    assert finding.evidence["largest overlap"] == "50 %"


def test_degrees_among_metres_and_wrong_pixel_size(world):
    def edit(pixels, i):
        left, bottom, right, top = world.read(i).geometry.bounds
        if i < 4:
            bounds = (15.0 + i, 60.0, 15.0 + i + 640 / 111_320 * 2, 60.0 + 640 / 111_320)
            return {"geometry": Geometry(crs="EPSG:4326", bounds=bounds)}
        wide = (left * 3, bottom * 3, right * 3, top * 3)
        return {"geometry": Geometry(crs="EPSG:32633", bounds=wide)}

    diagnosis = inspect(Planted(world, edit))
    (crs,) = diagnosis.of("crs")
    assert set(crs.chips) == set(world.keys[:4])
    sizes = [f for f in found(diagnosis, "gsd", "landcover") if "declared" in f.evidence]
    assert sizes[0].evidence == {"declared": 10.0, "files": 30.0}
    assert found(diagnosis, "gsd", "rgb")[0].evidence["metres, smallest"] == pytest.approx(10, 0.01)


@pytest.mark.slow
def test_offset_in_some_chips_and_mixed_levels(world):
    def lifted(pixels, i):
        if i % 4 == 0:
            for name in OPTICAL:
                pixels[name] = pixels[name] + 1000

    (finding,) = inspect(Planted(world, lifted)).of("offset-mixture")
    assert finding.evidence["chips"] == 10
    assert finding.severity == "warning"

    mixed = SyntheticSource(40, 64, seed=3, mixed_levels=True)
    truth = [mixed.read(i).calibration["rgb"].level for i in range(40)]

    def undeclared(pixels, i):
        return {"calibration": {n: Calibration(scale=1e-4, level="l2a") for n in OPTICAL}}

    (finding,) = inspect(Planted(mixed, undeclared)).of("level-mixture")
    named = {mixed.keys.index(k) for k in finding.chips}
    assert all(truth[i] == "l1c" for i in named)
    assert finding.evidence["chips"] > 0.6 * truth.count("l1c")


def test_class_balance(world):
    def edit(pixels, i):
        return {"label": 0 if i else 1}

    findings = inspect(Planted(world, edit)).of("class-balance")
    (balance,) = [f for f in findings if "times" in f.what]
    assert balance.severity == "warning"
    assert balance.what.startswith(f"{world.class_names[0]} has 39 times")
    lacking = [f for f in findings if f.where == "labels, split test"]
    assert world.class_names[1] in lacking[0].evidence["classes"]


def test_refused_chips_become_findings(world):
    class Refusing(Planted):
        def read(self, index, names=None):
            if index == 1 and (names is None or "landcover" in names):
                raise ClassMapError("landcover: class id 25 is not in the class map")
            if index == 2:
                raise FormatError("chip-2.tif: truncated")
            return super().read(index, names)

    diagnosis = inspect(Refusing(world, lambda p, i: None))
    (legend,) = diagnosis.of("class-ids")
    (broken,) = diagnosis.of("unreadable")
    assert (legend.where, legend.chips) == ("landcover", (world.keys[1],))
    assert (broken.where, broken.chips) == ("", (world.keys[2],))
    assert diagnosis.present == {n: 39 - (n == "landcover") for n in world.modalities}


def test_sampling_keeps_every_split_in_proportion(world):
    diagnosis = inspect(world, chips=10)
    assert diagnosis.examined == 10
    assert diagnosis.chips == 40
    with pytest.raises(ConfigError, match="1 or more"):
        inspect(world, chips=0)


def test_absent_modalities_are_only_noted():
    diagnosis = inspect(SyntheticSource(40, 64, seed=3, missing=0.3))
    assert diagnosis.counts["error"] == 0
    assert {f.where for f in diagnosis.of("absent")} == set(diagnosis.present)
