"""Batches follow from (seed, epoch, position) alone, and one view is shown of all modalities."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.catalog import make_modality
from multimae_eo.errors import ConfigError, ContractError, DataError
from multimae_eo.loading.gather import _Recycled
from multimae_eo.loading.loader import ChipDataset, make_loader
from multimae_eo.loading.sampler import local_shuffle
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Batch, Sample
from multimae_eo.sources.base import Source
from multimae_eo.store.reader import ChipStore
from multimae_eo.store.writer import prepare
from tests.support.tiny_source import SIDES, TinySource, assert_same_batch

CHIPS = 23
TRAIN: dict[str, Any] = {"train": True, "batch_size": 4, "chip": 8, "seed": 5, "rot90": True}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ChipStore:
    out = tmp_path_factory.mktemp("store") / "whole"
    return prepare(TinySource(CHIPS, whole=True, labels="map"), out, shard_chips=6)


def load(source: Source, indices: Sequence[int] | None = None, **options: Any) -> list[Batch]:
    chosen = np.arange(len(source)) if indices is None else np.asarray(indices)
    return list(make_loader(source, chosen, **options))


def keys(batches: Sequence[Batch]) -> list[str]:
    return [k for b in batches for k in b.keys]


def assert_same_batches(a: Sequence[Batch], b: Sequence[Batch]) -> None:
    assert len(a) == len(b)
    for ours, theirs in zip(a, b, strict=True):
        assert_same_batch(ours, theirs)


class Ground(Source):
    """Bands tell the row and column of the ground under a pixel; sides of 24, 12 and 8 px."""

    name = "ground"

    def __init__(self, chips: int = 6, lacking: str = "") -> None:
        self.sides = {"fine": 24, "half": 12, "third": 8}
        self.modalities = ModalitySet(
            make_modality(n, sensor_name="sentinel2", bands=("B4", "B3")) for n in self.sides
        )
        self.modalities = ModalitySet(replace(m, levels=()) for m in self.modalities.values())
        self.keys = [f"g{i}" for i in range(chips)]
        self.split_of = [""] * chips
        self.lacking = lacking

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        pixels, valid = {}, {}
        for name, side in self.sides.items():
            if name == self.lacking or (names is not None and name not in names):
                continue
            pixel = 24 / side
            centre = (np.arange(side) + 0.5) * pixel
            pixels[name] = np.stack(np.meshgrid(centre, centre, indexing="ij")).astype(np.float32)
            valid[name] = (pixels[name].sum(axis=0, keepdims=True) % 7) > 1
        label = np.add.outer(np.arange(24) * 100, np.arange(24))
        return Sample(key=self.keys[index], pixels=pixels, valid=valid, label=label)


@pytest.mark.parametrize("chip", [6, 12, 18, None])
@pytest.mark.parametrize("stored", [False, True])
def test_one_window_and_turn_for_all_modalities(tmp_path, chip, stored):
    source: Source = Ground()
    if stored:
        source = prepare(source, tmp_path / "store", shard_chips=4)
    seen = set()
    for epoch in range(6):
        for batch in load(
            source, batch_size=3, train=True, chip=chip, seed=1, epoch=epoch, rot90=True
        ):
            fine = batch.pixels["fine"].numpy()
            side = chip or 24
            assert fine.shape[2:] == (side, side)
            for name, factor in (("half", 2), ("third", 3)):
                coarse = batch.pixels[name].numpy()
                assert coarse.shape[2:] == (side // factor, side // factor)
                # A coarse pixel's place is the mean of the fine ones' under it.
                blocks = fine.reshape(3, 2, side // factor, factor, side // factor, factor)
                np.testing.assert_allclose(coarse, blocks.mean(axis=(3, 5)))
            for name, pixels in batch.pixels.items():
                expected = (pixels.sum(dim=1, keepdim=True) % 7) > 1
                assert (batch.valid[name] == expected).all()
            row, column = fine[:, 0] - 0.5, fine[:, 1] - 0.5
            np.testing.assert_array_equal(batch.labels.numpy(), row * 100 + column)
            for chip_fine in fine:
                seen.add(tuple(chip_fine[:, [0, 0, -1], [0, -1, 0]].ravel().tolist()))
    # 36 chips were shown: 8 turns, times 16, 9, 4 or 1 places (steps of 6 px).
    assert len(seen) > (6 if chip is None else 12)


def test_evaluation_shows_the_centre_unturned_in_order():
    batches = load(Ground(5), batch_size=2, chip=12)
    assert keys(batches) == [f"g{i}" for i in range(5)]
    assert [len(b) for b in batches] == [2, 2, 1]
    for batch in batches:
        inner = np.arange(6, 18) + 0.5
        np.testing.assert_array_equal(batch.pixels["fine"][0, 0, :, 0], inner)
        np.testing.assert_array_equal(batch.pixels["fine"][0, 1, 0], inner)
        assert batch.pixels["third"].shape[-1] == 4


@pytest.mark.parametrize("stored", [False, True])
def test_a_chip_without_the_finest_modality_is_cut_to_the_same_ground(tmp_path, stored):
    class Some(Ground):
        def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
            self.lacking = "fine" if index % 2 == 0 else ""
            return super().read(index, names)

    source: Source = prepare(Some(4), tmp_path / "store") if stored else Some(4)
    (batch,) = load(source, batch_size=4, chip=12)
    assert batch.present.tolist() == [[False, True, True], [True, True, True]] * 2
    assert {n: p.shape[-1] for n, p in batch.pixels.items()} == {"fine": 12, "half": 6, "third": 4}
    for name in ("half", "third"):
        assert (batch.pixels[name][0] == batch.pixels[name][1]).all()


@pytest.mark.parametrize("labels", ["none", "index", "value", "vector", "map"])
@pytest.mark.parametrize("chip", [8, None])
@pytest.mark.parametrize("train", [True, False])
def test_the_fast_path_equals_the_slow_one(tmp_path, monkeypatch, labels, chip, train):
    store = prepare(TinySource(9, whole=True, labels=labels), tmp_path / "store", shard_chips=4)
    options = {**TRAIN, "train": train, "chip": chip}
    fast = load(store, **options)
    used = []
    original = ChipDataset._gathered
    monkeypatch.setattr(ChipDataset, "_gathered", lambda s, *a: used.append(a) or original(s, *a))
    assert_same_batches(fast, load(store, **options))
    assert len(used) == len(fast), "the fast path should be taken"
    monkeypatch.setattr(ChipDataset, "_uniform", lambda *_: False)
    assert_same_batches(fast, load(store, **options))
    assert_same_batches(fast, load(TinySource(9, whole=True, labels=labels), **options))


def test_memory_is_used_again_when_nobody_holds_it():
    pool, asked = _Recycled(), ((4, 3), np.dtype(np.int16))
    array = pool.take(*asked)
    place = array.ctypes.data
    held = torch.from_numpy(array.view(np.uint16))[1:]
    del array
    other = pool.take(*asked)
    assert other.ctypes.data != place, "a view of the batch is held"
    del held
    assert pool.take(*asked).ctypes.data == place
    assert pool.take((3, 4), asked[1]).shape == (3, 4)
    assert pool.take((0, 3), asked[1]).size == 0


def test_a_store_with_absent_modalities_equals_its_source(tmp_path):
    source = TinySource(CHIPS, labels="index")
    store = prepare(source, tmp_path / "store", shard_chips=6)
    others: list[dict[str, Any]] = [{"batch_size": 3}, {"batch_size": 1, "chip": 4}]
    for options in (TRAIN, *others):
        assert_same_batches(load(store, **options), load(source, **options))
    for batch in load(store, batch_size=3, modalities=["landcover", "rgb"]):
        assert batch.modalities.names == ("landcover", "rgb")


@pytest.mark.parametrize("start", [1, 3, 4, 5])
def test_a_started_epoch_continues_exactly(store, start):
    whole = load(store, epoch=2, **TRAIN)
    assert len(whole) == 5
    assert_same_batches(load(store, epoch=2, start_batch=start, **TRAIN), whole[start:])


def test_workers_change_nothing(store):
    alone = load(store, epoch=1, **TRAIN)
    assert_same_batches(load(store, epoch=1, workers=2, start_batch=1, **TRAIN), alone[1:])


def test_every_epoch_and_seed_differs_and_repeats(store):
    first = load(store, **TRAIN)
    assert_same_batches(first, load(store, **TRAIN))
    for other in ({"epoch": 1}, {"seed": 6}):
        assert keys(load(store, **{**TRAIN, **other})) != keys(first)
    # The same chip is cut and turned otherwise in another epoch.
    a, b = (load(store, [3], **{**TRAIN, "epoch": e}) for e in (0, 1))
    assert a[0].pixels["rgb"].tolist() != b[0].pixels["rgb"].tolist()


def test_the_global_generators_are_left_alone(store):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global one is what is tested
    before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    load(store, **TRAIN)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before[1]  # noqa: NPY002


def test_training_drops_a_smaller_last_batch_unless_it_is_the_only_one(store):
    batches = load(store, batch_size=4, train=True)
    assert [len(b) for b in batches] == [4] * 5
    assert len(set(keys(batches))) == 20
    assert [len(b) for b in load(store, [1, 2, 3], batch_size=4, train=True)] == [3]
    assert sorted(keys(load(store, [1, 2, 3], batch_size=4, train=True))) == [
        "chip-1", "chip-2", "chip-3",
    ]  # fmt: skip


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_chips(store, world):
    train = [
        keys(load(store, batch_size=2, train=True, rank=r, world_size=world)) for r in range(world)
    ]
    assert len({len(k) for k in train}) == 1, "equal numbers"
    taken = [k for mine in train for k in mine]
    assert len(taken) == len(set(taken))
    ordered = [keys(load(store, batch_size=2, rank=r, world_size=world)) for r in range(world)]
    assert ordered == [list(store.keys[r::world]) for r in range(world)]


def test_a_chip_is_shown_alike_on_any_number_of_ranks(store):
    """The view follows from the chip's position, not from which rank or batch it falls into."""
    options = {**TRAIN, "batch_size": 1}
    alone = {b.keys[0]: b for b in load(store, **options)}
    for rank in range(2):
        for batch in load(store, rank=rank, world_size=2, **options):
            assert_same_batch(batch, alone[batch.keys[0]])


