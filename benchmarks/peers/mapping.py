"""Mapping a scene: time and memory of each package in a process of its own, and seams.

All processes wait while one maps; rounds alternate between packages, and ratios are of times of one
round. CPU seconds are those of all threads of the process: they hardly change where other processes
are busy. Memory is the peak of the process while it maps, beyond what it held before (model and
libraries). ``the model alone`` is the same forward pass on as many windows that lie in memory.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import measure
import torch

from multimae_eo.geo import window_starts
from multimae_eo.network.predictor import Predictor
from peers import landscape, mappers, seams
from peers.mappers import MAPPERS, Forward, Setting
from peers.ratios import paired

OURS, ALONE = "multimae-eo", "the model alone"
ALONE_SHARE = 4
"""The model alone is timed on one window of so many, and its time multiplied."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a process is to do: map ``folder`` to ``out``, or run the model on ``windows``."""

    folder: Path
    out: Path
    setting: Setting
    windows: int = 0
    keep: bool = False


class Child:
    """A process that maps scenes with one package when it is given orders."""

    def __init__(self, name: str, model: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.peak_bytes: dict[Setting, int] = {}
        self.cpu_seconds: dict[Setting, list[float]] = {}
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, name, model, threads))
        self.process.start()
        theirs.close()

    def do(self, order: Order) -> Any:
        """Carry out an order: probabilities where they are kept, else nothing."""
        self.pipe.send(order)
        try:
            kind, value, peak, cpu = self.pipe.recv()
        except EOFError as error:
            raise SystemExit(f"{self.name}: its process ended") from error
        if kind == "error":
            raise SystemExit(f"{self.name}: {value}")
        self.peak_bytes[order.setting] = max(peak, self.peak_bytes.get(order.setting, 0))
        self.cpu_seconds.setdefault(order.setting, []).append(cpu)
        return value

    def forget(self) -> None:
        """Forget what was measured so far."""
        self.peak_bytes.clear()
        self.cpu_seconds.clear()

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join(timeout=20)
        if self.process.is_alive():
            self.process.kill()


