"""Defects of the reference's reader, each made impossible. Numbers are those of docs/method.md."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from multimae_eo.errors import FormatError
from multimae_eo.sample import collate
from multimae_eo.sources.mmearth import MMEarthSource
from multimae_eo.statistics import Statistics
from tests.support.mmearth_files import write_mmearth

CHIPS, SIZE, STEM = 12, 16, "data_100k_v001"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_mmearth(tmp_path_factory.mktemp("mmearth"), chips=CHIPS, size=SIZE, seed=1)


@pytest.fixture
def source(folder):
    return MMEarthSource(folder)


@pytest.fixture(scope="module")
def raw(folder):
    with h5py.File(folder / f"{STEM}.h5") as file:
        return {key: file[key][()] for key in file}


def test_2_worldcover_nodata_is_never_a_class(source, raw):
    """0 (in the files) and 255 (documented) became "tree cover" or a trained twelfth class."""
    assert {0, 255} <= set(np.unique(raw["esa_worldcover"]))
    counts = np.zeros(11)
    for i in range(CHIPS):
        sample = source.read(i, ["semseg"])
        ids, valid = sample.pixels["semseg"], sample.valid.get("semseg")
        truth = raw["esa_worldcover"][i]
        hidden = (truth == 0) | (truth == 255)
        np.testing.assert_array_equal(~hidden if valid is None else valid, ~hidden)
        np.testing.assert_array_equal(ids[~hidden], truth[~hidden])
    modality = source.modalities["semseg"]
    assert not {0, 255} & set(modality.class_ids)
    counts = source.statistics().class_counts["semseg"]
    for class_id, count in zip(modality.class_ids, counts, strict=True):
        assert count == (raw["esa_worldcover"] == class_id).sum()


def test_3_the_file_is_opened_once_and_every_array_read_once(source, monkeypatch):
    """The file was reopened for every sample, and Sentinel-2 read four times per sample."""
    opened, read = [], []

    class CountedFile(h5py.File):
        def __init__(self, *args, **options):
            opened.append(args)
            super().__init__(*args, **options)

    fetch = h5py.Dataset.__getitem__

    def counted(self, index, *rest, **options):
        read.append((self.name.removeprefix("/"), index))
        return fetch(self, index, *rest, **options)

    monkeypatch.setattr(h5py, "File", CountedFile)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    for i in range(CHIPS):
        source.read(i)
        source.read(i, ["rgb", "ired", "sired", "ebands"])
    assert len(opened) == 1
    images = ["aster", "canopy_height_eth", "dynamic_world", "esa_worldcover", "sentinel1"]
    for i in range(CHIPS):
        assert sorted(k for k, index in read if index == i) == sorted(
            [*images, "sentinel2", "sentinel2", "biome", "biome"]
        )


def test_4_every_tile_has_statistics_of_its_own_level(folder, source, raw):
    """L2A statistics were applied to L1C tiles."""
    info = json.loads((folder / f"{STEM}_tile_info.json").read_text())
    ids = [i.decode() for i in raw["metadata"]["tile_id"]]
    levels = [info[key]["S2_type"] for key in ids]
    assert {levels.count("l1c"), levels.count("l2a")}.isdisjoint({0})
    optical = source.modalities.select(["rgb", "ired", "sired", "ebands"])
    samples = [source.read(i, list(optical)) for i in range(CHIPS)]
    batch = collate(samples, optical)
    for column in range(len(optical)):
        got = [("l1c", "l2a")[k] for k in batch.level[:, column].tolist()]
        assert got == levels

    found = Statistics(source.modalities)
    for i in range(CHIPS):
        found.update(source.read(i))
    published = source.published_statistics()
    for statistics in (found, published):
        for level in ("l1c", "l2a"):
            tiles = raw["sentinel2"][[i for i in range(CHIPS) if levels[i] == level]]
            blue = tiles[:, 1].astype(np.float64)
            expected = blue[blue > 0].mean() * 1e-4
            assert statistics.moments["rgb"][level].mean[2] == pytest.approx(expected, rel=1e-6)
        mean, _ = statistics.mean_std("rgb")
        assert mean.shape == (2, 3)
        assert mean[0, 2] > mean[1, 2] + 0.02, "the air's haze is in L1C only"


def test_5_nodata_never_becomes_data(source, raw):
    """0 was normalised to a large negative number, and -inf to NaN."""
    assert (raw["sentinel2"][:, 1] == 0).any()
    assert np.isneginf(raw["sentinel1"]).any()
    assert (raw["canopy_height_eth"] == -1).any()
    for i in range(CHIPS):
        sample = source.read(i)
        for name, pixels in sample.pixels.items():
            assert np.isfinite(pixels).all()
            valid = np.broadcast_to(sample.valid.get(name, np.True_), pixels.shape)
            assert valid.any()
            for value in source.modalities[name].nodata:
                assert not (pixels[valid] == value).any()
    for levels in source.statistics().moments.values():
        for moments in levels.values():
            seen = moments.count > 0
            assert np.isfinite(moments.mean[seen]).all()
            assert np.isfinite(moments.std[seen]).all()
    rgb = source.statistics().moments["rgb"]
    assert min(m.minimum.min() for m in rgb.values()) > 0
    observed = (raw["sentinel2"][:, [3, 2, 1]] > 0).sum(axis=(0, 2, 3))
    np.testing.assert_array_equal(sum(m.count for m in rgb.values()), observed)


def test_11_importing_reads_no_file_and_any_folder_will_do(folder, tmp_path):
    """Statistics were read at import from a path relative to the working directory."""
    code = f"""
