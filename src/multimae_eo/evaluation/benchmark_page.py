"""The files and the page of a benchmark: scores, aggregates, a chart per data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multimae_eo.evaluation.result_texts import INTERVALS
from multimae_eo.reports.charts import FractionPoint, fraction_charts
from multimae_eo.reports.html import Report
from multimae_eo.reports.tables import (
    Row,
    display_row,
    write_csv,
    write_markdown,
    write_results,
)

_AGGREGATE = (
    "Scores brought to 0 to 1 by normalizer.json, then the mean of their middle half over data "
    "sets and seeds; brackets: 95 % of a bootstrap over seeds. Comparable with published numbers "
    "only where all data sets of a group are there (column `of`)."
)
_NO_AGGREGATE = "No aggregate: normalizer.json is not beside the data sets."


def write_benchmark(
    out: Path,
    title: str,
    points: Sequence[FractionPoint],
    rows: Sequence[Row],
    totals: Sequence[Row],
) -> None:
    """Write the files of the benchmark ``title`` into ``out``; raises OutputError."""
    shown = [display_row(row, ("score",)) for row in rows]
    aggregates = [display_row(row, ("aggregate",)) for row in totals]
    note = _AGGREGATE if totals else _NO_AGGREGATE
    write_results(out, rows)
    write_csv(out / "aggregate.csv", totals)
    write_markdown(out / "results.md", [f"# {title}", aggregates, note, shown, INTERVALS])
    count = len({point.chart for point in points})
    page = Report(title, f"{count} data set{'s' if count > 1 else ''}")
    page.heading("Aggregate")
    if totals:
        page.table(aggregates, note)
    else:
        page.text(note)
    page.heading("Data sets").gallery(fraction_charts(points))
    page.heading("Scores on the test split").table(shown, INTERVALS)
    page.write(out / "report.html")
