"""A synthetic scene, and the model that every package maps it with.

Classes are patches of ground with spectra of their own; brightness varies smoothly and every pixel
carries noise. The model is fitted to it for a few steps: one with random weights marks its position
in the window more than the ground, and would exaggerate seams.
"""

from __future__ import annotations

from pathlib import Path

import measure
import numpy as np
import rasterio
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from multimae_eo.catalog import make_modality
from multimae_eo.geo import Window
from multimae_eo.modality import ModalitySet
from multimae_eo.network.config import ENCODERS, HeadConfig, InputConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import Target
from multimae_eo.sample import Batch
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.statistics import Statistics

BANDS = ("B2", "B3", "B4", "B8", "B11", "B12")
SPECTRA = np.array(
    [
        [600, 550, 400, 250, 120, 80],
        [500, 800, 600, 3200, 1700, 800],
        [900, 1200, 1400, 2400, 2800, 2000],
        [1500, 1700, 1900, 2300, 2600, 2400],
    ],
    np.float32,
)
"""Digital numbers of water, forest, crops and built-up, by band."""
CLASSES = ("water", "forest", "crops", "built-up")
PATCH_SIGMA_PX, LIGHT_SIGMA_PX = 12.0, 40.0
TILE = 512
SCALE = 1e-4
STATISTICS_PX = 256


def write_scene(folder: Path, size: int, seed: int) -> Path:
    """``scene.yaml``, its raster ``scene.tif`` (DEFLATE) and its classes ``classes.npy``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)

    def smooth(sigma: float) -> np.ndarray:
        field = gaussian_filter(rng.standard_normal((size, size), np.float32), sigma, mode="wrap")
        return np.asarray(field / field.std())

    classes = np.stack([smooth(PATCH_SIGMA_PX) for _ in CLASSES]).argmax(axis=0)
    light = 1 + 0.1 * smooth(LIGHT_SIGMA_PX)
    np.save(folder / "classes.npy", classes.astype(np.uint8))
    with rasterio.open(
        folder / "scene.tif", "w", driver="GTiff", dtype="uint16", count=len(BANDS), height=size,
        width=size, crs="EPSG:32630", transform=rasterio.Affine(10, 0, 500000, 0, -10, 5800000),
        tiled=True, blockxsize=TILE, blockysize=TILE, compress="deflate", predictor=2,
    ) as file:  # fmt: skip
        file.descriptions = BANDS
        for number in range(len(BANDS)):
            noise = 1 + 0.25 * rng.standard_normal((size, size), np.float32)
            band = SPECTRA[classes, number] * light * noise
            file.write(band.clip(1, 10000).astype(np.uint16), number + 1)
    path = folder / "scene.yaml"
    path.write_text(
        "modalities:\n  optical: {path: scene.tif, sensor: sentinel2, "
        f"bands: [{', '.join(BANDS)}], scale: {SCALE}, level: l2a}}\n"
    )
    return path


def make_model(scene: Path, *, encoder: str, chip: int, patch: int) -> Predictor:
    """A segmentation model with weights of seed 0 and the scene's statistics."""
    source = Scene(scene)
    modalities = ModalitySet([make_modality("optical", sensor_name="sentinel2", bands=BANDS)])
    statistics = Statistics(modalities)
    side = min(STATISTICS_PX, source.grid.height, source.grid.width)
    statistics.update(source.read(Window(row=0, col=0, height=side, width=side)))
    config = ModelConfig(
        encoder=ENCODERS[encoder], inputs={"optical": InputConfig(size=chip, patch=patch)}
    )
    torch.manual_seed(0)
    network = MultiMAE(modalities, [], config, statistics)
    counts = tuple(1.0 for _ in CLASSES)
    target = Target(kind="map", classes=CLASSES, counts=counts, total=float(len(CLASSES)))
    return Predictor(network, target, HeadConfig(name="linear")).eval()


def batch_of(model: Predictor, numbers: torch.Tensor) -> Batch:
    """Digital numbers (B, C, H, W) as the model takes them; every pixel was observed."""
    modalities = model.encoder.modalities
    size = len(numbers)
    level = modalities["optical"].level_index("l2a")
    return Batch(
        modalities=modalities,
        keys=tuple(str(i) for i in range(size)),
        pixels={"optical": numbers},
        valid={},
        present=torch.ones(size, 1, dtype=torch.bool),
        scale=torch.full((size, 1), SCALE),
        offset=torch.zeros(size, 1),
        level=torch.full((size, 1), level),
        complete=True,
    )


def fit(model: Predictor, folder: Path, *, steps: int, batch: int = 16) -> float:
    """Fit the model to random windows of the scene in ``folder``; accuracy in the last ones."""
    with rasterio.open(folder / "scene.tif") as file:
        image = file.read().astype(np.float32)
    classes = np.load(folder / "classes.npy").astype(np.int64)
    chip = model.encoder.config.sizes["optical"]
    rng = np.random.default_rng(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
    model.train()
    accuracy = []
    for number in range(steps):
        tops, lefts = rng.integers(0, image.shape[1] - chip + 1, (2, batch))
        parts = [np.s_[..., t : t + chip, c : c + chip] for t, c in zip(tops, lefts, strict=True)]
        pixels = torch.from_numpy(np.stack([image[p] for p in parts]))
        labels = torch.from_numpy(np.stack([classes[p] for p in parts]))
        logits = model(batch_of(model, pixels))
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        accuracy.append(float((logits.argmax(1) == labels).float().mean()))
        if number % 20 == 19:
            measure.say(f"fit: step {number + 1} of {steps}, accuracy {accuracy[-1]:.2f}")
    model.eval()
    return float(np.mean(accuracy[-5:]))
