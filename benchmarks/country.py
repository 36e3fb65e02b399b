"""What it costs to map a country on 1, 10 and 100 workers: a simulation of measured parts.

Measured here, each worker with one core and one thread, in CPU seconds of the process (so that what
else the machine does matters little): reading and warping a window, the model alone, whole blocks
of a scene with their own variation, writing the GeoTIFFs of a scene, opening it, and a task of a
Dask scheduler. Simulated is the schedule of `--dask`: a client opens scenes, workers take blocks
first come, first served, and write a scene's rasters when its last block is finished.

    python benchmarks/country.py [--encoders tiny,small] [--size 1500] [--workers 1,10,100]

Results go to benchmarks/results/country_cpu.json; the table is in docs/many_scenes.md. Assumptions:
Sentinel-2 tiles of 10,980 px, each of which adds 100 × 100 km; blocks vary by at least a tenth
(log-normal); one worker in twenty takes twice as long; storage keeps up with the rate that is
given.
"""

from __future__ import annotations

import argparse
import heapq
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import rasterio
import scene as scene_benchmark
import torch

from multimae_eo.catalog import make_class_map
from multimae_eo.dask_cluster import connected
from multimae_eo.geo import Window
from multimae_eo.network.config import HeadConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import Target
from multimae_eo.sample import collate
from multimae_eo.scenes import engine
from multimae_eo.scenes.blocks import Blocks
from multimae_eo.scenes.job import SceneJob, SceneOptions
from multimae_eo.scenes.predict import predict_scene
from multimae_eo.scenes.scene_inputs import open_for
from multimae_eo.scenes.tiling import make_tiling
from multimae_eo.scenes.window_reader import read_windows
from multimae_eo.sources.raster.grid import Grid
from multimae_eo.sources.scene.scene import Scene

TILE_PX, TILE_KM = 10_980, 100
LEAST_VARIATION = 0.1
SLOW_SHARE, SLOW_FACTOR = 0.05, 2.0
TASKS = 400


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Measured seconds of one core, per megapixel of a scene unless named otherwise.

    ``variation``: standard deviation of blocks over their mean. ``input_mb``, ``output_mb``: per
    megapixel. ``task_s``: of the scheduler and the client, per task. ``open_s``: per scene.
    """

    read_s: float
    model_s: float
    block_s: float
    write_s: float
    variation: float
    open_s: float
    task_s: float
    input_mb: float
    output_mb: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a country costs. ``busy``: share of the workers' time in which they compute."""

    workers: int
    hours: float
    cpu_hours: float
    busy: float
    output_gb: float
    read_mb_per_s: float


def main() -> None:
    """Measure, simulate, write and print."""
    options = arguments()
    record = run(options)
    print(measure.write_results("country_cpu", record, options.out))
    print(table(record))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--encoders", default="tiny,small")
    parser.add_argument("--size", type=int, default=1500, help="side of the measured scene in px")
    parser.add_argument("--km2", type=float, default=1e6)
    parser.add_argument("--workers", default="1,10,100")
    parser.add_argument("--seconds", type=float, default=5.0, help="to time the model alone")
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    return parser.parse_args(given)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The record that is written: the parts of each encoder, and its costs."""
    machine = measure.machine("cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    models = {}
    try:
        task_s = seconds_per_task()
        for encoder in options.encoders.split(","):
            parts = measured(encoder, options.size, options.seconds, task_s)
            counts = [int(n) for n in options.workers.split(",")]
            costs = [simulate(parts, n, km2=options.km2) for n in counts]
            models[encoder] = {"parts": vars(parts), "costs": [vars(c) for c in costs]}
            measure.say(f"{encoder}: {parts.block_s:.2f} s of a core per megapixel")
    finally:
        torch.set_num_threads(threads)
    return {
        "machine": machine,
        "size": options.size,
        "km2": options.km2,
        "assumptions": {
            "tile_px": TILE_PX,
            "tile_km": TILE_KM,
            "least_variation": LEAST_VARIATION,
            "slow_workers": SLOW_SHARE,
            "slow_factor": SLOW_FACTOR,
        },
        "models": models,
    }


def table(record: dict[str, Any]) -> str:
    """The costs as Markdown."""
    lines = [
        "| encoder | workers of one core | hours | CPU-hours | busy | output | reads, decoded |",
        "|---|---|---|---|---|---|---|",
    ]
    for encoder, model in record["models"].items():
        lines += [
            f"| {encoder} | {c['workers']} | {c['hours']:,.2f} | {c['cpu_hours']:,.1f} | "
            f"{c['busy']:.0%} | {c['output_gb']:,.1f} GB | {c['read_mb_per_s']:,.0f} MB/s |"
            for c in model["costs"]
        ]
    return "\n".join(lines)


# Measured -------------------------------------------------------------------------------------


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process, all its threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def make_predictor(model: MultiMAE) -> Predictor:
    """A segmentation of ten classes."""
    classes = make_class_map("landcover", class_map_name="esa_worldcover").class_names
    target = Target(kind="map", classes=tuple(classes))
    return Predictor(model, target, HeadConfig(name="linear", width=64)).eval()


def measured(encoder: str, size: int, seconds: float, task_s: float) -> Parts:
    """The parts for a segmentation model of an encoder, on one thread, in float32."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_full_scene(folder, size)
        scene = Scene(path)
        model = scene_benchmark.make_model(scene, encoder)
        predictor = make_predictor(model)
        options = SceneOptions(precision="32-true", model_hash="benchmark")
        job = planned(predictor, scene, folder, options)
        megapixels = size**2 / 1e6
        warm(predictor, folder, options)

        read_s = cpu_seconds(lambda: read_all(job))
        windows = len(job.tiling.tops) * len(job.tiling.lefts)
        alone = 1 / rate_alone(job, scene, seconds)
        blocks = [
            cpu_seconds(partial(computed, job, folder, n)) for n in range(len(job.tiling.blocks))
        ]
        rows = [min(b, size) - a for a, b in job.tiling.blocks]
        of_row = [s / r for s, r in zip(blocks, rows, strict=True)]
        mean = statistics.fmean(of_row)
        # The blocks are finished: this writes the rasters only.
        out = folder / "map.tif"
        write_s = cpu_seconds(lambda: written(predictor, scene, out, options))
        open_s = min(cpu_seconds(lambda: open_for(model, path)) for _ in range(3))
        checked = cpu_seconds(lambda: planned(predictor, scene, folder / "again", options))
        pixels = sum(rows) * size / 1e6
        return Parts(
            read_s=read_s / megapixels,
            model_s=alone * windows / megapixels,
            block_s=sum(blocks) / pixels,
            write_s=write_s / megapixels,
            variation=statistics.pstdev(of_row) / mean if len(of_row) > 1 else 0.0,
            open_s=open_s + checked,
            task_s=task_s,
            input_mb=13 * 2,
            output_mb=out.stat().st_size / 1e6 / megapixels,
        )


