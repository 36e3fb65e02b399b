"""Heads: from the encoder's tokens to one vector per chip, or to a map.

Dense heads read the tokens of all modalities fused into one map (``Features.fused``: their mean at
each position). Shape letters: B batch, D encoder width, O outputs, h w the grid of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimae_eo.errors import ConfigError
from multimae_eo.modality import ModalitySet
from multimae_eo.network.config import (
    POOLS_OF_ALL_LAYERS,
    POOLS_WITH_STD,
    HeadConfig,
    ModelConfig,
)
from multimae_eo.network.date_fusion import DateFusion
from multimae_eo.network.features import Features
from multimae_eo.network.unet_head import UnetHead

_POOLED = (1, 2, 3, 6)
_LEVELS = 4


class ChipHead(nn.Module):
    """One vector per chip: pool the tokens, normalise each part, project: (B, O)."""

    def __init__(self, width: int, outputs: int, config: HeadConfig, depth: int) -> None:
        super().__init__()
        self.pool = config.pool
        layers = config.pool in POOLS_OF_ALL_LAYERS
        self.blocks = tuple(range(1, depth + 1)) if layers else ()
        self.dates = DateFusion(width, config.dates, maps=False)
        self.parts = (depth if layers else 1) * (2 if config.pool in POOLS_WITH_STD else 1)
        self.parts *= self.dates.parts
        self.norm = nn.LayerNorm(width, elementwise_affine=self.parts == 1)
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(self.parts * width, outputs)
        nn.init.trunc_normal_(self.project.weight, std=0.01)
        nn.init.zeros_(self.project.bias)

    def pooled(self, features: Features) -> Tensor:
        """The summary (B, parts · D), which the windows of a larger chip are averaged by."""
        return self.dates.vector(features, self.pool)

    def normalised(self, pooled: Tensor) -> Tensor:
        """Summaries (B, parts · D) as the projection reads them: each part normalised."""
        parts: Tensor = self.norm(pooled.view(pooled.shape[0], self.parts, -1)).flatten(1)
        return parts

    def predict(self, pooled: Tensor) -> Tensor:
        """Predict from summaries (B, parts · D): (B, O)."""
        out: Tensor = self.project(self.dropout(self.normalised(pooled)))
        return out

    def forward(self, features: Features) -> Tensor:
        """Predict from features: (B, O)."""
        return self.predict(self.pooled(features))


class LinearHead(nn.Module):
    """A linear layer per position of the fused map: (B, O, h, w)."""

    blocks: tuple[int, ...] = ()

    def __init__(self, width: int, outputs: int, config: HeadConfig) -> None:
        super().__init__()
        self.dates = DateFusion(width, config.dates, maps=True)
        self.norm = _norm(width)
        self.dropout = nn.Dropout2d(config.dropout)
        self.project = nn.Conv2d(width, outputs, 1)

    def normalised(self, features: Features) -> Tensor:
        """The fused map as the projection reads it: (B, D, h, w)."""
        fused: Tensor = self.norm(self.dates.map(features))
        return fused

    def forward(self, features: Features) -> Tensor:
        """Predict from features: (B, O, h, w)."""
        out: Tensor = self.project(self.dropout(self.normalised(features)))
        return out


class ConvNextHead(nn.Module):
    """Split each position into 4 × 4, refine by ConvNeXt blocks (Liu et al. 2022): (B, O, 4h, 4w).

    The head of MultiMAE (Bachmann et al. 2022, appendix), on the fused map.
    """

    blocks: tuple[int, ...] = ()

    def __init__(self, width: int, outputs: int, config: HeadConfig) -> None:
        super().__init__()
        self.dates = DateFusion(width, config.dates, maps=True)
        self.split = nn.Sequential(
            _norm(width), nn.Conv2d(width, config.width * _LEVELS**2, 1), nn.PixelShuffle(_LEVELS)
        )
        self.refine = nn.Sequential(*(_ConvNextBlock(config.width) for _ in range(config.depth)))
        self.dropout = nn.Dropout2d(config.dropout)
        self.project = nn.Conv2d(config.width, outputs, 1)

    def forward(self, features: Features) -> Tensor:
        """Predict from features: (B, O, 4h, 4w)."""
        x = self.refine(self.split(self.dates.map(features)))
        out: Tensor = self.project(self.dropout(x))
        return out


class _ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = _norm(width)
        self.mix = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mix(self.norm(self.spread(x)))
        return out


class _Pyramid(nn.Module):
    """Fused maps after four blocks of the encoder, at 4, 2, 1 and ½ times the grid of tokens."""

    def __init__(self, width: int, config: HeadConfig) -> None:
        super().__init__()
        channels = config.width
        self.dates = DateFusion(width, config.dates, maps=True)
        self.levels = nn.ModuleList(
            nn.Sequential(_norm(width), nn.Conv2d(width, channels, 1), *resize)
            for resize in (
                (nn.ConvTranspose2d(channels, channels, 4, stride=4),),
                (nn.ConvTranspose2d(channels, channels, 2, stride=2),),
                (),
                (nn.MaxPool2d(2, ceil_mode=True),),
            )
        )

    def forward(self, features: Features) -> list[Tensor]:
        """Four maps (B, C, …), the finest first."""
        return [level(self.dates.map(features, i)) for i, level in enumerate(self.levels)]


class UperHead(nn.Module):
    """A feature pyramid with pooled context (after UPerNet, Xiao et al. 2018): (B, O, 4h, 4w)."""

    def __init__(self, width: int, outputs: int, config: HeadConfig, depth: int) -> None:
        super().__init__()
        channels = config.width
        self.blocks = four_blocks(depth)
        self.pyramid = _Pyramid(width, config)
        self.pooled = nn.ModuleList(_conv(channels, channels, 1) for _ in _POOLED)
        self.context = _conv(channels * (1 + len(_POOLED)), channels, 3)
        self.smooth = nn.ModuleList(_conv(channels, channels, 3) for _ in range(_LEVELS - 1))
        self.merge = _conv(channels * _LEVELS, channels, 3)
        self.dropout = nn.Dropout2d(config.dropout)
        self.project = nn.Conv2d(channels, outputs, 1)

    def forward(self, features: Features) -> Tensor:
        """Predict from features: (B, O, 4h, 4w)."""
        *finer, coarsest = self.pyramid(features)
        pooled = [
            _resized(conv(F.adaptive_avg_pool2d(coarsest, side)), coarsest)
            for side, conv in zip(_POOLED, self.pooled, strict=True)
        ]
        above: Tensor = self.context(torch.cat([coarsest, *pooled], dim=1))
        maps = [above]
        for level, smooth in zip(reversed(finer), self.smooth, strict=True):
            above = level + _resized(above, level)
            maps.append(smooth(above))
        merged = torch.cat([_resized(m, above) for m in maps], dim=1)
        out: Tensor = self.project(self.dropout(self.merge(merged)))
        return out


class DptHead(nn.Module):
    """Maps of four blocks fused from coarse to fine (DPT, Ranftl et al. 2021): (B, O, 8h, 8w)."""

    def __init__(self, width: int, outputs: int, config: HeadConfig, depth: int) -> None:
        super().__init__()
        channels = config.width
        self.blocks = four_blocks(depth)
        self.pyramid = _Pyramid(width, config)
        self.taken = nn.ModuleList(_Residual(channels) for _ in range(_LEVELS))
        self.fused = nn.ModuleList(_Residual(channels) for _ in range(_LEVELS))
        self.last = _conv(channels, channels, 3)
        self.dropout = nn.Dropout2d(config.dropout)
        self.project = nn.Conv2d(channels, outputs, 1)

    def forward(self, features: Features) -> Tensor:
        """Predict from features: (B, O, 8h, 8w)."""
        levels = self.pyramid(features)
        x = torch.zeros_like(levels[-1])
        for level, taken, fused in zip(reversed(levels), self.taken, self.fused, strict=True):
            x = fused(_resized(x, level) + taken(level))
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        out: Tensor = self.project(self.dropout(self.last(x)))
        return out


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.gelu(self.first(F.gelu(x))))
        return out


Head = ChipHead | LinearHead | ConvNextHead | UperHead | DptHead | UnetHead


def build_head(
    config: HeadConfig, model: ModelConfig, modalities: ModalitySet, *, outputs: int, dense: bool
) -> Head:
    """The head of a config, on the encoder of a ``model`` of ``modalities``.

    ``dense``: predict maps, not one vector per chip. Raises ConfigError as ``check_head``.
    """
    check_head(config, dense=dense)
    width, depth = model.encoder.width, model.encoder.depth
    if not dense:
        return ChipHead(width, outputs, config, depth)
    if config.name == "linear":
        return LinearHead(width, outputs, config)
    if config.name == "convnext":
        return ConvNextHead(width, outputs, config)
    if config.name == "unet":
        return UnetHead(
            width,
            outputs,
            config,
            blocks=four_blocks(depth),
            modalities=modalities,
            inputs=model.inputs,
        )
    kind = UperHead if config.name == "upernet" else DptHead
    return kind(width, outputs, config, depth)


def check_head(config: HeadConfig, *, dense: bool) -> None:
    """ConfigError for a map head where labels are one per chip, and for options that differ."""
    if not dense and config.name != "linear":
        raise ConfigError(
            f"head {config.name!r} predicts maps; labels are one per chip: take 'linear'"
        )
    if not dense and config.pool == "global" and config.dates != "mean":
        raise ConfigError(
            f"head.dates={config.dates!r} weighs tokens of dates; head.pool 'global' reads none: "
            "take 'mean'"
        )


def four_blocks(depth: int) -> tuple[int, ...]:
    """Four blocks, from 1, evenly spaced to the last; fewer blocks serve repeatedly."""
    return tuple(max(1, round(depth * (i + 1) / _LEVELS)) for i in range(_LEVELS))


def _norm(channels: int) -> nn.GroupNorm:
    """Independent of the batch, unlike batch normalisation: chips are large, batches small."""
    return nn.GroupNorm(1, channels)


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), _norm(outputs), nn.GELU()
    )


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear")
