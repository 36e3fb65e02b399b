"""The pre-training run: from a recipe and a source to a run folder. Run again to resume."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback

from multimae_eo.errors import ConfigError
from multimae_eo.files import single_writer
from multimae_eo.loading.loader import make_loader
from multimae_eo.loading.workers import ChipLoader
from multimae_eo.modality import ModalitySet
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.reports.reconstruction_figures import reconstruction_figure, save_figure
from multimae_eo.reports.run_page import run_report
from multimae_eo.reports.views import chip_views
from multimae_eo.sources.base import Indices, Source
from multimae_eo.train.callbacks import DrawChips, MetricsCsv, Pictures
from multimae_eo.train.checkpoints import Checkpoints
from multimae_eo.train.chip_scale import check_windows
from multimae_eo.train.data import TrainBatches, chip_sizes, model_config, train_statistics
from multimae_eo.train.fit import fit
from multimae_eo.train.modules import PretrainModule, ShardedModule
from multimae_eo.train.recipe import Recipe
from multimae_eo.train.resumed import resolved
from multimae_eo.train.run import (
    RunResult,
    card_facts,
    claim_run,
)
from multimae_eo.train.threads import ThreadCount

_PICTURED = 4


@dataclass(frozen=True, kw_only=True)
class InitialModel:
    """A model to start from, how it was called, and the hash of its folder."""

    model: MultiMAE
    name: str
    digest: str

    @property
    def record(self) -> dict[str, dict[str, str]]:
        """Its entry in the record of a run."""
        return {"init": {"model": self.name, "hash": self.digest}}


@single_writer()
def pretrain(
    recipe: Recipe,
    source: Source,
    out: Path,
    *,
    spec: str = "",
    init: InitialModel | None = None,
) -> RunResult:
    """Pre-train, or continue the run in ``out``.

    Leaves ``recipe.yaml``, ``metrics.csv``, TensorBoard events, ``checkpoints/``, ``pictures/``,
    ``model/`` and ``report.html``. ``spec``: how the source was named, for the record. ``init``:
    a model to start from, as far as its parts fit.

    Raises:
        ConfigError: the recipe does not fit the data or ``init``, or ``out`` holds another run.
        TrainingError: the loss is not finite.
    """
    started = time.monotonic()
    recipe = resolved(recipe, out)
    modalities, tasks = recipe.resolve(source.modalities)
    train, val = source.train_val(val_fraction=recipe.data.val_fraction)
    sizes = chip_sizes(source, modalities, train)
    config = model_config(recipe.model, recipe.data, modalities, sizes)
    config.validate(modalities)
    _check_windows(recipe, sizes)
    record = recipe.to_plain() | ({} if init is None else init.record)
    claim_run(out, record, source, spec, defaults=Recipe().to_plain())
    kept, limit = out / "statistics.json", recipe.data.statistics_chips
    statistics = train_statistics(source, modalities, train, limit=limit, kept=kept)
    pl.seed_everything(recipe.run.seed, verbose=False)
    model = MultiMAE(modalities, tasks, config, statistics)
    if init is not None:
        start_from(model, init)
    run = recipe.run
    cut = replace(recipe.data, chip=max(recipe.data.windows, default=recipe.data.chip))
    batches = TrainBatches(source, train, modalities, cut, seed=run.seed, accumulate=run.accumulate)
    validation = _validation(source, val, modalities, recipe)
    metrics = MetricsCsv(out / "metrics.csv")
    draw = _picture(source, val, modalities, recipe)
    callbacks = _callbacks(recipe, out, draw, config.encoder.width)
    module, trainer = fit(
        partial(_module, model, recipe),
        batches,
        validation,
        recipe=recipe,
        out=out,
        metrics=metrics,
        callbacks=callbacks,
    )
    if isinstance(module, ShardedModule) and module.full_weights:
        model = MultiMAE(modalities, tasks, config, statistics)
        model.load_state_dict(module.full_weights)
    seconds = time.monotonic() - started
    if trainer.is_global_zero:
        metrics.save()
        card = _card(recipe, source, spec, metrics)
        facts = card_facts(source, _last_validation(metrics), kind="loss")
        model.save_pretrained(out / "model", card=card, facts=facts)
        run_report(out)
    values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val")}
    return RunResult(
        model=out / "model",
        metrics=values,
        seconds=seconds,
        first_process=trainer.is_global_zero,
    )


def _check_windows(recipe: Recipe, sizes: Mapping[str, int]) -> None:
    largest, finest = max(recipe.data.windows, default=0), max(sizes.values())
    if largest > finest:
        raise ConfigError(f"data.windows: {largest} px is larger than the chips ({finest} px)")
    check_windows(recipe.data.windows, sizes)


def _module(
    model: MultiMAE, recipe: Recipe, *, steps: int, warmup: int, samples: int
) -> PretrainModule:
    """The module that trains ``model``; its peak rate is the recipe's per 256 samples of a step."""
    kind = ShardedModule if recipe.run.strategy == "fsdp" else PretrainModule
    return kind(model, recipe, steps=steps, warmup=warmup, lr=recipe.optim.lr * samples / 256)