class Planned(Exception):  # noqa: N818 - ends a map before its first block
    """Holds the job of a map that is not computed."""

    def __init__(self, job: SceneJob) -> None:
        self.job = job


def planned(predictor: Predictor, scene: Scene, folder: Path, options: SceneOptions) -> SceneJob:
    """The job that ``predict_scene`` makes, without computing it."""
    original = engine.run

    def stop(job: SceneJob, *_: object, **__: object) -> list[Path]:
        raise Planned(job)

    engine.run = stop
    try:
        predict_scene(predictor, scene, out=folder / "map.tif", options=options)
    except Planned as ended:
        return ended.job
    finally:
        engine.run = original
    raise AssertionError


def write_full_scene(folder: Path, size: int) -> Path:
    """The scene of ``benchmarks/scene.py`` without its nodata: every window is predicted."""
    path = scene_benchmark.write_scene(folder, size)
    with rasterio.open(folder / "s2.tif", "r+") as file:
        for _, window in file.block_windows(1):
            pixels = file.read(window=window)
            if not pixels.any():
                rng = np.random.default_rng(0)
                file.write(rng.integers(1, 5000, pixels.shape).astype(np.uint16), window=window)
    return path


def warm(predictor: Predictor, folder: Path, options: SceneOptions) -> None:
    """Map a small scene, so that libraries are loaded when the parts are measured."""
    (folder / "small").mkdir()
    scene = Scene(scene_benchmark.write_scene(folder / "small", 2 * scene_benchmark.CHIP))
    predict_scene(predictor, scene, out=folder / "small/map.tif", options=options)


def read_all(job: SceneJob) -> None:
    """Read and warp every window, once for each block that it touches."""
    for _ in read_windows(job.scene, job.model.inputs, job.tiling, job.tiling.blocks):
        pass


def rate_alone(job: SceneJob, scene: Scene, seconds: float) -> float:
    """Windows per CPU second of the model on batches in memory."""
    chip = job.tiling.chip
    sample = scene.read(Window(row=0, col=0, height=chip, width=chip))
    batch = collate([sample] * job.options.windows_per_batch(chip), job.model.inputs)
    done = 0
    with engine.computing(job.options):
        job.model(batch)
        start, wall = time.process_time(), time.monotonic()
        while done == 0 or time.monotonic() - wall < seconds:
            job.model(batch)
            done += len(batch)
    return done / (time.process_time() - start)


def computed(job: SceneJob, folder: Path, number: int) -> None:
    """Compute a block as a worker does."""
    keep = folder / ".map.tif.partial"
    blocks = Blocks(keep, engine._plan(job))
    engine.run_blocks(job, blocks, [number])


def written(predictor: Predictor, scene: Scene, out: Path, options: SceneOptions) -> None:
    """Write the rasters of a map whose blocks are all there."""
    predict_scene(predictor, scene, out=out, options=replace(options))


def seconds_per_task() -> float:
    """CPU seconds of scheduler, client and worker for a task that does nothing."""
    from distributed import LocalCluster

    with (
        tempfile.TemporaryDirectory() as name,
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tcp",
            dashboard_address=None,
        ) as cluster,
        connected(cluster.scheduler_address) as workers,
    ):  # fmt: skip

        def tasks(count: int) -> None:
            list(workers.results(same, range(count), folder=Path(name)))

        tasks(20)
        return cpu_seconds(lambda: tasks(TASKS)) / TASKS


