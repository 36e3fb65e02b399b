"""Labelled feature tables as rows to fit a linear probe on, and its outputs as predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import DataError
from multimae_eo.inference.cells import class_pixels
from multimae_eo.inference.extraction import FeatureTable
from multimae_eo.inference.linear_probe import Array, FittedProbe, Loss
from multimae_eo.metrics.task_metrics import Predictions, TaskKind

MOST_CELLS = 4096
"""Cells of grids that a probe of maps is fitted on; more are drawn from."""

_CHIPS_PER_BLOCK = 16  # chips whose grids are predicted together


def task_of(labels: npt.NDArray[np.generic]) -> TaskKind:
    """What kind of task stacked labels pose: by their axes, and whether they are whole numbers."""
    if labels.ndim == 1:
        return "regression" if labels.dtype.kind == "f" else "classification"
    if labels.ndim == 3 and labels.dtype.kind == "f":
        raise DataError("maps of values are not probed; fine-tune on them")
    return "multilabel" if labels.ndim == 2 else "segmentation"


@dataclass(frozen=True, kw_only=True)
class ProbeTarget:
    """The task of a linear probe: its kind and its classes."""

    kind: TaskKind
    classes: int
    class_names: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, labels: Sequence[npt.NDArray[np.generic]], class_names: tuple[str, ...]
    ) -> ProbeTarget:
        """The task of the splits' labels; DataError where they differ or there is one class."""
        kinds = {task_of(part) for part in labels}
        if len(kinds) > 1:
            raise DataError(f"the splits' labels are of several kinds: {', '.join(sorted(kinds))}")
        kind = kinds.pop()
        if kind == "regression":
            return cls(kind=kind, classes=1)
        if kind == "multilabel":
            return cls(kind=kind, classes=labels[0].shape[1], class_names=class_names)
        most = max(int(part.max(initial=-1)) for part in labels)
        return cls(kind=kind, classes=max(len(class_names), most + 1), class_names=class_names)

    @property
    def loss(self) -> Loss:
        """The loss that a linear probe is fitted with."""
        if self.kind == "regression":
            return "square"
        return "sigmoid" if self.kind == "multilabel" else "softmax"

    def rows(self, table: FeatureTable, *, seed: int) -> tuple[npt.NDArray[np.generic], Array]:
        """Features (n, D) and targets (n, C) to fit on.

        Of maps: a row per labelled cell, at most MOST_CELLS of them drawn by ``seed``; its target
        is each class's share of its pixels.
        """
        if self.kind == "segmentation":
            return _cell_rows(table, self.classes, seed)
        if self.kind == "classification":
            if table.labels.min() < 0:
                raise DataError(f"a chip has the class {table.labels.min()}; expected 0 or more")
            return table.features, np.eye(self.classes)[table.labels]
        return table.features, table.labels.astype(np.float64).reshape(len(table.keys), -1)

    def predict(self, probe: FittedProbe, table: FeatureTable) -> Predictions:
        """A fitted probe's predictions for the chips of a table."""
        if self.kind == "segmentation":
            predicted, confidence = _read_maps(probe, table)
            return self._predictions(table, predicted, confidence)
        outputs = probe(table.features)
        if self.kind == "regression":
            return self._predictions(table, outputs[:, 0], None)
        outputs = np.clip(outputs, 0.0, 1.0)
        if self.kind == "multilabel":
            return self._predictions(table, (outputs >= 0.5).astype(np.int64), outputs)
        return self._predictions(table, outputs.argmax(axis=1), outputs)

    def _predictions(
        self,
        table: FeatureTable,
        predicted: npt.NDArray[np.generic],
        probability: npt.NDArray[np.generic] | None,
    ) -> Predictions:
        return Predictions(
            kind=self.kind,
            keys=table.keys,
            truth=table.labels,
            predicted=predicted,
            class_names=self.class_names,
            probability=probability,
        )


def take(table: FeatureTable, rows: npt.NDArray[np.int64]) -> FeatureTable:
    """Some chips of a table."""
    return replace(
        table,
        keys=tuple(table.keys[i] for i in rows.tolist()),
        features=table.features[rows],
        labels=table.labels[rows],
    )


def _cell_rows(
    table: FeatureTable, classes: int, seed: int
) -> tuple[npt.NDArray[np.generic], Array]:
    rows, columns = table.features.shape[2:]
    shares = class_pixels(table.labels, (rows, columns), classes)
    labelled = np.flatnonzero(shares.sum(axis=2).ravel())
    if not len(labelled):
        raise DataError("no pixel of the training chips is labelled")
    if len(labelled) > MOST_CELLS:
        labelled = np.random.default_rng(seed).choice(labelled, MOST_CELLS, replace=False)
        labelled.sort()
    chip, position = np.divmod(labelled, rows * columns)
    features = table.features[chip, :, position // columns, position % columns]
    targets = shares.reshape(-1, classes)[labelled].astype(np.float64)
    return features, targets / targets.sum(axis=1, keepdims=True)


def _read_maps(
    probe: FittedProbe, table: FeatureTable
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """The likeliest class of each pixel and its probability, interpolated between cells."""
    import torch
    from torch.nn import functional as F

    size = table.labels.shape[1:]
    predicted, confidence = (
        np.empty(table.labels.shape, np.int16),
        np.empty(table.labels.shape, np.float32),
    )
    for start in range(0, len(table.keys), _CHIPS_PER_BLOCK):
        part = table.features[start : start + _CHIPS_PER_BLOCK]
        count, depth, rows, columns = part.shape
        outputs = probe(part.transpose(0, 2, 3, 1).reshape(-1, depth)).astype(np.float32)
        grid = torch.from_numpy(outputs).reshape(count, rows, columns, -1).permute(0, 3, 1, 2)
        if (rows, columns) != size:
            grid = F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
        best = grid.clamp(0, 1).max(dim=1)
        predicted[start : start + count] = best.indices.numpy()
        confidence[start : start + count] = best.values.numpy()
    return predicted, confidence
