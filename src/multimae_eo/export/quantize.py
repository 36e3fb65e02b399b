"""Weight-only quantisation: linear layers keep int8 or bfloat16 and compute in float32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Quantization = Literal["int8", "bf16"]


class CompactLinear(nn.Module):
    """A linear layer whose weight is stored small.

    int8: symmetric, one scale per output (weight ≈ integer · scale, at most half a step off).
    """

    stored: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, kind: Quantization) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = torch.ones(len(weight), 1, device=weight.device)
        if kind == "int8":
            scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
            stored = (weight / scale).round().to(torch.int8)
        else:
            stored = weight.to(torch.bfloat16)
        self.register_buffer("stored", stored)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The weight (out, in) in float32."""
        return self.stored.to(torch.float32) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        return F.linear(x, self.weight, self.bias)


def quantize(module: nn.Module, kind: Quantization) -> None:
    """Replace every linear layer inside ``module``, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, CompactLinear(child, kind))
        else:
            quantize(child, kind)
