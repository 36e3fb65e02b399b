"""Projections by wavelength: one function for all optical bands, those never seen included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from multimae_eo.catalog import make_modality
from multimae_eo.inference.backbone import backbone, physical_tensors
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.model_folder.folder import load_model, save
from multimae_eo.network.adapt import adapt
from multimae_eo.network.config import InputConfig, ModelConfig
from multimae_eo.network.embedding import SpectralEmbedding
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sample import collate
from multimae_eo.train.finetune_module import freeze
from multimae_eo.train.optim import build_adamw
from multimae_eo.train.recipe import OptimRecipe
from tests.support.made_statistics import measured


@pytest.fixture
def model(make_model: Callable[..., MultiMAE]) -> MultiMAE:
    return make_model(spectral=True).eval()


def sensor(name: str, *bands: str) -> Modality:
    """Bands of Sentinel-2 as those of another sensor, which no model has seen."""
    modality = make_modality("rgb", sensor_name="sentinel2", bands=bands)
    renamed = tuple(replace(b, name=f"{name}-{b.name}", aliases=()) for b in modality.bands)
    return replace(modality, name=name, sensor=name, bands=renamed)


def test_only_optical_modalities_have_them_and_nothing_changes_without(make_model, model):
    kinds = {n: type(e).__name__ for n, e in model.embeddings.items()}
    assert kinds == {
        "rgb": "SpectralEmbedding", "elevation": "PatchEmbedding", "landcover": "ClassEmbedding",
    }  # fmt: skip
    plain = make_model()
    assert not [n for n in plain.state_dict() if n.startswith("spectral")]
    assert "spectral" not in plain.config.to_dict()
    assert ModelConfig.from_dict(model.config.to_dict()) == model.config


def test_a_new_sensor_with_the_same_wavelengths_gives_the_same_vectors(model):
    drone = sensor("drone", "B4", "B3", "B2")
    adapted = adapt(model, ModalitySet([drone]), {"drone": 16}, measured)
    assert adapted.notes == ()
    patches = torch.randn(7, 3 * 16)
    assert torch.equal(adapted.encoder.embed("drone", patches), model.embed("rgb", patches))


def test_the_order_of_bands_has_no_effect(model):
    """Weights belong to bands, not to places."""
    turned = sensor("turned", "B2", "B4", "B3")
    adapted = adapt(model, ModalitySet([turned]), {"turned": 16}, measured).encoder
    patches = torch.randn(7, 3, 16)
    ours = adapted.embed("turned", patches[:, [2, 0, 1]].flatten(1))
    assert torch.allclose(ours, model.embed("rgb", patches.flatten(1)), atol=1e-6)


def test_bandwidth_and_gsd_are_conditions_and_may_be_unknown(model):
    drone = sensor("drone", "B4", "B3", "B2")
    wide = replace(drone, bands=tuple(replace(b, bandwidth_um=0.15) for b in drone.bands))
    coarse = replace(drone, bands=tuple(replace(b, gsd_m=60.0) for b in drone.bands))
    unknown = replace(
        drone, gsd_m=None,
        bands=tuple(replace(b, gsd_m=None, bandwidth_um=None) for b in drone.bands),
    )  # fmt: skip
    patches = torch.randn(7, 3 * 16)
    vectors = [
        adapt(model, ModalitySet([m]), {"drone": 16}, measured).encoder.embed("drone", patches)
        for m in (drone, wide, coarse, unknown)
    ]
    for i, one in enumerate(vectors):
        assert one.isfinite().all()
        assert all((one - other).abs().max() > 1e-3 for other in vectors[:i])
    codes: Any = SpectralEmbedding(unknown, InputConfig(size=16, patch=4)).codes
    known: Any = SpectralEmbedding(drone, InputConfig(size=16, patch=4)).codes
    assert torch.equal(codes[:, :16], known[:, :16]), "of the wavelengths"
    assert not codes[:, 16:].any()


def test_bands_between_known_ones_have_weights_between_theirs(model):
    """A smooth function: a band of 0.64 µm is nearer to red (0.665) than to blue (0.49)."""
    red, blue, between = (
        model.spectral["4"](wavelength_codes(micrometres)) for micrometres in (0.665, 0.490, 0.640)
    )
    assert (between - red).norm() < (between - blue).norm()
    assert (between - red).norm() > 0


def wavelength_codes(micrometres: float) -> torch.Tensor:
    band = make_modality("rgb", sensor_name="sentinel2", bands=("B4",))
    changed = replace(band, bands=(replace(band.bands[0], wavelength_um=micrometres),))
    codes: Any = SpectralEmbedding(changed, InputConfig(size=16, patch=4)).codes
    found: torch.Tensor = codes
    return found


def test_new_bands_beside_known_ones_and_other_patches(model):
    optical = make_modality("rgb", sensor_name="sentinel2", bands=("B3", "B8", "B11"))
    adapted = adapt(model, ModalitySet([optical]), {"rgb": 16}, measured)
    assert adapted.notes == (), "every band has weights"
    state = adapted.encoder.state_dict()
    for name, value in model.state_dict().items():
        if name.startswith("spectral"):
            assert torch.equal(state[name], value), name


def test_all_of_it_learns_is_decayed_and_frozen_with_the_inputs(model, make_sample, modalities):
    batch = collate([make_sample(i) for i in range(3)], modalities)
    model.train().encode(batch).pooled.square().sum().backward()
    parts = dict(model.spectral.named_parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parts.values())
    decayed = {id(p) for p in build_adamw(model, OptimRecipe(), lr=1e-3).param_groups[0]["params"]}
    assert {n for n, p in parts.items() if id(p) in decayed} == {
        "4.first.weight",
        "4.second.weight",
    }

    class Frozen(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model

    freeze(Frozen(), "encoder")  # type: ignore[arg-type]
    assert not any(p.requires_grad for p in parts.values())


def test_folders_tensors_and_chips_without_the_modality(model, make_sample, modalities, tmp_path):
    batch = collate([make_sample(i) for i in (0, 2)], modalities)
    with torch.no_grad():
        expected = model.encode(batch, ["rgb"]).tokens
        save(model, tmp_path / "model")
        assert torch.equal(load_model(tmp_path / "model").encode(batch, ["rgb"]).tokens, expected)
        maps = backbone(model, levels={"rgb": "l2a"})(physical_tensors(batch, ["rgb"]))
        assert torch.allclose(maps[0], model.encode(batch, ["rgb"]).fused(), atol=1e-5)
    lacking = collate([make_sample(i, names=("elevation",)) for i in range(2)], modalities)
    model.train().encode(lacking).pooled.sum().backward()
    grads = [p.grad for p in model.spectral.parameters()]
    assert all(g is not None and not g.any() for g in grads), "processes sum gradients of all"
