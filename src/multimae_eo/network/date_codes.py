"""When a token was acquired: a fixed code of its date, added as positions are; 0 for no date.

One half encodes the day of the year, the other the days since the chip's first acquisition. Both
are sines and cosines, so that the product of two codes falls with the true distance of their dates,
whatever the number of dates and the steps between them (Vaswani et al. 2017; for dates Garnot et
al. 2020). Nothing is learnt: a model of single dates takes series, and is unchanged without dates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from multimae_eo.network.tokens import Patches, any_along

YEAR = 365.2425
"""Days of a mean year; the day of the year is right to a day."""
_SHARPEST = 5.0
"""Harmonics of the year fall off as a Gaussian of this width: seasons 12 days apart differ."""
_SHORTEST, _LONGEST = 16.0, 64 * YEAR
"""Wavelengths of the days since the first acquisition."""


def date_codes(patches: Patches, width: int) -> dict[str, Tensor]:
    """The code of each date of each series: (B, T, width) in float32, 0 where there is no date.

    ``width`` is a multiple of 4. The first acquisition of a chip is that of its earliest date of
    any modality with a valid pixel.
    """
    if not patches.dates:
        return {}
    first = first_dates(patches)
    return {name: _code(dates, first, width) for name, dates in patches.dates.items()}


def first_dates(patches: Patches) -> Tensor:
    """The earliest date of each chip with a valid pixel: float32 (B,) in days since 1970.

    Where none is valid, the earliest of all; 0 for chips without dates.
    """
    earliest, any_date = [], []
    for name, dates in patches.dates.items():
        seen = dates.isfinite()
        any_date.append(torch.where(seen, dates, torch.inf).amin(dim=1))
        if patches.observed is not None:
            part = patches.observed[:, patches.layout.slices[name]]
            seen = seen & any_along(part.reshape(*dates.shape, -1), 2)
        earliest.append(torch.where(seen, dates, torch.inf).amin(dim=1))
    first, fallback = (torch.stack(d).amin(dim=0) for d in (earliest, any_date))
    first = torch.where(first.isfinite(), first, fallback)
    return torch.where(first.isfinite(), first, 0.0)


def _code(dates: Tensor, first: Tensor, width: int) -> Tensor:
    quarter, device = width // 4, dates.device
    dated = dates.isfinite()[..., None]
    days = torch.where(dated, dates[..., None], 0.0)
    number = torch.arange(1, quarter + 1, dtype=torch.float32, device=device)
    strength = torch.exp(-0.5 * (number / _SHARPEST).square())
    # As much in all as that many waves of strength 1.
    strength = strength * (quarter / strength.square().sum()).sqrt()
    # The year's fraction first: hundreds of radians would be rounded.
    season = 2 * math.pi * (days / YEAR % 1.0) * number
    ratio = torch.arange(quarter, dtype=torch.float32, device=device) / max(1, quarter - 1)
    wavelength = _SHORTEST * (_LONGEST / _SHORTEST) ** ratio
    since = 2 * math.pi * (days - first[:, None, None]) / wavelength
    waves = [season.sin() * strength, season.cos() * strength, since.sin(), since.cos()]
    return torch.where(dated, torch.cat(waves, dim=-1), 0.0)
