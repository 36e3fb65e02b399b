"""What a training step costs: ViT-B, six modalities, 56 px, 49 of 294 tokens visible.

The model and objective of the recipe ``paper-mmearth64`` on chips of noise. *naive* is the
implementation in naive.py, *ours* this package's step; every other row is ours with one thing
changed. All rows use the same weights and masks, are measured turn by turn, and all fp32 losses
agree to 1e-5 (checked; so do gradients, in tests/benchmarks).

    python benchmarks/step.py [--batch 32] [--rounds 5] [--encoder base] [--device cpu] [--compile]

Results go to benchmarks/results/step_DEVICE.json; benchmarks/report.py draws them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import made
import measure
import naive
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from multimae_eo.network.config import RuntimePolicy
from multimae_eo.network.embedding import ClassEmbedding
from multimae_eo.network.masking import sample_states
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.sample_rng import PerSample
from multimae_eo.network.tokens import Patches, TokenState
from multimae_eo.train.objective import Objective
from multimae_eo.train.optim import build_adamw
from multimae_eo.train.recipe import OptimRecipe

VISIBLE, CHIP = 49, 56


@dataclass(frozen=True, kw_only=True)
class Row:
    """How a step is made. All defaults: this package's step."""

    plain: bool = False
    all_patches: bool = False
    convolution: bool = False
    interpolate: bool = False
    other_attention: bool = False
    other_decoders: bool = False
    loop_masks: bool = False
    unfused: bool = False
    fetch: bool = False
    recompute: bool = False
    compiled: bool = False


NAIVE = Row(plain=True, loop_masks=True, unfused=True, fetch=True)
CHANGES = {
    "all patches embedded": Row(all_patches=True),
    "class maps by convolution": Row(convolution=True),
    "positions interpolated anew": Row(interpolate=True),
    "the other attention": Row(other_attention=True),
    "the other decoders": Row(other_decoders=True),
    "masks drawn by loops": Row(loop_masks=True),
    "AdamW not fused": Row(unfused=True),
    "losses fetched every step": Row(fetch=True),
    "activations recomputed": Row(recompute=True),
}


