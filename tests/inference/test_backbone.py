"""Tensors in, feature maps out: the same numbers as the model's own way."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import multimae_eo
from multimae_eo.errors import ConfigError, ContractError
from multimae_eo.inference.backbone import backbone, physical_tensors
from multimae_eo.sample import collate

LEVEL = {"rgb": "l2a"}


@pytest.fixture
def batch(make_sample, modalities):
    return collate([make_sample(s) for s in (0, 2, 4)], modalities)


@pytest.mark.parametrize(
    "inputs", [("rgb",), ("rgb", "elevation"), ("landcover",), ("rgb", "elevation", "landcover")]
)
@pytest.mark.parametrize("size", [16, 21, 40])
def test_maps_equal_those_of_the_model(make_model, make_sample, modalities, inputs, size):
    batch = collate([make_sample(s, size=size) for s in (0, 2, 4)], modalities)
    model = make_model().eval()
    body = multimae_eo.backbone(model, inputs, out_indices=(0, -1), levels=LEVEL).eval()
    with torch.no_grad():
        maps = body(physical_tensors(batch, inputs))
        expected = model.encode(batch, inputs, stages=(1, 2))
    assert body.out_channels == [32, 32]
    for i, (got, own) in enumerate(zip(maps, (expected.fused(0), expected.fused(1)), strict=True)):
        assert_close(got, own, atol=1e-5, rtol=1e-5, msg=f"block {i}")


def test_nan_is_what_validity_is(make_model, make_sample, modalities):
    from dataclasses import replace

    batch = collate([make_sample(s) for s in (0, 2)], modalities)
    hole = torch.ones(2, 3, 16, 16, dtype=torch.bool)
    hole[0, :, :8] = False
    hole[1, 1] = False
    holed = replace(batch, valid={"rgb": hole}, complete=False)
    model = make_model().eval()
    body = backbone(model, ["rgb"], levels=LEVEL).eval()
    images = physical_tensors(holed, ["rgb"])
    assert bool(images["rgb"][0, :, :8].isnan().all())
    with torch.no_grad():
        got = body(images["rgb"])[0]
        own = model.encode(holed, ["rgb"]).fused()
    assert_close(got, own, atol=1e-5, rtol=1e-5)
    assert bool((got[0, :, :2] == 0).all()), "nothing observed: zeros"


def test_a_modality_some_chips_lack(make_model, make_sample, modalities):
    samples = [make_sample(0), make_sample(2, names=("elevation", "landcover"))]
    batch = collate(samples, modalities)
    model = make_model().eval()
    names = ("rgb", "elevation")
    with torch.no_grad():
        got = backbone(model, names, levels=LEVEL).eval()(physical_tensors(batch, names))[0]
        assert_close(got, model.encode(batch, names).fused(), atol=1e-5, rtol=1e-5)


def test_a_chip_without_anything_is_zeros_without_nan(make_model):
    for tokens in (0, 1):
        body = backbone(make_model(global_tokens=tokens), ["elevation"]).eval()
        (map_,) = body(torch.full((2, 1, 16, 16), float("nan")))
        assert bool((map_ == 0).all())


def test_bands_may_be_fewer_and_in_any_order(make_model, batch):
    model = make_model().eval()
    images = physical_tensors(batch, ["rgb"])["rgb"]
    full = backbone(model, ["rgb"], levels=LEVEL).eval()
    turned = backbone(model, ["rgb"], bands={"rgb": ["B2", "B3", "B4"]}, levels=LEVEL).eval()
    some = backbone(model, ["rgb"], bands={"rgb": ["b02", "B4"]}, levels=LEVEL).eval()
    assert some.inputs == {"rgb": ("B2", "B4")}
    with torch.no_grad():
        assert_close(turned(images.flip(1)), full(images))
        lacking = images.clone()
        lacking[:, 1] = float("nan")
        assert_close(some(images[:, [2, 0]]), full(lacking))


def test_pyramid_has_four_scales(make_model, batch):
    body = backbone(make_model(), ["rgb", "elevation"], pyramid=True, levels=LEVEL)
    maps = body(physical_tensors(batch, ["rgb", "elevation"]))
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert body.reductions == [1.0, 2.0, 4.0, 8.0]


def test_it_learns(make_model, batch):
    torch.manual_seed(0)
    body = backbone(make_model(), ["rgb"], levels=LEVEL).train()
    head = torch.nn.Conv2d(32, 2, 1)
    optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=3e-3)
    images = physical_tensors(batch, ["rgb"])
    target = torch.randint(2, (3, 4, 4))
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(head(body(images)[0]), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_model_itself_stays_as_it_is(make_model):
    model = make_model()
    body = backbone(model, ["elevation"])
    with torch.no_grad():
        body.reader.model.global_tokens.fill_(7.0)
    assert not bool((model.global_tokens == 7).any())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"inputs": ["rgp"]}, "did you mean 'rgb'"),
        ({"inputs": ["rgb"]}, "product levels l1c, l2a"),
        ({"inputs": ["rgb"], "levels": {"rgb": "l3"}}, "got 'l3'"),
        ({"inputs": ["elevation"], "out_indices": [2]}, "no block 2; the encoder has 2"),
        ({"inputs": ["rgb"], "levels": LEVEL, "bands": {"rgb": ["B8"]}}, "no band 'B8'"),
        ({"inputs": ["elevation"], "pyramid": True, "out_indices": [0]}, "a pyramid has 4"),
    ],
)
def test_what_cannot_be_is_refused(make_model, arguments, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        backbone(make_model(), **arguments)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ({"rgb": torch.zeros(1, 4, 16, 16)}, "bands B4, B3, B2"),
        ({"rgb": torch.zeros(1, 3, 16, 16), "elevation": torch.zeros(1, 1, 8, 8)}, "the ground of"),
        ({"landcover": torch.zeros(1, 1, 16, 16)}, "no input 'landcover'"),
        ({}, "no images"),
        (torch.zeros(1, 3, 16, 16), "a tensor for several inputs"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(make_model, images, words):
    body = backbone(make_model(), ["rgb", "elevation"], levels=LEVEL)
    with pytest.raises(ContractError, match=words):
        body(images)
