"""Scores of reconstructions in the modality's unit, beside those of a constant prediction.

Everything streams in float64 over batches, on valid pixels of present modalities only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ContractError
from multimae_eo.metrics.task_metrics import Counts, confusion_matrix
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sample import Batch
from multimae_eo.statistics import Moments, Statistics

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


class PredictedPixels(Protocol):
    """A modality predicted for a batch, at the chips' own size.

    Continuous: ``mean`` (B, C, H, W) in physical units, ``std`` alike or (B, 1, H, W).
    Categorical: ``mean`` (B, classes, H, W) probabilities in class order, ``std`` (B, 1, H, W)
    their entropy in nats.
    """

    @property
    def mean(self) -> Tensor:
        """The prediction."""

    @property
    def std(self) -> Tensor:
        """The predictive standard deviation, or the entropy."""


@dataclass(frozen=True)
class Truth:
    """Observed pixels as NumPy arrays.

    ``values``: float64 (B, C, H, W) in physical units, or int64 (B, 1, H, W) class indices with
    -1 where the id is of no class; of a series (B, T, …). ``valid``: bool, of the same shape.
    """

    values: npt.NDArray[np.number]
    valid: Bool


def truth_of(batch: Batch, name: str) -> Truth | None:
    """The observed pixels of a modality in physical units; None where no chip of the batch has it.

    Chips that lack the modality are nowhere valid.
    """
    if name not in batch.modalities or name not in batch.pixels:
        return None
    modality, column = batch.modalities[name], batch.modalities.index(name)
    raw = batch.pixels[name].detach().cpu().numpy()
    valid = np.ones(raw.shape, dtype=bool)
    if name in batch.valid:
        valid &= batch.valid[name].detach().cpu().numpy()
    each = (slice(None), *[None] * (raw.ndim - 1))
    valid &= batch.present[:, column].cpu().numpy()[each]
    if modality.categorical:
        index = class_index(raw, modality)
        return Truth(index, valid & (index >= 0))
    scale, offset = (
        t[:, column].cpu().numpy().astype(np.float64)[each] for t in (batch.scale, batch.offset)
    )
    values = raw * scale + offset
    return Truth(values, valid & np.isfinite(values))


def class_index(ids: npt.NDArray[np.generic], modality: Modality) -> npt.NDArray[np.int64]:
    """Class ids as stored → class indices, int64 of the same shape; -1 for ids of no class."""
    order = np.argsort(modality.class_ids)
    sorted_ids = np.asarray(modality.class_ids)[order]
    position = np.clip(np.searchsorted(sorted_ids, ids), 0, len(sorted_ids) - 1)
    return np.where(sorted_ids[position] == ids, order[position], -1).astype(np.int64)


class ReconstructionScores:
    """Streaming scores of reconstructions against what was observed.

    ``modalities``: what may be scored. ``names``: only these. ``statistics``: of the training
    data; its means and most frequent classes are the baselines. Without it R² is against the
    scored pixels' own mean, and the baseline class is the scored pixels' most frequent.
    """

    def __init__(
        self,
        modalities: ModalitySet,
        *,
        names: Iterable[str] | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        self._scores: dict[str, _Continuous | _Categorical] = {}
        for name in modalities if names is None else names:
            modality = modalities[name]
            baseline = statistics if statistics and name in statistics.modalities else None
            if modality.categorical:
                self._scores[name] = _Categorical(
                    modality, None if baseline is None else baseline.class_counts[name]
                )
            else:
                self._scores[name] = _Continuous(
                    modality, None if baseline is None else baseline.mean_std(name)[0]
                )

    def update(self, batch: Batch, reconstructed: Mapping[str, PredictedPixels]) -> None:
        """Add a batch: every modality that was reconstructed and is there to compare with."""
        for name, score in self._scores.items():
            truth = truth_of(batch, name) if name in reconstructed else None
            if truth is None:
                continue
            mean = reconstructed[name].mean.detach().cpu().numpy().astype(np.float64)
            if mean.shape[-2:] != truth.values.shape[-2:] or len(mean) != len(truth.values):
                raise ContractError(
                    f"{name}: reconstruction {mean.shape} does not fit the chips, "
                    f"{truth.values.shape}"
                )
            level = batch.level[:, batch.modalities.index(name)].cpu().numpy()
            if name in batch.dates:
                # Every date counts as an image by itself.
                level = level.repeat(truth.values.shape[1])
                mean = mean.reshape(-1, *mean.shape[2:])
                values, valid = truth.values, truth.valid
                truth = Truth(
                    values.reshape(-1, *values.shape[2:]), valid.reshape(-1, *valid.shape[2:])
                )
            score.add(truth, mean, level)

    def compute(self) -> dict[str, dict[str, Any]]:
        """Scores by modality, JSON-ready; modalities without any scored pixel are left out.

        Continuous: ``r2``, ``rmse``, ``mae`` over all bands and in ``bands``. Categorical:
        ``accuracy``, ``miou`` (over classes that occur or are predicted), ``iou`` by class, and
        ``confusion[truth][predicted]``. Each has ``pixels`` and a ``baseline``.
        """
        return {name: s.result() for name, s in self._scores.items() if s.pixels}


class _Continuous:
    def __init__(self, modality: Modality, mean: Array | None) -> None:
        self.modality, self.mean = modality, mean
        self.observed = Moments.empty(modality.channels)
        # Rows: squared and absolute errors of the prediction, then of the baseline; per band.
        self.sums = np.zeros((4, modality.channels))

    @property
    def pixels(self) -> int:
        return int(self.observed.count.max())

    def add(self, truth: Truth, mean: Array, level: npt.NDArray[np.int64]) -> None:
        values, valid = np.moveaxis(truth.values, 1, 0), np.moveaxis(truth.valid, 1, 0)
        self.observed = self.observed.merge(Moments.of(values, valid))
        predictions = [np.moveaxis(mean, 1, 0)]
        if self.mean is not None:
            predictions.append(self.mean[level].T[:, :, None, None])
        for row, prediction in enumerate(predictions):
            error = np.where(valid, values - prediction, 0.0)
            self.sums[2 * row] += (error**2).sum(axis=(1, 2, 3))
            self.sums[2 * row + 1] += np.abs(error).sum(axis=(1, 2, 3))

    def result(self) -> dict[str, Any]:
        count = self.observed.count
        total = self.observed.m2 if self.mean is None else self.sums[2]
        r2 = [_r2(e, t) if n else None for e, t, n in zip(self.sums[0], total, count, strict=True)]
        defined = [v for v in r2 if v is not None]
        return {
            "kind": "continuous",
            "unit": self.modality.unit,
            "pixels": self.pixels,
            "r2": sum(defined) / len(defined) if defined else None,
            "rmse": _root(self.sums[0].sum() / count.sum()),
            "mae": float(self.sums[1].sum() / count.sum()),
            "baseline": self._baseline(total, count),
            "bands": {
                band: {"r2": r2[i], "rmse": _root(sse / n), "mae": float(sae / n)}
                for i, (band, sse, sae, n) in enumerate(
                    zip(self.modality.band_names, self.sums[0], self.sums[1], count, strict=True)
                )
                if n
            },
        }

    def _baseline(self, total: Array, count: Array) -> dict[str, object]:
        result = {"r2": 0.0, "rmse": _root(total.sum() / count.sum())}
        if self.mean is None:
            return {"predicts": "the mean of the scored pixels", **result}
        mae = float(self.sums[3].sum() / count.sum())
        return {"predicts": "the training mean", **result, "mae": mae}


class _Categorical:
    def __init__(self, modality: Modality, class_counts: Array | None) -> None:
        self.modality, self.class_counts = modality, class_counts
        self.confusion = np.zeros((len(modality.classes),) * 2, dtype=np.int64)

    @property
    def pixels(self) -> int:
        return int(self.confusion.sum())

    def add(self, truth: Truth, mean: Array, level: npt.NDArray[np.int64]) -> None:
        classes = len(self.confusion)
        if mean.shape[1] != classes:
            raise ContractError(
                f"{self.modality.name}: expected {classes} class probabilities, got {mean.shape[1]}"
            )
        classes_predicted = mean.argmax(axis=1)[:, None]
        self.confusion += confusion_matrix(
            truth.values[truth.valid], classes_predicted[truth.valid], classes
        )

    def result(self) -> dict[str, Any]:
        counts = self.confusion.sum(axis=1)
        trained = self.class_counts if self.class_counts is not None else np.zeros(0)
        has_counts = trained.sum() > 0
        usual = int(np.argmax(trained if has_counts else counts))
        prediction = np.zeros_like(self.confusion)
        prediction[:, usual] = counts
        names = self.modality.class_names
        iou = Counts.of_confusion(self.confusion).iou[0]
        return {
            "kind": "categorical",
            "pixels": self.pixels,
            "accuracy": float(np.trace(self.confusion) / self.pixels),
            "miou": float(np.nanmean(iou)),
            "iou": {n: float(v) for n, v in zip(names, iou, strict=True) if np.isfinite(v)},
            "baseline": {
                "predicts": f"{names[usual]!r} everywhere, the most frequent class"
                + (" in training" if has_counts else ""),
                "accuracy": float(np.trace(prediction) / self.pixels),
                "miou": float(np.nanmean(Counts.of_confusion(prediction).iou)),
            },
            "classes": list(names),
            "confusion": self.confusion.tolist(),
        }


def _r2(squared_error: float, total: float) -> float | None:
    """1 - SSE / SST; None where the truth does not vary."""
    return float(1.0 - squared_error / total) if total > 0 else None


def _root(value: float) -> float:
    return float(np.sqrt(value))
