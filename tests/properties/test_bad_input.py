"""Whatever goes wrong on the way from files to a training step: the documented one-line error, or
the documented handling. Dataset files have properties of their own, in test_bad_dataset_input.py.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from multimae_eo.errors import (
    CheckpointError,
    ContractError,
    DataError,
    FormatError,
    MultiMAEError,
    SplitError,
)
from multimae_eo.modality import ModalitySet, Task
from multimae_eo.network.config import DecoderConfig, EncoderConfig, InputConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.tokens import TokenState
from multimae_eo.sample import Sample, collate
from multimae_eo.sources.base import Source
from multimae_eo.sources.mmearth import MMEarthSource
from multimae_eo.sources.synthetic import SyntheticSource
from multimae_eo.store.reader import ChipStore
from multimae_eo.store.writer import prepare
from multimae_eo.train.modules import PretrainModule
from multimae_eo.train.objective import Objective
from multimae_eo.train.recipe import Recipe
from tests.support.mmearth_files import write_mmearth

JUNK = st.one_of(st.text(max_size=5), st.booleans(), st.none(), st.lists(st.integers(), max_size=2),
                 st.floats(), st.integers(-5, 5), st.dictionaries(st.text(max_size=3), st.none(),
                 max_size=1))  # fmt: skip
fast = settings(max_examples=25, deadline=None)


def one_line(error: BaseException) -> str:
    message = str(error)
    assert message
    assert "\n" not in message
    return message


def refusal(act: Callable[[], object]) -> str | None:
    """The message of the package's own error, or None; any other error is a failure."""
    try:
        act()
    except MultiMAEError as error:
        return one_line(error)
    return None


# files cut short or changed at any byte -------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store, a model folder and an MMEarth folder, whole."""
    here = tmp_path_factory.mktemp("whole")
    source = SyntheticSource(chips=6, size=16, seed=0, nodata=0.5)
    prepare(source, here / "store", shard_chips=4)
    write_mmearth(here / "mmearth", chips=4, size=16, seed=0)
    return {"store": here / "store", "mmearth": here / "mmearth"}


def read_all(folder: Path, kind: str) -> list[Sample]:
    source = ChipStore(folder) if kind == "store" else MMEarthSource(folder)
    return [source.read(i) for i in range(len(source))]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["store", "mmearth"]))
def test_a_file_cut_at_any_byte_is_told_with_its_name_or_does_no_harm(
    folders, tmp_path_factory, data, kind
):
    """Cut are a store's arrays, index and header, and MMEarth's HDF5 and JSON files."""
    folder = tmp_path_factory.mktemp("cut") / kind
    shutil.copytree(folders[kind], folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    victim = data.draw(st.sampled_from(files), label="file")
    whole = victim.read_bytes()
    victim.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1), label="bytes")])
    message = refusal(lambda: read_all(folder, kind))
    if message is not None:
        assert victim.name in message
        return
    # Files that reading does not need, a last newline, or space in HDF5 that nothing uses.
    unread = victim.name in ("checksums.json", "plan.json") or "band_stats" in victim.name
    assert unread or victim.suffix == ".h5" or victim.read_bytes() == whole.rstrip()
    for ours, theirs in zip(read_all(folder, kind), read_all(folders[kind], kind), strict=True):
        assert all(np.array_equal(ours.pixels[n], p) for n, p in theirs.pixels.items())


@fast
@given(data=st.data())
def test_verifying_finds_any_file_of_a_store_that_was_cut_or_changed(
    folders, tmp_path_factory, data
):
    folder = tmp_path_factory.mktemp("changed") / "store"
    shutil.copytree(folders["store"], folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "checksums.json")
    victim = data.draw(st.sampled_from(files), label="file")
    changed = bytearray(victim.read_bytes())
    place = data.draw(st.integers(0, len(changed) - 1), label="place")
    changed[place] ^= data.draw(st.integers(1, 255), label="change")
    victim.write_bytes(changed if data.draw(st.booleans()) else changed[:place])
    found: list[str] = []
    told = refusal(lambda: found.extend(ChipStore(folder).verify()))
    assert told is not None or found == [str(victim.relative_to(folder))]


