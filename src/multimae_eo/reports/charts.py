"""Charts of scores and of data: fractions, classes, confusion, calibration, histograms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from multimae_eo.metrics.intervals import Interval
from multimae_eo.metrics.task_metrics import Predictions, Reliability
from multimae_eo.reports.style import BLUE, DASHES, GREY, LINES, VERMILION, finish_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


@dataclass(frozen=True, kw_only=True)
class FractionPoint:
    """A score at a label fraction (%): a point of one line of one chart."""

    chart: str
    line: str
    percent: float
    score: Interval
    metric: str


def fraction_charts(points: Sequence[FractionPoint]) -> Iterator[tuple[Figure, str, str]]:
    """A chart per ``chart``, a line per ``line`` of it: (figure, no caption, alternative text)."""
    for chart in dict.fromkeys(p.chart for p in points):
        chart_points = [p for p in points if p.chart == chart]
        lines = []
        for label in dict.fromkeys(p.line for p in chart_points):
            ordered = sorted((p for p in chart_points if p.line == label), key=lambda p: p.percent)
            lines.append(
                Line(
                    label=label,
                    percents=tuple(p.percent for p in ordered),
                    scores=tuple(p.score for p in ordered),
                )
            )
        metric = chart_points[0].metric
        yield fraction_figure(lines, title=chart, score=metric), "", f"{metric}, {chart}"


def fraction_figure(lines: Sequence[Line], *, title: str, score: str) -> Figure:
    """Scores against label fractions, with bands of 95 %; dots with bars where there is one."""
    single = all(len(line.percents) < 2 for line in lines)
    many = len(lines) > _MOST_INSIDE
    figure = new_figure(4.6, 0.9 + 0.32 * len(lines) if single else 3.1 + 0.1 * len(lines) * many)
    axes = figure.add_subplot()
    for i, line in enumerate(lines):
        style = LINES[i % len(LINES)]
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
    finish_axes(axes, title, grid="x" if single else "y")
    return figure


def subset_figure(points: Sequence[tuple[int, float]], *, score: str) -> Figure:
    """Scores of sets of inputs against their number, and the means of each number."""
    figure = new_figure(4.6, 3.1)
    axes = figure.add_subplot()
    counts = sorted({count for count, _ in points})
    means = [float(np.mean([v for c, v in points if c == count])) for count in counts]
    x, y = zip(*points, strict=True)
    axes.scatter(x, y, s=14, alpha=0.55, color=GREY, linewidths=0)
    axes.plot(counts, means, linewidth=1.6, markersize=5, **LINES[0])
    axes.set_xticks(counts)
    axes.set_xlabel("inputs given", fontsize=9)
    axes.set_ylabel(score, fontsize=9, parse_math=False)
    finish_axes(axes, f"{score} by number of inputs", grid="y")
    return figure


def line_figure(points: Sequence[tuple[float, float]], *, x: str, y: str) -> Figure:
    """A line through points, with the names of its axes."""
    figure = new_figure(4.6, 3.1)
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), linewidth=1.6, markersize=5, **LINES[0])
    axes.set_xlabel(x, fontsize=9, parse_math=False)
    axes.set_ylabel(y, fontsize=9, parse_math=False)
    finish_axes(axes, f"{y} by {x}", grid="y")
    return figure


def histogram_figure(
    counts: Sequence[int],
    edges: Sequence[float],
    *,
    title: str,
    unit: str,
    limits: Sequence[float] = (),
) -> Figure:
    """A small histogram; dashed lines at those ``limits`` that lie inside it."""
    figure = new_figure(3.5, 1.9, pad=0.06, dpi=110)
    axes = figure.add_subplot()
    axes.stairs(counts, edges, fill=True, color=BLUE)
    for limit in limits:
        if edges[0] < limit < edges[-1]:
            axes.axvline(limit, color=VERMILION, linestyle="--", linewidth=1.2)
    axes.set_xlabel(unit, fontsize=9, parse_math=False)
    axes.set_yticks([])
    finish_axes(axes, title, grid=None)
    axes.spines["left"].set_visible(False)
    return figure


def share_figure(shares: Sequence[tuple[str, float]], *, title: str) -> Figure:
    """A bar per class: its share in %, from shares of 0 to 1."""
    figure = new_figure(3.5, 0.9 + 0.2 * len(shares), pad=0.06, dpi=110)
    axes = figure.add_subplot()
    axes.barh([name for name, _ in shares], [100 * share for _, share in shares], color=BLUE)
    axes.invert_yaxis()
    axes.set_xlabel("%", fontsize=9)
    finish_axes(axes, title, grid=None)
    return figure


def _label_fractions(axes: Axes, percents: Sequence[float], score: str) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.set_xticks(percents, [f"{p:g}" for p in percents])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("labels used, % of the training split", fontsize=9)
    axes.set_ylabel(score, fontsize=9, parse_math=False)


def confusion_figure(matrix: npt.NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Shares of each true class (rows) by predicted class; counts written where they fit."""
    classes = len(matrix)
    side = min(2.2 + 0.36 * classes, 9.0)
    figure = new_figure(side + 0.9, side)
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
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("true", fontsize=9)
    finish_axes(axes, "Confusion", grid=None)
    return figure


def class_figure(rows: Sequence[tuple[str, float | None]], *, score: str) -> Figure:
    """A bar per class; classes without a score have none."""
    figure = new_figure(4.6, 0.9 + 0.24 * len(rows))
    axes = figure.add_subplot()
    rows_at = np.arange(len(rows))
    axes.barh(rows_at, [value or 0.0 for _, value in rows], color=BLUE, height=0.7)
    axes.set_yticks(rows_at, [name for name, _ in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel(score, fontsize=9)
    finish_axes(axes, f"{score} by class", grid="x")
    return figure


def reliability_figure(reliability: Reliability) -> Figure:
    """Reliability diagram: accuracy against confidence, above the number of predictions per bin."""
    figure = new_figure(3.6, 3.9)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1.1, linestyle=DASHES)
    upper.plot(reliability.confidence, reliability.right, linewidth=1.6, markersize=5, **LINES[0])
    upper.text(0.03, 0.9, f"calibration error {reliability.error:.3f}", fontsize=9)
    upper.set_ylabel("right", fontsize=9)
    upper.set_ylim(0, 1.02)
    lower.bar(
        reliability.confidence, reliability.count / reliability.count.sum(), width=0.04, color=BLUE
    )
    lower.set_xlabel("confidence", fontsize=9)
    lower.set_ylabel("share", fontsize=9)
    lower.set_xlim(0, 1)
    finish_axes(upper, "Reliability", grid="y")
    finish_axes(lower, "", grid=None)
    return figure


def scatter_figure(predictions: Predictions) -> Figure:
    """Predicted against true values; at most 4000 chips or pixels, evenly taken."""
    finite = np.isfinite(predictions.truth)
    truth, predicted = predictions.truth[finite], predictions.predicted[finite]
    step = max(1, math.ceil(len(truth) / _MOST_POINTS))
    truth, predicted = truth[::step], predicted[::step]
    figure = new_figure(3.8, 3.8)
    axes = figure.add_subplot()
    ends = [float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max()))]
    axes.plot(ends, ends, color=GREY, linewidth=1.1, linestyle=DASHES)
    axes.scatter(truth, predicted, s=10, alpha=0.5, color=BLUE, linewidths=0)
    axes.set_xlabel("true", fontsize=9)
    axes.set_ylabel("predicted", fontsize=9)
    finish_axes(axes, "Predicted against true", grid="both")
    return figure


def _short(count: int) -> str:
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 10_000_000 else f"{count / 1e6:.0f}M"
