"""Maps of numbers: from a dataset file or a store, through fine-tuning, to scores and a card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from multimae_eo.cli import main
from multimae_eo.errors import ConfigError, DataError
from multimae_eo.evaluation.labelled import task_of
from multimae_eo.evaluation.trials import Trial, TrialFiles
from multimae_eo.loading.open_source import open_source
from multimae_eo.metrics.task_metrics import Predictions, chip_outcomes, values_of
from multimae_eo.network.config import EncoderConfig, InputConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.target import Target, TargetScan
from multimae_eo.train.finetune_recipe import LossRecipe
from multimae_eo.train.supervised import SupervisedLoss


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Chips whose height is 20 times their red reflectance plus 3; the left edge is unknown."""
    folder = tmp_path_factory.mktemp("heights")
    rng = np.random.default_rng(0)
    for name in ("chips", "height"):
        (folder / name).mkdir()
    rows = ["id,split"]
    for i in range(40):
        blocks = rng.integers(100, 5000, (3, 4, 4))
        pixels = blocks.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint16)
        height = (pixels[0] * 1e-4 * 20 + 3).astype(np.float32)
        height[:, :2] = np.nan
        np.save(folder / f"chips/c{i}.npy", pixels)
        np.save(folder / f"height/c{i}.npy", height)
        rows.append(f"c{i},{'train' if i < 24 else 'val' if i < 30 else 'test'}")
    (folder / "split.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    record = {
        "name": "heights",
        "chips": "chips/{id}.npy",
        "file_bands": ["B4", "B3", "B2"],
        "modalities": {"rgb": {"level": "l2a", "scale": 1e-4, "gsd": 10}},
        "labels": {"mask": "height/{id}.npy", "numeric": True},
        "splits": "split.csv",
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    return folder


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def test_a_dataset_file_and_a_store_give_the_map(folder, capsys):
    source = open_source(str(folder / "data.yaml"))
    label = source.read(0).label
    assert label.dtype == np.float32
    np.testing.assert_array_equal(label, np.load(folder / f"height/{source.keys[0]}.npy"))
    assert run("prepare", folder / "data.yaml", "--out", folder / "store") == 0
    np.testing.assert_array_equal(open_source(str(folder / "store")).read(0).label, label)


@pytest.mark.slow
def test_it_learns_the_map_and_scores_it(folder, capsys):
    out = folder / "run"
    code = run(
        "finetune", "--model", "none", "--data", folder / "data.yaml", "--task", "regression",
        "--head", "linear", "--out", out, "--model.patch", 4, "--data.batch_size", 8,
        "--model.encoder", "{width: 32, depth: 1, heads: 2}", "--optim.lr", 0.3,
        "--run.epochs", 40, "--run.val_every", 20, "--run.accelerator", "cpu",
        "--optim.drop_path", 0,
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    evaluate = ("evaluate", "--model", out / "model", "--data", folder / "data.yaml", "--json")
    capsys.readouterr()
    assert run(*evaluate, "--flips", "--out", folder / "told") == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["R2"]["value"] > 0.5
    assert metrics["RMSE"]["low"] <= metrics["RMSE"]["value"] <= metrics["RMSE"]["high"]
    assert (folder / "told/report.html").stat().st_size > 0


@pytest.mark.slow
def test_a_study_leaves_out_probes(folder, capsys):
    source = open_source(str(folder / "data.yaml"))
    config = ModelConfig(
        encoder=EncoderConfig(width=16, depth=1, heads=2),
        inputs={"rgb": InputConfig(size=16, patch=4)},
    )
    model = MultiMAE(source.modalities, (), config, source.statistics())
    model.save_pretrained(folder / "model")
    where = ("study", "--model", folder / "model", "--data", folder / "data.yaml")
    plan = ("--methods", "finetune,linear", "--run.epochs", 1, "--run.accelerator", "cpu")
    more = ("--task", "regression", "--fractions", 50, "--out", folder / "study")
    assert run(*where, *plan, *more) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "| all | pre-trained | fine-tuning | 50 | 12 |" in out
    assert "linear" not in out


def test_scores_are_scikit_learns_on_known_pixels():
    rng = np.random.default_rng(0)
    truth = rng.normal(50, 4, (6, 5, 5)).astype(np.float32)
    predicted = (truth + rng.normal(0, 2, truth.shape)).astype(np.float32)
    truth[rng.random(truth.shape) < 0.3] = np.nan
    truth[2] = np.nan
    told = Predictions(kind="regression", keys=tuple("abcdef"), truth=truth, predicted=predicted)
    known = np.isfinite(truth)
    a, b = truth[known], predicted[known]
    values = values_of(told)
    assert values["R2"] == pytest.approx(r2_score(a, b), abs=1e-5)
    assert values["RMSE"] == pytest.approx(mean_squared_error(a, b) ** 0.5, rel=1e-5)
    assert values["MAE"] == pytest.approx(mean_absolute_error(a, b), rel=1e-5)
    outcomes = chip_outcomes(told)
    assert np.flatnonzero(np.isnan(outcomes)).tolist() == [2]
    one = known[0]
    assert outcomes[0] == pytest.approx(
        -mean_squared_error(truth[0][one], predicted[0][one]), rel=1e-5
    )


def test_trials_of_maps_are_kept(tmp_path):
    truth = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
    told = Predictions(kind="regression", keys=("a", "b"), truth=truth, predicted=truth + 1)
    trial = Trial(inputs="rgb", features="x", method="y", percent=5, train_chips=2, chosen=("–",),
                  predictions=(told,), seconds=0)  # fmt: skip
    TrialFiles(tmp_path).put(trial, "a")
    found = TrialFiles(tmp_path).get("a")
    assert found is not None
    assert found.row(0) == trial.row(0)


@pytest.mark.parametrize("kind", ["mse", "l1", "huber"])
def test_the_loss_is_that_of_known_pixels(kind):
    target = Target(kind="value map", mean=2.0, std=4.0)
    loss = SupervisedLoss(target, LossRecipe(regression=kind))
    outputs = torch.randn(2, 1, 3, 3, requires_grad=True)
    labels = torch.randn(2, 3, 3)
    labels[0, :2] = float("nan")
    known = labels.isfinite()
    wanted = ((labels - 2) / 4)[known]
    reference = {"mse": torch.nn.MSELoss(), "l1": torch.nn.L1Loss(), "huber": torch.nn.HuberLoss()}
    found = loss(outputs, labels)
    torch.testing.assert_close(found, reference[kind](outputs[:, 0][known], wanted))
    found.backward()
    assert bool(outputs.grad.isfinite().all())
    assert bool((outputs.grad[0, 0, :2] == 0).all())
    assert float(loss(outputs.detach(), torch.full_like(labels, float("nan")))) == 0


def test_the_target_is_measured_on_known_pixels():
    scan = TargetScan("regression", (), "here")
    assert scan.add(np.array([[1.0, np.nan], [3.0, 5.0]], np.float32))
    assert not scan.add(np.full((2, 2), np.nan, np.float32))
    target = scan.target()
    assert (target.kind, target.dense, target.total) == ("value map", True, 3)
    assert (target.mean, target.std) == pytest.approx((3.0, np.std([1, 3, 5])))
    with pytest.raises(DataError, match="a map of numbers per chip; segmentation needs"):
        TargetScan("segmentation", (), "here").add(np.zeros((2, 2), np.float32))
    with pytest.raises(DataError, match="maps of values are not probed"):
        task_of(np.zeros((1, 2, 2), np.float32))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"mask": "{id}.npy", "numeric": True, "classes": ["a"]}, "its classes' names, or numeric"),
        ({"mask": "{id}.npy"}, "its classes' names, or numeric"),
        ({"folder": True, "numeric": True}, "only a `column:` or `mask:` label has it"),
    ],
)
def test_contradictions_are_told(folder, labels, message):
    record = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    path = folder / "wrong.yaml"
    path.write_text(yaml.safe_dump({**record, "labels": labels}), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        open_source(str(path))
