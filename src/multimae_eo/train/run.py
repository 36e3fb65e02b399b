"""What pre-training and fine-tuning runs share: their folder, their trainer, their silence."""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from multimae_eo.errors import CheckpointError, ConfigError
from multimae_eo.files import require_regular, write_file
from multimae_eo.network.card_facts import CardFacts, Score
from multimae_eo.processes import follow_launcher, launching_followers
from multimae_eo.runtime import limit_threads, resolve_device, resolve_precision
from multimae_eo.sources.base import Source
from multimae_eo.sources.yaml_section import load_yaml
from multimae_eo.train.callbacks import Ema, MetricsCsv, Progress, Resume, ValidateLast
from multimae_eo.train.checkpoints import LAST, Preemption
from multimae_eo.train.options import with_current_names
from multimae_eo.train.recipe import AdamWRecipe, TrainingRecipe

RunKind = TypeVar("RunKind", bound=TrainingRecipe)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run left: its model folder, and the last validation's values by metric name.

    ``first_process``: whether this process is the one that reports.
    """

    model: Path
    metrics: dict[str, float]
    seconds: float
    first_process: bool = True


def card_facts(source: Source, row: Mapping[str, float], *, kind: str = "") -> CardFacts:
    """Training data and validation scores, for a model's card.

    ``row``: of ``metrics.csv``. ``kind``: of all its values but ``val/loss``, where their names do
    not state it.
    """
    scores = {k.removeprefix("val/"): v for k, v in row.items() if k.startswith("val/")}
    return CardFacts(
        datasets=(source.name,),
        scores=tuple(
            Score(
                metric=name if not kind or name == kind else f"{kind}_{name}",
                value=value,
                dataset=source.name,
            )
            for name, value in sorted(scores.items())
        ),
    )


def with_precision(run: RunKind) -> RunKind:
    """``run`` with the precision that computes: ``auto`` resolved for its accelerator."""
    return replace(run, precision=resolve_precision(run.precision, run_device(run)))  # type: ignore[arg-type]


def run_device(run: TrainingRecipe) -> str:
    """The device of a run's accelerator, as torch calls it."""
    kind = {"auto": "auto", "gpu": "auto", "tpu": "cpu"}.get(run.accelerator, run.accelerator)
    return resolve_device(kind)


def run_options(device: str | None, precision: str | None) -> list[str]:
    """A device and a precision as options of a recipe's ``run``; none where they are None.

    Raises ConfigError for a device that this machine does not have.
    """
    options = [] if precision is None else [f"--run.precision={precision}"]
    if device not in (None, "auto"):
        kind, _, index = resolve_device(str(device)).partition(":")
        options.append(f"--run.accelerator={'gpu' if kind == 'cuda' else kind}")
        if index:
            options.append(f"--run.devices='{index},'")
    return options


def claim_run(
    out: Path,
    record: Mapping[str, object],
    source: Source,
    spec: str,
    *,
    defaults: Mapping[str, object] | None = None,
) -> None:
    """Make ``out`` the folder of the run that ``record``, its recipe, describes.

    ``defaults``: what options have that an older version did not know when it began the run.
    ConfigError when it holds a different run.
    """
    record = {
        **record,
        "source": {
            "spec": spec,
            "name": source.name,
            "chips": len(source),
            "fingerprint": source.modalities.fingerprint,
        },
    }
    path = out / "recipe.yaml"
    if path.exists():
        before = _filled(with_current_names(load_yaml(path)), defaults or {})
        if not isinstance(before, dict):
            raise ConfigError(f"{path}: is no recipe; restore it, or delete {out}")
        free = (*_FREE, *_SPLIT) if (out / "checkpoints" / LAST).exists() else _FREE
        differing = _differences(before, record, free)
        if differing:
            raise ConfigError(
                f"{out}: holds another run ({'; '.join(differing[:4])}); "
                "give the same recipe and data to resume it, or choose another --out"
            )
        return
    write_file(path, yaml.safe_dump(record, sort_keys=False).encode())


