"""Charts of scores: without a display, in Okabe and Ito's colour-blind safe hues, told apart by
marker and line style, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from multimae_eo.metrics.intervals import Interval
from multimae_eo.metrics.task_metrics import Predictions, Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#5c636e", "marker": "^", "linestyle": ":"},
    {"color": "#009E73", "marker": "D", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "v", "linestyle": "-"},
    {"color": "#E69F00", "marker": "P", "linestyle": "--"},
    {"color": "#56B4E9", "marker": "X", "linestyle": ":"},
    {"color": "#1d2026", "marker": "<", "linestyle": "-."},
)
_MOST_INSIDE = 4  # lines whose legend finds room between them
_MOST_NAMED = 24  # classes whose names fit along an axis
_MOST_NUMBERED = 14  # classes whose counts fit into the cells
_MOST_POINTS = 4000


@dataclass(frozen=True, kw_only=True)
class Line:
    """Scores along label fractions (%), ascending, one interval each."""

    label: str
    percents: tuple[float, ...]
    scores: tuple[Interval, ...]


def fraction_figure(lines: Sequence[Line], *, title: str, score: str) -> Figure:
    """Scores against label fractions, with bands of 95 %; dots with bars where there is one."""
    single = all(len(line.percents) < 2 for line in lines)
    many = len(lines) > _MOST_INSIDE
    figure = _new_figure(4.6, 0.9 + 0.32 * len(lines) if single else 3.1 + 0.1 * len(lines) * many)
    axes = figure.add_subplot()
    for i, line in enumerate(lines):
        style = _STYLES[i % len(_STYLES)]
        values, lows, highs = (
            np.array([getattr(s, end) for s in line.scores]) for end in ("value", "low", "high")
        )
        if single:
            bar = np.clip([values - lows, highs - values], 0, None)
            axes.errorbar(values, [i], xerr=bar, capsize=3, linewidth=1.6, **style)
            continue
        shade = 0.07 if many else 0.14
        axes.fill_between(
            line.percents, lows, highs, color=style["color"], alpha=shade, linewidth=0
        )
        axes.plot(line.percents, values, label=line.label, linewidth=1.6, markersize=4, **style)
    if single:
        axes.set_yticks(range(len(lines)), [line.label for line in lines], parse_math=False)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlabel(score, fontsize=9, parse_math=False)
    else:
        _label_fractions(axes, sorted({p for line in lines for p in line.percents}), score)
        if many:
            figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
        else:
            axes.legend(fontsize=8.5, frameon=False, loc="best")
    _finish(axes, title, grid="x" if single else "y")
    return figure


def subset_figure(points: Sequence[tuple[int, float]], *, score: str) -> Figure:
    """Scores of sets of inputs against their number, and the means of each number."""
    figure = _new_figure(4.6, 3.1)
    axes = figure.add_subplot()
    counts = sorted({count for count, _ in points})
    means = [float(np.mean([v for c, v in points if c == count])) for count in counts]
    x, y = zip(*points, strict=True)
    axes.scatter(x, y, s=14, alpha=0.55, color="#5c636e", linewidths=0)
    axes.plot(counts, means, linewidth=1.6, markersize=5, **_STYLES[0])
    axes.set_xticks(counts)
    axes.set_xlabel("inputs given", fontsize=9)
    axes.set_ylabel(score, fontsize=9, parse_math=False)
    _finish(axes, f"{score} by number of inputs", grid="y")
    return figure


def _label_fractions(axes: Axes, percents: Sequence[float], score: str) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.set_xticks(percents, [f"{p:g}" for p in percents])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("labels used, % of the training split", fontsize=9)
    axes.set_ylabel(score, fontsize=9, parse_math=False)


def confusion_figure(matrix: npt.NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Shares of each true class (rows) by guessed class; counts written where they fit."""
    classes = len(matrix)
    side = min(2.2 + 0.36 * classes, 9.0)
    figure = _new_figure(side + 0.9, side)
    axes = figure.add_subplot()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=1)
    if classes <= _MOST_NUMBERED:
        for row, column in np.ndindex(classes, classes):
            if matrix[row, column]:
                light = share[row, column] > 0.55
                axes.text(
                    column, row, _short(int(matrix[row, column])),
                    ha="center", va="center", fontsize=7.5, color="black" if light else "white",
                )  # fmt: skip
    if classes <= _MOST_NAMED:
        axes.set_xticks(range(classes), names, rotation=50, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(classes), names)
        for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            tick.set_parse_math(False)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    axes.set_xlabel("guessed", fontsize=9)
    axes.set_ylabel("true", fontsize=9)
    _finish(axes, "Confusion", grid=None)
    return figure


def class_figure(rows: Sequence[tuple[str, float | None]], *, score: str) -> Figure:
    """A bar per class; classes without a score have none."""
    figure = _new_figure(4.6, 0.9 + 0.24 * len(rows))
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    axes.barh(places, [value or 0.0 for _, value in rows], color=_STYLES[0]["color"], height=0.7)
    axes.set_yticks(places, [name for name, _ in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel(score, fontsize=9)
    _finish(axes, f"{score} by class", grid="x")
    return figure


def reliability_figure(found: Reliability) -> Figure:
    """How often predictions are right against how sure they were, and how many there are."""
    figure = _new_figure(3.6, 3.9)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="#5c636e", linewidth=1.1, linestyle=(0, (4, 3)))
    upper.plot(found.confidence, found.right, linewidth=1.6, markersize=5, **_STYLES[0])
    upper.text(0.03, 0.9, f"calibration error {found.error:.3f}", fontsize=9)
    upper.set_ylabel("right", fontsize=9)
    upper.set_ylim(0, 1.02)
    lower.bar(found.confidence, found.count / found.count.sum(), width=0.04, color="#0072B2")
    lower.set_xlabel("confidence", fontsize=9)
    lower.set_ylabel("share", fontsize=9)
    lower.set_xlim(0, 1)
    _finish(upper, "Reliability", grid="y")
    _finish(lower, "", grid=None)
    return figure


def scatter_figure(predictions: Predictions) -> Figure:
    """Predicted against true values; at most 4000 chips or pixels, evenly taken."""
    known = np.isfinite(predictions.truth)
    truth, guess = predictions.truth[known], predictions.guess[known]
    step = max(1, math.ceil(len(truth) / _MOST_POINTS))
    truth, guess = truth[::step], guess[::step]
    figure = _new_figure(3.8, 3.8)
    axes = figure.add_subplot()
    ends = [float(min(truth.min(), guess.min())), float(max(truth.max(), guess.max()))]
    axes.plot(ends, ends, color="#5c636e", linewidth=1.1, linestyle=(0, (4, 3)))
    axes.scatter(truth, guess, s=10, alpha=0.5, color="#0072B2", linewidths=0)
    axes.set_xlabel("true", fontsize=9)
    axes.set_ylabel("predicted", fontsize=9)
    _finish(axes, "Predicted against true", grid="both")
    return figure


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure as NewFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    edge = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    return NewFigure(figsize=(width, height), dpi=120, layout=edge, facecolor="white")


def _finish(axes: Axes, title: str, *, grid: Literal["both", "x", "y"] | None) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", parse_math=False)
    axes.tick_params(labelsize=8.5, colors="#3a404a")
    if grid:
        axes.grid(axis=grid, color="#e3e6ea", linewidth=0.7)
        axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b9bec6")


def _short(count: int) -> str:
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 10_000_000 else f"{count / 1e6:.0f}M"
