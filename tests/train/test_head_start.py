"""A head that starts from a linear probe: it is one, of every kind of label, and repeatable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from multimae_eo.errors import ConfigError
from multimae_eo.network.config import EncoderConfig, HeadConfig, InputConfig, ModelConfig
from multimae_eo.network.heads import ChipHead
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import TargetScan
from multimae_eo.sample import Sample
from multimae_eo.sources.base import Source
from multimae_eo.sources.synthetic import SyntheticSource
from multimae_eo.train.finetune_recipe import FinetuneRecipe, parse_finetune
from multimae_eo.train.head_start import STRENGTHS, from_probe, start_head
from tests.support.marks import mostly_slow

NAMES = ("rgb", "elevation")


class Labelled(Source):
    """Synthetic chips with labels of any kind, made from their pixels."""

    class_names: tuple[str, ...] = ("low", "middle", "high")

    def __init__(self, kind: str) -> None:
        self.source, self.kind = SyntheticSource(chips=60, size=16, seed=5), kind
        self.name, self.keys, self.split_of = "labelled", self.source.keys, self.source.split_of
        self.modalities = self.source.modalities.select(NAMES)
        if "value" in kind:
            self.class_names = ()

    def read(self, index: int, names: Any = None) -> Sample:
        sample = self.source.read(index, list(NAMES))
        height = sample.pixels["elevation"][0].astype(np.float32)
        edges = np.array([150.0, 400.0])
        label: Any = {
            "class": np.digitize(height.mean(), edges),
            "multilabel": np.array([height.mean() > e for e in (100, 200, 400)], np.float32),
            "map": np.where(height < 20, -1, np.digitize(height, edges)),
            "value": np.float32(height.mean()),
            "value map": np.where(height < 20, np.nan, height),
        }[self.kind]
        return replace(sample, label=label)


TASKS = {"class": "classification", "multilabel": "classification", "map": "segmentation",
         "value": "regression", "value map": "regression"}  # fmt: skip


def recipe(kind: str, *overrides: str) -> FinetuneRecipe:
    record = {"task": TASKS[kind], "data": {"batch_size": 16}, "run": {"accelerator": "cpu",
              "precision": "32-true"}}  # fmt: skip
    return parse_finetune(record, overrides)


def predictor_for(kind: str, *, pool: Any = "mean", size: int = 16) -> tuple[Predictor, Labelled]:
    source = Labelled(kind)
    scan = TargetScan(TASKS[kind], source.class_names, source.name)  # type: ignore[arg-type]
    for i in source.split("train").tolist():
        scan.add(source.read(i).label)
    torch.manual_seed(0)
    config = ModelConfig(
        encoder=EncoderConfig(width=32, depth=2, heads=2),
        inputs={n: InputConfig(size=size, patch=4) for n in NAMES},
    )
    encoder = MultiMAE(source.modalities, (), config, source.statistics(range(20)))
    return Predictor(encoder, scan.target(), HeadConfig(pool=pool)), source


def start(kind: str, *, val: bool = True, **options: Any) -> tuple[Predictor, Labelled, str]:
    predictor, source = predictor_for(kind, **options)
    val_chips = source.split("val") if val else source.split("val")[:0]
    note = start_head(predictor, source, source.split("train"), val_chips, recipe(kind))
    return predictor, source, note


def outputs(predictor: Predictor, source: Source, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    batch = source.batch([source.keys[i] for i in source.split(split)])
    assert batch.labels is not None
    return predictor.eval().predict(batch), batch.labels


@pytest.mark.parametrize("pool", ["mean", "all-layers-mean-std", "global"])
def test_the_head_is_scikit_learn_s_logistic_regression(pool):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    predictor, source, note = start("class", pool=pool)
    strength = float(note.split("strength ")[1].split(",")[0])
    assert strength in STRENGTHS
    batch = source.batch([source.keys[i] for i in source.split("train")])
    with torch.no_grad():
        head = predictor.head
        assert isinstance(head, ChipHead)
        features = head.normalised(predictor.eval().summary(batch)).numpy()
    scaler = StandardScaler().fit(features.astype(np.float64))
    labels = batch.labels.numpy()
    fitted = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
    fitted.fit(scaler.transform(features), labels)
    expected = fitted.predict_proba(scaler.transform(features))
    ours = predictor.predictions(predictor.predict(batch)).numpy()[:, fitted.classes_]
    np.testing.assert_allclose(ours, expected, atol=2e-3)
    assert (ours.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.95


@pytest.mark.parametrize("kind", ["class", "multilabel", "map", "value", "value map"])
@pytest.mark.parametrize("val", mostly_slow([True, False], fast=[True]), ids=["val", "no val"])
def test_it_predicts_better_than_the_best_constant_before_any_step(kind, val):
    from multimae_eo.train.supervised import SupervisedLoss

    predictor, source, note = start(kind, val=val)
    loss = SupervisedLoss(predictor.target, recipe(kind).loss).eval()
    predicted, labels = outputs(predictor, source, "test")
    if kind == "value map":
        predicted = predicted.float()
    assert loss(predicted, labels) < 0.9 * loss.constant(labels)
    assert predictor.encoder.encoder.blocks[0].training is False
    assert ("patches" if "map" in kind else "chips") in note


def test_it_is_the_same_when_it_is_started_again():
    first, second = (start("class")[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_the_encoder_stays_as_it_was_and_is_in_training_mode():
    predictor, source = predictor_for("map")
    before = {k: v.clone() for k, v in predictor.encoder.state_dict().items()}
    start_head(predictor, source, source.split("train"), source.split("val"), recipe("map"))
    assert all(torch.equal(before[k], v) for k, v in predictor.encoder.state_dict().items())
    assert all(m.training for m in predictor.modules())


@pytest.mark.parametrize("kind", ["class", "map"])
def test_chips_larger_than_the_encoder_s_are_probed_in_windows(kind):
    predictor, source, _ = start(kind, size=8)
    predicted, labels = outputs(predictor, source, "test")
    correct = (predicted.argmax(dim=1) == labels)[labels >= 0].float().mean()
    majority = torch.bincount(labels[labels >= 0]).max() / (labels >= 0).sum()
    assert correct > majority


def test_a_class_without_a_training_chip_remains_learnable():
    predictor, source = predictor_for("class")
    train = source.split("train")
    labels = np.array([source.read(int(i)).label for i in train])
    start_head(predictor, source, train[labels != 2], source.split("val"), recipe("class"))
    bias = predictor.head.project.bias.detach()
    assert bias[2] < bias[:2].min()
    assert bias.abs().max() < 50


@pytest.mark.slow
def test_balanced_weights_reach_the_probe():
    plain, source = predictor_for("map")
    balanced, _ = predictor_for("map")
    chips = (source.split("train"), source.split("val"))
    start_head(plain, source, *chips, recipe("map"))
    start_head(balanced, source, *chips, recipe("map", "--loss.class_weights=balanced"))
    rare = int(np.argmin(plain.target.counts))
    batch = source.batch([source.keys[i] for i in source.split("test")])
    shares = [p.eval().predict(batch).softmax(dim=1)[:, rare].mean() for p in (plain, balanced)]
    assert shares[1] > shares[0]


def test_only_linear_heads_start_from_a_probe():
    target = predictor_for("map")[0].target
    assert from_probe(recipe("map"), target)
    assert not from_probe(recipe("map", "--head_init=random"), target)
    assert not from_probe(recipe("map", "--head.name=dpt"), target)
    with pytest.raises(ConfigError, match="a dpt head is no linear probe; take --head linear"):
        from_probe(recipe("map", "--head.name=dpt", "--head_init=linear-probe"), target)