@fast
@given(data=st.data())
def test_a_model_folder_cut_at_any_byte_is_refused(tiny_model, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(tiny_model, folder)
    name = data.draw(st.sampled_from(["config.json", "modalities.json", "model.safetensors"]))
    whole = (folder / name).read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    assume(cut < len(whole) - 1 or name.endswith("safetensors"))  # the last newline says nothing
    (folder / name).write_bytes(whole[:cut])
    with pytest.raises(CheckpointError) as told:
        MultiMAE.from_pretrained(folder)
    assert str(folder) in one_line(told.value)


def places(record: object, path: tuple = ()) -> list[tuple]:
    """Every path into JSON data."""
    inside = record.items() if isinstance(record, dict) else enumerate(cast("list[object]", record))
    return [
        p
        for key, value in inside
        for p in [
            (*path, key),
            *(places(value, (*path, key)) if value and isinstance(value, dict | list) else []),
        ]
    ]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(["config.json", "modalities.json"]), junk=JUNK)
def test_a_model_folder_with_any_value_exchanged_loads_or_is_refused(
    tiny_model, tmp_path_factory, data, name, junk
):
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(tiny_model, folder)
    record = json.loads((folder / name).read_text())
    *path, last = data.draw(st.sampled_from(places(record)), label="place")
    part = record
    for key in path:
        part = part[key]
    part[last] = junk
    (folder / name).write_text(json.dumps(record))
    message = refusal(lambda: MultiMAE.from_pretrained(folder))
    assert message is None or str(folder) in message


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory, modalities, statistics) -> Path:
    """A small model's folder."""
    config = ModelConfig(
        encoder=EncoderConfig(width=16, depth=1, heads=2),
        decoder=DecoderConfig(width=8, depth=1, heads=2),
        inputs={
            "rgb": InputConfig(size=16, patch=4),
            "elevation": InputConfig(size=16, patch=4),
            "landcover": InputConfig(size=16, patch=2, stride=2),
        },
    )
    tasks = [Task(name=n, modality=n, loss=m.default_loss) for n, m in modalities.items()]
    folder = tmp_path_factory.mktemp("tiny") / "model"
    MultiMAE(modalities, tasks, config, statistics).save_pretrained(folder)
    return folder


# pixels ---------------------------------------------------------------------------------------


class Spoilt(Source):
    """Chips of which one was changed."""

    def __init__(self, samples: Sequence[Sample], modalities: ModalitySet) -> None:
        self.name, self.modalities, self.samples = "spoilt", modalities, list(samples)
        self.keys = [s.key for s in samples]
        self.split_of = [""] * len(samples)

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        return self.samples[index]


def missing_band(draw, sample):
    keep = draw(st.sets(st.integers(0, 2), min_size=1, max_size=2))
    return replace(sample, pixels={**sample.pixels, "rgb": sample.pixels["rgb"][sorted(keep)]})


def wrong_dtype(draw, sample):
    kind = draw(st.sampled_from(["complex64", "datetime64[s]", "U4", "float64", "int8"]))
    return replace(sample, pixels={**sample.pixels, "rgb": sample.pixels["rgb"].astype(kind)})


def wrong_size(draw, sample):
    side = draw(st.integers(1, 15))
    name = draw(st.sampled_from(["rgb", "elevation", "landcover"]))
    return replace(sample, pixels={**sample.pixels, name: sample.pixels[name][:, :side]})


def wrong_axes(draw, sample):
    name = draw(st.sampled_from(["rgb", "elevation"]))
    return replace(sample, pixels={**sample.pixels, name: sample.pixels[name][0]})


def wrong_validity(draw, sample):
    shape = draw(st.sampled_from([(16, 16), (2, 16, 16), (1, 8, 8), (3, 16)]))
    return replace(sample, valid={"rgb": np.ones(shape, bool)})


