"""From the command to the first training step and the first predicted window, and `prepare`'s rate.

Each command runs in a process of its own, in which the moments between its stages are recorded:

- *imports*: Python, torch, Lightning, GDAL, and the package;
- *opening*: the recipe, the chip store or the scene, the model;
- *preparing*: statistics, the trainer, the number of threads that is fastest (training), or the
  check of the inputs (scenes);
- *first step*, *first batch of windows*.

Also printed: the first batch of a store whose files are not in the page cache (dropped with
``posix_fadvise``), and what `prepare` reads per second beside decoding the same GeoTIFF files
with rasterio on one core, and beside writing as many bytes to this disk.

    python benchmarks/startup.py [--rounds 5] [--chips 600]

Results go to benchmarks/results/startup_cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np

CHILD = """
import json, os, sys, time
moments = {}
def mark(name):
    moments.setdefault(name, time.time())
def after(owner, name, moment, stop=False):
    original = getattr(owner, name)
    def wrapped(*arguments, **options):
        result = original(*arguments, **options)
        mark(moment)
        if stop:
            print("MOMENTS " + json.dumps(moments), flush=True)
            os._exit(0)
        return result
    setattr(owner, name, wrapped)
def before(owner, name, moment):
    original = getattr(owner, name)
    def wrapped(*arguments, **options):
        mark(moment)
        return original(*arguments, **options)
    setattr(owner, name, wrapped)
from multimae_eo.cli import main
if sys.argv[1] == "pretrain":
    from multimae_eo.train import fit, pretrain
    before(pretrain, "chip_sizes", "opening")
    before(fit.pl.LightningModule, "optimizer_step", "preparing")
    after(fit.pl.LightningModule, "optimizer_step", "first step", stop=True)
    import multimae_eo.api.runs
else:
    import rasterio
    from multimae_eo.scenes import engine, reconstruct
    before(reconstruct, "scene_tiling", "opening")
    before(engine, "finished_blocks", "preparing")
    after(engine, "_predict_batch", "first batch of windows", stop=True)
mark("imports")
main()
"""


def parts(arguments: Sequence[str]) -> dict[str, float]:
    """Seconds of each stage of one command, in order."""
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False
    )
    # Threads that predict side by side may write two records in one line: the first counts.
    line = next((x for x in done.stdout.splitlines() if x.startswith("MOMENTS ")), None)
    if line is None:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr[-1000:]}")
    stages, last = {}, start
    for name, moment in json.JSONDecoder().raw_decode(line.removeprefix("MOMENTS "))[0].items():
        stages[name], last = moment - last, moment
    return stages | {"in all": last - start}


def drop_cache(folder: Path) -> None:
    """Ask the kernel to forget the files' pages."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def first_batch(store: Path, *, cold: bool) -> float:
    """Seconds from opening a store to its first shuffled batch."""
    from multimae_eo.loading.loader import make_loader
    from multimae_eo.store.reader import ChipStore

    if cold:
        drop_cache(store)
    start = time.perf_counter()
    opened = ChipStore(store)
    chips = np.arange(len(opened))
    next(iter(make_loader(opened, chips, batch_size=min(64, len(chips)), train=True, epoch=0)))
    return time.perf_counter() - start


def prepare_rate(dataset: Path, folder: Path) -> dict[str, float]:
    """MB of pixels per second: `prepare`, decoding alone, and writing alone."""
    import rasterio

    from multimae_eo import open_source
    from multimae_eo.store.writer import prepare

    files = sorted(dataset.parent.rglob("*.tif"))
    chips = [path for path in files if path.parent != dataset.parent]
    start, decoded = time.perf_counter(), 0
    for path in chips:
        with rasterio.open(path) as file:
            decoded += file.read().nbytes
    decode = decoded / (time.perf_counter() - start)
    start = time.perf_counter()
    prepare(open_source(dataset), folder / "again")
    rate = decoded / (time.perf_counter() - start)
    data = os.urandom(1 << 20) * max(1, decoded >> 20)
    start = time.perf_counter()
    with (folder / "bytes").open("wb") as target:
        target.write(data)
        target.flush()
        os.fsync(target.fileno())
    write = len(data) / (time.perf_counter() - start)
    return {"prepare": rate / 1e6, "decode": decode / 1e6, "write": write / 1e6}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; the record that is written."""
    from multimae_eo import open_source
    from multimae_eo.quickstart import make_synthetic_data
    from multimae_eo.store.writer import prepare
    from multimae_eo.train.pretrain import pretrain
    from multimae_eo.train.recipe import load_recipe

    rows: dict[str, dict[str, list[float]]] = {}

    def add(row: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            rows.setdefault(row, {}).setdefault(name, []).append(value)

    about = measure.machine("cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = make_synthetic_data(folder / "data", chips=options.chips)
        store = prepare(open_source(dataset), folder / "store")
        recipe = load_recipe("quickstart", ["--run.epochs=1"])
        model = pretrain(recipe, store, folder / "run").model
        for turn in range(options.rounds):
            add("pretrain", parts(["pretrain", "--recipe", "quickstart", "--data", str(store.path),
                                   "--out", str(folder / f"run-{turn}")]))  # fmt: skip
            scene = str(dataset.with_name("scene.yaml"))
            add("reconstruct --scene", parts(["reconstruct", "--model", str(model), "--scene",
                                              scene, "--inputs", "rgb", "--out",
                                              str(folder / f"maps-{turn}")]))  # fmt: skip
            for state, cold in (("cold", True), ("warm", False)):
                add("first batch of a store", {state: first_batch(store.path, cold=cold)})
            (folder / f"rate-{turn}").mkdir()
            add("MB/s", prepare_rate(dataset, folder / f"rate-{turn}"))
            measure.say(f"round {turn + 1} of {options.rounds}")
    medians = {r: {n: statistics.median(v) for n, v in c.items()} for r, c in rows.items()}
    return {"machine": about, "rounds": options.rounds, "chips": options.chips, "rows": medians}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chips", type=int, default=600)
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    return parser.parse_args(given)


def main() -> None:
    """Measure, write and print."""
    options = arguments()
    record = run(options)
    path = measure.write_results("startup_cpu", record, options.out)
    for row, columns in record["rows"].items():
        digits = 0 if row == "MB/s" else 2
        print(f"{row}: " + ", ".join(f"{n} {v:.{digits}f}" for n, v in columns.items()))
    print(path)


if __name__ == "__main__":
    main()
