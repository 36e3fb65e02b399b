"""Bands dropped from what the encoder sees, as if the sensor had not measured them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from multimae_eo.modality import ModalitySet
from multimae_eo.network.missing_bands import filled
from multimae_eo.network.sample_rng import PerSample
from multimae_eo.network.tokens import Patches, any_along


def drop_bands(
    patches: Patches, modalities: ModalitySet, probability: float, generator: PerSample
) -> Patches:
    """Patches in which each band of each sample is missing with a ``probability``.

    A missing band has the value that it has where a sample lacks it, see ``missing_bands``; tokens
    without any valid pixel in the remaining bands are not observed. At least one band remains of
    those that a sample has. Class maps and modalities of one band stay as they are.

    The result is for the encoder: ``valid`` still holds the pixels that targets may have.
    """
    names = [n for n, m in modalities.items() if not m.categorical and m.channels > 1]
    values: dict[str, Tensor] = dict(patches.values)
    observed: dict[str, Tensor] = {}
    for name in names:
        bands = modalities[name].channels
        drawn = generator.rand(bands).to(patches.device, non_blocking=True)
        if name not in values:
            continue
        pixels = values[name].shape[2] // bands
        kept = _kept(drawn, probability, patches.valid.get(name), pixels)
        shape = (*values[name].shape[:2], bands, pixels)
        ok = kept[:, None, :, None].expand(shape)
        if name in patches.valid:
            ok = ok & patches.valid[name].reshape(shape)
            observed[name] = any_along(ok.flatten(2), 2)
        by_band = values[name].reshape(shape)
        values[name] = filled(by_band, ok, modalities[name], dim=2).flatten(2)
    return replace(patches, values=values, observed=_observed(patches, observed))


def _kept(drawn: Tensor, probability: float, valid: Tensor | None, pixels: int) -> Tensor:
    """Which bands remain: bool (B, C). ``pixels``: of a band in a patch."""
    available = torch.ones_like(drawn, dtype=torch.bool)
    if valid is not None:
        by_band = valid.reshape(len(valid), valid.shape[1], -1, pixels)
        available = any_along(by_band.movedim(2, 1).flatten(2), 2)
    # The available band with the greatest random number always remains.
    last = torch.where(available, drawn, -1.0).argmax(dim=1, keepdim=True)
    return (drawn >= probability).scatter(1, last, True)


def _observed(patches: Patches, changed: Mapping[str, Tensor]) -> Tensor | None:
    """Tokens with any valid pixel, where those of some modalities have changed."""
    if patches.observed is None or not changed:
        return patches.observed
    parts = [
        changed.get(name, patches.observed[:, part]) for name, part in patches.layout.slices.items()
    ]
    return torch.cat(parts, dim=1)
