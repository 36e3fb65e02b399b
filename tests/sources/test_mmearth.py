"""MMEarth folders: every number is compared with the HDF5 file as h5py itself reads it."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import shutil

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from multimae_eo.errors import ClassMapError, ConfigError, FormatError, MultiMAEError, SplitError
from multimae_eo.loading.open_source import open_source
from multimae_eo.sources.mmearth import MMEarthSource
from tests.support.mmearth_files import BANDS, write_mmearth

CHIPS, SIZE, STEM = 12, 16, "data_100k_v001"

# Where the facts of the data set say that a modality's bands are, and what is never observed.
EXPECTED: dict[str, tuple[str, list[str] | list[int]]] = {
    "rgb": ("sentinel2", ["B4", "B3", "B2"]),
    "ired": ("sentinel2", ["B5", "B6", "B7"]),
    "sired": ("sentinel2", ["B11", "B12"]),
    "ebands": ("sentinel2", ["B8A", "B8"]),
    "depth": ("aster", [0]),
    "slope": ("aster", [1]),
    "semseg": ("esa_worldcover", [0]),
    "dynamic_world": ("dynamic_world", [0]),
    "canopy_height": ("canopy_height_eth", [0]),
    "sentinel1_asc_desc": ("sentinel1", list(range(8))),
}


def unobserved(key, raw):
    if key == "sentinel1":
        return np.isneginf(raw)
    values = {"sentinel2": [0], "esa_worldcover": [0, 255], "dynamic_world": [0],
              "canopy_height_eth": [-1], "aster": []}  # fmt: skip
    return np.isin(raw, values[key])


@pytest.fixture(scope="module", params=[False, True], ids=["gzip", "merged"])
def folder(request, tmp_path_factory):
    splits = {"train": [0, 2, 4, 6, 8, 10, 11], "val": [1, 3], "test": [5]}
    where = tmp_path_factory.mktemp("mmearth")
    return write_mmearth(where, chips=CHIPS, size=SIZE, seed=3, merged=request.param, splits=splits)


@pytest.fixture(scope="module")
def source(folder):
    return MMEarthSource(folder)


@pytest.fixture
def copy(folder, tmp_path):
    """A folder of one's own to damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def raw_file(folder):
    return h5py.File(folder / f"{STEM}.h5", "r")


def test_the_written_folder_is_as_documented(folder, request):
    merged = "merged" in request.node.name
    with raw_file(folder) as file:
        assert set(file) == {
            "sentinel2", "sentinel2_cloudmask", "sentinel2_cloudprod", "sentinel2_scl",
            "sentinel1", "aster", "canopy_height_eth", "dynamic_world", "esa_worldcover", "era5",
            "lat", "lon", "month", "biome", "eco_region", "metadata",
        }  # fmt: skip
        kinds = {k: (v.dtype.str[1:], v.shape[1:]) for k, v in file.items() if k != "metadata"}
        assert kinds["sentinel2"] == ("u2", (13, SIZE, SIZE))
        assert kinds["sentinel2_scl"] == ("u1", (1, SIZE, SIZE))
        assert kinds["sentinel1"] == ("f4", (8, SIZE, SIZE))
        assert kinds["aster"] == ("i2", (2, SIZE, SIZE))
        assert kinds["canopy_height_eth"] == ("i1", (2, SIZE, SIZE))
        assert kinds["eco_region"] == ("u2", (846,))
        assert kinds["biome"] == ("u1", (14,))
        assert file["metadata"].dtype.names == (("tile_id",) if merged else ("tile_id", "S2_type"))
        assert file["sentinel2"].chunks == (None if merged else (1, 13, SIZE, SIZE))
        assert file["sentinel2"].compression == (None if merged else "gzip")
        info = json.loads((folder / f"{STEM}_tile_info.json").read_text())
        level = [info[i.decode()]["S2_type"] for i in file["metadata"]["tile_id"]]
        assert set(level) == {"l1c", "l2a"}
        cirrus = file["sentinel2"][:, BANDS.index("B10")]
        for i in range(CHIPS):
            assert (level[i] == "l2a") == (not cirrus[i].any())
        assert np.isinf(file["era5"][()]).any()
        assert np.isnan(file["era5"][()]).any()
        cover = set(np.unique(file["esa_worldcover"][()]))
        assert {0, 255} < cover
        assert cover <= {0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100, 255}


