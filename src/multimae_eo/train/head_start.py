"""A head that starts from a linear probe of the encoder's features, not from random weights.

Fine-tuning from a random head first distorts the features that pre-training learnt; from a probe it
does so less, and starts from the probe's score (LP-FT, Kumar et al. 2022). The probe is a logistic
regression, or ridge regression of values, in float64 without random numbers: a run that is started
again before its first checkpoint has the same head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from multimae_eo.errors import ConfigError
from multimae_eo.inference.cells import class_pixels, mean_values
from multimae_eo.inference.computing import computing, device_of, on_device
from multimae_eo.inference.linear_probe import ABSENT, LinearProbe, Loss, linear_probes
from multimae_eo.loading.loader import make_loader
from multimae_eo.network.heads import ChipHead, LinearHead
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import Target
from multimae_eo.network.windows import ChipWindow, chip_windows
from multimae_eo.runtime import limit_threads
from multimae_eo.sample import Batch
from multimae_eo.sources.base import Indices, Source
from multimae_eo.train.finetune_recipe import FinetuneRecipe
from multimae_eo.train.run import run_device
from multimae_eo.train.supervised import class_weights

STRENGTHS = tuple(float(c) for c in 10.0 ** np.arange(-4, 3))
"""Inverse regularisations that are tried; the best on validation chips is taken."""
MOST_ROWS = 4096
"""Chips, or patches of maps, that the probe is fitted to at most."""
_MOST_MAPS = 512
_FEW = 10
_FOLDS = 5

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Rows:
    """Features (n, D) and targets (n, C) of labelled chips or patches."""

    features: npt.NDArray[np.float32]
    targets: Array

    def part(self, rows: npt.NDArray[np.generic]) -> _Rows:
        return _Rows(self.features[rows], self.targets[rows])

    def __len__(self) -> int:
        return len(self.features)


def from_probe(recipe: FinetuneRecipe, target: Target) -> bool:
    """Whether the head for ``target`` starts from a probe.

    Raises ConfigError where the recipe demands one of a head that is not linear.
    """
    linear = recipe.head.name == "linear" or not target.dense
    if recipe.head_init == "linear-probe" and not linear:
        raise ConfigError(
            f"head_init: a {recipe.head.name} head is no linear probe; take --head linear, or "
            "leave head_init at auto"
        )
    return linear and recipe.head_init != "random"


def start_head(
    predictor: Predictor, source: Source, train: Indices, val: Indices, recipe: FinetuneRecipe
) -> str:
    """Set the head to a linear probe of the frozen encoder; returns what was fitted, in words.

    ``train``, ``val``: labelled chips. The strength of the regularisation is that of the least
    loss on ``val``, or on a fifth of the training rows where there are no such chips.
    """
    limit_threads()
    device, precision = on_device(predictor, run_device(recipe.run), recipe.run.precision)
    with computing(device, precision):
        rows, validation = (_rows(predictor, source, part, recipe) for part in (train, val))
    predictor.to("cpu").train()
    if not len(rows):
        return "head: random weights, no label of these chips can be probed"
    strength, probe, loss = _chosen(rows, validation, _loss(predictor.target))
    _set(predictor, probe, len(rows))
    unit = "patches" if predictor.target.dense else "chips"
    return (
        f"head: starts from a linear probe of {len(rows)} {unit} (strength {strength:g}, "
        f"validation loss {loss:.4f})"
    )


def _set(predictor: Predictor, probe: LinearProbe, count: int) -> None:
    """Give the head's projection the probe's weights."""
    assert isinstance(predictor.head, ChipHead | LinearHead)
    weight, bias = probe.of_raw_features()
    absent = bias < -ABSENT / 2
    if bool(absent.any()):
        # A class without a training row has to remain learnable.
        bias = torch.where(absent, bias[~absent].min() - math.log(count), bias)
    project = predictor.head.project
    assert project.bias is not None
    with torch.no_grad():
        project.weight.copy_(weight.T.reshape(project.weight.shape))
        project.bias.copy_(bias)


def _chosen(rows: _Rows, validation: _Rows, loss: Loss) -> tuple[float, LinearProbe, float]:
    """The strength of the least loss on validation rows, its probe of all rows, and that loss."""
    fitted, held_out = rows, validation
    if not len(validation):
        if len(rows) < _FEW:
            strength, probe = next(linear_probes(rows.features, rows.targets, loss, (1e-2,)))
            return strength, probe, math.nan
        fold = np.arange(len(rows)) % _FOLDS == 0
        fitted, held_out = rows.part(~fold), rows.part(fold)
    scored = [
        (_measured(probe, held_out, loss), strength, probe)
        for strength, probe in linear_probes(fitted.features, fitted.targets, loss, STRENGTHS)
    ]
    least, strength, probe = min(scored, key=lambda entry: entry[0])
    if fitted is not rows:
        _, probe = next(linear_probes(rows.features, rows.targets, loss, (strength,)))
    return strength, probe, least


def _measured(probe: LinearProbe, rows: _Rows, loss: Loss) -> float:
    outputs, targets = probe(rows.features), rows.targets
    if loss == "square":
        return float(np.square(outputs - targets).mean())
    logarithm = np.log(outputs.clip(1e-12))
    if loss == "softmax":
        return float(-(targets * logarithm).sum() / targets.sum())
    negative = (1 - targets) * np.log((1 - outputs).clip(1e-12))
    return float(-(targets * logarithm + negative).mean())


def _loss(target: Target) -> Loss:
    if target.numeric:
        return "square"
    return "sigmoid" if target.kind == "multilabel" else "softmax"


# Rows -----------------------------------------------------------------------------------------


def _rows(predictor: Predictor, source: Source, indices: Indices, recipe: FinetuneRecipe) -> _Rows:
    """Features and targets of chips, or of the patches of their maps, evenly spaced."""
    target = predictor.target
    read = _map_rows if target.dense else _chip_rows
    rows = [
        part
        for batch in _batches(predictor, source, indices, recipe)
        if batch.labels is not None  # of several kinds: training reports it
        for part in read(predictor, batch.to(device_of(predictor)), batch.labels.numpy())
    ]
    if not rows:
        return _Rows(np.zeros((0, 1), np.float32), np.zeros((0, target.outputs)))
    joined = _Rows(
        np.concatenate([r.features for r in rows]), np.concatenate([r.targets for r in rows])
    )
    if target.kind in ("class", "map"):
        weights = class_weights(target, recipe.loss).double().numpy()
        joined = replace(joined, targets=joined.targets * weights)
    return joined.part(_spaced(np.arange(len(joined)), MOST_ROWS))


def _batches(
    predictor: Predictor, source: Source, indices: Indices, recipe: FinetuneRecipe
) -> Iterable[Batch]:
    """Full chips in order; none where there is no index."""
    if not len(indices):
        return ()
    return make_loader(
        source,
        _spaced(indices, _MOST_MAPS if predictor.target.dense else MOST_ROWS),
        batch_size=recipe.data.batch_size,
        modalities=list(predictor.encoder.modalities),
        workers=recipe.data.workers,
    )


def _spaced(values: Indices, most: int) -> Indices:
    """At most so many of the values, evenly spaced."""
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).astype(np.int64)]


@torch.no_grad()
def _chip_rows(
    predictor: Predictor, batch: Batch, labels: npt.NDArray[np.number]
) -> Iterator[_Rows]:
    """A row per labelled chip."""
    assert isinstance(predictor.head, ChipHead)
    target = predictor.target
    features = predictor.head.normalised(predictor.summary(batch)).float().cpu().numpy()
    if target.kind == "class":
        labelled = labels >= 0
        targets = np.eye(target.outputs)[labels[labelled].astype(np.int64)]
    elif target.kind == "multilabel":
        labelled = np.ones(len(labels), bool)
        targets = labels.astype(np.float64)
    else:
        labelled = np.isfinite(labels)
        targets = (labels[labelled].astype(np.float64)[:, None] - target.mean) / target.std
    yield _Rows(features[labelled], targets)


@torch.no_grad()
def _map_rows(
    predictor: Predictor, batch: Batch, labels: npt.NDArray[np.number]
) -> Iterator[_Rows]:
    """A row per patch that is visible and has a labelled pixel."""
    assert isinstance(predictor.head, LinearHead)
    encoder, target = predictor.encoder, predictor.target
    sizes = encoder.config.sizes
    windows: Sequence[ChipWindow | None] = chip_windows(sizes, batch, 0.0) or (None,)
    for window in windows:
        part = batch if window is None else batch.cut(window)
        observed = encoder.observed_rows(part)
        if not len(observed):
            continue
        features = encoder.encode(part.take(observed))
        cells = predictor.head.normalised(features).float().permute(0, 2, 3, 1)
        grid = (cells.shape[1], cells.shape[2])
        shown = labels[observed.cpu().numpy()]
        if window is not None:
            shown = _cut(shown, window, batch, sizes)
        if target.kind == "map":
            counts = class_pixels(shown, grid, target.outputs).astype(np.float64)
            total = counts.sum(axis=2, keepdims=True)
            targets = counts / np.maximum(total, 1)
            labelled = total[..., 0] > 0
        else:
            targets = (mean_values(shown, grid)[..., None] - target.mean) / target.std
            labelled = np.isfinite(targets[..., 0])
        labelled &= features.seen.flatten(1).cpu().numpy()
        yield _Rows(cells.flatten(1, 2).cpu().numpy()[labelled], targets[labelled])


def _cut(
    labels: npt.NDArray[np.generic], window: ChipWindow, batch: Batch, sizes: Mapping[str, int]
) -> npt.NDArray[np.generic]:
    """The labels (B, H, W) of a window, whatever their resolution."""
    finest = max(batch.pixels, key=lambda name: sizes[name])
    height, width = batch.pixels[finest].shape[-2:]
    at, (rows, columns) = window[finest], labels.shape[1:]
    top, bottom = (rows * row // height for row in (at.row, at.row + at.height))
    left, right = (columns * col // width for col in (at.col, at.col + at.width))
    return labels[:, top:bottom, left:right]
