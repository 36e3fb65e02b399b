"""From a source to what training needs: sizes, statistics, and batches that resume exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from multimae_eo.errors import ConfigError, ContractError, DataError, FormatError
from multimae_eo.files import read_json, reading, write_file
from multimae_eo.loading.loader import make_loader
from multimae_eo.loading.workers import ChipLoader
from multimae_eo.modality import ModalitySet
from multimae_eo.network.config import EncoderConfig, InputConfig, ModelConfig, encoder_named
from multimae_eo.sample import Batch
from multimae_eo.sources.base import Indices, Source
from multimae_eo.statistics import Statistics
from multimae_eo.train.recipe import DataRecipe, ModelRecipe


def chip_sizes(source: Source, modalities: ModalitySet, indices: Indices) -> dict[str, int]:
    """Side of a chip per modality in its own pixels, from the first chips that have each.

    Raises ContractError when a modality is in none of the chips, or chips are not square.
    """
    first_sizes: dict[str, tuple[str, int]] = {}
    reference: dict[str, int] = {}
    for i in indices:
        sample = source.read(int(i), list(modalities))
        sides = {n: p.shape[-2:] for n, p in sample.pixels.items()}
        largest = max(max(s) for s in sides.values())
        for name, (height, width) in sides.items():
            if height != width:
                raise ContractError(f"{sample.key}: {name} is {height}×{width} px; need squares")
            if name not in first_sizes:
                first_sizes[name], reference[name] = (sample.key, height), largest
        if len(first_sizes) == len(modalities):
            break
    missing = [n for n in modalities if n not in first_sizes]
    if missing:
        raise ContractError(f"{source.name}: no training chip has {', '.join(missing)}")
    # Chips of several sources may differ in size; what counts is each modality's share of one.
    side = max(reference.values())
    return {n: first_sizes[n][1] * side // reference[n] for n in modalities}


def model_config(
    recipe: ModelRecipe, data: DataRecipe, modalities: ModalitySet, sizes: Mapping[str, int]
) -> ModelConfig:
    """Sizes, patches and strides of every modality over the same ground."""
    encoder = recipe.encoder
    finest = max(sizes.values())
    chip = data.chip or finest
    if chip > finest:
        raise ConfigError(f"data.chip: {chip} px is larger than the chips ({finest} px)")
    for name in recipe.stride:
        modalities[name]
    inputs = {}
    for name in modalities:
        share = sizes[name] / finest
        size, ground = chip * share, recipe.patch * share
        stride = recipe.stride.get(name, 1)
        if size != int(size) or ground != int(ground) or int(ground) % stride:
            raise ConfigError(
                f"{name}: {sizes[name]} px beside {finest} px: a window of {chip} px and a patch "
                f"of {recipe.patch} px do not fall on its pixels (stride {stride}); choose others"
            )
        inputs[name] = InputConfig(size=int(size), patch=int(ground) // stride, stride=stride)
    return ModelConfig(
        encoder=encoder if isinstance(encoder, EncoderConfig) else encoder_named(encoder),
        decoder=recipe.decoder,
        inputs=inputs,
        global_tokens=recipe.global_tokens,
        position_grid=recipe.position_grid,
        modality_embeddings=recipe.modality_embeddings,
        spectral=recipe.spectral,
    )


def train_statistics(
    source: Source, modalities: ModalitySet, train: Indices, *, limit: int, kept: Path
) -> Statistics:
    """Statistics of training chips only, kept in the run folder for the next start.

    At most ``limit`` chips, evenly spaced, are read; a store brings its own.
    """
    if kept.exists():
        remedy = "delete it to compute it again"
        record = read_json(kept, FormatError, remedy=remedy)
        with reading(kept, FormatError, remedy):
            try:
                return Statistics.from_dict(modalities, record)
            except DataError as error:
                raise FormatError(f"{kept}: {error}") from error
    chosen = train
    if len(train) > limit:
        chosen = train[np.linspace(0, len(train) - 1, limit).astype(np.int64)]
    statistics = source.statistics(chosen).select(list(modalities))
    statistics = Statistics(modalities, statistics.moments, statistics.class_counts)
    write_file(kept, (json.dumps(statistics.to_dict()) + "\n").encode())
    return statistics


class TrainBatches:
    """An epoch's training batches, from wherever the run stands.

    Order, windows and flips follow from (seed, epoch, position); where to start follows from the
    trainer's optimiser steps so far. So a resumed run sees what it would have seen, also in
    another number of processes, as long as an optimiser step takes as many samples altogether.
    """

    def __init__(
        self,
        source: Source,
        indices: Indices,
        modalities: ModalitySet,
        recipe: DataRecipe,
        *,
        seed: int,
        accumulate: int = 1,
    ) -> None:
        self._accumulate = accumulate
        self._trainer: pl.Trainer | None = None
        self._arguments: dict[str, Any] = {
            "source": source,
            "indices": indices,
            "batch_size": recipe.batch_size,
            "modalities": list(modalities),
            "chip": recipe.chip,
            "train": True,
            "seed": seed,
            "workers": recipe.workers,
            "flips": recipe.flips,
            "rot90": recipe.rot90,
            "locality": recipe.locality,
        }

    def __len__(self) -> int:
        """Batches of an epoch on this process: whole accumulations, unless there is none."""
        count = len(self._loader(0, 0))
        return count - count % self._accumulate or count

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-len(self) // self._accumulate)

    def __iter__(self) -> Iterator[Batch]:
        taken = 0 if self._trainer is None else int(self._trainer.global_step)
        epoch, step = divmod(taken, self.steps_per_epoch)
        start = step * self._accumulate
        yield from islice(self._loader(epoch, start), len(self) - start)

    def attach(self, trainer: pl.Trainer) -> None:
        """Follow a trainer's position and rank."""
        self._trainer = trainer

    def state_dict(self) -> dict[str, int]:
        """How a step's samples are split. The position is the trainer's count of steps."""
        return {"step_samples": self.step_samples, "accumulate": self._accumulate}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue in another split; ConfigError unless a step has as many samples as before."""
        before = state.get("step_samples", self.step_samples)
        if before != self.step_samples:
            raise ConfigError(
                f"this run takes {before} samples per optimiser step; here "
                f"{self._arguments['batch_size']} (data.batch_size) × {self._accumulate} "
                f"(run.accumulate) × {self._share[1]} process(es) make {self.step_samples}: "
                "change one of them"
            )
        was = state.get("accumulate", self._accumulate)
        assert self._trainer is not None, "Lightning restores what is attached"
        progress: Any = self._trainer.fit_loop.epoch_loop.batch_progress
        for counts in (progress.total, progress.current):
            pending = counts.ready - counts.completed
            ready = counts.ready // was * self._accumulate
            counts.ready = counts.started = counts.processed = ready
            counts.completed = ready - pending

    @property
    def step_samples(self) -> int:
        """Samples of an optimiser step, of all processes."""
        return int(self._arguments["batch_size"]) * self._accumulate * self._share[1]

    @property
    def _share(self) -> tuple[int, int]:
        """This process's rank, and the number of processes."""
        trainer = self._trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _loader(self, epoch: int, start: int) -> ChipLoader:
        rank, processes = self._share
        return make_loader(
            **self._arguments, epoch=epoch, start_batch=start, rank=rank, world_size=processes
        )
