"""The score card of predictions: a page and a Markdown file with intervals, classes, calibration.

It takes predictions of labelled chips from any model: probes, fine-tuned models, baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from multimae_eo.reports.chip_pictures import example_figure
from multimae_eo.reports.html import Report
from multimae_eo.reports.tables import Part, Row, format_value, write_markdown
from multimae_eo.sources.base import Source

EXAMPLES = 12
BRACKETS = "Brackets: 95 % bootstrap intervals (BCa) over chips."


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
    rows = [_score_row(name, p, seed) for name, p in [("this model", predictions), *baselines]]
    classes = [] if predictions.kind == "regression" else class_scores(predictions)
    summary = f"{len(predictions)} test chips, {predictions.kind}."
    headline = {**_calibration(predictions), **(cost.facts if cost else {})}
    page = Report(title, summary)
    page.facts(headline)
    page.heading("Scores").table(rows, BRACKETS)
    _add_details(page, predictions, classes)
    if source is not None:
        page.heading("Predictions")
        count = EXAMPLES // 2 if predictions.predicted.ndim > 2 else EXAMPLES
        page.picture(
            example_figure(predictions, source, count=count),
            "The best and the worst predicted chips, half each. "
            + (
                "The best are of chips that show several classes, where there are any."
                if predictions.kind == "segmentation"
                else "Of equally good or bad ones, those predicted with the highest confidence."
            ),
            "Example predictions",
        )
    facts = "; ".join(f"{name}: {format_value(value)}" for name, value in headline.items())
    parts: list[Part] = [
        f"# {title}",
        summary,
        rows,
        BRACKETS,
        classes,
        f"{facts}." if facts else "",
    ]
    write_markdown(out / "card.md", parts)
    return page.write(out / "report.html")


def _calibration(predictions: Predictions) -> dict[str, object]:
    reliability = reliability_of(predictions)
    return {} if reliability is None else {"calibration error": reliability.error}


def _score_row(name: str, predictions: Predictions, seed: int) -> Row:
    intervals = {
        score: str(score_interval(weighted, len(predictions), method="bca", seed=seed))
        for score, weighted in scores_of(predictions).items()
    }
    return {"predicted by": name, **intervals}


def _add_details(page: Report, predictions: Predictions, classes: list[dict[str, Any]]) -> None:
    if predictions.kind == "regression":
        page.heading("Values").picture(scatter_figure(predictions), "", "Predicted against true")
        return
    score = {"segmentation": "IoU", "multilabel": "average precision"}.get(predictions.kind, "F1")
    page.heading("Classes")
    page.table(classes, "A dash: the class occurs neither in the truth nor in the predictions.")
    pictures = [(class_figure([(r["class"], r[score]) for r in classes], score=score), "", score)]
    reliability = reliability_of(predictions)
    if reliability is not None:
        pictures.append(
            (
                reliability_figure(reliability),
                "On the dashed line, confidence equals accuracy.",
                "Reliability",
            )
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
