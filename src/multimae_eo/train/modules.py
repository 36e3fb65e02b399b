"""The pre-training step as a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from multimae_eo.errors import TrainingError
from multimae_eo.network.band_dropout import drop_bands
from multimae_eo.network.masking import count_visible_tokens, sample_decoded, sample_states
from multimae_eo.network.multimae import MultiMAE, Reconstruction
from multimae_eo.network.sample_rng import PerSample
from multimae_eo.network.tokens import Patches
from multimae_eo.sample import Batch
from multimae_eo.train.chip_scale import ChipScale
from multimae_eo.train.contrastive import ContrastiveLoss, masked_views
from multimae_eo.train.objective import Losses, Objective
from multimae_eo.train.optim import build_adamw, may_fuse, warmup_cosine
from multimae_eo.train.recipe import Recipe

_VALIDATION = 1 << 20
"""Stands for the epoch in validation: masks of their own, the same at every epoch."""
_BANDS, _DECODED = 1 << 22, 1 << 23
"""Separate the random numbers of dropped bands and of decoded tokens from those of masks."""


class PretrainModule(pl.LightningModule):
    """Masks, reconstructs, and minimises the objective.

    A sample's mask is a pure function of (seed, epoch, its key): the same in a resumed run, in
    another split into batches, and in any number of processes.
    ``steps``: optimiser steps of the whole run; ``warmup``: of its warm-up; ``lr``: peak rate.
    """

    def __init__(
        self, model: MultiMAE, recipe: Recipe, *, steps: int, warmup: int, lr: float
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.objective = Objective(model.tasks, learned_weights=recipe.optim.learned_task_weights)
        # The contrastive loss, under its name in checkpoints.
        self.agreement = (
            ContrastiveLoss(model.config.encoder.width, recipe.contrastive)
            if recipe.contrastive.weight
            else None
        )
        self.chip_scale = (
            ChipScale(
                recipe.data.windows, model.modalities, model.config.inputs, seed=recipe.run.seed
            )
            if recipe.data.windows
            else None
        )
        self.steps, self.warmup, self.lr = steps, warmup, lr
        model.set_runtime(
            replace(
                model.runtime,
                compiled=recipe.run.compile,
                activation_checkpointing=recipe.run.activation_checkpointing,
            )
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch's loss; TrainingError naming the batch's chips when it is not finite."""
        if self.chip_scale is not None:
            batch = self.chip_scale(batch, self.global_step)
        views = batch
        if self.agreement is not None:
            seed = self.recipe.run.seed
            views = masked_views(batch, self.recipe.contrastive, seed, self.current_epoch)
        losses, reconstruction = self._losses(views, self.current_epoch)
        if self.agreement is not None:
            loss: Tensor = self.agreement(reconstruction.features.pooled)
            losses = losses.plus("contrastive", self.recipe.contrastive.weight, loss)
        self._guard(losses, batch)
        self._log("train", losses, len(batch), sync=False)
        return losses.total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses under fixed masks, beside those of the best constant prediction."""
        losses, reconstruction = self._losses(batch, _VALIDATION)
        self._log("val", losses, len(batch), sync=True)
        constant = Objective(self.model.tasks)(constant_prediction(self.model, reconstruction))
        self._log("val_baseline", constant, len(batch), sync=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and cosine decay, stepped every optimiser step."""
        optim = self.recipe.optim
        fused = may_fuse(optim, self.recipe.run.precision)
        optimizer = build_adamw(self, optim, lr=self.lr, fused=fused)
        floor = optim.min_lr / optim.lr if optim.lr else 0.0
        schedule = warmup_cosine(warmup=self.warmup, total=self.steps, floor=floor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, schedule), "interval": "step"},
        }

    def _losses(self, batch: Batch, epoch: int) -> tuple[Losses, Reconstruction]:
        patches = given = self.model.patchify(batch)
        masking, seed, decoded = self.recipe.masking, self.recipe.run.seed, None
        training = epoch != _VALIDATION
        if training and masking.band_dropout:
            generator = PerSample(batch.keys, seed, epoch, _BANDS)
            given = drop_bands(patches, self.model.modalities, masking.band_dropout, generator)
        states, num_visible_tokens = self.draw(given, batch.keys, epoch)
        if training and masking.decoded < 1:
            generator = PerSample(batch.keys, seed, epoch, _DECODED)
            states, rows = sample_decoded(patches.layout, states, masking.decoded, generator)
            decoded = {n: r.to(patches.device, non_blocking=True) for n, r in rows.items()}
        reconstruction = self.model(
            given, states, num_visible_tokens=num_visible_tokens, decoded=decoded
        )
        if given is not patches:
            # Targets have all bands.
            reconstruction = replace(reconstruction, patches=patches)
        losses: Losses = self.objective(reconstruction)
        return losses, reconstruction

    def draw(self, patches: Patches, keys: Sequence[str], epoch: int) -> tuple[Tensor, int | None]:
        """Draw the states of the tokens of samples ``keys``, and the number of slots they need.

        On the CPU: the same masks on every device, and counts that the host has without
        synchronisation. None where samples may have fewer visible tokens than the budget: the
        number is then counted.
        """
        masking = self.recipe.masking
        inputs = None if masking.inputs is None else tuple(masking.inputs)
        states = sample_states(
            patches.layout,
            None if patches.observed is None else patches.observed.cpu(),
            batch_size=patches.batch_size,
            num_visible_tokens=masking.num_visible_tokens,
            alpha=masking.alpha,
            inputs=inputs,
            roles=masking.roles,
            series=masking.series,
            generator=PerSample(keys, self.recipe.run.seed, epoch),
        )
        if masking.roles.drawn:
            slices = patches.layout.slices
            fewest = min(slices[n].stop - slices[n].start for n in inputs or slices)
            if fewest < masking.num_visible_tokens:
                return states, None
        return states, count_visible_tokens(patches.layout, masking.num_visible_tokens, inputs)

    def _guard(self, losses: Losses, batch: Batch) -> None:
        """Stop before the weights are spoilt. Asking costs a synchronisation, so not every step
        on an accelerator; there the optimiser may have stepped, but no checkpoint was written."""
        every = 1 if losses.total.device.type == "cpu" else self.recipe.run.log_every
        if self.global_step % every or bool(losses.total.isfinite()):
            return
        bad = [n for n, v in losses.by_task.items() if not bool(v.isfinite())]
        keys = ", ".join(batch.keys[:8]) + (" …" if len(batch.keys) > 8 else "")
        raise TrainingError(
            f"the loss is not finite at step {self.global_step} (tasks: {', '.join(bad) or 'total'}"
            f"); chips of the batch: {keys}. Inspect them, lower optim.lr, or set optim.clip"
        )

    def _log(self, split: str, losses: Losses, size: int, *, sync: bool) -> None:
        values = {f"{split}/{name}": value for name, value in losses.by_task.items()}
        self.log_dict(
            {f"{split}/loss": losses.total.detach(), **values},
            on_step=split == "train",
            on_epoch=split != "train",
            batch_size=size,
            sync_dist=sync,
        )


