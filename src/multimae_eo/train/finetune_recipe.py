"""A fine-tuning recipe: everything that decides such a run, typed, from YAML and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from multimae_eo.errors import ConfigError
from multimae_eo.network.config import HeadConfig
from multimae_eo.network.target import TaskName
from multimae_eo.sources.yaml_section import load_yaml
from multimae_eo.train.options import (
    Recorded,
    build,
    check_keys,
    check_least,
)
from multimae_eo.train.recipe import AdamWRecipe, DataRecipe, EncoderRecipe, TrainingRecipe


@dataclass(kw_only=True)
class LossRecipe:
    """What is minimised.

    Args:
        label_smoothing: Share of a label distributed over all classes in training.
        class_weights: none, balanced (inverse to the classes' frequency), or one per class.
        regression: mse, l1 or huber, of standardised values.
    """

    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] | list[float] = "none"
    regression: Literal["mse", "l1", "huber"] = "mse"


@dataclass(kw_only=True)
class AugmentRecipe:
    """How chips of a batch are mixed (classification only), and what of them is masked.

    Args:
        mixup: Beta parameter of blending two chips (0: off).
        cutmix: Beta parameter of pasting a box of another chip (0: off).
        num_visible_tokens: Tokens left of each chip in training, as pre-training draws (none: all).
        alpha: Dirichlet concentration of that draw; small values hide whole modalities.
        drop_inputs: Probability that an input of a chip is dropped; at least one is kept.
        drop_dates: Probability that a date of a series is dropped; at least one date is kept.
        drop_bands: Probability that a band of a chip's input is dropped; at least one is kept.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    num_visible_tokens: int | None = None
    alpha: float = 1.0
    drop_inputs: float = 0.0
    drop_dates: float = 0.0
    drop_bands: float = 0.0


@dataclass(kw_only=True)
class AdaptRecipe:
    """How little of the encoder learns.

    Args:
        lora: Rank of low-rank differences of its linear layers, which alone learn (0: off).
    """

    lora: int = 0


@dataclass(kw_only=True)
class DecodersRecipe:
    """The decoders of pre-training beside the head, for test-time training (predict --adapt).

    Args:
        keep: Keep the decoders of the inputs in the model folder.
        weight: Weight of the reconstruction loss of the inputs beside that of the labels, which
            keeps decoders and encoder together (0: off).
    """

    keep: bool = False
    weight: float = 0.0


@dataclass(kw_only=True)
class FinetuneOptim(AdamWRecipe):
    """AdamW with warm-up, cosine decay, and smaller steps for layers nearer to the pixels.

    Args:
        lr: Base learning rate of the head per 256 samples of effective batch; auto: a peak by the
            batch and the encoder's width.
        min_lr: Base learning rate at the end; beside lr=auto the rate itself.
        layer_decay: Factor of the learning rate per layer below the head.
        drop_path: Probability of leaving out a branch of the last block; less in those before.
    """

    lr: float | Literal["auto"] = "auto"
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_epochs: float = 5.0
    layer_decay: float = 0.75
    drop_path: float = 0.1


@dataclass(kw_only=True)
class FinetuneData(DataRecipe):
    """How chips are cut and batched; validation and prediction see whole chips."""

    chip: int | None = None
    batch_size: int = 32
    rot90: bool = True


@dataclass(kw_only=True)
class FinetuneRun(TrainingRecipe):
    """How long, how precisely, and what is recorded.

    Args:
        patience: Stop after so many validations without improvement (0: never).
        min_epochs: With patience, do not stop before so many epochs.
    """

    epochs: int = 50
    patience: int = 0
    min_epochs: int = 0


@dataclass(kw_only=True)
class FinetuneRecipe(Recorded):
    """A fine-tuning run.

    Args:
        task: classification, segmentation or regression.
        inputs: Modalities that are used (default: all that data and model share).
        patch: Side of a patch in pixels of the finest input, other than in pre-training; the
            projections are resampled.
        freeze: none, encoder, or a number: the input projections and so many blocks.
        adapt: Small differences that learn in the encoder's stead.
        head_init: Weights of the head at the start: random, or those of a linear probe of the
            encoder's features (auto: a linear probe where the head is linear).
        decoders: The decoders of pre-training beside the head.
        model: The network's size, where none is given.
        head: The layers that map tokens to predictions.
        loss: What is minimised.
        augment: How chips of a batch are mixed, and inputs dropped.
        optim: The optimiser.
        data: How chips are cut and batched.
        run: How long, how precisely, and what is recorded.
    """

    task: TaskName = "classification"
    inputs: list[str] = field(default_factory=list)
    patch: int | None = None
    freeze: Literal["none", "encoder"] | int = "none"
    adapt: AdaptRecipe = field(default_factory=AdaptRecipe)
    head_init: Literal["auto", "random", "linear-probe"] = "auto"
    decoders: DecodersRecipe = field(default_factory=DecodersRecipe)
    model: EncoderRecipe = field(default_factory=EncoderRecipe)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossRecipe = field(default_factory=LossRecipe)
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    optim: FinetuneOptim = field(default_factory=FinetuneOptim)
    data: FinetuneData = field(default_factory=FinetuneData)
    run: FinetuneRun = field(default_factory=FinetuneRun)


def load_finetune(path: Path | None, overrides: Sequence[str] = ()) -> FinetuneRecipe:
    """Load a recipe from a YAML file (None: all defaults), then apply ``--a.b=value`` overrides.

    Raises ConfigError for an unknown key, or a value of the wrong type or out of range.
    """
    if path is None:
        return parse_finetune({}, overrides)
    record = load_yaml(path) or {}
    check_keys(record, FinetuneRecipe, where=str(path))
    return parse_finetune(record, overrides, where=str(path))


def former_defaults() -> dict[str, object]:
    """Values of the options that the record of an earlier version's run lacks."""
    return FinetuneRecipe().to_plain() | {"head_init": "random"}


def parse_finetune(
    record: Mapping[str, object], overrides: Sequence[str] = (), *, where: str = "recipe"
) -> FinetuneRecipe:
    """Build a typed recipe from plain data and overrides; see ``load_finetune``."""
    recipe = build(FinetuneRecipe, record, overrides, where=where)
    least = {
        "data.batch_size": (recipe.data.batch_size, 1),
        "data.workers": (recipe.data.workers, 0),
        "augment.mixup": (recipe.augment.mixup, 0),
        "augment.cutmix": (recipe.augment.cutmix, 0),
        "augment.num_visible_tokens": (
            1 if recipe.augment.num_visible_tokens is None else recipe.augment.num_visible_tokens,
            1,
        ),
        "patch": (1 if recipe.patch is None else recipe.patch, 1),
        "adapt.lora": (recipe.adapt.lora, 0),
        "decoders.weight": (recipe.decoders.weight, 0),
        "run.patience": (recipe.run.patience, 0),
        "run.min_epochs": (recipe.run.min_epochs, 0),
        "run.keep": (recipe.run.keep, 0),
    }
    if recipe.decoders.weight and not recipe.decoders.keep:
        raise ConfigError(f"{where}: decoders.weight needs decoders: set decoders.keep")
    if recipe.adapt.lora and recipe.freeze != "none":
        raise ConfigError(f"{where}: adapt.lora freezes the encoder itself; leave freeze at none")
    if recipe.run.strategy == "fsdp":
        raise ConfigError(f"{where}: run.strategy: fsdp shards pre-training only; use ddp")
    for name in ("epochs", "nodes", "accumulate", "val_every", "log_every"):
        least[f"run.{name}"] = (getattr(recipe.run, name), 1)
    if recipe.optim.lr != "auto":
        least["optim.lr"] = (recipe.optim.lr, 0)
    if isinstance(recipe.freeze, int):
        least["freeze"] = (recipe.freeze, 0)
    check_least(where, least)
    for name, value, inside in (
        ("data.val_fraction", recipe.data.val_fraction, 0 <= recipe.data.val_fraction < 1),
        (
            "augment.drop_inputs",
            recipe.augment.drop_inputs,
            0 <= recipe.augment.drop_inputs < 1,
        ),
        ("augment.drop_dates", recipe.augment.drop_dates, 0 <= recipe.augment.drop_dates < 1),
        ("augment.drop_bands", recipe.augment.drop_bands, 0 <= recipe.augment.drop_bands < 1),
        ("optim.drop_path", recipe.optim.drop_path, 0 <= recipe.optim.drop_path < 1),
        ("optim.layer_decay", recipe.optim.layer_decay, 0 < recipe.optim.layer_decay <= 1),
        ("loss.label_smoothing", recipe.loss.label_smoothing, 0 <= recipe.loss.label_smoothing < 1),
        ("optim.ema", recipe.optim.ema, recipe.optim.ema is None or 0 < recipe.optim.ema < 1),
    ):
        if not inside:
            raise ConfigError(f"{where}: {name}: {value} is not a share between 0 and 1")
    if recipe.augment.alpha <= 0:
        raise ConfigError(f"{where}: augment.alpha must be > 0, got {recipe.augment.alpha}")
    if recipe.task != "classification" and (recipe.augment.mixup or recipe.augment.cutmix):
        raise ConfigError(
            f"{where}: augment mixes chips of a classification only, not of a {recipe.task}; "
            "leave mixup and cutmix at 0"
        )
    return recipe
