"""kNN and linear probes on frozen features, beside baselines, with confidence intervals.

The same models predict classes, several labels, maps and values, from features that are computed
once per set of inputs. Hyper-parameters (k, the strength of regularisation) are chosen on the
validation split only; test chips are predicted once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.evaluation.baselines import image_statistics, pixel_values
from multimae_eo.evaluation.fractions import Strata, label_fractions
from multimae_eo.evaluation.labelled import ProbeTarget, take, task_of
from multimae_eo.evaluation.probe_page import write_probe
from multimae_eo.evaluation.trials import PRETRAINED, Trial, TrialFiles, comparisons
from multimae_eo.files import single_writer
from multimae_eo.inference.extraction import (
    DEFAULT_KIND,
    KINDS,
    Compute,
    FeatureKind,
    FeatureTable,
    encoder_features,
    encoder_grids,
    extract,
)
from multimae_eo.inference.input_check import check_source
from multimae_eo.inference.linear_probe import FittedProbe, linear_probes, neighbour_probes
from multimae_eo.metrics.task_metrics import Predictions, values_of
from multimae_eo.network.config import FORMER_POOLS
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sources.base import Indices, Source

NEIGHBOURS = (1, 3, 5, 10, 20)
STRENGTHS = tuple(float(c) for c in 10.0 ** np.arange(-4, 3))
METHODS = ("knn", "linear")

Inputs = Sequence[str] | Mapping[str, Sequence[str] | None] | None
Tables = dict[str, FeatureTable]


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Features, label fractions and seeds of a probe.

    ``features``: how the encoder's tokens are pooled, one of ``features.KINDS``. ``fractions``:
    label fractions in %, nested; ``seeds``: how many of each are drawn. Raises ConfigError for
    values out of range.
    """

    features: FeatureKind = DEFAULT_KIND
    fractions: tuple[float, ...] = (100.0,)
    seeds: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", FORMER_POOLS.get(self.features, self.features))
        if self.features not in KINDS:
            raise ConfigError(
                f"features: no {self.features!r}; {did_you_mean(self.features, KINDS)}"
            )
        if self.seeds < 1:
            raise ConfigError(f"seeds: expected ≥ 1, got {self.seeds}")
        if not self.fractions or not all(0 < f <= 100 for f in self.fractions):
            raise ConfigError(
                "fractions: percentages above 0 and up to 100, got "
                + (", ".join(f"{f:g}" for f in self.fractions) or "none")
            )


@single_writer()
def probe(
    model: MultiMAE,
    source: Source,
    *,
    out: Path,
    inputs: Inputs = None,
    methods: Sequence[str] | None = None,
    seed: int = 0,
    options: ProbeOptions | None = None,
) -> list[dict[str, Any]]:
    """Probe the model, a random encoder and statistics of the pixels on the same chips.

    ``inputs``: modalities (default: all of model and source), or several such sets by name.
    ``methods``: "knn", "linear" (default: those the task has; maps have no kNN).

    Writes ``results.parquet``, ``.csv`` and ``.md``, ``comparisons.csv``, ``report.html`` and, of
    the model with the most labels, ``card/`` into ``out``. Returns the rows of results: inputs,
    features, method, label fraction, the value chosen on validation, and scores on the test split.

    Raises:
        ConfigError: an unknown method or input. DataError: no labels. SplitError: no train or test
        split.
    """
    options = options or ProbeOptions()
    for method in methods or ():
        if method not in METHODS:
            raise ConfigError(f"no method {method!r}; {did_you_mean(method, METHODS)}")
    sets = _input_sets(model, source, inputs)
    names = list(dict.fromkeys(n for members in sets.values() for n in members))
    check_source(model.modalities, model.statistics, source, range(len(source)), inputs=names)
    trials = [
        trial
        for label, names in sets.items()
        for trial in frozen_trials(
            model,
            source,
            label=label,
            names=names,
            methods=methods,
            seed=seed,
            options=options,
        )
    ]
    rows = [trial.row(seed) for trial in trials]
    write_probe(out, model, source, trials=trials, rows=rows, comparisons=comparisons(trials, seed))
    return rows


def _input_sets(model: MultiMAE, source: Source, inputs: Inputs) -> dict[str, list[str]]:
    shared = [n for n in source.modalities if n in model.modalities]
    if not shared:
        raise ConfigError(
            f"{source.name} and the model share no modality: {', '.join(source.modalities)} there, "
            f"{', '.join(model.modalities)} here"
        )
    if not isinstance(inputs, Mapping):
        inputs = {", ".join(inputs or shared): inputs}
    for names in inputs.values():
        for name in names or ():
            if name not in shared:
                raise ConfigError(f"inputs: no {name!r} in both; {did_you_mean(name, shared)}")
    return {label: list(names or shared) for label, names in inputs.items()}


