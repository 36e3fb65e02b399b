"""An untrained model of the synthetic farmland's series."""

from __future__ import annotations

import torch

from multimae_eo.modality import Task
from multimae_eo.network.config import DecoderConfig, EncoderConfig, InputConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sources.phenology import SyntheticSeries


def series_model(source: SyntheticSeries, *more: Task, interpolate: bool = True) -> MultiMAE:
    """For chips of 8 px; with ``interpolate`` it predicts the interpolation between visible dates.

    ``more``: tasks beside the reconstruction of each modality.
    """
    torch.manual_seed(0)
    config = ModelConfig(
        encoder=EncoderConfig(width=32, depth=1, heads=2),
        decoder=DecoderConfig(width=16, depth=1, heads=2, interpolate=interpolate),
        inputs={n: InputConfig(size=8, patch=4) for n in source.modalities},
    )
    tasks = [*(Task(name=n, modality=n) for n in source.modalities), *more]
    return MultiMAE(source.modalities, tasks, config, source.statistics()).eval()
