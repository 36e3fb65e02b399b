"""The run: resumes exactly, records honestly, refuses what does not fit."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from multimae_eo import MultiMAE
from multimae_eo.errors import CheckpointError, ConfigError, TrainingError
from multimae_eo.sample import Batch, Calibration, Sample
from multimae_eo.sources.base import ConcatSource
from multimae_eo.sources.synthetic import SyntheticSource
from multimae_eo.train.modules import PretrainModule
from multimae_eo.train.pretrain import InitialModel, pretrain, start_from
from multimae_eo.train.recipe import Recipe, parse_recipe

RECIPE = {
    "modalities": ["rgb", "elevation", "landcover"],
    "model": {
        "encoder": {"width": 32, "depth": 1, "heads": 2},
        "decoder": {"width": 16, "depth": 1, "heads": 2},
        "patch": 8,
        "stride": {"landcover": 2},
    },
    "masking": {"num_visible_tokens": 16},
    "optim": {"lr": 0.1, "warmup_epochs": 1, "clip": 1.0},
    "data": {"chip": 32, "batch_size": 8},
    "run": {"epochs": 3, "log_every": 1, "pictures_every": 0, "accelerator": "cpu"},
}


def recipe(*overrides: str) -> Recipe:
    return parse_recipe(RECIPE, overrides)


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource(chips=48, size=32, seed=3)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(MultiMAE.from_pretrained(out / "model").state_dict())


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    # Throughput is of the machine, not of the run.
    return [{k: v for k, v in r.items() if not k.startswith("throughput")} for r in kept]


def same(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return all(torch.equal(ours[k], theirs[k]) for k in theirs) and set(ours) == set(theirs)


OPTIONS = {
    "plain": (),
    "ema": ("--optim.ema=0.9",),
    "accumulate": (
        "--run.accumulate=2",
        "--data.batch_size=4",
        "--optim.learned_task_weights=true",
    ),
    "agreement": ("--agreement.weight=0.5",),
    "windows": ("--data.windows=[8, 16, 32]", "--run.accumulate=2", "--data.batch_size=4"),
    "masking and targets": (
        "--masking.roles={unused: 1, encoded: 1, decoded: 1, both: 1}",
        "--masking.band_dropout=0.3",
        "--masking.decoded=0.5",
        "--targets.patch_normalised=0.5",
        "--targets.random_projection=0.1",
    ),
}


@pytest.fixture(scope="module")
def whole_run(source, tmp_path_factory) -> Callable[[str], Path]:
    """The uninterrupted run with ``OPTIONS[name]``, trained once."""

    @cache
    def trained(name: str) -> Path:
        out: Path = tmp_path_factory.mktemp("whole")
        pretrain(recipe(*OPTIONS[name], "--run.checkpoint_steps=1"), source, out)
        return out

    return trained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stop"),
    [
        # All but a release's run stop in each way once, and with each option once.
        pytest.param(
            name, stop, marks=[] if name == "plain" or stop == 4 else [pytest.mark.release]
        )
        for name in OPTIONS for stop in (2, 4, 7)
    ],
)  # fmt: skip
def test_resumed_equals_uninterrupted_bit_for_bit(
    source, whole_run, tmp_path, monkeypatch, name, stop
):
    """N steps = k, a crash, N − k: weights, losses and learning rates."""
    made = recipe(*OPTIONS[name], "--run.checkpoint_steps=1")
    whole, broken = whole_run(name), tmp_path / "broken"
    original = PretrainModule.training_step
    accumulate = made.run.accumulate

    def crash(self: PretrainModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        if self.global_step == stop and batch_idx % accumulate == 0:
            raise RuntimeError("power cut")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(PretrainModule, "training_step", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        pretrain(made, source, broken)
    monkeypatch.setattr(PretrainModule, "training_step", original)
    pretrain(made, source, broken)
    assert same(broken, whole)
    assert rows(broken)[-1] == rows(whole)[-1]
    assert [r["step"] for r in rows(broken)] == [r["step"] for r in rows(whole)]


@pytest.mark.slow
def test_a_run_learns_and_says_so(tmp_path):
    source = SyntheticSource(chips=160, size=32, seed=0)
    done = pretrain(recipe("--run.epochs=12"), source, tmp_path / "run")
    out = tmp_path / "run"
    for name in (
        "recipe.yaml",
        "metrics.csv",
        "report.html",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "model/model.safetensors",
        "pictures/epoch_00012.png",
    ):
        assert (out / name).is_file(), name
    assert any((out / "tensorboard").glob("events*"))
    assert done.metrics["val/loss"] < 0.9 * done.metrics["val_baseline/loss"]
    table = rows(out)
    assert {
        "train/rgb",
        "train/elevation",
        "train/landcover",
        "lr",
        "val_baseline/landcover",
    } <= set(table[0])
    assert "validation loss" in (out / "model/README.md").read_text()
    again = pretrain(recipe("--run.epochs=12"), source, out)
    assert again.seconds < done.seconds, "a finished run has nothing to do"


@pytest.fixture(scope="module")
def one_epoch(source, tmp_path_factory) -> Path:
    out: Path = tmp_path_factory.mktemp("epoch") / "run"
    pretrain(recipe("--run.epochs=1"), source, out)
    return out


@pytest.fixture
def finished(one_epoch, tmp_path) -> Path:
    """A copy of the run of one epoch, to continue or to damage."""
    return Path(shutil.copytree(one_epoch, tmp_path / "finished"))


def test_another_recipe_or_other_data_are_refused(source, finished):
    with pytest.raises(ConfigError, match=r"run\.epochs: 1 there, 2 here"):
        pretrain(recipe("--run.epochs=2"), source, finished)
    other = SyntheticSource(chips=40, size=32, seed=3)
    with pytest.raises(ConfigError, match=r"source\.chips: 48 there, 40 here"):
        pretrain(recipe("--run.epochs=1"), other, finished)


def test_a_damaged_checkpoint_is_told(source, finished):
    last = finished / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="damaged; delete it"):
        pretrain(recipe("--run.epochs=1"), source, finished)


class WithNaN(SyntheticSource):
    """A reader with a bug: NaN in pixels it calls valid."""

    def read(self, index: int, names=None) -> Sample:
        sample = super().read(index, names)
        pixels = {
            n: p.astype(np.float32) if n == "elevation" else p for n, p in sample.pixels.items()
        }
        pixels["elevation"][:] = np.nan
        return Sample(key=sample.key, pixels=pixels, calibration=sample.calibration)


def test_a_loss_that_is_not_finite_stops_with_the_chips(tmp_path, source):
    bad = WithNaN(chips=48, size=32, seed=3)
    run = tmp_path / "run"
    run.mkdir()
    import json

    statistics = source.statistics(range(8)).select(["rgb", "elevation", "landcover"])
    (run / "statistics.json").write_text(json.dumps(statistics.to_dict()))
    with pytest.raises(TrainingError, match=r"elevation.*; chips of the batch: chip-"):
        pretrain(recipe(), bad, run)
    assert not (run / "checkpoints/last.ckpt").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--modalities=[rgb, elevatoin]", "did you mean 'elevation'"),
        ("--masking.inputs=[rbg]", "did you mean 'rgb'"),
        ("--data.chip=64", "64 px is larger than the chips"),
        ("--model.stride={landcover: 3}", "do not fall on its pixels"),
        ("--model.stride={rgb: 2}", "stride thins class maps only"),
        ("--model.encoder=bsae", "did you mean 'base'"),
        ("--tasks={a: {modality: landcover, loss: mse}}", "use 'cross_entropy'"),
    ],
)
def test_recipes_that_do_not_fit_the_data_are_refused(source, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        pretrain(recipe(override), source, tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing is left behind"


class Other(SyntheticSource):
    """Radar and relief only, under another name, at another scale."""

    def __init__(self, **arguments) -> None:
        super().__init__(**arguments)
        self.name = "other"

    def read(self, index: int, names=None) -> Sample:
        wanted = [n for n in ("radar", "elevation") if names is None or n in names]
        sample = super().read(index, wanted)
        centimetres = {**sample.pixels}
        calibration = dict(sample.calibration)
        if "elevation" in centimetres:
            centimetres["elevation"] = centimetres["elevation"].astype(np.int32) * 100
            calibration["elevation"] = Calibration(scale=0.01)
        return Sample(
            key=sample.key, pixels=centimetres, valid=sample.valid, calibration=calibration
        )


@pytest.mark.slow
def test_sources_with_different_modalities_train_in_one_batch(tmp_path):
    """Two sources, one with optical, one with radar and relief in centimetres."""
    a = SyntheticSource(chips=40, size=32, seed=1)
    b = Other(chips=40, size=32, seed=2)
    both = ConcatSource([a, b])
    batch = both.batch([both.keys[0], both.keys[45]], ["rgb", "radar", "elevation"])
    assert batch.present.tolist() == [[True, True, True], [False, True, True]]
    column = batch.modalities.index("elevation")
    assert batch.scale[:, column].tolist() == pytest.approx([1.0, 0.01])
    made = recipe(
        "--modalities=[rgb, radar, elevation]",
        "--model.stride={}",
        "--masking.num_visible_tokens=12",
    )
    done = pretrain(made, both, tmp_path / "run")
    assert done.metrics["val/loss"] < done.metrics["val_baseline/loss"] * 1.5
    assert all(np.isfinite(v) for v in done.metrics.values())


def test_a_run_begun_before_an_option_existed_is_resumed(source, finished):
    import yaml

    path = finished / "recipe.yaml"
    record = yaml.safe_load(path.read_text(encoding="utf-8"))
    del record["contrastive"], record["run"]["compile"]
    path.write_text(yaml.safe_dump(record), encoding="utf-8")
    pretrain(recipe("--run.epochs=1"), source, finished)
    with pytest.raises(ConfigError, match=r"contrastive\.weight: 0\.0 there, 0\.5 here"):
        pretrain(recipe("--run.epochs=1", "--agreement.weight=0.5"), source, finished)


@pytest.mark.slow
def test_a_run_starts_from_a_model_as_far_as_it_fits(source, one_epoch, tmp_path, capfd):
    first = one_epoch / "model"
    init = InitialModel(model=MultiMAE.from_pretrained(first), name="first", digest="0")
    model = MultiMAE.from_pretrained(first)
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    capfd.readouterr()
    start_from(model, init)
    kept = init.model.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert capfd.readouterr().err == ""
    # A modality that the first did not know starts anew; the others do not.
    more = ("--run.epochs=1", "--modalities=[rgb,ired]", "--model.stride={}")
    done = pretrain(recipe(*more), source, tmp_path / "second", init=init)
    told = capfd.readouterr().err.splitlines()[0]
    assert told.startswith("new weights: ")
    assert "embeddings.ired" in told
    assert "embeddings.rgb" not in told
    assert MultiMAE.from_pretrained(done.model).modalities.names == ("rgb", "ired")
    with pytest.raises(ConfigError, match="its encoder is"):
        pretrain(recipe("--model.encoder.depth=2"), source, tmp_path / "third", init=init)
