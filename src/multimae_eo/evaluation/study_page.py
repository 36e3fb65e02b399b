"""The files and the page of a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multimae_eo.evaluation.result_texts import (
    INTERVALS,
    TESTED,
    fraction_points,
    shown_scores,
)
from multimae_eo.evaluation.trials import Trial
from multimae_eo.reports.charts import fraction_charts
from multimae_eo.reports.html import Report
from multimae_eo.reports.tables import (
    Part,
    Row,
    display_comparison,
    display_row,
    write_csv,
    write_markdown,
    write_results,
)

_CHOSEN = (
    "Chosen on the validation split: the point of the grid (with the first seed), the number of "
    "neighbours or the strength of regularisation."
)


def write_study(
    out: Path,
    name: str,
    *,
    trials: Sequence[Trial],
    rows: Sequence[Row],
    comparisons: Sequence[Row],
    grid: Sequence[Row],
) -> None:
    """Write a study's files into ``out``; raises OutputError.

    ``rows``: results, one per trial. ``comparisons``: differences. ``grid``: validation scores.
    """
    scores = shown_scores(trials[0])
    shown = [display_row(row, scores) for row in rows]
    tested = [display_comparison(row, scores[0]) for row in comparisons]
    title, chips = f"Transfer to {name}", rows[0]["test chips"]
    note = f"{INTERVALS} {_CHOSEN}"
    write_results(out, rows)
    write_csv(out / "comparisons.csv", comparisons)
    write_csv(out / "grid.csv", grid)
    parts: list[Part] = [
        f"# {title}",
        shown,
        f"Test chips: {chips}. {note}",
        tested,
        TESTED if tested else "",
    ]
    write_markdown(out / "results.md", parts)
    points = fraction_points(
        trials,
        rows,
        chart_of=lambda trial: trial.inputs,
        line_of=lambda trial: f"{trial.features}, {trial.method}",
    )
    page = Report(title, f"{chips} test chips")
    page.heading(f"{scores[0]} by label fraction").gallery(fraction_charts(points))
    page.heading("Scores on the test split").table(shown, note)
    if tested:
        page.heading("Differences").table(tested, TESTED)
    if grid:
        page.heading("Grid").table(grid, "Scores on the validation split with the first seed.")
    page.write(out / "report.html")
