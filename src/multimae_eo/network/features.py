"""The encoder's output for a batch: tokens, as a map or pooled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.network.config import POOLS_OF_ALL_LAYERS, POOLS_WITH_STD, PoolKind
from multimae_eo.network.tokens import TokenLayout, VisibleSlots


@dataclass(frozen=True)
class Features:
    """The encoder's output for a batch.

    ``tokens``: (B, K, D), the visible patch tokens. ``global_tokens``: (B, G, D).
    ``stages``: patch tokens (B, K, D) after the blocks that were asked for. ``patches``: what the
    tokens were made of, normalised values (B, N, P) by modality, 0 where nothing was observed.
    """

    tokens: Tensor
    global_tokens: Tensor
    slots: VisibleSlots
    layout: TokenLayout
    stages: tuple[Tensor, ...] = ()
    patches: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def visible(self) -> Tensor:
        """Which of all tokens the encoder saw: bool (B, L)."""
        return self._shown(self.tokens)[:, :-1] > 0

    @property
    def pooled(self) -> Tensor:
        """Mean over each sample's visible patch tokens: (B, D)."""
        return self._mean(self.tokens)

    def summary(self, kind: PoolKind, weights: Tensor | None = None) -> Tensor:
        """A chip in one vector: (B, D), or several such parts side by side; see POOLS.

        Kinds of all layers are of ``stages``. ``weights``: of the visible tokens, ≥ 0,
        (B, K, 1 or D); equal by default, and always for global tokens.
        """
        if kind == "global":
            return self.global_tokens.mean(dim=1)
        parts = []
        for tokens in self.stages if kind in POOLS_OF_ALL_LAYERS else (self.tokens,):
            mean = self._mean(tokens, weights)
            parts.append(mean)
            if kind in POOLS_WITH_STD:
                apart = self._mean((tokens - mean[:, None]).square(), weights)
                # The root has no slope at 0.
                parts.append(apart.clamp_min(torch.finfo(apart.dtype).tiny).sqrt())
        return torch.cat(parts, dim=1)

    def _mean(self, tokens: Tensor, weights: Tensor | None = None) -> Tensor:
        mask = self.slots.attention_mask
        if weights is not None:
            weight = weights if mask is None else torch.where(mask[:, :, None], weights, 0.0)
            total = weight.sum(dim=1)
            return (tokens * weight).sum(dim=1) / torch.where(total > 0, total, 1.0)
        if mask is None:
            return tokens.mean(dim=1)
        weight = mask[:, :, None].to(tokens.dtype)
        return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)

    def grid(self, modality: str, stage: int | None = None) -> Tensor:
        """A modality's tokens in place: (B, D, rows, columns), zeros where none was visible.

        Of a series, the mean over the dates that were visible at each position.

        ``stage``: index into ``stages`` (default: the last block's tokens).
        """
        if modality not in self.layout.slices:
            raise ConfigError(
                f"no modality {modality!r}; {did_you_mean(modality, self.layout.grids)}"
            )
        tokens = self.tokens if stage is None else self.stages[stage]
        placed = self._placed(tokens)[modality]
        if self.layout.date_count(modality) > 1:
            count = self._placed(tokens.new_ones(*tokens.shape[:2], 1))[modality]
            placed = placed / count.clamp_min(1)
        return placed

    def fused(self, stage: int | None = None, *, weights: Tensor | None = None) -> Tensor:
        """All modalities' tokens as one map: (B, D, rows, columns) of the finest grid.

        At each position the mean over the modalities and dates that were visible there, coarser
        grids interpolated bilinearly; zeros where none was. ``stage``: index into ``stages``
        (default: the last block's tokens). ``weights``: of the visible tokens, ≥ 0,
        (B, K, 1 or D); equal by default.
        """
        tokens = self.tokens if stage is None else self.stages[stage]
        ones = tokens.new_ones(*tokens.shape[:2], 1) if weights is None else weights
        finest = max(self.layout.grids.values())
        total = tokens.new_zeros(tokens.shape[0], tokens.shape[2], *finest)
        weight = tokens.new_zeros(tokens.shape[0], ones.shape[2], *finest)
        seen = self._placed(ones)
        if weights is not None:
            tokens = tokens * weights
        for name, placed in self._placed(tokens).items():
            grid, here = placed, seen[name]
            if self.layout.grids[name] != finest:
                grid = F.interpolate(grid, finest, mode="bilinear")
                here = F.interpolate(here, finest, mode="bilinear")
            total, weight = total + grid, weight + here
        return total / torch.where(weight > 0, weight, 1.0)

    def first_and_last(self) -> tuple[Tensor, Tensor]:
        """The visible tokens of the first and of the last date of each position in its modality.

        Two masks (B, K, 1), of ones and zeros in the tokens' dtype. A date that is not visible at
        a position is passed over there; tokens of a modality of one date are in both.
        """
        size, device = len(self.tokens), self.tokens.device
        here, token = self._shown(self.tokens), self.slots.token
        firsts, lasts = [], []
        for name, part in self.layout.slices.items():
            shown = here[:, part].reshape(size, self.layout.date_count(name), -1)
            upto, after = shown.cumsum(dim=1), shown.flip(1).cumsum(dim=1).flip(1)
            firsts.append((shown * (upto == 1)).flatten(1))
            lasts.append((shown * (after == 1)).flatten(1))
        blank = torch.zeros(size, 1, dtype=here.dtype, device=device)
        first, last = (
            torch.cat([*parts, blank], dim=1).gather(1, token)[:, :, None]
            for parts in (firsts, lasts)
        )
        return first, last

    def _shown(self, like: Tensor) -> Tensor:
        """1 for each token that is visible, in ``like``'s dtype: (B, L + 1), padding last."""
        here = like.new_zeros(like.shape[0], self.layout.count + 1)
        return here.scatter(1, self.slots.token, like.new_ones(self.slots.token.shape))

    @property
    def seen(self) -> Tensor:
        """Where on ``fused``'s grid a visible token lies, of any modality: bool (B, rows, columns).

        Around the tokens of a coarser grid ``fused`` interpolates half a token further.
        """
        ones = self.tokens.new_ones(*self.tokens.shape[:2], 1)
        finest = max(self.layout.grids.values())
        covers = [F.interpolate(placed, finest) for placed in self._placed(ones).values()]
        return torch.stack(covers).sum(dim=0)[:, 0] > 0

    def _placed(self, tokens: Tensor) -> dict[str, Tensor]:
        """Tokens (B, K, D) in their modalities' grids: (B, D, rows, columns) each, summed over
        the dates of a series."""
        size, _, width = tokens.shape
        # Padding slots lie behind the last token, where nothing is read.
        flat = tokens.new_zeros(size, self.layout.count + 1, width)
        flat = flat.scatter(1, self.slots.token[:, :, None].expand_as(tokens), tokens)
        grids = {}
        for name, grid in self.layout.grids.items():
            part, dates = flat[:, self.layout.slices[name]], self.layout.date_count(name)
            if dates > 1:
                part = part.reshape(size, dates, -1, width).sum(dim=1)
            grids[name] = part.transpose(1, 2).reshape(size, width, *grid)
        return grids
