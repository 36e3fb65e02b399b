"""The study of pre-training options: equal compute, fair probes, honest differences."""

from __future__ import annotations

import json
from dataclasses import replace

import ablation
import numpy as np
import pytest

from multimae_eo.sources.synthetic import SyntheticSource
from multimae_eo.train.recipe import ContrastiveRecipe, load_recipe
from tests.support.marks import mostly_slow


def options(*more: str):
    return ablation.arguments(["run", "--out", "none", "--epochs", "12", *more])


@pytest.mark.parametrize("row", mostly_slow(ablation.ROWS, fast=["contrastive"]))
def test_every_row_takes_equal_steps_of_equally_many_encoded_chips(row):
    baseline, recipe = (ablation.recipe_of(r, 3, options()) for r in ("baseline", row))
    views = recipe.contrastive.views if recipe.contrastive.weight else 1
    assert recipe.data.batch_size * views == baseline.data.batch_size
    steps = recipe.run.epochs / recipe.data.batch_size
    assert steps == baseline.run.epochs / baseline.data.batch_size
    peak = recipe.optim.lr * recipe.data.batch_size
    assert peak == pytest.approx(baseline.optim.lr * baseline.data.batch_size)
    assert recipe.run.seed == 3


def test_the_baseline_is_the_recipe_without_what_the_study_added():
    recipe, shipped = ablation.recipe_of("baseline", 0, options()), load_recipe(options().recipe)
    assert recipe.masking == replace(shipped.masking, decoded=1.0)
    assert (recipe.targets, recipe.contrastive) == (shipped.targets, ContrastiveRecipe())
    assert recipe.optim.lr == shipped.optim.lr
    row = ablation.recipe_of("strong contrastive and half decoded", 0, options())
    assert (row.masking, row.contrastive) == (shipped.masking, shipped.contrastive)


def splits() -> dict[str, np.ndarray]:
    return dict(zip(("train", "val", "test"), np.split(np.arange(120), (80, 100)), strict=True))


def test_probes_recover_classes_that_features_separate_and_no_others():
    labels = np.arange(120) % 3
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(120, 8)).astype(np.float32)
    apart = noise + 8 * np.eye(3, 8, dtype=np.float32)[labels]
    for labelled, chips in ((15, 100), (80, 20)):
        clear = ablation.outcomes(apart, labels, splits(), labelled, 4)
        assert len(clear["val"]) == chips
        assert len(clear["test"]) == 20
        assert np.mean(clear["test"]) > 0.97
        chance = ablation.outcomes(noise, labels, splits(), labelled, 4)
        assert np.mean(chance["val"]) < 0.6


def test_the_table_has_differences_from_the_baseline_of_the_same_seeds(tmp_path):
    rng = np.random.default_rng(1)
    chips = rng.random(50).round(3)
    for row, add in (("baseline", 0.0), ("band dropout", 0.1)):
        for seed in (0, 1):
            values = {"val": list(chips + add + 0.02 * seed), "test": [0.5] * 20}
            record = {
                "row": row, "seed": seed, "seconds": 60, "losses": {"rgb": 0.2},
                "outcomes": {i: {"25": values} for i in ablation.INPUT_SETS},
            }  # fmt: skip
            (tmp_path / f"{row}-{seed}.json").write_text(json.dumps(record))
    lines = ablation.table(tmp_path, "val").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["baseline", "band dropout"]
    assert "(+0.100 [+0.100, +0.100])" in lines[3]
    assert "0.200" in lines[-1]


@pytest.mark.slow
def test_a_run_is_trained_probed_and_recorded_once(tmp_path, monkeypatch):
    source = SyntheticSource(chips=60, size=64, seed=1)
    assert source.class_names
    monkeypatch.setattr(ablation, "open_source", lambda spec: source)
    given = [
        "run", "--out", str(tmp_path), "--labelled", "synthetic", "--epochs", "2", "--batch", "16",
        "--labels", "10", "--repeats", "2", "--rows", "all together", "--seeds", "1",
        "--override=--model.encoder={width: 16, depth: 1, heads: 2}",
        "--override=--model.decoder={width: 8, depth: 1, heads: 2}",
    ]  # fmt: skip
    path = ablation.run_one("all together", 0, ablation.arguments(given))
    record = json.loads(path.read_text())
    assert set(record["losses"]) == {"rgb", "ired", "sired", "ebands"}
    chips = {s: len(source.split(s)) for s in ("train", "val", "test")}
    for outcomes in record["outcomes"].values():
        assert len(outcomes["10"]["test"]) == chips["test"]
        assert len(outcomes["10"]["val"]) <= chips["train"] + chips["val"]
    monkeypatch.setattr(ablation, "pretrain", None)
    assert ablation.run_one("all together", 0, ablation.arguments(given)) == path
    assert "all together" in ablation.table(tmp_path, "val")
