"""Filled dates: a model against linear interpolation in time, for one to four dates in a row.

    python benchmarks/fill_dates.py farm                     # the synthetic farmland, with clouds
    python benchmarks/fill_dates.py points POINTS.yaml …     # tables of points, see docs/series.md
    python benchmarks/fill_dates.py patch FOLDER             # eo-learn's patch: NDVI.npy, CLM.npy,
                                                             # timestamps.json

Pre-trains a small model on the training split, holds out every run of dates of the test split that
has a valid date on both sides, and prints a line for each length of the gap: RMSE of the model, of
linear interpolation and of the nearest date; the model's squared error relative to linear
interpolation with a 95 % interval (bootstrap over points or blocks, paired); and how many truths
90 % intervals hold before and after calibration on the validation split, with their mean width.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from multimae_eo import MultiMAE, open_source
from multimae_eo.inference.fill_dates import DatePredictor
from multimae_eo.inference.masked_dates import DateRule
from multimae_eo.inference.reconstruct_chips import ReconstructOptions
from multimae_eo.metrics.date_scores import DateScores
from multimae_eo.modality import Band, Modality, ModalitySet
from multimae_eo.sample import Sample
from multimae_eo.sources.acquisition_dates import days_since_1970
from multimae_eo.sources.base import Source
from multimae_eo.sources.phenology import SeriesOptions, SyntheticSeries
from multimae_eo.train.pretrain import pretrain
from multimae_eo.train.recipe import parse_recipe

Array = npt.NDArray[Any]

ENCODER = {"width": 64, "depth": 3, "heads": 4, "mlp_ratio": 2.0}
RUN = {"accelerator": "cpu", "devices": 1, "precision": "32-true", "pictures_every": 0}
GAPS = (1, 2, 3, 4)
SIDE, BLOCK = 4, 24


class Patch(Source):
    """Chips of 4 × 4 px of one patch of NDVI; blocks of 24 × 24 px are in one split each.

    ``thin``: only every so many chips of the validation and test blocks are used. ``new_dates``:
    training chips have the dates before 2017, the others those from then on; without it the
    model has seen every date elsewhere on the patch.
    """

    def __init__(self, folder: Path, thin: int, *, new_dates: bool) -> None:
        self.name = folder.name
        self.modalities = ModalitySet([Modality(name="v", bands=(Band(name="NDVI"),))])
        self.values = np.load(folder / "NDVI.npy").transpose(0, 3, 1, 2)
        self.clear = np.load(folder / "CLM.npy").transpose(0, 3, 1, 2) == 0
        self.days = np.array(
            [days_since_1970(t) for t in json.loads((folder / "timestamps.json").read_text())]
        )
        self.late = self.days >= days_since_1970("2017-01-01")
        self.new_dates = new_dates
        rows, cols = (n // BLOCK * BLOCK // SIDE for n in self.values.shape[2:])
        self.corners = [(r * SIDE, c * SIDE) for r in range(rows) for c in range(cols)]
        self.keys = [f"{r}-{c}" for r, c in self.corners]
        # Every split has blocks all over the patch, none next to its own.
        kinds = ("train", "train", "test", "train", "val")
        self.blocks = [(r // BLOCK, c // BLOCK) for r, c in self.corners]
        self.split_of = [kinds[(2 * r + c) % len(kinds)] for r, c in self.blocks]
        for index, split in enumerate(self.split_of):
            if split != "train" and index % thin:
                self.split_of[index] = ""

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """One chip."""
        row, col = self.corners[index]
        window = (..., slice(row, row + SIDE), slice(col, col + SIDE))
        sample = Sample(
            key=self.keys[index],
            pixels={"v": self.values[window]},
            valid={"v": self.clear[window]},
            dates={"v": self.days},
        )
        if not self.new_dates:
            return sample
        return sample.at_dates({"v": self.late != (self.split_of[index] == "train")})


def trained(
    source: Source, name: str, folder: Path, given: argparse.Namespace, patch: int
) -> MultiMAE:
    """A small masked autoencoder of the training split."""
    recipe = parse_recipe(
        {
            "modalities": [name],
            "model": {
                "encoder": ENCODER,
                "patch": patch,
                "decoder": {"width": 32, "heads": 4, "interpolate": not given.plain},
            },
            "masking": {"num_visible_tokens": given.visible, "series": "dates"},
            "optim": {"lr": 1e-2, "warmup_epochs": 3.0},
            "data": {"chip": None, "batch_size": 32, "flips": patch > 1},
            "run": {**RUN, "epochs": given.epochs, "val_every": given.epochs, "seed": given.seed},
        }
    )
    return MultiMAE.from_pretrained(pretrain(recipe, source, folder / name).model).eval()


def relative_error(errors: Array, group: Sequence[object]) -> tuple[float, float, float]:
    """Squared error of the model over that of the interpolation, and its 95 % interval.

    errors: (n, 2), sums of both for each chip. ``group``: the block of each chip, resampled whole.
    """
    names = sorted(set(group), key=str)
    sums = np.array([errors[[g == name for g in group]].sum(axis=0) for name in names])
    rng = np.random.default_rng(0)
    drawn = sums[rng.integers(len(sums), size=(2000, len(sums)))].sum(axis=1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], (2.5, 97.5))
    total = sums.sum(axis=0)
    return float(total[0] / total[1]), float(low), float(high)


def measure(source: Source, name: str, folder: Path, given: argparse.Namespace, patch: int) -> None:
    """Print a table of one source."""
    start = time.process_time()
    model = trained(source, name, folder, given, patch)
    print(f"{source.name}: trained in {time.process_time() - start:.0f} CPU seconds", flush=True)
    options = ReconstructOptions(samples=given.samples, batch_size=64)
    predictor = DatePredictor(model, source, [name], options)
    test = [int(i) for i in source.split("test")]
    for gap in GAPS:
        rule = DateRule(gap=gap)
        scale = predictor.scale(name, rule, "val")
        scores = DateScores(source.modalities[name], scale)
        errors = {source.keys[i]: np.zeros(2) for i in test}
        for filled in predictor.predicted(test, name, rule):
            held = filled.held_out
            scores.update(replace(held, valid=held.valid & held.between))
            arrays = filled.arrays
            ok = arrays["valid"] & arrays["between"]
            for method, column in (("mean", 0), ("linear", 1)):
                error = np.where(ok, arrays[method] - arrays["truth"], 0.0) ** 2
                for row, value in zip(filled.rows, error.sum(axis=(1, 2, 3)), strict=True):
                    errors[filled.tasks[row].truth.key][column] += value
        blocks = getattr(source, "blocks", None)
        group = test if blocks is None else [blocks[i] for i in test]
        ratio = relative_error(np.array(list(errors.values())), group)
        report(gap, scores.compute()["between"], ratio)
    print(f"  {time.process_time() - start:.0f} CPU seconds in all", flush=True)


def report(gap: int, score: dict[str, Any], ratio: tuple[float, float, float]) -> None:
    """Print the line of one length of gap."""
    rmse = "  ".join(f"{m} {score[m]['rmse']:.4f}" for m in ("model", "linear", "nearest"))
    raw, calibrated = (score["intervals"][k] for k in ("uncalibrated", "calibrated"))
    print(
        f"  gap {gap}: RMSE {rmse}; squared error / linear's {ratio[0]:.2f} "
        f"[{ratio[1]:.2f}, {ratio[2]:.2f}]; intervals hold {raw['coverage']:.3f} before and "
        f"{calibrated['coverage']:.3f} after, ± {calibrated['width'] / 2:.4f}",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("farm", "points", "patch"))
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--chips", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--visible", type=int, default=16, help="visible dates in training")
    parser.add_argument("--samples", type=int, default=4, help="random masks of the std")
    parser.add_argument(
        "--thin", type=int, default=1, help="of the patch: score every so many chips"
    )
    parser.add_argument("--new-dates", action="store_true", help="of the patch: test in new dates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="without decoder.interpolate")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if given.what == "farm":
            farm = SyntheticSeries(given.chips, SIDE, options=SeriesOptions(label="crop map"))
            measure(farm, "s2", Path(folder), given, SIDE)
        for path in given.paths:
            source = (
                Patch(path, given.thin, new_dates=given.new_dates)
                if given.what == "patch"
                else open_source(path)
            )
            patch = SIDE if given.what == "patch" else 1
            for name in source.modalities:
                measure(source, name, Path(folder), given, patch)


if __name__ == "__main__":
    main(sys.argv[1:])