def test_flips_and_rotations_are_choices(store):
    plain = load(store, train=True, flips=False, batch_size=5)
    for batch in plain:
        for b, key in enumerate(batch.keys):
            pixels = store.read(store.index_of(key)).pixels
            assert all((batch.pixels[n][b].numpy() == p).all() for n, p in pixels.items())
    flipped = load(store, train=True, batch_size=5)
    for f, p in zip(flipped, plain, strict=True):
        assert sorted(f.keys) == sorted(p.keys)
    same = [
        bool((f.pixels["rgb"][b] == p.pixels["rgb"][p.keys.index(f.keys[b])]).all())
        for f, p in zip(flipped, plain, strict=True)
        for b in range(5)
    ]
    assert 0 < sum(same) < len(same)


def test_flips_and_windows_are_evenly_drawn():
    """Four flips and, with a window of 18 of 24 px in steps of 6, four places: each 1 in 16."""
    source = Ground(chips=1600)
    dataset = ChipDataset(
        source, ["fine", "half", "third"], indices=np.arange(1600), chip=18, seed=(0, 0),
        augment=(True, True, False),
    )  # fmt: skip
    drawn = collections.Counter(dataset._view(p, "g", source.sides, ()) for p in range(1600))
    assert len(drawn) == 16
    # Binomial(1600, 1/16): a standard deviation of 9.7 about 100.
    assert all(60 < n < 140 for n in drawn.values())


