"""Series in samples and batches: dates that differ, chips without them, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from multimae_eo.catalog import make_modality
from multimae_eo.errors import ContractError
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Sample, collate, crop, flip
from multimae_eo.sources.phenology import SeriesOptions, SyntheticSeries
from multimae_eo.statistics import Statistics

RGB = make_modality("rgb", sensor_name="dem", bands=("elevation",))
SET = ModalitySet([replace(RGB, name="a"), replace(RGB, name="b")])


def series(key: str, days: tuple[float, ...], label: int | None = None) -> Sample:
    rng = np.random.default_rng(len(days))
    pixels = rng.integers(1, 99, (len(days), 1, 4, 4)).astype(np.int16)
    return Sample(key=key, pixels={"a": pixels}, dates={"a": np.array(days, float)}, label=label)


def image(key: str, name: str = "a") -> Sample:
    return Sample(key=key, pixels={name: np.full((1, 4, 4), 7, np.int16)})


def test_chips_of_different_dates_are_one_batch():
    batch = collate([series("x", (10, 20, 40)), series("y", (5.5,))], SET)
    assert batch.pixels["a"].shape == (2, 3, 1, 4, 4)
    assert batch.dates["a"][0].tolist() == [10, 20, 40]
    assert batch.dates["a"][1, 0] == 5.5
    assert batch.dates["a"][1, 1:].isnan().all()
    assert batch.valid["a"][0].all()
    assert batch.valid["a"][1, :, 0, 0, 0].tolist() == [True, False, False]
    assert not batch.complete


def test_series_of_equal_length_are_complete():
    batch = collate([series("x", (10, 20)), series("y", (5, 6))], SET.select(["a"]))
    assert batch.complete
    assert not batch.valid


def test_a_batch_mixes_series_images_and_chips_that_lack_them():
    batch = collate([series("x", (1, 2)), image("y"), image("z", "b")], SET)
    assert batch.pixels["a"].shape == (3, 2, 1, 4, 4)
    assert batch.pixels["b"].shape == (3, 1, 4, 4)
    assert batch.dates["a"][1:].isnan().all()
    assert batch.present.tolist() == [[True, False], [True, False], [False, True]]
    assert batch.pixels["a"][1, 0].eq(7).all()
    assert not batch.valid["a"][1, 1].any()


def test_masks_of_dates_are_padded_and_keep_their_bands():
    ok = np.ones((2, 1, 4, 4), bool)
    ok[1, 0, 2] = False
    batch = collate([replace(series("x", (1, 2)), valid={"a": ok}), series("y", (1, 2, 3))], SET)
    assert torch.equal(batch.valid["a"][0, :2], torch.from_numpy(ok))
    assert not batch.valid["a"][0, 2].any()


def test_batches_move_take_repeat_cut_and_select_their_dates():
    batch = collate([series("x", (1, 2)), series("y", (4, 5)), image("z", "b")], SET)
    assert batch.take(torch.tensor([1])).dates["a"].tolist() == [[4, 5]]
    assert batch.repeat(2).dates["a"].shape == (6, 2)
    assert batch.to("cpu").dates["a"].shape == (3, 2)
    assert batch.select(["b"]).dates == {}
    turned = batch.rotated(torch.tensor([1, 0, 0]))
    assert torch.equal(turned.pixels["a"][0], batch.pixels["a"][0].rot90(1, (-2, -1)))
    with pytest.raises(ContractError, match="T=2"):
        replace(batch, pixels={**batch.pixels, "a": batch.pixels["a"][:, :1]})


def test_windows_and_flips_are_the_same_for_all_dates():
    sample = series("x", (1, 2))
    cut = crop(sample, top=0.5, left=0, size=0.5)
    assert np.array_equal(cut.pixels["a"], sample.pixels["a"][:, :, 2:, :2])
    moved = flip(sample, horizontal=True, rot90=1)
    expected = np.rot90(sample.pixels["a"][..., ::-1], axes=(-2, -1))
    assert np.array_equal(moved.pixels["a"], expected)
    assert moved.dates is sample.dates


@pytest.mark.parametrize(
    ("pixels", "dates", "message"),
    [
        ((2, 1, 4, 4), None, "have no dates"),
        ((1, 4, 4), [3.0], "expected"),
        ((2, 1, 4, 4), [3.0], "expected"),
        ((2, 1, 4, 4), [3.0, 1.0], "ascend"),
        ((2, 1, 4, 4), [3.0, np.nan], "ascend"),
        ((0, 1, 4, 4), [], "expected"),
    ],
)
def test_dates_that_do_not_fit_are_refused(pixels, dates, message):
    days = {} if dates is None else {"a": np.array(dates)}
    with pytest.raises(ContractError, match=f"chip: a: .*{message}"):
        Sample(key="chip", pixels={"a": np.zeros(pixels)}, dates=days)


def test_some_dates_of_a_chip():
    sample = series("x", (1, 2, 3), label=1)
    some = sample.at_dates({"a": np.array([True, False, True]), "b": np.array([False])})
    assert some.dates["a"].tolist() == [1, 3]
    assert np.array_equal(some.pixels["a"], sample.pixels["a"][[0, 2]])
    none = sample.at_dates({"a": np.zeros(3, bool)})
    assert not none.pixels
    assert not none.dates
    assert none.label == 1


def test_the_clearest_date_is_an_image():
    ok = np.zeros((3, 1, 4, 4), bool)
    ok[1, 0, :3], ok[2, 0, :3], ok[0, 0, 0] = True, True, True
    sample = replace(series("x", (1, 2, 3)), valid={"a": ok})
    clearest = sample.clearest()
    assert np.array_equal(clearest.pixels["a"], sample.pixels["a"][1])
    assert np.array_equal(clearest.valid["a"], ok[1])
    assert not clearest.dates
    assert image("y").clearest().pixels["a"].shape == (1, 4, 4)


def test_statistics_of_a_series_are_those_of_its_dates():
    source = SyntheticSeries(4, 6, options=SeriesOptions(dates=5, clouds=0.5, radar=True))
    together, apart = Statistics(source.modalities), Statistics(source.modalities)
    for i in range(4):
        sample = source.read(i)
        together.update(sample)
        for name, dates in sample.dates.items():
            for t in range(len(dates)):
                valid = {name: sample.valid[name][t]} if name in sample.valid else {}
                pixels = {name: sample.pixels[name][t]}
                part = replace(sample, pixels=pixels, valid=valid, dates={})
                apart.update(part)
        apart.update(sample.select(["elevation"]))
    for name in source.modalities:
        for a, b in zip(together.mean_std(name), apart.mean_std(name), strict=True):
            assert np.allclose(a, b, rtol=1e-9)