def numbers_as_validity(draw, sample):
    return replace(sample, valid={"rgb": np.ones((1, 16, 16), np.uint8)})


def words_as_label(draw, sample):
    return replace(sample, label=draw(st.sampled_from(["forest", [1, [2, 3]], {"a": 1}])))


SPOILERS = (missing_band, wrong_dtype, wrong_size, wrong_axes, wrong_validity,
            numbers_as_validity, words_as_label)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(data=st.data(), spoil=st.sampled_from(SPOILERS), place=st.integers(1, 3))
def test_a_store_takes_no_chip_unlike_the_others(
    make_sample, modalities, tmp_path_factory, data, spoil, place
):
    """A reader with a bug is found before its chips are among a million others."""
    samples = [make_sample(i) for i in range(4)]
    samples[place] = spoil(data.draw, samples[place])
    out = tmp_path_factory.mktemp("spoilt") / "store"
    with pytest.raises(DataError) as told:
        prepare(Spoilt(samples, modalities), out)
    assert f"chip-{place}" in one_line(told.value)
    assert not (out / "index.parquet").exists()


# sizes, nodata and classes in the model ---------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(size=st.integers(5, 23), seed=st.integers(0, 99))
def test_sizes_that_the_patch_does_not_divide_are_padded_with_what_is_not_valid(
    odd_model, make_sample, modalities, size, seed
):
    sample = make_sample(seed, size=size)
    patches = odd_model.patchify(collate([sample], modalities))
    grid = math.ceil(size / 4)
    assert patches.layout.grids["rgb"] == (grid, grid)
    counted = dict.fromkeys(("rgb", "elevation"), size * size)
    for name, pixels in counted.items():
        valid = patches.valid.get(name)
        bands = modalities[name].channels
        whole = patches.values[name].numel() if valid is None else int(valid.sum())
        assert whole == pixels * bands, "every pixel counts once, and no padding"
    # Padding that held any number would change the loss.
    states = torch.full((1, patches.layout.count), int(TokenState.MASKED), dtype=torch.int8)
    states[0, 0] = TokenState.VISIBLE
    with torch.no_grad():
        losses = Objective(odd_model.tasks)(odd_model(patches, states))
    assert all(bool(v.isfinite()) for v in losses.by_task.values())


@pytest.fixture(scope="module")
def odd_model(tiny_model) -> MultiMAE:
    return MultiMAE.from_pretrained(tiny_model)


@fast
@given(
    blind=st.sets(st.sampled_from(["rgb", "elevation", "landcover"]), min_size=1),
    junk=st.integers(0, 30000),
    seed=st.integers(0, 99),
)
def test_nodata_gives_no_token_no_loss_and_no_influence(
    odd_model, make_sample, modalities, blind, junk, seed
):
    """Chips without a valid pixel train beside others, and what their pixels hold is nothing."""
    seen, hidden = make_sample(seed), make_sample(seed + 1)
    invalid = {n: np.zeros((1, 16, 16), bool) for n in blind}
    noisy = {
        n: np.full_like(p, min(junk, np.iinfo(p.dtype).max)) if n in blind else p
        for n, p in hidden.pixels.items()
    }
    outcomes = []
    for pixels in (hidden.pixels, noisy):
        batch = collate([seen, replace(hidden, pixels=pixels, valid=invalid)], modalities)
        module = PretrainModule(odd_model, Recipe(), steps=1, warmup=0, lr=1e-3)
        module.recipe.masking.num_visible_tokens = 6
        patches = odd_model.patchify(batch)
        states, visible = module.draw(patches, batch.keys, 0)
        for name in blind:
            tokens = states[1, patches.layout.slices[name]]
            assert bool((tokens == TokenState.ABSENT).all())
        losses = Objective(odd_model.tasks)(odd_model(patches, states, num_visible_tokens=visible))
        for task in odd_model.tasks:
            if task.modality in blind:
                assert int(losses.samples[task.name]) <= 1, "the blind chip has no loss"
        assert bool(losses.total.isfinite())
        losses.total.backward()
        gradients = [p.grad for p in odd_model.parameters() if p.grad is not None]
        assert all(bool(g.isfinite().all()) for g in gradients)
        odd_model.zero_grad()
        outcomes.append(losses.total.detach())
    assert torch.equal(*outcomes)


