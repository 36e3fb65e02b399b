"""Bands of a chip of GEO-Bench as a modality's pixels, and its maps of classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ClassMapError, FormatError
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sample import Calibration, Pixels, Validity
from multimae_eo.sources.geobench.bands import BandLayer
from multimae_eo.sources.raster.reading import valid_pixels


@dataclass(frozen=True)
class ChipPixels:
    """Pixels, validity and calibration of a chip's modalities, as a ``Sample`` takes them."""

    pixels: dict[str, Pixels]
    valid: dict[str, Validity]
    calibration: dict[str, Calibration]


def chip_pixels(
    path: Path,
    arrays: Mapping[str, Pixels],
    modalities: ModalitySet,
    layers: Mapping[str, BandLayer],
) -> ChipPixels:
    """Modalities of a chip; those without a valid pixel are absent. See ``_band_pixels``."""
    pixels: dict[str, Pixels] = {}
    valid: dict[str, Validity] = {}
    for name, modality in modalities.items():
        values, ok = _band_pixels(path, arrays, modality, layers[name])
        if ok is None:
            pixels[name] = values
        elif ok.any():
            pixels[name], valid[name] = values, ok
    calibration = {
        n: Calibration(scale=modalities[n].scale, level=layers[n].level)
        for n in pixels
        if modalities[n].levels
    }
    return ChipPixels(pixels, valid, calibration)


def _band_pixels(
    path: Path, arrays: Mapping[str, Pixels], modality: Modality, layer: BandLayer
) -> tuple[npt.NDArray[np.generic], Validity | None]:
    """A modality's bands (C, H, W) in a new array, and where they are valid; None: everywhere.

    Invalid pixels are 0. ``arrays``: stored images (C, H, W) by the names of ``layer``.
    Raises FormatError for a channel that is missing, and bands that differ in size.
    """
    values = _stack(path, arrays, modality, layer)
    ok = valid_pixels(values, [modality.nodata] * modality.channels)
    if ok is not None:
        values[~np.broadcast_to(ok, values.shape)] = 0  # no sentinel travels further
    return values, ok


def _stack(
    path: Path, arrays: Mapping[str, Pixels], modality: Modality, layer: BandLayer
) -> npt.NDArray[np.generic]:
    """A modality's bands as (C, H, W), in a new array."""
    planes = []
    for band in modality.band_names:
        stored, channel = layer.stored_channels[band]
        if channel >= len(arrays[stored]):
            raise FormatError(
                f"{path}: {stored}: {modality.name} needs channel {channel}, it has "
                f"{len(arrays[stored])}"
            )
        planes.append(arrays[stored][channel])
    shapes = {p.shape for p in planes}
    if len(shapes) > 1:
        raise FormatError(
            f"{path}: {modality.name}: bands differ in size: "
            + ", ".join(f"{h}×{w}" for h, w in sorted(shapes))
        )
    values = np.stack(planes)
    if layer.decibel:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = (10 * np.log10(values)).astype(np.float32)
    return values


def class_map(
    path: Path,
    ids: npt.NDArray[np.generic],
    classes: int,
    *,
    values: Mapping[int, int] | None = None,
    ignored: Collection[int] = (),
) -> npt.NDArray[np.int64]:
    """Class indices (H, W) of a stored map (H, W) or (H, W, 1); -1 where ids are ``ignored``.

    ``values``: the class of each stored id (default: the id itself). Raises FormatError for
    another shape, ClassMapError for an id of no class.
    """
    ids = ids[..., 0] if ids.ndim == 3 and ids.shape[-1] == 1 else ids
    if ids.ndim != 2 or ids.dtype.kind not in "iuf":
        raise FormatError(f"{path}: label: expected numbers (H, W), got {ids.dtype} {ids.shape}")
    table = dict(values) if values is not None else {i: i for i in range(classes)}
    table |= dict.fromkeys(ignored, -1)
    strange = ids[~np.isin(ids, list(table))]
    if strange.size:
        stored = sorted(table)
        raise ClassMapError(
            f"{path}: label: holds {strange.flat[0]}; the classes are {stored[0]} to {stored[-1]}"
        )
    indices = ids.astype(np.int64)
    if values is None and not ignored:
        return indices
    least = min(table)
    lookup = np.full(max(table) - least + 1, -1, np.int64)
    for stored_id, index in table.items():
        lookup[stored_id - least] = index
    return np.asarray(lookup[indices - least])
