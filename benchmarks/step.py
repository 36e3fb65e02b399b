"""What a training step costs: ViT-B, six modalities, 56 px, each technique on and off.

The model and objective of the recipe ``paper-mmearth64`` on a made-up MMEarth batch. *Naive* is an
honest plain implementation of the same function: all patches embedded and then picked from, class
maps by a convolution over embedded pixels, positions interpolated anew, decoders one by one, a
step's losses fetched one by one, AdamW without fusing. Each other row is this package's step with
one thing changed. Rows are measured turn by turn; the losses of all
fp32 rows agree to 1e-5 (checked).

    python benchmarks/step.py [--batch 32] [--rounds 3] [--encoder base] [--device cpu]

Results are recorded in docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from multimae_eo.model.embedding import ClassEmbedding
from multimae_eo.model.multimae import MultiMAE
from multimae_eo.model.tokens import Patches, TokenState
from multimae_eo.sources import open_source
from multimae_eo.sources.mmearth_files import write_mmearth
from multimae_eo.store.loader import make_loader
from multimae_eo.train.data import chip_sizes, model_config
from multimae_eo.train.modules import PretrainModule
from multimae_eo.train.optim import build_adamw
from multimae_eo.train.recipe import load_recipe


class Habits(MultiMAE):
    """The same function with plain habits, each of which can be switched on."""

    all_patches = convolution = interpolate = False

    def _embed(self, patches: Patches, states: Tensor, count: int) -> Tensor:
        if self.interpolate:
            self.positions._kept.clear()
            self.decoder_positions._kept.clear()
        if not self.all_patches:
            return super()._embed(patches, states, count)
        embedded = []
        for name, values in patches.values.items():
            embed = self.embeddings[name]
            flat = values.flatten(0, 1)
            vectors = self._classes(embed, flat) if values.dtype == torch.int64 else embed(flat)
            positions = self.positions(patches.layout.grids[name], embed.interpolation)
            embedded.append(vectors.unflatten(0, values.shape[:2]) + positions)
        every = torch.cat(embedded, dim=1)
        seen = (states == TokenState.VISIBLE).to(every.device)
        order = torch.argsort((~seen).to(torch.int8), dim=1, stable=True)[:, :count]
        return every.gather(1, order[:, :, None].expand(-1, -1, every.shape[2]))

    def _classes(self, embed: Any, patches: Tensor) -> Tensor:
        if not (self.convolution and isinstance(embed, ClassEmbedding)):
            found: Tensor = embed(patches)
            return found
        side = round(embed.positions**0.5)
        pixels = F.embedding(patches.clamp(min=0), embed.classes)
        pixels = pixels * (patches >= 0)[:, :, None]
        planes = pixels.transpose(1, 2).unflatten(2, (side, side))
        weight = embed.projection.weight.unflatten(1, (-1, side, side))
        return F.conv2d(planes, weight, embed.projection.bias).flatten(1)


@dataclass(frozen=True, kw_only=True)
class Row:
    """How a step is made. All false: this package's step."""

    all_patches: bool = False
    convolution: bool = False
    interpolate: bool = False
    unfused: bool = False
    fetch: bool = False
    together: bool = False
    bf16: bool = False


NAIVE = Row(all_patches=True, convolution=True, interpolate=True, unfused=True, fetch=True)
ROWS = {
    "naive, fp32": NAIVE,
    "ours, fp32": Row(),
    "  all patches embedded": Row(all_patches=True),
    "  and class maps by convolution": Row(all_patches=True, convolution=True),
    "  positions interpolated anew": Row(interpolate=True),
    "  AdamW not fused": Row(unfused=True),
    "  decoders together": Row(together=True),
    "naive, bf16": replace(NAIVE, bf16=True),
    "ours, bf16": Row(bf16=True),
    "  decoders together, bf16": Row(together=True, bf16=True),
}


class Bench:
    """One model, one batch, and a step of any kind."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        recipe = load_recipe("paper-mmearth64", [f"--model.encoder={options.encoder}"])
        source = open_source(f"mmearth:{folder}")
        modalities, tasks = recipe.resolve(source.modalities)
        # Chips without holes: the common case of real data.
        chosen = np.array([i for i in range(len(source)) if i % 4 in (0, 3)])
        sizes = chip_sizes(source, modalities, chosen)
        config = model_config(recipe.model, recipe.data, modalities, sizes)
        found = source.statistics(range(8)).select(list(modalities))
        torch.manual_seed(0)
        self.model = Habits(modalities, tasks, config, found)
        self.module = PretrainModule(self.model, recipe, steps=1000, warmup=10, lr=1e-4)
        self.module.to(options.device)
        loader = make_loader(
            source, chosen, batch_size=options.batch, modalities=list(modalities), chip=56
        )
        self.batch = next(iter(loader)).to(options.device)
        self.device = options.device
        # A learning rate of nothing: the step is whole, and all rows keep the same weights.
        self.fused = build_adamw(self.module, recipe.optim, lr=0.0)
        groups = [{k: g[k] for k in ("params", "weight_decay")} for g in self.fused.param_groups]
        self.unfused = torch.optim.AdamW(groups, lr=0.0, betas=recipe.optim.betas, foreach=False)

    def step(self, row: Row) -> tuple[float, float]:
        """Seconds and loss of a whole optimiser step."""
        for name in ("all_patches", "convolution", "interpolate"):
            setattr(self.model, name, getattr(row, name))
        self.model.decode_together = row.together
        optimizer = self.unfused if row.unfused else self.fused
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16) if row.bf16 else nullcontext():
            losses, _ = self.module._losses(self.batch, (0, 0, 0))
        losses.total.backward()
        optimizer.step()
        if row.fetch:
            for value in losses.by_task.values():
                value.item()
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start, float(losses.total.detach())


def ceiling(device: str, dtype: torch.dtype) -> float:
    """GFLOP/s of a large matrix product."""
    a, b = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        c = a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = max(best, 2 * 2048**3 / (time.perf_counter() - start) / 1e9)
    assert c.shape == (2048, 2048)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", default="base")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "mmearth"
        write_mmearth(folder, chips=2 * options.batch + 8, size=64, seed=0)
        bench = Bench(options, folder)
    with FlopCounterMode(display=False) as counter:
        bench.module._losses(bench.batch, (0, 0, 0))[0].total.backward()
    flops = counter.get_total_flops() / options.batch
    losses = {n: bench.step(row)[1] for n, row in ROWS.items()}
    for n, row in ROWS.items():
        assert row.bf16 or abs(losses[n] / losses["naive, fp32"] - 1) < 1e-5, (n, losses)
    times: dict[str, list[float]] = {n: [] for n in ROWS}
    for _ in range(options.rounds):
        for n, row in ROWS.items():
            times[n].append(bench.step(row)[0])
    base = statistics.median(times["naive, fp32"])
    print(f"batch {options.batch}, {options.encoder}, {options.device}, torch {torch.__version__}")
    print(f"{torch.get_num_threads()} threads; {flops / 1e9:.1f} GFLOP per sample and step")
    for dtype in (torch.float32, torch.bfloat16):
        print(f"matrix product, {dtype}: {ceiling(options.device, dtype):.0f} GFLOP/s")
    print(f"{'':>32}  {'s (median)':>10}  {'samples/s':>9}  {'GFLOP/s':>8}  {'ratio':>6}")
    for n, found in times.items():
        middle = statistics.median(found)
        rate = options.batch / middle
        print(
            f"{n:<32}  {middle:10.2f}  {rate:9.1f}  {rate * flops / 1e9:8.0f}  {base / middle:6.2f}"
        )


if __name__ == "__main__":
    main()
