"""Training on series: what no single date shows is learnt from several, and holds without some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from multimae_eo import Predictor
from multimae_eo.loading.loader import make_loader
from multimae_eo.sample import Sample
from multimae_eo.sources.base import Source
from multimae_eo.sources.phenology import SeriesLabel, SeriesOptions, SyntheticSeries
from multimae_eo.train.finetune import finetune
from multimae_eo.train.finetune_recipe import FinetuneRecipe, parse_finetune
from multimae_eo.train.pretrain import pretrain
from multimae_eo.train.recipe import parse_recipe

SIDE = 4


class LastDate(Source):
    """The chips of a source with their last date alone."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name, self.modalities = source.name, source.modalities
        self.keys, self.split_of = source.keys, source.split_of
        self.class_names = source.class_names

    def read(self, index, names=None) -> Sample:
        sample = self.source.read(index, names)
        keep = {n: np.arange(len(d)) == len(d) - 1 for n, d in sample.dates.items()}
        return sample.at_dates(keep)


def farms(chips: int, label: SeriesLabel, **options: float) -> SyntheticSeries:
    return SyntheticSeries(chips, SIDE, options=SeriesOptions(label=label, **options))  # type: ignore[arg-type]


def recipe(**changes: object) -> FinetuneRecipe:
    record: dict[str, object] = {
        "inputs": ["s2"],
        "model": {
            "encoder": {"width": 64, "depth": 2, "heads": 4, "mlp_ratio": 2.0},
            "patch": 4,
        },
        "head": {"dates": "attention"},
        "augment": {"drop_dates": 0.2},
        "optim": {"lr": 2e-2, "layer_decay": 1.0, "drop_path": 0.0, "warmup_epochs": 2.0},
        "data": {"batch_size": 32},
        "run": {"epochs": 25, "accelerator": "cpu", "devices": 1, "precision": "32-true",
                "val_every": 25},
    }  # fmt: skip
    for key, value in changes.items():
        old = record.get(key)
        record[key] = {**old, **value} if isinstance(old, dict) else value  # type: ignore[dict-item]
    return parse_finetune(record)


@torch.no_grad()
def predictions(model: Path, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true classes of the test chips."""
    predictor = Predictor.from_pretrained(model)
    predicted, true = [], []
    loader = make_loader(source, source.split("test"), batch_size=64, modalities=["s2"])
    for batch in loader:
        predicted.append(predictor.predict(batch).argmax(dim=1).numpy())
        assert batch.labels is not None
        true.append(batch.labels.numpy())
    return np.concatenate(predicted), np.concatenate(true)


def iou(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(((predicted == 1) & (true == 1)).sum() / ((predicted == 1) | (true == 1)).sum())


@pytest.fixture(scope="module")
def crops(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("crops")
    return finetune(recipe(), farms(900, "crop"), out / "run", model=None).model


@pytest.mark.slow
def test_crops_are_recognised_from_new_dates_of_another_year(crops):
    predicted, true = predictions(crops, farms(900, "crop"))
    assert (predicted == true).mean() > 0.93


@pytest.mark.slow
def test_crops_are_recognised_with_a_third_of_the_dates_missing(crops):
    predicted, true = predictions(crops, farms(900, "crop", missing=1 / 3))
    assert (predicted == true).mean() > 0.88


@pytest.mark.slow
def test_one_date_is_not_enough(crops):
    predicted, true = predictions(crops, LastDate(farms(900, "crop")))
    assert (predicted == true).mean() < 0.6


@pytest.mark.slow
def test_changes_are_mapped_from_two_dates_and_not_from_the_later(tmp_path):
    mapped = recipe(
        task="segmentation",
        model={"patch": 1},
        head={"dates": "change", "name": "linear"},
        augment={"drop_dates": 0.0},
    )
    farmland = farms(400, "change map", dates=2, clouds=0.0)
    both = finetune(mapped, farmland, tmp_path / "both", model=None).model
    assert iou(*predictions(both, farmland)) > 0.8
    later = LastDate(farmland)
    alone = finetune(mapped, later, tmp_path / "alone", model=None).model
    assert iou(*predictions(alone, later)) < 0.5


PRETRAINING: dict[str, dict[str, object]] = {
    "model": {
        "encoder": {"width": 32, "depth": 1, "heads": 2, "mlp_ratio": 2.0},
        "decoder": {"width": 16, "depth": 1, "heads": 2, "mlp_ratio": 2.0},
        "patch": 4, "modality_embeddings": True,
    },
    "masking": {"num_visible_tokens": 8, "series": "mixed"},
    "optim": {"lr": 5e-2},
    "data": {"chip": None, "batch_size": 16},
    "run": {"epochs": 25, "accelerator": "cpu", "devices": 1, "precision": "32-true",
            "val_every": 25},
}  # fmt: skip


def test_both_kinds_of_training_take_series(tmp_path):
    """An epoch of each: what they learn is a matter of the slow tests."""
    source = farms(32, "crop", dates=4)
    once = {"epochs": 1, "val_every": 1}
    settings = PRETRAINING | {"run": PRETRAINING["run"] | once}
    first = pretrain(parse_recipe(settings), source, tmp_path / "first")
    assert np.isfinite(first.metrics["val/s2"])
    second = finetune(recipe(run=once), source, tmp_path / "second", model=None)
    predicted, true = predictions(second.model, source)
    assert len(predicted) == len(true) == len(source.split("test"))


@pytest.mark.slow
def test_pretraining_on_series_beats_the_constant(tmp_path):
    source = farms(300, "crop", dates=8)
    result = pretrain(parse_recipe(PRETRAINING), source, tmp_path / "run")
    assert result.metrics["val/s2"] < 0.9 * result.metrics["val_baseline/s2"]
    assert (result.model / "model.safetensors").is_file()
    assert list((tmp_path / "run" / "pictures").glob("*.png"))
