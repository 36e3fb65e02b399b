"""From patches to vectors: projections of each modality, and fixed 2-D sin-cos positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimae_eo.modality import Modality
from multimae_eo.network.config import InputConfig

Interpolation = Literal["bicubic", "bilinear"]

_WAVELENGTHS_UM = (0.4, 2.5)
_BANDWIDTHS_UM = (0.01, 0.2)
_GSDS_M = (0.1, 100.0)
"""Ranges that the lowest frequency spans with half a period."""
_FREQUENCIES = {"wavelength": 8, "bandwidth": 4, "gsd": 4}
"""Sines, and as many cosines, of the logarithm of each."""


class PatchEmbedding(nn.Module):
    """A linear projection of a continuous modality's patches: (n, P) → (n, D)."""

    interpolation: Interpolation = "bicubic"

    def __init__(self, modality: Modality, config: InputConfig, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(modality.channels * config.patch**2, width)
        # As for a linear layer of the flattened patch (Dosovitskiy et al. 2021, appendix).
        nn.init.xavier_uniform_(self.projection.weight)
        if config.patch == 1:
            # Few values: by that rule the codes of position and date, whose variance is 1/2, would
            # be a multiple of what is seen.
            bound = math.sqrt(1.5 / modality.channels)
            nn.init.uniform_(self.projection.weight, -bound, bound)
        nn.init.zeros_(self.projection.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """Project normalised patches (n, C·p·p) to (n, D)."""
        projected: Tensor = self.projection(patches)
        return projected

    def no_patches(self) -> Tensor:
        """Patches (0, 0, C·p·p)."""
        return self.projection.weight.new_zeros(0, 0, self.projection.in_features)


class SpectralWeights(nn.Module):
    """Projection weights of a band by wavelength, bandwidth and GSD (DOFA, Xiong et al. 2024).

    One function for all optical modalities with patches of the same size: bands that no training
    sample had get weights, too. An MLP of sines and cosines of the logarithms of the three;
    those of a bandwidth or GSD that is not known are 0.
    """

    mlp_width = 128

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(2 * sum(_FREQUENCIES.values()), self.mlp_width)
        self.norm = nn.LayerNorm(self.mlp_width)
        self.second = nn.Linear(self.mlp_width, patch**2 * width)
        self.bias = nn.Parameter(torch.zeros(width))
        # Generated weights start with the variance of a projection of one band (Xavier).
        deviation = math.sqrt(2 / (patch**2 + width) / self.mlp_width)
        nn.init.normal_(self.second.weight, std=deviation)
        nn.init.zeros_(self.second.bias)

    def forward(self, codes: Tensor) -> Tensor:
        """Weights (D, C·p·p) of bands with codes (C, F), for the mean over bands."""
        generated = self.second(self.norm(F.gelu(self.first(codes))))
        by_band: Tensor = generated.reshape(len(codes), -1, len(self.bias)) / len(codes)
        return by_band.flatten(0, 1).T


class SpectralEmbedding(nn.Module):
    """A projection of an optical modality's patches by weights that its bands' optics decide."""

    interpolation: Interpolation = "bicubic"

    def __init__(self, modality: Modality, config: InputConfig) -> None:
        super().__init__()
        self.values = modality.channels * config.patch**2
        self.register_buffer("codes", _band_codes(modality), persistent=False)

    def forward(self, patches: Tensor, weights: SpectralWeights) -> Tensor:
        """Project normalised patches (n, C·p·p) to (n, D)."""
        return F.linear(patches, weights(self.get_buffer("codes")), weights.bias)

    def no_patches(self) -> Tensor:
        """Patches (0, 0, C·p·p)."""
        return self.get_buffer("codes").new_zeros(0, 0, self.values)


def has_wavelengths(modality: Modality) -> bool:
    """Whether a modality's weights can be a function of wavelength: reflectance of known bands."""
    return modality.unit == "reflectance" and all(
        band.wavelength_um is not None for band in modality.bands
    )


def _band_codes(modality: Modality) -> Tensor:
    """Codes (C, F) of each band's centre wavelength, bandwidth and GSD."""
    columns = (
        ("wavelength", _WAVELENGTHS_UM, [b.wavelength_um for b in modality.bands]),
        ("bandwidth", _BANDWIDTHS_UM, [b.bandwidth_um for b in modality.bands]),
        ("gsd", _GSDS_M, [b.gsd_m or modality.gsd_m for b in modality.bands]),
    )
    return torch.cat(
        [_log_codes(values, span, _FREQUENCIES[name]) for name, span, values in columns], dim=1
    )


def _log_codes(
    values: Sequence[float | None], span: tuple[float, float], frequencies: int
) -> Tensor:
    """Sines and cosines (n, 2 · frequencies) of logarithms; zeros for None."""
    low, high = span
    given = torch.tensor([value is not None for value in values])
    relative = torch.log(torch.tensor([value or low for value in values]) / low)
    angle = relative[:, None] * torch.arange(1, frequencies + 1) * math.pi / math.log(high / low)
    return torch.cat([angle.sin(), angle.cos()], dim=1) * given[:, None]


class ClassEmbedding(nn.Module):
    """A class map's patches: each class has a vector, each position in a patch a projection.

    Equal to a convolution over embedded pixels, computed as a lookup: the table of every
    (class, position) pair's contribution is small, and invalid pixels (-1) contribute nothing.
    """

    interpolation: Interpolation = "bilinear"

    def __init__(self, modality: Modality, config: InputConfig, width: int) -> None:
        super().__init__()
        self.positions = config.patch**2
        self.classes = nn.Parameter(torch.randn(len(modality.classes), config.class_width) * 0.02)
        self.projection = nn.Linear(config.class_width * self.positions, width)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed class indices (n, p·p), -1 where invalid, to (n, D)."""
        traced = torch.compiler.is_compiling()
        if not traced and not torch.is_grad_enabled() and not len(patches):
            # The table is larger than most batches of windows.
            return self.projection.weight.new_zeros(0, self.projection.out_features)
        width = self.classes.shape[1]
        weight = self.projection.weight.reshape(-1, width, self.positions)
        table = torch.einsum("ce,dep->cpd", self.classes, weight).flatten(0, 1)
        nothing = table.new_zeros(1, table.shape[1])
        position = torch.arange(self.positions, device=patches.device)
        entry = torch.where(patches >= 0, patches * self.positions + position, len(table))
        bags = F.embedding_bag(entry, torch.cat([table, nothing]), mode="sum")
        return bags + self.projection.bias

    def no_patches(self) -> Tensor:
        """Patches (0, 0, p·p)."""
        device = self.projection.weight.device
        return torch.zeros(0, 0, self.positions, dtype=torch.int64, device=device)


Embedding = PatchEmbedding | SpectralEmbedding | ClassEmbedding


class PositionTable(nn.Module):
    """Fixed sin-cos positions on a square grid over the chip, interpolated to any token grid.

    Half of the width encodes the row and half the column (Vaswani et al. 2017 in two dimensions;
    Chen et al. 2021). A token grid of any size or aspect spans the same square: positions are
    relative to the chip. Not a parameter, not saved; each grid is interpolated once and kept.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.register_buffer("table", sincos_table(width, side), persistent=False)
        self._kept: dict[tuple[tuple[int, int], str, torch.device], Tensor] = {}

    def forward(self, grid: tuple[int, int], interpolation: Interpolation) -> Tensor:
        """Positions (N, D) of a grid (rows, columns), row by row, in float32."""
        table = self.get_buffer("table")
        if any(isinstance(side, torch.SymInt) for side in grid):
            # A graph whose chips are of any size interpolates at each run.
            return _interpolated(table, grid, interpolation)
        key = (grid, interpolation, table.device)
        if key not in self._kept:
            same = tuple(table.shape[-2:]) == grid
            self._kept[key] = (
                table.flatten(2)[0].T.contiguous()
                if same
                else _interpolated(table, grid, interpolation)
            )
        return self._kept[key]


def _interpolated(table: Tensor, grid: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Positions (N, D) of a grid, from the table (1, D, side, side)."""
    resized = F.interpolate(table, size=grid, mode=interpolation, align_corners=False)
    return resized.flatten(2)[0].T.contiguous()


def sincos_table(width: int, side: int) -> Tensor:
    """Table (1, D, side, side): sines and cosines of the row, then of the column."""
    quarter = width // 4
    frequency = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=1).T
    across = wave[:, None, :].expand(-1, side, -1)
    down = wave[:, :, None].expand(-1, -1, side)
    return torch.cat([down, across])[None].to(torch.float32)
