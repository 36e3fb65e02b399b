"""Projections of patches for patches of another size, so that transfer may use finer tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resampled_weight(weight: Tensor, side: int) -> Tensor:
    """Weights (…, p²) of patches of p × p px for patches of ``side`` × ``side`` px: (…, side²).

    The pseudo-inverse resampling of FlexiViT (Beyer et al. 2023, section 3.4) with averages of
    pixels: of all weights, those whose products with resampled patches are nearest to the products
    of the given ones with the patches. A multiple of p gives the same products exactly; a divisor
    gives the same product for a patch of one value.
    """
    before = round(weight.shape[-1] ** 0.5)
    if before == side:
        return weight
    pixels = torch.eye(before**2, dtype=torch.float64).reshape(-1, 1, before, before)
    averages = F.interpolate(pixels, size=(side, side), mode="area").flatten(1)
    inverse = torch.linalg.pinv(averages).to(weight.device)
    resampled: Tensor = weight.double() @ inverse.T
    return resampled.to(weight.dtype)
