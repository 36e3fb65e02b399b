"""Two draws of one chip should be known for the same: an objective for the encoder as a whole.

Reconstruction is local. What a chip is, whichever tokens of whichever modalities are seen, is what
transfer needs; telling the draws of one chip from those of others asks for it directly (InfoNCE,
van den Oord et al. 2018; over pooled tokens of masked views as in contrastive masked autoencoders,
Huang et al. 2022). Not part of the paper; off unless a recipe asks for it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimae_eo.network.sample_rng import PerSample
from multimae_eo.sample import Batch
from multimae_eo.train.recipe import AgreementRecipe

_OUT = 128
_VIEWS = 1 << 21
"""Sets the numbers that views are drawn from apart from those of masks."""


def views_of(batch: Batch, recipe: AgreementRecipe, seed: int, epoch: int) -> Batch:
    """The draws of each chip, one whole batch after the other: V·B chips.

    The first is the chip as it is, the others turned and brightened as the recipe says. All keys
    differ, and what is drawn is a function of (seed, epoch, key) alone.
    """
    views = batch.repeat(recipe.views)
    keys = batch.keys + tuple(f"{k} draw {v}" for v in range(1, recipe.views) for k in batch.keys)
    views = replace(views, keys=keys)
    if not recipe.turns and not recipe.gain:
        return views
    draws = PerSample(keys, seed, epoch, _VIEWS)
    turns, brightness = draws.rand(2).T
    turns, brightness = (turns * 8).long(), 2 * brightness - 1
    turns[: len(batch)] = brightness[: len(batch)] = 0
    if recipe.turns:
        views = views.turned(turns)
    if not recipe.gain:
        return views
    optical = torch.tensor([m.unit == "reflectance" for m in batch.modalities.values()])
    factor = torch.where(optical, torch.exp(math.log1p(recipe.gain) * brightness)[:, None], 1.0)
    factor = factor.to(views.scale)
    return replace(views, scale=views.scale * factor, offset=views.offset * factor)


class Agreement(nn.Module):
    """InfoNCE between the draws of each chip, on a projection that is thrown away afterwards.

    Other chips are those of the same batch and process: with several processes, the loss is not
    that of one process with the larger batch.
    """

    def __init__(self, width: int, recipe: AgreementRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.project = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU())
        self.out = nn.Linear(2 * width, _OUT)

    def forward(self, pooled: Tensor) -> Tensor:
        """A scalar ≥ 0, float32, 0 for a single chip.

        ``pooled``: (V·B, D), V draws of the same B chips, one draw after the other.
        """
        views = self.recipe.views
        z = F.normalize(self.out(self.project(pooled)).float(), dim=1)
        size = len(z)
        owner = torch.arange(size // views, device=z.device).repeat(views)
        itself = torch.eye(size, dtype=torch.bool, device=z.device)
        logits = (z @ z.T / self.recipe.temperature).masked_fill(itself, -torch.inf)
        same = (owner[:, None] == owner) & ~itself
        # One positive at a time against all other chips' draws.
        others = logits.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True)
        loss = torch.logaddexp(logits, others) - logits
        return loss[same].mean()
