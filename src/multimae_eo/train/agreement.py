"""Two draws of one chip should be known for the same: an objective for the encoder as a whole.

Reconstruction is local. What a chip is, whichever tokens of whichever modalities are seen, is what
transfer needs; telling the draws of one chip from those of others asks for it directly (InfoNCE,
van den Oord et al. 2018; over pooled tokens of masked views as in contrastive masked autoencoders,
Huang et al. 2022). Not part of the paper; off unless a recipe asks for it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimae_eo.train.recipe import AgreementRecipe

_OUT = 128


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
