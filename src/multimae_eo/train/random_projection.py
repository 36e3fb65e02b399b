"""Targets that are fixed random projections of patches, and the loss that compares them.

A patch's prediction has to be closer to the projection of that patch than to those of the sample's
other patches of the same modality (InfoNCE, van den Oord et al. 2018), whatever the size of the
error. Targets that are not learned cannot collapse. Not part of the paper; see docs/method.md.
"""

from __future__ import annotations

import math
import zlib
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from multimae_eo.modality import PROJECTION_WIDTH

TEMPERATURE = 0.1


@cache
def projection_matrix(modality: str, values: int) -> Tensor:
    """The projection of a modality's patches: float32 (``values``, width), always the same."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{modality} {values}".encode()))
    drawn = torch.randn(values, PROJECTION_WIDTH, generator=generator)
    return drawn / math.sqrt(values)


def patch_discrimination(predicted: Tensor, target: Tensor, observed: Tensor) -> Tensor:
    """Loss of each patch against the other observed patches of its sample: float32 (B, N).

    predicted, target: (B, N, width). observed: bool (B, N). In nats; log of the number of observed
    patches for a prediction that distinguishes nothing.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        queries = F.normalize(predicted.float(), dim=2)
        keys = F.normalize(target.float(), dim=2)
        logits = queries @ keys.transpose(1, 2) / TEMPERATURE
        positive = logits.diagonal(dim1=1, dim2=2)
        # A patch that was not observed is no negative; where none was, the result is not used.
        excluded = ~observed[:, None] & observed.any(dim=1)[:, None, None]
        return logits.masked_fill(excluded, -torch.inf).logsumexp(dim=2) - positive
