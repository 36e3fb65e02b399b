"""Low-rank adaptation (LoRA, Hu et al. 2022): frozen layers, each with a small difference."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimae_eo.errors import ConfigError
from multimae_eo.network.encoder import Encoder


class LowRankLinear(nn.Linear):
    """A linear layer plus ``up @ down``, which alone learns; at first exactly the layer.

    ``down``: (rank, in). ``up``: (out, rank), zeros at first.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__(linear.in_features, linear.out_features, device=linear.weight.device)
        self.weight, self.bias = linear.weight, linear.bias
        self.requires_grad_(False)
        self.down = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        return super().forward(x) + F.linear(F.linear(x, self.down), self.up)

    def merged(self) -> nn.Linear:
        """The equivalent plain linear layer."""
        linear = nn.Linear(self.in_features, self.out_features, device=self.weight.device)
        linear.weight, linear.bias = self.weight, self.bias
        with torch.no_grad():
            linear.weight += self.up @ self.down
        return linear.requires_grad_(True)


def add_low_rank(encoder: Encoder, rank: int) -> None:
    """Give every linear layer of the blocks a difference of ``rank``, in place.

    Raises ConfigError where the rank is no smaller than the encoder's width.
    """
    for block in encoder.blocks:
        for parent in block.modules():
            for name, layer in list(parent.named_children()):
                if not isinstance(layer, nn.Linear):
                    continue
                if rank >= min(layer.in_features, layer.out_features):
                    raise ConfigError(
                        f"adapt.lora: rank {rank} of layers {layer.in_features} wide is not low; "
                        "take 4 to 16"
                    )
                setattr(parent, name, LowRankLinear(layer, rank))


def merge_low_rank(encoder: Encoder) -> None:
    """Make plain layers again, in place: the same function, up to rounding, and the same names."""
    for block in encoder.blocks:
        for parent in block.modules():
            for name, layer in list(parent.named_children()):
                if isinstance(layer, LowRankLinear):
                    setattr(parent, name, layer.merged())
