"""Water maps of locations never seen in training, with every location of hls_water tested once.

The test split of hls_water has 22 chips at locations that no training chip shows: too few to tell
methods apart. Here locations, recognised by their elevation, are divided into folds; a fold's chips
are tested by models whose pre-training and labels come from other locations. ``split`` writes one
folder per fold, of links to the images and labels with a split.csv of its own:

    python benchmarks/water_folds.py split --data DIR/hls_water --out FOLDS

For each fold F then, with MULTIMAE_EO_DATA=FOLDS/F and examples/hls_water.yaml: `multimae-eo
prepare`, `pretrain`, `study`, and benchmarks/unet.py with ``--study``. ``pool`` joins the
predictions of all folds and prints scores and paired differences, with 95 % intervals over
locations and, where there are several, seeds:

    python benchmarks/water_folds.py pool --studies studies/* --locations FOLDS/locations.csv

Results are recorded in docs/results.md.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio

from multimae_eo.evaluation.trials import FINETUNING, PRETRAINED, Trial, merged, read_trial
from multimae_eo.metrics.intervals import WeightedScore, hierarchical_interval, paired_interval
from multimae_eo.metrics.task_metrics import Counts, MapCounts, scores_of

_COUNTS = ("hit", "true", "predicted")

Array = npt.NDArray[np.float64]

SAME_HEIGHT = 2.0
"""Mean elevations of one location on two dates differ by at most so many metres."""


def locations(elevations: Array) -> npt.NDArray[np.int64]:
    """The location of each chip, as a number, from elevations (chips, pixels) in metres.

    Chips belong together if their elevation correlates by more than 0.98 and has the same mean
    within ``SAME_HEIGHT``, or if they do with a chip in common. Chips of constant elevation (open
    water) cannot be told apart and are one location.
    """
    from scipy.sparse.csgraph import connected_components

    mean, std = elevations.mean(axis=1), elevations.std(axis=1)
    standardised = (elevations - mean[:, None]) / np.maximum(std, 1e-9)[:, None]
    correlation = standardised @ standardised.T / elevations.shape[1]
    same = (correlation > 0.98) & (np.abs(mean[:, None] - mean) < SAME_HEIGHT)
    flat = std < 1e-6
    same |= flat[:, None] & flat
    return np.asarray(connected_components(same, directed=False)[1], np.int64)


def folds(
    location: npt.NDArray[np.int64], count: int, validation: int, seed: int
) -> list[list[str]]:
    """Splits of each fold, one name per chip: ``count`` folds of whole locations, alike in size.

    Of the chips that a fold does not test, locations of at least ``validation`` chips are "val".
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(location)
    order = rng.permutation(len(sizes))
    of = np.zeros(len(sizes), np.int64)
    filled = np.zeros(count, np.int64)
    for which in sorted(order, key=lambda i: -sizes[i]):
        of[which] = filled.argmin()
        filled[of[which]] += sizes[which]
    result = []
    for fold in range(count):
        rest = [i for i in rng.permutation(len(sizes)) if of[i] != fold]
        reached = np.cumsum([sizes[i] for i in rest])
        chosen = set(rest[: int(np.searchsorted(reached, validation)) + 1])
        result.append(
            ["test" if of[i] == fold else "val" if i in chosen else "train" for i in location]
        )
    return result


def write_folds(options: Any) -> None:
    """Write a data set of links for each fold, and ``locations.csv`` for ``pool``."""
    with (options.data / "split.csv").open() as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    heights = []
    for chip in ids:
        with rasterio.open(options.data / "images" / f"{chip}.tif") as image:
            heights.append(image.read(image.descriptions.index("cop_dem") + 1).ravel())
    location = locations(np.array(heights, np.float64))
    options.out.mkdir(parents=True, exist_ok=True)
    _write_table(options.out / "locations.csv", "location", dict(zip(ids, location, strict=True)))
    print(f"{len(ids)} chips at {len(set(location))} locations")
    for fold, splits in enumerate(folds(location, options.folds, 30, options.seed)):
        folder = options.out / f"fold{fold}" / "hls_water"
        folder.mkdir(parents=True)
        for name in ("images", "labels"):
            (folder / name).symlink_to((options.data / name).resolve())
        _write_table(folder / "split.csv", "split", dict(zip(ids, splits, strict=True)))
        print(f"fold {fold}: " + ", ".join(f"{splits.count(s)} {s}" for s in sorted(set(splits))))


