"""How fast a whole scene is mapped, and in how much memory.

Makes a Sentinel-2 scene of 13 bands with holes as a GeoTIFF in a temporary folder (one random tile
of pixels repeated; about a quarter is nodata), and maps it with a small untrained model: a class
map and an elevation. Printed are the megapixels per second, the chips per second with windows
(overlapping by half) against the pure model's on the same machine in batches of the same size, and
the process's peak memory, before and after.

    python benchmarks/scene.py [--size 10980] [--encoder tiny] [--device cuda] [--kill]

With ``--kill`` another process first maps the scene and is killed (SIGKILL) when the first block of
rows is finished; the map that is timed goes on from there, and is compared with one made at once.

Results are recorded in docs/scenes.md.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from pathlib import Path

import measure
import numpy as np
import rasterio
import torch

from multimae_eo.catalog import make_class_map, make_modality
from multimae_eo.geo import Window
from multimae_eo.modality import ModalitySet, Task
from multimae_eo.network.config import ENCODERS, DecoderConfig, InputConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sample import collate
from multimae_eo.scenes.engine import computing
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.scenes.reconstruct import reconstruct_scene
from multimae_eo.scenes.scene_inputs import require_inputs, scene_tiling
from multimae_eo.scenes.tiling import Tiling
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.statistics import Statistics

BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
CHIP, PATCH, TILE = 64, 16, 512


def write_scene(folder: Path, size: int) -> Path:
    """A scene file and its raster: tiles of one random pattern, every fourth of them left out."""
    tile = np.random.default_rng(0).integers(1, 5000, (13, TILE, TILE)).astype(np.uint16)
    with rasterio.open(
        folder / "s2.tif", "w", driver="GTiff", dtype="uint16", count=13, height=size, width=size,
        crs="EPSG:32630", transform=rasterio.Affine(10, 0, 500000, 0, -10, 5800000), nodata=0,
        tiled=True, blockxsize=TILE, blockysize=TILE, sparse_ok=True, bigtiff="if_safer",
    ) as file:  # fmt: skip
        file.descriptions = BANDS
        for number, (row, col) in enumerate(np.ndindex(-(-size // TILE), -(-size // TILE))):
            if number % 4 != 3:
                height, width = min(TILE, size - row * TILE), min(TILE, size - col * TILE)
                window = rasterio.windows.Window(col * TILE, row * TILE, width, height)
                file.write(tile[:, :height, :width], window=window)
    path = folder / "scene.yaml"
    path.write_text(
        "modalities:\n  optical: {path: s2.tif, sensor: sentinel2, "
        f"bands: [{', '.join(BANDS)}], scale: 1.0e-4, level: l1c}}\n"
    )
    return path


def make_model(scene: Scene, encoder: str) -> MultiMAE:
    modalities = ModalitySet(
        [
            scene.modalities["optical"],
            make_modality("elevation", sensor_name="dem", bands=("elevation",)),
            make_class_map("landcover", class_map_name="esa_worldcover"),
        ]
    )
    statistics = Statistics(modalities)
    sample = scene.read(Window(row=0, col=0, height=256, width=256))
    fields = {
        "elevation": np.arange(65536, dtype=np.int16).reshape(1, 256, 256) % 900,
        "landcover": np.full((1, 256, 256), 10, np.uint8),
    }
    sample.pixels.update(fields)  # type: ignore[attr-defined]
    statistics.update(sample)
    tasks = [
        Task(name="elevation", modality="elevation"),
        Task(name="landcover", modality="landcover", loss="cross_entropy"),
    ]
    config = ModelConfig(
        encoder=ENCODERS[encoder],
        decoder=DecoderConfig(width=64, depth=1, heads=4),
        inputs={n: InputConfig(size=CHIP, patch=PATCH) for n in modalities},
    )
    torch.manual_seed(0)
    return MultiMAE(modalities, tasks, config, statistics).eval()


def pure_rate(model: MultiMAE, scene: Scene, options: SceneOptions, seconds: float) -> float:
    """Chips per second of the model alone, on batches that are already on the device."""
    window = Window(row=0, col=0, height=CHIP, width=CHIP)
    sample = scene.read(window)
    batch = collate([sample] * options.windows_per_batch(CHIP), scene.modalities).to(options.device)
    done, start = 0, 0.0
    with computing(options):
        for turn in range(1_000_000):
            if turn == 2:  # after warming up
                done, start = 0, time.perf_counter()
            said = model.reconstruct(batch, ["optical"], samples=0, uncertainty=False)
            said["elevation"].mean.cpu()
            done += len(batch)
            if turn > 4 and time.perf_counter() - start > seconds:
                break
    return done / (time.perf_counter() - start)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def killed_map(model: MultiMAE, scene: Scene, out: Path, options: SceneOptions) -> int:
    """Map in another process that is killed after its first block; how many blocks are left."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_map, args=(model.cpu(), scene.path, out, options))
    process.start()
    first = out / ".scene.partial" / "block-00000"
    while process.is_alive() and not first.is_dir():
        time.sleep(0.05)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    kept = list(first.parent.glob("block-?????"))
    if process.exitcode != -signal.SIGKILL or not kept:
        raise RuntimeError("the map ended before it could be killed; take a larger --size")
    return len(tiling_of(model, scene, options).blocks) - len(kept)


