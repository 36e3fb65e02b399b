"""What a step spends its time on: the profiler's table and trace; or the encoder as a CUDA graph.

    python benchmarks/profile_step.py [--device cuda] [--encoder base] [--batch 256] [--graphs]

Writes trace.json into ``--out``. ``--graphs`` times the encoder's forward pass, as
it is and replayed from a graph; what is gained bounds what graphs of the whole step could give.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import measure
import step
import torch
from torch.profiler import ProfilerActivity, profile

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def profiled(bench: step.Bench, options: argparse.Namespace) -> str:
    """The operations of a few steps by time, with the share of time the device is busy."""
    row, dtype = step.Row(), DTYPES[options.precision]
    for _ in range(3):
        bench.step(row, dtype)
    kinds = [ProfilerActivity.CPU]
    if options.device == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    with profile(activities=kinds) as found:
        times = [
            measure.seconds(lambda: bench.step(row, dtype), options.device)
            for _ in range(options.steps)
        ]
    found.export_chrome_trace(str(options.out / "trace.json"))
    averages = found.key_averages()
    key = "self_cuda_time_total" if options.device == "cuda" else "self_cpu_time_total"
    busy = sum(getattr(e, "self_device_time_total", 0) for e in averages) / 1e6
    head = (
        f"{len(times)} steps took {sum(times):.3f} s in the profiler, "
        f"the accelerator was busy {busy:.3f} s"
    )
    return f"{head}\n{averages.table(sort_by=key, row_limit=40)}"


def graphed(bench: step.Bench, options: argparse.Namespace) -> str:
    """Seconds of the encoder's forward pass, eager and replayed."""
    model = bench.model.eval()
    tokens = step.VISIBLE + model.config.global_tokens
    x = torch.randn(options.batch, tokens, model.config.encoder.width, device=options.device)

    mixed = options.precision == "bf16"

    def forward() -> torch.Tensor:
        with torch.no_grad(), torch.autocast(options.device, torch.bfloat16, enabled=mixed):
            encoded: torch.Tensor = model.encoder(x)
            return encoded

    ways: dict[str, Callable[[], object]] = {"eager": forward}
    if options.device == "cuda":
        forward()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            forward()
        ways["graph"] = graph.replay
    times = measure.interleaved(ways, options.device, rounds=options.rounds, warmup=3)
    return "\n".join(f"{n}: {statistics.median(t) * 1e3:.3f} ms" for n, t in times.items())


def run(options: argparse.Namespace) -> str:
    """The table of operations, or with ``--graphs`` the times."""
    options.out.mkdir(parents=True, exist_ok=True)
    bench = step.Bench(options)
    return graphed(bench, options) if options.graphs else profiled(bench, options)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--encoder", default="base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--steps", type=int, default=5, help="in the profiler")
    parser.add_argument("--rounds", type=int, default=20, help="of --graphs")
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    parser.set_defaults(compile=False)
    return parser.parse_args(given)


def main() -> None:
    print(run(arguments()))


if __name__ == "__main__":
    main()
