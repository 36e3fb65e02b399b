"""GEO-Bench data sets as sources: what a chip holds, its label, its split, and every complaint."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from multimae_eo import catalog, open_source
from multimae_eo.errors import (
    BandError,
    ClassMapError,
    ConfigError,
    FormatError,
    MultiMAEError,
    OutputError,
    SplitError,
)
from multimae_eo.loading.loader import make_loader
from multimae_eo.modality import Band, Modality
from multimae_eo.sample import collate
from multimae_eo.sources.geobench.bands import DATASETS
from multimae_eo.sources.geobench.source import GeoBenchSource
from multimae_eo.store.writer import prepare
from tests.support.geobench_files import pickled, write_geobench
from tests.support.marks import mostly_slow
from tests.support.paths import DATA

SIZE = 20
SAMPLES = DATA / "geobench_samples"
KILNS = SAMPLES / "brick_kiln_v1.0"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("geobench")
    for name in DATASETS:
        write_geobench(root, name, size=SIZE, seed=3)
    return root


@pytest.fixture
def copy(root, tmp_path):
    """A data set that a test may spoil."""

    def make(name):
        data = DATASETS[name]
        return Path(shutil.copytree(root / data.benchmark / name, tmp_path / name))

    return make


def rewrite(folder, index=0, **stored):
    """Replace HDF5 datasets (None deletes one) of a chip of the default partition."""
    key = json.loads((folder / "default_partition.json").read_text())["train"][index]
    with h5py.File(folder / f"{key}.hdf5", "a") as file:
        for name, values in stored.items():
            del file[name]
            if values is not None:
                file[name] = values
    return folder


def relabel(folder, label):
    key = json.loads((folder / "default_partition.json").read_text())["train"][0]
    with h5py.File(folder / f"{key}.hdf5", "a") as file:
        file.attrs["pickle"] = str(pickled({"label": label}))
    return folder


@pytest.mark.parametrize(
    "name", mostly_slow(DATASETS, fast=["m-eurosat", "m-bigearthnet", "m-cashew-plant"])
)
def test_every_data_set_opens_and_batches(root, name):
    data = DATASETS[name]
    source = open_source(f"geobench:{root}/{name}")
    assert (len(source), source.splits) == (16, ("train", "val", "test"))
    assert [len(source.split(s)) for s in source.splits] == [8, 4, 4]
    assert len(source.class_names) == len(data.classes) == len(set(data.classes))
    samples = [source.read(i) for i in range(len(source))]
    batch = collate(samples, source.modalities)
    assert bool(batch.present.all())
    for modality, pixels in batch.pixels.items():
        side = SIZE if source.modalities[modality].gsd_m == data.layers[0].gsd_m else SIZE // 10
        assert tuple(pixels.shape[2:]) == (side, side)
    expected = {"class": (16,), "classes": (16, len(data.classes)), "map": (16, SIZE, SIZE)}
    assert tuple(batch.labels.shape) == expected[data.label]
    assert batch.labels.is_floating_point() == (data.label == "classes")
    mean_std = [source.statistics().mean_std(m) for m in source.modalities]
    assert all(np.isfinite(part).all() for pair in mean_std for part in pair)


def test_the_table_counts_are_the_benchmarks():
    classes = {n: len(d.classes) for n, d in DATASETS.items()}
    assert classes == {
        "m-bigearthnet": 43, "m-so2sat": 17, "m-brick-kiln": 2, "m-forestnet": 12, "m-eurosat": 10,
        "m-pv4ger": 2, "m-pv4ger-seg": 2, "m-chesapeake": 7, "m-cashew-plant": 7,
        "m-SA-crop-type": 10, "m-nz-cattle": 2, "m-NeonTree": 2,
    }  # fmt: skip
    assert [d.benchmark for d in DATASETS.values()].count("classification_v1.0") == 6
    assert {d.metric for d in DATASETS.values() if d.label == "map"} == {"miou"}


@pytest.mark.parametrize("name", ["m-eurosat", "m-SA-crop-type"])
def test_a_modality_with_one_meaning_is_the_catalogues(root, name):
    """A model pre-trained elsewhere must accept these chips."""
    source = open_source(f"geobench:{root}/{name}")
    for modality in source.modalities.values():
        assert modality.meaning() == catalog.modality(modality.name).meaning()


def test_only_the_needed_arrays_are_read(root, monkeypatch):
    source = open_source(f"geobench:{root}/m-eurosat")
    read = []
    fetch = h5py.Dataset.__getitem__

    def counted(self, *arguments, **options):
        read.append(self.name.removeprefix("/"))
        return fetch(self, *arguments, **options)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    source.read(0, ["rgb"])
    assert read == ["02 - Blue", "03 - Green", "04 - Red"]


def test_any_modality_that_the_bands_fill_can_be_asked_for(root):
    source = open_source(f"geobench:{root}/m-eurosat?modalities=sentinel2")
    assert source.modalities["sentinel2"].channels == 13
    both = open_source(f"geobench:{root}/m-so2sat?modalities=ebands+sentinel1")
    assert both.modalities.names == ("ebands", "sentinel1")
    own = Modality(name="b5", sensor="sentinel2", bands=(Band(name="B5"),), unit="reflectance",
                   levels=("l1c", "l2a"))  # fmt: skip
    found = GeoBenchSource(root / "m-eurosat", modalities=[own]).read(0)
    np.testing.assert_array_equal(
        found.pixels["b5"][0], open_source(f"geobench:{root}/m-eurosat").read(0).pixels["ired"][0]
    )


@pytest.mark.parametrize(
    ("name", "modality", "match"),
    [
        ("m-bigearthnet", "sentinel2", "cannot fill 'sentinel2'.*B10.*it has sentinel2: B1"),
        ("m-brick-kiln", "ired", "cannot fill 'ired'"),
        ("m-pv4ger", "rgb", "cannot fill 'rgb' .sentinel2.*it has rgb: red"),
        ("m-forestnet", "landsat8", "cannot fill 'landsat8'"),
    ],
)
def test_bands_that_are_not_there_are_refused(root, name, modality, match):
    with pytest.raises(BandError, match=match):
        GeoBenchSource(root / name, modalities=[modality])


def test_pictures_are_not_taken_for_reflectance(root):
    wanted = catalog.make_modality("l8", sensor_name="landsat8", bands=("B4", "B3", "B2"))
    with pytest.raises(BandError, match="unit is 'reflectance', the files hold 'digital number'"):
        GeoBenchSource(root / "m-forestnet", modalities=[wanted])


def test_partitions_keep_the_evaluation_and_shrink_the_training(root):
    whole = open_source(f"geobench:{root}/m-eurosat")
    half = open_source(f"geobench:{root}/m-eurosat?partition=0.50x_train")
    assert len(half.split("train")) == 4
    for split in ("val", "test"):
        assert [half.keys[i] for i in half.split(split)] == [
            whole.keys[i] for i in whole.split(split)
        ]
    train = {whole.keys[i] for i in whole.split("train")}
    assert {half.keys[i] for i in half.split("train")} < train
    with pytest.raises(ConfigError, match=r"no partition '0.5x_train'; did you mean '0.50x_train'"):
        open_source(f"geobench:{root}/m-eurosat?partition=0.5x_train")


def test_folders_are_found_with_or_without_their_benchmark(root, tmp_path):
    path = root / "classification_v1.0/m-eurosat"
    keys = open_source(path).keys
    assert open_source(f"geobench:{path}").keys == open_source(f"geobench:{root}/m-eurosat").keys
    shutil.copytree(path, tmp_path / "eurosat")
    assert open_source(f"geobench:{tmp_path}/eurosat").keys == keys
    with pytest.raises(ConfigError, match=r"no such folder.*did you mean 'm-eurosat'"):
        open_source(f"geobench:{root}/m-eurosaat")
    shutil.copytree(path, tmp_path / "m-unknown")
    with pytest.raises(ConfigError, match="no GEO-Bench data set 'm-unknown'"):
        open_source(f"geobench:{tmp_path}/m-unknown")
    with pytest.raises(ConfigError, match="no option 'part'; did you mean 'partition'"):
        open_source(f"geobench:{root}/m-eurosat?part=default")


def test_a_source_travels_to_worker_processes(root):
    source = open_source(f"geobench:{root}/m-eurosat")
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(3).pixels["rgb"], source.read(3).pixels["rgb"])
    loader = make_loader(
        source, source.split("val"), batch_size=4, modalities=["rgb"], chip=16, train=False
    )
    (batch,) = loader
    assert tuple(batch.pixels["rgb"].shape) == (4, 3, 16, 16)


@pytest.mark.parametrize(
    "name",
    mostly_slow(["m-so2sat", "m-bigearthnet", "m-NeonTree", "m-forestnet"], fast=["m-so2sat"]),
)
def test_a_store_of_a_data_set_holds_the_same(root, tmp_path, name):
    source = open_source(f"geobench:{root}/{name}")
    store = prepare(source, tmp_path / "store")
    assert store.splits == source.splits
    for i, key in enumerate(source.keys):
        mine, theirs = source.read(i), store.read(store.index_of(key))
        assert (mine.geometry, mine.time) == (theirs.geometry, theirs.time)
        np.testing.assert_array_equal(mine.label, theirs.label)
        for modality, pixels in mine.pixels.items():
            np.testing.assert_array_equal(pixels, theirs.pixels[modality])
            ok = [np.broadcast_to(s.valid.get(modality, np.True_), pixels.shape)
                  for s in (mine, theirs)]  # fmt: skip
            np.testing.assert_array_equal(ok[0], ok[1])


def test_all_dates_of_a_file_are_a_series(tmp_path):
    write_geobench(tmp_path, "m-cashew-plant", size=SIZE, chips=(1, 1, 1), dates=3)
    last = open_source(f"geobench:{tmp_path}/m-cashew-plant")
    source = open_source(f"geobench:{tmp_path}/m-cashew-plant?dates=all")
    assert isinstance(source, GeoBenchSource)
    for index in range(len(source)):
        chip, images = source.read(index), source.series(index)
        np.testing.assert_array_equal(chip.label, last.read(index).label)
        assert [i.time for i in images] == ["2019-11-05", "2020-11-05", "2021-11-05"]
        for name, pixels in chip.pixels.items():
            assert chip.dates[name].tolist() == [18205.0, 18571.0, 18936.0]
            for date, image in enumerate(images):
                np.testing.assert_array_equal(pixels[date], image.pixels[name])
            np.testing.assert_array_equal(pixels[-1], last.read(index).pixels[name])
    # Without dates in its files, a data set has images.
    write_geobench(tmp_path, "m-eurosat", size=SIZE, chips=(1, 1, 1))
    assert not open_source(f"geobench:{tmp_path}/m-eurosat?dates=all").read(0).dates
    with pytest.raises(ConfigError, match="dates: last or all"):
        open_source(f"geobench:{tmp_path}/m-eurosat?dates=first")


def test_geometry_is_the_chips_and_crs_is_readable(root):
    chip = open_source(f"geobench:{root}/m-bigearthnet").read(2)
    assert 'AUTHORITY["EPSG","32634"]' in chip.geometry.crs
    assert chip.geometry.bounds == (302400.0, 5e6 - 10 * SIZE, 302400.0 + 10 * SIZE, 5e6)
    kiln = open_source(f"geobench:{root}/m-brick-kiln").read(1)
    assert kiln.geometry.crs == "EPSG:4326"
    assert kiln.geometry.bounds[0] == 91.0
    assert open_source(f"geobench:{root}/m-so2sat").read(0).geometry is None


GREEN = "03 - Green"


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (lambda f: rewrite(f, **{GREEN: None}), FormatError, f"lacks {GREEN}; it holds 01"),
        (lambda f: rewrite(f, **{GREEN: np.zeros((9, 9), "i2")}), FormatError,
         "rgb: bands differ in size: 9×9, 20×20"),
        (lambda f: rewrite(f, **{GREEN: np.zeros((2, 2), "c8")}), FormatError, "expected numbers"),
        (lambda f: rewrite(f, **{GREEN: np.zeros(4)}), FormatError, "expected numbers"),
        (lambda f: relabel(f, None), FormatError, "holds no label"),
        (lambda f: relabel(f, 10), ClassMapError, "a class from 0 to 9, got 10"),
        (lambda f: relabel(f, -1), ClassMapError, "got -1"),
        (lambda f: relabel(f, 1.5), ClassMapError, "got 1.5"),
        (lambda f: relabel(f, np.array([0, 1])), ClassMapError, r"got \[0 1\]"),
    ],
)  # fmt: skip
def test_damaged_chips_name_the_file_and_the_fault(copy, spoil, error, match):
    folder = spoil(copy("m-eurosat"))
    source = GeoBenchSource(folder)
    with pytest.raises(error, match=rf"id_0000\.hdf5.*{match}"):
        source.read(0)
    source.read(1)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "no pickle", "no dictionary"])
def test_files_that_are_no_chips(copy, damage):
    folder = copy("m-eurosat")
    file = folder / "id_0000.hdf5"
    data = file.read_bytes()
    if damage in ("no pickle", "no dictionary"):
        with h5py.File(file, "a") as opened:
            del opened.attrs["pickle"]
            if damage == "no dictionary":
                opened.attrs["pickle"] = str(pickled([1]))
    else:
        file.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"no"}[damage])
    with pytest.raises(FormatError, match=r"id_0000\.hdf5"):
        GeoBenchSource(folder).read(0)


@pytest.mark.parametrize(
    ("name", "label", "match"),
    [
        ("m-bigearthnet", np.zeros(19, np.int64), "expected 43 zeros and ones"),
        ("m-bigearthnet", 3, "expected 43 zeros and ones"),
        ("m-bigearthnet", np.full(43, 2), "expected 43 zeros and ones"),
    ],
)
def test_multi_label_vectors_are_checked(copy, name, label, match):
    folder = copy(name)
    with pytest.raises(ClassMapError, match=match):
        GeoBenchSource(relabel(folder, label)).read(0)


@pytest.mark.parametrize("value", [7, 255, -1, 0.5])
def test_a_label_map_outside_the_classes_is_an_error_not_a_class(copy, value):
    folder = rewrite(copy("m-chesapeake"), label=np.full((SIZE, SIZE), value))
    with pytest.raises(ClassMapError, match=rf"holds {value}; the classes are 0 to 6"):
        GeoBenchSource(folder).read(0)
    with pytest.raises(FormatError, match="no label map"):
        GeoBenchSource(rewrite(folder, label=None)).read(0)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("{", FormatError, "cannot be read as JSON"),
        ("[]", FormatError, "expected an object"),
        ('{"train": ["id_0000"], "validation": []}', FormatError, "train, valid, test"),
        ('{"train": "id_0000"}', FormatError, "expected a list of names"),
        ('{"train": [3]}', FormatError, "expected a list of names"),
        ('{"train": [], "test": []}', SplitError, "lists no chip"),
        ('{"train": ["id_0000", "../m-eurosat/id_0001"]}', FormatError, "is not there .1 of 2"),
        ('{"train": ["id_0000", "id_0000"]}', SplitError, "'id_0000' is listed in 'train' and"),
    ],
)
def test_partitions_that_cannot_be_used(copy, text, error, match):
    folder = copy("m-eurosat")
    (folder / "default_partition.json").write_text(text)
    with pytest.raises(error, match=match):
        GeoBenchSource(folder)


def test_generator_is_reproducible_and_complains(root, tmp_path):
    again = write_geobench(tmp_path, "m-so2sat", size=SIZE, seed=3)
    for file in again.glob("*.hdf5"):
        with (
            h5py.File(file) as a,
            h5py.File(root / "classification_v1.0/m-so2sat" / file.name) as b,
        ):
            assert list(a) == list(b)
            assert all((a[k][()] == b[k][()]).all() for k in a)
            assert a.attrs["pickle"] == b.attrs["pickle"]
    with pytest.raises(ConfigError, match="of one of m-bigearthnet"):
        write_geobench(tmp_path, "m-elsewhere")
    (tmp_path / "segmentation_v1.0").write_text("a file in the way")
    with pytest.raises(OutputError):
        write_geobench(tmp_path, "m-nz-cattle", size=SIZE)


@pytest.mark.skipif(not KILNS.is_dir(), reason="its data need rasterio")
def test_real_chips():
    """Five m-brick-kiln chips of an early release, whose classes are called ccb.io.dataset."""
    source = open_source(f"geobench:{KILNS}")
    assert sorted(source.keys)[0] == "examples_0_12"
    assert set(source.split_of) == {""}, "the same five chips are train, valid and test there"
    for i, key in enumerate(source.keys):
        chip = source.read(i)
        with h5py.File(KILNS / f"{key}.hdf5") as file:
            for name, places in {
                "rgb": ("04 - Red", "03 - Green", "02 - Blue"),
                "ebands": ("07 - Vegetation Red Edge", "08 - NIR"),
                "sired": ("08A - Vegetation Red Edge", "09 - Water vapour"),
            }.items():
                raw = np.stack([file[p][()] for p in places])
                assert chip.pixels[name].dtype == np.float32
                np.testing.assert_array_equal(chip.pixels[name], raw)
        assert chip.label in (0, 1)
        assert chip.calibration["rgb"].level == "l2a"
    mean, _ = source.statistics().mean_std("rgb")
    assert ((mean > 0.05) & (mean < 0.12)).all(), "reflectance of fields in Bangladesh"


@pytest.mark.skipif(not KILNS.is_dir(), reason="its data need rasterio")
def test_errors_are_told_without_a_traceback_of_others(tmp_path):
    for broken in ("geobench:", "geobench:nowhere/m-eurosat", f"geobench:{KILNS}?partition=x"):
        with pytest.raises(MultiMAEError):
            open_source(broken)
