"""A plain, honest implementation of the same function, to compare speeds and numbers with.

What a first version often looks like: every patch embedded before the visible ones are picked,
class maps by a convolution over embedded pixels, positions interpolated anew, attention written
out, decoders one after another, masks drawn by loops over samples and modalities, losses on
pixels after the patches are put back together, each fetched with ``.item()``, AdamW without
fusing. It holds no weights: it is given a model and uses the model's own, so that outputs, losses
and gradients can be compared one by one (tests/benchmarks/test_naive.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from multimae_eo.network.embedding import ClassEmbedding
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.tokens import Patches, TokenLayout, TokenState, unpatchify

PATCH_NORM_EPS = 1e-6


def draw_states(layout: TokenLayout, *, batch: int, num_visible_tokens: int, seed: int) -> Tensor:
    """States (B, L) of complete samples: a Dirichlet share per modality, by loops."""
    rng = np.random.default_rng(seed)
    states = torch.full((batch, layout.count), int(TokenState.MASKED), dtype=torch.int8)
    for b in range(batch):
        shares = np.round(rng.dirichlet(np.ones(len(layout.grids))) * num_visible_tokens).astype(
            int
        )
        chosen: list[int] = []
        for part, share in zip(layout.slices.values(), shares, strict=True):
            order = rng.permutation(part.stop - part.start) + part.start
            chosen += order[:share].tolist()
        others = [t for t in rng.permutation(layout.count).tolist() if t not in set(chosen)]
        chosen = (rng.permutation(chosen).tolist() + others)[:num_visible_tokens]
        states[b, chosen] = int(TokenState.VISIBLE)
    return states


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention, written out, of (B, N, D) to (B, K, D)."""
    size, length, width = query.shape
    head = width // heads

    def split(x: Tensor) -> Tensor:
        return x.view(size, x.shape[1], heads, head).permute(0, 2, 1, 3)

    weights = split(query) @ split(key).transpose(-2, -1) / head**0.5
    mixed: Tensor = weights.softmax(dim=-1) @ split(value)
    return mixed.permute(0, 2, 1, 3).contiguous().view(size, length, width)


def block(layer: Any, x: Tensor) -> Tensor:
    """A transformer block over (B, K, D)."""
    own = layer.attn
    query, key, value = own.qkv(layer.norm1(x)).chunk(3, dim=-1)
    x = x + own.proj(attention(query, key, value, own.heads))
    hidden = F.gelu(layer.mlp.fc1(layer.norm2(x)))
    out: Tensor = x + layer.mlp.fc2(hidden)
    return out


def embedded(model: MultiMAE, patches: Patches) -> Tensor:
    """Every patch of every modality: (B, L, D)."""
    parts = []
    for name, values in patches.values.items():
        embed: Any = model.embeddings[name]
        if isinstance(embed, ClassEmbedding):
            vectors = class_vectors(embed, values)
        else:
            vectors = embed.projection(values)
        grid = patches.layout.grids[name]
        parts.append(
            vectors + positions(model.positions.get_buffer("table"), grid, embed.interpolation)
        )
    return torch.cat(parts, dim=1)


def class_vectors(embed: ClassEmbedding, values: Tensor) -> Tensor:
    """A class map's patches (B, N, p·p) by a convolution over embedded pixels: (B, N, D)."""
    size, count, area = values.shape
    side = round(area**0.5)
    pixels = F.embedding(values.clamp(min=0), embed.classes) * (values >= 0)[..., None]
    planes = pixels.flatten(0, 1).transpose(1, 2).reshape(size * count, -1, side, side)
    weight = embed.projection.weight.reshape(-1, planes.shape[1], side, side)
    return F.conv2d(planes, weight, embed.projection.bias).reshape(size, count, -1)


def positions(table: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """The table of positions, interpolated to a grid: (N, D)."""
    if tuple(table.shape[-2:]) != grid:
        table = F.interpolate(table, size=grid, mode=mode, align_corners=False)
    return table.flatten(2)[0].T


def predict(model: MultiMAE, patches: Patches, states: Tensor) -> dict[str, Tensor]:
    """Every task's patches (B, N, P), of complete samples with equally many visible tokens."""
    every = embedded(model, patches)
    tokens = [(row == TokenState.VISIBLE).nonzero()[:, 0].to(every.device) for row in states]
    x = torch.stack([every[b, t] for b, t in enumerate(tokens)])
    x = torch.cat([x, model.global_tokens.expand(len(x), -1, -1)], dim=1)
    for layer in model.encoder.blocks:
        x = block(layer, x)
    table = model.decoder_positions.get_buffer("table")
    grids = patches.layout.grids.values()
    places = torch.cat([positions(table, grid, "bilinear") for grid in grids])
    where = torch.stack(tokens)
    return {t.name: decode(model, t.name, x, where, patches.layout, places) for t in model.tasks}


def decode(
    model: MultiMAE, task: str, x: Tensor, where: Tensor, layout: TokenLayout, places: Tensor
) -> Tensor:
    """One task's decoder."""
    own: Any = model.decoders[task]
    count = where.shape[1]
    context = own.context(x)
    here = torch.cat([places[s] + own.modality[n] for n, s in layout.slices.items()])
    part = layout.slices[own.target]
    queries = []
    for b, visible in enumerate(where):
        row = own.mask_token.to(context.dtype).repeat(part.stop - part.start, 1)
        inside = (visible >= part.start) & (visible < part.stop)
        row = row.index_put((visible[inside] - part.start,), context[b, :count][inside])
        queries.append(row + here[part])
    seen = torch.cat([context[:, :count] + here[where], context[:, count:]], dim=1)
    query = own.cross.q(own.query_norm(torch.stack(queries)))
    key, value = own.cross.kv(own.context_norm(seen)).chunk(2, dim=-1)
    y = own.cross.proj(attention(query, key, value, own.cross.heads))
    y = y + own.mlp.fc2(F.gelu(own.mlp.fc1(own.out_norm(y))))
    for layer in own.blocks:
        y = block(layer, y)
    predicted: Tensor = own.out(y)
    return predicted


def losses(
    model: MultiMAE, patches: Patches, states: Tensor, predictions: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Each task's loss on the pixels of masked patches, of complete samples."""
    found = {}
    for task in model.tasks:
        grid, side = patches.layout.grids[task.modality], model.config.inputs[task.modality].patch
        target = patches.values[task.modality]
        if task.patch_normalise:
            mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) / (variance + PATCH_NORM_EPS).sqrt()
        said = unpatchify(predictions[task.name].float(), grid, side)
        truth = unpatchify(target, grid, side)
        hidden = states[:, patches.layout.slices[task.modality]] == TokenState.MASKED
        mask = hidden.to(said.device).view(-1, 1, *grid).float()
        mask = F.interpolate(mask, scale_factor=side, mode="nearest")
        if task.loss == "cross_entropy":
            mask = mask * (truth >= 0)
            errors = F.cross_entropy(said, truth[:, 0], ignore_index=-1, reduction="none")[:, None]
        elif task.loss == "l1":
            errors = (said - truth).abs()
        else:
            errors = (said - truth) ** 2
        mask = mask.expand_as(errors)
        per_sample = (errors * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)
        measured = mask.sum((1, 2, 3)) > 0
        found[task.name] = per_sample.sum() / measured.sum().clamp(min=1)
    return found


def total(model: MultiMAE, by_task: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum that is minimised."""
    return torch.stack([task.weight * by_task[task.name] for task in model.tasks]).sum()
