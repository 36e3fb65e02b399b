"""Subcommands of training: pretrain, finetune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from multimae_eo.cli.output import names_in, print_run
from multimae_eo.cli.parser import RecipeOptions, Subcommand, argument
from multimae_eo.runtime import Precision

PRETRAINING = RecipeOptions(kind="multimae_eo.train.recipe:Recipe", excluded=("data",))
FINETUNING = RecipeOptions(
    kind="multimae_eo.train.finetune_recipe:FinetuneRecipe",
    excluded=("task", "inputs", "model", "head", "data"),
)


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Pre-train a masked autoencoder; run again to resume.

    Args:
        recipe: a YAML file, or one of RECIPES
        data: SOURCE
        init: model folder to start from
        out: run folder
        device: auto, cpu, cuda, cuda:N or mps (default: the recipe's run.accelerator)
        precision: precision of training; auto: bfloat16 where the device multiplies it natively
            (default: the recipe's run.precision)
    """

    examples: ClassVar[tuple[str, ...]] = (
        "pretrain --recipe quickstart --data store --out runs/first",
        "pretrain --recipe my.yaml --data store --out runs/first --optim.lr 3e-4",
    )
    recipe: str
    data: str
    init: str | None = None
    out: str
    device: str | None = None
    precision: Precision | None = None
    overrides: tuple[str, ...] = argument(recipe=PRETRAINING)

    def run(self) -> None:
        """Print the last validation's metrics and the model's folder."""
        from multimae_eo.api.runs import pretrain

        print_run(
            pretrain(
                self.recipe,
                data=self.data,
                out=self.out,
                init=self.init,
                device=self.device,
                precision=self.precision,
                overrides=self.overrides,
            )
        )


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Fine-tune a model on labels; run again to resume.

    Args:
        model: model folder, or none for a random initialisation
        data: SOURCE
        task: what the labels are
        inputs: modalities, m1,m2 (default: all)
        head: prediction head: linear; for maps also convnext, upernet, dpt or unet
        recipe: a YAML file of the options below
        out: run folder
        device: auto, cpu, cuda, cuda:N or mps (default: the recipe's run.accelerator)
        precision: precision of training; auto: bfloat16 where the device multiplies it natively
            (default: the recipe's run.precision)
    """

    examples: ClassVar[tuple[str, ...]] = (
        "finetune --model runs/first/model --data dataset.yaml --task segmentation --out runs/map",
        "finetune --model none --data dataset.yaml --task classification --out runs/random_init",
    )
    model: str
    data: str
    task: Literal["classification", "segmentation", "regression"]
    inputs: str | None = None
    head: Literal["linear", "convnext", "upernet", "dpt", "unet"] | None = None
    recipe: str | None = None
    out: str
    device: str | None = None
    precision: Precision | None = None
    overrides: tuple[str, ...] = argument(recipe=FINETUNING)

    def run(self) -> None:
        """Print the best validation's metrics and the model's folder."""
        from multimae_eo.api.runs import finetune

        print_run(
            finetune(
                None if self.model == "none" else self.model,
                data=self.data,
                task=self.task,
                out=self.out,
                inputs=names_in(self.inputs),
                head=self.head,
                recipe=self.recipe,
                device=self.device,
                precision=self.precision,
                overrides=self.overrides,
            )
        )


TRAINING_COMMANDS: dict[str, type[Subcommand]] = {"pretrain": Pretrain, "finetune": Finetune}
