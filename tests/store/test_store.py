"""The chip store gives back what went in, and says clearly what is wrong with it."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from multimae_eo import open_source
from multimae_eo.errors import ConfigError, DataError, FormatError, OutputError
from multimae_eo.modality import ModalitySet, rename
from multimae_eo.sample import Sample
from multimae_eo.sources.base import ConcatSource
from multimae_eo.store import reader
from multimae_eo.store.append import append
from multimae_eo.store.reader import ChipStore
from multimae_eo.store.writer import prepare
from tests.support.marks import mostly_slow
from tests.support.tiny_source import (
    BrokenSource,
    TinySource,
    UnevenSource,
    assert_same_sample,
    files_of,
)


@pytest.fixture
def source() -> TinySource:
    return TinySource(12)


@pytest.fixture
def store(source: TinySource, tmp_path: Path) -> ChipStore:
    return prepare(source, tmp_path / "store", shard_chips=5)


@pytest.mark.parametrize("labels", ["none", "index", "value", "vector", "map"])
def test_every_chip_comes_back_to_the_bit(tmp_path, labels):
    source = TinySource(12, labels=labels)
    store = prepare(source, tmp_path / "store", shard_chips=5)
    assert (store.keys, store.split_of) == (source.keys, source.split_of)
    assert (store.name, store.class_names) == (source.name, source.class_names)
    assert store.modalities == source.modalities
    for i in range(len(source)):
        assert_same_sample(source, source.read(i), store.read(i))
        some = ["landcover", "rgb"]
        assert_same_sample(source, source.read(i).select(some), store.read(i, some))


def test_open_source_opens_it(store):
    again = open_source(store.path)
    assert isinstance(again, ChipStore)
    assert again.index_of("chip-7") == 7
    assert again.split("test").tolist() == [4, 10]


def test_a_batch_equals_the_sources(source, store):
    keys = ["chip-3", "chip-0", "chip-11"]
    ours, theirs = store.batch(keys), source.batch(keys)
    assert (ours.present == theirs.present).all()
    assert all((ours.pixels[n] == theirs.pixels[n]).all() for n in theirs.pixels)
    assert (ours.labels == theirs.labels).all()


def test_sparse_shards_hold_only_chips_that_have_the_modality(store):
    # elevation is lacking in chips 0, 4, 8; rgb in 2, 6, 10 (shards of five chips).
    shapes = [np.load(store.path / f"elevation/{s:05d}.npy").shape for s in range(3)]
    assert shapes == [(3, 1, 8, 8), (4, 1, 8, 8), (2, 1, 8, 8)]
    assert store.rows("elevation").tolist() == [-1, 0, 1, 2, -1, 0, 1, 2, -1, 3, 0, 1]


def test_validity_is_written_only_where_a_pixel_is_invalid(store):
    written = sorted(p.relative_to(store.path).as_posix() for p in store.path.rglob("*.valid.npy"))
    # Chips 0, 3, 6, 9 have invalid optical pixels, but 6 lacks the modality.
    assert written == ["rgb/00000.valid.npy", "rgb/00001.valid.npy"]
    bits = np.load(store.path / "rgb/00000.valid.npy")
    assert (bits.dtype, bits.shape) == (np.uint8, (4, 3, 16, 2))


def test_all_valid_masks_are_not_written(tmp_path):
    class Masked(TinySource):
        def read(self, index, names=None):
            sample = super().read(index, names)
            valid = {n: np.ones((1, *p.shape[1:]), bool) for n, p in sample.pixels.items()}
            return replace(sample, valid=valid)

    store = prepare(Masked(4), tmp_path / "store")
    assert not list(store.path.rglob("*.valid.npy"))
    assert store.read(1).valid == {}


def test_the_index_is_a_plain_parquet_table(source, store):
    table = pq.read_table(store.path / "index.parquet")
    assert table["key"].to_pylist() == source.keys
    assert table["label"].to_pylist() == [i % 3 for i in range(12)]
    assert table["rgb/present"].to_pylist() == [i % 4 != 2 for i in range(12)]
    assert table["rgb/level"].to_pylist()[:3] == ["l2a", "l1c", ""]
    fraction = source.read(3).valid["rgb"].mean()
    assert table["rgb/valid_fraction"][3].as_py() == pytest.approx(fraction, abs=0)
    assert table["crs"].to_pylist()[:5] == ["EPSG:32630", "EPSG:32631"] * 2 + [None]
    order, kind, rings, points, *ring = struct.unpack("<BIII10d", table["geometry"][1].as_py())
    assert (order, kind, rings, points) == (1, 3, 1, 5), "a little-endian WKB polygon"
    assert ring == [1, 0, 1.5, 0, 1.5, 2.25, 1, 2.25, 1, 0]


def test_statistics_are_kept_per_split(source, store, monkeypatch):
    def no_reading(*_: object) -> Sample:
        raise AssertionError("pixels were read")

    whole, train = np.arange(12), store.split("train")
    slow = {"whole": source.statistics(whole), "train": source.statistics(train)}
    monkeypatch.setattr(ChipStore, "read", no_reading)
    for chosen, expected in ((None, "whole"), (whole[::-1], "whole"), (train, "train")):
        found = store.statistics(chosen)
        for name, levels in slow[expected].moments.items():
            for level, theirs in levels.items():
                mine = found.moments[name][level]
                np.testing.assert_array_equal(mine.count, theirs.count)
                np.testing.assert_array_equal(mine.minimum, theirs.minimum)
                np.testing.assert_allclose(mine.mean, theirs.mean, rtol=1e-12)
                np.testing.assert_allclose(mine.m2, theirs.m2, rtol=1e-9)
        for name, counts in slow[expected].class_counts.items():
            np.testing.assert_array_equal(found.class_counts[name], counts)


@pytest.mark.parametrize("indices", [[0, 1], [0, 1, 3, 6, 7, 9, 9]])
def test_statistics_of_other_chips_take_a_pass(source, store, indices):
    # The second is the training split, but names a chip twice.
    assert store.statistics(indices).fingerprint == source.statistics(indices).fingerprint


def test_pickling_carries_only_the_path(store):
    store.read(3)
    data = pickle.dumps(store)
    assert len(data) < 400
    assert_same_sample(store, store.read(3), pickle.loads(data).read(3))


def test_opening_reads_no_column(store, monkeypatch):
    asked = []
    original = ChipStore._column
    monkeypatch.setattr(ChipStore, "_column", lambda s, n: asked.append(n) or original(s, n))
    start = time.perf_counter()
    again = ChipStore(store.path)
    assert time.perf_counter() - start < 0.5, "generous for a loaded machine; 2 ms when idle"
    assert len(again) == 12
    assert asked == []
    again.pixels(1, "rgb")
    assert asked == ["rgb/row"] * len(asked)


def test_few_files_are_open_at_once(store, source, monkeypatch):
    monkeypatch.setattr(reader, "_OPEN_MAPS", 2)
    for i in [*range(12), *range(12)]:
        assert_same_sample(source, source.read(i), store.read(i))
    assert len(store._maps) <= 2


def test_the_result_does_not_depend_on_the_number_of_workers(source, store, tmp_path):
    seen: list[tuple[int, int]] = []
    prepare(
        source, tmp_path / "two", shard_chips=5, workers=2, progress=lambda *at: seen.append(at)
    )
    assert seen == [(5, 12), (10, 12), (12, 12)]
    assert files_of(tmp_path / "two") == files_of(store.path)


def test_a_finished_store_is_left_as_it_is(source, store, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in store.path.rglob("*")}
    monkeypatch.setattr(TinySource, "read", None)
    prepare(source, store.path, shard_chips=5)
    assert {p: p.stat().st_mtime_ns for p in store.path.rglob("*")} == before


def other_keys(source: TinySource) -> None:
    source.keys = [f"other-{i}" for i in range(len(source))]


def other_splits(source: TinySource) -> None:
    source.split_of = ["train"] * len(source)


def other_modalities(source: TinySource) -> None:
    source.modalities = source.modalities.select(["rgb", "elevation"])


def other_scale(source: TinySource) -> None:
    changed = replace(source.modalities["elevation"], scale=0.5)
    source.modalities = ModalitySet([source.modalities["rgb"], changed])


@pytest.mark.parametrize("change", [other_keys, other_splits, other_modalities, other_scale])
def test_a_store_of_something_else_is_refused(store, change: Callable[[TinySource], None]):
    source = TinySource(12)
    change(source)
    before = files_of(store.path)
    with pytest.raises(ConfigError, match=r"holds a store of other data .* choose another"):
        prepare(source, store.path, shard_chips=5)
    assert files_of(store.path) == before


def test_a_store_without_bandwidths_is_the_same_and_can_be_added_to(tmp_path):
    """Those of before 0.2: their records of bands lack the key."""
    now, before = TinySource(12), TinySource(12)
    rgb = now.modalities["rgb"]
    bare = replace(rgb, bands=tuple(replace(b, bandwidth_um=None) for b in rgb.bands))
    before.modalities = ModalitySet(bare if m.name == "rgb" else m for m in now.modalities.values())
    store = prepare(before, tmp_path / "s", shard_chips=5)
    files = files_of(tmp_path / "s")
    prepare(now, tmp_path / "s", shard_chips=5)
    assert files_of(tmp_path / "s") == files
    now.keys = [f"later-{i}" for i in range(12)]
    assert len(append(now, store.path)) == 24


def test_a_folder_of_other_things_is_refused(source, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="no chip store"):
        prepare(source, tmp_path)
    with pytest.raises(OutputError, match="no chip store"):
        prepare(source, tmp_path / "thesis.txt")
    assert files_of(tmp_path) == {"thesis.txt": b"precious"}


@pytest.mark.parametrize("workers", mostly_slow([1, 2], fast=[1]))
def test_a_chip_that_cannot_be_read_is_named_and_the_rest_kept(tmp_path, workers):
    out = tmp_path / "store"
    with pytest.raises(DataError, match=r"'chip-9'.*the disk hums"):
        prepare(BrokenSource(12, 9), out, shard_chips=4, workers=workers)
    with pytest.raises(FormatError, match="interrupted; run it again"):
        ChipStore(out)
    assert not list(out.rglob("*.part"))
    assert {p.name for p in (out / "parts").iterdir()} == {"00000.json", "00001.json"}
    resumed = prepare(TinySource(12), out, shard_chips=4)
    whole = prepare(TinySource(12), tmp_path / "whole", shard_chips=4)
    assert files_of(resumed.path) == files_of(whole.path)


@pytest.mark.parametrize(("odd", "first"), [((3,), 0), ((9,), 5), ((10, 11), 0)])
@pytest.mark.parametrize("workers", mostly_slow([1, 2], fast=[1]))
def test_chips_of_another_size_are_named(tmp_path, odd, first, workers):
    """In the first shard, in the second, and where all of a shard's chips differ from others."""
    source = UnevenSource(12, odd)
    said = rf"'chip-{odd[0]}' has uint8 \(1, 8, 8\), chip 'chip-{first}' has uint8 \(1, 16, 16\)"
    with pytest.raises(DataError, match=said):
        prepare(source, tmp_path / "store", shard_chips=5, workers=workers)
    assert not (tmp_path / "store/index.parquet").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": "forest"}, "label: expected a number"),
        ({"pixels": {"rgb": np.zeros((2, 4, 4))}}, r"expected real numbers shaped \(3, H, W\)"),
        ({"pixels": {"elevation": np.zeros((1, 4, 4), complex)}}, "expected real numbers"),
        ({"valid": {"rgb": np.ones((1, 8, 8), bool)}}, "validity is bool"),
    ],
)
def test_samples_that_cannot_be_stored_are_refused(tmp_path, changes, said):
    class Odd(TinySource):
        def read(self, index, names=None):
            sample = super().read(index, names)
            return replace(sample, **{"valid": {}, **changes}) if index == 1 else sample

    with pytest.raises(DataError, match=rf"'chip-1': .*{said}"):
        prepare(Odd(4), tmp_path / "store")


