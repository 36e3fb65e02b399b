"""Series of dates: a fine-tuned model against a random forest on the same flattened values.

    python benchmarks/series.py farm                       # the synthetic farmland
    python benchmarks/series.py points POINTS.yaml …       # tables of points, see docs/series.md

``farm`` prints the accuracy of crops from one date and from twelve, with dates that training never
saw and with a third of them missing, and the IoU of clearings. ``points`` prints the accuracy (or
RMSE) on the test split of a random forest, tuned on validation, of a model from random
initialisation, and of one that was pre-trained on the same training points.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from multimae_eo import MultiMAE, Predictor, open_source
from multimae_eo.loading.loader import make_loader
from multimae_eo.sample import Sample
from multimae_eo.sources.base import Indices, Source
from multimae_eo.sources.phenology import SeriesOptions, SyntheticSeries
from multimae_eo.train.finetune import finetune
from multimae_eo.train.finetune_recipe import FinetuneRecipe, parse_finetune
from multimae_eo.train.pretrain import pretrain
from multimae_eo.train.recipe import parse_recipe

Array = npt.NDArray[Any]

ENCODER = {"width": 64, "depth": 3, "heads": 4, "mlp_ratio": 2.0}
RUN = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}
FORESTS = [(leaf, share) for leaf in (1, 2, 4) for share in ("sqrt", 0.3)]


class OneDate(Source):
    """The chips of a source with one date each, ``date`` counted from the first (or the last)."""

    def __init__(self, source: Source, date: int) -> None:
        self.source, self.date = source, date
        self.name, self.modalities = source.name, source.modalities
        self.keys, self.split_of = source.keys, source.split_of
        self.class_names = source.class_names

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """One chip."""
        sample = self.source.read(index, names)
        keep = {n: np.arange(len(d)) == self.date % len(d) for n, d in sample.dates.items()}
        return sample.at_dates(keep)


def recipe(
    task: str, epochs: int, inputs: Sequence[str], **changes: dict[str, Any]
) -> FinetuneRecipe:
    """The recipe of all models here."""
    record: dict[str, Any] = {
        "task": task,
        "inputs": list(inputs),
        "model": {"encoder": ENCODER, "patch": 4},
        "head": {"dates": "attention"},
        "augment": {"drop_dates": 0.2},
        "optim": {"lr": 1.6e-2, "layer_decay": 1.0, "drop_path": 0.1, "warmup_epochs": 3.0},
        "data": {"batch_size": 32},
        "run": {**RUN, "epochs": epochs, "val_every": 5},
    }
    for key, values in changes.items():
        record[key] = {**record[key], **values}
    return parse_finetune(record)


@torch.no_grad()
def predicted(model: Path, source: Source, inputs: Sequence[str]) -> tuple[Array, Array]:
    """Predictions and labels of the test chips."""
    predictor = Predictor.from_pretrained(model)
    outputs, labels = [], []
    test = source.split("test")
    for batch in make_loader(source, test, batch_size=64, modalities=list(inputs)):
        out = predictor.predictions(predictor.predict(batch))
        outputs.append((out if predictor.target.numeric else out.argmax(dim=1)).numpy())
        assert batch.labels is not None
        labels.append(batch.labels.numpy())
    return np.concatenate(outputs), np.concatenate(labels)


def accuracy(outcome: tuple[Array, Array]) -> float:
    """The share of right classes."""
    return float((outcome[0] == outcome[1]).mean())


def iou(outcome: tuple[Array, Array]) -> float:
    """The IoU of class 1."""
    a, b = (x == 1 for x in outcome)
    return float((a & b).sum() / (a | b).sum())


def farm(folder: Path, chips: int, epochs: int) -> None:
    """Print the table of the synthetic farmland."""

    def world(**options: Any) -> SyntheticSeries:
        return SyntheticSeries(chips, 4, options=SeriesOptions(**options))

    crops = recipe("classification", epochs, ["s2"])
    model = finetune(crops, world(), folder / "crops", model=None).model
    print(f"crops, 12 dates, test in other dates {accuracy(predicted(model, world(), ['s2'])):.3f}")
    gaps = predicted(model, world(missing=1 / 3), ["s2"])
    print(f"crops, a third of them missing       {accuracy(gaps):.3f}")
    best = []
    for date in range(0, 12, 3):
        one = OneDate(world(clouds=0.0), date)  # a single date may be all cloud
        single = finetune(crops, one, folder / f"one{date}", model=None).model
        best.append(accuracy(predicted(single, one, ["s2"])))
    print(f"crops, the best single date          {max(best):.3f}  {np.round(best, 3)}")
    change = recipe("segmentation", epochs, ["s2"], model={"patch": 1}, head={"dates": "change"},
                    augment={"drop_dates": 0.0})  # fmt: skip
    pair = world(label="change map", dates=2)
    both = finetune(change, pair, folder / "both", model=None).model
    print(f"clearings, two dates, IoU            {iou(predicted(both, pair, ['s2'])):.3f}")
    later = OneDate(pair, -1)
    alone = finetune(change, later, folder / "later", model=None).model
    print(f"clearings, the later date alone, IoU {iou(predicted(alone, later, ['s2'])):.3f}")


def flat(source: Source, indices: Indices) -> tuple[Array, Array]:
    """Values of all dates and bands side by side, NaN where lacking, and labels."""
    rows, labels = [], []
    for index in indices.tolist():
        sample = source.read(index)
        parts = [np.where(sample.validity(n), p, np.nan).ravel() for n, p in sample.pixels.items()]
        rows.append(np.concatenate(parts))
        labels.append(sample.label)
    width = max(len(r) for r in rows)
    return np.array(
        [np.pad(r, (0, width - len(r)), constant_values=np.nan) for r in rows]
    ), np.array(labels)


def forest(source: Source) -> float:
    """The test score of the forest that is best on validation: accuracy, or RMSE."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.metrics import root_mean_squared_error

    numeric = not source.class_names
    kind = RandomForestRegressor if numeric else RandomForestClassifier
    (x, y), (vx, vy), (tx, ty) = (flat(source, source.split(s)) for s in ("train", "val", "test"))

    def score(model: Any, x: Array, y: Array) -> float:
        if numeric:
            return -float(root_mean_squared_error(y, model.predict(x)))
        return float(model.score(x, y))

    fitted = [
        kind(300, min_samples_leaf=leaf, max_features=share, random_state=0).fit(x, y)
        for leaf, share in FORESTS
    ]
    best = max(fitted, key=lambda f: score(f, vx, vy))
    best = kind(**best.get_params()).fit(np.concatenate([x, vx]), np.concatenate([y, vy]))
    return abs(score(best, tx, ty))