def _write_table(path: Path, column: str, values: dict[str, Any]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", column])
        writer.writerows(values.items())


@dataclass(frozen=True)
class Pooled:
    """A method's predictions on all folds: of each seed a score, as a function of the locations'
    weights."""

    scores: tuple[WeightedScore, ...]
    validation: float
    train_chips: tuple[int, ...]


def pooled(trials: Sequence[Trial], location: dict[str, int]) -> Pooled:
    """Join the trials of a method at one label fraction: any number per fold, of one seed or more.

    The score is that of the test pixels of all folds together: the mean of the folds' scores would
    give a fold with little water as much weight as another.
    """
    by_fold: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        by_fold.setdefault(tuple(sorted(trial.predictions[0].keys)), []).append(trial)
    folds = [merged(members) for members in by_fold.values()]
    seeds = []
    for parts in zip(*(t.predictions for t in folds), strict=True):
        keys = tuple(key for part in parts for key in part.keys)
        counts = Counts(
            *(np.concatenate([getattr(p.counts, name) for p in parts]) for name in _COUNTS)
        )
        maps = MapCounts(
            kind="segmentation", keys=keys, counts=counts, class_names=parts[0].class_names
        )
        rows = np.array([location[key] for key in keys])
        seeds.append(_by_location(scores_of(maps)["mIoU"], rows))
    validation = float(np.mean([v for t in trials for v in t.validation]))
    return Pooled(tuple(seeds), validation, tuple(t.train_chips for t in folds))


def _by_location(score: WeightedScore, rows: npt.NDArray[np.int64]) -> WeightedScore:
    return lambda weights: score(weights[:, rows])


def pool(options: Any) -> None:
    """Print each method's score on all folds, and the pre-trained model's minus each other's."""
    with options.locations.open() as file:
        location = {row["id"]: int(row["location"]) for row in csv.DictReader(file)}
    count = max(location.values()) + 1
    trials = [
        trial
        for study in options.studies
        for part in ("cells", "unet")
        for path in sorted((study / part).glob("*.npz"))
        if (trial := read_trial(path)).method in (FINETUNING, "U-Net")
    ]
    for percent in sorted({t.percent for t in trials}):
        chosen = [t for t in trials if t.percent == percent]
        methods = {
            name: pooled([t for t in chosen if t.features == name], location)
            for name in dict.fromkeys(t.features for t in chosen)
        }
        for name, method in methods.items():
            value = hierarchical_interval(method.scores, count)
            chips = ", ".join(map(str, method.train_chips))
            print(
                f"{percent:g} %: {name}, {chips} chips, {len(method.scores)} seed(s): "
                f"validation {method.validation:.3f}, test {value}"
            )
            if name != PRETRAINED and PRETRAINED in methods:
                difference = paired_interval(methods[PRETRAINED].scores, method.scores, count)
                print(f"    pre-trained minus {name}: {difference}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    split = commands.add_parser("split", help="write a data set of links for each fold")
    split.add_argument("--data", type=Path, required=True, help="the folder hls_water")
    split.add_argument("--out", type=Path, required=True)
    split.add_argument("--folds", type=int, default=3)
    split.add_argument("--seed", type=int, default=0)
    split.set_defaults(run=write_folds)
    joined = commands.add_parser("pool", help="scores and differences over all folds")
    joined.add_argument("--studies", type=Path, nargs="+", required=True)
    joined.add_argument("--locations", type=Path, required=True, help="locations.csv of split")
    joined.set_defaults(run=pool)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
