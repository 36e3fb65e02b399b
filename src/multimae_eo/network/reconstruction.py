"""Any modality from any others, with its predictive standard deviation.

The standard deviation is over several random subsets of the visible tokens: it is large where the
prediction depends on which few patches were visible. It measures the model's sensitivity, not all
its error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from multimae_eo.errors import ConfigError, ContractError, did_you_mean
from multimae_eo.modality import ModalitySet, Task
from multimae_eo.network.config import ModelConfig
from multimae_eo.network.masking import all_visible, sample_states
from multimae_eo.network.normalize import Normalizer
from multimae_eo.network.tokens import Patches, TokenState, unpatchify
from multimae_eo.network.windows import Blend, ChipWindow, chip_windows, extent
from multimae_eo.sample import Batch
from multimae_eo.statistics import Statistics


class MaskedModel(Protocol):
    """What reconstruction needs of a model; ``MultiMAE`` is one."""

    modalities: ModalitySet
    tasks: tuple[Task, ...]
    config: ModelConfig
    normalizer: Normalizer

    @property
    def statistics(self) -> Statistics | None:
        """The statistics inputs are normalised with."""

    def patchify(self, batch: Batch) -> Patches:
        """Normalise a batch and cut it into patches."""

    def chosen(self, inputs: Sequence[str] | None, given: Collection[str]) -> tuple[str, ...]:
        """Check and order ``inputs``; all that are ``given`` by default."""

    def observed_rows(self, batch: Batch, inputs: Sequence[str] | None = None) -> Tensor:
        """Chips with anything observed in ``inputs``: indices int64 (n,)."""

    def __call__(self, patches: Patches, states: Tensor, *, tasks: Sequence[str]) -> Any:
        """Predictions of ``tasks`` from the VISIBLE tokens, a ``Reconstruction``."""


@dataclass(frozen=True)
class Reconstructed:
    """A modality predicted for a batch, at the chips' own size.

    Continuous: ``mean`` (B, C, H, W) in physical units, ``std`` its standard deviation over random
    masks. Categorical: ``mean`` (B, classes, H, W) probabilities in the order of the class map,
    ``std`` (B, 1, H, W) their entropy in nats. Both float32. Of a series (B, T, …), of each date
    that any chip of the batch has.
    """

    mean: Tensor
    std: Tensor

    @property
    def spread(self) -> Tensor:
        """Deprecated: the name of ``std`` before 0.2."""
        return self.std


@torch.no_grad()
def reconstruct(  # noqa: PLR0913 - each is a choice of the caller's, and none goes with another
    model: MaskedModel,
    batch: Batch,
    inputs: Sequence[str] | None = None,
    *,
    outputs: Sequence[str] | None = None,
    samples: int = 8,
    seed: int = 0,
    overlap: float | None = 0.5,
    uncertainty: bool = True,
) -> dict[str, Reconstructed]:
    """Predict modalities from ``inputs`` (default: all the batch has).

    A masked modality is predicted from every observed token of the inputs, and so are the patches
    and dates that an input itself lacks. Where an input was observed it is predicted, patch by
    patch, from random masks that hide the patch. Masks come
    in pairs, a random half of the inputs' tokens and then the other half, so that every patch is
    masked equally often. ``samples``: random masks to average. ``outputs``: modalities (default:
    all with a task). Patch-normalised values and random projections have no physical unit and are
    left out.

    Chips larger than those of pre-training are predicted in windows of its size that overlap by
    the share ``overlap`` and are blended; None predicts them whole, at interpolated positions.
    ``uncertainty``: False leaves ``std`` at 0, which saves its computation.

    Raises:
        ConfigError: unknown inputs or outputs.
        ContractError: a sample has none of the inputs.
    """

    def predict_chip(batch: Batch) -> dict[str, Reconstructed]:
        return _reconstruct_chip(
            model, batch, inputs, outputs, samples=samples, seed=seed, uncertainty=uncertainty
        )

    windows = chip_windows(model.config.sizes, batch, overlap)
    return _blended(model, batch, inputs, windows, predict_chip) if windows else predict_chip(batch)


@torch.no_grad()
def predict_masked(
    model: MaskedModel, batch: Batch, states: Tensor, outputs: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Predict modalities from exactly the tokens that ``states`` shows.

    states: int8 (B, L) of TokenState. Returns (B, C, H, W) float32 in physical units, or class
    probabilities, of the chips' own size. Raises ConfigError for unknown outputs.
    """
    patches = model.patchify(batch)
    tasks = able_tasks(model, outputs)
    predictions = model(patches, states, tasks=list(tasks)).predictions
    images = {}
    for name, task in tasks.items():
        values = averageable(model, task, predictions[name])
        images[task.modality] = _finish(model, task, (values, None), patches, batch).mean
    return images


