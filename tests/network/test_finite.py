"""NaN and infinite numbers stop a command, and the weight or layer that they come from is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import multimae_eo
from multimae_eo import MultiMAE
from multimae_eo.errors import CheckpointError, ContractError
from multimae_eo.network.finite import require_finite_output

LAYER = "encoder.blocks.0"


class Chain(nn.Module):
    """Two layers, of which the second divides by zero where asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.first(x))
        return y


def test_the_first_layer_or_the_weight_is_named():
    chain, x = Chain(), torch.ones(1, 2)
    require_finite_output(chain, "y", chain(x), "chip", lambda: chain(x))
    with torch.no_grad():
        chain.second.weight.fill_(3e38)
        chain.second.bias.fill_(3e38)
        chain.first.bias.fill_(9.0)
    with pytest.raises(ContractError, match=r"^chip: y: 2 of 2 numbers .* layer second is the fir"):
        require_finite_output(chain, "y", chain(x), "chip", lambda: chain(x))
    with torch.no_grad():
        chain.first.bias[0] = float("nan")
    with pytest.raises(ContractError, match=r"the weight first\.bias is; take another"):
        require_finite_output(chain, "y", chain(x), "chip", lambda: chain(x))
    # A sum that overflows is not a number that does.
    large = torch.full((3,), 2e38)
    require_finite_output(chain, "y", large, "chip", lambda: chain(x))


@pytest.fixture
def broken(made) -> MultiMAE:
    """A model that a program has spoilt after it was loaded."""
    model = MultiMAE.from_pretrained(made.folder / "run/model")
    name, weight = next((n, p) for n, p in model.named_parameters() if n.startswith(LAYER))
    with torch.no_grad():
        weight.view(-1)[0] = float("nan")
    model.spoilt = name  # type: ignore[assignment]
    return model


def outputs(made, tmp_path):
    scene, store = made.folder / "world/scene.yaml", made.folder / "store"
    return {
        "embed a scene": lambda m: multimae_eo.embed(m, scene=scene, out=tmp_path / "a.parquet"),
        "embed chips": lambda m: multimae_eo.embed(m, data=store, out=tmp_path / "b.parquet"),
        "reconstruct a scene": lambda m: multimae_eo.reconstruct(
            m, scene=scene, inputs=["rgb"], outputs=["elevation"], out=tmp_path / "c"
        ),
        "reconstruct chips": lambda m: multimae_eo.reconstruct(
            m, data=store, inputs=["rgb"], limit=1, out=tmp_path / "d"
        ),
        "probe": lambda m: multimae_eo.probe(
            m, data=store, inputs=["rgb"], methods=["knn"], out=tmp_path / "e"
        ),
    }


@pytest.mark.parametrize(
    "what", ["embed a scene", "embed chips", "reconstruct a scene", "reconstruct chips", "probe"]
)
def test_no_output_of_a_spoilt_model_is_written(made, broken, tmp_path, what):
    with pytest.raises(ContractError, match=f"NaN or infinite: the weight {broken.spoilt}"):
        outputs(made, tmp_path)[what](broken)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_spoilt_model_is_not_saved(broken, tmp_path):
    with pytest.raises(CheckpointError, match=f"model: {broken.spoilt}: 1 of .* NaN or infinite"):
        broken.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_infinities_of_finite_weights_name_a_layer(made, broken, tmp_path):
    with torch.no_grad():
        for name, weight in broken.named_parameters():
            if name.startswith(LAYER):
                weight.fill_(1e38)
    with pytest.raises(ContractError, match=rf"layer {LAYER}\.\S+ is the first"):
        outputs(made, tmp_path)["embed chips"](broken)


def test_values_of_maps_are_checked_window_by_window(made, broken):
    """What the scene engine is given, not only this package's models."""
    from multimae_eo.scenes.engine import _require_finite
    from multimae_eo.scenes.window_model import WindowPredictions

    window: Any = type("W", (), {"sample": type("S", (), {"key": "scene@0,0"})})
    fields = {"height": np.array([[1.0, np.inf]], np.float32), "id": np.array([1])}
    predictions = WindowPredictions(rows=[0], fields=fields)
    model: Any = lambda _: predictions  # noqa: E731
    with pytest.raises(ContractError, match=r"^scene@0,0: height: 1 of 2 numbers"):
        _require_finite(model, [window], None, predictions)