@fast
@given(ids=st.lists(st.integers(0, 255), min_size=1, max_size=8))
def test_ids_outside_the_legend_reach_no_loss_whatever_the_reader_let_through(
    odd_model, make_sample, modalities, ids
):
    """Readers refuse them by name; the model makes them no class at all."""
    sample = make_sample(0, names=("landcover",))
    pixels = np.resize(np.array(ids, np.uint8), (1, 16, 16))
    batch = collate([replace(sample, pixels={"landcover": pixels})], modalities)
    found = set(odd_model.patchify(batch).values["landcover"].unique().tolist())
    legend = modalities["landcover"].class_ids
    assert found <= {legend.index(i) for i in ids if i in legend} | {-1}


@fast
@given(
    rename=st.sampled_from(["unit", "sensor", "levels", "classes", "bands"]),
)
def test_data_that_mean_something_else_than_the_models_are_refused_with_the_difference(
    odd_model, make_sample, modalities, rename
):
    rgb, cover = modalities["rgb"], modalities["landcover"]
    changed = {
        "unit": [replace(rgb, unit="digital number"), cover],
        "sensor": [replace(rgb, sensor="landsat8"), cover],
        "levels": [replace(rgb, levels=("l2a", "l1c")), cover],
        "bands": [replace(rgb, bands=rgb.bands[::-1]), cover],
        "classes": [rgb, replace(cover, classes=cover.classes[:5])],
    }[rename]
    batch = collate([make_sample(0, names=("rgb", "landcover"))], ModalitySet(changed))
    with pytest.raises(ContractError, match=r"is not the model's: .*: model .*, data ") as told:
        odd_model.encode(batch)
    one_line(told.value)


# splits -----------------------------------------------------------------------------------------


@fast
@given(
    splits=st.lists(st.sampled_from(["", "train", "val", "test", "unlisted"]), max_size=12),
    fraction=st.floats(0, 0.9),
    wanted=st.sampled_from(["train", "val", "test", "holdout"]),
)
def test_splits_are_disjoint_whole_and_never_silently_empty(
    make_sample, modalities, splits, fraction, wanted
):
    source = Spoilt([replace(make_sample(i), key=f"k{i}") for i in range(len(splits))], modalities)
    source.split_of = splits
    if wanted in splits:
        assert [splits[i] for i in source.split(wanted)] == [wanted] * splits.count(wanted)
    else:
        with pytest.raises(SplitError, match=f"split '{wanted}' is empty") as told:
            source.split(wanted)
        one_line(told.value)
    message = refusal(lambda: source.train_val(val_fraction=fraction))
    if message is not None:
        assert "no chip to train on" in message
        assert not {"", "train"} & set(splits) or fraction > 0
        return
    train, val = source.train_val(val_fraction=fraction)
    assert len(train) > 0
    assert not set(train) & set(val)
    assert all(splits[i] in ("", "train") for i in train)
    assert all(splits[i] in ("", "train", "val") for i in val)
    assert sorted([*train, *val]) == [i for i, s in enumerate(splits) if s in ("", "train", "val")]


def test_a_source_without_any_chip_is_refused(modalities, tmp_path):
    with pytest.raises(DataError, match="has no chips to prepare"):
        prepare(Spoilt([], modalities), tmp_path / "store")
    with pytest.raises(SplitError, match="no chip to train on"):
        Spoilt([], modalities).train_val()
    with pytest.raises(DataError, match="no chip 'a'; none are defined"):
        Spoilt([], modalities).batch(["a"])


def test_an_unknown_format_is_a_format_error(tmp_path):
    with pytest.raises(FormatError, match="is no chip store"):
        ChipStore(tmp_path)
