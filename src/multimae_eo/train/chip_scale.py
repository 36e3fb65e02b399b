"""Training chips at several scales: windows of other sizes, resampled to the size of a chip.

Half the window at twice the scale shows the model patches of half the side on the ground, without
another number of tokens (FlexiViT, Beyer et al. 2023, by resampling the image instead of the
projections). Fine-tuning with finer or coarser patches then meets scales that it has seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from multimae_eo.errors import ConfigError
from multimae_eo.geo import Window
from multimae_eo.modality import ModalitySet
from multimae_eo.network.config import InputConfig
from multimae_eo.sample import Batch

_SCALE = 1 << 24
"""Separates these random numbers from others of the same seed."""
_CERTAIN = 1 - 1e-3
"""A resampled pixel is valid if at least this share of what it is made of is."""


class ChipScale:
    """Draws a window size for each optimiser step, and resamples the batch's chips to one size.

    Args:
        windows: sides in pixels of the finest modality.
        modalities: the model's.
        inputs: how each becomes tokens; ``size`` is the side that chips are resampled to.
        seed: decides sizes and positions, with the number of the step: the same in a resumed run
            and in every process.
    """

    def __init__(
        self,
        windows: Sequence[int],
        modalities: ModalitySet,
        inputs: Mapping[str, InputConfig],
        *,
        seed: int,
    ) -> None:
        self.windows, self.modalities, self.seed = tuple(windows), modalities, seed
        self.sizes = {name: part.size for name, part in inputs.items()}
        self.step = check_windows(self.windows, self.sizes)
        common = math.gcd(*self.sizes.values())
        self.pixels_per_step = {name: size // common for name, size in self.sizes.items()}

    def __call__(self, batch: Batch, step: int) -> Batch:
        """Chips (B, …) of ``max(windows)`` px as chips of the model's size, without labels.

        Values are interpolated bilinearly (with antialiasing where chips shrink) in the source's
        unit, class maps are taken from the nearest pixel; valid is what only valid pixels make up.
        """
        rng = np.random.default_rng((self.seed, step, _SCALE))
        length = int(rng.choice(self.windows)) // self.step
        row, col = rng.integers(max(self.windows) // self.step - length, size=2, endpoint=True)
        part = batch.cut(
            {
                name: Window(
                    row=int(row) * pixels,
                    col=int(col) * pixels,
                    height=length * pixels,
                    width=length * pixels,
                )
                for name, pixels in self.pixels_per_step.items()
            }
        )
        pixels, valid = {}, {}
        for name, given in part.pixels.items():
            classes, side = self.modalities[name].categorical, self.sizes[name]
            values = given
            if name in part.valid:
                ok = part.valid[name]
                share = _resampled(ok.to(torch.float32), side, nearest=classes)
                valid[name] = share >= _CERTAIN
                if not classes:
                    # Invalid pixels may hold anything, NaN as well.
                    values = torch.where(ok, given.to(torch.float32), 0.0)
            pixels[name] = _resampled(values, side, nearest=classes)
        return replace(part, pixels=pixels, valid=valid)


def check_windows(windows: Sequence[int], sizes: Mapping[str, int]) -> int:
    """Pixels of the finest modality between positions that are pixel edges of all modalities.

    ``sizes``: sides of a chip of each modality in its pixels. Raises ConfigError for a window that
    is no multiple of it.
    """
    step = max(sizes.values()) // math.gcd(*sizes.values())
    for window in windows:
        if window % step:
            raise ConfigError(
                f"data.windows: {window} px is no whole number of pixels of every modality; "
                f"take multiples of {step}"
            )
    return step


def _resampled(planes: Tensor, side: int, *, nearest: bool) -> Tensor:
    """Planes (…, H, W) as (…, side, side): float32, or int32 class ids of the nearest pixels."""
    if planes.shape[-2:] == (side, side):
        return planes
    if nearest:
        rows, cols = (
            ((torch.arange(side, device=planes.device) + 0.5) * length / side).long()
            for length in planes.shape[-2:]
        )
        return planes.to(torch.int32)[..., rows[:, None], cols]
    flat = planes.to(torch.float32).flatten(0, -4)
    resized = F.interpolate(
        flat, size=(side, side), mode="bilinear", antialias=side < planes.shape[-1]
    )
    return resized.reshape(*planes.shape[:-2], side, side)
