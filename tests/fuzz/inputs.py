"""Small valid inputs of every kind, each with the command that reads it."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support.geobench_files import write_geobench
from tests.support.mmearth_files import write_mmearth
from tests.support.paths import ROOT
from tests.support.scene_files import optical_scene, write

RELEASE = ROOT / "tests/fixtures/release_0_1"


@dataclass(frozen=True)
class Kind:
    """Files to mutate below a folder, and the command line that reads them (OUT is replaced).

    ``text``: "yaml", "json", "csv" or "" for a binary file.
    """

    make: Callable[[Path], None]
    files: tuple[str, ...]
    command: tuple[str, ...]
    text: str = ""


def copied(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            source = RELEASE / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            else:
                shutil.copy(source, folder / name)

    return make


def dataset(folder: Path, *, suffix: str = "tif") -> None:
    """Four chips of two modalities with class labels."""
    import rasterio

    rng = np.random.default_rng(0)
    (folder / "chips").mkdir()
    for i in range(4):
        pixels = rng.integers(0, 255, (3, 16, 16)).astype(np.uint8)
        if suffix == "tif":
            write(folder / f"chips/c{i}.tif", pixels, ("B4", "B3", "B2"))
        else:
            with rasterio.open(
                folder / f"chips/c{i}.{suffix}", "w", driver={"png": "PNG", "jpg": "JPEG"}[suffix],
                width=16, height=16, count=3, dtype="uint8",
            ) as file:  # fmt: skip
                file.write(pixels)
    rows = "".join(
        f"c{i},{s},{('land', 'water')[i % 2]}\n"
        for i, s in enumerate(["train", "train", "val", "test"])
    )
    (folder / "split.csv").write_text("id,split,label\n" + rows)
    (folder / "dataset.yaml").write_text(
        f"name: fuzzed\nchips: chips/{{id}}.{suffix}\nsize: 16\n"
        "modalities:\n  rgb: {sensor: sentinel2, bands: [B4, B3, B2], scale: 1.0e-4, level: l2a}\n"
        "labels: {column: label, classes: [land, water]}\nsplits: split.csv\n"
    )


def recipe(folder: Path) -> None:
    copied("store")(folder)
    (folder / "recipe.yaml").write_text(
        "modalities: [rgb, elevation, landcover]\n"
        "model:\n  encoder: {width: 16, depth: 1, heads: 2}\n"
        "  decoder: {width: 8, depth: 1, heads: 2}\n"
        "masking: {num_visible_tokens: 6}\noptim: {lr: 0.001, clip: 1.0}\n"
        "data: {chip: 16, batch_size: 2}\n"
        "run: {epochs: 1, accelerator: cpu, pictures_every: 0}\n"
    )


def begun_run(folder: Path) -> None:
    """A run that ended before its first step."""
    from unittest import mock

    from multimae_eo.cli import main
    from multimae_eo.errors import TrainingError
    from multimae_eo.train import pretrain

    recipe(folder)
    arguments = [str(folder / a) if a in ("recipe.yaml", "store", "run") else a for a in RESUME]
    with mock.patch.object(pretrain, "fit", side_effect=TrainingError("ended")):
        assert main(arguments) == 1
    (folder / "run/metrics.csv").write_text("step,train/loss\n1,0.5\n2,0.4\n")


def scene(folder: Path) -> None:
    copied("model", "scene", "scene.yaml")(folder)


def geotiff(folder: Path) -> None:
    copied("model")(folder)
    optical_scene(folder, 24, 24)


def mmearth(folder: Path) -> None:
    write_mmearth(folder / "mm", chips=4, size=8, seed=0)


def geobench(folder: Path) -> None:
    write_geobench(folder, "m-eurosat", chips=(2, 1, 1), size=8)


def checkpoint(folder: Path) -> None:
    import torch

    weights = {"global_tokens": torch.zeros(1, 1, 4), "a.weight": torch.ones(3, 4)}
    torch.save({"model": weights, "args": argparse.Namespace(lr=0.1)}, folder / "c.pth")


def stac(folder: Path) -> None:
    """An item with one asset in a collection of a static catalogue."""
    import datetime

    import pystac
    import rasterio
    from rasterio.warp import transform_bounds

    left, top, raster = 500000.0, 5800000.0, folder / "red.tif"
    pixels = np.random.default_rng(0).integers(1, 4000, (1, 64, 64)).astype(np.uint16)
    at = rasterio.transform.from_origin(left, top, 10, 10)
    write(raster, pixels, ("red",), transform=at, crs="EPSG:32630")
    west, south, east, north = transform_bounds(
        "EPSG:32630", "EPSG:4326", left, top - 640, left + 640, top
    )
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    item = pystac.Item(
        "a", {"type": "Polygon", "coordinates": [ring]}, [west, south, east, north],
        datetime.datetime(2021, 5, 10, tzinfo=datetime.UTC), {"eo:cloud_cover": 10},
    )  # fmt: skip
    bands = {"raster:bands": [{"nodata": 0, "scale": 0.0001, "offset": 0.0}]}
    item.add_asset("red", pystac.Asset(str(raster), roles=["data"], extra_fields=bands))
    extent = pystac.Extent(
        pystac.SpatialExtent([-180, -90, 180, 90]), pystac.TemporalExtent([None, None])
    )
    collection = pystac.Collection("s2", "s2", extent)
    collection.add_item(item)
    catalog = pystac.Catalog("c", "of a test")
    catalog.add_child(collection)
    catalog.normalize_and_save(str(folder / "cat"), pystac.CatalogType.SELF_CONTAINED)
    (folder / "stac.yaml").write_text(
        f"name: fuzzed\narea: [{west + 0.001}, {south + 0.001}, {east - 0.001}, {north - 0.001}]\n"
        "dates: 2021-05-01/2021-06-30\ngrid: {crs: 'EPSG:32630', resolution: 10}\n"
        "catalog: cat/catalog.json\nchips: {size: 16}\nmodalities:\n"
        "  red: {sensor: sentinel2, bands: [B4], collections: [s2], level: l2a}\n"
    )


RESUME = ("pretrain", "--recipe", "recipe.yaml", "--data", "store", "--out", "run")
EMBED = ("embed", "--model", "model", "--device", "cpu", "--out", "OUT")
PREPARE = ("--out", "OUT")
KINDS: dict[str, Kind] = {
    "dataset-yaml": Kind(dataset, ("dataset.yaml",), ("prepare", "dataset.yaml", *PREPARE), "yaml"),
    "split-csv": Kind(dataset, ("split.csv",), ("prepare", "dataset.yaml", *PREPARE), "csv"),
    "dataset-geotiff": Kind(
        dataset, ("chips/c1.tif",), ("prepare", "dataset.yaml", *PREPARE)
    ),
    "png": Kind(
        lambda f: dataset(f, suffix="png"), ("chips/c1.png",),
        ("prepare", "dataset.yaml", *PREPARE),
    ),
    "jpeg": Kind(
        lambda f: dataset(f, suffix="jpg"), ("chips/c1.jpg",),
        ("prepare", "dataset.yaml", *PREPARE),
    ),
    "recipe-yaml": Kind(
        recipe, ("recipe.yaml",),
        ("pretrain", "--recipe", "recipe.yaml", "--data", "store", "--out", "OUT"), "yaml",
    ),
    "scene-yaml": Kind(scene, ("scene.yaml",), (*EMBED, "--scene", "scene.yaml"), "yaml"),
    "scene-geotiff": Kind(scene, ("scene/s2.tif",), (*EMBED, "--scene", "scene.yaml")),
    "info-geotiff": Kind(copied("map"), ("map/landcover.tif",), ("info", "map/landcover.tif")),
    "store-json": Kind(
        copied("store", "model"), ("store/store.json",), (*EMBED, "--data", "store"), "json"
    ),
    "store-index": Kind(
        copied("store", "model"), ("store/index.parquet",), (*EMBED, "--data", "store")
    ),
    "store-npy": Kind(
        copied("store", "model"), ("store/rgb/00000.npy", "store/landcover/00000.npy"),
        (*EMBED, "--data", "store"),
    ),
    "model-json": Kind(
        copied("model"), ("model/config.json", "model/modalities.json"), ("info", "model"), "json"
    ),
    "model-weights": Kind(copied("model"), ("model/model.safetensors",), ("info", "model")),
    "mmearth-h5": Kind(
        mmearth, ("mm/data_100k_v001.h5",), ("prepare", "mmearth:mm", *PREPARE)
    ),
    "mmearth-json": Kind(
        mmearth,
        tuple(f"mm/data_100k_v001_{n}.json" for n in ("splits", "tile_info", "band_stats")),
        ("prepare", "mmearth:mm", *PREPARE), "json",
    ),
    "geobench-hdf5": Kind(
        geobench, ("*.hdf5",), ("prepare", "geobench:./m-eurosat", *PREPARE)
    ),
    "geobench-json": Kind(
        geobench, ("*_partition.json", "*band_stats.json"),
        ("prepare", "geobench:./m-eurosat", *PREPARE), "json",
    ),
    "checkpoint-pth": Kind(checkpoint, ("c.pth",), ("convert", "c.pth", "--out", "OUT")),
    "geoparquet": Kind(
        copied("chips.parquet"), ("chips.parquet",),
        ("search", "--embeddings", "chips.parquet", "--at=15.001,62.231"),
    ),
    "geoparquet-info": Kind(copied("chips.parquet"), ("chips.parquet",), ("info", "chips.parquet")),
    "stac-json": Kind(
        stac, ("cat/**/*.json",), ("prepare", "stac.yaml", *PREPARE), "json"
    ),
    "stac-yaml": Kind(stac, ("stac.yaml",), ("prepare", "stac.yaml", *PREPARE), "yaml"),
    "resumed-run": Kind(
        begun_run, ("run/recipe.yaml", "run/statistics.json", "run/metrics.csv"), RESUME, "yaml"
    ),
    "run-recipe": Kind(copied("run"), ("run/recipe.yaml",), ("info", "run"), "yaml"),
    "run-metrics": Kind(
        lambda f: (copied("run")(f), (f / "run/metrics.csv").write_text(
            "step,epoch,train/loss,val/loss\n1,0,0.5,\n2,1,0.4,0.6\n"))[0],
        ("run/metrics.csv",), ("info", "run"), "csv",
    ),
    "run-checkpoint": Kind(
        copied("run"), ("run/checkpoints/last.ckpt",), ("info", "run", "--verify")
    ),
}  # fmt: skip
