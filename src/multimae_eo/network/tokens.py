"""Patches and tokens: which token is where, and whether it may be seen.

Shape letters: B batch, M modality, L tokens of all modalities, N tokens of one modality,
P values of a patch (C·p·p, laid out channel, row, column), D width. The tokens of a series of T
dates are laid out date, row, column: N is T times the grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import torch
from torch import Tensor

from multimae_eo.errors import ContractError


class TokenState(IntEnum):
    """A token's state in one sample."""

    ABSENT = 0
    """Nothing was observed there: no token, no loss."""
    VISIBLE = 1
    """Given to the encoder."""
    MASKED = 2
    """Observed and masked: the loss is computed on these."""
    UNUSED = 3
    """Observed, but neither encoded nor predicted in this step."""


@dataclass(frozen=True)
class TokenLayout:
    """Each modality's grid (rows, columns) and slice of the L tokens, in the model's order.

    ``dates``: number of dates of the modalities that are series; the others have one.
    """

    grids: Mapping[str, tuple[int, int]]
    dates: Mapping[str, int] = field(default_factory=dict)

    def date_count(self, name: str) -> int:
        """Number of dates of a modality, 1 where it is no series."""
        return self.dates.get(name, 1)

    @cached_property
    def _sizes(self) -> list[int]:
        """Tokens of each modality."""
        return [self.date_count(n) * rows * cols for n, (rows, cols) in self.grids.items()]

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Each modality's slice of the token axis."""
        slices, start = {}, 0
        for name, size in zip(self.grids, self._sizes, strict=True):
            slices[name] = slice(start, start + size)
            start += size
        return slices

    @cached_property
    def count(self) -> int:
        """L, the number of tokens of all modalities."""
        return sum(self._sizes)

    @cached_property
    def modality_of(self) -> Tensor:
        """Index of each token's modality: int64 (L,) on the CPU."""
        sizes = self._sizes
        return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))

    @cached_property
    def acquisition_of(self) -> Tensor:
        """Index of each token's acquisition, one date of one modality: int64 (L,) on the CPU."""
        grids = [
            rows * cols for n, (rows, cols) in self.grids.items() for _ in range(self.date_count(n))
        ]
        return torch.repeat_interleave(torch.arange(len(grids)), torch.tensor(grids))

    @cached_property
    def location_of(self) -> Tensor:
        """Index of each token's modality and position on its grid, equal for all dates of a
        series: int64 (L,) on the CPU."""
        indices, start = [], 0
        for name, (rows, cols) in self.grids.items():
            position = torch.arange(start, start + rows * cols)
            indices.append(position.repeat(self.date_count(name)))
            start += rows * cols
        return torch.cat(indices)

    def columns(self, names: tuple[str, ...] | list[str]) -> Tensor:
        """Which of the L tokens belong to the named modalities: bool (L,) on the CPU."""
        chosen = torch.zeros(self.count, dtype=torch.bool)
        for name in names:
            chosen[self.slices[name]] = True
        return chosen


@dataclass(frozen=True)
class Patches:
    """A batch cut into patches, normalised.

    ``values[m]``: float (B, N, P), or class indices int64 (B, N, p·p) with -1 where invalid.
    ``valid[m]``: bool (B, N, P) or (B, N, p·p); a missing entry means all valid.
    ``observed``: bool (B, L), whether a token holds any valid pixel; None when all do.
    ``dates[m]``: float32 (B, T), days since 1970, of modalities that are series; NaN for none.
    """

    layout: TokenLayout
    values: Mapping[str, Tensor]
    valid: Mapping[str, Tensor]
    observed: Tensor | None
    batch_size: int
    device: torch.device
    chip_sizes: Mapping[str, tuple[int, int]]
    dates: Mapping[str, Tensor] = field(default_factory=dict)


def patchify(planes: Tensor, patch: int) -> Tensor:
    """Cut (B, C, H, W) into (B, N, C·p·p); H and W must be multiples of ``patch``."""
    size, channels, height, width = planes.shape
    if height % patch or width % patch:
        raise ContractError(f"patchify: {height}×{width} px do not divide into patches of {patch}")
    rows, cols = height // patch, width // patch
    cut = planes.reshape(size, channels, rows, patch, cols, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(size, rows * cols, channels * patch * patch)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Put (B, N, C·p·p) back together as (B, C, H, W); the inverse of ``patchify``."""
    rows, cols = grid
    cut = patches.reshape(patches.shape[0], rows, cols, -1, patch, patch)
    image = cut.permute(0, 3, 1, 4, 2, 5)
    return image.reshape(patches.shape[0], cut.shape[3], rows * patch, cols * patch)


def any_along(mask: Tensor, dim: int) -> Tensor:
    """``mask.any(dim)`` of a bool tensor; torch's own is fifty times slower on a CPU."""
    return mask.view(torch.uint8).amax(dim=dim).bool()


@dataclass(frozen=True)
class VisibleSlots:
    """Where each visible token sits in the encoder's input.

    ``token``: int64 (B, K), the visible tokens' indices in ascending order, L in padding slots.
    ``attention_mask``: bool (B, K), False in padding slots; None when every sample fills all K
    slots.
    """

    token: Tensor
    attention_mask: Tensor | None

    @property
    def count(self) -> int:
        """K, the number of slots."""
        return self.token.shape[1]

    def to(self, device: torch.device) -> VisibleSlots:
        """The same slots on ``device``."""
        attention_mask = (
            None
            if self.attention_mask is None
            else self.attention_mask.to(device, non_blocking=True)
        )
        return VisibleSlots(self.token.to(device, non_blocking=True), attention_mask)


def visible_slots(states: Tensor, count: int, *, filled: bool) -> VisibleSlots:
    """Gather each sample's visible tokens into ``count`` slots, in ascending order.

    states: int8 (B, L). ``filled``: the caller knows that every sample has exactly ``count``
    visible tokens, so no padding can occur (no synchronisation of the device).
    """
    visible = states == TokenState.VISIBLE
    total = states.shape[1]
    # Sorting keys l for visible tokens and L + l for the others is stable and puts visible first.
    keys = torch.arange(total, device=states.device).expand_as(states)
    token = torch.where(visible, keys, keys + total).sort(dim=1).values[:, :count]
    if filled:
        return VisibleSlots(token, None)
    attention_mask = token < total
    return VisibleSlots(torch.where(attention_mask, token, total), attention_mask)
