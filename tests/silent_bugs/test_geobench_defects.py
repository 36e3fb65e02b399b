"""Traps of GEO-Bench's files that give wrong numbers without a complaint, each made impossible."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from multimae_eo import open_source
from multimae_eo.errors import FormatError, SplitError
from multimae_eo.sources.geobench.bands import DATASETS
from multimae_eo.sources.geobench.source import GeoBenchSource
from tests.support.geobench_files import write_geobench
from tests.support.paths import DATA

SIZE = 20
KILNS = DATA / "geobench_samples/brick_kiln_v1.0"
EUROSAT_MEAN = {"B1": 1360, "B2": 1126, "B3": 1055, "B4": 957, "B5": 1220, "B6": 2052, "B7": 2434,
                "B8": 2360, "B8A": 2665, "B9": 751, "B10": 12.3, "B11": 1849,
                "B12": 1131}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("geobench")
    for name in DATASETS:
        write_geobench(root, name, size=SIZE, chips=(12, 4, 4), seed=5)
    return root


def raw(root, name, key):
    with h5py.File(root / DATASETS[name].benchmark / name / f"{key}.hdf5") as file:
        return {k: file[k][()] for k in file}


def test_eurosat_bands_are_where_their_pixels_are(root):
    """`08A` is B9, `09` B10, `10` B11, `11` B12 and `12` B8A (issue 28 of the benchmark)."""
    source = open_source(f"geobench:{root}/m-eurosat?modalities=sentinel2")
    stored = raw(root, "m-eurosat", source.keys[0])
    bands = source.modalities["sentinel2"].band_names
    found = dict(zip(bands, source.read(0).pixels["sentinel2"], strict=True))
    for band, name in {
        "B8": "08 - NIR", "B9": "08A - Vegetation Red Edge", "B10": "09 - Water vapour",
        "B11": "10 - SWIR - Cirrus", "B12": "11 - SWIR", "B8A": "12 - SWIR", "B5":
        "05 - Vegetation Red Edge",
    }.items():  # fmt: skip
        np.testing.assert_array_equal(found[band], stored[name])
    moments = source.statistics().moments["sentinel2"]["l1c"]
    for band, mean in zip(bands, moments.mean * 1e4, strict=True):
        assert mean == pytest.approx(EUROSAT_MEAN[band], rel=0.35), f"{band}: published mean"


def test_bigearthnet_names_are_right_and_are_not_remapped(root):
    source = open_source(f"geobench:{root}/m-bigearthnet?modalities=sentinel2_l2a_bands")
    stored = raw(root, "m-bigearthnet", source.keys[0])
    for plane, name in zip(
        source.read(0).pixels["sentinel2_l2a_bands"], sorted(stored), strict=True
    ):
        np.testing.assert_array_equal(plane, stored[name])


@pytest.mark.skipif(not KILNS.is_dir(), reason="its data need rasterio")
def test_brick_kiln_evidence_in_real_chips():
    """`10`, `11`, `12` are the true-colour picture: a tenth of red, green and blue."""
    source = GeoBenchSource(KILNS, modalities=["rgb", "ebands", "sired"])
    for i, key in enumerate(source.keys):
        with h5py.File(KILNS / f"{key}.hdf5") as file:
            stored = {k.split(" ")[0]: file[k][()] for k in file}
        for picture, band in (("10", "04"), ("11", "03"), ("12", "02")):
            seen = stored[picture] < 255
            slope, _ = np.polyfit(stored[band][seen], stored[picture][seen], 1)
            assert slope == pytest.approx(0.1, abs=0.01)
            assert np.corrcoef(stored[picture][seen], stored[band][seen])[0, 1] > 0.97
        b11, b12 = source.read(i).pixels["sired"]
        b8a, b8 = source.read(i).pixels["ebands"]
        assert b12.mean() < b11.mean(), "vegetated soil"
        assert np.corrcoef(b11.ravel(), b12.ravel())[0, 1] > 0.7
        assert np.corrcoef(b8a.ravel(), b8.ravel())[0, 1] > 0.8


def test_brick_kiln_never_gives_a_picture_as_shortwave_infrared(root):
    source = open_source(f"geobench:{root}/m-brick-kiln")
    assert source.modalities.names == ("rgb", "sired", "ebands"), "B6 was never exported"
    for i in range(len(source)):
        stored = raw(root, "m-brick-kiln", source.keys[i])
        b11, b12 = source.read(i).pixels["sired"]
        np.testing.assert_array_equal(b11, stored["08A - Vegetation Red Edge"])
        np.testing.assert_array_equal(b12, stored["09 - Water vapour"])
    mean = source.statistics().moments["sired"]["l2a"].mean
    assert mean == pytest.approx([0.185, 0.113], rel=0.3), "not 0.008, a tenth of red"


@pytest.mark.parametrize(
    "name",
    ["m-bigearthnet", "m-so2sat", "m-brick-kiln", "m-eurosat", "m-cashew-plant", "m-SA-crop-type"],
)
def test_digital_numbers_floats_and_bytes_are_one_reflectance(root, name):
    """Values are ×10000, 0–2.8, halves in float64, or 0–255; the physical mean is the same."""
    found = open_source(f"geobench:{root}/{name}").statistics().moments["rgb"]
    mean = next(m.mean for m in found.values() if m.count.any())
    assert mean == pytest.approx([0.096, 0.106, 0.113], rel=0.3)


def test_levels_are_those_of_the_products(root):
    levels = {}
    for name in DATASETS:
        chip = open_source(f"geobench:{root}/{name}").read(0)
        if "rgb" in chip.calibration:
            levels[name] = chip.calibration["rgb"].level
    assert levels == {
        "m-bigearthnet": "l2a", "m-so2sat": "l1c", "m-brick-kiln": "l2a", "m-eurosat": "l1c",
        "m-cashew-plant": "l2a", "m-SA-crop-type": "l2a",
    }  # fmt: skip


def test_radar_intensity_becomes_decibel_and_zero_is_not_minus_infinity(root):
    source = open_source(f"geobench:{root}/m-so2sat")
    chip, stored = source.read(0), raw(root, "m-so2sat", source.keys[0])
    vv, vh = chip.pixels["sentinel1"]
    np.testing.assert_allclose(vv, 10 * np.log10(stored["06 - VV.LEE Filtered"]), rtol=1e-5)
    assert stored["05 - VH.LEE Filtered"][0, 0] == 0
    assert not chip.valid["sentinel1"][1, 0, 0]
    assert chip.valid["sentinel1"].sum() == vv.size + vh.size - 1
    assert np.isfinite(chip.pixels["sentinel1"]).all()


def test_eight_bit_pictures_are_no_reflectance(root):
    """ForestNet's outside is faded to white: its values are a picture's, whatever the sensor."""
    for name, modality in (("m-forestnet", "landsat8_picture"), ("m-pv4ger", "aerial_rgb")):
        source = open_source(f"geobench:{root}/{name}")
        assert source.modalities[modality].unit == "digital number"
        assert source.modalities[modality].scale == 1.0
        assert not source.read(0).valid, "black is a colour"


def test_forestnet_bands_are_by_wavelength_though_stored_from_red(root):
    source = open_source(f"geobench:{root}/m-forestnet")
    modality = source.modalities["landsat8_picture"]
    assert modality.band_names == ("B2", "B3", "B4", "B5", "B6", "B7")
    chip, stored = source.read(0), raw(root, "m-forestnet", source.keys[0])
    for plane, name in zip(chip.pixels[modality.name], ["02 - Blue", "03 - Green", "04 - Red",
                           "05 - NIR", "06 - SWIR1", "07 - SWIR2"], strict=True):  # fmt: skip
        np.testing.assert_array_equal(plane, stored[f"{name}_2014-07-07"])


def test_nodata_is_not_observed(root):
    for name in ("m-bigearthnet", "m-eurosat", "m-cashew-plant"):
        chip = open_source(f"geobench:{root}/{name}").read(0)
        assert not chip.valid["rgb"][..., 0, 0].any()
        assert chip.valid["rgb"][..., 1:, 1:].all()
    neon = open_source(f"geobench:{root}/m-NeonTree").read(0)
    assert not neon.valid["hyperspectral"][..., 0, 0].any()


def test_class_numbers_are_the_files(root):
    for name, data in DATASETS.items():
        source = open_source(f"geobench:{root}/{name}")
        assert isinstance(source, GeoBenchSource)
        for i in range(len(source)):
            label = source.read(i).label
            if data.label == "class":
                mapped = json.loads((source.folder / "label_map.json").read_text())
                assert source.keys[i] in mapped[str(label)]
            elif data.label == "map":
                stored = raw(root, name, source.keys[i])
                (truth,) = (v for k, v in stored.items() if k.startswith("label"))
                np.testing.assert_array_equal(label, truth)
                assert label.dtype == np.int64
            else:
                assert np.flatnonzero(label).tolist() == sorted({i % 43, (3 * i + 1) % 43})


def test_no_data_is_a_class_where_the_benchmark_counts_it_as_one(root):
    """Published scores of these three include it; leaving it out would not be comparable."""
    places = {"m-cashew-plant": 0, "m-SA-crop-type": 0, "m-chesapeake": 6}
    for name, number in places.items():
        assert DATASETS[name].classes[number] == "no data"
        source = open_source(f"geobench:{root}/{name}")
        assert any((source.read(i).label == number).any() for i in range(len(source)))
        assert min(source.read(i).label.min() for i in range(len(source))) >= 0


def test_a_chip_in_two_splits_is_an_error(root, tmp_path):
    folder = write_geobench(tmp_path, "m-eurosat", size=SIZE)
    path = folder / "default_partition.json"
    splits = json.loads(path.read_text())
    splits["test"].append(splits["train"][0])
    path.write_text(json.dumps(splits))
    with pytest.raises(SplitError, match="'id_0000' is listed in 'test' and again"):
        GeoBenchSource(folder)


def test_a_chip_that_was_not_downloaded_is_not_skipped(tmp_path):
    folder = write_geobench(tmp_path, "m-eurosat", size=SIZE)
    (folder / "id_0003.hdf5").unlink()
    with pytest.raises(FormatError, match=r"id_0003.hdf5 of default_partition.json .* \(1 of 16\)"):
        GeoBenchSource(folder)


def test_keys_with_dots_brackets_and_commas_are_whole(root):
    for name in ("m-pv4ger", "m-nz-cattle", "m-forestnet"):
        source = open_source(f"geobench:{root}/{name}")
        assert len(set(source.keys)) == 20
        assert source.read(source.index_of(source.keys[7])).key == source.keys[7]


def test_dates_are_never_mixed(tmp_path):
    """A band name without its date matched whichever date came first, band by band."""
    for name in ("m-cashew-plant", "m-nz-cattle", "m-forestnet"):
        folder = write_geobench(tmp_path, name, size=SIZE, dates=3)
        source = GeoBenchSource(folder)
        first = next(iter(source.modalities))
        series = source.series(0)
        years = [int(s.time[:4]) for s in series]
        assert years == [years[0], years[0] + 1, years[0] + 2]
        for n, chip in enumerate(series):
            valid = np.broadcast_to(chip.valid.get(first, np.True_), chip.pixels[first].shape)
            step = chip.pixels[first].astype(int) - series[0].pixels[first].astype(int)
            assert (step[valid] == n).all(), "the generator adds a year's number to every band"
            np.testing.assert_array_equal(chip.label, series[0].label)
        last = source.read(0)
        assert last.time == series[-1].time
        np.testing.assert_array_equal(last.pixels[first], series[-1].pixels[first])


def test_the_last_date_is_the_last_that_is_whole(tmp_path):
    folder = write_geobench(tmp_path, "m-cashew-plant", size=SIZE, dates=2)
    with h5py.File(folder / "id_0000.hdf5", "a") as file:
        del file["04 - Red_2020-11-05"]
    source = GeoBenchSource(folder)
    assert [s.time for s in source.series(0)] == ["2019-11-05"]
    assert source.read(0).time == "2019-11-05"
    assert source.read(0, ["sired"]).time == "2020-11-05"
    with h5py.File(folder / "id_0000.hdf5", "a") as file:
        del file["03 - Green_2019-11-05"]
    with pytest.raises(FormatError, match="lacks a date with all bands"):
        source.read(0)


def test_a_composite_of_years_has_no_date(root):
    source = open_source(f"geobench:{root}/m-forestnet")
    assert [source.read(i).time for i in range(4)] == [*["2014-07-07"] * 3, None]


@pytest.mark.parametrize("name", ["m-SA-crop-type", "m-NeonTree", "m-nz-cattle"])
def test_positions_that_are_wrong_are_not_told(root, name):
    """One place for all chips, a tile's corner for its slices, degrees where metres were meant."""
    source = open_source(f"geobench:{root}/{name}")
    assert all(source.read(i).geometry is None for i in range(len(source)))


