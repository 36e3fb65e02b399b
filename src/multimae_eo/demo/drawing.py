"""Arrays for the page: PNG bytes, colour bars, and the palettes of classes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from multimae_eo.modality import ClassMapEntry, Modality, ModalitySet
from multimae_eo.reports.pictures import RGB, Look, look_of, ramp_colours, relief_ramp

# Paul Tol's "muted" and "bright" hues with greys: distinct with every kind of colour vision.
_SAFE = (
    (17, 119, 51), (153, 153, 51), (221, 204, 119), (238, 119, 51), (136, 34, 85),
    (187, 187, 187), (240, 240, 240), (51, 34, 136), (136, 204, 238), (68, 170, 153),
    (204, 102, 119), (90, 90, 90), (170, 68, 153), (51, 187, 238),
)  # fmt: skip

Palette = Literal["official", "safe"]
"""Colours of classes: their class map's own, or ones distinct with every kind of colour vision."""

INVALID = 65535
"""In packed values: no valid pixel."""


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """(H, W, 3) or (H, W, 4) as a PNG."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG", compress_level=1)
    return data.getvalue()


def data_uri(image: npt.NDArray[np.uint8]) -> str:
    """A PNG as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def hex_colour(colour: Sequence[int]) -> str:
    """``#rrggbb``."""
    return "#" + "".join(f"{int(c):02x}" for c in colour)


def ramp(colours: RGB, count: int = 12) -> list[str]:
    """``count`` colours of a ramp, from low to high, for a gradient; both of a pair."""
    at = np.linspace(0, len(colours) - 1, min(count, len(colours))).round().astype(int)
    return [hex_colour(colours[i]) for i in at]


def ramp_of(modality: Modality) -> list[str]:
    """The gradient a one-band modality is drawn in; empty for all others."""
    look = look_of(modality)
    if look is Look.RELIEF:
        return ramp(relief_ramp())
    return ramp(ramp_colours("viridis")) if look is Look.SCALAR else []


def class_entries(modality: Modality) -> list[dict[str, object]]:
    """``name`` and ``color`` of each class."""
    return [{"name": c.name, "color": hex_colour(c.color)} for c in modality.classes]


def safe_colours(modality: Modality) -> Modality:
    """A class map in colours that are distinct with every kind of colour vision.

    Each class keeps its official colour's nearest free neighbour: water stays blue, trees green.
    Class maps longer than the palette keep their colours.
    """
    classes = modality.classes
    if not classes or len(classes) > len(_SAFE):
        return modality
    official = np.array([c.color for c in classes], np.float64)
    distance = ((official[:, None] - np.array(_SAFE, np.float64)[None]) ** 2).sum(axis=2)
    chosen = [0] * len(classes)
    for _ in classes:
        row, safe = np.unravel_index(int(np.argmin(distance)), distance.shape)
        chosen[row] = int(safe)
        distance[row], distance[:, safe] = np.inf, np.inf
    return replace(
        modality,
        classes=tuple(
            ClassMapEntry(id=c.id, name=c.name, color=_SAFE[i])
            for c, i in zip(classes, chosen, strict=True)
        ),
    )


def in_palette(modality: Modality, palette: Palette) -> Modality:
    """A modality with its classes in the colours of a palette."""
    return safe_colours(modality) if palette == "safe" else modality


def in_palettes(modalities: ModalitySet) -> dict[Palette, ModalitySet]:
    """Modalities by palette."""
    safe = ModalitySet(safe_colours(m) for m in modalities.values())
    return {"official": modalities, "safe": safe}


def packed(
    values: npt.NDArray[np.generic], valid: npt.NDArray[np.bool_] | None = None
) -> dict[str, object]:
    """(C, H, W) as 16-bit steps between each band's extremes, base64; INVALID for invalid pixels.

    ``value = low + step * (high - low) / 65534``, exact to 1/65534 of a band's range.
    """
    exact = np.asarray(values, np.float64)
    ok = np.isfinite(exact) if valid is None else np.isfinite(exact) & valid
    low, high, steps = [], [], np.full(exact.shape, INVALID, "<u2")
    for band, (plane, mask) in enumerate(zip(exact, ok, strict=True)):
        valid_values = plane[mask]
        a, b = (
            (float(valid_values.min()), float(valid_values.max()))
            if valid_values.size
            else (0.0, 0.0)
        )
        low.append(a)
        high.append(b)
        scaled = (
            (plane[mask] - a) / (b - a) * (INVALID - 1) if b > a else np.zeros(valid_values.shape)
        )
        steps[band][mask] = np.rint(scaled)
    return {
        "shape": list(exact.shape),
        "low": low,
        "high": high,
        "data": base64.b64encode(steps.tobytes()).decode(),
    }
