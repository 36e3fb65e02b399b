"""The pre-training run: from a recipe and a source to a run folder. Run again to resume."""

from __future__ import annotations

import logging
import pickle
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger

from multimae_eo.errors import CheckpointError, ConfigError
from multimae_eo.infer.figures import reconstruction_figure, save_figure
from multimae_eo.infer.views import chip_views
from multimae_eo.model.multimae import MultiMAE
from multimae_eo.report import run_report, write_whole
from multimae_eo.sources import Source
from multimae_eo.store.loader import make_loader
from multimae_eo.train.callbacks import (
    Checkpoints,
    Ema,
    MetricsCsv,
    Pictures,
    Progress,
    Resume,
    ValidateLast,
)
from multimae_eo.train.data import TrainBatches, chip_sizes, model_config, train_statistics
from multimae_eo.train.modules import PretrainModule
from multimae_eo.train.recipe import Recipe

_PICTURED = 4


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run left: its model folder, and the last validation losses by metric name."""

    model: Path
    metrics: dict[str, float]
    seconds: float


def pretrain(recipe: Recipe, source: Source, out: Path, *, spec: str = "") -> RunResult:
    """Pre-train, or continue the run in ``out``.

    Leaves ``recipe.yaml``, ``metrics.csv``, TensorBoard events, ``checkpoints/``, ``pictures/``,
    ``model/`` and ``report.html``. ``spec``: how the source was named, for the record.

    Raises:
        ConfigError: the recipe does not fit the data, or ``out`` holds another run.
        TrainingError: the loss is not finite.
    """
    started = time.monotonic()
    modalities, tasks = recipe.resolve(source.modalities)
    train, val = source.train_val(val_fraction=recipe.data.val_fraction)
    sizes = chip_sizes(source, modalities, train)
    config = model_config(recipe.model, recipe.data, modalities, sizes)
    config.validate(modalities)
    _claim(out, recipe, source, spec)
    statistics = train_statistics(
        source,
        modalities,
        train,
        limit=recipe.data.statistics_chips,
        kept=out / "statistics.json",
    )
    pl.seed_everything(recipe.run.seed, verbose=False)
    model = MultiMAE(modalities, tasks, config, statistics)
    batches = TrainBatches(
        source,
        train,
        modalities,
        recipe.data,
        seed=recipe.run.seed,
        accumulate=recipe.run.accumulate,
    )
    validation = _validation(source, val, modalities, recipe)
    metrics = MetricsCsv(out / "metrics.csv")
    with quiet():
        trainer = _trainer(
            recipe, out, metrics, batches.steps_per_epoch, _picture(source, val, modalities, recipe)
        )
        _fit(trainer, model, batches, validation, recipe, out)
    seconds = time.monotonic() - started
    if trainer.is_global_zero:
        metrics.save()
        model.save_pretrained(out / "model", card=_card(recipe, source, spec, metrics))
        run_report(out)
    values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val")}
    return RunResult(model=out / "model", metrics=values, seconds=seconds)


def _fit(
    trainer: pl.Trainer,
    model: MultiMAE,
    batches: TrainBatches,
    validation: Any,
    recipe: Recipe,
    out: Path,
) -> None:
    """Train from the last checkpoint, if there is one."""
    batches.attach(trainer)
    effective = recipe.data.batch_size * recipe.run.accumulate * trainer.world_size
    module = PretrainModule(
        model,
        recipe,
        steps=batches.steps_per_epoch * recipe.run.epochs,
        warmup=round(batches.steps_per_epoch * recipe.optim.warmup_epochs),
        lr=recipe.optim.lr * effective / 256,
    )
    last = out / "checkpoints" / "last.ckpt"
    if last.exists():
        _check_readable(last)
    trainer.fit(
        module,
        batches,
        validation,
        ckpt_path=str(last) if last.exists() else None,
        weights_only=True,
    )


def _check_readable(path: Path) -> None:
    """CheckpointError for a damaged file, before a trainer is asked to restore it."""
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except (EOFError, RuntimeError, OSError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: damaged; delete it to start again, or put best.ckpt in its place"
        ) from error


def _claim(out: Path, recipe: Recipe, source: Source, spec: str) -> None:
    """Make ``out`` this run's folder; ConfigError when it holds a different run."""
    record = yaml.safe_load(recipe.to_yaml())
    record["source"] = {
        "spec": spec,
        "name": source.name,
        "chips": len(source),
        "fingerprint": source.modalities.fingerprint,
    }
    path = out / "recipe.yaml"
    if path.exists():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        differing = _differences(before, record)
        if differing:
            raise ConfigError(
                f"{out}: holds another run ({'; '.join(differing[:4])}); "
                "give the same recipe and data to resume it, or choose another --out"
            )
        return
    write_whole(path, yaml.safe_dump(record, sort_keys=False).encode())