def _blended(
    model: MaskedModel,
    batch: Batch,
    inputs: Sequence[str] | None,
    windows: Sequence[ChipWindow],
    predict_chip: Callable[[Batch], dict[str, Reconstructed]],
) -> dict[str, Reconstructed]:
    """Windows of a batch's chips, blended. Where no window saw any input, the chip as a whole."""
    means: dict[str, Blend] = {}
    stds: dict[str, Blend] = {}
    for window in windows:
        part = batch.cut(window)
        rows = model.observed_rows(part, inputs)
        if not len(rows):
            continue
        for name, reconstructed in predict_chip(
            part if len(rows) == len(part) else part.take(rows)
        ).items():
            for blends, values in ((means, reconstructed.mean), (stds, reconstructed.std)):
                if name not in blends:
                    blends[name] = Blend(len(batch), extent(windows, name))
                blends[name].add(values, rows, window[name])
    if not all(b.complete for b in means.values()) or not means:
        rest = predict_chip(batch)
        return {
            n: Reconstructed(means[n].mean(r.mean), stds[n].mean(r.std)) if n in means else r
            for n, r in rest.items()
        }
    return {n: Reconstructed(means[n].mean(), stds[n].mean()) for n in means}


def _reconstruct_chip(
    model: MaskedModel,
    batch: Batch,
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
    *,
    samples: int,
    seed: int,
    uncertainty: bool,
) -> dict[str, Reconstructed]:
    patches = model.patchify(batch)
    names = model.chosen(inputs, patches.values)
    tasks = able_tasks(model, outputs)
    shown = all_visible(patches, names)
    counts = (shown == TokenState.VISIBLE).sum(dim=1)
    if bool((counts == 0).any()):
        lacking = batch.keys[int((counts == 0).nonzero()[0])]
        raise ContractError(f"{lacking}: nothing observed in the inputs {', '.join(names)}")
    full = model(patches, shown, tasks=list(tasks))
    sums = {t: _Sums() for t in tasks}
    generator = torch.Generator().manual_seed(seed)
    for states in _halves(patches, shown, names, samples, generator):
        drawn = model(patches, states, tasks=list(tasks))
        for name, task in tasks.items():
            part = patches.layout.slices[task.modality]
            masked = drawn.states[:, part] != TokenState.VISIBLE
            sums[name].add(averageable(model, task, drawn.predictions[name]), masked[:, :, None])
    results = {}
    for name, task in tasks.items():
        everything = averageable(model, task, full.predictions[name])
        part = patches.layout.slices[task.modality]
        given = (shown[:, part] == TokenState.VISIBLE)[:, :, None]
        mean, deviation = sums[name].result(everything, given)
        values = (mean, deviation if uncertainty else None)
        results[task.modality] = _finish(model, task, values, patches, batch)
    return results


def able_tasks(model: MaskedModel, outputs: Sequence[str] | None) -> dict[str, Task]:
    """One task per output modality, the first that predicts it in its own units."""
    able: dict[str, Task] = {}
    for task in model.tasks:
        if task.reconstructs:
            able.setdefault(task.modality, task)
    for name in outputs or ():
        if name not in able:
            raise ConfigError(f"the model cannot predict {name!r}; {did_you_mean(name, able)}")
    return {t.name: t for m, t in able.items() if outputs is None or m in outputs}


