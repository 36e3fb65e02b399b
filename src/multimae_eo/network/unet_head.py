"""Boundaries finer than a patch: a U-Net over the inputs' pixels with the tokens at its bottom.

A token is one vector per patch, so that within a patch other heads can only interpolate. Here
convolutions of the pixels find boundaries, and tokens add what is around (TransUNet, Chen et al.
2021, with a pre-trained encoder; Ronneberger et al. 2015).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimae_eo.modality import ModalitySet
from multimae_eo.network.config import HeadConfig, InputConfig
from multimae_eo.network.date_fusion import DateFusion
from multimae_eo.network.features import Features
from multimae_eo.network.tokens import unpatchify

_LEVELS = 3


class UnetHead(nn.Module):
    """Maps of the finest modality's pixels: (B, O, H, W), padded to whole patches.

    Batch normalisation: in training its output depends on the batch, unlike that of other heads.
    It sees only the pixels of tokens that the encoder sees: inputs that are masked or left out
    count as 0, the mean. Class maps reach it by their tokens only.

    Args:
        width: D, of the encoder.
        outputs: O.
        config: the head's; ``width`` channels at full resolution, twice as many per level below.
        blocks: of the encoder, whose tokens are read.
        modalities: the encoder's.
        inputs: how each becomes tokens.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        config: HeadConfig,
        *,
        blocks: Sequence[int],
        modalities: ModalitySet,
        inputs: Mapping[str, InputConfig],
    ) -> None:
        super().__init__()
        self.channels = {n: m.channels for n, m in modalities.items() if not m.categorical}
        self.inputs = dict(inputs)
        self.blocks = tuple(blocks)
        self.dates = DateFusion(width, config.dates, maps=True)
        widths = [config.width * 2**i for i in range(_LEVELS + 1)]
        before = [max(1, sum(self.channels.values())), *widths]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip(before, widths, strict=False))
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for _ in self.blocks)
        self.tokens = nn.Conv2d(len(self.blocks) * width, widths[-1], 1)
        self.bottom = _double(2 * widths[-1], widths[-1])
        self.up = nn.ModuleList(
            _double(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.dropout = nn.Dropout2d(config.dropout)
        self.project = nn.Conv2d(config.width, outputs, 1)

    def forward(self, features: Features) -> Tensor:
        """Predict from features: (B, O, H, W)."""
        x = self.planes(features)
        levels: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2, ceil_mode=True))
            levels.append(x)
        maps = [norm(self.dates.map(features, i)) for i, norm in enumerate(self.norms)]
        tokens = self.tokens(torch.cat(maps, dim=1))
        tokens = F.interpolate(tokens, x.shape[-2:], mode="bilinear")
        x = self.bottom(torch.cat([x, tokens], dim=1))
        for block, beside in zip(self.up, levels[-2::-1], strict=True):
            larger = F.interpolate(x, beside.shape[-2:], mode="bilinear")
            x = block(torch.cat([larger, beside], dim=1))
        out: Tensor = self.project(self.dropout(x))
        return out

    def planes(self, features: Features) -> Tensor:
        """Normalised pixels of every continuous modality at the finest one's resolution.

        (B, C, H, W). Of a series, the mean over the dates that the encoder saw; 0 where it saw
        nothing.
        """
        finest = max(self.inputs, key=lambda n: self.inputs[n].size)
        rows, cols = features.layout.grids[finest]
        side, like = self.inputs[finest].token_pixels, features.tokens
        size = (rows * side, cols * side)
        planes = []
        for name, channels in self.channels.items():
            if name not in features.patches:
                planes.append(like.new_zeros(like.shape[0], channels, *size))
                continue
            plane = self._plane(name, features)
            if self.inputs[name].size != self.inputs[finest].size:
                plane = F.interpolate(plane, size, mode="bilinear")
            planes.append(plane.to(like.dtype))
        return torch.cat(planes or [like.new_zeros(like.shape[0], 1, *size)], dim=1)

    def _plane(self, name: str, features: Features) -> Tensor:
        layout, patches = features.layout, features.patches[name]
        shown = features.visible[:, layout.slices[name], None].to(patches.dtype)
        values, dates = patches * shown, layout.date_count(name)
        if dates > 1:
            count = shown.reshape(values.shape[0], dates, -1, 1).sum(dim=1)
            values = values.reshape(values.shape[0], dates, -1, values.shape[2]).sum(dim=1)
            values = values / count.clamp_min(1)
        return unpatchify(values, layout.grids[name], self.inputs[name].patch)


class _BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes the running moments where a batch is a single value."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


def _double(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            layer
            for channels in (before, after)
            for layer in (
                nn.Conv2d(channels, after, 3, padding=1, bias=False),
                _BatchNorm(after),
                nn.ReLU(),
            )
        )
    )
