"""Chips larger than those of pre-training: windows of the size the model knows, blended.

Positions of larger grids can be interpolated (Dosovitskiy et al. 2021), but a model that has seen
one size only takes them for another scale. Windows ask of it only what it has learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from multimae_eo.errors import ContractError
from multimae_eo.geo import Window, window_starts
from multimae_eo.sample import Batch

ChipWindow = Mapping[str, Window]
"""One piece of ground as a window of each modality."""


def chip_windows(sizes: Mapping[str, int], batch: Batch, overlap: float | None) -> list[ChipWindow]:
    """Windows of the model's ``sizes`` (side in pixels, by modality) that cover a batch's chips.

    Each has every modality of ``sizes``, whether the batch has it or not. ``overlap``: share of a
    window's side, in [0, 1); None asks for whole chips. Empty where chips are to be taken whole:
    they are no larger than the model's, or their modalities do not differ from the model's by one
    and the same factor. ContractError for a modality that the model does not know.
    """
    if overlap is None or not sizes:
        return []
    for name in batch.pixels:
        if name not in sizes:
            raise ContractError(
                f"{name}: not a modality of the model ({', '.join(sizes)}); leave it out of the "
                "batch, or name the inputs"
            )
    # Pixel edges of the coarsest modality are edges of all others.
    side = min(sizes.values())
    grounds = {
        (Fraction(height * side, sizes[n]), Fraction(width * side, sizes[n]))
        for n, pixels in batch.pixels.items()
        for height, width in [pixels.shape[-2:]]
    }
    if len(grounds) != 1 or any(size % side for size in sizes.values()):
        return []
    ground = grounds.pop()
    if max(ground) <= side or any(length.denominator > 1 for length in ground):
        return []
    height, width = (int(length) for length in ground)
    step = max(1, round(side * (1 - overlap)))
    windows: list[ChipWindow] = []
    for top in window_starts(height, side, step):
        for left in window_starts(width, side, step):
            window = Window(
                row=top, col=left, height=min(side, height - top), width=min(side, width - left)
            )
            windows.append({n: _scaled(window, size // side) for n, size in sizes.items()})
    return windows


def extent(windows: Sequence[ChipWindow], name: str) -> tuple[int, int]:
    """Height and width of the chips that ``windows`` cover, in a modality's pixels."""
    pixel_windows = [w[name] for w in windows]
    return max(w.row + w.height for w in pixel_windows), max(w.col + w.width for w in pixel_windows)


def _scaled(window: Window, factor: int) -> Window:
    return Window(
        row=window.row * factor,
        col=window.col * factor,
        height=window.height * factor,
        width=window.width * factor,
    )


class Blend:
    """Weighted mean of overlapping windows, with weights that fall smoothly towards their edges."""

    def __init__(self, batch_size: int, shape: tuple[int, int]) -> None:
        self.total = torch.zeros(batch_size, 1, *shape)
        self.sum: Tensor | None = None
        self.channels: tuple[int, ...] = ()

    def add(self, values: Tensor, rows: Tensor, window: Window) -> None:
        """Add ``values`` (rows, C, h, w), or (rows, T, C, h, w), of a window for the chips
        ``rows``."""
        self.channels = values.shape[1:-2]
        values = values.flatten(1, -3)
        down, across = window.slices
        weight = torch.outer(_wave(window.height), _wave(window.width)).to(values.device)
        if self.sum is None:
            size, _, height, width = self.total.shape
            self.sum = values.new_zeros(size, values.shape[1], height, width)
            self.total = self.total.to(values.device)
        self.total[rows, :, down, across] += weight
        self.sum[rows, :, down, across] += values * weight

    def mean(self, otherwise: Tensor | None = None) -> Tensor:
        """The blended values (B, C, H, W), or with T; ``otherwise`` where no window reached."""
        assert self.sum is not None, "nothing was added"
        mean = self.sum / self.total.clamp_min(1e-30)
        if otherwise is not None:
            mean = torch.where(self.total > 0, mean, otherwise.flatten(1, -3))
        return mean.reshape(len(mean), *self.channels, *mean.shape[-2:])

    @property
    def complete(self) -> bool:
        """Every pixel of every chip was reached."""
        return bool((self.total > 0).all())


def _wave(length: int) -> Tensor:
    return torch.sin(torch.pi * (torch.arange(length) + 0.5) / length).square()