def tiling_of(model: MultiMAE, scene: Scene, options: SceneOptions) -> Tiling:
    inputs = require_inputs(model.modalities, scene, ["optical"])
    return scene_tiling(model.config.sizes, scene, inputs, options)


def _map(model: MultiMAE, path: Path, out: Path, options: SceneOptions) -> None:
    scene = Scene(path)
    model = model.to(options.device)
    reconstruct_scene(model, scene, inputs=["optical"], out=out, options=options)


def hashes(out: Path) -> dict[str, str]:
    """Of the maps' bytes."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.glob("*.tif"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--size", type=int, default=10_980)
    parser.add_argument("--encoder", default="tiny", choices=sorted(ENCODERS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision",
        default="32-true",
        type=lambda value: {"bf16": "bf16-mixed", "32": "32-true"}.get(value, value),
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="to time the model alone")
    parser.add_argument("--kill", action="store_true", help="and go on after a SIGKILL")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = Scene(write_scene(folder, asked.size))
        model = make_model(scene, asked.encoder).to(asked.device)
        options = SceneOptions(
            device=asked.device,
            precision=asked.precision,
            workers=asked.workers,
            model_hash="benchmark",
        )
        before = peak_gib()
        # The model alone is timed before and after: machines do not keep their pace for minutes.
        pure = pure_rate(model, scene, options, asked.seconds)
        computed = 0
        said = model.reconstruct

        def counted(batch, *rest, **more):  # type: ignore[no-untyped-def]
            nonlocal computed
            computed += len(batch)
            return said(batch, *rest, **more)

        model.reconstruct = counted  # type: ignore[method-assign]
        start = time.perf_counter()
        reconstruct_scene(model, scene, inputs=["optical"], out=folder / "out", options=options)
        seconds = time.perf_counter() - start
        tiling = tiling_of(model, scene, options)
        windows = len(tiling.tops) * len(tiling.lefts)
        peak = peak_gib()
        measure.say(f"mapped in {seconds:.1f} s")
        model.reconstruct = said  # type: ignore[method-assign]
        pure = (pure + pure_rate(model, scene, options, asked.seconds)) / 2
        if computed:
            rate = computed / seconds
            print(f"chips/s: {rate:.0f}, the model alone {pure:.0f} ({100 * rate / pure:.0f} %)")
        if asked.kill:
            left = killed_map(model, scene, folder / "again", options)
            _map(model, scene.path, folder / "again", options)
            same = hashes(folder / "again") == hashes(folder / "out")
            print(f"killed with {left} of {len(tiling.blocks)} blocks left; goes on to "
                  f"{'the same bytes' if same else 'OTHER BYTES'}")  # fmt: skip
    pixels = asked.size**2
    print(f"{asked.size} × {asked.size} px, 13 bands, encoder {asked.encoder}, {asked.device}")
    print(f"mapped in {seconds:.1f} s: {pixels / seconds / 1e6:.2f} Mpx/s")
    print(f"windows: {windows} in the scene, {computed or 'in other processes'} computed")
    print(f"peak memory: {before:.2f} GiB before, {peak:.2f} GiB after")


if __name__ == "__main__":
    main()
