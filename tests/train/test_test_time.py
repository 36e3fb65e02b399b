"""Test-time training: decoders that fine-tuning keeps, and copies of models that learn by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from multimae_eo import MultiMAE, Predictor
from multimae_eo.errors import ConfigError
from multimae_eo.evaluation.predictions import evaluate
from multimae_eo.modality import Task
from multimae_eo.network.adapt import adapt
from multimae_eo.network.config import (
    DecoderConfig,
    EncoderConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
)
from multimae_eo.network.target import Target
from multimae_eo.sample import Batch
from multimae_eo.sources.synthetic import SyntheticSource
from multimae_eo.train.finetune import finetune
from multimae_eo.train.finetune_module import FinetuneModule, layer_scale
from multimae_eo.train.finetune_recipe import FinetuneRecipe, parse_finetune
from multimae_eo.train.objective import Objective
from multimae_eo.train.test_time import AdaptOptions, adapt_to, reconstruction_loss

NAMES = ("rgb", "elevation", "radar")
TARGET = Target(kind="class", classes=("a", "b", "c"), counts=(1.0, 1.0, 1.0), total=3.0)


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource(chips=40, size=16, seed=7)


@pytest.fixture(scope="module")
def pretrained(source: SyntheticSource) -> MultiMAE:
    torch.manual_seed(0)
    modalities = source.modalities.select(NAMES)
    config = ModelConfig(
        encoder=EncoderConfig(width=32, depth=2, heads=2),
        decoder=DecoderConfig(width=16, depth=1, heads=2),
        inputs={n: InputConfig(size=16, patch=4) for n in NAMES},
    )
    tasks = [Task(name=f"{n}_values", modality=n) for n in NAMES]
    return MultiMAE(modalities, tasks, config, source.statistics(range(20)).select(NAMES)).eval()


def recipe(*overrides: str) -> FinetuneRecipe:
    record = {
        "inputs": ["rgb", "elevation"],
        "data": {"batch_size": 8},
        "decoders": {"keep": True},
        "run": {"epochs": 1, "log_every": 1, "accelerator": "cpu"},
    }
    return parse_finetune(record, overrides)


def predictor_of(model: MultiMAE) -> Predictor:
    return Predictor(model, TARGET, HeadConfig(), decoders=True).eval()


def batch_of(source: SyntheticSource, count: int = 16) -> Batch:
    return source.batch(source.keys[:count], list(NAMES))


@pytest.fixture(scope="module")
def tuned(source, pretrained, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tuned")
    finetune(recipe("--decoders.weight=0.5"), source, out, model=pretrained)
    return out


def test_fine_tuning_keeps_the_decoders_of_its_inputs(source, pretrained, tuned):
    predictor = Predictor.from_pretrained(tuned / "model")
    assert [t.name for t in predictor.encoder.tasks] == ["rgb_values", "elevation_values"]
    assert set(predictor.encoder.decoders) == {"rgb_values", "elevation_values"}
    bare = predictor.without_decoders()
    assert not bare.encoder.tasks
    batch = source.batch(source.keys[:4], ["rgb", "elevation"])
    assert torch.equal(bare.predict(batch), predictor.predict(batch))
    assert "train/reconstruction" in (tuned / "metrics.csv").read_text(encoding="utf-8")


@pytest.mark.slow
def test_decoders_without_a_weight_are_kept_as_they_were(source, pretrained, tmp_path):
    done = finetune(recipe(), source, tmp_path, model=pretrained)
    after = Predictor.from_pretrained(done.model).encoder.state_dict()
    before = pretrained.state_dict()
    kept = [n for n in after if n.startswith("decoders.")]
    assert kept
    assert all(torch.equal(after[n], before[n]) for n in kept)
    plain = finetune(recipe("--decoders.keep=false"), source, tmp_path / "b", model=pretrained)
    assert not Predictor.from_pretrained(plain.model).encoder.tasks


def test_decoders_learn_with_a_weight_at_the_rate_of_the_head(pretrained):
    def module(*options: str) -> FinetuneModule:
        model = adapt(
            pretrained,
            pretrained.modalities,
            pretrained.config.sizes,
            lambda _: None,
            decoders=True,
        ).encoder
        predictor = Predictor(model, TARGET, HeadConfig(), decoders=True)
        return FinetuneModule(predictor, recipe(*options), steps=4, warmup=0, lr=0.1)

    def learning(made: FinetuneModule) -> bool:
        return any(p.requires_grad for p in made.predictor.encoder.decoders.parameters())

    assert not learning(module())
    assert learning(module("--decoders.weight=1", "--freeze=encoder"))
    name = "predictor.encoder.decoders.rgb_values.blocks.0.norm1.weight"
    assert layer_scale(2, 0.5)(name) == 1.0


def test_a_copy_learns_to_reconstruct_the_chips_and_the_model_stays(source, pretrained):
    predictor = predictor_of(pretrained)
    before = {k: v.clone() for k, v in predictor.state_dict().items()}
    batch = batch_of(source)
    adapted, note = adapt_to(predictor, [batch], AdaptOptions(steps=20, lr=1e-3))
    assert all(torch.equal(before[k], v) for k, v in predictor.state_dict().items())
    moved = {k for k, v in adapted.state_dict().items() if not torch.equal(before[k], v)}
    assert moved
    assert not [k for k in moved if k.startswith("head.") or ".decoders." in k]
    assert not any(p.requires_grad for p in adapted.parameters())
    assert "20 steps at 0.001 on 16 chips, seed 0: reconstruction loss" in note
    objective = Objective(pretrained.tasks)
    with torch.no_grad():
        losses = [
            reconstruction_loss(p.encoder, objective, batch, 99) for p in (predictor, adapted)
        ]
    assert losses[1] < losses[0]
    first, last = (float(part) for part in note.split("loss ")[1].split(" to "))
    assert last < first, "of the same chips and masks"


def test_it_follows_from_chips_seed_and_options_alone(source, pretrained):
    predictor, batches = predictor_of(pretrained), [batch_of(source)]

    def weights(**options: Any) -> torch.Tensor:
        torch.rand(3)  # another state of torch's generator each time
        adapted, _ = adapt_to(predictor, batches, AdaptOptions(steps=2, **options))
        return dict(adapted.named_parameters())["encoder.encoder.blocks.0.mlp.fc1.weight"]

    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights(seed=1))


def test_larger_chips_are_adapted_to_by_window(pretrained):
    larger = SyntheticSource(chips=4, size=32, seed=7)
    batch = larger.batch(larger.keys, list(NAMES))
    _, note = adapt_to(predictor_of(pretrained), [batch], AdaptOptions(steps=5))
    assert "on 4 chips" in note


def test_evaluation_adapts_without_labels_and_records_it(source, tuned, monkeypatch):
    predictor = Predictor.from_pretrained(tuned / "model")
    options = AdaptOptions(steps=3, lr=1e-3)
    record = evaluate(predictor, source, adapt=options)
    assert record["adapted"].startswith("3 steps at 0.001 on ")
    assert "adapted" not in evaluate(predictor, source)
    read = SyntheticSource.read

    def relabelled(self: SyntheticSource, index: int, names: Any = None) -> Any:
        from dataclasses import replace

        sample = read(self, index, names)
        return replace(sample, label=(int(sample.label) + 1) % len(self.class_names))

    with monkeypatch.context() as patch:
        patch.setattr(SyntheticSource, "read", relabelled)
        other = evaluate(predictor, source, adapt=options)
    assert other["adapted"] == record["adapted"], "labels do not reach it"


def test_what_cannot_be_adapted_is_refused(source, pretrained, tmp_path):
    with pytest.raises(ConfigError, match="no decoders; fine-tune it with"):
        adapt_to(Predictor(pretrained, TARGET, HeadConfig()), [batch_of(source)], AdaptOptions())
    with pytest.raises(ConfigError, match="a new encoder has no decoders"):
        finetune(recipe(), source, tmp_path / "a", model=None)
    with pytest.raises(ConfigError, match="no decoders of these inputs"):
        finetune(recipe("--inputs=[ired]"), source, tmp_path / "b", model=pretrained)
    for override, message in (
        ("--decoders.keep=false", "set decoders.keep"),
        ("--decoders.weight=-1", "decoders.weight must be ≥ 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            recipe("--decoders.weight=0.5", override)
    for bad in ({"steps": -1}, {"lr": 0.0}, {"lr": float("nan")}):
        with pytest.raises(ConfigError, match="expected"):
            AdaptOptions(**bad)
