"""Data sets and partitions of GEO-Bench and GEO-Bench-2: probes and fine-tuning in one table.

Every pair of data set and partition is a small study in a folder of its own, resumed cell by cell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.evaluation.benchmark_page import write_benchmark
from multimae_eo.evaluation.geobench_score import Normaliser, aggregate, load_normaliser
from multimae_eo.evaluation.geobench_suites import SUITES, BenchmarkSuite, SuiteName
from multimae_eo.evaluation.study import (
    StudyPlan,
    Transfer,
    claim_study,
    default_inputs,
    set_trials,
)
from multimae_eo.evaluation.trials import Trial
from multimae_eo.files import single_writer
from multimae_eo.metrics.task_metrics import values_of
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.reports.charts import FractionPoint
from multimae_eo.reports.tables import interval_in
from multimae_eo.sources.geobench.bands import Metric

Row = dict[str, Any]
METRICS: dict[Metric, str] = {"accuracy": "accuracy", "f1": "micro F1", "miou": "mIoU"}
"""What our tables call the benchmark's metrics."""

_PARTITION = re.compile(r"(?P<share>\d+\.\d+)x_train")


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """What is run: data sets ("all": those in ``root``), partitions, and how.

    ``plan_of``: the plan of a study, with some more options of the recipe. ``suite_name``: of
    SUITES.
    """

    suite_name: SuiteName = "geobench"
    root: Path
    datasets: tuple[str, ...]
    partitions: tuple[str, ...]
    plan_of: Callable[[Sequence[str]], StudyPlan]

    @property
    def suite(self) -> BenchmarkSuite:
        """The benchmark; ConfigError for an unknown one."""
        if self.suite_name not in SUITES:
            raise ConfigError(
                f"no benchmark {self.suite_name!r}; {did_you_mean(self.suite_name, SUITES)}"
            )
        return SUITES[self.suite_name]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A trial on a data set's partition, of which ``percent`` of the training chips are used."""

    dataset: str
    partition: str
    percent: float
    metric: str
    trial: Trial

    @property
    def configuration(self) -> str:
        """Kind of features and method, in words."""
        return f"{self.trial.features}, {self.trial.method}"

    @property
    def by_seed(self) -> list[float]:
        """The benchmark's metric, one per seed."""
        return [values_of(p)[self.metric] for p in self.trial.predictions]

    def row(self, seed: int) -> Row:
        """Its score with a 95 % interval over seeds and chips."""
        row = self.trial.row(seed)
        kept = ("features", "method", "train chips", "test chips", "seeds", "chosen")
        return {
            "data set": self.dataset,
            "partition": self.partition,
            "inputs": row["inputs"],
            **{name: row[name] for name in kept},
            "metric": self.metric,
            "score": row[self.metric],
            "score low": row[f"{self.metric} low"],
            "score high": row[f"{self.metric} high"],
        }


@single_writer()
def benchmark(
    model: MultiMAE, runs: BenchmarkPlan, out: Path, *, digest: str = ""
) -> tuple[list[Row], list[Row]]:
    """Run what is not finished; rows of scores, and rows of aggregates by configuration.

    ``out`` receives ``results.parquet``, ``.csv`` and ``.md``, ``aggregate.csv``, ``report.html``,
    and a folder per data set and partition. ``digest``: the model's hash, for the record. A model
    that knows none of a data set's modalities is adapted to them, as for fine-tuning.

    Raises ConfigError for unknown data sets and partitions, or another run in ``out``, and what the
    reader, probes and fine-tuning raise.
    """
    names = _datasets(runs)
    plan = runs.plan_of(["--task=classification"])
    scored = [
        result
        for name in names
        for partition in runs.partitions
        for result in _run(model, runs, (name, partition), out, digest)
    ]
    rows = [result.row(plan.seed) for result in scored]
    totals = _aggregates(runs.suite, scored, _normaliser(runs.root), plan.seed)
    points = [
        FractionPoint(
            chart=s.dataset,
            line=s.configuration,
            percent=s.percent,
            score=interval_in(row, "score"),
            metric=s.metric,
        )
        for s, row in zip(scored, rows, strict=True)
    ]
    write_benchmark(out, runs.suite.title, points, rows, totals)
    return rows, totals


def _datasets(runs: BenchmarkPlan) -> list[str]:
    suite = runs.suite
    if runs.datasets != ("all",):
        return [suite.find(name).name for name in runs.datasets]
    here = [name for name in suite.datasets if suite.paths(runs.root, name)]
    if not here:
        raise ConfigError(f"{runs.root}: none of {suite.title}'s data sets is there")
    return here


def _run(
    model: MultiMAE, runs: BenchmarkPlan, which: tuple[str, str], out: Path, digest: str
) -> list[Scored]:
    name, partition = which
    data = runs.suite.datasets[name]
    source = runs.suite.open_dataset(runs.root, name, partition)
    task = "segmentation" if data.label == "map" else "classification"
    # A head for maps is of no use to labels of whole chips.
    head = [] if data.label == "map" else ["--head.name=linear"]
    plan = runs.plan_of([f"--task={task}", *head])
    transfer = Transfer(
        model=model, source=source, digest=digest, spec=f"{name}?partition={partition}"
    )
    folder = out / name / partition
    plan = claim_study(transfer, plan, folder)
    inputs = plan.make(()).inputs or default_inputs(transfer)
    trials = set_trials(transfer, plan, folder, label="+".join(inputs), inputs=inputs)
    match = _PARTITION.fullmatch(partition)
    return [
        Scored(
            dataset=name,
            partition=partition,
            percent=100 * float(match["share"]) if match else 100.0,
            metric=METRICS[data.metric],
            trial=trial,
        )
        for trial in trials
    ]


def _normaliser(root: Path) -> Normaliser:
    """The spans of all benchmarks in ``root``; empty where there is no file."""
    spans: dict[str, tuple[float, float]] = {}
    for path in sorted({*root.glob("normalizer.json"), *root.glob("*_v*/normalizer.json")}):
        spans |= load_normaliser(path)
    return spans


def _aggregates(
    suite: BenchmarkSuite, scored: Sequence[Scored], spans: Normaliser, seed: int
) -> list[Row]:
    """The aggregate by group, partition and configuration, of normalised data sets."""
    by_group: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for result in scored:
        for group, members in suite.groups.items():
            if result.dataset in spans and result.dataset in members:
                key = (group, result.partition, result.configuration)
                by_group.setdefault(key, {})[result.dataset] = result.by_seed
    rows = []
    for (group, partition, configuration), scores in by_group.items():
        total = aggregate(scores, spans, seed=seed)
        rows.append(
            {
                "suite": group,
                "partition": partition,
                "configuration": configuration,
                "data sets": len(scores),
                "aggregate": total.score,
                "aggregate low": total.low,
                "aggregate high": total.high,
                "of": len(suite.groups[group]),
            }
        )
    return rows
