"""How a fine-tuned model fares when inputs are missing: scores of subsets of its inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.evaluation.predictions import input_names, predict_split
from multimae_eo.files import single_writer, write_file
from multimae_eo.inference.input_check import check_source
from multimae_eo.metrics.intervals import hierarchical_interval
from multimae_eo.metrics.task_metrics import scores_of
from multimae_eo.network.predictor import Predictor
from multimae_eo.reports.charts import subset_figure
from multimae_eo.reports.html import Report
from multimae_eo.reports.tables import (
    Row,
    display_row,
    interval_rows,
    number_in,
    write_csv,
    write_markdown,
)
from multimae_eo.sources.base import Indices, Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 20
"""Subsets of one size that are tried; of more, so many are drawn."""

_NOTE = (
    "Chips without any of a subset's inputs are left out of its row. Brackets: 95 % bootstrap "
    "intervals over chips."
)


@single_writer()
def drop_inputs(
    predictor: Predictor,
    source: Source,
    drop: Sequence[str] | None = None,
    *,
    split: str = "test",
    out: Path | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Scores of a split from subsets of the inputs, all of them first.

    ``drop``: inputs that are left out in every combination, the others being always there
    (default: any, but one is always there). Of subsets of one size at most MOST are tried.
    ``out``: folder for ``dropped.csv``, ``dropped.md``, ``dropped.json`` and ``dropped.html``, with
    a curve of the first score over the number of inputs.

    Raises ConfigError for an unknown input, and as ``predict_split``.
    """
    names = input_names(predictor, source, None)
    indices = source.split(split)
    encoder = predictor.encoder
    check_source(encoder.modalities, encoder.statistics, source, indices, inputs=names)
    has = _observed(source, indices, names)
    rows = []
    for i, kept in enumerate(sets := list(subsets(names, drop, seed=seed))):
        chosen = indices[has[:, [names.index(n) for n in kept]].any(axis=1)]
        if len(chosen):
            predictions = predict_split(predictor, source, split=chosen, inputs=kept).predictions
            chips = len(predictions)
            intervals = {
                name: hierarchical_interval([score], chips, seed=seed)
                for name, score in scores_of(predictions).items()
            }
            without = ", ".join(n for n in names if n not in kept) or "–"
            head = {"inputs": len(kept), "kept": ", ".join(kept), "dropped": without}
            rows.append({**head, "chips": chips, **interval_rows(intervals)})
        if progress is not None:
            progress(i + 1, len(sets))
    if out is not None:
        _write(out, source.name, rows)
    return rows


def subsets(
    names: Sequence[str], drop: Sequence[str] | None, *, seed: int = 0
) -> Iterator[tuple[str, ...]]:
    """What is kept: everything first, then ever fewer; never nothing.

    At most MOST of each size, drawn by ``seed`` where there are more. Raises ConfigError for a
    name that is none of ``names``.
    """
    for name in drop or ():
        if name not in names:
            raise ConfigError(f"drop: no input {name!r}; {did_you_mean(name, names)}")
    droppable = list(names if drop is None else dict.fromkeys(drop))
    rng = np.random.default_rng(seed)
    for count in range(len(droppable) + 1):
        options = [
            tuple(n for n in names if n not in out) for out in combinations(droppable, count)
        ]
        options = [kept for kept in options if kept]
        if len(options) > MOST:
            options = [options[i] for i in np.sort(rng.choice(len(options), MOST, replace=False))]
        yield from options


def curve(rows: Sequence[Row], score: str) -> dict[int, tuple[float, float, float]]:
    """Mean, least and greatest score of the subsets, by their number of inputs."""
    by_count: dict[int, list[float]] = {}
    for row in rows:
        by_count.setdefault(int(number_in(row, "inputs")), []).append(number_in(row, score))
    return {n: (float(np.mean(v)), min(v), max(v)) for n, v in sorted(by_count.items())}


def score_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """The scores that rows hold, the one that matters first."""
    return tuple(k.removesuffix(" low") for k in rows[0] if k.endswith(" low"))


def _observed(source: Source, indices: Indices, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which inputs each chip has any valid pixel of: bool (N, M)."""
    has = np.zeros((len(indices), len(names)), bool)
    for row, index in enumerate(indices.tolist()):
        sample = source.read(index, list(names))
        for column, name in enumerate(names):
            there = name in sample.pixels
            has[row, column] = there and (name not in sample.valid or sample.valid[name].any())
    return has


def _write(out: Path, name: str, rows: Sequence[Row]) -> None:
    scores = score_names(rows)
    shown = [display_row(row, scores) for row in rows]
    by_count = curve(rows, scores[0])
    means = [
        {"inputs": n, f"mean {scores[0]}": mean, "least": low, "greatest": high}
        for n, (mean, low, high) in by_count.items()
    ]
    write_csv(out / "dropped.csv", rows)
    write_file(out / "dropped.json", (json.dumps(rows, indent=1) + "\n").encode())
    title = f"Missing inputs: {name}"
    write_markdown(out / "dropped.md", [f"# {title}", means, shown, _NOTE])
    page = Report(title, f"{len(rows)} sets of inputs, one model")
    page.heading(f"{scores[0]} by number of inputs").gallery([_figure(rows, scores[0])])
    page.table(means, "Over the sets of inputs of each size.")
    page.heading("Every set of inputs").table(shown, _NOTE)
    page.write(out / "dropped.html")


def _figure(rows: Sequence[Row], score: str) -> tuple[Figure, str, str]:
    points = [(int(number_in(r, "inputs")), number_in(r, score)) for r in rows]
    caption = "Dots: sets of inputs. The line: their mean."
    return subset_figure(points, score=score), caption, f"{score} by number of inputs"
