"""Series of dates: models against a random forest on the same flattened values, and their cost.

    python benchmarks/series.py farm                            # the synthetic farmland
    python benchmarks/series.py points --set modis_sinop,cerrado --data DIR --out OUT
    python benchmarks/series.py points POINTS.yaml …            # tables of your own
    python benchmarks/series.py table --set fuel_moisture --data DIR --out OUT
    python benchmarks/series.py early --set modis_sinop --data DIR --out OUT
    python benchmarks/series.py cost

``farm`` prints the accuracy of crops from one date and from twelve, with dates that training never
saw and with a third of them missing, and the IoU of clearings. ``points`` compares a tuned random
forest, models from random initialisation and pre-trained ones, and a linear probe
(series_points.py); ``early`` the first of these models and forests by the dates so far; ``cost``
time and memory by the number of dates. ``table`` writes sets of arrays as tables
(series_sets.py). benchmarks/report.py draws ``early`` and ``cost``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import measure
import numpy as np
import numpy.typing as npt
import series_points
import series_sets
import torch

from multimae_eo import MultiMAE, Predictor, open_source
from multimae_eo.catalog import make_modality
from multimae_eo.evaluation.early_season import DatesUntil
from multimae_eo.evaluation.predictions import predict_split
from multimae_eo.loading.loader import make_loader
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Calibration, Sample
from multimae_eo.sources.base import Source
from multimae_eo.sources.data_root import DATA_VARIABLE
from multimae_eo.sources.phenology import SeriesOptions, SyntheticSeries
from multimae_eo.train.data import model_config
from multimae_eo.train.finetune import finetune
from multimae_eo.train.finetune_recipe import FinetuneRecipe, parse_finetune
from multimae_eo.train.modules import PretrainModule
from multimae_eo.train.recipe import parse_recipe

Array = npt.NDArray[Any]

ENCODER, RUN = series_points.ENCODER, series_points.RUN
S2 = ("B2", "B3", "B4", "B8")
BUDGET = 32


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


class Acquisitions(Source):
    """Four chips of 16 × 16 px with so many dates, of noise: for the cost of a step."""

    def __init__(self, dates: int) -> None:
        self.name, self.dates = "acquisitions", dates
        self.modalities = ModalitySet([make_modality("s2", sensor_name="sentinel2", bands=S2)])
        self.keys, self.split_of = [f"chip{i}" for i in range(4)], ["train"] * 4

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """One chip."""
        rng = np.random.default_rng(index)
        pixels = rng.normal(0.2, 0.1, (self.dates, len(S2), 16, 16)).astype(np.float32)
        days = np.arange(self.dates, dtype=np.float64) * 5
        return Sample(
            key=self.keys[index],
            pixels={"s2": pixels},
            calibration={"s2": Calibration(level="l2a")},
            dates={"s2": days},
        )


def cost(out: Path, dates: Sequence[int], rounds: int) -> None:
    """Measure a step of pre-training by dates, at a fixed budget and with 3/4 of the tokens."""
    steps: dict[str, Callable[[], None]] = {}
    for count in dates:
        tokens = 16 * count
        for name, visible in (("budget", min(BUDGET, tokens // 2)), ("share", 3 * tokens // 4)):
            steps[f"{name} {count}"] = training_step(Acquisitions(count), visible)
    times = measure.interleaved(steps, "cpu", rounds=rounds)
    points = [
        {
            "way": name.split()[0],
            "dates": int(name.split()[1]),
            **measure.summary(times[name]),
            "memory_bytes": measure.memory_bytes(step, "cpu"),
        }
        for name, step in steps.items()
    ]
    record = {"machine": measure.machine("cpu"), "budget": BUDGET, "points": points}
    print(measure.write_results("series_cost_cpu", record, out))


def training_step(source: Source, visible: int) -> Callable[[], None]:
    """A step of pre-training of four chips with so many visible tokens."""
    recipe = parse_recipe({
        "model": {"encoder": ENCODER, "patch": 4, "decoder": {"width": 32, "heads": 4}},
        "masking": {"num_visible_tokens": visible, "series": "mixed"}, "data": {"chip": None},
    })  # fmt: skip
    modalities, tasks = recipe.resolve(source.modalities)
    sizes = dict.fromkeys(modalities, 16)
    config = model_config(recipe.model, recipe.data, modalities, sizes)
    model = MultiMAE(modalities, tasks, config, source.statistics())
    module = PretrainModule(model, recipe, steps=1000, warmup=0, lr=1e-4)
    batch = source.batch(source.keys)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        module._losses(batch, 0)[0].total.backward()

    return step


def early(source: Source, out: Path) -> None:
    """Scores by the dates so far: one fine-tuned model, and a forest fitted again for each.

    Needs the first pre-trained run of ``points --out OUT``.
    """
    first = f"pre-trained-{series_points.usable_folds(source)[0]}"
    predictor = Predictor.from_pretrained(out / source.name / first / "model")
    days = source.read(int(source.split("test")[0])).dates[next(iter(source.modalities))]
    points = []
    for limit in (days - days[0]).tolist():
        # In a leap year the same date is a day later; without it, its absence would be a feature.
        part = DatesUntil(source, limit + 2)
        outputs = predict_split(predictor, part).predictions
        assert outputs.probability is not None, "classes"
        forests = [np.array(o) for o in series_points.forest(part, 1)["outputs"]]
        for name, values in (("model", [outputs.probability]), ("forest", forests)):
            score = series_points.compared(source, {name: values}, "accuracy")[name]["score"]
            points.append({"days": limit, "way": name, **asdict(score)})
    record = {"machine": measure.machine("cpu"), "set": source.name, "points": points}
    print(measure.write_results("series_early", record, out))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("farm", "points", "table", "early", "cost"))
    parser.add_argument("files", nargs="*", type=Path, help="series files of your own")
    parser.add_argument("--set", default="", help=f"of {', '.join(series_sets.SETS)}")
    parser.add_argument("--data", type=Path, help="folder of data sets ($MULTIMAE_EO_DATA)")
    parser.add_argument("--out", type=Path, help="results, which a later call goes on with")
    parser.add_argument("--methods", default=",".join(series_points.METHODS))
    parser.add_argument("--chips", type=int, default=900)
    parser.add_argument("--epochs", type=int, default=40, help="of the farm")
    parser.add_argument("--steps", type=int, default=200, help="of the points")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dates", default="4,8,16,32,64")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run."""
    given = arguments(argv)
    if given.data is not None:
        os.environ[DATA_VARIABLE] = str(given.data)
    data = Path(os.environ.get(DATA_VARIABLE) or measure.ROOT / "data")
    names = [n for n in given.set.split(",") if n]
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out or Path(temporary)
        if given.what == "farm":
            farm(out, given.chips, given.epochs)
        if given.what == "cost":
            cost(given.out or measure.RESULTS, [int(d) for d in given.dates.split(",")],
                 given.rounds)  # fmt: skip
        if given.what == "table":
            for name in names:
                print(series_sets.table(name, data, out))
            return
        sources = [open_source(file) for file in given.files]
        sources += [series_sets.open_set(n, data, Path(temporary) / "tables") for n in names]
        if given.what == "early":
            for source in sources:
                early(source, out)
        if given.what == "points":
            records = [
                series_points.benchmark(source, out / source.name, seeds=given.seeds,
                                        steps=given.steps, methods=given.methods.split(","))
                for source in sources
            ]  # fmt: skip
            print(series_points.markdown(records))


if __name__ == "__main__":
    main(sys.argv[1:])
