"""What a head reads of series: the dates' mean, a learned weighting of them, or what changed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multimae_eo.network.config import DatesKind, PoolKind
from multimae_eo.network.encoder import NORM_EPS
from multimae_eo.network.features import Features

_HEADS = 4
_LARGEST_SCORE = 8.0


class DateFusion(nn.Module):
    """One map, or one vector, of the features of all dates; see ``DATES_KINDS``.

    ``mean`` has no weights. ``attention`` scores each token with a linear layer for each quarter of
    the width, and takes the softmax over the dates and modalities of a position (of a chip, for
    vectors); it begins as the mean (after Garnot et al. 2020). ``change`` joins the first and the
    last date that are visible at each position, and their difference.
    """

    def __init__(self, width: int, kind: DatesKind, *, maps: bool) -> None:
        super().__init__()
        self.kind = kind
        self.parts = 3 if kind == "change" and not maps else 1
        heads = _HEADS if width % _HEADS == 0 else 1
        if kind == "attention":
            self.norm = nn.LayerNorm(width, eps=NORM_EPS)
            self.score = nn.Linear(width, heads, bias=False)
            nn.init.zeros_(self.score.weight)
        elif kind == "change" and maps:
            self.mix = nn.Conv2d(3 * width, width, 1)

    def map(self, features: Features, stage: int | None = None) -> Tensor:
        """A map (B, D, rows, columns) of the finest grid; ``stage`` as of ``Features.fused``."""
        if self.kind == "mean":
            return features.fused(stage)
        weights = self._weights(features)
        if self.kind == "attention":
            return features.fused(stage, weights=weights[0])
        first, last = (features.fused(stage, weights=w) for w in weights)
        mixed: Tensor = self.mix(torch.cat([first, last, last - first], dim=1))
        return mixed

    def vector(self, features: Features, pool: PoolKind) -> Tensor:
        """The summary (B, parts · D) of a chip, three of them for changes."""
        if self.kind == "mean":
            return features.summary(pool)
        first, *more = (features.summary(pool, w) for w in self._weights(features))
        if not more:
            return first
        return torch.cat([first, more[0], more[0] - first], dim=1)

    def _weights(self, features: Features) -> tuple[Tensor, ...]:
        """Of the visible tokens, (B, K, 1 or D)."""
        if self.kind == "change":
            return features.first_and_last()
        tokens = features.tokens
        score: Tensor = self.score(self.norm(tokens)).float()
        weights = score.clamp(-_LARGEST_SCORE, _LARGEST_SCORE).exp().to(tokens.dtype)
        return (weights.repeat_interleave(tokens.shape[2] // weights.shape[2], dim=2),)