def test_pixels_and_validity_are_the_files_own(folder, source):
    assert list(source.modalities) == [
        "rgb", "depth", "semseg", "ired", "sired", "ebands", "slope", "dynamic_world",
        "canopy_height", "sentinel1_asc_desc",
    ]  # fmt: skip
    with raw_file(folder) as file:
        for i in range(CHIPS):
            sample = source.read(i)
            for name, (key, bands) in EXPECTED.items():
                at = [BANDS.index(b) if isinstance(b, str) else b for b in bands]
                raw = file[key][i][at]
                hidden = unobserved(key, raw)
                if hidden.all():
                    assert name not in sample.pixels
                    continue
                pixels = sample.pixels[name]
                valid = sample.valid.get(name, np.ones_like(hidden))
                assert pixels.dtype == raw.dtype
                np.testing.assert_array_equal(np.broadcast_to(valid, hidden.shape), ~hidden)
                np.testing.assert_array_equal(pixels[~hidden], raw[~hidden])
                assert not pixels[hidden].any()


def test_absent_and_partly_valid_bands(source):
    no_descending = source.read(3)
    assert "canopy_height" not in no_descending.pixels
    valid = no_descending.valid["sentinel1_asc_desc"]
    assert valid.shape == (8, SIZE, SIZE)
    assert valid.any(axis=(1, 2)).tolist() == [True, True] + [False] * 6
    both = source.read(0).valid["sentinel1_asc_desc"].any(axis=(1, 2))
    assert both.tolist() == [True, True, False, False] * 2


def test_sentinel2_is_reflectance_after_calibration(source):
    sample = source.read(0)
    how = sample.calibration["rgb"]
    assert (how.scale, how.offset) == (1e-4, 0.0)
    assert source.modalities["rgb"].unit == "reflectance"
    assert 0.01 < sample.pixels["rgb"].mean() * how.scale < 0.9


def test_keys_time_level_and_place_come_from_tile_info(folder, source):
    info = json.loads((folder / f"{STEM}_tile_info.json").read_text())
    with raw_file(folder) as file:
        ids = [i.decode() for i in file["metadata"]["tile_id"]]
        biome = file["biome"][()].argmax(axis=1)
    assert list(source.keys) == ids != list(info)
    for i, key in enumerate(ids):
        sample = source.read(i, ["rgb"])
        assert sample.time == info[key]["S2_DATE"]
        assert sample.calibration["rgb"].level == info[key]["S2_type"]
        assert sample.label == biome[i]
        left, bottom, right, top = sample.geometry.bounds
        assert (left + right) / 2 == pytest.approx(info[key]["lon"])
        assert (bottom + top) / 2 == pytest.approx(info[key]["lat"])
        height = math.radians(top - bottom) * 6_371_000
        width = math.radians(right - left) * 6_371_000 * math.cos(math.radians(info[key]["lat"]))
        assert (height, width) == pytest.approx((SIZE * 10, SIZE * 10), rel=5e-3)
    assert len(source.class_names) == 14


def test_splits_and_unlisted_tiles(source):
    assert source.split("val").tolist() == [1, 3]
    assert source.split("test").tolist() == [5]
    train, val = source.train_val()
    assert train.tolist() == [0, 2, 4, 6, 8, 10, 11]
    assert val.tolist() == [1, 3]
    assert [source.split_of[i] for i in (7, 9)] == ["unlisted"] * 2


def test_published_statistics_are_those_of_the_pixels(source):
    """The pass over the tiles skips nodata and keeps levels apart, as the published numbers do."""
    published, counted = source.published_statistics(), source.statistics()
    for name, levels in counted.moments.items():
        assert set(levels) == set(published.moments[name])
        for level, mine in levels.items():
            theirs, seen = published.moments[name][level], mine.count > 0
            np.testing.assert_allclose(theirs.mean[seen], mine.mean[seen], rtol=1e-6)
            np.testing.assert_allclose(theirs.std[seen], mine.std[seen], rtol=1e-5)
            np.testing.assert_allclose(theirs.minimum[seen], mine.minimum[seen], rtol=1e-6)
            np.testing.assert_allclose(theirs.maximum[seen], mine.maximum[seen], rtol=1e-6)
    assert published.class_counts["semseg"].sum() == 0


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(EXPECTED)), min_size=1, unique=True),
    index=st.integers(0, CHIPS - 1),
)
def test_reading_some_modalities_is_reading_all_and_choosing(source, names, index):
    some, chosen = source.read(index, names), source.read(index).select(names)
    assert list(some.pixels) == list(chosen.pixels)
    assert set(some.valid) == set(chosen.valid)
    for name in some.pixels:
        np.testing.assert_array_equal(some.pixels[name], chosen.pixels[name])


