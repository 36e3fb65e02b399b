"""Tables of results as text, Markdown, CSV and Parquet.

A row is a mapping of columns. A score with an interval takes three: ``NAME``, ``NAME low`` and
``NAME high``; for display they become one cell.
"""

from __future__ import annotations

import csv
import io
import numbers
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from multimae_eo.files import write_file
from multimae_eo.metrics.intervals import Interval

Row = dict[str, object]
Part = str | Sequence[Mapping[str, object]]
"""A paragraph, or the rows of a table."""


def format_value(value: object) -> str:
    """A cell's text: four digits for measured numbers, all for counts, a dash for None."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}".replace(",", "\u202f").replace("-", "−")
    if isinstance(value, numbers.Real):
        size = abs(float(value))
        if size >= 1000:
            return format_value(round(float(value))) if size < 1e9 else f"{float(value):.3e}"
        small = 0 < size < 1e-4
        text = f"{float(value):.2e}" if small else f"{float(value):.4g}"
        return text.replace("-", "−")
    return str(value)


def format_column(values: Sequence[object]) -> list[str]:
    """The cells of a column: measured numbers with equally many decimals, four at most."""
    cells = [format_value(v) for v in values]
    measured = [
        i
        for i, v in enumerate(values)
        if isinstance(v, numbers.Real) and not isinstance(v, numbers.Integral)
    ]
    counts = any(isinstance(v, numbers.Integral) for v in values)
    decimals = max((len(cells[i].partition(".")[2]) for i in measured), default=0)
    plain = all(cells[i].replace("−", "").replace(".", "").isdecimal() for i in measured)
    if counts or not plain or not 0 < decimals <= 4:
        return cells
    for i in measured:
        cells[i] = f"{values[i]:.{decimals}f}".replace("-", "−")
    return cells


def markdown_table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Rows as lines of a Markdown table: a column per key of the first."""
    if not rows:
        return []
    columns = list(rows[0])

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    body = [line([format_value(row.get(c)) for c in columns]) for row in rows]
    return [line(columns), "|" + "---|" * len(columns), *body]


def write_markdown(path: Path, parts: Iterable[Part]) -> None:
    """Write paragraphs and tables, a blank line between them; raises OutputError."""
    blocks = [part if isinstance(part, str) else "\n".join(markdown_table(part)) for part in parts]
    write_file(path, ("\n\n".join(block for block in blocks if block) + "\n").encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows, a column per key of the first; raises OutputError."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def write_results(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as ``results.csv`` and ``results.parquet``; raises OutputError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = io.BytesIO()
    # One type per column: with several seeds there are several chosen values.
    pq.write_table(pa.Table.from_pylist([{**r, "chosen": str(r["chosen"])} for r in rows]), data)
    write_csv(folder / "results.csv", rows)
    write_file(folder / "results.parquet", data.getvalue())


def interval_rows(intervals: Mapping[str, Interval]) -> dict[str, float]:
    """Intervals as columns of a row: ``NAME``, ``NAME low`` and ``NAME high`` of each."""
    return {
        key: value
        for name, i in intervals.items()
        for key, value in ((name, i.value), (f"{name} low", i.low), (f"{name} high", i.high))
    }


def number_in(row: Mapping[str, object], name: str) -> float:
    """A row's number; TypeError where the cell holds none."""
    value = row[name]
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def interval_in(row: Mapping[str, object], name: str) -> Interval:
    """The score ``name`` of a row, with its interval."""
    value, low, high = (number_in(row, f"{name}{end}") for end in ("", " low", " high"))
    return Interval(value=value, low=low, high=high)


def display_row(row: Mapping[str, object], scores: Sequence[str]) -> Row:
    """A row of results for people: these scores last, each with its interval in one cell."""
    scored = [k for k in row if f"{k} low" in row]
    merged = {"test chips", *(f"{k}{end}" for k in scored for end in ("", " low", " high"))}
    rest = {k: v for k, v in row.items() if k not in merged}
    return {**rest, **{name: str(interval_in(row, name)) for name in scores if name in scored}}


def display_comparison(row: Mapping[str, object], score: str) -> Row:
    """A row of comparisons for people: the difference with its interval, then the p-values."""
    name = f"{score}, difference"
    rest = {k: v for k, v in row.items() if not k.startswith(name)}
    p = {k: rest.pop(k) for k in ("p", "p (Holm)")}
    return {**rest, name: str(interval_in(row, name)), **p}
