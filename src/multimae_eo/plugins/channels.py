"""One tensor of many bands, as other frameworks give it, into the inputs of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multimae_eo.errors import BandError
from multimae_eo.modality import Band, ModalitySet

NEAR_UM = 0.015
"""Centre wavelengths that differ by less are of the same band."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A channel by any of its names, else by its centre wavelength in micrometres."""

    names: tuple[str, ...]
    wavelength_um: float | None = None


@dataclass(frozen=True)
class ChannelSplit:
    """Which channels of a tensor are which bands of which inputs; ``unused``: those of none."""

    bands: Mapping[str, tuple[str, ...]]
    channels: Mapping[str, tuple[int, ...]]
    unused: tuple[str, ...]

    def split(self, images: Tensor, scale: float = 1.0, offset: float = 0.0) -> dict[str, Tensor]:
        """(B, C, H, W) into (B, C', H, W) by input, in physical units; NaN stays NaN."""
        return {
            name: images[:, list(picked)].to(torch.float32) * scale + offset
            for name, picked in self.channels.items()
        }


def assign_channels(
    modalities: ModalitySet, channels: Sequence[Channel], inputs: Sequence[str] | None = None
) -> ChannelSplit:
    """Find each channel's band by name or alias, else by the nearest wavelength.

    A band of several inputs goes to each of them. ``inputs``: those that may be given (default:
    all). Raises BandError, with the bands that can be, where no channel is one of the model's.
    """
    bands: dict[str, tuple[str, ...]] = {}
    picked: dict[str, tuple[int, ...]] = {}
    used: set[int] = set()
    for name, modality in modalities.items():
        if modality.categorical or (inputs is not None and name not in inputs):
            continue
        positions: dict[str, int] = {}
        for band in modality.bands:
            at = _position(band, channels, set(positions.values()))
            if at is not None:
                positions[band.name] = at
        if positions:
            bands[name], picked[name] = tuple(positions), tuple(positions.values())
            used |= set(positions.values())
    if not bands:
        able = {n: ", ".join(m.band_names) for n, m in modalities.items() if not m.categorical}
        raise BandError(
            f"none of the bands {', '.join(c.names[0] for c in channels)} is the model's; it has "
            + "; ".join(f"{n}: {b}" for n, b in able.items())
        )
    unused = tuple(c.names[0] for i, c in enumerate(channels) if i not in used)
    return ChannelSplit(bands, picked, unused)


def _position(band: Band, channels: Sequence[Channel], taken: set[int]) -> int | None:
    named = [i for i, c in enumerate(channels) if any(band.matches(n) for n in c.names)]
    if named:
        return named[0]
    if band.wavelength_um is None:
        return None
    near = [
        (abs(c.wavelength_um - band.wavelength_um), i)
        for i, c in enumerate(channels)
        if c.wavelength_um is not None and i not in taken
    ]
    best = min(near, default=None)
    return best[1] if best is not None and best[0] < NEAR_UM else None
