"""What a benchmark writes: one table in three forms, the aggregates, and a page with charts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimae_eo.evaluate.card import markdown_table
from multimae_eo.evaluate.probe_page import (
    INTERVALS,
    csv_bytes,
    interval_in,
    line_of,
    parquet_bytes,
    told_row,
)
from multimae_eo.files import write_file
from multimae_eo.reports.charts import fraction_figure
from multimae_eo.reports.html import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
Place = tuple[str, str, float]
"""Data set, configuration and label fraction (%) of a row."""

_AGGREGATE = (
    "Scores brought to 0 to 1 by normalizer.json, then the mean of their middle half over data "
    "sets and seeds; brackets: 95 % of a bootstrap over seeds. Comparable with published numbers "
    "only where all six data sets of a suite are there."
)
_NO_AGGREGATE = "No aggregate: normalizer.json is not beside the data sets."


def write_benchmark(
    out: Path, places: Sequence[Place], rows: Sequence[Row], totals: Sequence[Row]
) -> None:
    """Write a benchmark's files into ``out``; raises OutputError."""
    told = [told_row(row, ("score",)) for row in rows]
    summed = [told_row(row, ("aggregate",)) for row in totals]
    about = _AGGREGATE if totals else _NO_AGGREGATE
    write_file(out / "results.csv", csv_bytes(rows))
    write_file(out / "results.parquet", parquet_bytes(rows))
    write_file(out / "aggregate.csv", csv_bytes(totals))
    lines = ["# GEO-Bench", "", *markdown_table(summed), "", about, ""]
    lines += [*markdown_table(told), "", INTERVALS]
    write_file(out / "results.md", ("\n".join(lines) + "\n").encode())
    count = len({dataset for dataset, _, _ in places})
    page = Report("GEO-Bench", f"{count} data set{'s' if count > 1 else ''}")
    page.heading("Aggregate")
    if totals:
        page.table(summed, about)
    else:
        page.text(about)
    page.heading("Data sets").gallery(_charts(places, rows))
    page.heading("Scores on the test split").table(told, INTERVALS)
    page.write(out / "report.html")


def _charts(places: Sequence[Place], rows: Sequence[Row]) -> Iterator[tuple[Figure, str, str]]:
    """A chart per data set: a line per configuration over label fractions."""
    for dataset in dict.fromkeys(d for d, _, _ in places):
        mine = [(p, r) for p, r in zip(places, rows, strict=True) if p[0] == dataset]
        lines = [
            line_of(name, [(p[2], interval_in(r, "score")) for p, r in mine if p[1] == name])
            for name in dict.fromkeys(p[1] for p, _ in mine)
        ]
        score = mine[0][1]["metric"]
        figure = fraction_figure(lines, title=dataset, score=score)
        yield figure, "", f"{score} on {dataset}"