class Bench:
    """One model, one batch, and a step of any kind."""

    def __init__(self, options: argparse.Namespace) -> None:
        source = made.MadeSource(made.six_modalities(), chips=options.batch, size=CHIP)
        tasks = made.seven_tasks()
        self.device = options.device
        self.model = made.make_model(source, encoder=options.encoder, tasks=tasks)
        self.model.to(self.device)
        self.compiled: MultiMAE | None = None
        if options.compile:
            # The same weights in modules of their own.
            self.compiled = made.make_model(source, encoder=options.encoder, tasks=tasks)
            self.compiled.to(self.device).set_runtime(RuntimePolicy(compiled=True))
        self.objective = Objective(self.model.tasks)
        self.batch = source.batch(source.keys).to(self.device)
        # A learning rate of nothing: the step is whole, and all rows keep the same weights.
        self.optimizers = {id(m): self._optimizers(m) for m in (self.model, self.compiled) if m}
        self.states = self._drawn()

    @staticmethod
    def _optimizers(model: MultiMAE) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        fused = build_adamw(model, OptimRecipe(), lr=0.0)
        groups = [{k: g[k] for k in ("params", "weight_decay")} for g in fused.param_groups]
        return fused, torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), foreach=False)

    def _drawn(self) -> Tensor:
        layout = self.model.patchify(self.batch).layout
        return sample_states(
            layout,
            None,
            batch_size=len(self.batch),
            num_visible_tokens=VISIBLE,
            generator=PerSample(self.batch.keys, 0, 0),
        )

    def losses(self, row: Row) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss and those of the tasks."""
        model = self.compiled if row.compiled and self.compiled else self.model
        patches = model.patchify(self.batch)
        # Drawn for their time; the loss is of the same ones in every row.
        if row.loop_masks:
            naive.draw_states(
                patches.layout, batch=len(self.batch), num_visible_tokens=VISIBLE, seed=0
            )
        else:
            self._drawn()
        if row.plain:
            said = naive.predict(model, patches, self.states)
            by_task = naive.losses(model, patches, self.states, said)
            return naive.total(model, by_task), by_task
        with habits(model, row):
            found = self.objective(model(patches, self.states, num_visible_tokens=VISIBLE))
        return found.total, dict(found.by_task)

    def step(self, row: Row, dtype: torch.dtype) -> float:
        """A whole optimiser step; its loss."""
        model = self.compiled if row.compiled and self.compiled else self.model
        optimizer = self.optimizers[id(model)][row.unfused]
        optimizer.zero_grad(set_to_none=True)
        mixed = dtype != torch.float32
        with torch.autocast(self.device, dtype) if mixed else nullcontext():
            total, by_task = self.losses(row)
        total.backward()
        optimizer.step()
        if row.fetch:
            for value in by_task.values():
                value.item()
        return float(total.detach())


@contextmanager
def habits(model: MultiMAE, row: Row) -> Iterator[None]:
    """The model with one habit changed."""
    before = model.runtime
    on_cpu = next(model.parameters()).device.type == "cpu"
    together = (not on_cpu) ^ row.other_decoders
    model.set_runtime(
        RuntimePolicy(group_decoders=together, activation_checkpointing=row.recompute)
    )
    if row.interpolate:
        model.positions._kept.clear()
        model.decoder_positions._kept.clear()
    patched: list[Any] = []
    if row.all_patches:
        patched.append(mock.patch.object(model, "_embed", _embed_all(model)))
    if row.convolution:
        patched.append(mock.patch.object(ClassEmbedding, "forward", _convolved))
    if row.other_attention:
        other = _fused if on_cpu else _products
        places = ("multimae_eo.network.encoder.attend", "multimae_eo.network.decoder_group.attend")
        patched += [mock.patch(place, other) for place in places]
    for patch in patched:
        patch.start()
    try:
        yield
    finally:
        for patch in patched:
            patch.stop()
        model.set_runtime(before)


def _embed_all(model: MultiMAE) -> Callable[[Patches, Tensor, int], Tensor]:
    def embed(patches: Patches, states: Tensor, count: int) -> Tensor:
        every = naive.embedded(model, patches)
        seen = (states == TokenState.VISIBLE).to(every.device)
        order = torch.argsort((~seen).to(torch.int8), dim=1, stable=True)[:, :count]
        return every.gather(1, order[:, :, None].expand(-1, -1, every.shape[2]))

    return embed


def _convolved(self: ClassEmbedding, patches: Tensor) -> Tensor:
    return naive.class_vectors(self, patches[None])[0]


def _fused(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Tensor:
    mask = None if attention_mask is None else attention_mask[:, None, None, :]
    mixed: Tensor = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return mixed


def _products(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask[:, None, None, :], float("-inf"))
    mixed: Tensor = scores.softmax(dim=-1) @ value
    return mixed


def rows(options: argparse.Namespace) -> dict[str, tuple[Row, torch.dtype]]:
    """Every row by name: how, and in what precision."""
    found: dict[str, tuple[Row, torch.dtype]] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if name not in options.precision.split(","):
            continue
        found[f"naive, {name}"] = (NAIVE, dtype)
        found[f"ours, {name}"] = (Row(), dtype)
        if options.compile:
            found[f"ours compiled, {name}"] = (replace(Row(), compiled=True), dtype)
        if options.changes:
            found |= {f"{what}, {name}": (row, dtype) for what, row in CHANGES.items()}
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; the record that is written."""
    about = measure.machine(options.device)
    bench = Bench(options)
    with FlopCounterMode(display=False) as counter:
        bench.losses(Row())[0].backward()
    flops = counter.get_total_flops() / options.batch
    ways = rows(options)
    measure.say(f"{len(ways)} ways on {about['device']}, {about['threads']} threads")
    losses = {n: float(bench.step(row, dtype)) for n, (row, dtype) in ways.items()}
    for name, (_, dtype) in ways.items():
        agrees = 1e-5 if dtype == torch.float32 else 2e-2
        reference = losses[next(iter(ways))]
        if abs(losses[name] / reference - 1) > agrees:
            raise SystemExit(f"{name}: loss {losses[name]}, naive {reference}")
    steps = {n: (lambda w=way: bench.step(*w)) for n, way in ways.items()}
    times = measure.interleaved(steps, options.device, rounds=options.rounds)
    side = options.ceiling
    tops = {
        "fp32": measure.ceiling(options.device, torch.float32, side=side),
        "bf16": measure.ceiling(options.device, torch.bfloat16, side=side),
    }
    found = {}
    for name, taken in times.items():
        own = measure.summary(taken)
        rate = options.batch / own["median_s"]
        found[name] = own | {
            "samples_per_s": rate,
            "flops_per_s": rate * flops,
            "share_of_ceiling": rate * flops / tops[name.rsplit(", ", maxsplit=1)[1]],
            "memory_bytes": measure.memory_bytes(steps[name], options.device),
            "loss": losses[name],
        }
    return {
        "machine": about,
        "batch": options.batch,
        "encoder": options.encoder,
        "rounds": options.rounds,
        "flops_per_sample": flops,
        "ceiling_flops_per_s": tops,
        "rows": found,
    }


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoder", default="base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--compile", action="store_true", help="a row of the compiled step, too")
    parser.add_argument("--changes", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--ceiling", type=int, default=2048, help="side of the matrices")
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    return parser.parse_args(given)


def main() -> None:
    options = arguments()
    record = run(options)
    path = measure.write_results(f"step_{options.device}", record, options.out)
    base = record["rows"][next(iter(record["rows"]))]["median_s"]
    print(f"{record['flops_per_sample'] / 1e9:.1f} GFLOP per sample and step; {record['machine']}")
    print(f"{'':<36} {'s':>8} {'samples/s':>10} {'ceiling':>8} {'GB':>8} {'× naive':>8}")
    for name, row in record["rows"].items():
        print(
            f"{name:<36} {row['median_s']:8.3f} {row['samples_per_s']:10.1f} "
            f"{row['share_of_ceiling']:8.0%} {row['memory_bytes'] / 1e9:8.2f} "
            f"{base / row['median_s']:8.2f}"
        )
    print(path)


if __name__ == "__main__":
    main()
