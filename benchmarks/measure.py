"""What every benchmark needs: the machine's description and ceiling, clocks, results as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def machine(device: str) -> dict[str, Any]:
    """Processor or accelerator, threads, versions, commit, and the load beside the benchmark."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def synchronise(device: str) -> None:
    """Wait for an accelerator; the CPU has nothing to wait for."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str) -> float:
    """One call's wall time."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def interleaved(
    ways: Mapping[str, Callable[[], object]], device: str, *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Times of each way, turn by turn, so that what else the machine does meets all alike."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warmup + rounds):
        start = time.perf_counter()
        for name, work in ways.items():
            taken = seconds(work, device)
            if turn >= warmup:
                found[name].append(taken)
        what = f"round {turn - warmup + 1} of {rounds}" if turn >= warmup else "warming up"
        say(f"{what}: {time.perf_counter() - start:.0f} s for {len(ways)} ways")
    return found


def say(line: str) -> None:
    """Progress, beside what the benchmark prints."""
    print(line, file=sys.stderr, flush=True)


def ceiling(device: str, dtype: torch.dtype, *, side: int, rounds: int = 10) -> float:
    """FLOP/s of a square matrix product: the best of ``rounds``."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    times = [seconds(lambda: a @ b, device) for _ in range(rounds + 2)][2:]
    return 2 * side**3 / min(times)


def memory_bytes(work: Callable[[], object], device: str) -> int:
    """Memory of a step beyond what was held before it.

    On an accelerator the allocator's peak. On the CPU what the backward pass keeps, counted
    tensor by tensor: there freed memory stays with the process, whose size says little.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(kept.values())


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median and best, in seconds."""
    return {"median_s": statistics.median(times), "best_s": min(times)}


def write_results(name: str, record: Mapping[str, Any], folder: Path | None = None) -> Path:
    """``NAME.json`` among the results."""
    path = (folder or RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path