def _filled(record: object, defaults: Mapping[str, object]) -> object:
    """A record with the defaults of keys it lacks."""
    if not isinstance(record, dict):
        return record
    filled = dict(record)
    for key, value in defaults.items():
        recorded = filled.get(key, value)
        filled[key] = _filled(recorded, value) if isinstance(value, dict) else recorded
    return filled


# What may change between a run and its resumption: it decides no number.
_FREE = (
    "run.devices",
    "run.accelerator",
    "run.nodes",
    "run.strategy",
    "run.activation_checkpointing",
    "run.keep",
    "run.log_every",
    "run.pictures_every",
    "run.checkpoint_steps",
    "data.workers",
    "source.spec",
    "init.model",
    "learning_rate",
)
# What may change once there is a checkpoint: it knows the samples of a step, their product with
# the number of processes, and is refused where that differs.
_SPLIT = ("data.batch_size", "run.accumulate")


def _differences(before: object, now: object, free: tuple[str, ...], prefix: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        differences = []
        for key in dict.fromkeys([*before, *now]):
            differences += _differences(before.get(key), now.get(key), free, f"{prefix}{key}.")
        return differences
    name = prefix.rstrip(".")
    return [] if before == now or name in free else [f"{name}: {before} there, {now} here"]


def last_checkpoint(out: Path) -> str | None:
    """The checkpoint to resume from, if any; CheckpointError where it is damaged."""
    path = out / "checkpoints" / LAST
    if not path.exists():
        return None
    read_checkpoint(path, device="meta")
    return str(path)


def read_checkpoint(path: Path, *, device: str = "cpu") -> dict[str, Any]:
    """A checkpoint's record; CheckpointError for a damaged file."""
    damage = f"{path}: damaged; delete it to start again, or replace it by best.ckpt"
    require_regular(path, CheckpointError)
    try:
        # torch does not compare the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise EOFError(damaged)
        record = torch.load(path, map_location=device, weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged archives raise nearly anything
        raise CheckpointError(damage) from error
    if not isinstance(record, dict) or not isinstance(record.get("global_step"), int):
        raise CheckpointError(damage)
    return record


def make_trainer(
    run: TrainingRecipe, optim: AdamWRecipe, *, out: Path, metrics: MetricsCsv, steps: int,
    callbacks: Sequence[Callback],
) -> pl.Trainer:  # fmt: skip
    """A trainer for ``steps`` optimiser steps that shows and records its progress.

    ``callbacks``: further ones, the checkpoints' among them.
    """
    limit_threads()
    follow_launcher()
    every: list[Callback] = [
        ValidateLast(),
        *callbacks,
        Progress(log_every=run.log_every),
        Resume(metrics),
        Preemption(every=run.log_every),
    ]
    if optim.ema is not None:
        every.insert(0, Ema(optim.ema))
    trainer = pl.Trainer(
        accelerator=run.accelerator,
        num_nodes=run.nodes,
        strategy=_strategy(run),
        devices=run.devices if run.accelerator != "cpu" or run.devices != "auto" else 1,
        precision=None if run.precision == "auto" else run.precision,
        max_epochs=run.epochs,
        accumulate_grad_batches=run.accumulate,
        gradient_clip_val=optim.clip,
        check_val_every_n_epoch=run.val_every,
        # A run shorter than that still leaves a row to report.
        log_every_n_steps=min(run.log_every, steps),
        logger=[metrics, TensorBoardLogger(save_dir=out, name="", version="tensorboard")],
        callbacks=every,
        enable_checkpointing=True,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=out,
    )
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        start = launcher._call_children_scripts
        ended_with_us = partial(launching_followers, start)
        launcher._call_children_scripts = ended_with_us  # type: ignore[method-assign]
    return trainer


def _strategy(run: TrainingRecipe) -> Strategy | str:
    if run.strategy == "ddp":
        # Buffers are constants, the same everywhere.
        return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    if run.strategy == "fsdp":
        return ModelParallelStrategy(save_distributed_checkpoint=False)
    return "auto"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's banners and advice off stderr; our own bar and errors stay."""
    loggers = [logging.getLogger(n) for n in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            # Nothing is changed in place there.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
