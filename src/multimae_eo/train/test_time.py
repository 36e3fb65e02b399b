"""Test-time training: a copy of a fine-tuned model learns to reconstruct the data that it is given.

Its decoders, which fine-tuning kept, reconstruct masked patches of the inputs that the data have; a
few gradient steps of that loss move the encoder towards them (Sun et al. 2020; with masked
autoencoders Gandelsman et al. 2022; with several modalities MMEarth-Bench, 2026). No label is used.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from multimae_eo.errors import ConfigError
from multimae_eo.network.masking import sample_states
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.sample_rng import PerSample
from multimae_eo.network.windows import chip_windows
from multimae_eo.sample import Batch
from multimae_eo.train.objective import Objective

VISIBLE_SHARE = 0.25
"""Of the tokens, in the reconstructions beside fine-tuning and at test time."""
CHIPS = 256
"""Chips or windows that are adapted to at most, evenly spaced."""
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """How a copy of a model is adapted to the data that it is applied to.

    ``steps``: gradient steps. ``lr``: of AdamW. ``seed``: of the masks.
    Raises ConfigError for values out of range.
    """

    steps: int = 10
    lr: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"adapt: expected ≥ 1 steps, got {self.steps}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ConfigError(f"adapt_lr: expected > 0, got {self.lr}")

    @property
    def record(self) -> Mapping[str, object]:
        """The options, JSON-ready."""
        return asdict(self)

    def __call__(self, predictor: Predictor, batches: Sequence[Batch]) -> tuple[Predictor, str]:
        """See ``adapt_to``."""
        return adapt_to(predictor, batches, self)


def reconstruction_loss(
    encoder: MultiMAE, objective: Objective, batch: Batch, *parts: int
) -> Tensor:
    """Loss of masked patches of a batch, under masks drawn by chip and ``parts``: a scalar."""
    patches = encoder.patchify(batch)
    states = sample_states(
        patches.layout,
        None if patches.observed is None else patches.observed.cpu(),
        batch_size=patches.batch_size,
        num_visible_tokens=max(1, round(VISIBLE_SHARE * patches.layout.count)),
        generator=PerSample(batch.keys, *parts),
    )
    loss: Tensor = objective(encoder(patches, states)).total
    return loss


def adapt_to(
    predictor: Predictor, batches: Sequence[Batch], options: AdaptOptions
) -> tuple[Predictor, str]:
    """A copy of ``predictor`` adapted to ``batches``, and what was done, in words.

    Each step takes the next batch, of larger chips another window. Only the encoder and its inputs
    learn: head and decoders stay. The result follows from the batches and the options alone. The
    losses in the note are those of the first batch and its masks, before and after.

    Raises ConfigError where the model has no decoders.
    """
    require_decoders(predictor)
    adapted = copy.deepcopy(predictor).eval().requires_grad_(False)
    encoder = adapted.encoder
    for part in (encoder.encoder, encoder.embeddings, encoder.modality):
        part.requires_grad_(True)
    encoder.global_tokens.requires_grad_(True)
    learned = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=options.lr, weight_decay=0.0)
    objective = Objective(encoder.tasks)
    device = encoder.global_tokens.device

    def loss_at(step: int) -> Tensor:
        batch = batches[step % len(batches)].to(device)
        batch = _shown_window(encoder, batch, step // len(batches))
        return reconstruction_loss(encoder, objective, batch, options.seed, step)

    first = 0.0
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for step in range(options.steps):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_at(step)
            loss.backward()
            optimizer.step()
            first = first if step else float(loss.detach())
        with torch.no_grad():
            last = float(loss_at(0))
    adapted.requires_grad_(False)
    chips = sum(len(b) for b in batches)
    note = (
        f"{options.steps} steps at {options.lr:g} on {chips} chips, seed {options.seed}: "
        f"reconstruction loss {first:.4f} to {last:.4f}"
    )
    sys.stderr.write(f"test-time training: {note}\n")
    return adapted, note


def require_decoders(predictor: Predictor) -> None:
    """ConfigError where a fine-tuned model has no decoders to be adapted by."""
    if not predictor.encoder.tasks:
        raise ConfigError(
            "adapt: the model has no decoders; fine-tune it with --decoders.keep true"
        )


def _shown_window(encoder: MultiMAE, batch: Batch, number: int) -> Batch:
    """The chips in which anything is observed, of larger ones the ``number``-th window."""
    windows = chip_windows(encoder.config.sizes, batch, 0.0)
    for offset in range(len(windows)):
        part = batch.cut(windows[(number + offset) % len(windows)])
        rows = encoder.observed_rows(part)
        if len(rows):
            return part.take(rows)
    return batch.take(encoder.observed_rows(batch))
