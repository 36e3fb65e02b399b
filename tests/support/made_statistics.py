"""Statistics of made-up chips, for models that meet other modalities."""

from __future__ import annotations

import numpy as np

from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Calibration, Sample
from multimae_eo.statistics import Statistics


def measured(modalities: ModalitySet) -> Statistics:
    """Statistics of three chips of 8 px, at each modality's first product level."""
    found = Statistics(modalities)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        pixels = {
            n: rng.integers(1, 4000, (m.channels, 8, 8)).astype(np.uint16)
            for n, m in modalities.items()
        }
        how = {n: Calibration(level=m.levels[0] if m.levels else "") for n, m in modalities.items()}
        found.update(Sample(key=str(seed), pixels=pixels, calibration=how))
    return found
