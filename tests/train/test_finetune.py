"""Fine-tuning: it learns each kind of label, resumes exactly, and takes what inputs there are."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from multimae_eo import MultiMAE, Predictor
from multimae_eo.errors import ConfigError, ContractError, DataError
from multimae_eo.evaluation.predictions import evaluate
from multimae_eo.metrics.task_metrics import Predictions, values_of
from multimae_eo.network.config import HeadConfig
from multimae_eo.network.target import Target
from multimae_eo.sample import Sample
from multimae_eo.sources.base import Source
from multimae_eo.sources.synthetic import SyntheticSource
from multimae_eo.train.finetune import finetune
from multimae_eo.train.finetune_module import FinetuneModule, layer_scale
from multimae_eo.train.finetune_recipe import (
    AugmentRecipe,
    FinetuneRecipe,
    LossRecipe,
    load_finetune,
    parse_finetune,
)
from multimae_eo.train.supervised import Mixing, SupervisedLoss, draw_mixing, hide

RECIPE = {
    "inputs": ["rgb", "ired", "elevation"],
    "model": {"encoder": {"width": 32, "depth": 2, "heads": 2}},
    "head": {"width": 16, "depth": 1},
    "optim": {"lr": 0.05, "warmup_epochs": 1, "clip": 1.0, "layer_decay": 1.0, "drop_path": 0.1},
    "data": {"batch_size": 16},
    "run": {"epochs": 3, "log_every": 1, "accelerator": "cpu"},
}


def recipe(*overrides: str) -> FinetuneRecipe:
    return parse_finetune(RECIPE, overrides)


class Relabelled(Source):
    """A source with labels made from its samples."""

    def __init__(
        self, source: Source, label: Callable[[Sample], Any], class_names: tuple[str, ...] = ()
    ) -> None:
        self.source, self.label = source, label
        self.name, self.modalities = source.name, source.modalities
        self.keys, self.split_of, self.class_names = source.keys, source.split_of, class_names

    def read(self, index: int, names: Any = None) -> Sample:
        whole = self.source.read(index)
        kept = list(self.modalities) if names is None else names
        return replace(whole.select(kept), label=self.label(whole))


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource(chips=120, size=32, seed=3)


def cover(sample: Sample) -> np.ndarray:
    """Tree, water or anything else; the left columns are ignored."""
    ids = sample.pixels["landcover"][0]
    label = np.select([ids == 10, ids == 80], [0, 1], 2).astype(np.int64)
    label[:, :4] = -1
    return label


def vegetation(sample: Sample) -> np.float32:
    red, near = sample.pixels["rgb"][0].mean(), sample.pixels["ired"][-1].mean()
    return np.float32(100 * (near - red) / (near + red))


def present(sample: Sample) -> np.ndarray:
    ids = sample.pixels["landcover"][0]
    return np.array([(ids == i).mean() > 0.1 for i in (10, 30, 40)], np.float32)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(Predictor.from_pretrained(out / "model").state_dict())


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    return [{k: v for k, v in r.items() if not k.startswith("throughput")} for r in kept]


# it learns ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_classification_beats_the_majority_by_far(source, tmp_path):
    done = finetune(recipe("--run.epochs=12"), source, tmp_path / "run", model=None)
    for name in ("recipe.yaml", "metrics.csv", "report.html", "checkpoints/best.ckpt",
                 "checkpoints/last.ckpt", "model/README.md"):  # fmt: skip
        assert (tmp_path / "run" / name).is_file()
    assert done.metrics["val/loss"] < done.metrics["val_baseline/loss"]
    predictor = Predictor.from_pretrained(done.model)
    record = evaluate(predictor, source, out=tmp_path / "eval")
    labels = np.array([source.read(int(i), ["rgb"]).label for i in source.split("test")])
    majority = np.bincount(labels).max() / len(labels)
    accuracy = record["metrics"]["accuracy"]
    assert accuracy["value"] > majority + 0.1
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]

    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "eval" / "predictions.parquet").to_pydict()
    assert table["label"] == labels.tolist()
    assert np.allclose(np.sum(table["probabilities"], axis=1), 1, atol=1e-5)
    for name in ("card.md", "report.html"):
        assert "accuracy" in (tmp_path / "eval" / name).read_text(encoding="utf-8")
    right = np.array(table["prediction"]) == labels
    assert right.mean() == pytest.approx(accuracy["value"])


@pytest.mark.slow
def test_segmentation_beats_the_majority_class(source, tmp_path):
    maps = Relabelled(source, cover, ("tree", "water", "other"))
    options = ("--task=segmentation", "--run.epochs=6", "--head.name=convnext")
    done = finetune(recipe(*options), maps, tmp_path / "run", model=None)
    said = evaluate(Predictor.from_pretrained(done.model), maps, out=tmp_path / "eval")
    truth = np.stack([cover(source.read(int(i))) for i in source.split("test")])
    everything = np.full_like(truth, np.bincount(truth[truth >= 0]).argmax())
    guessed = Predictions(
        kind="segmentation",
        keys=tuple(map(str, range(len(truth)))),
        truth=truth,
        predicted=everything,
    )
    majority = values_of(guessed)["mIoU"]
    assert said["metrics"]["mIoU"]["value"] > majority + 0.15
    assert {"IoU tree", "IoU water", "IoU other"} <= set(said["metrics"])


@pytest.mark.slow
def test_regression_explains_most_of_the_spread_in_the_labels_unit(source, tmp_path):
    values = Relabelled(source, vegetation)
    options = ("--task=regression", "--run.epochs=10", "--loss.regression=huber")
    done = finetune(recipe(*options), values, tmp_path / "run", model=None)
    said = evaluate(Predictor.from_pretrained(done.model), values)["metrics"]
    assert said["R2"]["value"] > 0.6
    truth = [vegetation(source.read(int(i))) for i in source.split("test")]
    assert said["RMSE"]["value"] < np.std(truth)


@pytest.mark.slow
def test_multilabel_ranks_chips_of_each_class(source, tmp_path):
    several = Relabelled(source, present, ("tree", "grass", "crop"))
    options = ("--run.epochs=8", "--loss.class_weights=balanced", "--augment.cutmix=1.0")
    done = finetune(recipe(*options), several, tmp_path / "run", model=None)
    said = evaluate(Predictor.from_pretrained(done.model), several)["metrics"]
    truth = np.stack([present(source.read(int(i))) for i in source.split("test")])
    chance = truth.mean(axis=0)[truth.any(axis=0)].mean()
    assert said["mAP"]["value"] > chance + 0.15


# runs ---------------------------------------------------------------------------------------

EVERYTHING = (
    "--optim.ema=0.9",
    "--augment.mixup=0.4",
    "--augment.cutmix=1.0",
    "--loss.label_smoothing=0.1",
    "--head.dropout=0.2",
    "--run.checkpoint_steps=1",
)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [3, 8])
def test_resumed_equals_uninterrupted_bit_for_bit(source, tmp_path, monkeypatch, stop):
    finetune(recipe(*EVERYTHING), source, tmp_path / "whole", model=None)
    step = FinetuneModule.training_step

    def failing(self: FinetuneModule, batch: Any, index: int) -> Any:
        if self.global_step == stop:
            raise RuntimeError("power cut")
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneModule, "training_step", failing)
        with pytest.raises(RuntimeError, match="power cut"):
            finetune(recipe(*EVERYTHING), source, tmp_path / "cut", model=None)
    finetune(recipe(*EVERYTHING), source, tmp_path / "cut", model=None)
    ours, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.slow
def test_it_stops_early_stays_stopped_and_keeps_the_best(source, tmp_path):
    options = ("--run.epochs=30", "--run.patience=2", "--optim.lr=3.0", "--optim.clip=null")
    done = finetune(recipe(*options), source, tmp_path / "run", model=None)
    validated = [r for r in rows(tmp_path / "run") if r["val/loss"]]
    assert len(validated) < 30
    score = [(-float(r["val/accuracy"]), float(r["val/loss"])) for r in validated]
    assert score.index(min(score)) == len(validated) - 3
    before = weights(tmp_path / "run")
    again = finetune(recipe(*options), source, tmp_path / "run", model=None)
    assert again.metrics == pytest.approx(done.metrics, abs=1e-5)
    assert len([r for r in rows(tmp_path / "run") if r["val/loss"]]) == len(validated)
    assert all(torch.equal(before[k], v) for k, v in weights(tmp_path / "run").items())
    assert done.metrics["val/accuracy"] == pytest.approx(-min(score)[0], abs=1e-5)


@pytest.mark.slow
def test_it_does_not_stop_before_the_least_epochs_and_resumes_there(source, tmp_path, monkeypatch):
    """With a rate of 0 nothing improves: patience alone would stop after two epochs."""
    options = ("--run.epochs=6", "--run.patience=1", "--run.min_epochs=4", "--optim.lr=0")
    few = ("--inputs=[rgb]", "--head_init=random", *options)
    finetune(recipe(*few), source, tmp_path / "a", model=None)
    assert len([r for r in rows(tmp_path / "a") if r["val/loss"]]) == 4
    step = FinetuneModule.training_step

    def failing(self: FinetuneModule, batch: Any, index: int) -> Any:
        if self.current_epoch == 3:
            raise RuntimeError("power cut")
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneModule, "training_step", failing)
        with pytest.raises(RuntimeError, match="power cut"):
            finetune(recipe(*few), source, tmp_path / "b", model=None)
    for _ in range(2):  # the second time it has stopped, and stays so
        finetune(recipe(*few), source, tmp_path / "b", model=None)
        assert rows(tmp_path / "b") == rows(tmp_path / "a")


@pytest.mark.slow
def test_gradients_are_clipped_in_mixed_precision_too(source, tmp_path):
    """A fused AdamW refuses to be clipped there."""
    options = ("--run.precision=bf16-mixed", "--run.epochs=1", "--optim.clip=0.5")
    maps = Relabelled(source, cover, ("tree", "water", "other"))
    finetune(recipe(*options), source, tmp_path / "classes", model=None)
    of_maps = (*options, "--task=segmentation", "--head.name=dpt")
    finetune(recipe(*of_maps), maps, tmp_path / "maps", model=None)


def test_another_recipe_in_the_same_folder_is_refused(source, tmp_path):
    finetune(recipe("--run.epochs=1"), source, tmp_path, model=None)
    with pytest.raises(ConfigError, match=r"holds another run \(head.pool: mean there"):
        finetune(recipe("--run.epochs=1", "--head.pool=global"), source, tmp_path, model=None)


# transfer -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(source: SyntheticSource, tmp_path_factory: pytest.TempPathFactory) -> MultiMAE:
    """Pre-trained on windows of half a chip."""
    from multimae_eo.train.pretrain import pretrain
    from multimae_eo.train.recipe import parse_recipe

    record = {
        "modalities": ["rgb", "ired", "elevation", "radar"],
        "model": {
            "encoder": {"width": 32, "depth": 2, "heads": 2},
            "decoder": {"width": 16, "depth": 1, "heads": 2},
        },
        "masking": {"num_visible_tokens": 8},
        "data": {"chip": 16},
        "run": {"epochs": 1, "pictures_every": 0, "accelerator": "cpu"},
    }
    out = tmp_path_factory.mktemp("pre")
    return MultiMAE.from_pretrained(pretrain(parse_recipe(record), source, out).model)


@pytest.mark.slow
def test_a_frozen_encoder_stays_as_it_was(source, pretrained, tmp_path):
    options = ("--freeze=encoder", "--run.epochs=1", "--data.chip=16")
    done = finetune(recipe(*options), source, tmp_path, model=pretrained)
    predictor = Predictor.from_pretrained(done.model)
    before = pretrained.state_dict()
    for name, value in predictor.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert predictor.encoder.config.sizes == {"rgb": 16, "ired": 16, "elevation": 16}
    assert evaluate(predictor, source)["chips"] == len(source.split("test")), "by windows"


@pytest.mark.slow
def test_low_rank_differences_alone_learn_and_are_merged(source, pretrained, tmp_path):
    options = ("--adapt.lora=4", "--data.chip=16", "--run.epochs=2", "--optim.drop_path=0")
    done = finetune(recipe(*options), source, tmp_path, model=pretrained)
    predictor = Predictor.from_pretrained(done.model)
    before, after = pretrained.state_dict(), predictor.encoder.state_dict()
    moved = {n for n, v in after.items() if not torch.equal(v, before[n])}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert moved == {f"encoder.blocks.{i}.{n}.weight" for i in (0, 1) for n in layers}
    for name in moved:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 4, name
    state = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    unmerged = FinetuneModule(
        Predictor(predictor.encoder.reinitialised(), predictor.target, HeadConfig(width=16)),
        recipe(*options), steps=1, warmup=0, lr=0.1,
    )  # fmt: skip
    unmerged.load_state_dict(state)
    learning = {n for n, p in unmerged.named_parameters() if p.requires_grad}
    assert all(n.endswith((".up", ".down")) or ".head." in n for n in learning)
    assert len([n for n in learning if n.endswith(".up")]) == 8
    batch = source.batch(source.keys[:4], list(predictor.encoder.modalities))
    with torch.no_grad():
        expected = unmerged.predictor.eval().predict(batch)
        assert torch.allclose(predictor.eval().predict(batch), expected, atol=1e-5)
    with pytest.raises(ConfigError, match="give a --model"):
        finetune(recipe("--adapt.lora=4"), source, tmp_path / "b", model=None)
    with pytest.raises(ConfigError, match="rank 32 of layers 32 wide is not low"):
        finetune(recipe("--adapt.lora=32"), source, tmp_path / "c", model=pretrained)


def test_frozen_stages_and_layerwise_rates(pretrained):
    target = Target(kind="class", classes=("a", "b"), counts=(1.0, 1.0), total=2.0)
    module = FinetuneModule(
        Predictor(pretrained.reinitialised(), target, HeadConfig()),
        recipe("--freeze=1", "--optim.layer_decay=0.5", "--optim.drop_path=0.2"),
        steps=4, warmup=0, lr=0.1,
    )  # fmt: skip
    optimizer = cast("dict[str, Any]", module.configure_optimizers())["optimizer"]
    names = {id(p): n for n, p in module.named_parameters()}
    rates = {names[id(p)]: g["initial_lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates["predictor.head.project.weight"] == pytest.approx(0.1)
    assert rates["predictor.encoder.encoder.blocks.1.norm1.weight"] == pytest.approx(0.05)
    assert not [n for n in rates if "blocks.0." in n or "embeddings" in n or "global_tokens" in n]
    assert [b.drop_path for b in module.predictor.encoder.encoder.blocks] == [0.0, 0.2]
    assert layer_scale(2, 0.5)("predictor.encoder.embeddings.rgb.projection.weight") == 0.125


def test_chips_may_lack_inputs_and_a_sensor_may_bring_more_bands(pretrained, tmp_path, capsys):
    lacking = SyntheticSource(chips=60, size=32, seed=4, missing=0.5)
    options = ("--inputs=[rgb,radar,sired]", "--run.epochs=1")
    done = finetune(recipe(*options), lacking, tmp_path, model=pretrained)
    said = capsys.readouterr().err
    assert "chips have no label or no input" in said
    assert "sired: weights of bands: B11 new, B12 new" in said
    predictor = Predictor.from_pretrained(done.model)
    assert predictor.encoder.modalities.names == ("rgb", "radar", "sired")
    whole = SyntheticSource(chips=60, size=32, seed=4)
    for inputs in (["rgb"], ["radar", "sired"]):
        assert evaluate(predictor, whole, inputs=inputs)["inputs"] == inputs


def test_what_does_not_fit_the_model_is_told(source, pretrained, tmp_path):
    done = finetune(recipe("--run.epochs=1"), source, tmp_path / "run", model=None)
    predictor = Predictor.from_pretrained(done.model)
    with pytest.raises(ConfigError, match="inputs: no 'radar' in both"):
        evaluate(predictor, source, inputs=["radar"])
    with pytest.raises(ContractError, match="its classes"):
        evaluate(predictor, Relabelled(source, cover, ("a", "b")))
    with pytest.raises(DataError, match="none of the kind"):
        evaluate(predictor, Relabelled(source, cover))
    with pytest.raises(DataError, match="one class per chip; segmentation needs"):
        finetune(recipe("--task=segmentation"), source, tmp_path / "b", model=None)
    with pytest.raises(ConfigError, match=r"data\.chip: a window of 40 px"):
        finetune(recipe("--data.chip=40"), source, tmp_path / "c", model=pretrained)


# losses -------------------------------------------------------------------------------------

MAPS = Target(kind="map", classes=("a", "b", "c"), counts=(6.0, 3.0, 1.0), total=10.0)


def test_ignored_pixels_give_no_gradient_and_none_left_gives_zero():
    loss = SupervisedLoss(MAPS, LossRecipe(label_smoothing=0.1, class_weights="balanced"))
    outputs = torch.randn(2, 3, 4, 4, requires_grad=True)
    labels = torch.randint(3, (2, 4, 4))
    labels[0, :2] = -1
    loss(outputs, labels).backward()
    assert outputs.grad[0, :, :2].abs().max() == 0
    assert outputs.grad[0, :, 2:].abs().min() > 0
    nothing = loss(outputs, torch.full_like(labels, -1))
    assert float(nothing.detach()) == 0.0


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_torch_s(smoothing):
    target = replace(MAPS, kind="class")
    outputs, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, -1, 0])
    loss = SupervisedLoss(target, LossRecipe(label_smoothing=smoothing))
    expected = F.cross_entropy(outputs, labels, ignore_index=-1, label_smoothing=smoothing)
    assert torch.allclose(loss(outputs, labels), expected)
    assert torch.allclose(
        loss.eval()(outputs, labels), F.cross_entropy(outputs, labels, ignore_index=-1)
    )
    weighted = SupervisedLoss(target, LossRecipe(class_weights=[1.0, 2.0, 5.0]))
    weight = torch.tensor([1.0, 2.0, 5.0])
    expected = F.cross_entropy(outputs, labels, weight=weight, ignore_index=-1)
    assert torch.allclose(weighted(outputs, labels), expected)


def test_the_constant_prediction_has_the_entropy_of_the_labels():
    target = replace(MAPS, kind="class", counts=(6000.0, 3000.0, 1000.0), total=10000.0)
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    shares = torch.tensor([0.6, 0.3, 0.1])
    loss = SupervisedLoss(target, LossRecipe()).eval()
    assert float(loss.constant(labels)) == pytest.approx(
        float(-(shares * shares.log()).sum()), abs=1e-3
    )


def test_mixing_mixes_patches_and_labels_alike(pretrained, source):
    batch = source.batch(source.keys[:4], ["rgb", "ired", "elevation", "radar"])
    patches = pretrained.patchify(batch)
    mixed = Mixing(torch.tensor([1, 0, 3, 2]), 0.25)(patches)
    a, b = patches.values["rgb"][0], patches.values["rgb"][1]
    assert torch.allclose(mixed.values["rgb"][0], 0.25 * a + 0.75 * b)
    box = (0.0, 0.5, 0.0, 1.0)
    cut = Mixing(torch.tensor([1, 0, 3, 2]), 0.5, box)(patches).values["rgb"][0]
    rows, cols = patches.layout.grids["rgb"]
    half = rows // 2 * cols
    assert torch.equal(cut[:half], b[:half])
    assert torch.equal(cut[half:], a[half:])
    drawn = draw_mixing(AugmentRecipe(cutmix=1.0), 8, seed=5)
    assert drawn is not None
    top, bottom, left, right = drawn.box
    assert drawn.kept == pytest.approx(1 - (bottom - top) * (right - left))
    assert draw_mixing(AugmentRecipe(), 8, seed=5) is None


def test_hidden_tokens_are_drawn_as_in_pretraining(source, make_model):
    model = make_model()
    batch = source.batch(source.keys[:16], ["rgb", "elevation"])
    patches = model.patchify(batch)
    assert hide(patches, AugmentRecipe(), batch.keys, 1) is patches
    few = hide(patches, AugmentRecipe(num_visible_tokens=5, alpha=0.05), batch.keys, 1)
    assert few.observed is not None
    assert (few.observed.sum(dim=1) == 5).all()
    by_modality = torch.stack([few.observed[:, s].sum(1) for s in few.layout.slices.values()], 1)
    assert (by_modality.max(dim=1).values == 5).float().mean() > 0.5, "small alpha: often one only"
    again = hide(patches, AugmentRecipe(num_visible_tokens=5, alpha=0.05), batch.keys, 1).observed
    assert torch.equal(few.observed, again)
    features = model.encode_patches(few, batch.keys)
    assert features.slots.count == 5


@pytest.mark.slow
def test_fine_tuning_on_few_tokens_learns_and_costs_less(source, tmp_path):
    done = finetune(
        recipe("--run.epochs=12", "--augment.num_visible_tokens=8"),
        source,
        tmp_path / "run",
        model=None,
    )
    assert done.metrics["val/loss"] < done.metrics["val_baseline/loss"]
    with pytest.raises(ConfigError, match=r"augment\.num_visible_tokens"):
        recipe("--augment.num_visible_tokens=0")


# recipes ------------------------------------------------------------------------------------


def test_a_recipe_survives_yaml(tmp_path):
    made = recipe("--freeze=2", "--loss.class_weights=[1,2,3]", "--optim.ema=0.9")
    (tmp_path / "recipe.yaml").write_text(made.to_yaml(), encoding="utf-8")
    assert load_finetune(tmp_path / "recipe.yaml") == made


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("--optim.layr_decay=0.5",), "unknown option --optim.layr_decay; did you mean"),
        (("--head.name=dpd",), "dpd"),
        (("--task=detection",), "detection"),
        (("--optim.layer_decay=2",), "optim.layer_decay: 2.0 is not a share"),
        (("--task=segmentation", "--augment.mixup=1"), "mixes chips of a classification only"),
        (("--adapt.lora=4", "--freeze=1"), "leave freeze at none"),
        (("--adapt.lora=-1",), "adapt.lora must be ≥ 0"),
        (("--freeze=-1",), "freeze must be ≥ 0"),
        (("--run.patience=-1",), "run.patience must be ≥ 0"),
        (("--run.min_epochs=-1",), "run.min_epochs must be ≥ 0"),
        (("--optim.learned_task_weights=true",), "unknown option"),
    ],
)
def test_what_a_recipe_cannot_be_is_told(overrides, message):
    with pytest.raises(ConfigError, match=message):
        recipe(*overrides)


def test_class_weights_must_be_one_per_class(source, tmp_path):
    options = ("--loss.class_weights=[1,2]", "--run.epochs=1")
    with pytest.raises(ConfigError, match="2 weights for 7 classes"):
        finetune(recipe(*options), source, tmp_path, model=None)
