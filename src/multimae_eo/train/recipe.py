"""A recipe: everything that decides a pre-training run, typed, from YAML and back.

No torch here: the CLI shows every field with its default. The resolved recipe is written into the
run folder and the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.files import read_text
from multimae_eo.modality import LossName, ModalitySet, Task, validate_tasks
from multimae_eo.network.config import (
    DecoderConfig,
    EncoderConfig,
    ModalityRoles,
    SeriesMasking,
)
from multimae_eo.runtime import Precision
from multimae_eo.sources.yaml_section import YAML_BYTES, parse_yaml
from multimae_eo.train.options import Recorded, build, check_keys, check_least


@dataclass(kw_only=True)
class TaskRecipe:
    """An output. See ``modality.Task``.

    Args:
        modality: What is predicted.
        loss: mse, l1, huber, cross_entropy, or info_nce (random projections of patches); by default
            what suits the modality.
        weight: Factor in the total loss.
        patch_normalise: Standardise the target within each patch.
        decoder: Another task of the modality, whose decoder predicts this one as well.
    """

    modality: str
    loss: LossName | None = None
    weight: float = 1.0
    patch_normalise: bool = False
    decoder: str = ""


@dataclass(kw_only=True)
class EncoderRecipe:
    """The encoder's size.

    Args:
        encoder: A named size (nano, tiny, small, base, large), or width, depth, heads, mlp_ratio.
        patch: Side of a patch in pixels of the finest modality; others cover the same ground.
        stride: Per class map, keep every stride-th pixel only (nearest).
        global_tokens: Learned tokens that see all others.
        position_grid: Side of the table of positions.
        modality_embeddings: Add a learned vector per modality to the encoder's inputs.
        spectral: Project optical bands by a function of their wavelength, bandwidth and GSD, for
            sensors never seen.
    """

    encoder: str | EncoderConfig = "base"
    patch: int = 8
    stride: dict[str, int] = field(default_factory=dict)
    global_tokens: int = 1
    position_grid: int = 28
    modality_embeddings: bool = False
    spectral: bool = False


@dataclass(kw_only=True)
class ModelRecipe(EncoderRecipe):
    """The network's size.

    Args:
        decoder: Width, depth, heads and mlp_ratio of every task's decoder.
    """

    decoder: DecoderConfig = field(default_factory=DecoderConfig)


@dataclass(kw_only=True)
class MaskingRecipe:
    """Which tokens the encoder sees.

    Args:
        num_visible_tokens: Visible tokens per sample, over all modalities.
        alpha: Dirichlet concentration; small favours few modalities, large an even share.
        inputs: Modalities that may be visible (default all); the rest are targets only.
        roles: How often a modality of a sample is unused, encoded, decoded or both.
        decoded: Share of each modality's tokens that is decoded in a training step.
        band_dropout: Probability of dropping a band of a sample from the input, at most 0.3.
        series: Of series, mask tokens at random, entire dates, tubes of all dates, or mixed.
    """

    num_visible_tokens: int = 49
    alpha: float = 1.0
    inputs: list[str] | None = None
    roles: ModalityRoles = field(default_factory=ModalityRoles)
    decoded: float = 1.0
    band_dropout: float = 0.0
    series: SeriesMasking = "random"


@dataclass(kw_only=True)
class TargetsRecipe:
    """Further targets of every continuous modality, beside its values (not in the paper).

    Decoders predict them by further outputs.

    Args:
        patch_normalised: Weight of the loss on patch-normalised values (0: off).
        random_projection: Weight of the contrastive loss on random projections of patches (0: off).
    """

    patch_normalised: float = 0.0
    random_projection: float = 0.0


@dataclass(kw_only=True)
class ContrastiveRecipe:
    """A contrastive loss between masked views of each chip (not in the paper).

    Args:
        weight: Weight of the contrastive loss (0: off, one view per chip).
        views: Views of each chip in a step.
        temperature: Softmax temperature; smaller values emphasise the most similar other chips.
        rot90: Whether further views are augmented with random flips and rot90.
        brightness_jitter: Further views have their reflectance scaled by up to 1 + this.
    """

    weight: float = 0.0
    views: int = 2
    temperature: float = 0.2
    rot90: bool = False
    brightness_jitter: float = 0.0


@dataclass(kw_only=True)
class AdamWRecipe:
    """AdamW with warm-up and cosine decay.

    Args:
        weight_decay: On matrices only: never on biases, norms, tokens or embeddings.
        betas: AdamW's two decay rates.
        warmup_epochs: Linear warm-up from 0.
        min_lr: Base learning rate at the end.
        clip: Largest norm of the gradient (none: no clipping).
        ema: Decay of the averaged weights that are validated and saved (none: no averaging).
    """

    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_epochs: float = 1.0
    min_lr: float = 0.0
    clip: float | None = None
    ema: float | None = None


@dataclass(kw_only=True)
class OptimRecipe(AdamWRecipe):
    """The optimiser of a pre-training run.

    Args:
        lr: Base learning rate per 256 samples of effective batch.
        learned_task_weights: Weigh tasks by learned uncertainty.
    """

    lr: float = 1e-4
    learned_task_weights: bool = False


@dataclass(kw_only=True)
class DataRecipe:
    """How chips are cut and batched.

    Args:
        chip: Side of the window in pixels of the finest modality (none: whole chips).
        batch_size: Samples per step and device.
        workers: Processes that read ahead.
        val_fraction: Share of chips kept for validation where the data declare no split.
        flips: Random horizontal and vertical flips.
        rot90: Random rot90.
        locality: Shuffle within so many chips (0: all); for stores larger than memory.
        statistics_chips: At most so many training chips are read to compute statistics.
    """

    chip: int | None = 56
    batch_size: int = 64
    workers: int = 0
    val_fraction: float = 0.1
    flips: bool = True
    rot90: bool = False
    locality: int = 0
    statistics_chips: int = 20000


@dataclass(kw_only=True)
class PretrainData(DataRecipe):
    """How chips are cut, resampled and batched.

    Args:
        windows: Sides in pixels of windows that are resampled to `chip`, one drawn per step, for
            patches of several sizes on the ground (none: windows of `chip`).
    """

    windows: list[int] = field(default_factory=list)


@dataclass(kw_only=True)
class TrainingRecipe:
    """How long, how precisely, and what is recorded.

    Args:
        epochs: Passes over the training chips.
        seed: Decides weights, order, windows and masks.
        precision: 32-true, bf16-mixed, 16-mixed, or auto (bf16-mixed where the device has it).
        accumulate: Batches per optimiser step.
        devices: Number of devices or processes; auto takes what there is.
        accelerator: cpu, gpu or auto.
        nodes: Number of machines.
        strategy: auto, ddp, or fsdp (weights and optimiser sharded; pre-training only).
        compile: Compile the blocks (equal up to rounding; minutes at the start).
        activation_checkpointing: Recalculate activations in the backward pass (less memory).
        val_every: Validate every so many epochs.
        checkpoint_steps: Also write a checkpoint every so many steps (0: at epochs' ends only).
        keep: Keep the checkpoints of so many latest epochs, too, beside last and best.
        log_every: Write losses every so many steps.
    """

    epochs: int = 100
    seed: int = 0
    precision: Precision = "auto"
    accumulate: int = 1
    devices: int | str = "auto"
    accelerator: str = "auto"
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    val_every: int = 1
    checkpoint_steps: int = 0
    keep: int = 0
    log_every: int = 20


@dataclass(kw_only=True)
class RunRecipe(TrainingRecipe):
    """A pre-training run's length and records.

    Args:
        pictures_every: Draw reconstructions every so many epochs (0: only at the end).
    """

    pictures_every: int = 10


@dataclass(kw_only=True)
class Recipe(Recorded):
    """A pre-training run.

    Args:
        modalities: Inputs and targets, in order (default: all the data have).
        tasks: Outputs by name (default: one per modality).
        model: The network's size.
        masking: Which tokens the encoder sees.
        targets: Further targets of every continuous modality.
        contrastive: A contrastive loss between masked views of each chip.
        optim: The optimiser.
        data: How chips are cut and batched.
        run: How long, how precisely, and what is recorded.
    """

    modalities: list[str] = field(default_factory=list)
    tasks: dict[str, TaskRecipe] = field(default_factory=dict)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    masking: MaskingRecipe = field(default_factory=MaskingRecipe)
    targets: TargetsRecipe = field(default_factory=TargetsRecipe)
    contrastive: ContrastiveRecipe = field(default_factory=ContrastiveRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    data: PretrainData = field(default_factory=PretrainData)
    run: RunRecipe = field(default_factory=RunRecipe)

    def resolve(self, available: ModalitySet) -> tuple[ModalitySet, tuple[Task, ...]]:
        """The modalities and tasks of this recipe on given data; ConfigError where they lack."""
        names = self.modalities or list(available)
        modalities = available.select(names)
        for name in self.masking.inputs or ():
            if name not in modalities:
                raise ConfigError(
                    f"masking.inputs: no modality {name!r}; {did_you_mean(name, modalities)}"
                )
        if self.tasks:
            tasks = [
                Task(
                    name=name,
                    modality=t.modality,
                    loss=t.loss or modalities[t.modality].default_loss,
                    weight=t.weight,
                    patch_normalise=t.patch_normalise,
                    decoder=t.decoder,
                )
                for name, t in self.tasks.items()
            ]
        else:
            tasks = [Task(name=n, modality=n, loss=m.default_loss) for n, m in modalities.items()]
        return modalities, validate_tasks(tasks + self._further(tasks), modalities)

    def _further(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks of ``targets``: one per continuous modality that is reconstructed."""
        hosts: dict[str, Task] = {}
        for task in tasks:
            if task.reconstructs and not task.decoder and task.loss != "cross_entropy":
                hosts.setdefault(task.modality, task)
        further = []
        for name, host in hosts.items():
            normalised = Task(
                name=f"{host.name}_patch_normalised",
                modality=name,
                loss=host.loss,
                weight=self.targets.patch_normalised,
                patch_normalise=True,
                decoder=host.name,
            )
            projected = Task(
                name=f"{host.name}_projection",
                modality=name,
                loss="info_nce",
                weight=self.targets.random_projection,
                decoder=host.name,
            )
            further += [task for task in (normalised, projected) if task.weight]
        return further


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the package."""
    folder = resources.files("multimae_eo") / "recipes"
    return tuple(
        sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    )


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by name or from a YAML file, then apply ``--a.b=value`` overrides.

    Raises ConfigError for an unknown name, key, or a value of the wrong type.
    """
    text, where = _recipe_text(name)
    record = parse_yaml(text, where) or {}
    check_keys(record, Recipe, where=where)
    return parse_recipe(record, overrides, where=where)


def parse_recipe(
    record: Mapping[str, object], overrides: Sequence[str] = (), *, where: str = "recipe"
) -> Recipe:
    """Build a typed Recipe from plain data and overrides; see ``load_recipe``."""
    recipe = build(Recipe, record, overrides, where=where)
    _keep_targets(recipe, record, overrides)
    _check_values(recipe, where)
    return recipe


def names_inputs(overrides: Sequence[str]) -> bool:
    """Whether options name the modalities that may be visible."""
    return any(o.split("=")[0] in ("--masking", "--masking.inputs") for o in overrides)


def _keep_targets(recipe: Recipe, record: Mapping[str, object], overrides: Sequence[str]) -> None:
    """Where ``--modalities`` replaces those of a recipe, its targets only stay targets only."""
    masking, before = record.get("masking"), record.get("modalities")
    inputs = masking.get("inputs") if isinstance(masking, Mapping) else None
    if (
        names_inputs(overrides)
        or not inputs
        or not isinstance(before, list)
        or recipe.modalities == before
    ):
        return
    kept = [n for n in recipe.modalities if n in inputs or n not in before]
    recipe.masking.inputs = kept if 0 < len(kept) < len(recipe.modalities) else None


def _check_values(recipe: Recipe, where: str) -> None:
    check_least(
        where,
        {
            "model.patch": (recipe.model.patch, 1),
            "masking.num_visible_tokens": (recipe.masking.num_visible_tokens, 1),
            "targets.patch_normalised": (recipe.targets.patch_normalised, 0),
            "targets.random_projection": (recipe.targets.random_projection, 0),
            "contrastive.weight": (recipe.contrastive.weight, 0),
            "contrastive.views": (recipe.contrastive.views, 2),
            "contrastive.brightness_jitter": (recipe.contrastive.brightness_jitter, 0),
            "data.batch_size": (recipe.data.batch_size, 1),
            "data.workers": (recipe.data.workers, 0),
            "run.epochs": (recipe.run.epochs, 1),
            "run.accumulate": (recipe.run.accumulate, 1),
            "run.val_every": (recipe.run.val_every, 1),
            "run.log_every": (recipe.run.log_every, 1),
            "run.nodes": (recipe.run.nodes, 1),
            "run.keep": (recipe.run.keep, 0),
        },
    )
    if recipe.masking.alpha <= 0:
        raise ConfigError(f"{where}: masking.alpha must be > 0, got {recipe.masking.alpha}")
    try:
        recipe.masking.roles.validate()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not 0 < recipe.masking.decoded <= 1:
        raise ConfigError(
            f"{where}: masking.decoded must be in (0, 1], got {recipe.masking.decoded}"
        )
    if not 0 <= recipe.masking.band_dropout <= 0.3:
        raise ConfigError(
            f"{where}: masking.band_dropout must be in [0, 0.3], got {recipe.masking.band_dropout}"
        )
    if recipe.contrastive.temperature <= 0:
        raise ConfigError(
            f"{where}: contrastive.temperature must be > 0, got {recipe.contrastive.temperature}"
        )
    if recipe.data.windows and recipe.data.chip is None:
        raise ConfigError(f"{where}: data.windows are resampled to data.chip: give one")
    for window in recipe.data.windows:
        check_least(where, {"data.windows": (window, 1)})
    if not 0 <= recipe.data.val_fraction < 1:
        raise ConfigError(
            f"{where}: data.val_fraction must be in [0, 1), got {recipe.data.val_fraction}"
        )
    if recipe.run.strategy == "fsdp" and recipe.optim.ema is not None:
        raise ConfigError(
            f"{where}: optim.ema averages whole weights; run.strategy=fsdp shards them: use ddp"
        )
    if recipe.optim.ema is not None and not 0 < recipe.optim.ema < 1:
        raise ConfigError(f"{where}: optim.ema must be in (0, 1), got {recipe.optim.ema}")


def _recipe_text(name: str | Path) -> tuple[str, str]:
    path = Path(name)
    if path.suffix.lower() in (".yaml", ".yml"):
        remedy = "write it as UTF-8 text"
        return read_text(path, ConfigError, limit=YAML_BYTES, remedy=remedy), str(path)
    if str(name) in recipe_names():
        packaged = resources.files("multimae_eo") / "recipes" / f"{name}.yaml"
        return packaged.read_text(encoding="utf-8"), f"recipe {name}"
    raise ConfigError(f"no recipe {str(name)!r}; {did_you_mean(str(name), recipe_names())}")
