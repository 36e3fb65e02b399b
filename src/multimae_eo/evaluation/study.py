"""A study of transfer: label fractions, seeds, input sets and small grids, as one command.

Fine-tuning of the pre-trained encoder is compared with the same network from random initialisation
and with probes of frozen features (pre-trained, random, and statistics of the pixels), on the same
chips. Points of a grid are chosen on the validation split with the first seed, never on test chips.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.evaluation.fractions import Strata
from multimae_eo.evaluation.predictions import evaluate, predict_split
from multimae_eo.evaluation.probes import (
    METHODS,
    ProbeOptions,
    draw_fractions,
    frozen_trials,
    splits_of,
)
from multimae_eo.evaluation.study_page import write_study
from multimae_eo.evaluation.trials import (
    FINETUNING,
    FORMER_NAMES,
    PRETRAINED,
    RANDOM_INITIALISATION,
    Trial,
    TrialFiles,
    comparisons,
    merged,
    slug,
)
from multimae_eo.files import single_writer
from multimae_eo.inference.computing import computing, on_device
from multimae_eo.metrics.task_metrics import MapCounts, Predictions, values_of
from multimae_eo.network.adapt import adapt
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.sources.base import Indices, Source
from multimae_eo.train.data import chip_sizes, train_statistics
from multimae_eo.train.finetune import finetune, shown_sizes
from multimae_eo.train.finetune_recipe import FinetuneRecipe, former_defaults
from multimae_eo.train.resumed import as_begun, recorded
from multimae_eo.train.run import claim_run

STUDY_METHODS = ("finetune", "random-init", *METHODS)
"""Methods of a study; the last two are probes of frozen features, with their baselines."""

_MAP_AXES = 2

Grid = Mapping[str, Sequence[str]]
Make = Callable[[Sequence[str]], FinetuneRecipe]
"""A recipe from options such as ``--optim.lr=1e-4``."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """Options of a study.

    ``make``: the recipe of fine-tuning with some more options. ``probing``: features, label
    fractions (%), and how many seeds. ``methods``: of STUDY_METHODS. ``grid``: values to try, by
    option of the recipe. ``steps``: optimiser steps at least; small fractions get more epochs.
    ``seed``: the first one. ``device``, ``precision``: of inference, by frozen encoders and by
    fine-tuned models; ``auto`` follows the recipe's accelerator.
    """

    make: Make
    probing: ProbeOptions
    methods: tuple[str, ...] = STUDY_METHODS
    grid: Grid | None = None
    steps: int = 0
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        methods = tuple(FORMER_NAMES.get(m, m) for m in self.methods)
        object.__setattr__(self, "methods", methods)
        for method in methods:
            if method not in STUDY_METHODS:
                raise ConfigError(f"methods: no {method!r}; {did_you_mean(method, STUDY_METHODS)}")
        if self.steps < 0:
            raise ConfigError(f"steps: expected ≥ 0, got {self.steps}")

    def points(self) -> list[tuple[str, ...]]:
        """All points of the grid, as options of the recipe."""
        grid = self.grid or {}
        return [
            tuple(f"--{k}={v}" for k, v in zip(grid, values, strict=True))
            for values in product(*grid.values())
        ]


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A model, the data, and how they are called in records."""

    model: MultiMAE
    source: Source
    digest: str = ""
    spec: str = ""


def claim_study(transfer: Transfer, plan: StudyPlan, out: Path) -> StudyPlan:
    """Make ``out`` this study's folder; ConfigError where it holds another.

    Returns the plan, of a resumed study with the defaults that it began with.
    """
    before = recorded(out)
    began = before.get("recipe") if isinstance(before, dict) else None

    def make(options: Sequence[str]) -> FinetuneRecipe:
        return as_begun(plan.make(options), began)

    record = {"model": transfer.digest, "seed": plan.seed, "steps": plan.steps}
    record["recipe"] = make(()).to_plain()
    defaults = {"recipe": former_defaults()}
    claim_run(out, record, transfer.source, transfer.spec, defaults=defaults)
    return replace(plan, make=make)


@single_writer()
def study(
    transfer: Transfer,
    plan: StudyPlan,
    out: Path,
    *,
    inputs: Mapping[str, Sequence[str]] | None = None,
) -> list[dict[str, object]]:
    """Run what of the study is not finished yet, and write its tables, plots and pages to ``out``.

    ``inputs``: sets of modalities by name (default: all that model and data share). ``out``
    receives ``results.parquet``, ``.csv`` and ``.md``, ``comparisons.csv``, ``grid.csv``,
    ``report.html``, ``card/`` and ``models/`` of the first input set with the most labels, and
    ``cells/``, the finished trials. Returns the rows of results.

    Raises ConfigError where ``out`` holds another study or options do not fit, and what probes and
    fine-tuning raise.
    """
    plan = claim_study(transfer, plan, out)
    sets = inputs or {"all": default_inputs(transfer)}
    trials = [
        trial
        for label, names in sets.items()
        for trial in set_trials(transfer, plan, out, label=label, inputs=names)
    ]
    rows = [trial.row(plan.seed) for trial in trials]
    tried = [row for label in sets for row in _grid_rows(plan, label, TrialFiles(out / "cells"))]
    write_study(
        out,
        transfer.source.name,
        trials=trials,
        rows=rows,
        comparisons=comparisons(trials, plan.seed),
        grid=tried,
    )
    _write_card(transfer, plan, trials, out, sets)
    return rows


def default_inputs(transfer: Transfer) -> list[str]:
    """The modalities that model and data share; all of the data's where there is none."""
    shared = [n for n in transfer.source.modalities if n in transfer.model.modalities]
    return shared or list(transfer.source.modalities)


def set_trials(
    transfer: Transfer, plan: StudyPlan, out: Path, *, label: str, inputs: Sequence[str]
) -> Iterator[Trial]:
    """All trials on one set of inputs, called ``label`` in tables; finished ones are read."""
    names = list(inputs)
    transfer.source.modalities.select(names)
    cells = TrialFiles(out / "cells")
    tuned = [m for m in ("finetune", "random-init") if m in plan.methods]
    if tuned:
        fractions = _fractions(transfer.source, names, plan)
        for method in tuned:
            for percent, drawn in fractions.items():
                yield _tuned(
                    _Case(transfer, plan, label, names, method, percent), drawn, cells, out
                )
    probed = _probes(transfer.source, names, plan)
    if probed:
        frozen = _frozen(transfer, plan, names, out)
        device, precision = on_device(frozen, _device(plan), plan.precision)
        with computing(device, precision):
            yield from frozen_trials(
                frozen,
                transfer.source,
                label=label,
                names=names,
                methods=probed,
                seed=plan.seed,
                options=plan.probing,
                cells=cells,
            )


def _probes(source: Source, names: list[str], plan: StudyPlan) -> list[str]:
    """The probes that the labels have: maps have no kNN, and maps of values none at all."""
    label = np.asarray(source.read(int(source.split("train")[0]), names).label)
    if label.ndim == _MAP_AXES:
        offered = METHODS[1:] if label.dtype.kind in "biu" else ()
        return [m for m in offered if m in plan.methods]
    return [m for m in METHODS if m in plan.methods]


@dataclass(frozen=True)
class _Case:
    """One way of fine-tuning, on one set of inputs, with one label fraction."""

    transfer: Transfer
    plan: StudyPlan
    label: str
    names: list[str]
    method: str
    percent: float

    @property
    def features(self) -> str:
        return PRETRAINED if self.method == "finetune" else RANDOM_INITIALISATION


def _fractions(source: Source, names: list[str], plan: StudyPlan) -> dict[float, list[Indices]]:
    """Training chips of each label fraction, one draw per seed: those that probes take, too."""
    train = splits_of(source, plan.seed)["train"]
    labels = [source.read(int(i), names).label for i in train]
    labelled = [i for i, label in enumerate(labels) if label is not None]
    strata = Strata.of([labels[i] for i in labelled], len(source.class_names) or _classes(labels))
    drawn = draw_fractions(strata, plan.seed, plan.probing)
    chips = train[labelled]
    return {p: [chips[d[p]] for d in drawn] for p in plan.probing.fractions}


def _classes(labels: Sequence[npt.ArrayLike | None]) -> int:
    most = [int(np.max(x)) for x in labels if x is not None and np.asarray(x).dtype.kind in "iu"]
    return max(most, default=0) + 1


def _tuned(case: _Case, drawn: Sequence[Indices], cells: TrialFiles, out: Path) -> Trial:
    """Choose a point of the grid with the first seed, then run it with the others."""
    points = case.plan.points()
    first = [_cell(case, 0, drawn[0], point, cells=cells, out=out) for point in points]
    # The first of equals: grids are written with the usual value first.
    best = max(range(len(points)), key=lambda i: first[i].validation[0])
    rest = [
        _cell(case, i, chips, points[best], cells=cells, out=out)
        for i, chips in enumerate(drawn[1:], start=1)
    ]
    return merged([first[best], *rest])


def _cell(
    case: _Case, draw: int, chips: Indices, point: tuple[str, ...], *, cells: TrialFiles, out: Path
) -> Trial:
    """One fine-tuning run on the ``draw``-th draw of chips, read where it is finished."""
    seed = case.plan.seed + draw
    name = _cell_name(case.label, case.method, case.percent, seed, point)
    finished = cells.get(*name)
    if finished is not None:
        return finished
    sys.stderr.write(f"{' '.join(name)}\n")
    source, run = case.transfer.source, out / "runs" / slug(*name)
    recipe = _recipe(case, len(chips), (f"--run.seed={seed}", *point))
    splits = splits_of(source, case.plan.seed)
    model = case.transfer.model
    done = finetune(
        recipe,
        source,
        run,
        model=model if case.method == "finetune" else model.reinitialised(seed),
        init={"model": case.features, "hash": case.transfer.digest},
        spec=case.transfer.spec,
        splits=(chips, splits["val"]),
    )
    predictor = Predictor.from_pretrained(done.model)
    device, precision = on_device(predictor, _device(case.plan), case.plan.precision)
    with computing(device, precision):
        val = predict_split(predictor, source, split=splits["val"], inputs=case.names)
        test = predict_split(predictor, source, split=splits["test"], inputs=case.names)
    trial = Trial(
        inputs=case.label,
        features=case.features,
        method=FINETUNING,
        percent=case.percent,
        train_chips=len(chips),
        chosen=(_point_text(point),),
        predictions=(_kept(test.predictions),),
        seconds=test.seconds,
        validation=(next(iter(values_of(val.predictions).values())),),
    )
    if draw == 0 and case.percent == max(case.plan.probing.fractions):
        _keep_model(done.model, out / "models" / slug(*name))
    cells.put(trial, *name)
    shutil.rmtree(run, ignore_errors=True)
    return trial


def _recipe(case: _Case, chips: int, options: Sequence[str]) -> FinetuneRecipe:
    """The case's recipe; epochs, warm-up and validations stretched to the plan's steps."""
    recipe = case.plan.make(options)
    recipe = replace(recipe, inputs=case.names)
    if case.method == "random-init" and not any("optim.layer_decay" in o for o in options):
        # There is nothing in the lower layers to be kept.
        recipe = replace(recipe, optim=replace(recipe.optim, layer_decay=1.0))
    per_epoch = math.ceil(chips / (recipe.data.batch_size * recipe.run.accumulate))
    epochs = max(recipe.run.epochs, math.ceil(case.plan.steps / per_epoch))
    factor = epochs / recipe.run.epochs
    every = max(1, round(recipe.run.val_every * factor))
    return replace(
        recipe,
        run=replace(recipe.run, epochs=epochs, val_every=every),
        optim=replace(recipe.optim, warmup_epochs=recipe.optim.warmup_epochs * factor),
    )


def _frozen(transfer: Transfer, plan: StudyPlan, names: list[str], out: Path) -> MultiMAE:
    """The model whose features are probed: adapted where an input is not one of its own."""
    inputs = transfer.source.modalities.select(names)
    trained = transfer.model.modalities
    if all(trained.has(m) for m in inputs.values()):
        return transfer.model
    train = splits_of(transfer.source, plan.seed)["train"]
    recipe = plan.make(())
    sizes = shown_sizes(chip_sizes(transfer.source, inputs, train), recipe.data.chip)
    limit = recipe.data.statistics_chips
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return adapt(
            transfer.model,
            inputs,
            sizes,
            lambda unknown: train_statistics(
                transfer.source,
                unknown,
                train,
                limit=limit,
                kept=out / "runs" / f"{slug('statistics', *unknown)}.json",
            ),
        ).encoder.eval()


def _kept(predictions: Predictions) -> Predictions | MapCounts:
    """Of maps, their counts: a study holds hundreds of predictions at once."""
    if predictions.kind != "segmentation":
        return predictions
    return MapCounts(
        kind=predictions.kind,
        keys=predictions.keys,
        counts=predictions.counts,
        class_names=predictions.class_names,
    )


def _device(plan: StudyPlan) -> str:
    """The plan's device; where that is auto, the CPU if the recipe trains there."""
    if plan.device == "auto" and plan.make(()).run.accelerator == "cpu":
        return "cpu"
    return plan.device


def _keep_model(model: Path, kept: Path) -> None:
    """Move a model's folder; one that an interrupted study left is replaced."""
    shutil.rmtree(kept, ignore_errors=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(model, kept)


def _grid_rows(plan: StudyPlan, label: str, cells: TrialFiles) -> list[dict[str, object]]:
    """Validation scores of the points of a grid, with the first seed."""
    rows = []
    for method, percent, point in product(plan.methods, plan.probing.fractions, plan.points()):
        trial = cells.get(*_cell_name(label, method, percent, plan.seed, point))
        if trial is not None and point:
            score = {f"validation {trial.score}": trial.validation[0]}
            named = {"inputs": label, "features": trial.features, "labels %": percent}
            rows.append({**named, "point": trial.chosen[0], **score})
    return rows


def _write_card(
    transfer: Transfer,
    plan: StudyPlan,
    trials: Sequence[Trial],
    out: Path,
    sets: Mapping[str, Sequence[str]],
) -> None:
    """The card of the model that was fine-tuned on the first inputs with the most labels."""
    percent = max(plan.probing.fractions)
    tuned = [t for t in trials if t.method == FINETUNING and t.features == PRETRAINED]
    best = next((t for t in tuned if t.percent == percent), None)
    if best is None or (out / "card" / "report.html").exists():
        return
    chosen = str(best.chosen[0])
    point = next(p for p in plan.points() if _point_text(p) == chosen)
    name = _cell_name(best.inputs, "finetune", percent, plan.seed, point)
    path = out / "models" / slug(*name)
    if path.is_dir():
        model = Predictor.from_pretrained(path)
        evaluate(model, transfer.source, inputs=sets[best.inputs], out=out / "card", seed=plan.seed)


def _cell_name(
    label: str, method: str, percent: float, seed: int, point: Sequence[str]
) -> tuple[str, ...]:
    return (label, method, f"{percent:g}", f"seed {seed}", *point)


def _point_text(point: Sequence[str]) -> str:
    return " ".join(option.removeprefix("--") for option in point) or "–"
