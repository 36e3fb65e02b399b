"""What a probe writes: tables for programs, a Markdown file, and a page with curves and a card."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimae_eo.evaluate.card import Cost, card, markdown_table
from multimae_eo.files import write_file
from multimae_eo.metrics.intervals import Interval
from multimae_eo.metrics.task_metrics import Predictions, all_scores, scores_of
from multimae_eo.reports.charts import Line, fraction_figure
from multimae_eo.reports.html import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from multimae_eo.evaluate.trials import Trial
    from multimae_eo.network.multimae import MultiMAE
    from multimae_eo.sources.base import Source

Row = dict[str, Any]
_FEW = 3
"""Classes of maps whose own scores fit into a table beside the others."""
INTERVALS = (
    "Brackets: 95 % bootstrap intervals over test chips and, where there are several, over seeds."
)
TESTED = (
    "Differences on the same chips, first minus second, with 95 % intervals. p: permutation test "
    "on the chips' outcomes; Holm: corrected for the number of rows."
)


def write_results(
    out: Path,
    probed: tuple[MultiMAE, Source],
    trials: Sequence[Trial],
    rows: Sequence[Row],
    compared: Sequence[Row],
) -> None:
    """Write all of a probe's files into ``out``; raises OutputError."""
    model, source = probed
    names = shown_scores(trials[0])
    told = [told_row(row, names) for row in rows]
    tested = [told_comparison(row, names[0]) for row in compared]
    write_file(out / "results.csv", csv_bytes(rows))
    write_file(out / "results.parquet", parquet_bytes(rows))
    write_file(out / "comparisons.csv", csv_bytes(compared))
    lines = [*markdown_table(told), "", f"Test chips: {rows[0]['test chips']}. {INTERVALS}", ""]
    lines += [*markdown_table(tested), "", TESTED]
    write_file(out / "results.md", ("\n".join(lines) + "\n").encode())
    best = _card(out / "card", model, source, trials)
    page = Report(f"Frozen features on {source.name}", _lead(trials[0], rows))
    page.heading(
        f"{names[0]} by label fraction" if len({t.percent for t in trials}) > 1 else names[0]
    )
    page.gallery(_curves(trials, rows, names[0]))
    page.heading("Scores on the test split").table(told, INTERVALS)
    page.heading("Differences").table(tested, TESTED)
    page.text(
        "The value chosen is the number of neighbours or the strength of regularisation, chosen on "
        f"the validation split. Details of {best.features} features ({best.method}, {best.inputs}, "
        f"{best.percent:g} % of the labels): card/report.html."
    )
    page.write(out / "report.html")


def told_row(row: Row, scores: Sequence[str]) -> Row:
    """A row of results for people: these scores, each with its interval in one cell."""
    scored = [k for k in row if f"{k} low" in row]
    hidden = {"test chips", *(f"{k}{end}" for k in scored for end in ("", " low", " high"))}
    rest = {k: v for k, v in row.items() if k not in hidden}
    return {**rest, **{name: str(interval_in(row, name)) for name in scores if name in scored}}


def shown_scores(trial: Trial) -> tuple[str, ...]:
    """Names of the scores that people are shown: of maps of few classes also each class's own."""
    every, main = (tuple(of(trial.predictions[0])) for of in (all_scores, scores_of))
    return every if len(every) - len(main) <= _FEW else main


def told_comparison(row: Row, score: str) -> Row:
    """A row of comparisons for people: the difference with its interval in one cell."""
    name = f"{score}, difference"
    rest = {k: v for k, v in row.items() if not k.startswith(name)}
    p = {k: rest.pop(k) for k in ("p", "p (Holm)")}
    return {**rest, name: str(interval_in(row, name)), **p}


def interval_in(row: Row, name: str) -> Interval:
    """A score of a row of results."""
    return Interval(value=row[name], low=row[f"{name} low"], high=row[f"{name} high"])


def _lead(trial: Trial, rows: Sequence[Row]) -> str:
    inputs = list(dict.fromkeys(r["inputs"] for r in rows))
    kind = trial.predictions[0].kind
    return f"{kind}, {rows[0]['test chips']} test chips, inputs: {'; '.join(inputs)}"


def _curves(
    trials: Sequence[Trial], rows: Sequence[Row], score: str
) -> Iterator[tuple[Figure, str, str]]:
    """A chart per input set and method: a line per kind of features."""
    scored = [(t, interval_in(r, score)) for t, r in zip(trials, rows, strict=True)]
    for inputs, method in dict.fromkeys((t.inputs, t.method) for t in trials):
        mine = [(t, i) for t, i in scored if (t.inputs, t.method) == (inputs, method)]
        lines = [
            line_of(features, [(t.percent, i) for t, i in mine if t.features == features])
            for features in dict.fromkeys(t.features for t, _ in mine)
        ]
        title = f"{method}, {inputs}"
        yield fraction_figure(lines, title=title, score=score), "", f"{score}, {title}"


def line_of(label: str, points: Sequence[tuple[float, Interval]]) -> Line:
    """Scores by label fraction as a line of a chart."""
    ordered = sorted(points, key=lambda point: point[0])
    percents, scores = zip(*ordered, strict=True)
    return Line(label=label, percents=percents, scores=scores)


def _card(out: Path, model: MultiMAE, source: Source, trials: Sequence[Trial]) -> Trial:
    """The card of the model's features with the most labels; of several, the last method."""
    own = [t for t in trials if t.features == trials[0].features and t.inputs == trials[0].inputs]
    best = max(reversed(own), key=lambda t: t.percent)
    others = [
        (t.features, told)
        for t in trials
        if t is not best
        and isinstance(told := t.predictions[0], Predictions)
        and (t.inputs, t.method, t.percent) == (best.inputs, best.method, best.percent)
    ]
    encoder = sum(
        p.numel() for n, p in model.named_parameters() if not n.startswith("decoder")
    )  # fmt: skip
    told = best.predictions[0]
    assert isinstance(told, Predictions)
    card(
        told,
        out,
        title=f"Frozen features on {source.name}: {best.method} probe",
        baselines=others,
        source=source,
        cost=Cost(parameters=encoder, seconds=best.seconds, chips=len(told)),
    )
    return best


def csv_bytes(rows: Sequence[Row]) -> bytes:
    """Rows as CSV: a column per key of the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet_bytes(rows: Sequence[Row]) -> bytes:
    """Rows of results as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = io.BytesIO()
    # One type per column: with several seeds there are several chosen values.
    pq.write_table(pa.Table.from_pylist([{**r, "chosen": str(r["chosen"])} for r in rows]), data)
    return data.getvalue()
