"""Decoders of one shape as one computation: their weights stacked, their products batched.

The function is that of each ``Decoder`` by itself. What is gained is launches: on a device where
each decoder's small products leave most of it idle, a group of them fills it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimae_eo.network.decoder import Decoder, rows_at
from multimae_eo.network.encoder import NORM_EPS, Mlp, attend
from multimae_eo.network.tokens import TokenLayout, VisibleSlots

M = TypeVar("M")

# Shape letters: G decoders of a group, B batch, T context tokens, N queries, W decoder width.


def groups(decoders: Mapping[str, Decoder], layout: TokenLayout) -> list[list[str]]:
    """Names of decoders that can be computed together: those whose targets have equal grids and
    numbers of dates."""
    by_count: dict[tuple[int, int], list[str]] = {}
    for name, decoder in decoders.items():
        rows, columns = layout.grids[decoder.target]
        count = (rows * columns, layout.date_count(decoder.target))
        by_count.setdefault(count, []).append(name)
    return list(by_count.values())


def decode_together(
    decoders: Sequence[Decoder],
    tokens: Tensor,
    slots: VisibleSlots,
    layout: TokenLayout,
    positions: Tensor,
    rows: Tensor | None = None,
) -> list[Tensor]:
    """What each decoder's ``forward`` gives, (B, N, P) each. All targets have N tokens.

    rows: int64 (G, B, Q), the queries of each decoder to compute; the result is then (B, Q, P).
    """
    group, size = len(decoders), len(tokens)
    context = _projected(decoders, tokens)
    names = list(layout.slices)
    modality = torch.stack([torch.stack([d.modality[n] for n in names]) for d in decoders])
    which = layout.modality_of.to(positions.device, non_blocking=True)
    modality_codes = modality[:, which]
    if positions.ndim == 3:
        modality_codes = modality_codes[:, None]
    position_codes = positions + modality_codes

    count = slots.count
    seen = context[:, :, :count]
    where = slots.token if slots.attention_mask is None else slots.token.clamp(max=layout.count - 1)
    context_codes = torch.stack([rows_at(codes, where) for codes in position_codes])
    embedded = torch.cat([seen + context_codes, context[:, :, count:]], dim=2)

    parts = [layout.slices[d.target] for d in decoders]
    length = parts[0].stop - parts[0].start
    first = torch.tensor([p.start for p in parts]).to(tokens.device, non_blocking=True)
    row = slots.token - first[:, None, None]
    row = torch.where((row >= 0) & (row < length), row, length)
    blank = torch.stack([d.mask_token for d in decoders]).to(seen.dtype)
    queries = blank[:, None, None].expand(group, size, length + 1, -1)
    queries = queries.scatter(2, row[..., None].expand_as(seen), seen)[:, :, :length]
    query_codes = torch.stack([position_codes[g][..., p, :] for g, p in enumerate(parts)])
    queries = queries + (query_codes if positions.ndim == 3 else query_codes[:, None])
    if rows is not None:
        queries = queries.gather(2, rows[..., None].expand(-1, -1, -1, queries.shape[3]))

    attention_mask = slots.attention_mask
    if attention_mask is not None:
        extra = attention_mask.new_ones(size, context.shape[2] - count)
        attention_mask = torch.cat([attention_mask, extra], dim=1).repeat(group, 1)
    x = _normed(decoders, lambda d: d.query_norm, queries)
    context = _normed(decoders, lambda d: d.context_norm, embedded)
    x = _cross(decoders, x, context, attention_mask).to(queries.dtype)
    x = x + _mlp(decoders, lambda d: d.mlp, _normed(decoders, lambda d: d.out_norm, x))
    dates = layout.date_count(decoders[0].target)
    x = x.reshape(group, size * dates, -1, x.shape[3])
    for depth in range(len(decoders[0].blocks)):
        blocks: list[Any] = [d.blocks[depth] for d in decoders]
        x = x + _attended(blocks, _normed(blocks, lambda b: b.norm1, x))
        x = x + _mlp(blocks, lambda b: b.mlp, _normed(blocks, lambda b: b.norm2, x))
    x = x.reshape(group, size, queries.shape[2], -1)
    # Tasks differ in what they predict per patch.
    return [d.out(x[g]) for g, d in enumerate(decoders)]


def _projected(decoders: Sequence[Decoder], tokens: Tensor) -> Tensor:
    """The context of all decoders, (G, B, T, W), in one product: they share their input."""
    weight = torch.cat([d.context.weight for d in decoders])
    bias = torch.cat([d.context.bias for d in decoders])
    wide = F.linear(tokens, weight, bias)
    return wide.reshape(*wide.shape[:2], len(decoders), -1).permute(2, 0, 1, 3)


def _linear(modules: Sequence[M], layer: Callable[[M], nn.Linear], x: Tensor) -> Tensor:
    """Each module's own linear layer on its part of (G, B, N, in)."""
    layers = [layer(m) for m in modules]
    weight = torch.stack([linear.weight for linear in layers]).transpose(1, 2)
    bias = torch.stack([linear.bias for linear in layers])[:, None]
    return torch.baddbmm(bias, x.flatten(1, 2), weight).reshape(*x.shape[:3], -1)


def _normed(modules: Sequence[M], layer: Callable[[M], nn.LayerNorm], x: Tensor) -> Tensor:
    layers = [layer(m) for m in modules]
    weight = torch.stack([norm.weight for norm in layers])[:, None, None]
    bias = torch.stack([norm.bias for norm in layers])[:, None, None]
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * weight + bias


def _mlp(modules: Sequence[M], layer: Callable[[M], Mlp], x: Tensor) -> Tensor:
    activations = F.gelu(_linear(modules, lambda m: layer(m).fc1, x))
    return _linear(modules, lambda m: layer(m).fc2, activations)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(G, B, N, W) as (G · B, heads, N, head width)."""
    group, size, length, _ = x.shape
    return x.reshape(group * size, length, heads, -1).transpose(1, 2)


def _merged(x: Tensor, group: int) -> Tensor:
    rows, _, length, _ = x.shape
    return x.transpose(1, 2).reshape(group, rows // group, length, -1)


def _cross(
    decoders: Sequence[Decoder], x: Tensor, context: Tensor, attention_mask: Tensor | None
) -> Tensor:
    heads = decoders[0].cross.heads
    query = _linear(decoders, lambda d: d.cross.q, x)
    key, value = _linear(decoders, lambda d: d.cross.kv, context).chunk(2, dim=-1)
    mixed = attend(_heads(query, heads), _heads(key, heads), _heads(value, heads), attention_mask)
    return _linear(decoders, lambda d: d.cross.proj, _merged(mixed, len(decoders)))


def _attended(blocks: Sequence[Any], x: Tensor) -> Tensor:
    heads = blocks[0].attn.heads
    query, key, value = _linear(blocks, lambda b: b.attn.qkv, x).chunk(3, dim=-1)
    mixed = attend(_heads(query, heads), _heads(key, heads), _heads(value, heads), None)
    return _linear(blocks, lambda b: b.attn.proj, _merged(mixed, len(blocks)))
