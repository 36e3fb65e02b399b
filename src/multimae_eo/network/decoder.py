"""One shallow decoder per task: from the encoder's tokens to every patch of one modality."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multimae_eo.network.config import DecoderConfig
from multimae_eo.network.encoder import NORM_EPS, Block, CrossAttention, Mlp
from multimae_eo.network.tokens import TokenLayout, VisibleSlots

# Measured on the synthetic data set, see benchmarks/decoder_init.py.
_SHARPNESS = 4.0
_CONTENT = 0.1


class Decoder(nn.Module):
    """Cross-attention decoder (paper, section 3; Bachmann et al. 2022, section 3.4).

    Queries are the task's whole grid: projected visible tokens where there are any, a learned mask
    token elsewhere, plus modality embedding and position. The context is every visible token
    (likewise embedded) and the global tokens (not embedded). There is no residual around the
    cross-attention.
    """

    def __init__(
        self,
        modalities: tuple[str, ...],
        target: str,
        widths: tuple[int, int],
        config: DecoderConfig,
        *,
        features: int = 0,
    ) -> None:
        """``widths``: the encoder's width, and the number of values predicted per patch.
        ``features``: per token, of its interpolation in time (0: none)."""
        super().__init__()
        width = config.width
        self.target = target
        self.context = nn.Linear(widths[0], width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.modality = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(width) * 0.02) for name in modalities}
        )
        self.query_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.context_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.cross = CrossAttention(width, config.heads)
        self.out_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, config.mlp_ratio)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.interpolation = nn.Linear(features, width) if features else None
        self.out = nn.Linear(width, widths[1])

    def look_nearby(self) -> None:
        """Start with queries that attend to tokens of their position. Call after ``initialise``.

        Query and key projections begin as one scaled random rotation, so that their product
        measures how alike two vectors are; and the projected content begins small beside the
        position that is added to it, so that similar means near. With independent random
        projections the decoder first learns one output for all of a chip, and positions only
        after thousands of steps (docs/log.md has the numbers).
        """
        width = self.cross.q.out_features
        with torch.no_grad():
            rotation = nn.init.orthogonal_(torch.empty(width, width)) * _SHARPNESS
            self.cross.q.weight.copy_(rotation)
            self.cross.kv.weight[:width].copy_(rotation)
            self.context.weight.mul_(_CONTENT)

    def forward(
        self,
        tokens: Tensor,
        slots: VisibleSlots,
        layout: TokenLayout,
        positions: Tensor,
        rows: Tensor | None = None,
        *,
        features: Tensor | None = None,
    ) -> Tensor:
        """Predict all patches of the target modality: (B, N, P), or those of ``rows``: (B, Q, P).

        tokens: (B, K + G, D) from the encoder, global tokens last. positions: (L, width), of every
        token of every modality, or (B, L, width). rows: int64 (B, Q) in [0, N), the queries to
        compute, ascending and as many of each date. The self-attention blocks see one date at a
        time, so that the cost grows linearly in dates. features: (B, N, F), see
        ``time_interpolation``, of a series.
        """
        context = self.context(tokens)
        position_codes = torch.cat(
            [positions[..., s, :] + self.modality[name] for name, s in layout.slices.items()],
            dim=-2,
        )
        count = slots.count
        seen = context[:, :count]
        # Padding slots point past the end; any row will do there, the mask hides them.
        where = (
            slots.token if slots.attention_mask is None else slots.token.clamp(max=layout.count - 1)
        )
        embedded = torch.cat([seen + rows_at(position_codes, where), context[:, count:]], dim=1)

        part = layout.slices[self.target]
        length = part.stop - part.start
        inside = (slots.token >= part.start) & (slots.token < part.stop)
        row = torch.where(inside, slots.token - part.start, length)
        blank = self.mask_token.to(seen.dtype).expand(seen.shape[0], length + 1, -1)
        queries = blank.scatter(1, row[:, :, None].expand_as(seen), seen)[:, :length]
        queries = queries + position_codes[..., part, :]
        if rows is not None:
            queries = queries.gather(1, rows[:, :, None].expand(-1, -1, queries.shape[2]))

        attention_mask = slots.attention_mask
        if attention_mask is not None:
            extra = attention_mask.new_ones(attention_mask.shape[0], context.shape[1] - count)
            attention_mask = torch.cat([attention_mask, extra], dim=1)
        x = self.cross(self.query_norm(queries), self.context_norm(embedded), attention_mask)
        # In mixed precision what norms read stays in float32, here without a residual to see to it.
        x = x.to(queries.dtype)
        if self.interpolation is not None:
            if features is None:
                # Images have no neighbours in time; every weight still has a gradient.
                features = x.new_zeros(1, 1, self.interpolation.in_features)
            elif rows is not None:
                features = features.gather(1, rows[:, :, None].expand(-1, -1, features.shape[2]))
            x = x + self.interpolation(features)
        x = x + self.mlp(self.out_norm(x))
        dates = layout.date_count(self.target)
        x = x.reshape(len(x) * dates, -1, x.shape[2]) if dates > 1 else x
        for block in self.blocks:
            x = block(x)
        predicted: Tensor = self.out(x)
        return predicted.reshape(len(tokens), queries.shape[1], -1) if dates > 1 else predicted


def rows_at(codes: Tensor, token: Tensor) -> Tensor:
    """The codes (B, K, W) of the tokens (B, K), from (L, W) or (B, L, W)."""
    if codes.ndim == 2:
        return codes[token]
    return codes.gather(1, token[:, :, None].expand(-1, -1, codes.shape[2]))
