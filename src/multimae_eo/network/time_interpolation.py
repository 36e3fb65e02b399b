"""Linear interpolation in time: each pixel of a series from its nearest valid dates.

It is what a reconstruction of dates has to beat, and, with ``decoder.interpolate``, what decoders
start from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multimae_eo.network.tokens import Patches, TokenState

_LOG_DAYS = 4.0
"""Brings logarithms of days, up to a year or two, to the order of 1."""


@dataclass(frozen=True)
class TimeNeighbours:
    """The nearest valid values before and after each date, all (B, T, …).

    ``before``, ``after``: values; where only one side has any, both are that one's, and 0 where
    none has. ``days_before``, ``days_after``: days to them, 0 where there is none. ``has_before``,
    ``has_after``: bool.
    """

    before: Tensor
    after: Tensor
    days_before: Tensor
    days_after: Tensor
    has_before: Tensor
    has_after: Tensor

    @property
    def linear(self) -> Tensor:
        """Linear interpolation; the nearest value where only one side has any."""
        span = self.days_before + self.days_after
        between = self.has_before & self.has_after & (span > 0)
        weight = torch.where(between, self.days_before / span.clamp_min(1e-6), 0.0)
        return self.before + weight * (self.after - self.before)

    @property
    def nearest(self) -> Tensor:
        """The value of the nearest date; of two at equal distance the earlier one's."""
        earlier = self.has_before & (~self.has_after | (self.days_before <= self.days_after))
        return torch.where(earlier, self.before, self.after)


def time_neighbours(values: Tensor, valid: Tensor, dates: Tensor) -> TimeNeighbours:
    """Find the nearest valid values in time of each element of a series.

    values: float (B, T, …). valid: bool, of the same shape. dates: (B, T) days, ascending, NaN
    where there is none: that has no neighbours. A valid element is its own neighbour on both sides.
    """
    count, rest = values.shape[1], [1] * (values.ndim - 2)
    days = dates.nan_to_num().reshape(*dates.shape, *rest)
    dated = dates.isfinite().reshape(days.shape)
    valid = valid & dated
    step = torch.arange(count, device=values.device).reshape(1, count, *rest)
    last = torch.where(valid, step, -1).cummax(dim=1).values
    following = torch.where(valid, step, count).flip(1).cummin(dim=1).values.flip(1)
    has_before, has_after = (last >= 0) & dated, (following < count) & dated
    first = torch.where(has_before, last, following.clamp(max=count - 1))
    second = torch.where(has_after, following, last.clamp(min=0))
    neither = ~(has_before | has_after)
    days = days.expand(values.shape)
    return TimeNeighbours(
        before=values.gather(1, first).masked_fill(neither, 0.0),
        after=values.gather(1, second).masked_fill(neither, 0.0),
        days_before=(days - days.gather(1, first)).masked_fill(~has_before, 0.0),
        days_after=(days.gather(1, second) - days).masked_fill(~has_after, 0.0),
        has_before=has_before,
        has_after=has_after,
    )


def feature_count(patch_values: int) -> int:
    """Number of features per token for decoders, of patches with so many values."""
    return 2 * patch_values + 4


@torch.no_grad()
def interpolated_tokens(patches: Patches, states: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Interpolate every token of a series from the VISIBLE ones of its position.

    Returns the interpolation (B, N, P), normalised, 0 where a position has no visible value; and
    features for decoders (B, N, 2 P + 4): the interpolation, the difference of both neighbours, and
    of each the share of pixels that have it and its mean distance (logarithm of days).
    """
    dates, part = patches.dates[name], patches.layout.slices[name]
    size, count = dates.shape
    values = patches.values[name]
    shape = (size, count, -1, values.shape[2])
    shown = (states[:, part] == TokenState.VISIBLE)[:, :, None].expand_as(values)
    valid = patches.valid.get(name)
    shown = shown if valid is None else shown & valid
    near = time_neighbours(values.float().reshape(shape), shown.reshape(shape), dates)
    linear = near.linear
    columns = [linear, near.after - near.before]
    for has, days in ((near.has_before, near.days_before), (near.has_after, near.days_after)):
        columns.append(has.float().mean(dim=3, keepdim=True))
        columns.append(days.log1p().mean(dim=3, keepdim=True) / _LOG_DAYS)
    features = torch.cat(columns, dim=3)
    return linear.flatten(1, 2), features.flatten(1, 2)
