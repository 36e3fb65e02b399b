"""``study``: fair splits, choices on validation only, the same numbers again, and resumption."""

from __future__ import annotations

import csv
import re
from importlib import import_module

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from multimae_eo.errors import ConfigError, FormatError
from multimae_eo.evaluation.probes import ProbeOptions
from multimae_eo.evaluation.study import StudyPlan, Transfer, claim_study, set_trials, study
from multimae_eo.evaluation.trials import Trial, TrialFiles, comparisons, merged, slug
from multimae_eo.loading.open_source import open_source
from multimae_eo.metrics.task_metrics import Counts, MapCounts, Predictions, scores_of, values_of
from multimae_eo.network.config import EncoderConfig, InputConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.train.finetune_recipe import load_finetune
from tests.support.geobench_files import write_geobench

OPTIONS = ("--run.epochs=1", "--run.accelerator=cpu", "--data.batch_size=8", "--optim.lr=0.3")


@pytest.fixture(scope="module")
def about(tmp_path_factory) -> Transfer:
    root = tmp_path_factory.mktemp("study")
    write_geobench(root, "m-eurosat", chips=(40, 10, 20), size=16)
    source = open_source(f"geobench:{root}/m-eurosat")
    config = ModelConfig(
        encoder=EncoderConfig(width=16, depth=1, heads=2),
        inputs={n: InputConfig(size=16, patch=4) for n in source.modalities},
    )
    torch.manual_seed(0)
    model = MultiMAE(source.modalities, (), config, source.statistics()).eval()
    return Transfer(model=model, source=source, digest="none", spec="m-eurosat")


def plan(*options: str, methods=("finetune", "random-init"), grid=None, **how) -> StudyPlan:
    probing = ProbeOptions(features="mean", fractions=how.pop("fractions", (50, 100)),
                           seeds=how.pop("seeds", 1))  # fmt: skip

    def make(more):
        return load_finetune(None, [*OPTIONS, *options, *more])

    return StudyPlan(make=make, methods=methods, probing=probing, grid=grid, **how)


@pytest.mark.slow
def test_side_by_side_and_again_from_what_is_finished(about, tmp_path, monkeypatch):
    sets = {"rgb": ["rgb"], "both": ["rgb", "ired"]}
    whole = plan(methods=("finetune", "random-init", "linear"), seeds=2)
    rows = study(about, whole, tmp_path, inputs=sets)
    assert {(r["features"], r["method"]) for r in rows} == {
        ("pre-trained", "fine-tuning"), ("random initialisation", "fine-tuning"),
        ("pre-trained", "linear"), ("random encoder", "linear"), ("image statistics", "linear"),
    }  # fmt: skip
    assert {r["train chips"] for r in rows} == {20, 40}
    assert {r["seeds"] for r in rows if r["method"] == "fine-tuning"} == {2}
    written = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [r["accuracy"] for r in written] == [r["accuracy"] for r in rows]
    for name in ("results.md", "report.html", "card/card.md", "comparisons.csv"):
        assert (tmp_path / name).stat().st_size > 0
    assert list((tmp_path / "models").glob("*/config.json"))
    monkeypatch.setattr(import_module("multimae_eo.evaluation.study"), "finetune", None)
    monkeypatch.setattr(import_module("multimae_eo.evaluation.probes"), "extract", None)
    assert study(about, whole, tmp_path, inputs=sets) == rows


@pytest.mark.slow
def test_a_repeated_study_gives_the_same_numbers(about, tmp_path):
    few = plan(fractions=(100,))
    first, again = (study(about, few, tmp_path / n, inputs={"rgb": ["rgb"]}) for n in "ab")
    assert first == again


@pytest.mark.slow
def test_the_grid_is_chosen_on_validation(about, tmp_path):
    tried = plan(methods=("finetune",), grid={"optim.lr": ("1e-9", "0.5")}, fractions=(100,))
    (row,) = study(about, tried, tmp_path, inputs={"all": ["rgb", "ired", "sired"]})
    with (tmp_path / "grid.csv").open(encoding="utf-8") as file:
        points = {r["point"]: float(r["validation accuracy"]) for r in csv.DictReader(file)}
    assert set(points) == {"optim.lr=1e-9", "optim.lr=0.5"}
    assert points[row["chosen"]] == max(points.values())


@pytest.mark.slow
def test_test_chips_decide_nothing(about, tmp_path, monkeypatch):
    """Were the test split's labels others, the choices and the training would be the same."""
    tried = plan(methods=("finetune",), grid={"optim.lr": ("1e-9", "0.5")}, fractions=(100,))
    (honest,) = set_trials(about, tried, tmp_path / "a", label="rgb", inputs=["rgb"])
    read = type(about.source).read
    test = set(about.source.split("test").tolist())

    def moved(self, index, names=None):
        from dataclasses import replace

        sample = read(self, index, names)
        return replace(sample, label=(sample.label + 1) % 10) if index in test else sample

    monkeypatch.setattr(type(about.source), "read", moved)
    (other,) = set_trials(about, tried, tmp_path / "b", label="rgb", inputs=["rgb"])
    assert (other.chosen, other.validation) == (honest.chosen, honest.validation)
    ours, theirs = other.predictions[0], honest.predictions[0]
    assert isinstance(ours, Predictions)
    assert isinstance(theirs, Predictions)
    np.testing.assert_array_equal(ours.predicted, theirs.predicted)
    assert values_of(other.predictions[0]) != values_of(honest.predictions[0])


