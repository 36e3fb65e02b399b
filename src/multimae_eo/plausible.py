"""What values can mean: plausible ranges, fill values, scales that fit. One table, one wording.

The readers, the data doctor and the look that a model takes at its inputs all ask here. The ranges
themselves are the catalogue's: ``Band.physical_range``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from multimae_eo.modality import Modality

Array = npt.NDArray[np.float64]

SCALE_FACTORS = (1e-4, 1e-3, 1e-2, 0.1, 1 / 255, 1.0, 10.0, 100.0)
"""Scales that data come in."""
DARK, DIM = 0.03, 0.1
"""Highest reflectances (99th percentile of the brightest band) that no land scene has, and few."""
OFFSET = 0.1
"""What processing baseline 04.00 added to every reflectance (1000 digital numbers)."""
BLUE_UM, RED_UM = (0.45, 0.52), (0.63, 0.69)
_CIRRUS_UM = (1.34, 1.41)
_LIFTED, _LIFTED_CIRRUS = 0.095, 0.08
_LIFTED_BLUE = {"l1c": 0.155}
"""Darkest blue above which data are lifted; ``OFFSET`` where there is no air in it."""
_AIR_BLUE, _AIR_SLOPE, _SNOW_BLUE = 0.055, 0.015, 0.15

NEVER_NEGATIVE = "declared in dB, but no value is negative: linear power or amplitude"
TO_DECIBEL = "convert to dB (10·log10 of power, 20·log10 of amplitude)"
LIFTED = "no band has a dark pixel: the +1000 of processing baseline 04.00"
UNDO_OFFSET = "`offset: -0.1`; bright desert or snow throughout can look so, too"

_FILL_VALUES = (
    -9999.0, -99999.0, -999.0, -99.0, -9998.0, -32768.0, -32767.0, -2147483648.0, -1e10,
    -1e20, 1e20, 1e30,
    9999.0, 99999.0, 65535.0, 4294967295.0, 9.969209968386869e36,
)  # fmt: skip
"""Numbers by which programs mark what was never observed."""
_HUGE = 1e37
"""No measurement is as large; the largest floats are fill values."""


def is_cirrus(wavelength_um: float | None) -> bool:
    """Whether a band lies where water vapour hides the ground."""
    return wavelength_um is not None and _CIRRUS_UM[0] <= wavelength_um <= _CIRRUS_UM[1]


# Ranges and scales ----------------------------------------------------------------------------


def share_outside(values: Array, span: tuple[float, float]) -> float:
    """Share of the values outside a plausible range; 0 of none."""
    return float(((values < span[0]) | (values > span[1])).mean()) if values.size else 0.0


def outside_message(modality: Modality, span: tuple[float, float]) -> str:
    """Values beyond what is plausible, in words."""
    return f"values outside the physical range {span[0]:g} to {span[1]:g} {modality.unit}".strip()


def scale_advice(raw: Array, span: tuple[float, float], unit: str) -> str:
    """The power of ten (or 1/255) under which raw values are plausible, as a remedy."""
    if unit == "reflectance" and 1 < raw.max() <= 255 and (raw % 1 == 0).all():
        return "8-bit pictures, not measurements: take the original product (or `scale: 0.0039`)"
    tail = np.percentile(raw, [0.5, 99.5])
    floor = DARK if unit == "reflectance" else 0.0
    fits = [
        f
        for f in SCALE_FACTORS
        if (tail * f >= span[0]).all() and (tail * f <= span[1]).all() and tail[1] * f > floor
    ]
    if not fits:
        return "check the unit, the nodata value and which band this is"
    return f"raw values fit the range with `scale: {max(fits):.4g}`; check the unit in the source"


def negative_share(values: Array) -> float:
    """Share of values below 0: decibels mostly are, linear power never is."""
    return float((values < 0).mean()) if values.size else 0.0


DECIBEL_NEGATIVE = 0.02
"""Share of negative values from which numbers are decibels."""


# Processing levels ----------------------------------------------------------------------------


def looks_lifted(*, lowest: float, blue: float, cirrus: float, level: str) -> bool:
    """Whether reflectances are too bright by approximately 0.1 in every band, by their darkest
    pixels.

    ``lowest``: of all bands but cirrus; all are 1st percentiles, NaN where there is no such band.
    """
    if np.isfinite(cirrus):
        return cirrus > _LIFTED_CIRRUS
    return lowest > _LIFTED and blue > _LIFTED_BLUE.get(level, OFFSET)


def level_seen(*, blue: float, red: float) -> str:
    """The processing level that the darkest blue and red look like; empty where it is not clear.

    Air scatters blue light: at the top of the atmosphere even the darkest blue pixel is near 0.07
    and brighter than the darkest red one; at the surface it is near 0.01.
    """
    if _AIR_BLUE < blue < _SNOW_BLUE and blue - red > _AIR_SLOPE:
        return "l1c"
    return "l2a" if blue < _AIR_BLUE - 0.01 and blue - red < _AIR_SLOPE else ""


# Fill values ----------------------------------------------------------------------------------


def sentinel_message(
    values: npt.NDArray[np.generic], dtype: np.dtype[np.generic] | None = None
) -> str:
    """The message for an undeclared fill value among numeric labels; "" where there is none.

    A well-known fill value (-9999, the least float, …) counts where it lies further from all other
    values than they do from one another, or is the only value. So does the largest byte beside
    others that differ, where ``dtype`` is that of bytes.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return ""
    for value in (float(finite.min()), float(finite.max())):
        byte = dtype == np.uint8 and value == 255.0
        if not (byte or is_fill_value(value)):
            continue
        others = finite[finite != value]
        if byte and (not others.size or others.min() == others.max()):
            continue
        low, high = (float(others.min()), float(others.max())) if others.size else (value, value)
        gap = min(abs(value - low), abs(value - high))
        if others.size and gap <= (1 if byte else 2) * (high - low):
            continue
        between = f", the others lie between {low:g} and {high:g}" if others.size else ""
        return (
            f"{int((finite == value).sum())} of {finite.size} values are {value:g}{between}: a "
            f"fill value? declare `labels: {{nodata: {value:g}}}`, or `nodata: []` if it was "
            "measured"
        )
    return ""


def is_fill_value(value: float) -> bool:
    """Whether programs write this number where nothing was observed."""
    return abs(value) > _HUGE or any(abs(value - fill) <= 1e-6 * abs(fill) for fill in _FILL_VALUES)