def frozen_trials(  # noqa: PLR0913
    model: MultiMAE,
    source: Source,
    *,
    label: str,
    names: list[str],
    methods: Sequence[str] | None,
    seed: int,
    options: ProbeOptions,
    cells: TrialFiles | None = None,
) -> Iterator[Trial]:
    """All trials on one set of inputs ``names``, called ``label`` in tables.

    ``cells``: where trials are kept, so that those that are there are not made again.
    """
    cells = cells or TrialFiles(None)
    splits = splits_of(source, seed)
    kind = _task_kind(source, splits["train"], names)
    if kind == "segmentation" and methods and "knn" in methods:
        raise ConfigError("method 'knn' is not offered for maps; valid: linear")
    methods = methods or (("linear",) if kind == "segmentation" else METHODS)
    for features, compute in _compared(
        model, names, maps=kind == "segmentation", seed=seed, options=options
    ).items():
        names_of = {
            (m, p): (label, features, options.features, m, f"{p:g}", f"{options.seeds} draws")
            for m in methods
            for p in options.fractions
        }
        finished = {key: cells.get(*name) for key, name in names_of.items()}
        if all(finished.values()):
            yield from (trial for trial in finished.values() if trial)
            continue
        tables = {s: extract(source, i, compute, modalities=names) for s, i in splits.items()}
        target = ProbeTarget.of([t.labels for t in tables.values()], source.class_names)
        subsets = _subsets(tables["train"], target, seed, options)
        for method in methods:
            for percent, chosen in subsets.items():
                fits = [_fit(method, target, tables, rows, i) for i, rows in enumerate(chosen)]
                trial = Trial(
                    inputs=label,
                    features=features,
                    method=method,
                    percent=percent,
                    train_chips=len(chosen[0]),
                    chosen=tuple(c for c, _ in fits),
                    predictions=tuple(p for _, p in fits),
                    seconds=tables["test"].seconds,
                )
                yield cells.put(trial, *names_of[method, percent])


def _task_kind(source: Source, train: Indices, names: list[str]) -> str:
    label = source.read(int(train[0]), names).label
    return "" if label is None else task_of(np.asarray(label)[None])


def _compared(
    model: MultiMAE, names: list[str], *, maps: bool, seed: int, options: ProbeOptions
) -> dict[str, Compute]:
    encoder = encoder_grids if maps else encoder_features
    baseline: tuple[str, Callable[[Sequence[str]], Compute]] = (
        ("pixel values", pixel_values) if maps else ("image statistics", image_statistics)
    )
    return {
        PRETRAINED: encoder(model, names, options.features),
        "random encoder": encoder(model.reinitialised(seed).eval(), names, options.features),
        baseline[0]: baseline[1](names),
    }


def splits_of(source: Source, seed: int) -> dict[str, Indices]:
    """Indices of train, val and test; a fifth of train serves as val where there is none."""
    indices = {"train": source.split("train"), "test": source.split("test")}
    if "val" in source.splits:
        return indices | {"val": source.split("val")}
    order = np.random.default_rng(seed).permutation(indices["train"])
    cut = max(1, len(order) // 5)
    return indices | {"val": order[:cut], "train": order[cut:]}


def _subsets(
    train: FeatureTable, target: ProbeTarget, seed: int, options: ProbeOptions
) -> dict[float, list[Indices]]:
    """Rows of each label fraction, one per seed; all of the labels can be drawn only once."""
    drawn = draw_fractions(Strata.of(train.labels, target.classes), seed, options)
    return {
        percent: [d[percent] for d in (drawn[:1] if len(rows) == len(train.keys) else drawn)]
        for percent, rows in drawn[0].items()
    }


def draw_fractions(strata: Strata, seed: int, options: ProbeOptions) -> list[dict[float, Indices]]:
    """Positions of the chips of each label fraction, one such dictionary per seed."""
    return [label_fractions(strata, options.fractions, seed=seed + i) for i in range(options.seeds)]


def _fit(
    method: str, target: ProbeTarget, tables: Tables, rows: Indices, seed: int
) -> tuple[float, Predictions]:
    """Fit on some training chips, choose on val; the value chosen and the test predictions."""
    features, targets = target.rows(take(tables["train"], rows), seed=seed)
    candidates: Iterator[tuple[float, FittedProbe]]
    if method == "knn":
        candidates = neighbour_probes(features, targets, NEIGHBOURS)
    else:
        candidates = linear_probes(features, targets, target.loss, STRENGTHS)
    best: tuple[float, float, FittedProbe] | None = None
    for value, fitted in candidates:
        score = next(iter(values_of(target.predict(fitted, tables["val"])).values()))
        # The first best: the smallest k, the strongest regularisation.
        if best is None or score > best[0]:
            best = (score, value, fitted)
    assert best is not None
    return best[1], target.predict(best[2], tables["test"])
