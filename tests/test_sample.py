"""Chips and batches: windows, flips, what may be lacking, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multimae_eo.errors import ConfigError, ContractError, DataError
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Batch, Calibration, Sample, collate, crop, flip
from multimae_eo.sources.base import ConcatSource, Source


def two_resolutions(label: object = None) -> Sample:
    """12 px beside 6 px of the same ground."""
    fine = np.arange(144, dtype=np.int32).reshape(1, 12, 12)
    coarse = fine[:, ::2, ::2].copy()
    return Sample(
        key="a", pixels={"fine": fine, "coarse": coarse}, valid={"fine": fine % 7 > 0}, label=label
    )


@given(top=st.integers(0, 6), left=st.integers(0, 6), size=st.integers(1, 6))
def test_a_window_cuts_the_same_ground_of_every_modality(top, left, size):
    top, left = min(top, 6 - size), min(left, 6 - size)
    whole = two_resolutions(label=np.arange(144).reshape(12, 12))
    cut = crop(whole, top=top / 6, left=left / 6, size=size / 6)
    assert cut.pixels["coarse"].shape == (1, size, size)
    assert cut.pixels["fine"].shape == (1, 2 * size, 2 * size)
    assert cut.pixels["fine"][0, 0, 0] == 24 * top + 2 * left
    assert np.array_equal(cut.pixels["fine"][:, ::2, ::2], cut.pixels["coarse"])
    assert np.array_equal(cut.valid["fine"], cut.pixels["fine"] % 7 > 0)
    assert np.array_equal(cut.label, cut.pixels["fine"][0])


def test_a_window_beside_pixel_edges_names_chip_and_modality():
    with pytest.raises(ContractError, match=r"^a: window 0\.500\+3\.000 of 6 px .* of coarse"):
        crop(two_resolutions(), top=1 / 12, left=0, size=0.5)


@given(across=st.booleans(), down=st.booleans(), rot90=st.integers(0, 7))
def test_flips_and_rot90_move_pixels_validity_and_label_maps_alike(across, down, rot90):
    whole = two_resolutions(label=np.arange(144).reshape(12, 12))
    moved = flip(whole, horizontal=across, vertical=down, rot90=rot90)
    assert np.array_equal(moved.label, moved.pixels["fine"][0])
    assert np.array_equal(moved.valid["fine"], moved.pixels["fine"] % 7 > 0)
    assert sorted(moved.pixels["fine"].ravel()) == list(range(144))
    back = flip(flip(moved, horizontal=False, rot90=-rot90), horizontal=across, vertical=down)
    assert np.array_equal(back.pixels["fine"], whole.pixels["fine"])


def test_a_label_that_is_a_vector_is_not_moved():
    label = np.array([1.0, 0.0, 1.0])
    assert flip(two_resolutions(label), horizontal=True).label is label
    assert crop(two_resolutions(label), top=0, left=0, size=0.5).label is label


def test_absent_modalities_are_zeros_that_are_not_present(make_sample, modalities):
    batch = collate([make_sample(0), make_sample(1, names=("elevation",))], modalities)
    assert batch.present.tolist() == [[True, True, True], [False, True, False]]
    assert not batch.pixels["rgb"][1].any()
    assert not batch.complete
    assert batch.keys == ("chip-0", "chip-1")
    none = collate([make_sample(1, names=("elevation",))], modalities)
    assert list(none.pixels) == ["elevation"]


def test_calibration_and_level_travel_with_each_chip(make_sample, modalities):
    third = replace(
        make_sample(2), calibration={"rgb": Calibration(scale=2.0, offset=-0.1, level="l1c")}
    )
    batch = collate([make_sample(0), make_sample(1), third], modalities)
    assert batch.level[:, 0].tolist() == [1, 0, 0], "l1c is 0, l2a is 1"
    assert batch.scale[:, 0].tolist() == pytest.approx([1e-4, 1e-4, 2.0])
    assert batch.offset[:, 0].tolist() == pytest.approx([0, 0, -0.1])
    assert batch.scale[:, 1].tolist() == [1, 1, 1]


def test_validity_of_one_mask_and_of_masks_per_band_mix(make_sample, modalities):
    one, three = make_sample(0), make_sample(1)
    shared, own = np.ones((1, 16, 16), bool), np.ones((3, 16, 16), bool)
    shared[0, 0, 0] = own[2, 1, 1] = False
    batch = collate(
        [replace(one, valid={"rgb": shared}), replace(three, valid={"rgb": own}), make_sample(2)],
        modalities,
    )
    assert batch.valid["rgb"].shape == (3, 3, 16, 16)
    assert (~batch.valid["rgb"]).nonzero().tolist() == [
        [0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0], [1, 2, 1, 1],
    ]  # fmt: skip
    everywhere = replace(one, valid={"rgb": np.ones((1, 16, 16), bool)})
    assert collate([everywhere], modalities).complete


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda make: [], "no samples to batch"),
        (lambda make: [make(0), make(1, size=8)], r"rgb: chip-0 is \(3, 16, 16\), chip-1 is"),
        (lambda make: [make(0), Sample(key="bare", pixels={})], "bare: has none of the modalities"),
    ],
)
def test_what_cannot_be_stacked_is_told(make_sample, modalities, change, message):
    with pytest.raises(DataError, match=message):
        collate(change(make_sample), modalities)


def test_a_product_level_that_is_needed_and_not_told_is_refused(make_sample, modalities):
    with pytest.raises(ConfigError, match="'rgb': product level: got none; declare one of l1c"):
        collate([replace(make_sample(0), calibration={})], modalities)


MAP, VECTOR = np.zeros((16, 16), np.int64), np.array([0.0, 1.0])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 2], [2]),
        ([1, np.uint8(2)], [2]),
        ([0.5, 1.5], [2]),
        ([MAP, MAP], [2, 16, 16]),
        ([VECTOR, VECTOR], [2, 2]),
        ([1, None], None),
        ([None, None], None),
        ([1, MAP], None),
        ([1, 0.5], None),
        ([MAP, MAP[:8, :8]], None),
        ([VECTOR, 3], None),
    ],
)
def test_labels_are_stacked_or_absent_never_a_crash(make_sample, modalities, labels, expected):
    samples = [replace(make_sample(i), label=label) for i, label in enumerate(labels)]
    found = collate(samples, modalities).labels
    assert (None if found is None else list(found.shape)) == expected


class Labelled(Source):
    """Two chips of one class each."""

    def __init__(self, name: str, modalities: ModalitySet, label: object, classes: tuple) -> None:
        self.name, self.modalities, self.label, self.class_names = name, modalities, label, classes
        self.keys, self.split_of = ["x", "y"], ["", ""]

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        pixels = {"elevation": np.full((1, 4, 4), index, np.int16)}
        return Sample(key=self.keys[index], pixels=pixels, label=self.label)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (("a", "b"), [1, 0]),
        ((), [1, 0]),  # numbers without names
        (("b", "a"), None),  # class 0 of one is class 1 of the other
    ],
)
def test_joined_sources_keep_labels_only_of_one_meaning(modalities, second, expected):
    both = ConcatSource(
        [Labelled("p", modalities, 1, ("a", "b")), Labelled("q", modalities, 0, second)]
    )
    labels = both.batch(["p/x", "q/y"]).labels
    assert (None if labels is None else labels.tolist()) == expected
    assert both.batch(["p/x", "q/x"]).pixels["elevation"].shape == (2, 1, 4, 4)


def test_joined_sources_of_class_and_map_make_a_batch_without_labels(modalities):
    one = Labelled("p", modalities, 1, ())
    both = ConcatSource([one, Labelled("q", modalities, np.zeros((4, 4), int), ())])
    assert both.batch(["p/x", "q/x"]).labels is None


def test_a_batch_checks_itself(make_sample, modalities):
    batch = collate([make_sample(0)], modalities)
    with pytest.raises(ContractError, match=r"batch\.present: expected shape .* = \(1, 3\)"):
        replace(batch, present=torch.ones(2, 3, dtype=torch.bool))


def test_a_batch_moves_and_selects_whole(make_sample, modalities):
    batch: Batch = collate([make_sample(0), make_sample(1, names=("elevation",))], modalities)
    moved = batch.to("cpu")
    assert torch.equal(moved.pixels["rgb"], batch.pixels["rgb"])
    assert moved.keys == batch.keys
    part = batch.select(["elevation", "rgb"])
    assert part.modalities.names == ("elevation", "rgb")
    assert part.present.tolist() == [[True, True], [True, False]]
    assert part.scale[:, 1].tolist() == pytest.approx([1e-4, 1.0])
    assert set(part.pixels) == {"elevation", "rgb"}