def _serve(pipe: Connection, name: str, model: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    network = Predictor.from_pretrained(model).eval()
    mapper = None if name == ALONE else MAPPERS[name](network)
    forward = Forward(network)
    while True:
        try:
            order: Order = pipe.recv()
        except EOFError:
            return
        # Importing TerraTorch lets float32 products of its process be computed in bfloat16.
        torch.set_float32_matmul_precision("highest")
        try:
            held, start = reset_peak(), time.process_time()
            value = None
            if mapper is None:
                _run_alone(forward, order)
            elif order.keep:
                value = mapper.probabilities(order.folder, order.out, order.setting)
            else:
                mapper.write(order.folder, order.out, order.setting)
            pipe.send(("done", value, peak_bytes() - held, time.process_time() - start))
        except Exception:
            pipe.send(("error", traceback.format_exc(), 0, 0.0))


def _run_alone(forward: Forward, order: Order) -> None:
    chip, bands = order.setting.chip, len(landscape.BANDS)
    numbers = torch.full((order.setting.batch, bands, chip, chip), 1000.0)
    for _ in range(0, order.windows, order.setting.batch):
        forward(numbers)


def reset_peak() -> int:
    """Forget the process's peak of memory, where Linux can; its resident size now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return _status("VmRSS:")


def peak_bytes() -> int:
    """The largest resident size since ``reset_peak``; 0 where the system does not say."""
    return _status("VmHWM:")


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith(key)), 0)


def settings(options: argparse.Namespace) -> dict[str, Setting]:
    """Windows that overlap by half, and by an eighth."""
    chip, batch = options.chip, options.batch
    return {
        "1/2": Setting(chip=chip, stride=chip // 2, batch=batch),
        "1/8": Setting(chip=chip, stride=chip - chip // 8, batch=batch),
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; the record of mapping."""
    torch.set_num_threads(options.threads)
    versions = mappers.versions()
    names = [n for n in MAPPERS if n == OURS or versions[n]]
    with tempfile.TemporaryDirectory() as text, ExitStack() as stack:
        folder = Path(text)
        scene, part = folder / "scene", folder / "part"
        landscape.write_scene(scene, options.size, seed=0)
        landscape.write_scene(part, seam_size(options.chip), seed=1)
        measure.say(f"scene of {options.size} px written")
        model = landscape.make_model(
            scene / "scene.yaml", encoder=options.encoder, chip=options.chip, patch=options.patch
        )
        accuracy = landscape.fit(model, scene, steps=options.fit_steps)
        model.save_pretrained(folder / "model")
        children = {n: Child(n, folder / "model", options.threads) for n in (*names, ALONE)}
        for child in children.values():
            stack.callback(child.stop)
        found = _seams(children, names, model, part, options)
        rows = _timed(children, names, scene, options)
    for label, setting in settings(options).items():
        for name in names:
            rows[label][name] |= found[label][name]
            rows[label][name]["windows"] = len(_starts(options.size, setting)) ** 2
    return {
        "scene_px": options.size,
        "bands": len(landscape.BANDS),
        "encoder": options.encoder,
        "chip_px": options.chip,
        "patch_px": options.patch,
        "batch": options.batch,
        "rounds": options.rounds,
        "precision": "32-true",
        "fit_accuracy": accuracy,
        "versions": versions,
        "rows": rows,
    }


def _starts(size: int, setting: Setting) -> list[int]:
    return window_starts(size, setting.chip, setting.stride)


def _seams(
    children: dict[str, Child],
    names: list[str],
    model: Predictor,
    folder: Path,
    options: argparse.Namespace,
) -> dict[str, dict[str, dict[str, float]]]:
    """Seams by overlap and package, on a small scene; it also warms the processes up."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for label, setting in settings(options).items():
        reference = seams.centred(Forward(model), folder, setting, options.patch)
        found[label] = {}
        for name in names:
            order = Order(folder=folder, out=folder / "map.tif", setting=setting, keep=True)
            probabilities = children[name].do(order)
            found[label][name] = seams.seams(probabilities, reference, setting, options.patch)
        measure.say(f"seams measured at overlap {label}")
    children[ALONE].do(replace(order, windows=options.batch, keep=False))
    for child in children.values():
        child.forget()
    return found


def _timed(
    children: dict[str, Child], names: list[str], scene: Path, options: argparse.Namespace
) -> dict[str, dict[str, dict[str, Any]]]:
    """Seconds, ratios and memory by overlap and package."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for label, setting in settings(options).items():
        windows = len(_starts(options.size, setting)) ** 2 // ALONE_SHARE
        ways: dict[str, Callable[[], object]] = {}
        for name, child in children.items():
            order = Order(
                folder=scene,
                out=scene / f"{name.replace(' ', '-')}.tif",
                setting=setting,
                windows=windows if name == ALONE else 0,
            )
            ways[name] = functools.partial(child.do, order)
        times = measure.interleaved(ways, "cpu", rounds=options.rounds, warmup=0)
        times[ALONE] = [t * ALONE_SHARE for t in times[ALONE]]
        cpu = {n: c.cpu_seconds[setting] for n, c in children.items()}
        cpu[ALONE] = [t * ALONE_SHARE for t in cpu[ALONE]]
        rows[label] = {
            name: measure.summary(taken)
            | paired(taken, times[OURS])
            | {
                "cpu_s": statistics.median(cpu[name]),
                "cpu_ratio": paired(cpu[name], cpu[OURS])["ratio"],
                "share_of_model_rate": statistics.median(times[ALONE]) / statistics.median(taken),
                "peak_bytes": children[name].peak_bytes[setting],
            }
            for name, taken in times.items()
        }
    return rows


def seam_size(chip: int) -> int:
    """Side of the scene for seams: windows of both overlaps end with it, from either edge."""
    return chip + chip * 7 // 2


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
