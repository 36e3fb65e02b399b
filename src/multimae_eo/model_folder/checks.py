"""What is checked of a model folder before a model is built, and of its numbers afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from multimae_eo.errors import CheckpointError
from multimae_eo.files import require_regular
from multimae_eo.network.finite import non_finite_weight

_MOST = {"depth": 1 << 10, "heads": 1 << 12, "width": 1 << 16, "size": 1 << 16, "patch": 1 << 12,
         "stride": 1 << 12, "class_width": 1 << 12}  # fmt: skip
_MOST_TOKENS = 1 << 20


def require_sizes(config: Mapping[str, Any], weights: Path) -> None:
    """CheckpointError where ``config.json`` describes a larger model than the weights are of.

    Only the weights' header is read, and nothing of the described size is made.
    """
    require_regular(weights, CheckpointError)
    with safe_open(weights, framework="pt") as file:
        stored = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    model = config["model"]
    for name, part in (("encoder", model["encoder"]), ("decoder", model.get("decoder") or {}),
                       *model["inputs"].items(), ("head", config.get("head") or {})):  # fmt: skip
        for key, most in _MOST.items():
            value = part.get(key, 1)
            if not isinstance(value, int) or not 0 <= value <= most:
                raise CheckpointError(
                    f"config.json: {name}: {key} must be at most {most}, got {str(value)[:30]}"
                )
    for name, part in (("encoder", model["encoder"]), ("decoder", model.get("decoder") or {})):
        ratio = float(part.get("mlp_ratio", 4.0))
        # Two matrices of an MLP and four of attention in a block; a decoder may not be there.
        needed = part.get("depth", 0) * part.get("width", 0) ** 2 * (2 * ratio + 4)
        if not 0 <= needed <= 2 * stored + 1e6 and (name == "encoder" or config.get("tasks")):
            raise CheckpointError(
                f"config.json: {name}: has about {needed:.1e} weights, model.safetensors {stored}"
            )
    for name, part in model["inputs"].items():
        side = part.get("patch", 8) * part.get("stride", 1)
        if (part.get("size", 56) / side) ** 2 > _MOST_TOKENS:
            raise CheckpointError(f"config.json: {name}: size and patch make too many tokens")


def require_finite(model: nn.Module) -> None:
    """CheckpointError naming the first weight or statistic that is NaN or infinite."""
    weight = non_finite_weight(model)
    if weight is not None:
        name, tensor = weight
        count = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{name}: {count} of {tensor.numel()} numbers are NaN or infinite; train again, or "
            "take an earlier checkpoint"
        )
