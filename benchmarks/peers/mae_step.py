"""The training step beside a ViT-MAE made of timm's blocks, of equal FLOPs.

The peer is the masked autoencoder of He et al. (2022) on one image of twelve bands: 112 px, patches
of 8, 49 of 196 tokens visible, a class token, a decoder of plain blocks over all tokens, the
squared error of normalised masked patches. Its encoder has the size of ours and sees as many
tokens; width and depth of its decoder are searched so that both steps need equally many FLOPs.
"""

from __future__ import annotations

import argparse
import bisect
import functools
from collections.abc import Callable
from typing import Any

import measure
import step
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from multimae_eo.network.config import EncoderConfig, encoder_named
from peers.ratios import installed, paired

BANDS, PATCH, SIDE = 12, 8, 112
TOKENS = (SIDE // PATCH) ** 2
DECODER_DEPTHS = (1, 2, 4, 8)
DECODER_WIDTHS = range(32, 513, 32)
HEAD_WIDTH = 32


class TimmMAE(nn.Module):
    """A masked autoencoder of timm's transformer blocks; ``forward`` returns its loss."""

    def __init__(self, encoder: EncoderConfig, width: int, depth: int) -> None:
        from timm.models.vision_transformer import (  # type: ignore[import-not-found, unused-ignore]
            Block,
        )

        super().__init__()
        self.embed = nn.Conv2d(BANDS, encoder.width, PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, encoder.width))
        self.positions = nn.Parameter(torch.randn(1, TOKENS, encoder.width) * 0.02)
        self.encoder = nn.Sequential(
            *(
                Block(encoder.width, encoder.heads, mlp_ratio=encoder.mlp_ratio, qkv_bias=True)
                for _ in range(encoder.depth)
            ),
            nn.LayerNorm(encoder.width),
        )
        self.context = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_positions = nn.Parameter(torch.randn(1, TOKENS + 1, width) * 0.02)
        self.decoder = nn.Sequential(
            *(
                Block(width, max(1, width // HEAD_WIDTH), mlp_ratio=4.0, qkv_bias=True)
                for _ in range(depth)
            ),
            nn.LayerNorm(width),
        )
        self.out = nn.Linear(width, PATCH**2 * BANDS)

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        """The loss. images: (B, C, H, W), normalised; visible: indices (B, K) of tokens."""
        size, count = visible.shape
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.positions
        seen = tokens.gather(1, visible[:, :, None].expand(-1, -1, tokens.shape[2]))
        seen = torch.cat([self.class_token.expand(size, -1, -1), seen], dim=1)
        context = self.context(self.encoder(seen))
        queries = self.mask_token.expand(size, TOKENS, -1).to(context.dtype)
        at = visible[:, :, None].expand(-1, -1, context.shape[2])
        full = torch.cat([context[:, :1], queries.scatter(1, at, context[:, 1:])], dim=1)
        predicted = self.out(self.decoder(full + self.decoder_positions))[:, 1:]
        errors = (predicted - _targets(images)).square().mean(dim=2)
        masked = torch.ones(size, TOKENS, device=images.device).scatter(1, visible, 0.0)
        loss: Tensor = (errors * masked).sum() / (size * (TOKENS - count))
        return loss


def _targets(images: Tensor) -> Tensor:
    """Patches (B, L, p·p·C), each normalised."""
    patches = nn.functional.unfold(images, PATCH, stride=PATCH).transpose(1, 2)
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def flops_per_sample(work: Callable[[], Tensor], batch: int) -> float:
    """FLOPs of a forward and backward pass, by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        work().backward()
    return float(counter.get_total_flops()) / batch


def timm_flops(encoder: EncoderConfig, width: int, depth: int, visible: int) -> float:
    """FLOPs per sample of the peer's step; counted on the meta device, where nothing is computed.

    The counter sees attention only where it is written as matrix products.
    """
    from timm.layers import (  # type: ignore[import-not-found, unused-ignore]
        set_fused_attn,
        use_fused_attn,
    )

    before = use_fused_attn()
    set_fused_attn(False)
    try:
        with torch.device("meta"):
            model = TimmMAE(encoder, width, depth)
            images = torch.zeros(1, BANDS, SIDE, SIDE)
            indices = torch.zeros(1, visible, dtype=torch.int64)
        return flops_per_sample(lambda: model(images, indices), 1)
    finally:
        set_fused_attn(bool(before))


def matching_decoder(encoder: EncoderConfig, flops: float, visible: int) -> tuple[int, int]:
    """Width and depth of the peer's decoder whose step is nearest to ``flops`` per sample."""

    shapes: dict[tuple[int, int], float] = {}

    def counted(width: int, depth: int) -> float:
        if (width, depth) not in shapes:
            shapes[width, depth] = timm_flops(encoder, width, depth, visible)
        return shapes[width, depth]

    for depth in DECODER_DEPTHS:
        # More FLOPs the wider: the two widths around the requested count are among those tried.
        bisect.bisect(DECODER_WIDTHS, flops, key=functools.partial(counted, depth=depth))
    return min(shapes, key=lambda shape: abs(shapes[shape] - flops))


def timm_step(
    encoder: EncoderConfig, shape: tuple[int, int], batch: int, visible: int
) -> Callable[[], float]:
    """An optimiser step of the peer on images of noise, masks drawn anew; returns its loss."""
    torch.manual_seed(0)
    model = TimmMAE(encoder, *shape)
    images = torch.randn(batch, BANDS, SIDE, SIDE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), fused=True)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        indices = torch.rand(batch, TOKENS).argsort(dim=1)[:, :visible]
        loss = model(images, indices)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; the record of the step."""
    torch.set_num_threads(options.threads)
    given = [f"--encoder={options.step_encoder}", f"--batch={options.step_batch}"]
    bench = step.Bench(step.arguments(given))
    flops = flops_per_sample(lambda: bench.losses(step.Row())[0], options.step_batch)
    ours = "multimae-eo, six modalities, seven tasks"
    ways: dict[str, Callable[[], object]] = {
        ours: lambda: bench.step(step.Row(), torch.float32),
    }
    counted = {ours: flops}
    version = installed("timm")
    if version:
        encoder = encoder_named(options.step_encoder)
        width, depth = matching_decoder(encoder, flops, step.VISIBLE)
        name = f"ViT-MAE of timm's blocks, decoder {width} × {depth}"
        counted[name] = timm_flops(encoder, width, depth, step.VISIBLE)
        ways[name] = timm_step(encoder, (width, depth), options.step_batch, step.VISIBLE)
    times = measure.interleaved(ways, "cpu", rounds=options.step_rounds)
    rows = {}
    for name, taken in times.items():
        summary = measure.summary(taken)
        rate = options.step_batch / summary["median_s"]
        rows[name] = (
            summary
            | paired(taken, times[ours])
            | {
                "samples_per_s": rate,
                "flops_per_sample": counted[name],
                "flops_per_s": rate * counted[name],
            }
        )
    return {
        "encoder": options.step_encoder,
        "batch": options.step_batch,
        "rounds": options.step_rounds,
        "visible_tokens": step.VISIBLE,
        "timm": version,
        "rows": rows,
    }
