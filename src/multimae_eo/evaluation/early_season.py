"""How early a fine-tuned model is right: scores from the dates that were acquired so far."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from multimae_eo.errors import ConfigError
from multimae_eo.evaluation.predictions import input_names, predict_split
from multimae_eo.evaluation.robustness import score_names
from multimae_eo.files import single_writer, write_file
from multimae_eo.metrics.intervals import hierarchical_interval
from multimae_eo.metrics.task_metrics import scores_of
from multimae_eo.network.predictor import Predictor
from multimae_eo.reports.charts import line_figure
from multimae_eo.reports.html import Report
from multimae_eo.reports.tables import (
    Row,
    display_row,
    interval_rows,
    number_in,
    write_csv,
    write_markdown,
)
from multimae_eo.sample import Sample
from multimae_eo.sources.base import Indices, Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOTE = (
    "Days since a chip's first acquisition of any input; later dates are withheld. Inputs without "
    "dates are always given. Brackets: 95 % bootstrap intervals over chips."
)


class DatesUntil(Source):
    """The chips of a source with the dates of their first days only.

    ``days``: since the first date of any series of a chip, that day included.
    """

    def __init__(self, source: Source, days: float) -> None:
        self.source, self.days = source, days
        self.name, self.modalities = source.name, source.modalities
        self.keys, self.split_of = source.keys, source.split_of
        self.class_names, self.class_ids = source.class_names, source.class_ids

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """A chip without its later dates."""
        sample = self.source.read(index, names)
        if not sample.dates:
            return sample
        first = min(float(d[0]) for d in sample.dates.values())
        return sample.at_dates({n: d <= first + self.days for n, d in sample.dates.items()})


@single_writer()
def early_season(  # noqa: PLR0913 - each is a choice of the caller's, and none goes with another
    predictor: Predictor,
    source: Source,
    days: Sequence[float],
    *,
    split: str = "test",
    inputs: Sequence[str] | None = None,
    out: Path | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Scores of a split from the dates of the first ``days`` of each chip, a row for each.

    ``out``: folder for ``early.csv``, ``early.md``, ``early.json`` and ``early.html``, with a curve
    of the first score.

    Raises ConfigError for days that are negative or none and where no chip has dates, and as
    ``predict_split``.
    """
    ordered = sorted({float(d) for d in days})
    if not ordered or not all(math.isfinite(d) and d >= 0 for d in ordered):
        raise ConfigError(f"days: expected numbers from 0, such as 60,120,180; got {list(days)}")
    names, indices = input_names(predictor, source, inputs), source.split(split)
    rows: list[Row] = []
    for done, limit in enumerate(ordered, start=1):
        early = DatesUntil(source, limit)
        chosen, dates = _observed(early, indices, names)
        predictions = predict_split(predictor, early, split=chosen, inputs=names).predictions
        intervals = {
            name: hierarchical_interval([score], len(predictions), seed=seed)
            for name, score in scores_of(predictions).items()
        }
        head = {"days": limit, "dates": round(dates, 2), "chips": len(predictions)}
        rows.append({**head, **interval_rows(intervals)})
        if progress is not None:
            progress(done, len(ordered))
    if out is not None:
        _write(out, source.name, rows)
    return rows


def _observed(source: Source, indices: Indices, names: Sequence[str]) -> tuple[Indices, float]:
    """The chips with a valid pixel, and the mean number of dates of their longest series."""
    kept, counts = [], []
    for index in indices.tolist():
        sample = source.read(index, list(names))
        counts.append(max((len(d) for d in sample.dates.values()), default=0))
        if any(sample.validity(n).any() for n in sample.pixels):
            kept.append(index)
    if not any(counts):
        raise ConfigError(f"{source.name}: none of the inputs {', '.join(names)} has dates")
    return np.array(kept, dtype=np.int64), float(np.mean(counts))


def _write(out: Path, name: str, rows: Sequence[Row]) -> None:
    scores = score_names(rows)
    shown = [display_row(row, scores) for row in rows]
    write_csv(out / "early.csv", rows)
    write_file(out / "early.json", (json.dumps(rows, indent=1) + "\n").encode())
    title = f"Early in the season: {name}"
    write_markdown(out / "early.md", [f"# {title}", shown, _NOTE])
    page = Report(title, "one model, the dates acquired so far")
    page.heading(f"{scores[0]} by days").gallery([_figure(rows, scores[0])])
    page.table(shown, _NOTE)
    page.write(out / "early.html")


def _figure(rows: Sequence[Row], score: str) -> tuple[Figure, str, str]:
    points = [(number_in(r, "days"), number_in(r, score)) for r in rows]
    figure = line_figure(points, x="days since the first date", y=score)
    return figure, "From the dates acquired so far.", f"{score} by days"
