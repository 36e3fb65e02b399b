"""Pre-training beside busy processes and on one CPU, as a share of its rate on the idle machine.

Every measurement is one `multimae-eo pretrain` of the quickstart's model from a chip store, in a
process of its own; its rate is the median of what the run logs, without the first rows. All
conditions follow one another in each round, so that a drift of the machine's speed meets all
alike. Policies:

- ``package``: the command line as it is, whose threads wait passively;
- ``torch``: the same with torch loaded first, so that OpenMP's threads spin while they wait.

    python benchmarks/contended.py [--rounds 3] [--epochs 8] [--busy 1,2] [--precision auto]

Results go to benchmarks/results/contended_cpu.json.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure

POLICIES = {
    "package": "from multimae_eo.cli import main; main()",
    "torch": "import torch; from multimae_eo.cli import main; main()",
}
"""Programs that behave like ``multimae-eo``."""

SKIPPED_ROWS = 2
"""Of a run's log: the first steps allocate memory and read the store for the first time."""


@dataclass(frozen=True)
class Condition:
    """What else the machine does, and how many CPUs the run may use (None: all)."""

    name: str
    busy: int = 0
    cpus: int | None = None


def conditions(busy: Sequence[int]) -> list[Condition]:
    """Idle first: the other rates are shares of it."""
    beside = [Condition(f"beside {n} busy process{'es' * (n > 1)}", busy=n) for n in busy]
    return [Condition("idle"), *beside, Condition("bound to one CPU", cpus=1)]


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that compute without a pause."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def rate(policy: str, condition: Condition, arguments: Sequence[str], out: Path) -> float:
    """Samples per second of one run; the median of its logged rates."""
    bind: Callable[[], None] | None = None
    if condition.cpus is not None:
        cpus = sorted(os.sched_getaffinity(0))[: condition.cpus]

        def bind() -> None:
            os.sched_setaffinity(0, cpus)

    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    with busy_processes(condition.busy):
        subprocess.run(
            [sys.executable, "-c", POLICIES[policy], *arguments, "--out", str(out)],
            env=environment,
            preexec_fn=bind,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    with (out / "metrics.csv").open(encoding="utf-8") as file:
        logged = [row["throughput/samples_per_s"] for row in csv.DictReader(file)]
    rates = [float(value) for value in logged if value]
    return statistics.median(rates[SKIPPED_ROWS:] or rates)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; the record that is written."""
    from multimae_eo import open_source
    from multimae_eo.quickstart import make_synthetic_data
    from multimae_eo.store.writer import prepare

    about = measure.machine("cpu")
    every = conditions([int(n) for n in options.busy.split(",") if n])
    rates: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = make_synthetic_data(folder / "data", chips=options.chips)
        store = prepare(open_source(dataset), folder / "store").path
        command = [
            "pretrain", "--recipe", "quickstart", "--data", str(store),
            f"--run.epochs={options.epochs}", f"--run.precision={options.precision}",
            f"--data.batch_size={options.batch}", "--run.log_every=2",
        ]  # fmt: skip
        for turn in range(options.rounds):
            for policy in options.policies.split(","):
                for condition in every:
                    out = folder / f"{turn}-{policy}-{condition.name}".replace(" ", "-")
                    value = rate(policy, condition, command, out)
                    rates.setdefault((policy, condition.name), []).append(value)
                    measure.say(
                        f"round {turn + 1} of {options.rounds}: {policy}, {condition.name}: "
                        f"{value:.0f} samples/s"
                    )
    rows = {}
    for (policy, name), values in rates.items():
        shares = [v / i for v, i in zip(values, rates[policy, "idle"], strict=True)]
        rows[f"{policy}, {name}"] = {
            "samples_per_s": statistics.median(values),
            "share_of_idle": statistics.median(shares),
        }
    return {"machine": about, "rounds": options.rounds, "batch": options.batch, "rows": rows}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--chips", type=int, default=640)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--busy", default="1,2")
    parser.add_argument("--policies", default="package,torch")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    return parser.parse_args(given)


def main() -> None:
    """Measure, write and print."""
    options = arguments()
    record = run(options)
    path = measure.write_results("contended_cpu", record, options.out)
    print("| policy, condition | samples/s | share of idle |\n|---|---|---|")
    for name, row in record["rows"].items():
        print(f"| {name} | {row['samples_per_s']:.0f} | {row['share_of_idle']:.0%} |")
    print(path)


if __name__ == "__main__":
    main()
