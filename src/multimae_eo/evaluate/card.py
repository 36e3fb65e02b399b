"""The card of a model on a data set: a page and a Markdown file from predictions alone.

Scores with intervals beside baselines, per class, calibration, pictures, cost. Which model, and how
it was trained, is the caller's to say: probes use it, and so can anything that predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multimae_eo.evaluate.examples import example_figure
from multimae_eo.files import write_file
from multimae_eo.metrics.intervals import score_interval
from multimae_eo.metrics.task_metrics import (
    Predictions,
    class_scores,
    confusion,
    reliability_of,
    scores_of,
)
from multimae_eo.reports.charts import (
    class_figure,
    confusion_figure,
    reliability_figure,
    scatter_figure,
)
from multimae_eo.reports.html import Report, show
from multimae_eo.sources.base import Source

EXAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What predicting costs: parameters that were used, and seconds for so many chips."""

    parameters: int
    seconds: float
    chips: int

    @property
    def facts(self) -> dict[str, object]:
        """Numbers by name."""
        speed = self.chips / self.seconds if self.seconds > 0 else None
        return {"parameters": self.parameters, "seconds": self.seconds, "chips/s": speed}


def card(
    predictions: Predictions,
    out: Path,
    *,
    title: str,
    baselines: Sequence[tuple[str, Predictions]] = (),
    source: Source | None = None,
    cost: Cost | None = None,
    seed: int = 0,
) -> Path:
    """Write ``card.md`` and ``report.html`` into ``out``; the path of the page.

    ``baselines``: others' predictions of the same chips, by name. ``source``: where pictures of the
    chips come from. Intervals are BCa, 95 %, over chips. Raises OutputError, and DataError where
    ``source`` lacks a chip.
    """
    rows = [
        _score_row(name, told, seed) for name, told in [("this model", predictions), *baselines]
    ]
    classes = [] if predictions.kind == "regression" else class_scores(predictions)
    page = Report(title, f"{len(predictions)} test chips, {predictions.kind}.")
    page.facts({**_headline(predictions), **(cost.facts if cost else {})})
    page.heading("Scores").table(rows, "Brackets: 95 % bootstrap intervals (BCa) over chips.")
    _add_details(page, predictions, classes)
    if source is not None:
        page.heading("Predictions")
        count = EXAMPLES // 2 if predictions.guess.ndim > 2 else EXAMPLES
        page.picture(
            example_figure(predictions, source, count=count),
            "The best and the worst predicted chips, half each. "
            + (
                "The best are of chips that show several classes, where there are any."
                if predictions.kind == "segmentation"
                else "Where several are equally right or wrong: those that the model was surest of."
            ),
            "Example predictions",
        )
    write_file(out / "card.md", _markdown(title, rows, classes, predictions, cost).encode())
    return page.write(out / "report.html")


def markdown_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows as lines of a Markdown table: a column per key of the first."""
    if not rows:
        return []
    columns = list(rows[0])

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    body = [line([show(row.get(c)) for c in columns]) for row in rows]
    return [line(columns), "|" + "---|" * len(columns), *body]


def _headline(predictions: Predictions) -> dict[str, object]:
    sure = reliability_of(predictions)
    return {} if sure is None else {"calibration error": sure.error}


def _score_row(name: str, told: Predictions, seed: int) -> dict[str, Any]:
    intervals = {
        score: str(score_interval(weighted, len(told), method="bca", seed=seed))
        for score, weighted in scores_of(told).items()
    }
    return {"predicted by": name, **intervals}


def _add_details(page: Report, predictions: Predictions, classes: list[dict[str, Any]]) -> None:
    if predictions.kind == "regression":
        page.heading("Values").picture(scatter_figure(predictions), "", "Predicted against true")
        return
    score = {"segmentation": "IoU", "multilabel": "average precision"}.get(predictions.kind, "F1")
    page.heading("Classes")
    page.table(classes, "A dash: neither true nor guessed anywhere.")
    pictures = [(class_figure([(r["class"], r[score]) for r in classes], score=score), "", score)]
    sure = reliability_of(predictions)
    if sure is not None:
        pictures.append(
            (reliability_figure(sure), "On the dashed line, confidence is honest.", "Reliability")
        )
    page.gallery(pictures)
    if predictions.kind != "multilabel":
        names = [str(r["class"]) for r in classes]
        page.picture(
            confusion_figure(confusion(predictions), names),
            "Colours: shares of the true class. Numbers: "
            + ("pixels." if predictions.kind == "segmentation" else "chips."),
            "Confusion matrix",
        )


def _markdown(
    title: str,
    rows: list[dict[str, Any]],
    classes: list[dict[str, Any]],
    predictions: Predictions,
    cost: Cost | None,
) -> str:
    lines = [f"# {title}", "", f"{len(predictions)} test chips, {predictions.kind}.", ""]
    lines += markdown_table(rows)
    lines += ["", "Brackets: 95 % bootstrap intervals (BCa) over chips."]
    if classes:
        lines += ["", *markdown_table(classes)]
    facts = {**_headline(predictions), **(cost.facts if cost else {})}
    if facts:
        lines += ["", "; ".join(f"{k}: {show(v)}" for k, v in facts.items()) + "."]
    return "\n".join(lines) + "\n"
