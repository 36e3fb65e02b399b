"""Chips added to a finished store."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from multimae_eo.errors import ConfigError, DataError
from multimae_eo.loading.loader import make_loader
from multimae_eo.modality import ModalitySet
from multimae_eo.store.append import append
from multimae_eo.store.reader import ChipStore
from multimae_eo.store.writer import prepare
from tests.support.tiny_source import TinySource, assert_same_sample, files_of


class Later(TinySource):
    """Chips of the same kind, of other content, under other keys."""

    def __init__(self, chips: int, **options) -> None:
        super().__init__(chips, **options)
        self.behind = TinySource(chips + 50, **options)
        self.keys = [f"later-{i}" for i in range(chips)]

    def read(self, index, names=None):
        return replace(self.behind.read(index + 50, names), key=self.keys[index])


@pytest.mark.parametrize("labels", ["index", "map", "none"])
def test_all_chips_are_there_and_as_their_sources_have_them(tmp_path, labels):
    old, new = TinySource(10, labels=labels), Later(7, labels=labels)
    prepare(old, tmp_path / "s", shard_chips=4)
    before = files_of(tmp_path / "s")
    store = append(new, tmp_path / "s")
    assert list(store.keys) == [*old.keys, *new.keys]
    for i in range(10):
        assert_same_sample(old, store.read(i), old.read(i))
    for i in range(7):
        assert_same_sample(new, store.read(10 + i), new.read(i))
    assert store.verify() == []
    changed = {n for n, b in files_of(tmp_path / "s").items() if before.get(n, b) != b}
    assert changed == {"index.parquet", "store.json", "checksums.json"}
    # A third one, behind a shard that is not full.
    third = Later(3, labels=labels)
    third.keys = [f"third-{i}" for i in range(3)]
    assert_same_sample(third, append(third, tmp_path / "s").read(18), third.read(1))


def test_statistics_and_splits_are_those_of_all_chips(tmp_path):
    old, new = TinySource(10), Later(9)
    prepare(old, tmp_path / "s", shard_chips=4)
    store = append(new, tmp_path / "s")
    chosen = np.flatnonzero(np.array(store.split_of) == "train")
    kept = store.statistics(chosen)
    slow = super(ChipStore, store).statistics(chosen)
    for name in ("rgb", "elevation"):
        np.testing.assert_allclose(kept.mean_std(name), slow.mean_std(name), rtol=1e-9)
    for split in ("train", "val"):
        assert store.header["splits"][split] == store.split_of.count(split)


def test_batches_gather_across_old_and_new_shards(tmp_path):
    old, new = TinySource(6, whole=True), Later(6, whole=True)
    prepare(old, tmp_path / "s", shard_chips=4)
    store = append(new, tmp_path / "s")
    for batch in make_loader(store, np.arange(12), batch_size=5, chip=8, train=True):
        for b, key in enumerate(batch.keys):
            i = store.index_of(key)
            whole = (old.read(i) if i < 6 else new.read(i - 6)).pixels["rgb"]
            assert np.isin(batch.pixels["rgb"][b].numpy(), whole).all()


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.slow
def test_killed_before_any_write_the_store_is_readable_and_ends_the_same(tmp_path, monkeypatch):
    old, new = TinySource(6), Later(5)
    prepare(old, tmp_path / "whole", shard_chips=4)
    whole = files_of(append(new, tmp_path / "whole").path)
    original = os.replace
    for last in range(60):
        out = tmp_path / f"{last}"
        prepare(old, out, shard_chips=4)
        left = [last]

        def moved(source, target, left=left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            original(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", moved)
            try:
                append(new, out)
                break
            except Killed:
                pass
        # Without the new chips, or with all of them.
        seen = ChipStore(out)
        assert len(seen) in (6, 11)
        assert_same_sample(old, seen.read(5), old.read(5))
        append(new, out)
        assert {n: b for n, b in files_of(out).items() if not n.endswith(".part")} == whole
    assert last > 10


def test_what_does_not_belong_is_refused_and_nothing_changes(tmp_path):
    prepare(TinySource(6), tmp_path / "s", shard_chips=4)
    before = files_of(tmp_path / "s")
    with pytest.raises(DataError, match="has a chip 'chip-0' already"):
        append(TinySource(3), tmp_path / "s")
    coarse = Later(3)
    rgb = replace(coarse.modalities["rgb"], gsd_m=20.0)
    coarse.modalities = ModalitySet([rgb, *list(coarse.modalities.values())[1:]])
    with pytest.raises(
        ConfigError, match=r"modality 'rgb' is not that of the store \(gsd_m: 20\.0, the store's "
    ):
        append(coarse, tmp_path / "s")
    other = Later(3)
    other.class_names = ("a", "b")
    with pytest.raises(ConfigError, match="label classes are a, b; the store's are a, b, c"):
        append(other, tmp_path / "s")
    fewer = Later(3)
    fewer.modalities = fewer.modalities.select(["rgb"])
    with pytest.raises(ConfigError, match="has the modalities rgb, the store rgb, elevation"):
        append(fewer, tmp_path / "s")
    assert files_of(tmp_path / "s") == before
    with pytest.raises(ConfigError, match="labels: the chips have"):
        append(Later(3, labels="vector"), tmp_path / "s")
    assert len(ChipStore(tmp_path / "s")) == 6