class ShardedModule(PretrainModule):
    """The same step with weights, gradients and optimiser state sharded (FSDP2).

    Sharded among the processes of a machine, replicated over machines. ``whole``: the weights
    after training, assembled on the first process.
    """

    full_weights: Mapping[str, object] | None = None

    def configure_model(self) -> None:
        """Shard: each encoder block by itself, all else of the model together."""
        from torch.distributed.fsdp import fully_shard

        for block in self.model.encoder.blocks:
            fully_shard(block, mesh=self.device_mesh)
        fully_shard(self.model, mesh=self.device_mesh)
        if self.objective.log_variance is not None:
            fully_shard(self.objective, mesh=self.device_mesh)
        if self.agreement is not None:
            fully_shard(self.agreement, mesh=self.device_mesh)

    def on_train_end(self) -> None:
        """Assemble the weights while all processes are here."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        self.full_weights = get_model_state_dict(self.model, options=options)


def constant_prediction(model: MultiMAE, reconstruction: Reconstruction) -> Reconstruction:
    """What a model that has learnt nothing but the statistics would predict.

    The training mean (0 after normalisation) for continuous tasks, the training frequency of each
    class for class maps.
    """
    predictions = {}
    for task in model.tasks:
        predicted = reconstruction.predictions[task.name]
        constant = torch.zeros_like(predicted)
        modality = model.modalities[task.modality]
        if modality.categorical and model.statistics is not None:
            counts = torch.from_numpy(model.statistics.class_counts[modality.name])
            log_share = ((counts + 1e-3) / (counts + 1e-3).sum()).log().to(constant)
            positions = predicted.shape[-1] // len(log_share)
            constant = constant + log_share.repeat_interleave(positions)
        predictions[task.name] = constant
    return replace(reconstruction, predictions=predictions)