def _halves(
    patches: Patches,
    shown: Tensor,
    names: tuple[str, ...],
    count: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Token states of each mask: a random half of what may be shown, then the rest, and so on."""
    shown = shown.cpu()
    able = shown == TokenState.VISIBLE
    half = max(1, int(able.sum(dim=1).min()) // 2)
    states = shown
    for draw in range(count):
        if draw % 2 == 0:
            states = sample_states(
                patches.layout,
                shown != TokenState.ABSENT,
                batch_size=len(shown),
                num_visible_tokens=half,
                alpha=4.0,
                inputs=names,
                generator=generator,
            )
            yield states
        else:
            rest = able & (states != TokenState.VISIBLE)
            masked = shown.masked_fill(able, int(TokenState.MASKED))
            yield masked.masked_fill(rest, int(TokenState.VISIBLE))


class _Sums:
    """Mean and deviation over the random masks that hide a patch."""

    def __init__(self) -> None:
        self.count: Tensor | float = 0.0
        self.total: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def add(self, values: Tensor, masked: Tensor) -> None:
        weight = masked.to(values.dtype)
        self.count = self.count + weight
        self.total = self.total + values * weight
        self.square = self.square + values.square() * weight

    def result(self, fallback: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Their mean for tokens ``given``, bool (B, N, 1), else ``fallback``; and the deviation."""
        if not isinstance(self.count, Tensor):
            return fallback, torch.zeros_like(fallback)
        n = self.count.clamp_min(1)
        mean = self.total / n
        deviation = (self.square / n - mean * mean).clamp_min(0).sqrt()
        return torch.where((self.count > 0) & given, mean, fallback), deviation


def averageable(model: MaskedModel, task: Task, predicted: Tensor) -> Tensor:
    """Predictions as numbers that may be averaged: class logits become probabilities."""
    predicted = predicted.float()
    modality = model.modalities[task.modality]
    if not modality.categorical:
        return predicted
    size, tokens, _ = predicted.shape
    split = predicted.reshape(size, tokens, len(modality.classes), -1)
    return split.softmax(dim=2).reshape(size, tokens, -1)


def _finish(
    model: MaskedModel,
    task: Task,
    values: tuple[Tensor, Tensor | None],
    patches: Patches,
    batch: Batch,
) -> Reconstructed:
    """Mean and deviation from patch space to pixels of the chip's own size, in physical units.

    Without a deviation ``std`` is 0.
    """
    name = task.modality
    modality = model.modalities[name]
    grid, size = patches.layout.grids[name], patches.chip_sizes[name]
    dates, tokens = patches.layout.date_count(name), grid[0] * grid[1]

    def image(values: Tensor) -> Tensor:
        # Each date of a series as an image by itself.
        return to_image(model, name, values.reshape(-1, tokens, values.shape[2]), grid, size)

    mean, deviation = image(values[0]), values[1]
    if modality.categorical:
        std = torch.zeros_like(mean[:, :1])
        if deviation is not None:
            std = -(mean * mean.clamp_min(1e-9).log()).sum(dim=1, keepdim=True)
    else:
        level = _level(model, batch, name).repeat_interleave(dates)
        std = torch.zeros_like(mean)
        if deviation is not None:
            std = image(deviation) * model.normalizer.standard_deviation(name, level)
        mean = model.normalizer.physical(name, mean, level)
    finished = mean, std
    if name in patches.dates:
        by_date = [t.reshape(len(batch), dates, *t.shape[1:]) for t in finished]
        return Reconstructed(*by_date)
    return Reconstructed(*finished)


def to_image(
    model: MaskedModel, name: str, values: Tensor, grid: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Patches (B, N, P) of a modality as an image (B, C, *size), still normalised."""
    config = model.config.inputs[name]
    image = unpatchify(values, grid, config.patch)
    if config.stride > 1:
        image = image.repeat_interleave(config.stride, -2).repeat_interleave(config.stride, -1)
    return image[..., : size[0], : size[1]]


def _level(model: MaskedModel, batch: Batch, name: str) -> Tensor:
    """Product level (B,) to predict a modality at.

    Its own where the sample has it; else that of a present modality with the same levels (red,
    green and blue at L2A give the other bands at L2A); else the level the model saw most of.
    """
    levels = model.modalities[name].levels
    default = usual_level(model, name)
    level = torch.full((len(batch),), default, dtype=torch.int64, device=batch.present.device)
    related = [n for n in batch.pixels if batch.modalities[n].levels == levels and n != name]
    for other in [*reversed(related), *([name] if name in batch.pixels else [])]:
        column = batch.modalities.index(other)
        level = torch.where(batch.present[:, column], batch.level[:, column], level)
    return level


def usual_level(model: MaskedModel, name: str) -> int:
    """Index of the product level that the model saw most of."""
    levels, statistics = model.modalities[name].levels, model.statistics
    if not levels or statistics is None:
        return 0
    seen = [float(statistics.moments[name][level].count.sum()) for level in levels]
    return seen.index(max(seen))
