"""One fit for pre-training and fine-tuning: the trainer, the schedule, and the last checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from multimae_eo.loading.workers import ChipLoader
from multimae_eo.train.callbacks import MetricsCsv
from multimae_eo.train.data import TrainBatches
from multimae_eo.train.finetune_recipe import FinetuneRecipe
from multimae_eo.train.recipe import Recipe
from multimae_eo.train.run import last_checkpoint, make_trainer, quiet
from multimae_eo.train.threads import threads_restored

Module_co = TypeVar("Module_co", bound=pl.LightningModule, covariant=True)


class ModuleFactory(Protocol[Module_co]):
    """Builds the module that is trained, once the length of the run and its steps are known."""

    def __call__(self, *, steps: int, warmup: int, samples: int) -> Module_co:
        """The module for ``steps`` optimiser steps of ``samples`` each.

        ``warmup`` of the steps raise the learning rate to its peak.
        """


def fit(
    make_module: ModuleFactory[Module_co],
    batches: TrainBatches,
    validation: ChipLoader | None,
    *,
    recipe: Recipe | FinetuneRecipe,
    out: Path,
    metrics: MetricsCsv,
    callbacks: Sequence[Callback],
) -> tuple[Module_co, pl.Trainer]:
    """Train to the end of the recipe, from the last checkpoint in ``out`` if there is one.

    The samples of an optimiser step are batch size x accumulated batches x processes.

    Returns:
        The trained module, and the trainer with its last metrics.
    """
    run, optim = recipe.run, recipe.optim
    at_most = batches.steps_per_epoch * run.epochs
    with quiet(), threads_restored():
        trainer = make_trainer(
            run, optim, out=out, metrics=metrics, steps=at_most, callbacks=list(callbacks)
        )
        # Several processes share an epoch: only now is its number of steps known.
        batches.attach(trainer)
        steps = batches.steps_per_epoch * run.epochs
        effective = recipe.data.batch_size * run.accumulate * trainer.world_size
        module = make_module(
            steps=steps,
            warmup=round(batches.steps_per_epoch * optim.warmup_epochs),
            samples=effective,
        )
        trainer.fit(module, batches, validation, ckpt_path=last_checkpoint(out), weights_only=True)
    return module, trainer
