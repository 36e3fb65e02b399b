"""Series in a chip store: the same chips back, whatever their dates; and damage that is noticed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from multimae_eo.errors import FormatError
from multimae_eo.loading.loader import make_loader
from multimae_eo.sample import Sample
from multimae_eo.sources.base import Source
from multimae_eo.sources.phenology import SeriesOptions, SyntheticSeries
from multimae_eo.store.append import append
from multimae_eo.store.reader import ChipStore
from multimae_eo.store.writer import prepare
from tests.support.tiny_source import TinySource

OPTIONS = SeriesOptions(dates=5, missing=0.3, clouds=0.5, radar=True, label="crop map")


class Mixed(Source):
    """Series of different lengths; every third chip is an image, every fourth lacks the optical."""

    def __init__(self, first: int = 0, count: int = 9) -> None:
        inner = SyntheticSeries(40, 6, options=OPTIONS)
        self.inner, self.first = inner, first
        self.name, self.modalities = "mixed", inner.modalities
        self.keys = inner.keys[first : first + count]
        self.split_of = ["train" if i % 3 else "test" for i in range(count)]

    def read(self, index, names=None):
        sample = self.inner.read(self.first + index, names)
        if index % 3 == 2:
            sample = sample.clearest()
        if index % 4 == 1:
            sample = sample.select([n for n in sample.pixels if n != "s2"])
        return sample


@pytest.fixture
def store(tmp_path: Path) -> ChipStore:
    return prepare(Mixed(), tmp_path / "store", shard_chips=4)


def assert_same(a: Sample, b: Sample) -> None:
    assert a.key == b.key
    assert set(a.pixels) == set(b.pixels)
    assert set(a.dates) == set(b.dates)
    for name in a.pixels:
        assert a.pixels[name].dtype == b.pixels[name].dtype
        assert np.array_equal(a.pixels[name], b.pixels[name])
        assert np.array_equal(a.validity(name), b.validity(name))
    for name, dates in a.dates.items():
        assert dates.tolist() == b.dates[name].tolist()
    assert np.array_equal(a.label, b.label)


def test_every_chip_comes_back_with_its_dates(store):
    source = Mixed()
    for i in range(len(source)):
        assert_same(source.read(i), store.read(i))
    assert_same(source.read(3, ["s1"]), store.read(3, ["s1"]))
    assert not store.read(0).pixels["s2"].flags.owndata
    assert store.header["format_version"] == 2
    assert store.series == {"s2", "s1"}
    assert store.verify() == []


def test_statistics_are_those_of_the_source(store):
    stored, once = store.statistics(), Mixed().statistics()
    for name in ("s2", "s1", "elevation"):
        for a, b in zip(stored.mean_std(name), once.mean_std(name), strict=True):
            assert np.allclose(a, b)


def test_batches_from_the_store_are_those_of_the_source(store):
    def batches(source: Source):
        loader = make_loader(
            source, np.arange(9), batch_size=4, train=True, seed=3, rot90=True, chip=4,
        )  # fmt: skip
        return list(loader)

    for a, b in zip(batches(store), batches(Mixed()), strict=True):
        assert a.keys == b.keys
        for name in b.pixels:
            assert torch.equal(a.pixels[name].to(torch.float64), b.pixels[name].to(torch.float64))
        assert set(a.valid) == set(b.valid)
        for name, ok in b.valid.items():
            assert torch.equal(a.valid[name], ok)
        for name, dates in b.dates.items():
            assert torch.equal(a.dates[name].nan_to_num(), dates.nan_to_num())


def test_several_processes_write_the_same_store(tmp_path, store):
    again = prepare(Mixed(), tmp_path / "again", shard_chips=4)
    for path in sorted(store.path.rglob("*.*")):
        name = path.relative_to(store.path)
        assert path.read_bytes() == (again.path / name).read_bytes(), name


def test_a_store_of_images_is_as_before(tmp_path):
    store = prepare(TinySource(6), tmp_path / "images", shard_chips=3)
    assert store.header["format_version"] == 1
    assert not store.series
    assert "rgb/dates" not in pq.read_schema(store.path / "index.parquet").names


def test_series_are_appended_to_images_and_images_to_series(tmp_path, store):
    class Images(Mixed):
        def read(self, index, names=None):
            return super().read(index, names).clearest()

    both = append(Images(20, 5), store.path)
    assert len(both) == 14
    assert_same(Images(20, 5).read(0), both.read(9))
    assert_same(Mixed().read(4), both.read(4))
    images = prepare(Images(20, 5), tmp_path / "images", shard_chips=4)
    assert images.header["format_version"] == 1
    other = append(Mixed(), images.path)
    assert other.header["format_version"] == 2
    assert_same(Mixed().read(4), other.read(9))
    assert_same(Images(20, 5).read(1), other.read(1))


def test_damaged_dates_are_noticed(store):
    path = store.path / "index.parquet"
    table = pq.read_table(path)

    def written(dates: object, kind: pa.DataType) -> ChipStore:
        at = table.schema.get_field_index("s2/dates")
        column = pa.array([dates] * len(table), kind)
        pq.write_table(table.set_column(at, "s2/dates", column), path)
        return ChipStore(store.path)

    with pytest.raises(FormatError, match="do not ascend"):
        written([3.0, 1.0], pa.list_(pa.float64())).read(0)
    with pytest.raises(FormatError, match="there is no row"):
        written([float(i) for i in range(99)], pa.list_(pa.float64())).read(0)
    with pytest.raises(FormatError, match=r"index\.parquet"):
        written("2020", pa.string()).read(0)


def test_a_newer_format_is_refused(store):
    path = store.path / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 3}))
    with pytest.raises(FormatError, match="reads up to 2"):
        ChipStore(store.path)


def test_a_series_with_the_wrong_bands_is_named(tmp_path):
    class Wrong(Mixed):
        def read(self, index, names=None):
            sample = super().read(index, names)
            pixels = {n: p[:, :1] if p.ndim == 4 else p for n, p in sample.pixels.items()}
            return replace(sample, pixels=pixels)

    with pytest.raises(Exception, match=r"s2: expected real numbers shaped \(T, 4, H, W\)"):
        prepare(Wrong(), tmp_path / "wrong", shard_chips=4)
