"""The fine-tuning step as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from multimae_eo.errors import DataError, TrainingError
from multimae_eo.network.lora import add_low_rank
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.sample_rng import mixed_seed
from multimae_eo.sample import Batch
from multimae_eo.train.finetune_recipe import FinetuneRecipe
from multimae_eo.train.objective import Objective
from multimae_eo.train.optim import build_layered_adamw, may_fuse, warmup_cosine
from multimae_eo.train.supervised import SupervisedLoss, changes, draw_mixing
from multimae_eo.train.test_time import reconstruction_loss
from multimae_eo.train.validation_score import ValidationScore

_INPUTS = ("embeddings", "spectral", "modality", "global_tokens")
_MASKS = 3
"""Separates the random numbers of masks from those of what is dropped."""


class FinetuneModule(pl.LightningModule):
    """Predicts labels, all observed tokens visible, and minimises a supervised loss.

    What is random in a step (drop path, dropout, mixing) is a pure function of (seed, epoch, batch,
    rank), and what is dropped of a chip one of (seed, epoch, its key): a resumed run draws the
    same. ``steps``: optimiser steps of the whole run; ``warmup``: of its warm-up; ``lr``: the
    head's peak rate.
    """

    def __init__(
        self, predictor: Predictor, recipe: FinetuneRecipe, *, steps: int, warmup: int, lr: float
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.recipe = recipe
        self.loss = SupervisedLoss(predictor.target, recipe.loss)
        self.score = ValidationScore(predictor.target)
        self.steps, self.warmup, self.lr = steps, warmup, lr
        frozen = freeze(predictor, recipe.freeze)
        if recipe.adapt.lora:
            predictor.encoder.requires_grad_(False)
            add_low_rank(predictor.encoder.encoder, recipe.adapt.lora)
        # Where nothing is reconstructed, decoders are only kept.
        self.objective = Objective(predictor.encoder.tasks) if recipe.decoders.weight else None
        predictor.encoder.decoders.requires_grad_(self.objective is not None)
        depth = len(predictor.encoder.encoder.blocks)
        rates = (recipe.optim.drop_path * i / max(1, depth - 1) for i in range(depth))
        predictor.set_runtime(
            replace(
                predictor.runtime,
                compiled=recipe.run.compile,
                activation_checkpointing=recipe.run.activation_checkpointing,
                drop_path=tuple(0.0 if i < frozen else rate for i, rate in enumerate(rates)),
            )
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch's loss; TrainingError naming the batch's chips when it is not finite."""
        run_seed, epoch = self.recipe.run.seed, self.current_epoch
        seed = mixed_seed(run_seed, epoch, batch_idx, self.global_rank)
        torch.manual_seed(seed)
        labels = self._labels(batch)
        mixing = draw_mixing(self.recipe.augment, len(batch), mixed_seed(seed, 1))
        change = changes(
            self.recipe.augment,
            mixing,
            batch.keys,
            run_seed,
            epoch,
            modalities=self.predictor.encoder.modalities,
        )
        outputs = resized_outputs(self.predictor(batch, change=change), labels)
        loss: Tensor = self.loss(outputs, labels, mixing)
        if self.objective is not None:
            encoder = self.predictor.encoder
            other = reconstruction_loss(encoder, self.objective, batch, run_seed, epoch, _MASKS)
            self.log("train/reconstruction", other.detach(), batch_size=len(batch))
            loss = loss + self.recipe.decoders.weight * other
        self._guard(loss, batch)
        self.log("train/loss", loss.detach(), batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss of whole chips, beside that of the best constant prediction; and the metric."""
        labels = self._labels(batch)
        outputs = resized_outputs(self.predictor.predict(batch), labels)
        losses = {"val/loss": self.loss(outputs, labels)}
        losses["val_baseline/loss"] = self.loss.constant(labels)
        self.log_dict(losses, batch_size=len(batch), sync_dist=True)
        self.score.update(self.predictor.predictions(outputs.float()), labels)

    def on_validation_epoch_start(self) -> None:
        """Begin a new score."""
        self.score.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the score of all chips, which is that of all processes."""
        self.log(f"val/{self.score.rule.name}", self.score.compute())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with layer-wise rates, warm-up and cosine decay, stepped every optimiser step."""
        optim = self.recipe.optim
        scale = layer_scale(self.predictor.encoder.config.encoder.depth, optim.layer_decay)
        fused = may_fuse(optim, self.recipe.run.precision)
        optimizer = build_layered_adamw(self, optim, lr=self.lr, scale_of=scale, fused=fused)
        base = self.lr if optim.lr == "auto" else optim.lr
        floor = optim.min_lr / base if base else 0.0
        schedule = warmup_cosine(warmup=self.warmup, total=self.steps, floor=floor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, schedule), "interval": "step"},
        }

    def _labels(self, batch: Batch) -> Tensor:
        if batch.labels is None:
            raise DataError(
                f"chips {', '.join(batch.keys[:4])} …: labels of different kinds or sizes; "
                "cut chips alike with data.chip"
            )
        return batch.labels

    def _guard(self, loss: Tensor, batch: Batch) -> None:
        # Asking costs a synchronisation on an accelerator, so not at every step.
        every = 1 if loss.device.type == "cpu" else self.recipe.run.log_every
        if self.global_step % every or bool(loss.isfinite()):
            return
        keys = ", ".join(batch.keys[:8]) + (" …" if len(batch.keys) > 8 else "")
        raise TrainingError(
            f"the loss is not finite at step {self.global_step}; chips of the batch: {keys}. "
            "Inspect them, lower optim.lr, or set optim.clip"
        )


def resized_outputs(outputs: Tensor, labels: Tensor) -> Tensor:
    """Interpolate maps of logits (B, O, H, W) to the labels' pixels, where they differ."""
    if labels.ndim != 3 or outputs.ndim != 4 or outputs.shape[-2:] == labels.shape[-2:]:
        return outputs
    return F.interpolate(outputs.float(), size=labels.shape[-2:], mode="bilinear")


def freeze(predictor: Predictor, extent: str | int) -> int:
    """Stop the gradient of the input projections and the first blocks; how many blocks.

    ``extent``: none, encoder (all but the head), or a number of blocks.
    """
    encoder = predictor.encoder
    if extent == "none":
        return 0
    blocks = encoder.encoder.blocks
    count = len(blocks) if extent == "encoder" else min(int(extent), len(blocks))
    for name in _INPUTS:
        part = getattr(encoder, name)
        part.requires_grad_(False)
    for block in blocks[:count]:
        block.requires_grad_(False)
    return count


def layer_scale(depth: int, decay: float) -> Callable[[str], float]:
    """Factor of the learning rate by a parameter's name: 1 for the head and decoders, ``decay`` per
    layer below.

    Input projections and global tokens are the lowest layer.
    """

    def scale(name: str) -> float:
        parts = name.split(".")
        if "head" in parts or "decoders" in parts:
            return 1.0
        layer = int(parts[parts.index("blocks") + 1]) + 1 if "blocks" in parts else 0
        return float(decay ** (depth + 1 - layer))

    return scale
