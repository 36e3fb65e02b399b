"""The shared encoder: a pre-norm ViT over the visible tokens of all modalities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from multimae_eo.errors import ConfigError
from multimae_eo.network.config import EncoderConfig, RuntimePolicy

NORM_EPS = 1e-6
_SHORT = 256


def attend(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention over (B, heads, length, head width).

    attention_mask: bool (B, key length), False for keys to ignore; None when all count.
    """
    mask = None if attention_mask is None else attention_mask[:, None, None, :]
    if query.device.type == "cpu" and key.shape[2] <= _SHORT:
        # For short sequences plain products beat the fused kernel's backward on CPUs 5-10 times.
        shape = query.shape
        query, key, value = (t.flatten(0, 1) for t in (query, key, value))
        # The scale rides along with the product.
        none, scale = query.new_empty(1, 1, 1), query.shape[-1] ** -0.5
        scores = torch.baddbmm(none, query, key.transpose(1, 2), beta=0, alpha=scale)
        if mask is not None:
            excluded = ~mask.expand(*shape[:3], -1).flatten(0, 1)
            scores = scores.masked_fill(excluded, float("-inf"))
        return torch.bmm(scores.softmax(dim=-1), value).reshape(shape)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, D) to (…, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Attend among tokens (B, K, D); ``attention_mask`` (B, K) as in ``attend``."""
        size, length, width = x.shape
        qkv = self.qkv(x).reshape(size, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = attend(qkv[0], qkv[1], qkv[2], attention_mask)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(size, length, width))
        return out


class CrossAttention(nn.Module):
    """Multi-head attention from queries to a context."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Attend from (B, N, D) to (B, K, D); ``attention_mask`` (B, K) as in ``attend``."""
        size, length, width = x.shape
        query = self.q(x).reshape(size, length, self.heads, -1).transpose(1, 2)
        kv = self.kv(context).reshape(size, context.shape[1], 2, self.heads, -1)
        key, value = kv.permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value, attention_mask)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(size, length, width))
        return out


class Block(nn.Module):
    """A pre-norm transformer block.

    ``drop_path``: probability of leaving out a branch of a sample in training (Huang et al. 2016).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map (B, K, D) to (B, K, D)."""
        x = x + self._thinned(self.attn(self.norm1(x), attention_mask))
        out: Tensor = x + self._thinned(self.mlp(self.norm2(x)))
        return out

    def _thinned(self, branch: Tensor) -> Tensor:
        if not (self.training and self.drop_path):
            return branch
        drawn = torch.rand(len(branch), 1, 1, device=branch.device)
        return branch * (drawn >= self.drop_path) / (1.0 - self.drop_path)


class Encoder(nn.Module):
    """The stack of blocks; no final norm (paper)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.activation_checkpointing = False

    def set_runtime(self, policy: RuntimePolicy) -> None:
        """Compute by ``policy`` from now on; ConfigError where its drop path has another depth."""
        rates = policy.drop_path or (0.0,) * len(self.blocks)
        if len(rates) != len(self.blocks):
            raise ConfigError(f"drop path: {len(rates)} rates for {len(self.blocks)} blocks")
        self.activation_checkpointing = policy.activation_checkpointing
        for block, rate in zip(self.blocks, rates, strict=True):
            cast(Block, block).drop_path = rate
            if policy.compiled:
                block.compile()

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Encode (B, K, D); padding slots (``attention_mask`` False) are never attended to."""
        for block in self.blocks:
            x = self._through(block, x, attention_mask)
        return x

    def stages(self, x: Tensor, attention_mask: Tensor | None = None) -> Iterator[Tensor]:
        """The tokens (B, K, D) after each block; the last are those of ``forward``."""
        for block in self.blocks:
            x = self._through(block, x, attention_mask)
            yield x

    def _through(self, block: nn.Module, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, x, attention_mask, use_reentrant=False)
        else:
            out = block(x, attention_mask)
        return out


def initialise(module: nn.Module) -> None:
    """Xavier-uniform linear layers with query, key and value as matrices of their own."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            parts = 3 if name.endswith("qkv") else 2 if name.endswith("kv") else 1
            rows = child.out_features // parts
            with torch.no_grad():
                for i in range(parts):
                    nn.init.xavier_uniform_(child.weight[i * rows : (i + 1) * rows])
                nn.init.zeros_(child.bias)