import sys, h5py, numpy, json, yaml
opened = []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        opened.append(arguments[0])
sys.addaudithook(watch)
import multimae_eo.sources.mmearth as mmearth
data = [p for p in opened if not p.endswith((".py", ".pyc", ".so"))
        and ".pyc." not in p and "__pycache__" not in p]
assert not data, data
source = mmearth.MMEarthSource({str(folder)!r})
assert not any(p.endswith("_band_stats.json") for p in opened), "only when it is asked for"
source.published_statistics()
print(len(source), source.read(0).pixels["rgb"].shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{CHIPS} (3, {SIZE}, {SIZE})"


def rewritten(folder, where, change):
    """A copy of the folder whose arrays are those that ``change`` returns, by name."""
    copy = shutil.copytree(folder, where / "copy")
    with h5py.File(copy / f"{STEM}.h5", "a") as file:
        for key, values in change({key: file[key][()] for key in file}).items():
            del file[key]
            file[key] = values
    return copy


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        (("S2_type", "tile_id", "meta_id"), "S100"),
        (("S2_type", "meta_id", "other"), "S100"),
        (("meta_id", "S2_type"), "i8"),
        (("S2_type", "number", "key"), "S100"),
    ],
)
def test_ids_are_found_by_their_fields_name(folder, tmp_path, source, raw, fields, kind):
    """The first field was taken for the id by its position, whatever it held."""
    expected = next(f for f in ("tile_id", "meta_id", "key") if f in fields)
    kinds = dict.fromkeys(fields, "S10") | {"number": "i4", expected: kind}
    records = np.zeros(CHIPS, dtype=[(f, kinds[f]) for f in fields])
    records[expected] = raw["metadata"]["tile_id"]
    renamed = MMEarthSource(rewritten(folder, tmp_path, lambda arrays: {"metadata": records}))
    assert list(renamed.keys) == list(source.keys)
    assert renamed.read(3).time == source.read(3).time


def test_metadata_without_ids_is_refused(folder, tmp_path):
    levels = np.zeros(CHIPS, dtype=[("S2_type", "S10"), ("number", "i4")])
    copy = rewritten(folder, tmp_path, lambda arrays: {"metadata": levels})
    with pytest.raises(FormatError, match="tile_id"):
        MMEarthSource(copy)


def test_nan_and_infinities_are_never_valid(folder, tmp_path, source, raw):
    """Older files mark unobserved weather and radar by inf, newer ones by NaN: both are fill."""

    def change(arrays):
        radar = arrays["sentinel1"]
        radar[:, 0, 0, :3] = (np.nan, np.inf, -np.inf)
        arrays["era5"][:, ::2], arrays["era5"][:, 1::2] = np.nan, np.inf
        return {"sentinel1": radar, "era5": arrays["era5"]}

    copy = rewritten(folder, tmp_path, change)
    path = copy / f"{STEM}_tile_info.json"
    info = json.loads(path.read_text())
    for record in info.values():
        record["era5"] = [np.nan, np.inf, -np.inf] * 4
    path.write_text(json.dumps(info))  # NaN and Infinity, as Python's writers leave them
    assert not np.isfinite(raw["era5"]).all()
    changed = MMEarthSource(copy)
    for i in range(CHIPS):
        sample = changed.read(i)
        valid = sample.valid["sentinel1_asc_desc"]
        assert not valid[0, 0, :3].any()
        for name, pixels in sample.pixels.items():
            assert np.isfinite(pixels).all(), name
        assert not sample.pixels["sentinel1_asc_desc"][0, 0, :3].any()
        # Weather is no modality: not one of its values reaches a sample.
        assert list(sample.pixels) == list(source.read(i).pixels)
    for statistics in (changed.statistics(), changed.published_statistics()):
        for levels in statistics.moments.values():
            for moments in levels.values():
                assert np.isfinite(moments.mean[moments.count > 0]).all()