def same(value: int) -> int:
    """A task that does nothing."""
    return value


# Simulated ------------------------------------------------------------------------------------


def blocks_of_tile() -> list[int]:
    """Rows of each block of a tile, with windows of 64 px that overlap by half."""
    from rasterio.transform import from_origin

    grid = Grid(
        crs="EPSG:32630", transform=from_origin(0, 0, 10, 10), height=TILE_PX, width=TILE_PX
    )
    tiling = make_tiling(grid, {"optical": 64}, {"optical": 1})
    return [min(last, TILE_PX) - first for first, last in tiling.blocks]


@dataclass(order=True, kw_only=True)
class SimulatedTask:
    """A block, or the rasters (``block`` false) of a scene; ``seconds`` of an average worker.

    In the order of the scheduler: rasters first, then as submitted.
    """

    block: bool
    order: int
    scene: int
    seconds: float


class Country:
    """Scenes on their way through client, scheduler and workers."""

    def __init__(self, parts: Parts, tiles: int, workers: int) -> None:
        self.parts, self.tiles, self.rows = parts, tiles, blocks_of_tile()
        self.ahead = min(tiles, 32, 2 + workers // 4)
        self.later: list[tuple[float, SimulatedTask]] = []
        self.ready: list[SimulatedTask] = []
        self.last_end = [0.0] * tiles
        self.missing = [len(self.rows)] * tiles
        self.opened = self.orders = 0
        self.client = 0.0
        for _ in range(self.ahead):
            self.open(0.0)

    def add(self, ready: float, scene: int, seconds: float, *, block: bool) -> None:
        """Submit a task."""
        self.orders += 1
        task = SimulatedTask(block=block, order=self.orders, scene=scene, seconds=seconds)
        heapq.heappush(self.later, (ready, task))

    def next(self, when: float) -> tuple[float, SimulatedTask] | None:
        """The first task for a worker that is free at ``when``, and when it can begin."""
        if not self.ready and self.later:
            when = max(when, self.later[0][0])
        while self.later and self.later[0][0] <= when:
            heapq.heappush(self.ready, heapq.heappop(self.later)[1])
        return (when, heapq.heappop(self.ready)) if self.ready else None

    def open(self, when: float) -> None:
        """The client opens the next scene, when it has opened those before."""
        if self.opened == self.tiles:
            return
        self.client = max(self.client, when) + self.parts.open_s
        for rows in self.rows:
            seconds = self.parts.block_s * rows * TILE_PX / 1e6
            self.add(self.client, self.opened, seconds, block=True)
        self.opened += 1

    def ended(self, task: SimulatedTask, end: float) -> None:
        """A task has an end: the rasters follow the last block, the next scene the rasters."""
        if not task.block:
            self.open(end)
            return
        scene = task.scene
        self.last_end[scene] = max(self.last_end[scene], end)
        self.missing[scene] -= 1
        if not self.missing[scene]:
            seconds = self.parts.write_s * TILE_PX**2 / 1e6
            self.add(self.last_end[scene], scene, seconds, block=False)


def simulate(parts: Parts, workers: int, *, km2: float = 1e6, seed: int = 0) -> Cost:
    """The schedule of a country's scenes on ``workers`` of one core; see the module's docstring.

    The client opens scenes one after another, at most ``2 + workers // 4`` ahead of those that are
    finished, as ``each_scene`` does; each task costs the scheduler ``task_s``, one at a time.
    """
    rng = np.random.default_rng(seed)
    sigma = math.sqrt(math.log(1 + max(parts.variation, LEAST_VARIATION) ** 2))
    tiles = math.ceil(km2 / TILE_KM**2)
    slow = rng.permutation(workers) < round(SLOW_SHARE * workers)
    idle = [(0.0, w) for w in range(workers)]
    heapq.heapify(idle)
    country = Country(parts, tiles, workers)
    scheduler = busy = seconds = 0.0
    # The worker that is free first takes the first task.
    while chosen := country.next(idle[0][0]):
        start, task = chosen
        _, worker = heapq.heappop(idle)
        scheduler = max(scheduler, start) + parts.task_s
        length = task.seconds * rng.lognormal(-(sigma**2) / 2, sigma)
        length *= SLOW_FACTOR if slow[worker] else 1.0
        end = scheduler + length
        busy, seconds = busy + length, max(seconds, end)
        heapq.heappush(idle, (end, worker))
        country.ended(task, end)
    megapixels = tiles * TILE_PX**2 / 1e6
    return Cost(
        workers=workers,
        hours=seconds / 3600,
        cpu_hours=busy / 3600,
        busy=busy / (workers * seconds),
        output_gb=megapixels * parts.output_mb / 1e3,
        read_mb_per_s=megapixels * parts.input_mb / seconds,
    )


if __name__ == "__main__":
    main()
