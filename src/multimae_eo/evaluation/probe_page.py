"""The files and the page of a probe, and the score card of the best features."""

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
from multimae_eo.metrics.task_metrics import Predictions
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.reports.charts import fraction_charts
from multimae_eo.reports.html import Report
from multimae_eo.reports.score_card import Cost, card
from multimae_eo.reports.tables import (
    Row,
    display_comparison,
    display_row,
    write_csv,
    write_markdown,
    write_results,
)
from multimae_eo.sources.base import Source


def write_probe(
    out: Path,
    model: MultiMAE,
    source: Source,
    *,
    trials: Sequence[Trial],
    rows: Sequence[Row],
    comparisons: Sequence[Row],
) -> None:
    """Write all of a probe's files into ``out``; ``rows``: one per trial. Raises OutputError."""
    names = shown_scores(trials[0])
    shown = [display_row(row, names) for row in rows]
    tested = [display_comparison(row, names[0]) for row in comparisons]
    write_results(out, rows)
    write_csv(out / "comparisons.csv", comparisons)
    chips = f"Test chips: {rows[0]['test chips']}. {INTERVALS}"
    write_markdown(out / "results.md", [shown, chips, tested, TESTED])
    best = _write_card(out / "card", model, source, trials)
    several = len({t.percent for t in trials}) > 1
    points = fraction_points(
        trials,
        rows,
        chart_of=lambda trial: f"{trial.method}, {trial.inputs}",
        line_of=lambda trial: trial.features,
    )
    page = Report(f"Frozen features on {source.name}", _lead(trials[0], rows))
    page.heading(f"{names[0]} by label fraction" if several else names[0])
    page.gallery(fraction_charts(points))
    page.heading("Scores on the test split").table(shown, INTERVALS)
    page.heading("Differences").table(tested, TESTED)
    page.text(
        "The value chosen is the number of neighbours or the strength of regularisation, chosen on "
        f"the validation split. Details of {best.features} features ({best.method}, {best.inputs}, "
        f"{best.percent:g} % of the labels): card/report.html."
    )
    page.write(out / "report.html")


def _lead(trial: Trial, rows: Sequence[Row]) -> str:
    inputs = "; ".join(dict.fromkeys(str(r["inputs"]) for r in rows))
    kind = trial.predictions[0].kind
    return f"{kind}, {rows[0]['test chips']} test chips, inputs: {inputs}"


def _write_card(out: Path, model: MultiMAE, source: Source, trials: Sequence[Trial]) -> Trial:
    """Write the card of the model's features with the most labels; of several, the last method."""
    candidates = [
        t for t in trials if t.features == trials[0].features and t.inputs == trials[0].inputs
    ]
    best = max(reversed(candidates), key=lambda t: t.percent)
    others = [
        (t.features, predictions)
        for t in trials
        if t is not best
        and isinstance(predictions := t.predictions[0], Predictions)
        and (t.inputs, t.method, t.percent) == (best.inputs, best.method, best.percent)
    ]
    encoder = [p for name, p in model.named_parameters() if not name.startswith("decoder")]
    predictions = best.predictions[0]
    assert isinstance(predictions, Predictions)
    card(
        predictions,
        out,
        title=f"Frozen features on {source.name}: {best.method} probe",
        baselines=others,
        source=source,
        cost=Cost(
            parameters=sum(p.numel() for p in encoder),
            seconds=best.seconds,
            chips=len(predictions),
        ),
    )
    return best
