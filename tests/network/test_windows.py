"""Chips larger than the model's are taken in windows of its size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from multimae_eo.geo import Window
from multimae_eo.inference.extraction import encoder_features
from multimae_eo.network.reconstruction import reconstruct
from multimae_eo.network.windows import Blend, chip_windows, extent
from multimae_eo.sample import collate

SIZES = {"rgb": 16, "elevation": 16, "landcover": 16}


def test_windows_cover_larger_chips_and_leave_others_whole(make_sample, modalities):
    same = collate([make_sample(0)], modalities)
    assert chip_windows(SIZES, same, 0.5) == []
    larger = collate([make_sample(0, size=40)], modalities)
    assert chip_windows(SIZES, larger, None) == []
    found = chip_windows(SIZES, larger, 0.5)
    assert extent(found, "rgb") == (40, 40)
    assert sorted({w["rgb"].row for w in found}) == [0, 8, 16, 24]
    seen = np.zeros((40, 40), int)
    for w in found:
        seen[w["rgb"].slices] += 1
    assert seen.min() == 1
    assert seen.max() == 4


def test_windows_of_a_finer_modality_cover_the_same_ground(make_sample, modalities):
    sample = make_sample(0, size=32, names=("rgb",))
    batch = collate([sample], modalities)
    found = chip_windows({"rgb": 16, "elevation": 8}, batch, 0.0)
    assert len(found) == 4
    for w in found:
        fine, coarse = w["rgb"], w["elevation"]
        assert (fine.row, fine.col) == (2 * coarse.row, 2 * coarse.col)
        assert (fine.height, coarse.height) == (16, 8)
    odd = collate([make_sample(0, size=33, names=("rgb",))], modalities)
    assert chip_windows({"rgb": 16, "elevation": 8}, odd, 0.0) == [], "no whole coarse pixel"


@pytest.mark.parametrize(("height", "width"), [(16, 40), (10, 33)])
def test_narrow_chips_are_cut_in_one_direction(make_sample, modalities, height, width):
    sample = make_sample(0, size=40, names=("rgb",))
    cut = replace(sample, pixels={"rgb": sample.pixels["rgb"][:, :height, :width]})
    found = chip_windows({"rgb": 16}, collate([cut], modalities), 0.5)
    assert {w["rgb"].height for w in found} == {min(height, 16)}
    assert extent(found, "rgb") == (height, width)


def test_without_overlap_each_window_is_what_the_model_says_of_it(
    make_model, make_sample, modalities
):
    model = make_model()
    batch = collate([make_sample(0, size=32), make_sample(1, size=32)], modalities)
    whole = reconstruct(model, batch, ["rgb"], samples=2, overlap=0.0)
    window = Window(row=16, col=0, height=16, width=16)
    part = reconstruct(model, batch.cut(dict.fromkeys(SIZES, window)), ["rgb"], samples=2)
    for name, said in part.items():
        torch.testing.assert_close(whole[name].mean[..., 16:, :16], said.mean)
        torch.testing.assert_close(whole[name].std[..., 16:, :16], said.std)


def test_blended_windows_of_a_constant_answer_are_that_answer(make_model, make_sample, modalities):
    model = make_model()
    for decoder in model.decoders.values():
        torch.nn.init.zeros_(decoder.out.weight)
    batch = collate([make_sample(0, size=28)], modalities)
    windowed = model.reconstruct(batch, ["rgb"], samples=0)
    whole = reconstruct(model, batch, ["rgb"], samples=0, overlap=None)
    for name in ("elevation", "landcover"):
        # Predictions repeat from patch to patch: windows at whole patches say the same.
        assert windowed[name].mean.shape == whole[name].mean.shape
        torch.testing.assert_close(
            windowed[name].mean.mean(), whole[name].mean.mean(), rtol=1e-4, atol=1e-4
        )


def test_blend_is_a_weighted_mean_and_falls_back_where_nothing_reached():
    blend = Blend(2, (4, 6))
    rows = torch.tensor([1])
    blend.add(torch.full((1, 1, 4, 4), 3.0), rows, Window(row=0, col=0, height=4, width=4))
    blend.add(torch.full((1, 1, 4, 4), 5.0), rows, Window(row=0, col=2, height=4, width=4))
    assert not blend.complete
    mean = blend.mean(torch.full((2, 1, 4, 6), -1.0))
    assert (mean[0] == -1).all()
    torch.testing.assert_close(mean[1, 0, :, 0], torch.full((4,), 3.0))
    torch.testing.assert_close(mean[1, 0, :, 5], torch.full((4,), 5.0))
    assert ((mean[1, 0, :, 2:4] > 3) & (mean[1, 0, :, 2:4] < 5)).all()


def test_a_half_observed_chip_is_predicted_everywhere(make_model, make_sample, modalities):
    model = make_model()
    half = np.zeros((1, 32, 32), bool)
    half[..., :16] = True
    sample = make_sample(0, size=32, names=("rgb",))
    batch = collate([replace(sample, valid={"rgb": half}), make_sample(2, size=32)], modalities)
    found = reconstruct(model, batch, ["rgb"], outputs=["elevation"], samples=2, overlap=0.0)
    whole = reconstruct(model, batch, ["rgb"], outputs=["elevation"], samples=2, overlap=None)
    mean = found["elevation"].mean
    assert mean.isfinite().all()
    torch.testing.assert_close(mean[0, :, :, 16:], whole["elevation"].mean[0, :, :, 16:])
    assert not torch.allclose(mean[0, :, :, :16], whole["elevation"].mean[0, :, :, :16])


def test_features_of_larger_chips_are_the_mean_of_their_windows(
    make_model, make_sample, modalities
):
    model = make_model().eval()
    batch = collate([make_sample(0, size=32), make_sample(1, size=32)], modalities)
    got = encoder_features(model, ["rgb"], "mean")(batch)
    parts = [
        model.encode(batch.cut(w), ["rgb"]).pooled for w in chip_windows(SIZES, batch, overlap=0.0)
    ]
    expected = torch.stack(parts).mean(dim=0).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
