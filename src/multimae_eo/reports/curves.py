"""Line plots of training runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from multimae_eo.reports.style import BLUE, DASHES, GREY, VERMILION, finish_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]
Role = Literal["train", "val", "baseline"]
_MOST_POINTS = 400
_STYLES: dict[Role, dict[str, Any]] = {
    "train": {"color": BLUE, "linewidth": 1.1},
    "val": {"color": VERMILION, "linewidth": 1.8, "marker": "o", "markersize": 3},
    "baseline": {"color": GREY, "linewidth": 1.2, "linestyle": DASHES},
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line: ``x`` and ``y`` of equal length, with the key ``label``."""

    label: str
    x: Array
    y: Array
    role: Role = "train"


def curve_figure(curves: Sequence[Curve], *, title: str, unit: str = "") -> Figure:
    """A small plot of curves over steps. Values span decades: a logarithmic axis."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = new_figure(3.5, 2.35)
    axes = figure.add_subplot()
    for curve in curves:
        x, y = thin(curve.x, curve.y) if curve.role == "train" else (curve.x, curve.y)
        axes.plot(x, y, label=curve.label, **_STYLES[curve.role])
    shown = np.concatenate([c.y for c in curves]) if curves else np.zeros(0)
    if shown.size and shown.min() > 0 and shown.max() / shown.min() > 30:
        axes.set_yscale("log")
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel(unit, fontsize=9, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    finish_axes(axes, title, grid="y")
    if len(curves) > 1:
        axes.legend(fontsize=8.5, frameon=False, loc="best")
    return figure


def thin(x: Array, y: Array, most: int = _MOST_POINTS) -> tuple[Array, Array]:
    """At most ``most`` points, each the mean of a run of neighbours; short curves are untouched."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most + 1).astype(np.intp)[:-1]
    counts = np.diff(np.append(edges, len(x)))
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts
