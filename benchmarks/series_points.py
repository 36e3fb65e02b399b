"""Tables of points: a random forest on flattened values against models of series, on equal terms.

No choice sees the test split. The forest's grid is chosen on the validation split, and the forest
fitted again to training and validation points; a second forest has the dates beside the values, as
models have them. Models have one recipe for all sets. Each run of a
method leaves out a fold of the training and validation points, in whole blocks of half a degree,
and takes the weights that are best on it; so every run sees four fifths of these labels, and an
ensemble of the runs all of them. Pre-training sees training and validation points without labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import numpy.typing as npt
import series_sets

from multimae_eo import MultiMAE, Predictor
from multimae_eo.evaluation.predictions import predict_split
from multimae_eo.files import write_file
from multimae_eo.metrics.intervals import (
    Interval,
    WeightedScore,
    hierarchical_interval,
    paired_interval,
)
from multimae_eo.metrics.task_metrics import Predictions, scores_of
from multimae_eo.sample import Sample
from multimae_eo.sources.base import Indices, Source
from multimae_eo.train.finetune import finetune
from multimae_eo.train.finetune_recipe import FinetuneRecipe, parse_finetune
from multimae_eo.train.pretrain import pretrain
from multimae_eo.train.recipe import Recipe, parse_recipe

Array = npt.NDArray[Any]

ENCODER = {"width": 64, "depth": 3, "heads": 4, "mlp_ratio": 2.0}
RUN = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}
METHODS = ("forest", "forest with dates", "pre-trained", "random", "probe")
FORESTS = [(leaf, share) for leaf in (1, 3, 8) for share in ("sqrt", 0.3)]
FORESTS_OF = {"forest": False, "forest with dates": True}
FOLDS, BATCH = 5, 64
MOST_TOKENS, SHOWN = 32, 24
_SAME_PLACE = 1e-3
"""Degrees: points nearer than about 100 m are one location."""


# The forest -----------------------------------------------------------------------------------


def flat(source: Source, indices: Indices) -> tuple[Array, Array]:
    """Values of all dates and bands side by side, and labels.

    What is lacking is interpolated linearly between a point's dates, and NaN where none has it.
    """
    rows, labels = [], []
    for index in indices.tolist():
        sample, parts = source.read(index), []
        for name, pixels in sample.pixels.items():
            seen = np.broadcast_to(sample.validity(name), pixels.shape)
            values = np.where(seen, pixels, np.nan)[:, :, 0, 0]
            parts.append(_filled(values, sample.dates[name]).ravel())
        rows.append(np.concatenate(parts))
        labels.append(sample.label)
    return _padded(rows), np.array(labels)


def calendar(source: Source, indices: Indices) -> Array:
    """What models know of dates: sine and cosine of the first one's season, and days since it."""
    rows = []
    for index in indices.tolist():
        days = np.unique(np.concatenate(list(source.read(index).dates.values())))
        angle = 2 * np.pi * days[0] / 365.2425
        rows.append(np.concatenate([[np.sin(angle), np.cos(angle)], days - days[0]]))
    return _padded(rows)


def _padded(rows: Sequence[Array]) -> Array:
    width = max(len(r) for r in rows)
    return np.array([np.pad(r, (0, width - len(r)), constant_values=np.nan) for r in rows])


def _filled(values: Array, days: Array) -> Array:
    """Values (T, C) of a point without gaps, as far as a band has any value."""
    values = values.copy()
    for band in values.T:
        seen = np.isfinite(band)
        if seen.any() and not seen.all():
            band[~seen] = np.interp(days[~seen], days[seen], band[seen])
    return values


def forest(source: Source, seeds: int, trees: int = 300, *, dates: bool = False) -> dict[str, Any]:
    """Outputs on the test split, a list for each seed, of the forest that validation chose.

    ``dates``: the calendar is given to it beside the values, as models have it.
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    numeric = not source.class_names
    kind = RandomForestRegressor if numeric else RandomForestClassifier
    labelled = np.concatenate([source.split("train"), source.split("val")])
    parts = [source.split("train"), source.split("val"), labelled, source.split("test")]
    (x, y), (vx, vy), (lx, ly), (tx, _) = (flat(source, i) for i in parts)
    if dates:
        days = [calendar(source, i) for i in parts]
        varying = np.ptp(days[0], axis=0) > 0
        x, vx, lx, tx = (
            np.hstack([v, d[:, varying]]) for v, d in zip((x, vx, lx, tx), days, strict=True)
        )
    best: tuple[float, dict[str, Any]] | None = None
    for leaf, share in FORESTS:
        options = {"min_samples_leaf": leaf, "max_features": share}
        fitted = kind(trees // 3, random_state=0, **options).fit(x, y)
        right = fitted.predict(vx) == vy
        score = -np.square(fitted.predict(vx) - vy).mean() if numeric else right.mean()
        if best is None or score > best[0]:
            best = (float(score), options)
    assert best is not None
    outputs = []
    for seed in range(seeds):
        fitted = kind(trees, random_state=seed, **best[1]).fit(lx, ly)
        outputs.append(fitted.predict(tx) if numeric else _every_class(fitted, tx, source))
    return {"chosen": {**best[1], "validation": best[0]}, "outputs": [o.tolist() for o in outputs]}


def _every_class(fitted: Any, x: Array, source: Source) -> Array:
    """Probabilities of all classes of the source, also those that no training point has."""
    probability = np.zeros((len(x), len(source.class_names)))
    probability[:, fitted.classes_] = fitted.predict_proba(x)
    return probability


# Models ---------------------------------------------------------------------------------------


class Unlabelled(Source):
    """The training and validation points of a source, all to pre-train on; the others are left."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name, self.modalities, self.keys = source.name, source.modalities, source.keys
        self.split_of = ["train" if s == "val" else s for s in source.split_of]

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """A point without its label."""
        return replace(self.source.read(index, names), label=None)


def token_count(source: Source) -> int:
    """Tokens of the training point that has most."""
    counts = [source.read(int(i)).dates for i in source.split("train")]
    return max(sum(len(d) for d in dates.values()) for dates in counts)


def tuning(source: Source, points: int, steps: int) -> FinetuneRecipe:
    """The recipe of all sets: about ``steps`` steps on ``points`` points."""
    epochs = int(np.clip(steps // max(1, points // BATCH), 20, 100)) if steps >= 20 else 1
    shown = SHOWN if token_count(source) > MOST_TOKENS else None
    return parse_finetune({
        "task": "classification" if source.class_names else "regression",
        "inputs": list(source.modalities),
        "model": {"encoder": ENCODER, "patch": 1},
        "head": {"dates": "attention"},
        "augment": {"drop_dates": 0.2, "num_visible_tokens": shown},
        "optim": {"layer_decay": 1.0, "drop_path": 0.1, "warmup_epochs": epochs / 10},
        "data": {"batch_size": BATCH},
        "run": {**RUN, "epochs": epochs, "val_every": max(1, epochs // 10)},
    })  # fmt: skip


def pretraining(source: Source, points: int, steps: int) -> Recipe:
    """The recipe of pre-training of all sets: half of the tokens are visible, at most 24."""
    epochs = max(1, steps // max(1, points // BATCH))
    visible = min(SHOWN, max(2, token_count(source) // 2))
    return parse_recipe({
        "model": {"encoder": ENCODER, "patch": 1, "decoder": {"width": 32, "heads": 4}},
        "masking": {"num_visible_tokens": visible, "series": "mixed"},
        "optim": {"lr": 8e-3, "warmup_epochs": epochs / 10},
        "data": {"chip": None, "batch_size": BATCH},
        "run": {**RUN, "epochs": epochs, "val_every": epochs, "pictures_every": epochs},
    })  # fmt: skip


def pretrained(source: Source, out: Path, steps: int) -> MultiMAE:
    """The model pre-trained on the points of a source, once for all its runs."""
    done = out / "pre-training" / "model"
    if not done.exists():
        points = sum(s in ("train", "val") for s in source.split_of)
        recipe = pretraining(source, points, steps)
        pretrain(recipe, Unlabelled(source), done.parent)
    return MultiMAE.from_pretrained(done)


def fold_of(source: Source, fold: int) -> tuple[Indices, Indices]:
    """Points to train on, and the fold that is left out to choose by.

    Places without which a class would have no training point are never left out.
    """
    labelled = np.concatenate([source.split("train"), source.split("val")])
    names = np.array(series_sets.places(source, labelled))
    held_out = series_sets.folds(names.tolist(), FOLDS) == fold
    if source.class_names:
        labels = np.array([source.read(int(i)).label for i in labelled])
        lacking = held_out & ~np.isin(labels, labels[~held_out])
        held_out &= ~np.isin(names, names[lacking])
    return labelled[~held_out], labelled[held_out]


def usable_folds(source: Source) -> list[int]:
    """Folds with at least half of their share of points: fewer are no ground to choose on."""
    least = sum(s in ("train", "val") for s in source.split_of) / FOLDS / 2
    return [f for f in range(FOLDS) if len(fold_of(source, f)[1]) >= least]


def run(source: Source, method: str, fold: int, out: Path, steps: int) -> dict[str, Any]:
    """Fine-tune without a fold, whose number is the seed, too; the outputs on the test split."""
    start = None if method == "random" else pretrained(source, out, steps)
    train, val = fold_of(source, fold)
    recipe = tuning(source, len(train), steps)
    recipe = replace(recipe, run=replace(recipe.run, seed=fold))
    if method == "probe":
        # The head begins as a linear probe, and a rate of 0 leaves it so.
        recipe = replace(
            recipe,
            freeze="encoder",
            head=replace(recipe.head, dates="mean"),
            optim=replace(recipe.optim, lr=0.0),
            run=replace(recipe.run, epochs=1, val_every=1),
        )
    result = finetune(recipe, source, out / f"{method}-{fold}", model=start, splits=(train, val))
    predictor = Predictor.from_pretrained(result.model)
    predictions = predict_split(predictor, source).predictions
    values = predictions.predicted if predictions.probability is None else predictions.probability
    return {"validation": result.metrics, "outputs": [values.tolist()]}


# Scores ---------------------------------------------------------------------------------------


def scored(source: Source, outputs: Array, score: str) -> tuple[WeightedScore, int]:
    """A score of outputs on the test split by the weights of locations, and how many these are.

    Points of one location (a pixel in several years) are not independent: they are resampled
    together.
    """
    test = source.split("test")
    truth = np.array([source.read(int(i)).label for i in test])
    numeric = not source.class_names
    predictions = Predictions(
        kind="regression" if numeric else "classification",
        keys=tuple(source.keys[i] for i in test),
        truth=truth,
        predicted=outputs if numeric else outputs.argmax(axis=1),
        class_names=source.class_names,
        probability=None if numeric else outputs,
    )
    names, location = np.unique(
        np.array(series_sets.places(source, test, _SAME_PLACE)), return_inverse=True
    )
    of_points = scores_of(predictions)[score]
    return (lambda weights: of_points(weights[:, location])), len(names)


def floor(source: Source, score: str) -> float:
    """The score of the training and validation points' most frequent class, or their mean."""
    labelled = np.concatenate([source.split("train"), source.split("val")])
    labels = np.array([source.read(int(i)).label for i in labelled])
    count = len(source.split("test"))
    constant = np.full(count, labels.mean())
    if source.class_names:
        constant = np.eye(len(source.class_names))[[np.bincount(labels).argmax()] * count]
    of, locations = scored(source, constant, score)
    return float(of(np.ones((1, locations)))[0])


def compared(source: Source, outputs: Mapping[str, Sequence[Array]], score: str) -> dict[str, Any]:
    """Intervals of each method's mean run and of its ensemble, and differences from the forest."""
    of: dict[str, list[WeightedScore]] = {}
    locations = 0
    for method, runs in outputs.items():
        scores = [scored(source, run, score) for run in runs]
        of[method], locations = [s for s, _ in scores], scores[0][1]
        if method not in FORESTS_OF and len(runs) > 1:
            of[f"{method}, ensemble"] = [scored(source, np.mean(runs, axis=0), score)[0]]
    rows: dict[str, Any] = {
        name: {"score": hierarchical_interval(scores, locations)} for name, scores in of.items()
    }
    for name, row in rows.items():
        if name != "forest" and "forest" in of:
            row["difference"] = paired_interval(of[name], of["forest"], locations)
    return rows


def benchmark(
    source: Source,
    out: Path,
    *,
    methods: Sequence[str] = METHODS,
    seeds: int = 3,
    steps: int = 200,
) -> dict[str, Any]:
    """Run what ``out`` does not have yet; scores of all methods that it has by now.

    ``seeds``: runs of each method, at most one for each fold. ``steps``: of fine-tuning, and of
    pre-training. Several processes may run methods side by side.
    """
    jobs: dict[str, Callable[[], dict[str, Any]]] = {}
    for method in methods:
        if method in FORESTS_OF:
            jobs[method] = partial(forest, source, seeds, dates=FORESTS_OF[method])
            continue
        for fold in usable_folds(source)[:seeds]:
            jobs[f"{method}-{fold}"] = partial(run, source, method, fold, out, steps)
    for name, job in jobs.items():
        path = out / f"{name}.json"
        if not path.exists():
            measure.say(f"{source.name}: {name}")
            record = job()
            write_file(path, (json.dumps(record) + "\n").encode())
    return summary(source, out)


def summary(source: Source, out: Path) -> dict[str, Any]:
    """The record of a set: sizes, floors, what was chosen, and scores with intervals."""
    outputs: dict[str, list[Array]] = {}
    chosen: dict[str, Any] = {}
    usable = usable_folds(source)
    for method in METHODS:
        names = [method] if method in FORESTS_OF else [f"{method}-{fold}" for fold in usable]
        for path in (p for n in names if (p := out / f"{n}.json").exists()):
            record = json.loads(path.read_text(encoding="utf-8"))
            chosen |= {method: record["chosen"]} if "chosen" in record else {}
            outputs.setdefault(method, []).extend(np.array(o) for o in record["outputs"])
    shown = ("accuracy", "macro F1") if source.class_names else ("RMSE", "R2")
    return {
        "set": source.name,
        "points": {s: len(source.split(s)) for s in ("train", "val", "test")},
        "tokens": token_count(source),
        "forest": chosen,
        "scores": {
            name: {"floor": floor(source, name), **compared(source, outputs, name)}
            for name in shown
        },
    }


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """The sets as a Markdown table, by the score that matters first."""
    columns = ("forest", "forest with dates", "pre-trained", "pre-trained, ensemble",
               "random", "random, ensemble", "probe")  # fmt: skip
    lines = [
        "| set | points | score | floor | " + " | ".join(columns) + " | ensemble − forest |",
        "|---" * (len(columns) + 5) + "|",
    ]
    for record in records:
        for name, rows in record["scores"].items():
            cells = [str(rows[c]["score"]) if c in rows else "–" for c in columns]
            difference = rows.get("pre-trained, ensemble", {}).get("difference")
            points = " / ".join(str(n) for n in record["points"].values())
            lines.append(
                f"| {record['set']} | {points} | {name} | {rows['floor']:.3f} | "
                + " | ".join(cells)
                + f" | {_signed(difference)} |"
            )
    return "\n".join(lines)


def _signed(difference: Interval | None) -> str:
    if difference is None:
        return "–"
    value, low, high = (f"{v:+.3f}" for v in (difference.value, difference.low, difference.high))
    return f"{value} [{low}, {high}]".replace("-", "−")
