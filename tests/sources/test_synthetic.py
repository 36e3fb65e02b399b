"""The synthetic world: repeatable, georeferenced, and its modalities truly tell of one another."""

from __future__ import annotations

import builtins
import csv
import time
from itertools import combinations

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from multimae_eo.errors import ConfigError, OutputError
from multimae_eo.loading.open_source import open_source
from multimae_eo.sample import collate
from multimae_eo.sources.landscape import LEAST_SIZE, OPTICAL_BANDS, make_landscape
from multimae_eo.sources.synthetic import SyntheticSource, write_synthetic_data

TREES, GRASS, CROPS, BUILT, BARE, SNOW, WATER = 10, 30, 40, 50, 60, 70, 80


@pytest.fixture(scope="module")
def world():
    return make_landscape(512, 7)


@pytest.fixture(scope="module")
def source():
    return SyntheticSource(60, 32, seed=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_synthetic_data(
        tmp_path_factory.mktemp("world"), chips=20, size=32, scene=192, seed=4
    )


def pixels_of(world, step=3):
    """Optical, radar, elevation and class of every ``step``-th pixel, in two separate halves."""

    def rows(layer, half):
        north, south = slice(0, 256, step), slice(256, 512, step)
        return layer[:, north if half == 0 else south, ::step].reshape(len(layer), -1).T

    layers = (world.sentinel2, world.radar, world.elevation, world.landcover)
    return [[rows(layer, half).astype(np.float64) for layer in layers] for half in (0, 1)]


def test_a_world_has_the_promised_types_and_ranges(world):
    assert world.sentinel2.shape == (len(OPTICAL_BANDS), 512, 512)
    kinds = {
        "sentinel2": "uint16", "radar": "float32", "elevation": "int16", "landcover": "uint8",
    }  # fmt: skip
    assert {n: str(getattr(world, n).dtype) for n in kinds} == kinds
    assert world.sentinel2.min() >= 1, "0 is nodata"
    assert world.sentinel2.max() <= 12_000
    assert -50 < world.radar.min() < world.radar.max() < 25
    assert 0 < world.elevation.min() < 150
    assert 400 < world.elevation.max() < 2000
    shares = dict(zip(*np.unique(world.landcover, return_counts=True), strict=True))
    assert set(shares) <= {10, 20, 30, 40, 50, 60, 70, 80, 90, 100}
    for class_id in (TREES, GRASS, CROPS, BUILT, BARE, SNOW, WATER):
        assert shares[class_id] > 0.003 * 512**2


def test_worlds_repeat_by_seed_and_differ_between_seeds():
    one, again, other = (make_landscape(LEAST_SIZE, seed) for seed in (1, 1, 2))
    for layer in ("sentinel2", "radar", "elevation", "landcover"):
        np.testing.assert_array_equal(getattr(one, layer), getattr(again, layer))
        assert (getattr(one, layer) != getattr(other, layer)).mean() > 0.3
    with pytest.raises(ConfigError, match=str(LEAST_SIZE)):
        make_landscape(LEAST_SIZE - 1, 0)


def test_optical_pixels_tell_the_land_cover(world):
    (north, _, _, cover), (south, _, _, truth) = pixels_of(world)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    model.fit(north[::3], cover[::3, 0])
    accuracy = (model.predict(south) == truth[:, 0]).mean()
    assert accuracy > 0.8
    assert accuracy < 0.999, "boundaries and noise leave something to learn from the context"


@pytest.mark.slow
def test_optical_pixels_tell_some_of_the_elevation_in_other_worlds():
    def table(seeds):
        worlds = [make_landscape(256, seed) for seed in seeds]
        bands = [w.sentinel2[:, ::4, ::4].reshape(10, -1).T for w in worlds]
        heights = [w.elevation[0, ::4, ::4].ravel() for w in worlds]
        return np.concatenate(bands).astype(float), np.concatenate(heights).astype(float)

    model = make_pipeline(StandardScaler(), Ridge(1.0)).fit(*table(range(6)))
    assert 0.3 < model.score(*table(range(100, 106))) < 0.8


@pytest.mark.slow
def test_optical_chips_tell_most_of_their_mean_elevation():
    source = SyntheticSource(300, 32, seed=1)

    def table(split):
        samples = [source.read(int(i)) for i in source.split(split)]
        return band_statistics(samples), [s.pixels["elevation"].mean() for s in samples]

    model = make_pipeline(StandardScaler(), Ridge(1.0)).fit(*table("train"))
    assert model.score(*table("test")) > 0.6


def band_statistics(samples):
    """Mean and standard deviation of the logarithm of each optical band."""
    rows = []
    for sample in samples:
        bands = [np.log(sample.pixels[n]) for n in ("rgb", "ired", "sired", "ebands")]
        rows.append(np.concatenate([[*b.mean((1, 2)), *b.std((1, 2))] for b in bands]))
    return np.array(rows)


def test_radar_tells_of_class_and_of_slopes(world):
    mean = {c: world.radar[:, world.landcover[0] == c].mean(axis=1) for c in (BUILT, TREES, WATER)}
    assert mean[BUILT][0] > mean[TREES][0] + 3 > mean[WATER][0] + 8
    assert (world.radar[0] - world.radar[1]).mean() > 3, "co-polarised is the stronger"
    trees = world.landcover[0] == TREES
    rising_east = np.gradient(world.elevation[0].astype(float), 10, axis=1)
    assert world.radar[0][trees & (rising_east > 0.15)].mean() > (
        world.radar[0][trees & (rising_east < -0.15)].mean() + 2
    )


def test_speckle_has_the_spread_of_six_looks(world):
    """In dB the standard deviation of an average of L looks is 10 / ln 10 · sqrt(ψ′(L))."""
    noise = np.diff(world.radar[:, :, :], axis=2)
    flat = np.gradient(world.elevation[0].astype(float), 10, axis=1)[:, 1:] == 0
    water = (world.landcover[0, :, 1:] == WATER) & (world.landcover[0, :, :-1] == WATER) & flat
    trigamma = sum(1 / (6 + k) ** 2 for k in range(10_000))
    expected = 10 / np.log(10) * np.sqrt(trigamma)
    measured = noise[:, water].std() / np.sqrt(2)
    assert measured == pytest.approx(expected, rel=0.05)


def test_land_cover_follows_the_relief(world):
    height = world.elevation[0].astype(float)
    steep = np.hypot(*np.gradient(height, 10))
    cover = world.landcover[0]
    mean = {c: height[cover == c].mean() for c in (WATER, CROPS, TREES, BARE, SNOW)}
    assert mean[WATER] < mean[CROPS] < mean[TREES] < mean[BARE] < mean[SNOW]
    assert steep[cover == CROPS].mean() < 0.5 * steep[cover == BARE].mean()
    lake = (cover == WATER) & (height == height.min())
    assert lake.sum() > 0.5 * (cover == WATER).sum(), "most water is flat"
    assert (cover[height == height.min()] == WATER).mean() > 0.97


def test_slopes_that_face_the_sun_are_brighter(world):
    trees = world.landcover[0] == TREES
    falling_south = -np.gradient(world.elevation[0].astype(float), 10, axis=0)
    near_infrared = world.sentinel2[OPTICAL_BANDS.index("B8")].astype(float)
    sunny = near_infrared[trees & (falling_south > 0.2)].mean()
    assert sunny > 1.3 * near_infrared[trees & (falling_south < -0.2)].mean()


@pytest.mark.slow
def test_regions_of_a_large_world_are_alike():
    """Amplitudes are those expected, not the sample's: train and test come from one population."""
    heights = [make_landscape(256, seed).elevation for seed in range(6)]
    means, spreads = [h.mean() for h in heights], [h.std() for h in heights]
    assert np.std(means) < 0.5 * np.mean(spreads)


def test_splits_lie_in_separate_regions(source):
    boxes = {name: [source.read(i, ["rgb"]).geometry.bounds for i in source.split(name)]
             for name in ("train", "val", "test")}  # fmt: skip
    assert {n: len(b) for n, b in boxes.items()} == {"train": 42, "val": 6, "test": 12}
    spans = {n: (min(b[1] for b in bs), max(b[3] for b in bs)) for n, bs in boxes.items()}
    assert spans["train"][0] >= spans["val"][1] + 320
    assert spans["val"][0] >= spans["test"][1] + 320
    every = [b for bs in boxes.values() for b in bs]
    for a, b in combinations(every, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@settings(max_examples=60, deadline=None)
@given(chips=st.integers(3, 400), size=st.integers(1, 130))
def test_any_number_of_chips_fits_its_landscape(chips, size):
    from multimae_eo.sources.synthetic import _Layout

    layout = _Layout.of(chips, size)
    assert len(layout.windows) == len(layout.splits) == chips
    assert len({(w.row, w.col) for w in layout.windows}) == chips
    assert set(layout.splits) == {"train", "val", "test"}
    for window in layout.windows:
        assert 0 <= window.row <= layout.side - size
        assert 0 <= window.col <= layout.side - size


def test_chips_are_cut_in_the_modalities_band_order(source):
    sample = source.read(5)
    assert list(sample.pixels) == [
        "rgb", "ired", "sired", "ebands", "radar", "elevation", "landcover",
    ]  # fmt: skip
    window = source._layout.windows[5]
    cut = source._landscape.sentinel2[:, window.row : window.row + 32, window.col : window.col + 32]
    for name in ("rgb", "ired", "sired", "ebands"):
        for band, pixels in zip(
            source.modalities[name].band_names, sample.pixels[name], strict=True
        ):
            np.testing.assert_array_equal(pixels, cut[OPTICAL_BANDS.index(band)])
    assert sample.calibration["rgb"].level == "l2a"
    assert not sample.valid


@pytest.mark.slow
def test_labels_are_learnable_from_band_means():
    source = SyntheticSource(300, 32, seed=1)

    def table(split):
        samples = [source.read(int(i)) for i in source.split(split)]
        return band_statistics(samples), np.array([s.label for s in samples])

    features, labels = table("train")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(features, labels)
    assert len(set(labels)) >= 5
    assert np.bincount(labels).max() < 0.6 * len(labels)
    assert model.score(*table("test")) > 0.6


def test_missing_and_nodata_and_levels_are_drawn_per_chip():
    source = SyntheticSource(200, 8, seed=2, missing=0.3, nodata=0.4, mixed_levels=True)
    samples = [source.read(i) for i in range(200)]
    names = source.modalities.names
    present = np.array([[n in s.pixels for n in names] for s in samples])
    assert present.any(axis=1).all(), "no chip is empty"
    assert 0.65 < present.mean() < 0.82
    holed = [n in s.valid for s in samples for n in s.pixels]
    assert 0.3 < np.mean(holed) < 0.5
    for sample in samples:
        for name, valid in sample.valid.items():
            assert 0.5 <= valid.mean() < 1
            assert not sample.pixels[name][~np.broadcast_to(valid, sample.pixels[name].shape)].any()
        again = source.read(source.index_of(sample.key), ["radar"])
        assert ("radar" in again.pixels) == ("radar" in sample.pixels)
    levels = [s.calibration["rgb"].level for s in samples if "rgb" in s.pixels]
    assert 0.35 < np.mean([level == "l1c" for level in levels]) < 0.65
    blue = source.statistics().moments["rgb"]
    assert blue["l1c"].mean[2] > blue["l2a"].mean[2] + 0.02
    batch = collate(samples[:16], source.modalities)
    np.testing.assert_array_equal(batch.present.numpy(), present[:16])


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigError, match="3 chips"):
        SyntheticSource(2)
    with pytest.raises(ConfigError, match="missing: a probability"):
        SyntheticSource(3, 8, missing=1.5)


def test_the_source_needs_no_raster_library(monkeypatch):
    block_rasterio(monkeypatch)
    assert SyntheticSource(3, 8).read(0).pixels["rgb"].shape == (3, 8, 8)


def test_files_hold_what_the_source_in_memory_holds(files):
    memory, disk = SyntheticSource(20, 32, seed=4), open_source(files.dataset)
    assert disk.modalities == memory.modalities
    assert list(disk.keys) == memory.keys
    assert list(disk.split_of) == memory.split_of
    assert disk.class_names == memory.class_names
    for i in range(20):
        mine, theirs = memory.read(i), disk.read(i)
        assert (mine.label, mine.geometry) == (theirs.label, theirs.geometry)
        assert mine.calibration["rgb"] == theirs.calibration["rgb"]
        assert not theirs.valid
        for name, pixels in mine.pixels.items():
            assert theirs.pixels[name].dtype == pixels.dtype
            np.testing.assert_array_equal(theirs.pixels[name], pixels)
    with (files.dataset.parent / "split.csv").open(newline="") as stream:
        assert next(iter(csv.DictReader(stream))).keys() == {"id", "split", "label"}


def test_the_scene_is_georeferenced_held_out_and_described(files):
    import rasterio

    record = yaml.safe_load(files.scene.read_text())
    assert list(record["modalities"]) == [
        "rgb", "ired", "sired", "ebands", "radar", "elevation", "landcover",
    ]  # fmt: skip
    rgb = record["modalities"]["rgb"]
    assert (rgb["bands"], rgb["level"]) == (["B4", "B3", "B2"], "l2a")
    for entry in record["modalities"].values():
        with rasterio.open(files.scene.parent / entry["path"]) as raster:
            assert raster.crs.to_epsg() == 32633
            assert raster.res == (10, 10)
            assert raster.shape == (192, 192)
            assert raster.descriptions[0]
            assert set(entry.get("bands", [])) <= set(raster.descriptions)
            left = raster.bounds.left
    rights = [open_source(files.dataset).read(i).geometry.bounds[2] for i in range(20)]
    assert left > max(rights), "no chip of training is in the scene"


@pytest.mark.slow
def test_600_chips_are_quick():
    """Ten seconds on an idle core for the files; the pixels in memory are most of it."""
    start = time.process_time()
    source = SyntheticSource(600)
    for i in range(600):
        source.read(i)
    assert time.process_time() - start < 12


def test_without_rasterio_writing_names_the_remedy(monkeypatch, tmp_path):
    block_rasterio(monkeypatch)
    with pytest.raises(ConfigError, match=r"pip install 'multimae-eo\[geo\]'"):
        write_synthetic_data(tmp_path, chips=3, size=8)


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "chips").write_text("in the way")
    with pytest.raises(OutputError, match="chips"):
        write_synthetic_data(tmp_path, chips=3, size=8, scene=192)
    assert not (tmp_path / "dataset.yaml").exists()


def block_rasterio(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **options):
        if name.split(".")[0] == "rasterio":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
