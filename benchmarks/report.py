"""Draws what the benchmarks wrote: docs/img/*.png from benchmarks/results/*.json.

    python benchmarks/report.py [--results benchmarks/results] [--out docs/img]

Files that were not measured yet are left out. Prints the step's table as Markdown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import measure

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, NAIVE, OTHER = "#1f6f8b", "#c8553d", "#9aa5ab"
AXES = {
    "modalities": "modalities",
    "chip": "chip, px",
    "visible": "visible tokens",
    "encoder": "encoder",
}


def step_figure(record: dict[str, Any]) -> Figure:
    """Samples per second of every row, by precision."""
    rows = record["rows"]
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(rows) + 1.4), layout="constrained")
    names = list(rows)[::-1]
    colours = [
        NAIVE if n.startswith("naive") else OURS if n.startswith("ours") else OTHER for n in names
    ]
    bars = axes.barh(names, [rows[n]["samples_per_s"] for n in names], color=colours)
    axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axes.set_xlabel(f"samples/s ({record['encoder']}, batch {record['batch']})")
    axes.margins(x=0.1, y=0.01)
    finish(axes, record)
    return figure


def scaling_figure(record: dict[str, Any]) -> Figure:
    """Time and memory along every axis that was measured."""
    found = {n: p for n, p in record["axes"].items() if n in AXES and len(p) > 1}
    figure, every = plt.subplots(
        2, len(found), figsize=(3 * len(found) + 0.6, 5), layout="constrained", squeeze=False
    )
    for column, (name, points) in enumerate(found.items()):
        x = [p[name] for p in points]
        for row, value, scale in ((0, "median_s", 1.0), (1, "memory_bytes", 1e-6)):
            axes = every[row][column]
            y = [p[value] * scale for p in points]
            if isinstance(x[0], str):
                axes.bar(x, y, color=OURS)
            else:
                axes.plot(x, y, "o", color=OURS)
                axes.set_xlim(0, 1.05 * max(x))
                axes.set_xticks([0, *x])
            fit = record.get("lines", {}).get(value)
            if name == "modalities" and fit:
                ends = [0, max(x)]
                line = [(fit["intercept"] + fit["slope"] * e) * scale for e in ends]
                axes.plot(ends, line, color=OTHER, zorder=0)
                axes.set_title(f"a line explains {fit['r2']:.1%}", fontsize=9)
            axes.set_ylim(0, 1.08 * max(y))
            axes.set_xlabel(AXES[name])
            axes.spines[["top", "right"]].set_visible(False)
    every[0][0].set_ylabel("s per step")
    every[1][0].set_ylabel("MB per step")
    return figure


def curves_figure(record: dict[str, Any]) -> Figure:
    """The losses of both, one over the other, and their difference below."""
    curves = record["curves"]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7, 4.6), layout="constrained", sharex=True, height_ratios=(3, 1)
    )
    above.plot(curves["ours, other masks"], color=OTHER, linewidth=1, label="ours, other masks")
    above.plot(curves["naive"], color=NAIVE, linewidth=3, alpha=0.5, label="naive")
    above.plot(curves["ours"], color=OURS, linewidth=1, label="ours")
    above.set_ylabel("training loss")
    above.legend(frameon=False)
    apart = [abs(a / b - 1) for a, b in zip(curves["ours"], curves["naive"], strict=True)]
    noise = [
        abs(a / b - 1) for a, b in zip(curves["ours"], curves["ours, other masks"], strict=True)
    ]
    below.semilogy([max(a, 1e-9) for a in apart], color=OURS)
    below.semilogy([max(a, 1e-9) for a in noise], color=OTHER)
    below.set_ylabel("difference")
    below.set_xlabel(f"step ({record['data']}, {record['encoder']}, batch {record['batch']})")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def series_figure(record: dict[str, Any]) -> Figure:
    """Time and memory by dates, or a score by the dates so far with intervals."""
    if "budget" in record:
        return _cost_figure(record)
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for way, colour in (("model", OURS), ("forest", NAIVE)):
        points = [p for p in record["points"] if p["way"] == way]
        x = [p["days"] for p in points]
        axes.plot(x, [p["value"] for p in points], "o-", color=colour, label=way)
        axes.fill_between(x, [p["low"] for p in points], [p["high"] for p in points],
                          color=colour, alpha=0.15, linewidth=0)  # fmt: skip
    axes.set_xlabel("days since the first date")
    axes.set_ylabel(f"accuracy, {record['set']}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _cost_figure(record: dict[str, Any]) -> Figure:
    figure, both = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    names = {"budget": f"{record['budget']} visible tokens", "share": "3/4 of the tokens visible"}
    for axes, value, scale, label in (
        (both[0], "best_s", 1.0, "s per step"),
        (both[1], "memory_bytes", 1e-6, "MB per step"),
    ):
        for way, colour in (("budget", OURS), ("share", NAIVE)):
            points = [p for p in record["points"] if p["way"] == way]
            x, y = [p["dates"] for p in points], [p[value] * scale for p in points]
            axes.plot(x, y, "o-", color=colour, label=names[way])
        axes.set_xlabel("dates")
        axes.set_ylabel(label)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].legend(frameon=False)
    return figure


def finish(axes: Axes, record: dict[str, Any]) -> None:
    """No frame; the machine below the axis."""
    axes.spines[["top", "right"]].set_visible(False)
    about = record["machine"]
    axes.set_title(
        f"{about['device']}, {about['threads']} threads, torch {about['torch']}, "
        f"commit {about['commit']}",
        fontsize=8,
        loc="left",
    )


def step_table(record: dict[str, Any]) -> str:
    """The rows of a step as a Markdown table."""
    base = next(iter(record["rows"].values()))["median_s"]
    lines = [
        "| step | samples/s | of the ceiling | memory, GB | × naive fp32 |",
        "|---|---|---|---|---|",
    ]
    for name, row in record["rows"].items():
        lines.append(
            f"| {name} | {row['samples_per_s']:.1f} | {row['share_of_ceiling']:.0%} "
            f"| {row['memory_bytes'] / 1e9:.2f} | {base / row['median_s']:.2f} |"
        )
    return "\n".join(lines)


FIGURES = {
    "step": step_figure,
    "scaling": scaling_figure,
    "curves": curves_figure,
    "series": series_figure,
}


def draw(results: Path, out: Path) -> list[Path]:
    """A picture per results file that has one."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted(results.glob("*.json")):
        figure_of = FIGURES.get(path.stem.split("_")[0])
        if figure_of is None:
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        figure = figure_of(record)
        target = out / f"{path.stem}.png"
        figure.savefig(target, dpi=110)
        plt.close(figure)
        written.append(target)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--results", type=Path, default=measure.RESULTS)
    parser.add_argument("--out", type=Path, default=measure.ROOT / "docs" / "img")
    options = parser.parse_args()
    for path in draw(options.results, options.out):
        print(path)
    for path in sorted(options.results.glob("step_*.json")):
        print(step_table(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
