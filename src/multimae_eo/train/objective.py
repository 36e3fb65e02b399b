"""What is minimised: each task's loss on MASKED tokens' valid pixels, and how tasks are weighed.

Per task: the mean over a sample's masked, valid pixels, then the mean over the samples that have
any (paper, section 3). Computed in patch space and in float32; the device is not synchronised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimae_eo.modality import Task
from multimae_eo.network.multimae import Reconstruction
from multimae_eo.network.tokens import TokenState
from multimae_eo.train.random_projection import patch_discrimination, projection_matrix

PATCH_NORM_EPS = 1e-6


@dataclass(frozen=True)
class Losses:
    """``total``: what to minimise. ``by_task``: unweighted losses.

    ``samples``: how many samples each task's loss is the mean of (0: it was not measured).
    """

    total: Tensor
    by_task: Mapping[str, Tensor]
    samples: Mapping[str, Tensor]

    def plus(self, name: str, weight: float, loss: Tensor) -> Losses:
        """These losses and another, weighted."""
        return replace(
            self,
            total=self.total + weight * loss,
            by_task={**self.by_task, name: loss.detach()},
        )


class Objective(nn.Module):
    """Weighted sum of task losses.

    ``learned_weights``: weigh tasks by learned homoscedastic uncertainty (Kendall et al. 2018):
    ``Σ w (exp(−s) · L / c + s / 2)`` with c = 2 for regression and 1 for cross-entropy.
    """

    def __init__(self, tasks: tuple[Task, ...], *, learned_weights: bool = False) -> None:
        super().__init__()
        self.tasks = tasks
        self.log_variance = nn.Parameter(torch.zeros(len(tasks))) if learned_weights else None

    def forward(self, reconstruction: Reconstruction) -> Losses:
        """Measure every predicted task."""
        terms, by_task, samples = [], {}, {}
        for i, task in enumerate(self.tasks):
            if task.name not in reconstruction.predictions:
                continue
            loss, count = self.task_loss(task, reconstruction)
            by_task[task.name], samples[task.name] = loss.detach(), count
            if self.log_variance is not None:
                s = self.log_variance[i]
                half = 1.0 if task.loss in ("cross_entropy", "info_nce") else 0.5
                measured = (count > 0).to(loss.dtype)
                loss = half * torch.exp(-s) * loss + 0.5 * s * measured
            terms.append(task.weight * loss)
        return Losses(torch.stack(terms).sum(), by_task, samples)

    def task_loss(self, task: Task, reconstruction: Reconstruction) -> tuple[Tensor, Tensor]:
        """A task's loss (scalar) and the number of samples it is the mean of."""
        errors, weight = pixel_errors(task, reconstruction)
        pixels = weight.sum(dim=(1, 2))
        per_sample = (errors * weight).sum(dim=(1, 2)) / pixels.clamp_min(1)
        count = (pixels > 0).sum()
        return per_sample.sum() / count.clamp_min(1), count


def pixel_errors(task: Task, reconstruction: Reconstruction) -> tuple[Tensor, Tensor]:
    """Errors and weights (0 or 1) per pixel, float32 (B, N, P).

    P = p·p for class maps, and 1 for random projections, which have one error per patch.
    """
    predicted = reconstruction.predictions[task.name].float()
    patches, part = reconstruction.patches, reconstruction.layout.slices[task.modality]
    masked = (reconstruction.states[:, part] == TokenState.MASKED)[:, :, None]
    target = patches.values.get(task.modality)
    if target is None:
        # No sample of this batch has the modality: a zero that still reaches every parameter.
        return predicted * 0.0, torch.zeros_like(predicted)
    valid = patches.valid.get(task.modality)
    if task.loss == "info_nce":
        observed = reconstruction.states[:, part] != TokenState.ABSENT
        matrix = projection_matrix(task.modality, target.shape[2]).to(target.device)
        with torch.autocast(target.device.type, enabled=False):
            target = target.float() @ matrix
        errors = patch_discrimination(predicted, target, observed)[:, :, None]
        return errors, masked.float()
    if task.loss == "cross_entropy":
        size, tokens, positions = target.shape
        logits = predicted.reshape(size, tokens, -1, positions).movedim(2, 1)
        errors = F.cross_entropy(logits, target, ignore_index=-1, reduction="none")
        return errors, (masked & (target >= 0)).float()
    if task.patch_normalise:
        target = patch_normalised(target, valid)
    errors = _regression_error(task, predicted, target)
    weight = masked if valid is None else masked & valid
    return errors, weight.expand_as(errors).float()


def patch_normalised(target: Tensor, valid: Tensor | None) -> Tensor:
    """Standardise each patch over its valid values (unbiased variance; He et al. 2022)."""
    if valid is None:
        mean = target.mean(dim=-1, keepdim=True)
        variance = target.var(dim=-1, keepdim=True)
    else:
        n = valid.sum(dim=-1, keepdim=True)
        mean = torch.where(valid, target, 0.0).sum(dim=-1, keepdim=True) / n.clamp_min(1)
        deviation = torch.where(valid, target - mean, 0.0)
        variance = deviation.square().sum(dim=-1, keepdim=True) / (n - 1).clamp_min(1)
    return (target - mean) / (variance + PATCH_NORM_EPS).sqrt()


def _regression_error(task: Task, predicted: Tensor, target: Tensor) -> Tensor:
    if task.loss == "mse":
        return (predicted - target).square()
    if task.loss == "l1":
        return (predicted - target).abs()
    return F.huber_loss(predicted, target, reduction="none")
