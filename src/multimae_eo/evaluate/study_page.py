"""What a study writes: its tables, and a page with scores against labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimae_eo.evaluate.card import markdown_table
from multimae_eo.evaluate.probe_page import (
    INTERVALS,
    TESTED,
    csv_bytes,
    interval_in,
    line_of,
    parquet_bytes,
    shown_scores,
    told_comparison,
    told_row,
)
from multimae_eo.evaluate.trials import Trial
from multimae_eo.files import write_file
from multimae_eo.reports.charts import fraction_figure
from multimae_eo.reports.html import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
Result = tuple[Sequence[Trial], Sequence[Row]]
_CHOSEN = (
    "Chosen on the validation split: the point of the grid (with the first seed), the number of "
    "neighbours or the strength of regularisation."
)


def write_study(
    out: Path, name: str, result: Result, compared: Sequence[Row], tried: Sequence[Row]
) -> None:
    """Write a study's files into ``out``; raises OutputError.

    ``result``: trials and their rows. ``compared``: differences. ``tried``: points of the grid.
    """
    trials, rows = result
    scores = shown_scores(trials[0])
    told = [told_row(row, scores) for row in rows]
    tested = [told_comparison(row, scores[0]) for row in compared]
    write_file(out / "results.csv", csv_bytes(rows))
    write_file(out / "results.parquet", parquet_bytes(rows))
    write_file(out / "comparisons.csv", csv_bytes(compared))
    write_file(out / "grid.csv", csv_bytes(tried))
    lines = [f"# Transfer to {name}", "", *markdown_table(told), ""]
    lines += [f"Test chips: {rows[0]['test chips']}. {INTERVALS} {_CHOSEN}", ""]
    lines += [*markdown_table(tested), "", TESTED] if tested else []
    write_file(out / "results.md", ("\n".join(lines) + "\n").encode())
    page = Report(f"Transfer to {name}", f"{rows[0]['test chips']} test chips")
    page.heading(f"{scores[0]} by label fraction").gallery(curves(result, scores[0]))
    page.heading("Scores on the test split").table(told, f"{INTERVALS} {_CHOSEN}")
    if tested:
        page.heading("Differences").table(tested, TESTED)
    if tried:
        page.heading("Grid").table(tried, "Scores on the validation split with the first seed.")
    page.write(out / "report.html")


def curves(result: Result, score: str) -> Iterator[tuple[Figure, str, str]]:
    """A chart per set of inputs: a line per method and kind of features."""
    trials, rows = result
    scored = [(t, interval_in(r, score)) for t, r in zip(trials, rows, strict=True)]
    for inputs in dict.fromkeys(t.inputs for t in trials):
        mine = [(t, i) for t, i in scored if t.inputs == inputs]
        lines = [
            line_of(
                f"{features}, {method}",
                [(t.percent, i) for t, i in mine if (t.features, t.method) == (features, method)],
            )
            for features, method in dict.fromkeys((t.features, t.method) for t, _ in mine)
        ]
        yield fraction_figure(lines, title=inputs, score=score), "", f"{score}, {inputs}"
