"""Frozen features of chips: computed once, used by every probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from multimae_eo.errors import DataError
from multimae_eo.model.multimae import MultiMAE
from multimae_eo.model.windows import chip_windows
from multimae_eo.sample import Batch
from multimae_eo.sources.base import Indices, Source
from multimae_eo.store.loader import make_loader

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FeatureTable:
    """Features of some chips: ``features`` float32 (N, D), ``labels`` int64 (N,)."""

    keys: tuple[str, ...]
    features: Array
    labels: npt.NDArray[np.int64]


def encoder_features(model: MultiMAE, inputs: Sequence[str] | None) -> Callable[[Batch], Array]:
    """Pooled tokens of the frozen encoder: a batch → (B, D).

    Chips larger than those of pre-training are encoded window by window, and their features
    averaged.
    """

    @torch.inference_mode()
    def compute(batch: Batch) -> Array:
        windows = chip_windows(model.config.sizes, batch, overlap=0.0)
        total = torch.zeros(len(batch), model.config.encoder.width)
        count = torch.zeros(len(batch), 1)
        for part in (batch.cut(w) for w in windows):
            rows = model.observed_rows(part, inputs)
            if len(rows):
                total[rows] += model.encode(part.take(rows), inputs).pooled.float().cpu()
                count[rows] += 1
        if not windows or bool((count == 0).any()):
            # Whole chips; or one in which nothing was observed, which this tells.
            return _array(model.encode(batch, inputs).pooled.float().cpu())
        return _array(total / count)

    return compute


def _array(values: torch.Tensor) -> Array:
    array: Array = values.numpy()
    return array


def extract(
    source: Source,
    indices: Indices,
    compute: Callable[[Batch], Array],
    *,
    modalities: Sequence[str],
    batch_size: int = 64,
) -> FeatureTable:
    """Compute features of chips in order.

    Raises DataError where chips have no class labels.
    """
    loader = make_loader(source, indices, batch_size=batch_size, modalities=modalities, train=False)
    keys: list[str] = []
    features: list[Array] = []
    labels: list[Any] = []
    for batch in loader:
        if batch.labels is None or batch.labels.ndim != 1 or batch.labels.is_floating_point():
            raise DataError(
                f"{source.name}: chips have no class labels; a probe needs one class per chip "
                "(dataset file: `labels: {column: …}` or `{folder: true}`)"
            )
        keys += batch.keys
        features.append(compute(batch))
        labels.append(batch.labels.numpy())
    return FeatureTable(tuple(keys), np.concatenate(features), np.concatenate(labels))
