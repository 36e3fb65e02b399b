"""Faults planted in copies of real chips, and the same data left as they are.

Where the real ones are not beside the project, synthetic chips of their shape stand in.
"""

from __future__ import annotations

import csv
from functools import cache

import numpy as np
import pytest

from multimae_eo.catalog import class_map, make_modality
from multimae_eo.doctor import inspect
from multimae_eo.loading.open_source import open_source
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Calibration
from tests.support.marks import mostly_slow
from tests.support.paths import DATA, REAL_DATA
from tests.support.planting import (
    EUROSAT,
    EXAMPLES,
    STANDARD,
    Arrays,
    eurosat,
    hls,
    interpolated,
    terramind,
)

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="its data need rasterio")
pytest.importorskip("rasterio", reason="needs rasterio")

HLS_LANDCOVER, HLS_ELEVATION = 9, 8


def band(name):
    return EUROSAT.index(name)


def serious(diagnosis):
    return {f.check for f in diagnosis.findings if f.severity != "note"}


@cache
def as_it_is(name):
    return inspect(open_source(EXAMPLES / f"{name}.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "known"),
    [("eurosat_ms", set()), ("hls_water", {"leak"}), ("terramind_examples", set())],
)
def test_real_data_as_they_are(name, known):
    """``known``: 19 pairs of HLS chips show one place twice, in different splits."""
    diagnosis = as_it_is(name)
    assert diagnosis.counts["error"] == 0
    assert serious(diagnosis) == known


@pytest.mark.slow
def test_hls_shows_places_twice_across_splits():
    diagnosis = as_it_is("hls_water")
    (leak,) = diagnosis.of("leak")
    assert leak.severity == "warning"
    assert leak.evidence["pairs"] == 19
    assert leak.evidence["splits"] == {"test ~ train": 10, "train ~ val": 8, "test ~ val": 1}
    (flat,) = diagnosis.of("constant")
    assert set(flat.chips) == {"74", "215", "226"}


def test_wrong_scale(tmp_path):
    def change(record):
        record["modalities"]["optical"]["scale"] = 1

    (finding,) = inspect(hls(tmp_path, change=change)).of("wrong-scale")
    assert (finding.where, finding.severity) == ("optical", "error")
    assert "scale: 0.0001" in finding.remedy


@pytest.mark.slow
def test_eight_bit_values(tmp_path):
    source = eurosat(tmp_path, lambda p, i: (p / 10000 * 255).clip(0, 255).astype(np.uint8))
    (finding,) = inspect(source).of("wrong-scale")
    assert finding.severity == "error"
    assert "8-bit" in finding.remedy


@pytest.mark.slow
def test_linear_radar(tmp_path):
    diagnosis = inspect(terramind(tmp_path, "S1RTC", lambda p, i: 10 ** (p / 10)))
    (finding,) = diagnosis.of("decibel")
    assert (finding.where, finding.severity) == ("radar", "error")


@pytest.mark.slow
def test_constant_and_duplicated_bands(tmp_path):
    def edit(pixels, i):
        pixels[band("B12")] = 900
        pixels[band("B3")] = pixels[band("B4")]

    diagnosis = inspect(eurosat(tmp_path, edit))
    (constant,) = diagnosis.of("constant")
    (copy,) = diagnosis.of("duplicate-bands")
    assert (constant.where, constant.severity) == ("sired/B12", "error")
    assert (copy.where, copy.severity) == ("rgb/B4, rgb/B3", "error")


@pytest.mark.slow
def test_b8a_last_read_in_the_standard_order(tmp_path):
    def change(record):
        record["file_bands"] = list(STANDARD)
        record["modalities"] = {
            "s2": {"sensor": "sentinel2", "bands": list(STANDARD), "level": "l1c", "scale": 1e-4,
                   "gsd": 10},
        }  # fmt: skip

    findings = inspect(eurosat(tmp_path, change=change)).of("band-order")
    # B9, B10, B11, B12, B8A stand where B8A, B9, B10, B11, B12 are expected.
    assert {f.where for f in findings} == {"s2/B9", "s2/B10", "s2/B12"}


SWAPPED = [("B8", "B8A"), ("B2", "B4"), ("B11", "B12"), ("B5", "B8A"), ("B4", "B8")]


@pytest.mark.parametrize("pair", mostly_slow(SWAPPED, fast=[("B8", "B8A")]), ids="-".join)
def test_swapped_bands(tmp_path, pair):
    one, two = pair

    def edit(pixels, i):
        pixels[[band(one), band(two)]] = pixels[[band(two), band(one)]]

    findings = inspect(eurosat(tmp_path, edit)).of("band-order")
    named = {w.split("/")[1] for f in findings for w in f.where.split(", ")}
    assert {one, two} <= named


@pytest.mark.slow
def test_reversed_order(tmp_path):
    findings = inspect(hls(tmp_path, lambda p, i: np.concatenate([p[6::-1], p[7:]]))).of(
        "band-order"
    )
    assert any("reversed" in f.what for f in findings)


@pytest.mark.slow
def test_geobench_brick_kiln_labels():
    """``10``, ``11``, ``12`` are true-colour pictures; ``08A`` and ``09`` are no infrared."""
    h5py = pytest.importorskip("h5py")
    chips = []
    for path in sorted((DATA / "geobench_samples").rglob("*.hdf5")):
        with h5py.File(path) as file:
            names = sorted(n for n in file if n != "label")
            chips.append(np.stack([file[n][()] for n in names]))
    modality = make_modality("s2", sensor_name="sentinel2", bands=STANDARD)
    how = {"s2": Calibration(scale=1e-4, level="l1c")}
    diagnosis = inspect(Arrays(ModalitySet([modality]), chips, calibration=how))
    wheres = ", ".join(f.where for f in diagnosis.of("band-order"))
    assert "s2/B10" in wheres
    if REAL_DATA:  # synthetic leaves resemble their short-wave infrared too much
        assert "s2/B8A" in wheres
    pairs = {f.where for f in diagnosis.of("duplicate-bands")}
    assert {"s2/B4, s2/B10", "s2/B3, s2/B11"} <= pairs
    (pictures,) = diagnosis.of("wrong-scale")
    assert pictures.where == "s2/B10, s2/B11, s2/B12"


def test_undeclared_nodata(tmp_path):
    def edit(pixels, i):
        if i % 4 == 0:
            pixels[:7, :40, :40] = 0
            pixels[HLS_ELEVATION, :40, :40] = -9999

    diagnosis = inspect(hls(tmp_path, edit))
    findings = {f.where: f for f in diagnosis.of("undeclared-nodata")}
    assert {w: f.severity for w, f in findings.items()} == {
        "optical": "error",
        "elevation/elevation": "error",
    }
    assert findings["optical"].evidence["chips"] == 8


@pytest.mark.slow
def test_declared_nodata_and_saturation(tmp_path):
    def edit(pixels, i):
        pixels[:, :16] = 65535
        pixels[band("B4"), 16:] = pixels[band("B4"), 16:].clip(0, 900)

    def profile(form, i):
        form["nodata"] = 65535

    diagnosis = inspect(eurosat(tmp_path, edit, profile=profile))
    assert not diagnosis.of("undeclared-nodata")
    assert {f.evidence["nodata"] for f in diagnosis.of("nodata")} == {"25 %"}
    (full,) = diagnosis.of("saturation")
    assert (full.where, full.evidence["value"]) == ("rgb/B4", 900)


@pytest.mark.slow
def test_class_ids_outside_the_legend_are_refused_and_reported(tmp_path):
    def edit(pixels, i):
        if i in (3, 8):
            pixels[HLS_LANDCOVER, 0, 0] = 33

    diagnosis = inspect(hls(tmp_path, edit))
    (finding,) = diagnosis.of("class-ids")
    assert finding.where == "landcover"
    assert len(finding.chips) == 2
    assert "33" in finding.evidence["error"]
    assert diagnosis.present == {"optical": 30, "elevation": 30, "landcover": 28}


def test_damaged_files_are_reported(tmp_path):
    source = hls(tmp_path)
    path = tmp_path / f"images/{source.keys[2]}.tif"
    path.write_bytes(path.read_bytes()[:500])
    (finding,) = inspect(source).of("unreadable")
    assert finding.chips == (source.keys[2],)


@pytest.mark.slow
def test_interpolated_class_map(tmp_path):
    known = [c.id for c in class_map("esri_lulc").classes]
    diagnosis = inspect(terramind(tmp_path, "LULC", lambda p, i: interpolated(p, known)))
    (finding,) = diagnosis.of("interpolated-classes")
    assert (finding.where, finding.severity) == ("landcover", "error")


@pytest.mark.slow
def test_misregistered_elevation(tmp_path):
    def edit(pixels, i):
        pixels[HLS_ELEVATION] = np.roll(pixels[HLS_ELEVATION], (4, -3), (0, 1))

    (finding,) = inspect(hls(tmp_path, edit)).of("misregistration")
    assert finding.where == "elevation"
    assert finding.evidence["pixels (down, right)"] == [4, -3]
    assert finding.evidence["metres"] == 150.0


@pytest.mark.slow
def test_duplicates_leak_between_splits(tmp_path):
    kept = {}

    def edit(pixels, i):
        kept[i] = pixels.copy()
        if i == 21:
            return kept[20]
        return (kept[10] + 3).astype(np.uint16) if i == 27 else None

    def rows(table):
        for i, row in enumerate(table):
            row["split"] = "test" if i in (21, 27) else "train"

    leaks = inspect(eurosat(tmp_path, edit, rows=rows)).of("leak")
    assert [(f.what.split(" in ")[0], f.severity, f.evidence["pairs"]) for f in leaks] == [
        ("identical chips", "error", 1),
        ("chips that are one picture", "error", 1),
    ]


@pytest.mark.slow
def test_spatial_leak_and_mixed_systems(tmp_path):
    forms = {}

    def profile(form, i):
        forms[i] = form
        if i == 5:
            half = forms[0]["transform"] @ (32, 0)
            form.update(crs=forms[0]["crs"])
            form["transform"] = type(form["transform"])(10, 0, half[0], 0, -10, half[1])
        if i == 6:
            form.update(crs="EPSG:4326")
            form["transform"] = type(form["transform"])(9e-5, 0, 10.0, 0, -9e-5, 50.0)

    def rows(table):
        for i, row in enumerate(table):
            row["split"] = "test" if i == 5 else "train"

    diagnosis = inspect(eurosat(tmp_path, profile=profile, rows=rows))
    (leak,) = [f for f in diagnosis.of("spatial-leak") if f.severity == "error"]
    assert leak.evidence["pairs"] == 1
    assert 45 < float(leak.evidence["largest overlap"].split()[0]) < 55
    (crs,) = [f for f in diagnosis.of("crs") if f.severity == "warning"]
    assert len(crs.chips) == 1


@pytest.mark.slow
def test_pixel_size_conflict(tmp_path):
    def profile(form, i):
        form["transform"] = form["transform"] @ form["transform"].scale(3)

    findings = inspect(eurosat(tmp_path, profile=profile)).of("gsd")
    assert {f.where for f in findings} == {"rgb", "ired", "sired", "ebands"}
    assert all(f.evidence["files"] == pytest.approx(30, abs=0.2) for f in findings)


@pytest.mark.slow
def test_class_balance(tmp_path):
    def rows(table):
        for i, row in enumerate(table):
            row["label"] = "Forest" if i else "River"

    findings = inspect(eurosat(tmp_path, rows=rows)).of("class-balance")
    assert any(f.severity == "warning" and "29 times" in f.what for f in findings)


@pytest.mark.slow
def test_surface_reflectance_among_top_of_atmosphere(tmp_path):
    import rasterio

    l2a = sorted((DATA / "s2_l2a_unlabelled/chips").glob("*.tif"))[:30:10]

    def edit(pixels, i):
        if i % 10 == 0:
            with rasterio.open(l2a[i // 10]) as file:
                surface = file.read()
            order = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")
            for name, values in zip(order, surface, strict=True):
                pixels[band(name)] = values

    (finding,) = inspect(eurosat(tmp_path, edit)).of("level-mixture")
    assert finding.evidence["chips"] == 3
    assert finding.severity == "warning"


@pytest.mark.slow
def test_offset_of_baseline_0400_in_terramind_l1c(tmp_path):
    """Three of the five L1C chips carry it, as B10 (cirrus) shows."""
    path = tmp_path / "l1c.yaml"
    bands = ", ".join(STANDARD)
    path.write_text(
        f"name: l1c\nroot: {DATA / 'terramind_examples'}\nmodalities:\n"
        f"  s2: {{path: 'S2L1C/{{id}}.tif', sensor: sentinel2, bands: [{bands}], "
        f"file_bands: [{bands}], level: l1c, scale: 1.0e-4, gsd: 10}}\n"
    )
    (finding,) = inspect(open_source(path)).of("offset-mixture")
    assert set(finding.chips) == {"282D_485L_3_3", "433D_629L_3_1", "609U_541L_3_0"}
    assert finding.severity == "warning"


def test_split_table_of_the_example_is_used():
    with (DATA / "eurosat_ms/split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    diagnosis = inspect(open_source(EXAMPLES / "eurosat_ms.yaml"), chips=40)
    assert sum(diagnosis.splits.values()) == len(rows)
    assert diagnosis.examined == 40
