"""Small made-up scenes and models for the tests of the scene engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from multimae_eo.catalog import make_class_map, make_modality
from multimae_eo.modality import ModalitySet, Task
from multimae_eo.sources.raster.grid import Grid

CRS = "EPSG:32630"
StandIn: Any = object
"""Base of classes that stand in for a model: they pass for one in type checks."""


def grid(height: int, width: int) -> Grid:
    import rasterio

    return Grid(
        crs=CRS,
        transform=rasterio.transform.from_origin(500000, 5800000, 10, 10),
        height=height,
        width=width,
    )


def write(path: Path, pixels: np.ndarray, names: tuple[str, ...], **profile: object) -> None:
    import rasterio

    settings = {"crs": CRS, "transform": grid(1, 1).transform, "nodata": 0, **profile}
    with rasterio.open(
        path, "w", driver="GTiff", dtype=pixels.dtype, count=len(pixels),
        height=pixels.shape[1], width=pixels.shape[2], **settings,
    ) as file:  # fmt: skip
        file.write(pixels)
        file.descriptions = names


def optical_scene(
    folder: Path, height: int, width: int, *, seed: int = 1, hole: tuple[slice, slice] | None = None
) -> Path:
    """``scene.yaml`` with one modality, rgb; ``hole``: slices without data."""
    red = np.random.default_rng(seed).integers(500, 4000, (3, height, width)).astype(np.uint16)
    if hole is not None:
        red[:, hole[0], hole[1]] = 0
    write(folder / "s2.tif", red, ("B4", "B3", "B2"))
    np.save(folder / "red.npy", red)
    path = folder / "scene.yaml"
    path.write_text(
        "name: made-up\ntime: 2021-05-27\nmodalities:\n"
        "  rgb: {path: s2.tif, sensor: sentinel2, bands: [B4, B3, B2], scale: 1.0e-4, level: l2a}\n"
    )
    return path


class Fake(StandIn):
    """Predicts elevation = 100 × the first optical band, and class by threshold."""

    class_names: tuple[str, ...] = ("land", "water")

    def __init__(self, size: int = 16) -> None:
        self.modalities = ModalitySet(
            [
                make_modality("rgb", sensor_name="sentinel2", bands=("B4", "B3", "B2")),
                make_modality("elevation", sensor_name="dem", bands=("elevation",)),
                make_class_map("landcover", class_map_name="esa_worldcover"),
            ]
        )
        self.tasks = (
            Task(name="elevation", modality="elevation"),
            Task(name="landcover", modality="landcover", loss="cross_entropy"),
        )
        self.config = SimpleNamespace(sizes=dict.fromkeys(self.modalities, size))
        self.statistics = None
        self.encoder = self
        self.target = SimpleNamespace(classes=self.class_names, dense=True, output_ids=(0, 1))
        self.batches: list[int] = []

    def red(self, batch):
        self.batches.append(len(batch))
        return batch.pixels["rgb"][:, :1].float() * batch.scale[:, 0, None, None, None]

    def observed_rows(self, batch, inputs=None):
        return torch.arange(len(batch))

    def predictions(self, outputs):
        return outputs if self.class_names else outputs[:, 0]

    def reconstruct(self, batch, inputs=None, *, outputs=None, samples=8, seed=0, **_):
        red = self.red(batch)
        share = torch.zeros(len(batch), 11, *red.shape[-2:])
        share[:, 0] = (red[:, 0] > 0.2).float()
        share[:, 7] = 1 - share[:, 0]
        found = {
            "elevation": SimpleNamespace(mean=red * 100, std=red * 0 + 1.5),
            "landcover": SimpleNamespace(mean=share, std=red * 0),
        }
        return {n: found[n] for n in outputs or found}

    def predict(self, batch, inputs=None):
        land = (self.red(batch) > 0.2).float() * 0.8 + 0.1
        return torch.cat([land, 1 - land], dim=1)