def points(folder: Path, file: Path, epochs: int, seeds: int) -> None:
    """Print the scores of one table of points."""
    source = open_source(file)
    inputs = list(source.modalities)
    numeric = not source.class_names
    tuned = recipe("regression" if numeric else "classification", epochs, inputs,
                   model={"patch": 1})  # fmt: skip
    print(f"{source.name}: {len(source)} points; random forest {forest(source):.3f}")
    base = pretrain(
        parse_recipe({
            "model": {"encoder": ENCODER, "patch": 1, "decoder": {"width": 32, "heads": 4}},
            "masking": {"num_visible_tokens": 8, "series": "mixed"},
            "optim": {"lr": 1.6e-2}, "data": {"chip": None, "batch_size": 32},
            "run": {**RUN, "epochs": 2 * epochs, "val_every": 2 * epochs},
        }), source, folder / f"{source.name}-mae",
    )  # fmt: skip
    starts = {"random initialisation": None, "pre-trained": MultiMAE.from_pretrained(base.model)}
    for name, start in starts.items():
        scores = []
        for seed in range(seeds):
            run = replace(tuned, run=replace(tuned.run, seed=seed))
            out = folder / f"{source.name}-{name.split()[0]}-{seed}"
            outcome = predicted(finetune(run, source, out, model=start).model, source, inputs)
            error = float(np.sqrt(np.mean((outcome[0] - outcome[1]) ** 2)))
            scores.append(error if numeric else accuracy(outcome))
        print(f"  {name:22} {np.mean(scores):.3f}  {np.round(scores, 3)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("farm", "points"))
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--chips", type=int, default=900)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if given.what == "farm":
            farm(Path(folder), given.chips, given.epochs)
        for file in given.files:
            points(Path(folder), file, given.epochs, given.seeds)


if __name__ == "__main__":
    main(sys.argv[1:])