def test_opened_by_folder_by_prefix_and_by_file(folder):
    for spec in (folder, f"mmearth:{folder}", f"mmearth:{folder / STEM}.h5"):
        assert len(open_source(spec)) == CHIPS


def test_a_file_without_some_arrays_and_without_metadata(copy):
    with h5py.File(copy / f"{STEM}.h5", "a") as file:
        ids = [i.decode() for i in file["metadata"]["tile_id"]]
        for key in ("sentinel1", "aster", "biome", "metadata"):
            del file[key]
    path = copy / f"{STEM}_tile_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({str(i): info[key] for i, key in enumerate(ids)}))
    source = MMEarthSource(copy)
    assert not {"depth", "slope", "sentinel1_asc_desc"} & set(source.modalities)
    assert list(source.keys) == [str(i) for i in range(CHIPS)]
    assert source.class_names == ()
    sample = source.read(2)
    assert sample.label is None
    assert sample.calibration["rgb"].level == info[ids[2]]["S2_type"]
    with pytest.raises(ConfigError, match="no modality 'depth'"):
        source.read(0, ["depth"])


def sums(source, indices):
    return [int(source.read(i, ["rgb"]).pixels["rgb"].astype(np.int64).sum()) for i in indices]


def test_reads_are_the_same_in_forked_workers_and_after_pickling(folder, source):
    order = list(range(CHIPS)) * 8
    expected = sums(source, order)  # the parent has the file open when it forks
    with multiprocessing.get_context("fork").Pool(3) as pool:
        jobs = [pool.apply_async(sums, (source, order)) for _ in range(6)]
        assert sums(source, order) == expected
        assert all(job.get(30) == expected for job in jobs)
    thawed = pickle.loads(pickle.dumps(source))
    assert thawed._file is None
    assert sums(thawed, order) == expected


