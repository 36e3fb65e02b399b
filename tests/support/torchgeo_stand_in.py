"""Stands in for ``torchgeo.datasets``, which needs torchvision: EuroSAT's interface, few chips."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor


class EuroSAT:
    """Samples as TorchGeo's: ``image`` (13, 64, 64) float32 digital numbers, and ``label``."""

    all_band_names = (
        "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A",
    )  # fmt: skip
    classes = ("AnnualCrop", "Forest", "River")

    def __init__(self, root: str, split: str = "train", *, download: bool = False) -> None:
        assert root
        assert download
        self.count = {"train": 24, "val": 9, "test": 9}[split]
        self.seed = {"train": 0, "val": 1000, "test": 2000}[split]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed + index)
        label = index % len(self.classes)
        noise = torch.rand(13, 64, 64, generator=generator)
        bands = torch.linspace(400, 3000, 13).roll(label)[:, None, None]
        return {"image": (bands * (0.7 + 0.6 * noise)).round(), "label": torch.tensor(label)}


def modules() -> dict[str, ModuleType]:
    """What ``from torchgeo.datasets import EuroSAT`` imports."""
    package, datasets = ModuleType("torchgeo"), ModuleType("torchgeo.datasets")
    datasets.EuroSAT = EuroSAT  # type: ignore[attr-defined]
    package.datasets = datasets  # type: ignore[attr-defined]
    return {"torchgeo": package, "torchgeo.datasets": datasets}
