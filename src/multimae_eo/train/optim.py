"""AdamW groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn
from torch.optim import AdamW

from multimae_eo.train.recipe import AdamWRecipe

_TOKENS = ("global_tokens", "mask_token", "modality", "classes", "log_variance")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: matrices only, never biases, norms, tokens or embeddings."""
    return parameter.ndim >= 2 and not any(part in _TOKENS for part in name.split("."))


def may_fuse(recipe: AdamWRecipe, precision: str) -> bool:
    """Whether AdamW may be fused: in mixed precision, that could not be clipped."""
    return recipe.clip is None or not precision.endswith("-mixed")


def build_adamw(module: nn.Module, recipe: AdamWRecipe, *, lr: float, fused: bool = True) -> AdamW:
    """AdamW over a module's trainable parameters in two groups, with and without decay."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[decays(name, parameter)].append(parameter)
    return AdamW(
        [
            {"params": groups[True], "weight_decay": recipe.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=lr,
        betas=recipe.betas,
        fused=fused,
    )


def build_layered_adamw(
    module: nn.Module,
    recipe: AdamWRecipe,
    *,
    lr: float,
    scale_of: Callable[[str], float],
    fused: bool = True,
) -> AdamW:
    """AdamW whose groups' learning rates are ``lr`` times ``scale_of`` a parameter's name.

    The group of the largest rate comes first: it is the one that is logged.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((scale_of(name), decays(name, parameter)), []).append(parameter)
    return AdamW(
        [
            {
                "params": groups[scale, decayed],
                "lr": lr * scale,
                "weight_decay": recipe.weight_decay if decayed else 0.0,
            }
            for scale, decayed in sorted(groups, reverse=True)
        ],
        lr=lr,
        betas=recipe.betas,
        fused=fused,
    )


def warmup_cosine(*, warmup: int, total: int, floor: float) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear from 0 to 1, then half a cosine to ``floor``.

    ``warmup`` and ``total`` are steps, ``floor`` a fraction of the peak. Past the end: ``floor``.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor
