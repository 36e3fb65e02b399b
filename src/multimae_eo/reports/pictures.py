"""Rasters as colours people can read, chosen by what a modality *is*: bands, unit, legend.

Everything here is arrays in, 8-bit RGB (H, W, 3) out. Colours stretched on a reference are reused
for its prediction, so that equal values look equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cache

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ContractError
from multimae_eo.modality import Band, Modality

Array = npt.NDArray[np.float64]
RGB = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

RED_UM, GREEN_UM, BLUE_UM = 0.665, 0.560, 0.490
_COLOUR_TOLERANCE_UM = 0.04

# The least span a stretch covers, so that sensor noise over open water is not made to glow.
_LEAST_SPAN = {"reflectance": 0.03, "dB": 3.0, "m": 4.0}

# Dark to light without a break: it reads in grey and for every kind of colour vision.
_RELIEF_STOPS = (
    (23, 66, 80), (38, 104, 94), (98, 142, 98), (170, 172, 111),
    (214, 190, 140), (232, 211, 182), (250, 246, 240),
)  # fmt: skip


class Look(Enum):
    """How a modality is drawn."""

    COLOUR = "true or false colour from three bands"
    PAIR = "two bands and their difference"
    SCALAR = "one band through a colour ramp"
    RELIEF = "heights: tinted and shaded"
    CLASSES = "the colours of the classes"


def look_of(modality: Modality) -> Look:
    """How to draw a modality, by its kind, bands and unit."""
    if modality.categorical:
        return Look.CLASSES
    if modality.channels == 1:
        return Look.RELIEF if _is_relief(modality) else Look.SCALAR
    if modality.channels == 2 or modality.unit == "dB":
        return Look.PAIR
    return Look.COLOUR


def _is_relief(modality: Modality) -> bool:
    """Heights of the ground: metres, plausible over kilometres (a canopy's are not)."""
    span = modality.bands[0].physical_range
    return modality.unit == "m" and (span is None or span[1] - span[0] >= 1000)


def display_bands(modality: Modality) -> tuple[int, ...]:
    """Indices of the bands that are drawn: three, two or one, in the order red, green, blue."""
    if modality.channels < 3:
        return tuple(range(modality.channels))
    if modality.unit == "dB":
        return (0, 1)
    waves = [b.wavelength_um for b in modality.bands]
    true = tuple(_nearest(modality.bands, want) for want in (RED_UM, GREEN_UM, BLUE_UM))
    if None not in true and len(set(true)) == 3:
        return tuple(i for i in true if i is not None)
    if None in waves:
        return (0, 1, 2)
    order = sorted(range(len(waves)), key=lambda i: -(waves[i] or 0.0))
    return (order[0], order[len(order) // 2], order[-1])


def _nearest(bands: tuple[Band, ...], wavelength_um: float) -> int | None:
    gaps = [abs((b.wavelength_um or np.inf) - wavelength_um) for b in bands]
    best = int(np.argmin(gaps))
    return best if gaps[best] <= _COLOUR_TOLERANCE_UM else None


def describe(modality: Modality) -> str:
    """What the colours show: ``B4 · B3 · B2, reflectance``."""
    if modality.categorical:
        return f"{len(modality.classes)} classes"
    names = [modality.bands[i].name for i in display_bands(modality)]
    if look_of(modality) is Look.PAIR:
        names.append(f"{names[0]}−{names[1]}")
    shown = " · ".join(names)
    if shown == modality.name:
        return f"in {modality.unit}" if modality.unit else ""
    return f"{shown}, {modality.unit}" if modality.unit else shown


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The values drawn darkest and lightest, per displayed channel, and how steep relief is drawn.

    ``low``, ``high``: physical units. ``steepness``: shade per metre of rise over one pixel.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    steepness: float = 0.0


def stretch_of(
    modality: Modality, values: npt.NDArray[np.number], valid: Bool | None = None
) -> Stretch:
    """Fit a stretch to a reference's valid pixels: 2–98 %, or all of the range for heights.

    values: (C, H, W) physical. valid: (1 or C, H, W). Images in digital numbers are left as is.
    """
    look = look_of(modality)
    if look is Look.CLASSES:
        return Stretch(low=(), high=())
    shown, ok = _displayed(modality, values, valid)
    if modality.unit == "digital number":
        return Stretch(low=(0.0,) * len(shown), high=(255.0,) * len(shown))
    ends = (0.0, 100.0) if look is Look.RELIEF else (2.0, 98.0)
    low: list[float] = []
    high: list[float] = []
    for band in shown:
        seen = band[ok]
        a, b = np.percentile(seen, ends) if seen.size else (0.0, 1.0)
        lacking = max(_LEAST_SPAN.get(modality.unit, 0.0), 1e-6 * abs(b), 1e-9) - (b - a)
        if lacking > 0:
            a, b = a - lacking / 2, b + lacking / 2
        # A difference is noisier than its bands: half the contrast keeps colours calm.
        calm = (b - a) / 2 if look is Look.PAIR and len(low) == 2 else 0.0
        low.append(float(a - calm))
        high.append(float(b + calm))
    steepness = _steepness(shown[0], ok) if look is Look.RELIEF else 0.0
    return Stretch(low=tuple(low), high=tuple(high), steepness=steepness)


def picture(
    modality: Modality,
    values: npt.NDArray[np.number],
    *,
    valid: Bool | None = None,
    stretch: Stretch | None = None,
) -> RGB:
    """Draw a modality.

    values: (C, H, W) in physical units; for class maps class indices, (1, H, W), where
    -1 is unknown. valid: (1 or C, H, W). ``stretch``: a reference's; fitted to ``values`` if None.
    Pixels that are not valid, not finite or of no class become a light checker.
    """
    expected = 1 if modality.categorical else modality.channels
    if values.ndim != 3 or len(values) != expected:
        raise ContractError(
            f"picture of {modality.name!r}: expected ({expected}, H, W), got {values.shape}"
        )
    if modality.categorical:
        return class_picture(modality, values[0], valid)
    shown, ok = _displayed(modality, values, valid)
    fit = stretch or stretch_of(modality, values, valid)
    low, high = (np.asarray(v)[:, None, None] for v in (fit.low, fit.high))
    unit = np.clip((np.where(ok, shown, low) - low) / (high - low), 0.0, 1.0)
    look = look_of(modality)
    if look is Look.SCALAR:
        return _checkered(_through("viridis", unit[0]), ok)
    if look is Look.RELIEF:
        tint = relief_ramp()[np.rint(unit[0] * 255).astype(np.intp)].astype(np.float64)
        lit = _shade(np.where(ok, shown[0], np.median(shown[0][ok]) if ok.any() else 0.0))
        shade = np.clip(1.0 + fit.steepness * lit, 0.45, 1.3)
        return _checkered(np.clip(tint * shade[..., None], 0, 255).astype(np.uint8), ok)
    # Display gamma lifts the dark majority of a reflectance scene.
    gamma = 0.85 if modality.unit == "reflectance" else 1.0
    return _checkered((np.moveaxis(unit, 0, -1) ** gamma * 255 + 0.5).astype(np.uint8), ok)


def class_picture(
    modality: Modality, index: npt.NDArray[np.number], valid: Bool | None = None
) -> RGB:
    """Draw a class map in its classes' colours. index: (H, W) class indices; -1 is unknown."""
    colours = np.array([c.color for c in modality.classes], np.uint8)
    ok = (index >= 0) & (index < len(colours))
    if valid is not None:
        ok &= valid.all(axis=0)
    return _checkered(colours[np.where(ok, index, 0).astype(np.intp)], ok)


def scalar_picture(
    values: npt.NDArray[np.generic], ramp: str, low: float, high: float, valid: Bool | None = None
) -> RGB:
    """Draw one (H, W) layer through a matplotlib colour map between ``low`` and ``high``."""
    ok = np.isfinite(values) if valid is None else np.isfinite(values) & valid
    span = max(high - low, 1e-12)
    unit = np.clip((np.where(ok, values, low).astype(np.float64) - low) / span, 0.0, 1.0)
    return _checkered(_through(ramp, unit), ok)


def mask_overlay(image: RGB, masked: Bool, patch: int) -> RGB:
    """Cover masked patches with a soft grey grid.

    image: (H, W, 3). masked: (rows, columns), True where a token is MASKED. ``patch``: the side of
    the ground a token covers, in pixels; the last row and column may reach over the edge.
    """
    height, width = image.shape[:2]
    if masked.shape != (-(-height // patch), -(-width // patch)):
        raise ContractError(
            f"mask_overlay: {masked.shape[0]}×{masked.shape[1]} patches of {patch} px do not cover "
            f"{height}×{width} px"
        )
    masked_pixels = np.repeat(np.repeat(masked, patch, axis=0), patch, axis=1)[:height, :width]
    covered = np.where(masked_pixels[..., None], np.uint8(206), image)
    line = np.zeros((height, width), dtype=bool)
    line[::patch] = True
    line[:, ::patch] = True
    return np.where((masked_pixels & line)[..., None], np.uint8(228), covered).astype(np.uint8)


def absent_picture(height: int, width: int) -> RGB:
    """The checker that stands for nodata."""
    cell = max(1, round(max(height, width) / 24))
    rows, cols = np.arange(height)[:, None] // cell, np.arange(width)[None, :] // cell
    grey = np.where((rows + cols) % 2 == 0, 246, 234).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


@cache
def relief_ramp() -> RGB:
    """The tints of heights, low to high: (256, 3)."""
    stops = np.array(_RELIEF_STOPS, np.float64)
    at = np.linspace(0, 1, len(stops))
    ramp = [np.interp(np.linspace(0, 1, 256), at, stops[:, c]) for c in range(3)]
    return np.rint(np.stack(ramp, axis=1)).astype(np.uint8)


@cache
def ramp_colours(name: str) -> RGB:
    """A matplotlib colour map as (256, 3)."""
    import matplotlib as mpl

    colours = np.asarray(mpl.colormaps[name](np.linspace(0, 1, 256)))[:, :3]
    return np.asarray(np.rint(colours * 255), np.uint8)


def _through(ramp: str, unit: Array) -> RGB:
    index = np.rint(unit * 255).astype(np.intp)
    return np.asarray(ramp_colours(ramp)[index], np.uint8)


def _displayed(
    modality: Modality, values: npt.NDArray[np.number], valid: Bool | None
) -> tuple[Array, Bool]:
    """The displayed channels, float64 (1–3, H, W), and where all of them hold (H, W)."""
    bands = display_bands(modality)
    shown = values[list(bands)].astype(np.float64)
    ok: Bool = np.asarray(np.isfinite(shown).all(axis=0))
    if valid is not None:
        ok = ok & (valid[list(bands)] if len(valid) > 1 else valid).all(axis=0)
    if look_of(modality) is Look.PAIR:
        with np.errstate(invalid="ignore"):
            shown = np.concatenate([shown, shown[:1] - shown[1:2]])
    return shown, ok


def _checkered(image: RGB, ok: Bool) -> RGB:
    return image if ok.all() else np.where(ok[..., None], image, absent_picture(*ok.shape))


def _smooth(height: Array) -> Array:
    """A 5×5 binomial blur: whole-metre steps of integer DEMs would otherwise shade as stairs."""
    weights = np.array([1, 4, 6, 4, 1]) / 16
    for axis in (0, 1):
        padded = np.pad(height, [(2, 2) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        length = height.shape[axis]
        height = sum(
            (w * padded.take(range(k, k + length), axis=axis) for k, w in enumerate(weights)),
            start=np.zeros_like(height),
        )
    return height


def _shade(height: Array) -> Array:
    """Rise towards a light in the north-west, in metres per pixel."""
    if min(height.shape) < 2:
        return np.zeros_like(height)
    down, right = np.gradient(_smooth(height))
    return np.asarray((down + right) / np.sqrt(2.0), np.float64)


def _steepness(height: Array, ok: Bool) -> float:
    if not ok.any():
        return 0.0
    lit = np.abs(_shade(np.where(ok, height, np.median(height[ok]))))[ok]
    # Plains are not blown up into mountains: below 0.3 m per pixel shading fades away.
    return float(0.45 / max(np.percentile(lit, 95), 0.3))
