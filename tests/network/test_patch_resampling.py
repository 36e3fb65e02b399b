"""Projections for patches of another size: what they give on the same ground; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo import Predictor
from multimae_eo.errors import ConfigError
from multimae_eo.network.adapt import adapt
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.patch_resampling import resampled_weight
from multimae_eo.sample import collate
from tests.support.made_statistics import measured

SIDES = st.integers(1, 6)


def resampled_patches(patches: torch.Tensor, side: int) -> torch.Tensor:
    """Averages of pixels, by NumPy-like loops over what each new pixel covers."""
    before = round(patches.shape[-1] ** 0.5)
    image = patches.reshape(-1, before, before)
    out = torch.zeros(len(image), side, side, dtype=patches.dtype)
    for i in range(side):
        rows = slice(i * before // side, -(-(i + 1) * before // side))
        for j in range(side):
            columns = slice(j * before // side, -(-(j + 1) * before // side))
            out[:, i, j] = image[:, rows, columns].mean(dim=(1, 2))
    return out.flatten(1)


@given(side=SIDES, times=st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_patches_of_a_multiple_give_the_same_products(side, times):
    patches, weight = torch.randn(5, side**2).double(), torch.randn(3, side**2).double()
    finer = resampled_patches(patches, side * times)
    assert torch.allclose(finer @ resampled_weight(weight, side * times).T, patches @ weight.T)


@given(before=SIDES, after=SIDES)
@settings(deadline=None, max_examples=40)
def test_products_are_as_near_as_they_can_be(before, after):
    """Of white patches, in the mean of squares; what no weight could change is left."""
    weight = torch.randn(4, before**2).double()
    found = resampled_weight(weight, after)
    # Of independent pixels, the mean of squares is the sum over single pixels.
    pixels = torch.eye(before**2).double()
    given = resampled_patches(pixels, after)
    best = torch.linalg.lstsq(given, pixels @ weight.T, driver="gelsd").solution
    assert torch.allclose(given @ found.T, given @ best, atol=1e-8)
    assert found.shape == (4, after**2)
    if before % after == 0 or after % before == 0:
        ones = torch.ones(1, before**2).double(), torch.ones(1, after**2).double()
        assert torch.allclose(ones[1] @ found.T, ones[0] @ weight.T)


def transferred(model: MultiMAE, patch: int) -> MultiMAE:
    sizes = dict.fromkeys(model.modalities, 16)
    return adapt(model, model.modalities, sizes, measured, patch=patch).encoder.eval()


@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize(("patch", "sides"), [(2, (2, 2, 1)), (8, (8, 8, 4)), (4, (4, 4, 2))])
def test_all_inputs_change_together_and_even_ground_gives_the_same_vectors(
    make_model, patch, sides, spectral
):
    model = make_model(spectral=spectral).eval()
    encoder = transferred(model, patch)
    names = ("rgb", "elevation", "landcover")
    assert tuple(encoder.config.inputs[n].patch for n in names) == sides
    assert encoder.config.inputs["landcover"].stride == 2
    for name, channels in (("rgb", 3), ("elevation", 1)):
        values = torch.randn(7, channels, 1)
        before, after = (
            values.expand(-1, -1, m.config.inputs[name].patch ** 2).flatten(1)
            for m in (model, encoder)
        )
        assert torch.allclose(encoder.embed(name, after), model.embed(name, before), atol=1e-5)
    classes = torch.tensor([[0], [2], [-1]])
    before, after = (
        classes.expand(-1, m.config.inputs["landcover"].patch ** 2) for m in (model, encoder)
    )
    vectors = encoder.embed("landcover", after)
    assert torch.allclose(vectors, model.embed("landcover", before), atol=1e-5)
    if patch == 4:
        assert torch.equal(vectors, model.embed("landcover", before))


def test_chips_have_as_many_tokens_as_patches_fit(make_model, make_sample, modalities):
    batch = collate([make_sample(i) for i in range(3)], modalities)
    model = make_model().eval()
    for patch, tokens in ((2, 64), (4, 16), (8, 4)):
        features = transferred(model, patch).encode(batch)
        assert len(features.grid("rgb").flatten(2)[0, 0]) == tokens


@pytest.mark.parametrize("patch", [1, 3, 0])
def test_patches_that_are_no_whole_pixels(make_model, patch):
    with pytest.raises(ConfigError, match=f"patch: {patch} px of rgb.* multiple of 2"):
        transferred(make_model(), patch)


def test_decoders_predict_patches_of_one_size(make_model):
    model = make_model()
    sizes = dict.fromkeys(model.modalities, 16)
    with pytest.raises(ConfigError, match="decoders predict patches of one size"):
        adapt(model, model.modalities, sizes, measured, decoders=True, patch=2)


def test_finer_patches_on_the_command_line(
    made: Any, run: Callable[..., tuple[int, str, str]], tmp_path
):
    """Trained, saved, loaded and evaluated; another size is another run."""
    out, model, store = tmp_path / "fine", made / "run/model", made / "store"
    command = (
        "finetune", "--model", model, "--data", store, "--task", "classification",
        "--inputs", "rgb,elevation", "--run.epochs", "1", "--run.accelerator", "cpu",
    )  # fmt: skip
    code, _, err = run(*command, "--out", str(out), "--patch", "4")
    assert code == 0, err
    assert "patches of 4 px: projections of pre-training are resampled" in err
    predictor = Predictor.from_pretrained(out / "model")
    assert {c.patch for c in predictor.encoder.config.inputs.values()} == {4}
    code, text, err = run("evaluate", "--model", str(out / "model"), "--data", store, "--json")
    assert code == 0, err
    assert "accuracy" in text
    code, _, err = run(*command, "--out", str(out), "--patch", "2")
    assert code == 1
    assert "patch" in err
    without = ["none" if c == model else c for c in command]
    code, _, err = run(*without, "--out", str(tmp_path / "none"), "--patch", "4")
    assert code == 1
    assert "set model.patch" in err