def test_what_cannot_be_loaded_is_said(store):
    with pytest.raises(ContractError, match="16 px is smaller than the window of 32 px"):
        load(store, batch_size=2, chip=32)
    with pytest.raises(ContractError, match="does not fall on pixel edges of elevation"):
        load(store, batch_size=2, chip=7)
    with pytest.raises(ConfigError, match="batch_size"):
        load(store, batch_size=0)
    with pytest.raises(ConfigError, match=r"data\.chip must be"):
        load(store, batch_size=2, chip=0)
    with pytest.raises(ConfigError, match="rank must be"):
        load(store, batch_size=2, rank=2, world_size=2)
    with pytest.raises(ConfigError, match="did you mean 'elevation'"):
        load(store, batch_size=2, modalities=["elevaton"])
    for indices, world in (([], 1), ([4], 2)):
        with pytest.raises(DataError, match="chips to train on"):
            load(store, list(indices), batch_size=2, train=True, world_size=world)
    assert load(store, [], batch_size=2) == []


def test_sizes_are_those_of_the_fixture(store):
    (batch,) = load(store, [0], batch_size=1)
    assert {n: p.shape[-1] for n, p in batch.pixels.items()} == SIDES


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 400), locality=st.integers(0, 500), seed=st.integers(0, 99))
def test_a_local_shuffle_is_a_permutation_whose_windows_hold_few_runs(count, locality, seed):
    order = local_shuffle(np.random.default_rng(seed), count, locality)
    assert sorted(order.tolist()) == list(range(count))
    if 0 < locality < count:
        run = max(1, locality // 8)
        for start in range(0, count, locality):
            # Eight whole runs, and parts of two that reach over the window's ends or are cut.
            touched = {int(i) // run for i in order[start : start + locality]}
            assert len(touched) <= locality / run + 3


def test_a_local_shuffle_is_drawn_anew_and_followed(store):
    near = [keys(load(store, locality=6, epoch=e, batch_size=2, train=True)) for e in (0, 1)]
    assert near[0] != near[1]
    assert near[0] == keys(load(store, locality=6, epoch=0, batch_size=2, train=True, workers=1))
    with pytest.raises(ConfigError, match=r"data\.locality must be"):
        load(store, locality=-1, batch_size=2, train=True)
