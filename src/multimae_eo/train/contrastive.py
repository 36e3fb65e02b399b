"""A contrastive loss between masked views of a chip: an objective for the encoder as a whole.

Reconstruction is local; transfer needs what the whole chip shows, whichever tokens of whichever
modalities are visible. Distinguishing the views of one chip from those of others asks for it
directly (InfoNCE, van den Oord et al. 2018; over pooled tokens of masked views as in contrastive
masked autoencoders, Huang et al. 2022). Not part of the paper; off unless a recipe asks for it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimae_eo.network.sample_rng import PerSample
from multimae_eo.sample import Batch
from multimae_eo.train.recipe import ContrastiveRecipe

_OUT = 128
_VIEWS = 1 << 21
"""Separates the random numbers of views from those of masks."""


def masked_views(batch: Batch, recipe: ContrastiveRecipe, seed: int, epoch: int) -> Batch:
    """The views of each chip, one batch after the other: V·B chips.

    The first is the chip unchanged; the others are rotated, mirrored and scaled in brightness by
    the recipe. All keys differ, and a view is a function of (seed, epoch, key) alone.
    """
    views = batch.repeat(recipe.views)
    keys = batch.keys + tuple(f"{k} draw {v}" for v in range(1, recipe.views) for k in batch.keys)
    views = replace(views, keys=keys)
    if not recipe.rot90 and not recipe.brightness_jitter:
        return views
    rotation, brightness = PerSample(keys, seed, epoch, _VIEWS).rand(2).T
    rotation, brightness = (rotation * 8).long(), 2 * brightness - 1
    rotation[: len(batch)] = brightness[: len(batch)] = 0
    if recipe.rot90:
        views = views.rotated(rotation)
    if not recipe.brightness_jitter:
        return views
    optical = torch.tensor([m.unit == "reflectance" for m in batch.modalities.values()])
    factor = torch.where(
        optical, torch.exp(math.log1p(recipe.brightness_jitter) * brightness)[:, None], 1.0
    )
    factor = factor.to(views.scale)
    return replace(views, scale=views.scale * factor, offset=views.offset * factor)


class ContrastiveLoss(nn.Module):
    """InfoNCE between the views of each chip, on a projection that is discarded after training.

    Other chips are those of the same batch and process: with several processes, the loss is not
    that of one process with the larger batch.
    """

    def __init__(self, width: int, recipe: ContrastiveRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.project = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU())
        self.out = nn.Linear(2 * width, _OUT)

    def forward(self, pooled: Tensor) -> Tensor:
        """A scalar ≥ 0, float32, 0 for a single chip.

        ``pooled``: (V·B, D), V views of the same B chips, one view after the other.
        """
        views = self.recipe.views
        z = F.normalize(self.out(self.project(pooled)).float(), dim=1)
        size = len(z)
        owner = torch.arange(size // views, device=z.device).repeat(views)
        diagonal = torch.eye(size, dtype=torch.bool, device=z.device)
        logits = (z @ z.T / self.recipe.temperature).masked_fill(diagonal, -torch.inf)
        positive = (owner[:, None] == owner) & ~diagonal
        # One positive at a time against all other chips' views.
        others = logits.masked_fill(positive, -torch.inf).logsumexp(dim=1, keepdim=True)
        loss = torch.logaddexp(logits, others) - logits
        return loss[positive].mean()