def test_labels_of_two_types_are_refused(tmp_path):
    class Mixed(TinySource):
        def read(self, index, names=None):
            sample = super().read(index, names)
            return replace(sample, label=0.5) if index == 2 else sample

    with pytest.raises(DataError, match="labels: chip 'chip-2' has float64"):
        prepare(Mixed(4), tmp_path / "store")


def test_some_chips_without_a_label(tmp_path):
    class Partly(TinySource):
        def read(self, index, names=None):
            sample = super().read(index, names)
            return replace(sample, label=None) if index % 2 else sample

    for labels in ("index", "value", "vector", "map"):
        source = Partly(9, labels=labels)
        store = prepare(source, tmp_path / labels, shard_chips=4)
        for i in range(9):
            assert_same_sample(source, source.read(i), store.read(i))


@pytest.mark.parametrize("name", ["labels", "parts", "a/b", "..", " "])
def test_modalities_that_cannot_be_folders_are_refused(tmp_path, name):
    source = TinySource(2)
    source.modalities = ModalitySet([rename(source.modalities["elevation"], name)])
    with pytest.raises(ConfigError, match="cannot be a folder"):
        prepare(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_keys_must_be_unique_and_some(tmp_path):
    source = TinySource(3)
    source.keys = ["a", "b", "a"]
    with pytest.raises(DataError, match="two chips are called 'a'"):
        prepare(source, tmp_path / "store")
    with pytest.raises(DataError, match="no chips"):
        prepare(TinySource(0), tmp_path / "store")


def test_a_full_disk_leaves_nothing_half_written(source, tmp_path, monkeypatch):
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) >= 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device; free space"):
        prepare(source, tmp_path / "store", shard_chips=5)
    assert not list(tmp_path.rglob("*.part"))
    monkeypatch.undo()
    resumed = prepare(source, tmp_path / "store", shard_chips=5)
    assert resumed.verify() == []


def test_verify_names_what_changed(store):
    assert store.verify() == []
    path = store.path / "rgb/00001.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (store.path / "landcover/00000.npy").unlink()
    assert store.verify() == ["landcover/00000.npy", "rgb/00001.npy"]


@pytest.mark.parametrize("kept", [0, 60, 200])
def test_a_truncated_shard_is_a_format_error(store, kept):
    path = store.path / "rgb/00000.npy"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FormatError, match=r"rgb/00000\.npy: damaged or missing"):
        ChipStore(store.path).read(0)


def test_a_shard_of_something_else_is_a_format_error(store):
    np.save(store.path / "rgb/00000.npy", np.zeros((5, 3, 8, 8), np.uint16))
    with pytest.raises(FormatError, match="holds uint16"):
        ChipStore(store.path).read(0)
    rows = np.load(store.path / "landcover/00000.npy")
    np.save(store.path / "landcover/00000.npy", rows[:2])
    with pytest.raises(FormatError, match="there is no row 3"):
        ChipStore(store.path).read(3, ["landcover"])


def test_a_pickle_is_never_loaded(store):
    np.save(store.path / "rgb/00000.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match="damaged"):
        ChipStore(store.path).read(0)


def test_a_damaged_index_is_a_format_error(store):
    path = store.path / "index.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FormatError, match=r"index\.parquet: damaged"):
        ChipStore(store.path)


def test_a_later_format_is_a_format_error_with_a_remedy(store):
    path = store.path / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(FormatError, match=r"store format 99, this version reads up to 2; prepare"):
        ChipStore(store.path)


def test_a_header_that_lacks_something_is_a_format_error(store):
    path = store.path / "store.json"
    header = json.loads(path.read_text())
    del header["arrays"]
    path.write_text(json.dumps(header))
    with pytest.raises(FormatError, match="'arrays'"):
        ChipStore(store.path)


def test_info_is_ready_for_json(store):
    info = json.loads(json.dumps(store.info()))
    assert info["chips"] == 12
    assert info["splits"] == {"train": 6, "val": 2, "test": 2, "": 2}
    assert info["modalities"]["rgb"] == {
        "bands": "B4, B3, B2", "chips": 9, "dtype": "<u2", "shape": [3, 16, 16],
    }  # fmt: skip
    assert info["provenance"]["reader"] == "TinySource"


def test_several_sources_become_one_store(tmp_path):
    other = TinySource(5, whole=True)
    other.name = "other"
    source = ConcatSource([TinySource(6), other])
    store = prepare(source, tmp_path / "store", shard_chips=4)
    for i in range(11):
        assert_same_sample(source, source.read(i), store.read(i))


def test_a_store_of_a_store_is_equal(store, tmp_path):
    again = prepare(store, tmp_path / "again", shard_chips=5)
    ours, theirs = files_of(again.path), files_of(store.path)
    assert {n for n in theirs if ours[n] != theirs[n]} <= {"store.json", "checksums.json"}
    assert again.header["provenance"]["reader"] == "ChipStore"
