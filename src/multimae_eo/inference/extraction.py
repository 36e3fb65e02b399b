"""Frozen features of chips: computed once, used by every probe."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from multimae_eo.errors import ConfigError, DataError, did_you_mean
from multimae_eo.inference.computing import device_of
from multimae_eo.loading.loader import make_loader
from multimae_eo.network.config import POOLS_OF_ALL_LAYERS
from multimae_eo.network.features import Features
from multimae_eo.network.finite import require_finite_output
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.windows import ChipWindow, chip_windows
from multimae_eo.sample import Batch
from multimae_eo.sources.base import Indices, Source

Array = npt.NDArray[np.float32]
Compute = Callable[[Batch], Array]
FeatureKind = Literal["mean", "mean-std", "all-layers-mean", "all-layers-mean-std"]

KINDS: tuple[FeatureKind, ...] = ("mean", "mean-std", "all-layers-mean", "all-layers-mean-std")
"""What is made of the tokens of a chip; see ``model.config.POOLS``.

Grids keep the tokens, of the last or of every block.
"""

DEFAULT_KIND: FeatureKind = "all-layers-mean-std"


@dataclass(frozen=True)
class FeatureTable:
    """Features of N chips: float32 (N, D), or (N, D, rows, columns) in place; their labels.

    ``labels``: int64 (N,), multi-hot float32 (N, C), maps int16 (N, H, W) with -1 ignored, or
    float32 (N,). ``seconds``: what computing took.
    """

    keys: tuple[str, ...]
    features: Array
    labels: npt.NDArray[np.generic]
    seconds: float = 0.0


def encoder_features(
    model: MultiMAE, inputs: Sequence[str] | None, kind: FeatureKind = DEFAULT_KIND
) -> Compute:
    """Features of the frozen encoder: a batch → (B, D); see KINDS.

    Chips larger than those of pre-training are encoded window by window, and their features
    averaged. Raises ConfigError for an unknown kind.
    """
    _check(kind)

    @torch.inference_mode()
    def compute(batch: Batch) -> Array:
        windows = chip_windows(model.config.sizes, batch, overlap=0.0)
        total: Tensor | None = None
        count = torch.zeros(len(batch), 1)
        batch = batch.to(device_of(model))
        for part in (batch.cut(w) for w in windows):
            observed = model.observed_rows(part, inputs)
            rows = observed.cpu()
            if len(rows):
                pooled = _pooled(model, part.take(observed), inputs, kind)
                total = pooled.new_zeros(len(batch), pooled.shape[1]) if total is None else total
                total[rows] += pooled
                count[rows] += 1
        if total is None or bool((count == 0).any()):
            # Full chips; or one in which nothing was observed, which this reports.
            total, count = _pooled(model, batch, inputs, kind), torch.ones(1)
        values, name = total / count, f"features ({kind})"
        require_finite_output(
            model, name, values, batch.keys[0], lambda: _pooled(model, batch, inputs, kind)
        )
        return _array(values)

    return compute


def encoder_grids(
    model: MultiMAE, inputs: Sequence[str], kind: FeatureKind = DEFAULT_KIND
) -> Compute:
    """The frozen encoder's tokens in place: a batch → (B, D, rows, columns).

    Tokens of all ``inputs`` on one ground are joined, on the finest grid; zeros where nothing was
    observed. Windows as for ``encoder_features``; where they overlap, the mean. Raises ConfigError
    for an unknown kind, DataError where a batch has none of the inputs.
    """
    _check(kind)

    @torch.inference_mode()
    def compute(batch: Batch) -> Array:
        names = [n for n in inputs if n in batch.pixels]
        if not names:
            raise DataError(f"{batch.keys[0]}: has none of the inputs {', '.join(inputs)}")
        windows = chip_windows(model.config.sizes, batch, overlap=0.0)
        batch = batch.to(device_of(model))
        if not windows:
            return _array(_finite_grid(model, batch, inputs, kind))
        total, count = None, None
        for window in windows:
            part = _finite_grid(model, batch.cut(window), inputs, kind)
            rows, columns, shape = _cells(window, names[0], batch, part)
            if total is None or count is None:
                total = part.new_zeros(len(batch), part.shape[1], *shape)
                count = part.new_zeros(shape)
            total[:, :, rows, columns] += part
            count[rows, columns] += 1
        assert total is not None
        assert count is not None
        return _array(total / count.clamp_min(1))

    return compute


def _cells(
    window: ChipWindow, name: str, batch: Batch, grid: Tensor
) -> tuple[slice, slice, tuple[int, int]]:
    """Where a window's grid lies in the chip's: rows, columns, and the shape of the chip's."""
    at = window[name]
    height, width = batch.pixels[name].shape[-2:]
    (rows, cols), (down, across) = grid.shape[-2:], (at.height, at.width)
    shape = (-(-height * rows // down), -(-width * cols // across))
    # Windows that end between two cells move by less than one.
    top = min(round(at.row * rows / down), shape[0] - rows)
    left = min(round(at.col * cols / across), shape[1] - cols)
    return slice(top, top + rows), slice(left, left + cols), shape


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise ConfigError(f"features: no {kind!r}; {did_you_mean(kind, KINDS)}")


def _encoded(
    model: MultiMAE, batch: Batch, inputs: Sequence[str] | None, kind: FeatureKind
) -> Features:
    """Features with the stages that the kind asks for."""
    depth = len(model.encoder.blocks)
    stages = tuple(range(1, depth + 1)) if kind in POOLS_OF_ALL_LAYERS else (depth,)
    return model.encode(batch, inputs, stages=stages)


def _pooled(
    model: MultiMAE, batch: Batch, inputs: Sequence[str] | None, kind: FeatureKind
) -> Tensor:
    return _encoded(model, batch, inputs, kind).summary(kind).float().cpu()


def _grid(model: MultiMAE, batch: Batch, inputs: Sequence[str], kind: FeatureKind) -> Tensor:
    """Tokens in place on the finest grid of the inputs; zeros where nothing was observed."""
    grids = {n: g for n, g in model.patchify(batch).layout.grids.items() if n in inputs}
    finest = max(grids.values(), key=lambda grid: grid[0] * grid[1])
    rows = model.observed_rows(batch, inputs)
    blocks = len(model.encoder.blocks) if kind in POOLS_OF_ALL_LAYERS else 1
    values = torch.zeros(len(batch), blocks, len(inputs), model.config.encoder.width, *finest)
    if len(rows):
        features = _encoded(model, batch.take(rows), inputs, kind)
        for block in range(blocks):
            for column, name in enumerate(inputs):
                if name in grids:
                    grid = features.grid(name, block)
                    tokens = F.interpolate(grid, size=finest, mode="nearest")
                    values[rows.cpu(), block, column] = tokens.float().cpu()
    return values.flatten(1, 3)


def _finite_grid(model: MultiMAE, batch: Batch, inputs: Sequence[str], kind: FeatureKind) -> Tensor:
    """``_grid``; ContractError where it is not finite."""
    grid, name = _grid(model, batch, inputs, kind), f"features ({kind})"
    require_finite_output(
        model, name, grid, batch.keys[0], lambda: _grid(model, batch, inputs, kind)
    )
    return grid


def _array(values: Tensor) -> Array:
    array: Array = values.numpy()
    return array


def extract(
    source: Source,
    indices: Indices,
    compute: Compute,
    *,
    modalities: Sequence[str],
    batch_size: int = 64,
) -> FeatureTable:
    """Compute features of chips in order.

    Raises DataError where chips have no labels, or labels of several kinds or sizes.
    """
    loader = make_loader(source, indices, batch_size=batch_size, modalities=modalities, train=False)
    keys: list[str] = []
    features: list[Array] = []
    labels: list[npt.NDArray[np.generic]] = []
    seconds = 0.0
    for batch in loader:
        if batch.labels is None:
            raise DataError(
                f"{source.name}: chips have no class labels, or of several kinds; a probe needs a "
                "label for each chip (dataset file: `labels: {column: …}`, `{folder: true}` or "
                "`{mask: …}`)"
            )
        keys += batch.keys
        start = time.perf_counter()
        features.append(compute(batch))
        seconds += time.perf_counter() - start
        values = batch.labels.numpy()
        labels.append(
            values.astype(np.int16) if values.ndim == 3 and values.dtype.kind in "iu" else values
        )
    for what, arrays in (("labels", labels), ("chips", features)):
        shapes = {a.shape[1:] for a in arrays}
        if len(shapes) > 1:
            raise DataError(f"{source.name}: {what} of several sizes; cut them alike")
    return FeatureTable(tuple(keys), np.concatenate(features), np.concatenate(labels), seconds)