# What may change between a run and its resumption: it decides no number.
_FREE = ("run.devices", "run.accelerator", "run.log_every", "run.pictures_every", "source.spec",
         "data.workers", "run.checkpoint_steps")  # fmt: skip


def _differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in dict.fromkeys([*before, *now]):
            found += _differences(before.get(key), now.get(key), f"{prefix}{key}.")
        return found
    name = prefix.rstrip(".")
    return [] if before == now or name in _FREE else [f"{name}: {before} there, {now} here"]


def _trainer(
    recipe: Recipe, out: Path, metrics: MetricsCsv, per_epoch: int, draw: Any
) -> pl.Trainer:
    run = recipe.run
    steps = per_epoch * run.epochs
    callbacks: list[Any] = [
        ValidateLast(),
        Checkpoints(out / "checkpoints", every_steps=run.checkpoint_steps),
        Progress(
            batch_size=recipe.data.batch_size,
            steps=steps,
            log_every=run.log_every,
        ),
        Pictures(out / "pictures", run.pictures_every, draw),
        Resume(metrics),
    ]
    if recipe.optim.ema is not None:
        callbacks.insert(0, Ema(recipe.optim.ema))
    return pl.Trainer(
        accelerator=run.accelerator,
        devices=run.devices if run.accelerator != "cpu" or run.devices != "auto" else 1,
        precision=run.precision,
        max_epochs=run.epochs,
        accumulate_grad_batches=run.accumulate,
        gradient_clip_val=recipe.optim.clip,
        check_val_every_n_epoch=run.val_every,
        # A run shorter than that still leaves a row to report.
        log_every_n_steps=min(run.log_every, steps),
        logger=[metrics, TensorBoardLogger(save_dir=out, name="", version="tensorboard")],
        callbacks=callbacks,
        enable_checkpointing=True,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=out,
    )


def _validation(source: Source, val: Any, modalities: Any, recipe: Recipe) -> Any:
    if not len(val):
        return None
    return make_loader(
        source,
        val,
        batch_size=recipe.data.batch_size,
        modalities=list(modalities),
        chip=recipe.data.chip,
        train=False,
        seed=recipe.run.seed,
        workers=recipe.data.workers,
    )


def _picture(source: Source, val: Any, modalities: Any, recipe: Recipe) -> Any:
    """A function that draws the same few validation chips each time.

    Only the first input is given, so that the picture shows what the model infers from it.
    """
    given = (recipe.masking.inputs or list(modalities))[:1]
    spread = val[:: max(1, len(val) // _PICTURED)]
    having = (i for i in spread if given[0] in source.read(int(i), list(modalities)).pixels)
    chosen = np.array(list(islice(having, _PICTURED)), dtype=np.int64)

    def draw(model: MultiMAE, path: Path) -> None:
        if not len(chosen):
            return
        loader = make_loader(
            source,
            chosen,
            batch_size=len(chosen),
            modalities=list(modalities),
            chip=recipe.data.chip,
            train=False,
            seed=0,
        )
        batch = next(iter(loader))
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        said = model.reconstruct(batch.to(device), given, draws=4)
        save_figure(reconstruction_figure(chip_views(batch, said, inputs=given)), path)
        model.train(was_training)

    return draw


def _card(recipe: Recipe, source: Source, spec: str, metrics: MetricsCsv) -> str:
    rows = [r for _, r in sorted(metrics.rows.items()) if "val/loss" in r]
    lines = [
        "## Training",
        "",
        f"Data: {source.name} ({len(source)} chips{f', {spec}' if spec else ''}), "
        f"{recipe.run.epochs} epochs, seed {recipe.run.seed}.",
        "",
    ]
    if rows:
        lines += ["| task | validation loss | best constant prediction |", "|---|---|---|"]
        for key in sorted(k for k in rows[-1] if k.startswith("val/") and k != "val/loss"):
            task = key.removeprefix("val/")
            constant = rows[-1].get(f"val_baseline/{task}", float("nan"))
            lines.append(f"| {task} | {rows[-1][key]:.4f} | {constant:.4f} |")
    lines += ["", "```yaml", recipe.to_yaml().strip(), "```"]
    return "\n".join(lines)


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
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
