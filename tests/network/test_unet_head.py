"""The head that reads pixels beside tokens sees what the encoder sees, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from multimae_eo.network.config import HeadConfig, InputConfig
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import Target
from multimae_eo.network.unet_head import UnetHead, _BatchNorm
from multimae_eo.sample import Batch, Calibration, Sample, collate

MAP = Target(kind="map", classes=("a", "b", "c"))


@pytest.fixture
def batch(make_sample, modalities):
    return collate([make_sample(i) for i in range(4)], modalities)


@pytest.fixture
def lacking(make_sample, modalities):
    """Each chip lacks something else; none lacks everything."""
    names = [("rgb",), ("elevation", "landcover"), ("landcover",), ("rgb", "elevation")]
    return collate([make_sample(i, names=n) for i, n in enumerate(names)], modalities)


@pytest.fixture
def predictor(make_model):
    torch.manual_seed(0)
    return Predictor(make_model(), MAP, HeadConfig(name="unet", width=8)).eval()


def planes(predictor: Predictor, batch: Batch, **options: Any) -> torch.Tensor:
    """What the head reads of a batch's pixels."""
    seen: list[torch.Tensor] = []
    assert isinstance(predictor.head, UnetHead)
    first = predictor.head.down[0]
    handle = first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        predictor(batch, **options)
    handle.remove()
    return seen[0]


def test_it_reads_pixels_in_their_place(predictor, batch):
    """Normalised, bands in order, on the grid of pixels."""
    x = planes(predictor, batch)
    values = batch.pixels["rgb"].float() * batch.scale[:, 0, None, None, None]
    mean, std = (
        predictor.encoder.normalizer.get_buffer(f"{n}_rgb")[batch.level[:, 0]][..., None, None]
        for n in ("mean", "std")
    )
    expected = (values + batch.offset[:, 0, None, None, None] - mean) / std
    seen = batch.valid.get("rgb", torch.ones_like(values, dtype=torch.bool)).expand_as(values)
    assert_close(x[:, :3][seen], expected[seen], atol=1e-4, rtol=1e-4)
    assert x.shape == (4, 4, 16, 16), "three bands and elevation; class maps are not read"


def test_inputs_left_out_do_not_leak(predictor, lacking):
    """The map from a subset equals that of chips that have no other inputs."""
    few = lacking.take(torch.tensor([0, 3]))
    with torch.no_grad():
        chosen, alone = predictor(few, ["rgb"]), predictor(few.select(["rgb"]))
        assert_close(chosen, alone, atol=1e-5, rtol=0)
        assert not torch.allclose(chosen, predictor(few), atol=1e-3)


def test_hidden_tokens_do_not_leak(predictor, batch):
    """In training, pixels of hidden tokens cannot be read."""

    def hide(patches):
        seen = torch.ones(patches.batch_size, patches.layout.count, dtype=torch.bool)
        seen[:, patches.layout.slices["rgb"].start] = False
        return replace(patches, observed=seen)

    before, after = planes(predictor, batch), planes(predictor, batch, change=hide)
    side = predictor.encoder.config.inputs["rgb"].patch
    assert before[:, :3, :side, :side].abs().sum() > 0
    assert after[:, :3, :side, :side].abs().sum() == 0
    assert torch.equal(before[:, :3, side:], after[:, :3, side:])


def test_coarser_inputs_are_interpolated_and_dates_averaged(make_model, modalities):
    """Of a series the mean over its dates, on the finest modality's grid."""
    inputs = {
        "rgb": InputConfig(size=16, patch=4),
        "elevation": InputConfig(size=8, patch=2),
        "landcover": InputConfig(size=16, patch=4),
    }
    model = make_model(inputs=inputs)
    predictor = Predictor(model, MAP, HeadConfig(name="unet", width=8)).eval()
    rng = torch.Generator().manual_seed(0)
    series = torch.randint(100, 4000, (2, 3, 16, 16), generator=rng).to(torch.int32).numpy()
    sample = Sample(
        key="a",
        pixels={"rgb": series, "elevation": torch.rand((1, 8, 8), generator=rng).numpy()},
        dates={"rgb": np.array([18000.0, 18010.0])},
        calibration={"rgb": Calibration(scale=1e-4, level="l2a")},
    )
    x = planes(predictor, collate([sample], modalities))
    each = [
        planes(predictor, collate([replace(sample, pixels=p, dates={})], modalities))[:, :3]
        for p in ({"rgb": series[0]}, {"rgb": series[1]})
    ]
    assert_close(x[:, :3], (each[0] + each[1]) / 2, atol=1e-4, rtol=0)
    assert x[:, 3:].shape[-2:] == (16, 16)
    assert x[:, 3:].std() > 0


@pytest.mark.parametrize("size", [1, 4])
def test_a_batch_of_one_value_per_channel_can_be_trained_on(size):
    """The last batch of an epoch may have one chip, and a chip of 8 px one value at the bottom."""
    norm = _BatchNorm(3).train()
    norm.running_mean = torch.tensor([1.0, 2.0, 3.0])
    x = torch.randn(size, 3, 1, 1)
    out = norm(x)
    plain = torch.nn.BatchNorm2d(3).train()
    if size > 1:
        assert torch.equal(out, plain(x))
    else:
        assert_close(out, (x - norm.running_mean[:, None, None]) / (1 + norm.eps) ** 0.5)
        assert torch.equal(norm.running_mean, torch.tensor([1.0, 2.0, 3.0]))


def test_saved_and_loaded_it_predicts_the_same(predictor, batch, tmp_path):
    predictor.save_pretrained(tmp_path / "model")
    loaded = Predictor.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(loaded(batch), predictor(batch))
