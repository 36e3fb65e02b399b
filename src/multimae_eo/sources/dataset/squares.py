"""Chips that are not square are padded with invalid pixels to squares of their longer side."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from multimae_eo.geo import Geometry
from multimae_eo.sample import Sample

_Dtype = TypeVar("_Dtype", bound=np.generic)


def squared(sample: Sample) -> Sample:
    """The chip as a square: padded at the right or at the bottom, in every modality and the label.

    Padded pixels are 0 and invalid, -1 in a map of classes, NaN in a map of values.
    """
    shapes = {n: p.shape[-2:] for n, p in sample.pixels.items()}
    if all(height == width for height, width in shapes.values()):
        return sample
    pixels, valid = dict(sample.pixels), dict(sample.valid)
    for name, (height, width) in shapes.items():
        if height == width:
            continue
        leading = sample.pixels[name].shape[:-3]
        observed = valid.get(name, np.ones((*leading, 1, height, width), dtype=bool))
        pixels[name] = _padded(pixels[name], 0)
        valid[name] = _padded(observed, False)
    label = sample.label
    if isinstance(label, np.ndarray) and label.ndim == 2:
        label = _padded(label, np.nan if label.dtype.kind == "f" else -1)
    return replace(
        sample,
        pixels=pixels,
        valid=valid,
        label=label,
        geometry=_widened(sample.geometry, next(iter(shapes.values()))),
    )


def _padded(array: npt.NDArray[_Dtype], value: float) -> npt.NDArray[_Dtype]:
    height, width = array.shape[-2:]
    side = max(height, width)
    edges = [(0, 0)] * (array.ndim - 2) + [(0, side - height), (0, side - width)]
    return np.pad(array, edges, constant_values=value)


def _widened(geometry: Geometry | None, shape: tuple[int, int]) -> Geometry | None:
    """The ground of the padded chip."""
    if geometry is None:
        return None
    left, bottom, right, top = geometry.bounds
    height, width = shape
    side = max(shape)
    return replace(
        geometry,
        bounds=(left, top - (top - bottom) * side / height, left + (right - left) * side / width,
                top),
    )  # fmt: skip
