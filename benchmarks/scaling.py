"""How a step's time and memory grow: with modalities, chips, visible tokens, models, processes.

Each axis varies one thing of a base case (six optical triples, 56 px, 49 visible tokens). Points of
an axis are measured turn by turn; a line is fitted over modalities.

    python benchmarks/scaling.py [--axes modalities,chip,visible,encoder,processes] [--rounds 3]

Results go to benchmarks/results/scaling_DEVICE.json; benchmarks/report.py draws them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import made
import measure
import numpy as np
import torch
from torch.multiprocessing.spawn import spawn

from multimae_eo.sample import Batch
from multimae_eo.train.modules import PretrainModule
from multimae_eo.train.optim import build_adamw
from multimae_eo.train.recipe import Recipe

AXES: Mapping[str, tuple[Any, ...]] = {
    "modalities": (2, 4, 6, 8, 10, 12),
    "chip": (32, 56, 80, 112),
    "visible": (16, 49, 98, 196),
    "encoder": ("nano", "tiny", "small", "base"),
    "processes": (1, 2),
}


def make_step(options: argparse.Namespace, **case: Any) -> Callable[[], None]:
    """A training step of the base case with ``case`` changed."""
    modalities = made.many_modalities(case.get("modalities", 6))
    chip = case.get("chip", 56)
    source = made.MadeSource(modalities, chips=options.batch, size=chip)
    encoder = case.get("encoder", options.encoder)
    model = made.make_model(source, encoder=encoder, chip=chip).to(options.device)
    recipe = Recipe()
    recipe.masking.num_visible_tokens = case.get("visible", 49)
    module = PretrainModule(model, recipe, steps=1000, warmup=0, lr=1e-4)
    optimizer = build_adamw(model, recipe.optim, lr=1e-4)
    batch = source.batch(source.keys).to(options.device)
    mixed = options.precision == "bf16"

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(options.device, torch.bfloat16) if mixed else nullcontext():
            losses, _ = module._losses(batch, 0)
        losses.total.backward()
        optimizer.step()

    return step


def measured(options: argparse.Namespace, axis: str) -> list[dict[str, Any]]:
    """Time and memory at every point of an axis."""
    points = AXES[axis][: options.points]
    steps = {str(p): make_step(options, **{axis: p}) for p in points}
    times = measure.interleaved(steps, options.device, rounds=options.rounds)
    return [
        {
            axis: p,
            **measure.summary(times[str(p)]),
            "memory_bytes": measure.memory_bytes(steps[str(p)], options.device),
        }
        for p in points
    ]


def processes(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Samples per second of one process and of more under DDP, each with its share of cores."""
    found = []
    for count in AXES["processes"][: options.points]:
        with tempfile.TemporaryDirectory() as folder:
            shared = Path(folder)
            spawn(_process, (count, options, shared), nprocs=count)
            times = [float(p.read_text()) for p in shared.glob("rank*")]
        found.append({"processes": count, "samples_per_s": count * options.batch / max(times)})
    return found


def _process(rank: int, count: int, options: argparse.Namespace, shared: Path) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{shared / 'meet'}", rank=rank, world_size=count
    )
    modalities = made.many_modalities(6)
    source = made.MadeSource(modalities, chips=options.batch, size=56)
    model = made.make_model(source, encoder=options.encoder)
    module = PretrainModule(model, Recipe(), steps=1000, warmup=0, lr=1e-4)

    def forward(batch: Batch) -> torch.Tensor:
        return module._losses(batch, 0)[0].total

    setattr(module, "forward", forward)  # noqa: B010
    shared_model = torch.nn.parallel.DistributedDataParallel(module)
    optimizer = build_adamw(model, Recipe().optim, lr=1e-4)
    batch = source.batch(source.keys)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        shared_model(batch).backward()
        optimizer.step()

    times = [measure.seconds(step, "cpu") for _ in range(options.rounds + 1)][1:]
    (shared / f"rank{rank}").write_text(str(statistics.median(times)))
    torch.distributed.destroy_process_group()


def line(points: list[dict[str, Any]], axis: str, value: str) -> dict[str, float]:
    """The straight line through an axis' points, and the share of variance it explains."""
    x = np.array([p[axis] for p in points], float)
    y = np.array([p[value] for p in points], float)
    slope, start = np.polyfit(x, y, 1)
    rest = ((y - slope * x - start) ** 2).sum() / max(((y - y.mean()) ** 2).sum(), 1e-30)
    return {"slope": float(slope), "intercept": float(start), "r2": float(1 - rest)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; the record that is written."""
    record: dict[str, Any] = {
        "machine": measure.machine(options.device),
        "batch": options.batch,
        "encoder": options.encoder,
        "precision": options.precision,
        "axes": {},
    }
    for axis in options.axes.split(","):
        if axis == "processes":
            if options.device == "cpu":
                record["axes"][axis] = processes(options)
            continue
        record["axes"][axis] = measured(options, axis)
    if "modalities" in record["axes"]:
        points = record["axes"]["modalities"]
        record["lines"] = {v: line(points, "modalities", v) for v in ("median_s", "memory_bytes")}
    return record


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--axes", default=",".join(AXES))
    parser.add_argument("--points", type=int, default=None, help="only the first of each axis")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", default="base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    return parser.parse_args(given)


def main() -> None:
    options = arguments()
    record = run(options)
    path = measure.write_results(f"scaling_{options.device}", record, options.out)
    for axis, points in record["axes"].items():
        for point in points:
            shown = ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in point.items()
            )
            print(f"{axis}: {shown}")
    print(path)


if __name__ == "__main__":
    main()
