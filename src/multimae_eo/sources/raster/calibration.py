"""Scale and offset of a file's bands, as the user declares them and as the file is tagged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import BandError
from multimae_eo.sample import Pixels
from multimae_eo.sources.raster.header import BandHeader, RasterHeader


@dataclass(frozen=True, kw_only=True)
class Linear:
    """``physical = raw * scale + offset``."""

    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The calibration of a modality that the user declared, None for what is left to the file.

    ``where``: the file (or option) that declares it, for messages.
    """

    scale: float | None = None
    offset: float | None = None
    where: str = ""


def band_calibration(
    header: RasterHeader, at: Sequence[int], declared: Declared, name: str
) -> tuple[Linear, ...]:
    """The calibration of each of the 0-based bands ``at``.

    A declared scale or offset replaces only itself: what it does not name comes from the file's
    tags. ``scale: 1`` and ``offset: 0`` overrule a tag; any other value that differs from the tag
    is a conflict. BandError names the user's file and the raster.
    """
    return tuple(_one(header, header.bands[i], declared, name) for i in at)


def _one(header: RasterHeader, band: BandHeader, declared: Declared, name: str) -> Linear:
    where = f"{header.path}: {name}"
    for what, value, tag, neutral in (
        ("scale", declared.scale, band.scale, 1.0),
        ("offset", declared.offset, band.offset, 0.0),
    ):
        if (
            value is None
            or tag is None
            or value == neutral
            or math.isclose(value, tag, rel_tol=1e-6)
        ):
            continue
        raise BandError(
            f"{where}: {declared.where} declares {what} {value:g}, the file's tag is {tag:g}; "
            f"remove `{what}:` to use the tag, or mend the tag (gdal_edit.py)"
        )
    in_its_unit = declared.scale is None or (band.scale is not None and declared.scale != 1.0)
    alone = declared.scale == 1.0 and band.scale is None
    if band.offset is not None and declared.offset is None and not (in_its_unit or alone):
        raise BandError(
            f"{where}: {declared.where} declares scale {declared.scale:g}, the file is tagged "
            f"with scale {band.scale or 1.0:g} and offset {band.offset:g}; write `offset:` as well"
        )
    scale = band.scale if declared.scale is None else declared.scale
    offset = band.offset if declared.offset is None else declared.offset
    return Linear(scale=1.0 if scale is None else scale, offset=offset or 0.0)


def require_alike(
    header: RasterHeader,
    at: Sequence[int],
    first: RasterHeader,
    first_at: Sequence[int],
    declared: Declared,
    name: str,
) -> None:
    """BandError where one of two files is tagged with a scale, or an offset without a scale, and
    the other not, and nothing of the kind is declared."""
    ours, others = [header.bands[i] for i in at], [first.bands[i] for i in first_at]
    scaled = [b.scale is not None for b in ours], [b.scale is not None for b in others]
    moved = [b.offset is not None for b in ours], [b.offset is not None for b in others]
    if declared.scale is None and scaled[0] != scaled[1]:
        what = "scale"
    elif declared.offset is None and not any(scaled[0] + scaled[1]) and moved[0] != moved[1]:
        what = "offset"
    else:
        return
    tags = [getattr(b, what) for b in ours]
    which, bare = (header, first) if any(t is not None for t in tags) else (first, header)
    value = next(v for b in which.bands if (v := getattr(b, what)) is not None)
    raise BandError(
        f"{header.path}: {name}: {which.path} is tagged with {what} {value:g}, {bare.path} "
        f"with none; they may be of two processing baselines: declare `{what}:`, or tag both"
    )


def common(calibrations: Sequence[Linear]) -> Linear | None:
    """The one calibration of all of them, None where they differ."""
    kinds = set(calibrations)
    return next(iter(kinds)) if len(kinds) == 1 else None


def physical(pixels: Pixels, calibration: Sequence[Linear]) -> npt.NDArray[np.generic]:
    """Raw pixels (C, H, W) in physical units: float32, or float64 for wide numbers."""
    scale = np.array([c.scale for c in calibration])[:, None, None]
    offset = np.array([c.offset for c in calibration])[:, None, None]
    return np.asarray(pixels * scale + offset).astype(physical_type(pixels.dtype))


def physical_type(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The floating type that holds calibrated numbers of ``dtype``."""
    wide = dtype.itemsize > 4 or (dtype.itemsize == 4 and dtype.kind != "f")
    return np.dtype(np.float64 if wide else np.float32)