def test_an_open_file_survives_a_fork_that_inherits_the_object(source):
    expected = sums(source, range(CHIPS))
    child = os.fork()
    if child == 0:
        os._exit(0 if sums(source, range(CHIPS)) == expected else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert sums(source, range(CHIPS)) == expected


class Rows(Dataset):
    """Of the module, because workers that are not forked import it."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return CHIPS

    def __getitem__(self, index):
        return self.source.read(index)


def test_dataloader_workers_read_concurrently(source):
    expected = [source.read(i) for i in range(CHIPS)]
    got = list(DataLoader(Rows(source), batch_size=None, num_workers=2))
    for mine, theirs in zip(expected, got, strict=True):
        assert mine.key == theirs.key
        for name, pixels in mine.pixels.items():
            np.testing.assert_array_equal(np.asarray(theirs.pixels[name]), pixels)


# Each damage returns the error expected and a word that it must say.


def remove(suffix):
    def damage(folder):
        (folder / f"{STEM}{suffix}").unlink()
        return ConfigError, f"{STEM}{suffix} is missing"

    return damage


def truncate(folder):
    path = folder / f"{STEM}.h5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return FormatError, "truncated"


def no_hdf5(folder):
    (folder / f"{STEM}.h5").write_bytes(b"not HDF5")
    return FormatError, f"{STEM}.h5"


def replace_array(key, change):
    def damage(folder):
        with h5py.File(folder / f"{STEM}.h5", "a") as file:
            values = change(file[key][()])
            del file[key]
            file[key] = values
        return FormatError, key

    return damage


def edit_json(suffix, change, error, word):
    def damage(folder):
        path = folder / f"{STEM}{suffix}"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(change(record)))
        return error, word

    return damage


def half_json(folder):
    path = folder / f"{STEM}_tile_info.json"
    path.write_text(path.read_text()[:500])
    return FormatError, "JSON"


def without_first(record):
    return dict(list(record.items())[1:])


def level_of_first(level):
    def change(record):
        key = next(iter(record))
        return {**record, key: {**record[key], "S2_type": level}}

    return change


def second_data_set(folder):
    (folder / "data_1M_v001.h5").write_bytes(b"")
    return ConfigError, "2 MMEarth data sets"


DAMAGES = {
    "no h5": remove(".h5"),
    "no splits": remove("_splits.json"),
    "no tile_info": remove("_tile_info.json"),
    "no band_stats": remove("_band_stats.json"),
    "two data sets": second_data_set,
    "truncated": truncate,
    "not HDF5": no_hdf5,
    "wrong type": replace_array("sentinel2", lambda a: a.astype(np.float32)),
    "signed classes": replace_array("esa_worldcover", lambda a: a.astype(np.int16)),
    "12 bands": replace_array("sentinel2", lambda a: a[:, :12]),
    "fewer tiles": replace_array("aster", lambda a: a[:-1]),
    "no channel axis": replace_array("esa_worldcover", lambda a: a[:, 0]),
    "scalar array": replace_array("sentinel2", lambda a: a[0, 0, 0, 0]),
    "biome": replace_array("biome", lambda a: a[:, :9]),
    "short metadata": replace_array("metadata", lambda a: a[:-1]),
    "equal ids": replace_array("metadata", lambda a: np.repeat(a[:1], len(a))),
    "plain metadata": replace_array("metadata", lambda a: np.arange(len(a))),
    "half a JSON": half_json,
    "JSON list": edit_json("_tile_info.json", list, FormatError, "JSON object"),
    "tile without record": edit_json("_tile_info.json", without_first, FormatError, "no record"),
    "unknown level": edit_json(
        "_tile_info.json", level_of_first("l3"), FormatError, "expected l1c or l2a, got 'l3'"
    ),
    "level is a list": edit_json("_tile_info.json", level_of_first(["l1c"]), FormatError, "l1c"),
    "split beyond the end": edit_json(
        "_splits.json", lambda r: {**r, "val": [CHIPS]}, SplitError, f"row {CHIPS} is out of range"
    ),
    "split below 0": edit_json("_splits.json", lambda r: {"val": [-1]}, SplitError, "row -1"),
    "split overlap": edit_json("_splits.json", lambda r: {**r, "val": [0]}, SplitError, "twice"),
    "split twice": edit_json("_splits.json", lambda r: {"val": [0, 0]}, SplitError, "twice"),
    "split of text": edit_json(
        "_splits.json", lambda r: {"val": ["0"]}, FormatError, "row numbers"
    ),
    "split of flags": edit_json("_splits.json", lambda r: {"val": [True]}, FormatError, "row num"),
}


@pytest.mark.parametrize("folder", [False], indirect=True, ids=["gzip"])
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told_with_the_file_and_what_is_wrong(copy, name):
    error, word = DAMAGES[name](copy)
    with pytest.raises(error) as caught:
        MMEarthSource(copy)
    assert word in str(caught.value)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", [False], indirect=True, ids=["gzip"])
def test_a_damaged_chunk_is_told_with_its_tile(copy):
    path = copy / f"{STEM}.h5"
    with h5py.File(path) as file:
        chunk = file["sentinel2"].id.get_chunk_info(4)
    data = bytearray(path.read_bytes())
    start = chunk.byte_offset
    data[start : start + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(data)
    damaged = MMEarthSource(copy)
    damaged.read(3)
    with pytest.raises(FormatError, match=f"sentinel2: tile '{damaged.keys[4]}'"):
        damaged.read(4)


@pytest.mark.parametrize("folder", [False], indirect=True, ids=["gzip"])
@settings(max_examples=25, deadline=None)
@given(cut=st.floats(0, 0.999))
def test_any_truncation_is_a_user_error(folder, tmp_path_factory, cut):
    where = tmp_path_factory.mktemp("cut") / "x"
    shutil.copytree(folder, where)
    path = where / f"{STEM}.h5"
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    with pytest.raises(MultiMAEError, match=STEM):
        MMEarthSource(where)


def test_a_class_outside_the_legend_is_refused(copy):
    with h5py.File(copy / f"{STEM}.h5", "a") as file:
        file["esa_worldcover"][0, 0, 0, 0] = 11
    source = MMEarthSource(copy)
    with pytest.raises(ClassMapError, match="class id 11"):
        source.read(0)


@pytest.mark.parametrize(
    ("key", "entry"),
    [("sentinel2_l2a", None), ("aster", {"mean": [1.0], "std": [1.0], "min": [0], "max": [2]})],
)
def test_band_stats_that_lack_something_are_refused(copy, key, entry):
    path = copy / f"{STEM}_band_stats.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, key: entry}))
    with pytest.raises(FormatError, match=key.replace("_l", " l")):
        MMEarthSource(copy).published_statistics()


def test_no_folder_and_an_empty_folder(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        MMEarthSource(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="0 MMEarth data sets"):
        MMEarthSource(tmp_path)


def test_default_splits_are_all_train(tmp_path):
    source = MMEarthSource(write_mmearth(tmp_path, chips=3, size=4, seed=0))
    assert source.splits == ("train",)
    train, val = source.train_val()
    assert sorted([*train, *val]) == [0, 1, 2]
