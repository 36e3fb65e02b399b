"""One cell of a figure: an image, the bar that explains its colours, and a line of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from multimae_eo.modality import Modality
from multimae_eo.reports.pictures import (
    RGB,
    Look,
    absent_picture,
    look_of,
    mask_overlay,
    picture,
    ramp_colours,
    relief_ramp,
    scalar_picture,
    stretch_of,
)
from multimae_eo.reports.views import ChipView

PanelKind = Literal["input", "truth", "prediction", "std", "error"]
PANELS: tuple[PanelKind, ...] = ("input", "truth", "prediction", "std", "error")

_STD, _SIGNED, _UNSIGNED = "cividis", "RdBu_r", "magma"
_WRONG = (226, 229, 233), (213, 94, 0)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A colour bar: ``colours`` (N, 3) from ``low`` to ``high``, as text with the unit."""

    colours: RGB
    low: str
    high: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """An image with what is written below it. ``framed``: it was given to the model."""

    image: RGB
    bar: Bar | None = None
    note: str = ""
    framed: bool = False


@dataclass(frozen=True)
class Ranges:
    """The largest uncertainty and error drawn for a modality, shared by all chips of a figure."""

    uncertainty: float
    error: float


def ranges_of(views: Iterable[ChipView], modality: Modality) -> Ranges:
    """98th percentiles over all chips, so that chips and colours compare.

    Entropies are drawn up to a third of the greatest possible at least: calm maps look calm.
    """
    name = modality.name
    uncertainty, error = [np.zeros(1)], [np.zeros(1)]
    for view in views:
        if name in view.mean:
            uncertainty.append(view.uncertainty(name).ravel())
            missed = view.error(name)
            error.append(np.zeros(0) if missed is None else np.abs(missed[np.isfinite(missed)]))
    ends = [float(np.percentile(np.concatenate(v), 98)) for v in (uncertainty, error)]
    if modality.categorical:
        ends[0] = max(ends[0], np.log(len(modality.classes)) / 3)
    return Ranges(*(end if end > 0 else 1.0 for end in ends))


def panel_kinds(view: ChipView, name: str, requested: Sequence[PanelKind]) -> list[PanelKind]:
    """The requested panels that a modality of a chip can have, in order."""
    kinds: list[PanelKind] = ["input"] if name in view.inputs else []
    if name in view.mean:
        # A modality that the model was given in full is its own truth.
        kinds += [] if view.given_in_full(name) else ["truth"]
        kinds += ["prediction", "std", "error"]
    return [k for k in kinds if k in requested]


def panel_title(modality: Modality, kind: PanelKind) -> str:
    """The heading of a panel, which names what its colours show."""
    if kind == "std":
        return "entropy" if modality.categorical else "std (1 σ)"
    if kind == "error" and not modality.categorical:
        return "prediction − truth" if modality.channels == 1 else "error (rms of bands)"
    return "right or wrong" if kind == "error" else kind


def panel(view: ChipView, name: str, kind: PanelKind, ranges: Ranges) -> Panel:
    """Draw one panel. Truth, input and prediction share the truth's colours."""
    modality = view.modalities[name]
    if kind == "std":
        return _uncertainty(view, name, ranges)
    if kind == "error":
        return _error(view, name, ranges)
    if kind != "prediction" and name not in view.truth:
        side = next(a.shape for a in (*view.mean.values(), *view.truth.values()))[-2:]
        side = view.mean[name].shape[-2:] if name in view.mean else side
        return Panel(image=absent_picture(*side), note="not observed")
    values = view.truth[name] if kind != "prediction" else view.predicted(name)
    valid = view.valid[name] if kind != "prediction" else None
    has_reference = name in view.truth and bool(view.valid[name].any())
    reference = (view.truth[name], view.valid[name]) if has_reference else (values, valid)
    stretch = stretch_of(modality, *reference)
    image = picture(modality, values, valid=valid, stretch=stretch)
    bar = None
    if look_of(modality) in (Look.SCALAR, Look.RELIEF):
        ramp = relief_ramp() if look_of(modality) is Look.RELIEF else ramp_colours("viridis")
        bar = _bar(ramp, stretch.low[0], stretch.high[0], modality.unit)
    if kind == "input":
        if name in view.masked:
            image = mask_overlay(image, view.masked[name], view.token_pixels[name])
        return Panel(image=image, bar=bar, framed=True)
    return Panel(image=image, bar=bar)


def _uncertainty(view: ChipView, name: str, ranges: Ranges) -> Panel:
    modality = view.modalities[name]
    unit = "nats" if modality.categorical else modality.unit
    image = scalar_picture(view.uncertainty(name), _STD, 0.0, ranges.uncertainty)
    return Panel(image=image, bar=_bar(ramp_colours(_STD), 0.0, ranges.uncertainty, unit))


def _error(view: ChipView, name: str, ranges: Ranges) -> Panel:
    modality, error = view.modalities[name], view.error(name)
    if error is None or not np.isfinite(error).any():
        return Panel(image=absent_picture(*view.mean[name].shape[-2:]), note="no truth")
    seen = error[np.isfinite(error)]
    if modality.categorical:
        right, wrong = (np.array(c, np.uint8) for c in _WRONG)
        image = np.where((error > 0)[..., None], wrong, right)
        image = np.where(np.isfinite(error)[..., None], image, absent_picture(*error.shape))
        bar = Bar(colours=np.stack([right, wrong]), low="right", high="wrong")
        return Panel(image=image, bar=bar, note=f"{100 * (1 - seen.mean()):.0f} % right")
    note = f"RMSE {short(float(np.sqrt((seen**2).mean())))}{_tail(modality.unit)}"
    low = -ranges.error if modality.channels == 1 else 0.0
    ramp = _SIGNED if modality.channels == 1 else _UNSIGNED
    image = scalar_picture(error, ramp, low, ranges.error)
    bar = _bar(ramp_colours(ramp), low, ranges.error, modality.unit)
    return Panel(image=image, bar=bar, note=note)


def _bar(colours: RGB, low: float, high: float, unit: str) -> Bar:
    return Bar(colours=colours, low=short(low), high=f"{short(high)}{_tail(unit)}")


def _tail(unit: str) -> str:
    """A unit after its number; empty for a long one ("reflectance"), which the heading names."""
    return f" {unit}" if 0 < len(unit) <= 4 else ""


def short(value: float) -> str:
    """A number for a label: three digits, no exponent between 0.001 and a million."""
    if value == 0:
        return "0"
    size = abs(value)
    if not 1e-3 <= size < 1e6:
        return f"{value:.1e}".replace("-", "−")
    text = f"{value:.0f}" if size >= 100 else f"{value:.{2 if size >= 10 else 3}g}"
    return text.replace("-", "−")
