"""The encoder's output for a batch: tokens, as a map or pooled."""

from __future__ import annotations

from dataclasses import dataclass

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
    ``stages``: patch tokens (B, K, D) after the blocks that were asked for.
    """

    tokens: Tensor
    global_tokens: Tensor
    slots: VisibleSlots
    layout: TokenLayout
    stages: tuple[Tensor, ...] = ()

    @property
    def pooled(self) -> Tensor:
        """Mean over each sample's visible patch tokens: (B, D)."""
        return self._mean(self.tokens)

    def summary(self, kind: PoolKind) -> Tensor:
        """A chip in one vector: (B, D), or several such parts side by side; see POOLS.

        Kinds of all layers are of ``stages``.
        """
        if kind == "global":
            return self.global_tokens.mean(dim=1)
        parts = []
        for tokens in self.stages if kind in POOLS_OF_ALL_LAYERS else (self.tokens,):
            mean = self._mean(tokens)
            parts.append(mean)
            if kind in POOLS_WITH_STD:
                apart = self._mean((tokens - mean[:, None]).square())
                # The root has no slope at 0.
                parts.append(apart.clamp_min(torch.finfo(apart.dtype).tiny).sqrt())
        return torch.cat(parts, dim=1)

    def _mean(self, tokens: Tensor) -> Tensor:
        if self.slots.attention_mask is None:
            return tokens.mean(dim=1)
        weight = self.slots.attention_mask[:, :, None].to(tokens.dtype)
        return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)

    def grid(self, modality: str, stage: int | None = None) -> Tensor:
        """A modality's tokens in place: (B, D, rows, columns), zeros where none was visible.

        ``stage``: index into ``stages`` (default: the last block's tokens).
        """
        if modality not in self.layout.slices:
            raise ConfigError(
                f"no modality {modality!r}; {did_you_mean(modality, self.layout.grids)}"
            )
        return self._placed(self.tokens if stage is None else self.stages[stage])[modality]

    def fused(self, stage: int | None = None) -> Tensor:
        """All modalities' tokens as one map: (B, D, rows, columns) of the finest grid.

        At each position the mean over the modalities that were visible there, coarser grids
        interpolated bilinearly; zeros where none was. ``stage``: index into ``stages`` (default:
        the last block's tokens).
        """
        tokens = self.tokens if stage is None else self.stages[stage]
        ones = tokens.new_ones(*tokens.shape[:2], 1)
        finest = max(self.layout.grids.values())
        total = tokens.new_zeros(tokens.shape[0], tokens.shape[2], *finest)
        weight = tokens.new_zeros(tokens.shape[0], 1, *finest)
        seen = self._placed(ones)
        for name, placed in self._placed(tokens).items():
            grid, here = placed, seen[name]
            if self.layout.grids[name] != finest:
                grid = F.interpolate(grid, finest, mode="bilinear")
                here = F.interpolate(here, finest, mode="bilinear")
            total, weight = total + grid, weight + here
        return total / torch.where(weight > 0, weight, 1.0)

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
        """Tokens (B, K, D) in their modalities' grids: (B, D, rows, columns) each."""
        size, _, width = tokens.shape
        # Padding slots lie behind the last token, where nothing is read.
        flat = tokens.new_zeros(size, self.layout.count + 1, width)
        flat = flat.scatter(1, self.slots.token[:, :, None].expand_as(tokens), tokens)
        return {
            name: flat[:, self.layout.slices[name]].transpose(1, 2).reshape(size, width, *grid)
            for name, grid in self.layout.grids.items()
        }
