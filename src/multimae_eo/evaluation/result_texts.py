"""What the pages of probes, studies and benchmarks share: notes, shown scores, points of charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from multimae_eo.evaluation.trials import Trial
from multimae_eo.metrics.task_metrics import all_scores, scores_of
from multimae_eo.reports.charts import FractionPoint
from multimae_eo.reports.tables import Row, interval_in

_FEW = 3
"""Classes of maps whose scores fit into a table beside the others."""

INTERVALS = (
    "Brackets: 95 % bootstrap intervals over test chips and, where there are several, over seeds."
)
TESTED = (
    "Differences on the same chips, first minus second, with 95 % intervals. p: permutation test "
    "on the chips' outcomes; Holm: corrected for the number of rows."
)


def shown_scores(trial: Trial) -> tuple[str, ...]:
    """Names of the scores in tables for people; of maps with few classes also each class's IoU."""
    every, main = (tuple(of(trial.predictions[0])) for of in (all_scores, scores_of))
    return every if len(every) - len(main) <= _FEW else main


def fraction_points(
    trials: Sequence[Trial],
    rows: Sequence[Row],
    *,
    chart_of: Callable[[Trial], str],
    line_of: Callable[[Trial], str],
) -> list[FractionPoint]:
    """The first score of each trial as a point of a chart; ``rows``: their results."""
    score = trials[0].score
    return [
        FractionPoint(
            chart=chart_of(trial),
            line=line_of(trial),
            percent=trial.percent,
            score=interval_in(row, score),
            metric=score,
        )
        for trial, row in zip(trials, rows, strict=True)
    ]