@pytest.mark.slow
def test_small_fractions_get_their_steps(about, tmp_path):
    whole = plan("--optim.warmup_epochs=0.5", fractions=(25,), steps=8)
    (trial,) = set_trials(about, plan(methods=("finetune",), fractions=(25,), steps=8),
                          tmp_path, label="rgb", inputs=["rgb"])  # fmt: skip
    assert trial.train_chips == 10
    from multimae_eo.evaluation.study import _Case, _recipe

    case = _Case(about, whole, "rgb", ["rgb"], "random-init", 25)
    recipe = _recipe(case, 10, ())
    assert (recipe.run.epochs, recipe.optim.warmup_epochs) == (4, 2.0)  # 2 steps an epoch
    assert recipe.optim.layer_decay == 1.0
    assert _recipe(case, 40, ()).run.epochs == 2


@pytest.mark.slow
def test_another_study_in_the_folder_is_refused(about, tmp_path):
    one = plan(methods=("finetune",), fractions=(100,))
    study(about, one, tmp_path, inputs={"rgb": ["rgb"]})
    other = plan("--optim.lr=0.1", methods=("finetune",), fractions=(100,))
    with pytest.raises(ConfigError, match="holds another run"):
        study(about, other, tmp_path, inputs={"rgb": ["rgb"]})


@pytest.mark.slow
def test_a_study_of_before_an_option_was_added_is_resumed(about, tmp_path):
    begun = plan(methods=("finetune",))
    claim_study(about, begun, tmp_path)
    path = tmp_path / "recipe.yaml"
    record = yaml.safe_load(path.read_text())
    del record["recipe"]["augment"]["num_visible_tokens"]
    path.write_text(yaml.safe_dump(record))
    claim_study(about, begun, tmp_path)
    with pytest.raises(ConfigError, match=r"augment\.num_visible_tokens"):
        claim_study(about, plan("--augment.num_visible_tokens=9", methods=("finetune",)), tmp_path)


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression", "segmentation"])
def test_trials_are_kept_as_they_are(kind, tmp_path):
    rng = np.random.default_rng(0)
    keys = tuple(f"chip-{i}" for i in range(6))
    shape = {"multilabel": (6, 3), "segmentation": (6, 4, 4)}.get(kind, (6,))
    guesses = [rng.integers(0, 2, shape) for _ in range(2)]
    truth = rng.integers(0, 2, shape)
    truth.flat[:2] = 0, 1
    made = [
        Predictions(kind=kind, keys=keys, truth=truth, predicted=g, class_names=("a", "b"),
                    probability=rng.random((6, 3)) if kind == "multilabel" else None)
        for g in guesses
    ]  # fmt: skip
    trials = [
        Trial(inputs="rgb", features="pre-trained", method="linear", percent=5.0, train_chips=3,
              chosen=(0.1,), predictions=(p,), seconds=1.0, validation=(0.5,))
        for p in made
    ]  # fmt: skip
    both = merged(trials)
    cells = TrialFiles(tmp_path)
    assert cells.get("a", "b") is None
    cells.put(both, "a", "b")
    found = cells.get("a", "b")
    assert found is not None
    assert found.row(0) == both.row(0)
    assert (found.chosen, found.validation) == ((0.1, 0.1), (0.5, 0.5))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(FormatError, match="damaged"):
        cells.get("a", "b")


def test_tallied_maps_score_as_the_maps_do():
    rng = np.random.default_rng(1)
    truth = rng.integers(-1, 3, (5, 8, 8))
    maps = Predictions(kind="segmentation", keys=tuple("abcde"), truth=truth,
                       predicted=rng.integers(0, 3, truth.shape))  # fmt: skip
    counts = maps.counts
    assert isinstance(counts, Counts)
    tallied = MapCounts(kind="segmentation", keys=maps.keys, counts=counts)
    weights = rng.integers(0, 3, (4, 5)).astype(float)
    for name, score in scores_of(tallied).items():
        np.testing.assert_array_equal(score(weights), scores_of(maps)[name](weights))


def test_fine_tuning_is_compared_with_scratch_and_linear_probes():
    def trial(features: str, method: str, right: int) -> Trial:
        predicted = np.r_[np.zeros(right, int), np.ones(20 - right, int)]
        told = Predictions(kind="classification", keys=tuple(map(str, range(20))),
                           truth=np.zeros(20, int), predicted=predicted)  # fmt: skip
        return Trial(inputs="rgb", features=features, method=method, percent=5, train_chips=1,
                     chosen=("–",), predictions=(told,), seconds=0)  # fmt: skip

    trials = [
        trial("pre-trained", "fine-tuning", 20), trial("random initialisation", "fine-tuning", 4),
        trial("pre-trained", "knn", 5), trial("pre-trained", "linear", 10),
        trial("image statistics", "linear", 10),
    ]  # fmt: skip
    rows = comparisons(trials, seed=0)
    assert [r["second"] for r in rows] == [
        "random initialisation (rgb)", "pre-trained (rgb)", "image statistics (rgb)",
        "image statistics (rgb)",
    ]  # fmt: skip
    assert rows[0]["accuracy, difference"] == pytest.approx(0.8)
    assert rows[0]["p (Holm)"] < 0.01
    assert rows[3]["p"] == 1.0


def test_file_names_are_unique_and_plain():
    assert slug("a b", "c") != slug("a", "b c")
    assert re.fullmatch(r"[\w=+-][\w.=+-]*", slug("../../x", "y;z"))
