"""Chips in a folder per class, with the names and bands of EuroSAT."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from multimae_eo.sources.draft.modality_evidence import EUROSAT
from tests.support.scene_files import write

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")


def write_class_folders(folder: Path, *, chips: int = 8, size: int = 64) -> None:
    """Ten classes that differ in the mean of each band: uint16, reflectance × 10000."""
    rng = np.random.default_rng(7)
    for name in sorted(EUROSAT):
        (folder / name).mkdir(parents=True)
        means = rng.integers(400, 3000, (len(BANDS), 1, 1))
        for i in range(chips):
            noise = rng.normal(0, 150, (len(BANDS), size, size))
            pixels = np.clip(means + noise, 1, 10000).astype(np.uint16)
            write(folder / name / f"{name}_{i + 1}.tif", pixels, BANDS, nodata=None)
