"""What stands for a band that was not measured: the mean of the others, in standard deviations.

Bands of reflectance rise and fall together, so that the mean of a pixel's other bands is a better
estimate than the training mean: probes lose less of their accuracy, or none (docs/results.md, "A
band that is missing"). Other units keep the training mean: their bands need not agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multimae_eo.modality import Modality


def bands_agree(modality: Modality) -> bool:
    """Whether a missing band of a modality is estimated from its others."""
    return modality.unit == "reflectance" and modality.channels > 1


def filled(values: Tensor, valid: Tensor, modality: Modality, *, dim: int = 1) -> Tensor:
    """Normalised values (…, C, …) with invalid ones replaced.

    ``valid``: bool of the same shape, or with one band for all. ``dim``: the axis of the bands.
    Returns the mean of the valid bands where one is invalid, and 0 where all are, or where the
    modality's bands need not agree.
    """
    if not bands_agree(modality) or valid.shape[dim] == 1:
        return torch.where(valid, values, 0.0)
    measured = torch.where(valid, values, 0.0)
    count = valid.sum(dim=dim, keepdim=True).clamp_min(1)
    return torch.where(valid, values, measured.sum(dim=dim, keepdim=True) / count)
