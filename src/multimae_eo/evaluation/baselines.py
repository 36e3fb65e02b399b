"""What any encoder has to beat: statistics of a chip's bands, and the bands of its pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import DataError
from multimae_eo.sample import Batch

Value = TypeVar("Value", bound=np.generic)


def image_statistics(inputs: Sequence[str]) -> Callable[[Batch], npt.NDArray[np.float32]]:
    """Mean and standard deviation of each band's valid pixels, in physical units.

    A batch → (B, 2 · bands). Class maps give the share of each class; a series those of all its
    dates together. What a chip lacks is 0.
    """

    def compute(batch: Batch) -> npt.NDArray[np.float32]:
        columns: list[npt.NDArray[np.float64]] = []
        for name in inputs:
            modality, column = batch.modalities[name], batch.modalities.index(name)
            if name not in batch.pixels:
                # As many columns in every batch, whatever its chips lack.
                width = len(modality.classes) if modality.categorical else 2 * modality.channels
                columns.append(np.zeros((len(batch), width)))
                continue
            raw = batch.pixels[name].numpy().astype(np.float64)
            valid = batch.valid.get(name)
            ok = np.ones(raw.shape, bool)
            if valid is not None:
                ok &= valid.numpy()
            if name in batch.dates:
                raw, ok = _dates_side_by_side(raw), _dates_side_by_side(ok)
            ok &= batch.present[:, column].numpy()[:, None, None, None]
            count = np.maximum(ok.sum(axis=(2, 3)), 1)
            if modality.categorical:
                columns += [((raw[:, 0] == i) & ok[:, 0]).sum(axis=(1, 2))[:, None] / count
                            for i in modality.class_ids]  # fmt: skip
                continue
            scale = batch.scale[:, column].double().numpy()[:, None]
            offset = batch.offset[:, column].double().numpy()[:, None]
            mean = np.where(ok, raw, 0.0).sum(axis=(2, 3)) / count
            square = np.where(ok, (raw - mean[:, :, None, None]) ** 2, 0.0).sum(axis=(2, 3))
            any_seen = ok.any(axis=(2, 3))
            columns += [
                np.where(any_seen, mean * scale + offset, 0.0),
                np.sqrt(square / count) * np.abs(scale),
            ]
        return np.concatenate(columns, axis=1).astype(np.float32)

    return compute


def pixel_values(inputs: Sequence[str]) -> Callable[[Batch], npt.NDArray[np.float32]]:
    """Bands of every pixel, in physical units: the baseline of maps.

    A batch → (B, bands, H, W) on the finest input's grid; class maps give a plane per class, a
    series the mean of its dates. What a chip lacks is 0.
    """

    def compute(batch: Batch) -> npt.NDArray[np.float32]:
        names = [n for n in inputs if n in batch.pixels]
        if not names:
            raise DataError(f"{batch.keys[0]}: has none of the inputs {', '.join(inputs)}")
        height, width = max((batch.pixels[n].shape[-2:] for n in names), key=lambda s: s[0] * s[1])
        planes = []
        for name in inputs:
            if name not in batch.pixels:
                modality = batch.modalities[name]
                planes_of = len(modality.classes) if modality.categorical else modality.channels
                planes.append(np.zeros((len(batch), planes_of, height, width), np.float32))
                continue
            values = _physical(batch, name)
            rows = np.arange(height) * values.shape[-2] // height
            columns = np.arange(width) * values.shape[-1] // width
            planes.append(values[..., rows, :][..., columns])
        return np.concatenate(planes, axis=1)

    return compute


def _physical(batch: Batch, name: str) -> npt.NDArray[np.float32]:
    """Physical values, or a plane per class; 0 where invalid or absent: (B, C, H, W)."""
    modality, column = batch.modalities[name], batch.modalities.index(name)
    raw = batch.pixels[name].numpy()
    each = (slice(None), *[None] * (raw.ndim - 1))
    ok = batch.present[:, column].numpy()[each]
    if name in batch.valid:
        ok = ok & batch.valid[name].numpy()
    if modality.categorical:
        values = raw == np.asarray(modality.class_ids)[:, None, None]
    else:
        scale, offset = (t[:, column].double().numpy()[each] for t in (batch.scale, batch.offset))
        values = raw * scale + offset
    planes = np.where(ok, values, 0.0)
    if name in batch.dates:
        count = np.broadcast_to(ok, planes.shape).sum(axis=1)
        planes = planes.sum(axis=1) / np.maximum(count, 1)
    return np.asarray(planes, np.float32)


def _dates_side_by_side(values: npt.NDArray[Value]) -> npt.NDArray[Value]:
    """A series (B, T, C, H, W) as images (B, C, T · H, W)."""
    size, dates, bands, height, width = values.shape
    return values.swapaxes(1, 2).reshape(size, bands, dates * height, width)