def test_resolution_is_the_images_not_the_labels(root):
    """m-cashew-plant tells 0.5 m, the labels' source; its Sentinel-2 pixels have 10 m."""
    source = open_source(f"geobench:{root}/m-cashew-plant")
    assert {m.gsd_m for m in source.modalities.values()} == {10.0}
    tree = open_source(f"geobench:{root}/m-NeonTree")
    assert {n: m.gsd_m for n, m in tree.modalities.items()} == {
        "aerial_rgb": 0.1, "canopy_height": 1.0, "hyperspectral": 1.0,
    }  # fmt: skip
    chip = tree.read(0)
    assert chip.pixels["hyperspectral"].shape == (369, SIZE // 10, SIZE // 10)
    stored = raw(root, "m-NeonTree", chip.key)["Neon"]
    np.testing.assert_array_equal(chip.pixels["hyperspectral"][200], stored[..., 200])


def test_clouds_are_no_band(root):
    for name in ("m-cashew-plant", "m-SA-crop-type"):
        source = open_source(f"geobench:{root}/{name}?modalities=sentinel2_l2a_bands")
        assert source.modalities["sentinel2_l2a_bands"].channels == 12


def test_a_hostile_chip_does_nothing(tmp_path):
    folder = write_geobench(tmp_path, "m-eurosat", size=SIZE)
    mark = tmp_path / "done"
    command = f"touch {mark}".encode()
    hostile = (
        b"\x80\x04cposix\nsystem\nX" + len(command).to_bytes(4, "little") + command + b"\x85R."
    )
    with h5py.File(folder / "id_0002.hdf5", "a") as file:
        file.attrs["pickle"] = str(hostile)
    (folder / "task_specs.pkl").write_bytes(hostile)
    source = GeoBenchSource(folder)
    with pytest.raises(FormatError, match=r"id_0002\.hdf5: the pickle is refused.*posix\.system"):
        source.read(2)
    source.read(1)
    assert not mark.exists()
