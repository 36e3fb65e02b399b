"""The peak learning rate: by a rule where the recipe leaves it open, and kept by a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from multimae_eo import Predictor
from multimae_eo.errors import ConfigError
from multimae_eo.sources.synthetic import SyntheticSource
from multimae_eo.train import peak_rate as rates
from multimae_eo.train.finetune import finetune
from multimae_eo.train.finetune_module import FinetuneModule
from multimae_eo.train.finetune_recipe import FinetuneRecipe, parse_finetune
from multimae_eo.train.peak_rate import peak_rate

RECIPE = {
    "inputs": ["rgb", "elevation"],
    "model": {"encoder": {"width": 32, "depth": 1, "heads": 2}},
    "optim": {"warmup_epochs": 0},
    "data": {"batch_size": 16},
    "run": {"epochs": 1, "log_every": 1, "accelerator": "cpu"},
}


def recipe(*overrides: str) -> FinetuneRecipe:
    return parse_finetune(RECIPE, overrides)


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource(chips=40, size=16, seed=3)


def record(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
    return loaded


def weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(Predictor.from_pretrained(out / "model").state_dict())


def test_an_explicit_rate_is_per_256_samples_and_wins():
    peak = peak_rate(5e-3, samples=32, width=768)
    assert peak.value == 5e-3 * 32 / 256
    assert "optim.lr 0.005 x 32" in peak.rule


def test_the_rule_grows_with_the_batch_and_shrinks_with_the_width():
    reference = peak_rate("auto", samples=rates.REFERENCE_BATCH, width=rates.REFERENCE_WIDTH).value
    assert reference == rates.REFERENCE_RATE
    four_batches = peak_rate("auto", samples=4 * rates.REFERENCE_BATCH, width=128).value
    assert four_batches == pytest.approx(2 * reference)
    assert peak_rate("auto", samples=rates.REFERENCE_BATCH, width=768).value < reference / 2
    # In the range in which each of the package's encoders has been fine-tuned.
    for width in (128, 192, 384, 768, 1024):
        for samples in (8, 32, 256):
            assert 1e-4 < peak_rate("auto", samples=samples, width=width).value < 3e-3


def test_a_run_reports_records_and_keeps_its_rate(source, tmp_path, capsys, monkeypatch):
    finetune(recipe("--run.epochs=2"), source, tmp_path / "a", model=None)
    peak = peak_rate("auto", samples=16, width=32)
    assert f"learning rate: peak {peak.value:.3g} (optim.lr auto: " in capsys.readouterr().err
    entry = record(tmp_path / "a")["learning_rate"]
    assert entry == {"peak": peak.value, "rule": peak.rule}
    assert record(tmp_path / "a")["optim"]["lr"] == "auto"
    card = (tmp_path / "a/model/README.md").read_text(encoding="utf-8")
    assert f"learning_rate: {peak.value}"[:20] in card
    # Another version's rule does not reach a run that has begun.
    monkeypatch.setattr(rates, "REFERENCE_RATE", 1.0)
    finetune(recipe("--run.epochs=2"), source, tmp_path / "a", model=None)
    assert record(tmp_path / "a")["learning_rate"] == entry
    assert f"peak {peak.value:.3g}" in capsys.readouterr().err


@pytest.mark.slow
def test_an_explicit_rate_is_recorded_too(source, tmp_path):
    finetune(recipe("--optim.lr=0.016"), source, tmp_path, model=None)
    assert record(tmp_path)["learning_rate"]["peak"] == 0.016 * 16 / 256
    assert record(tmp_path)["optim"]["lr"] == 0.016
    with pytest.raises(ConfigError, match=r"holds another run \(optim.lr: 0.016 there, 0.02 here"):
        finetune(recipe("--optim.lr=0.02"), source, tmp_path, model=None)


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on_as_it_began(source, tmp_path, monkeypatch):
    """Its record has a rate in numbers, the default of its time, and a random head."""
    before = ("--optim.lr=0.0005", "--head_init=random", "--run.epochs=2")
    finetune(recipe(*before), source, tmp_path / "whole", model=None)

    def without_new_options(out: Path) -> None:
        kept = record(out)
        for name in ("learning_rate", "head_init"):
            del kept[name]
        del kept["run"]["min_epochs"]
        (out / "recipe.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")

    step = FinetuneModule.training_step

    def failing(self: FinetuneModule, batch: Any, index: int) -> Any:
        if self.current_epoch == 1:
            raise RuntimeError("power cut")
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneModule, "training_step", failing)
        with pytest.raises(RuntimeError, match="power cut"):
            finetune(recipe(*before), source, tmp_path / "cut", model=None)
    without_new_options(tmp_path / "cut")
    finetune(recipe("--run.epochs=2"), source, tmp_path / "cut", model=None)
    ours, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--optim.lr=-1", "optim.lr must be ≥ 0"),
        ("--optim.lr=fast", "lr"),
        ("--optim.lr=nan", "lr"),
    ],
)
def test_rates_that_cannot_be_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        recipe(override)


def test_the_rate_reads_from_yaml_in_both_forms(tmp_path):
    from multimae_eo.train.finetune_recipe import load_finetune

    for text, value in (("auto", "auto"), ("5e-3", 5e-3), ("0.01", 0.01)):
        (tmp_path / "r.yaml").write_text(f"optim: {{lr: {text}}}\n", encoding="utf-8")
        assert load_finetune(tmp_path / "r.yaml").optim.lr == value
