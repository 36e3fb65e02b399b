"""Made-up chips and models for benchmarks, without any file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from multimae_eo.catalog import make_class_map, make_modality
from multimae_eo.modality import ModalitySet, Task
from multimae_eo.network.config import EncoderConfig, InputConfig, ModelConfig, encoder_named
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sample import Calibration, Sample
from multimae_eo.sources.base import Source

OPTICAL = {
    "rgb": ("B4", "B3", "B2"),
    "ired": ("B5", "B6", "B7"),
    "sired": ("B11", "B12"),
    "ebands": ("B8", "B8A"),
}
STRIDE = 4
"""Of class maps, as in the recipe of the paper."""


def six_modalities() -> ModalitySet:
    """Those of the recipe ``paper-mmearth64``."""
    optical = [make_modality(n, sensor_name="sentinel2", bands=b) for n, b in OPTICAL.items()]
    relief = make_modality("depth", sensor_name="dem", bands=("elevation",))
    return ModalitySet(
        [*optical, relief, make_class_map("semseg", class_map_name="esa_worldcover")]
    )


def seven_tasks() -> list[Task]:
    """Those of the recipe ``paper-mmearth64``."""
    squared = [Task(name=n, modality=n, loss="mse") for n in OPTICAL]
    return [
        *squared,
        Task(name="depth", modality="depth", loss="l1"),
        Task(name="semseg", modality="semseg", loss="cross_entropy"),
        Task(name="norm_rgb", modality="rgb", loss="mse", patch_normalise=True),
    ]


def many_modalities(count: int) -> ModalitySet:
    """Optical triples, all alike but for their names."""
    bands = OPTICAL["rgb"]
    names = [f"optical{i:02d}" for i in range(count)]
    return ModalitySet([make_modality(n, sensor_name="sentinel2", bands=bands) for n in names])


class MadeSource(Source):
    """Complete chips of noise; a chip is made from its index."""

    def __init__(self, modalities: ModalitySet, *, chips: int, size: int) -> None:
        self.name, self.modalities, self.size = "made", modalities, size
        self.keys = [f"made-{i}" for i in range(chips)]
        self.split_of = ["train"] * chips

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """Chip ``index``."""
        rng = np.random.default_rng(index)
        pixels, calibration = {}, {}
        for name in self.modalities.names if names is None else names:
            modality = self.modalities[name]
            shape = (modality.channels, self.size, self.size)
            if modality.categorical:
                pixels[name] = rng.choice(modality.class_ids[:5], shape).astype(np.uint8)
            else:
                pixels[name] = rng.integers(1, 4000, shape, dtype=np.uint16)
            if modality.levels:
                calibration[name] = Calibration(scale=1e-4, level="l2a")
        return Sample(key=self.keys[index], pixels=pixels, calibration=calibration)


def make_model(
    source: MadeSource, *, encoder: str, chip: int = 56, tasks: Sequence[Task] = ()
) -> MultiMAE:
    """A model with weights of seed 0; by default a task per modality."""
    inputs = {
        n: InputConfig(size=chip, patch=8 // STRIDE, stride=STRIDE)
        if m.categorical
        else InputConfig(size=chip, patch=8)
        for n, m in source.modalities.items()
    }
    size: EncoderConfig = encoder_named(encoder)
    config = ModelConfig(encoder=size, inputs=inputs)
    every = list(tasks) or [
        Task(name=n, modality=n, loss=m.default_loss) for n, m in source.modalities.items()
    ]
    torch.manual_seed(0)
    statistics = source.statistics(range(min(8, len(source))))
    return MultiMAE(source.modalities, every, config, statistics)