def _callbacks(recipe: Recipe, out: Path, draw: DrawChips, width: int) -> list[Callback]:
    run = recipe.run
    kept = Checkpoints(out / "checkpoints", every_steps=run.checkpoint_steps, keep=run.keep)
    # Where weights are sharded, no process can draw by itself.
    drawn = [] if run.strategy == "fsdp" else [Pictures(out / "pictures", run.pictures_every, draw)]
    tokens = recipe.data.batch_size * recipe.masking.num_visible_tokens
    return [kept, *drawn, ThreadCount(width=width, tokens=tokens)]


def start_from(model: MultiMAE, init: InitialModel) -> None:
    """Take the weights of ``init`` where a parameter has its name and shape; print which are new.

    Parts of modalities that mean something else there (other bands or units) get new weights.
    Raises ConfigError where the encoders differ.
    """
    given = init.model
    if given.config.encoder != model.config.encoder:
        raise ConfigError(
            f"--init {init.name}: its encoder is {given.config.encoder}, the recipe's is "
            f"{model.config.encoder}; give the recipe the same model.encoder"
        )
    shared = {n for n, m in model.modalities.items() if given.modalities.has(m)}
    other = set(model.modalities) - shared
    tasks = {t.name for t in model.tasks if t.modality in other}
    weights = given.state_dict()
    taken = {
        name: weights[name]
        for name, value in model.state_dict().items()
        if name in weights
        and weights[name].shape == value.shape
        and not (name.startswith("decoders.") and name.split(".")[1] in tasks)
        and not (name.startswith(("embeddings.", "modality.")) and name.split(".")[1] in other)
    }
    model.load_state_dict(taken, strict=False)
    parts = {".".join(n.split(".")[:2]) for n, _ in model.named_parameters() if n not in taken}
    if parts:
        sys.stderr.write(f"new weights: {', '.join(sorted(parts))}\n")


def _validation(
    source: Source, val: Indices, modalities: ModalitySet, recipe: Recipe
) -> ChipLoader | None:
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


def _picture(source: Source, val: Indices, modalities: ModalitySet, recipe: Recipe) -> DrawChips:
    """A function that draws the same few validation chips each time.

    Only the first input is given, so that the picture shows what the model infers from it.
    """
    given = (recipe.masking.inputs or list(modalities))[:1]
    spaced = val[:: max(1, len(val) // _PICTURED)]
    having = (i for i in spaced if given[0] in source.read(int(i), list(modalities)).pixels)
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
        predictions = model.reconstruct(batch.to(device), given, samples=4)
        save_figure(reconstruction_figure(chip_views(batch, predictions, inputs=given)), path)
        model.train(was_training)

    return draw


def _last_validation(metrics: MetricsCsv) -> dict[str, float]:
    """The last row of metrics with a validation loss; empty where there is none."""
    rows = [r for _, r in sorted(metrics.rows.items()) if "val/loss" in r]
    return rows[-1] if rows else {}


def _card(recipe: Recipe, source: Source, spec: str, metrics: MetricsCsv) -> str:
    last = _last_validation(metrics)
    lines = [
        "## Training",
        "",
        f"Data: {source.name} ({len(source)} chips{f', {spec}' if spec else ''}), "
        f"{recipe.run.epochs} epochs, seed {recipe.run.seed}.",
        "",
    ]
    if last:
        lines += ["| task | validation loss | best constant prediction |", "|---|---|---|"]
        for key in sorted(k for k in last if k.startswith("val/") and k != "val/loss"):
            task = key.removeprefix("val/")
            constant = last.get(f"val_baseline/{task}", float("nan"))
            lines.append(f"| {task} | {last[key]:.4f} | {constant:.4f} |")
    lines += ["", "```yaml", recipe.to_yaml().strip(), "```"]
    return "\n".join(lines)
