"""The same model mapping a scene through this package, TerraTorch, and TorchGeo's grid sampler.

Every mapper reads the GeoTIFF, applies the same forward pass to windows of the same size, combines
probabilities where windows overlap, and writes the likeliest class as a GeoTIFF.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import rasterio
import torch

from multimae_eo.network.predictor import Predictor
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.scenes.predict import predict_scene
from multimae_eo.sources.scene.scene import Scene
from peers.landscape import batch_of
from peers.ratios import installed

Probabilities = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a scene is mapped: windows of ``chip`` px, every ``stride`` px, ``batch`` at a time."""

    chip: int
    stride: int
    batch: int

    @property
    def overlap(self) -> float:
        """Share of a window's side."""
        return 1 - self.stride / self.chip


class Mapper(Protocol):
    """A package that maps scenes."""

    def write(self, folder: Path, out: Path, setting: Setting) -> None:
        """Write the classes of ``folder/scene.tif`` to ``out``, a GeoTIFF."""

    def probabilities(self, folder: Path, out: Path, setting: Setting) -> Probabilities:
        """Probabilities (classes, H, W) of the same map."""


class Forward:
    """Windows of digital numbers (B, C, H, W) to probabilities (B, classes, H, W)."""

    def __init__(self, model: Predictor) -> None:
        self.model = model

    def __call__(self, numbers: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            outputs = self.model.predict(batch_of(self.model, numbers), ["optical"])
            return self.model.predictions(outputs.float())


class SceneEngine:
    """``multimae-eo predict``, which also writes overviews and a quick look."""

    def __init__(self, model: Predictor) -> None:
        self.model = model

    def write(self, folder: Path, out: Path, setting: Setting) -> None:
        self._predict(folder, out, setting)

    def probabilities(self, folder: Path, out: Path, setting: Setting) -> Probabilities:
        paths = self._predict(folder, out, setting, probabilities=True)
        with rasterio.open(paths[1]) as file:
            return np.asarray(file.read(), np.float32)

    def _predict(
        self, folder: Path, out: Path, setting: Setting, *, probabilities: bool = False
    ) -> list[Path]:
        options = SceneOptions(
            overlap=setting.overlap, batch_size=setting.batch, precision="32-true"
        )
        return predict_scene(
            self.model,
            Scene(folder / "scene.yaml"),
            out=out,
            extras=("probabilities",) if probabilities else (),
            options=options,
        )


class _InMemory:
    """A peer's map: probabilities in memory, the likeliest class of which is written."""

    def __init__(self, model: Predictor) -> None:
        self.forward = Forward(model)

    def write(self, folder: Path, out: Path, setting: Setting) -> None:
        classes = self.probabilities(folder, out, setting).argmax(axis=0).astype(np.uint8)
        with rasterio.open(folder / "scene.tif") as file:
            profile = file.profile
        profile.update(dtype="uint8", count=1, predictor=1)
        with rasterio.open(out, "w", **profile) as file:
            file.write(classes, 1)

    def probabilities(self, folder: Path, out: Path, setting: Setting) -> Probabilities:
        raise NotImplementedError


class TerraTorch(_InMemory):
    """TerraTorch's ``tiled_inference`` on the image read with rasterio, blended as by default.

    Exactly our windows: no margin is cut off, and no edge is padded, which would also move all
    windows against the grid of patches.
    """

    def __init__(self, model: Predictor) -> None:
        from terratorch.tasks.tiled_inference import (  # type: ignore[import-not-found, unused-ignore]
            tiled_inference,
        )

        super().__init__(model)
        self.tiled_inference = tiled_inference

    def probabilities(self, folder: Path, out: Path, setting: Setting) -> Probabilities:
        with rasterio.open(folder / "scene.tif") as file:
            image = torch.from_numpy(file.read().astype(np.float32))[None]
        predicted = self.tiled_inference(
            self.forward,
            image,
            crop=setting.chip,
            stride=setting.stride,
            delta=0,
            batch_size=setting.batch,
            padding=False,
        )
        return np.asarray(predicted[0].numpy(), np.float32)


class GridSampler(_InMemory):
    """TorchGeo's ``RasterDataset`` and ``GridGeoSampler``; overlapping windows are averaged.

    Its grid reaches over the right and lower edges, where windows are filled with zeros.
    """

    def probabilities(self, folder: Path, out: Path, setting: Setting) -> Probabilities:
        from torch.utils.data import DataLoader
        from torchgeo.datasets import (  # type: ignore[import-not-found, unused-ignore]
            RasterDataset,
            stack_samples,
        )
        from torchgeo.samplers import (  # type: ignore[import-not-found, unused-ignore]
            GridGeoSampler,
        )

        class Scenes(RasterDataset):  # type: ignore[misc, unused-ignore]
            filename_glob = "scene.tif"
            is_image = True

        data = Scenes(paths=str(folder))
        sampler = GridGeoSampler(data, size=setting.chip, stride=setting.stride)
        with rasterio.open(folder / "scene.tif") as file:
            transform, height, width = file.transform, file.height, file.width
        starts = [_pixel(query, transform) for query in sampler]
        loader: Any = DataLoader(
            data, batch_size=setting.batch, sampler=sampler, collate_fn=stack_samples
        )
        count = np.zeros((height, width), np.float32)
        total: Probabilities | None = None
        done = 0
        for batch in loader:
            predicted = self.forward(batch["image"]).numpy()
            if total is None:
                total = np.zeros((predicted.shape[1], height, width), np.float32)
            for window in predicted:
                row, col = starts[done]
                done += 1
                # From the lower left corner: the last ones reach beyond the upper edge.
                top, left = max(0, -row), max(0, -col)
                part = np.s_[row + top : row + setting.chip, col + left : col + setting.chip]
                rows, cols = count[part].shape
                total[:, *part] += window[:, top : top + rows, left : left + cols]
                count[part] += 1
        if total is None or done != len(starts) or not count.all():
            raise RuntimeError(f"{done} of {len(starts)} windows were mapped")
        return np.asarray(total / count, np.float32)


def _pixel(query: Any, transform: Any) -> tuple[int, int]:
    """Row and column of the upper left corner of a sampler's window."""
    x, y = query[0], query[1]
    return round((transform.f - y.stop) / -transform.e), round(
        (x.start - transform.c) / transform.a
    )


MAPPERS: Mapping[str, Callable[[Predictor], Mapper]] = {
    "multimae-eo": SceneEngine,
    "TerraTorch": TerraTorch,
    "TorchGeo": GridSampler,
}
PACKAGES = {"TerraTorch": "terratorch", "TorchGeo": "torchgeo"}


def versions() -> dict[str, str]:
    """Version of each peer; "" where it is not installed."""
    return {name: installed(package) for name, package in PACKAGES.items()}
