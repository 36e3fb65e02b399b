"""The fine-tuning run: a source and a pre-trained model to a run folder. Run again to resume."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import yaml

from multimae_eo.errors import ConfigError
from multimae_eo.files import single_writer
from multimae_eo.loading.loader import make_loader
from multimae_eo.loading.workers import ChipLoader
from multimae_eo.modality import ModalitySet
from multimae_eo.network.adapt import adapt
from multimae_eo.network.card_facts import CardFacts
from multimae_eo.network.heads import check_head
from multimae_eo.network.lora import merge_low_rank
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import Target, TargetScan
from multimae_eo.reports.finetune_page import finetune_page
from multimae_eo.sources.base import Indices, Source
from multimae_eo.statistics import Statistics
from multimae_eo.train.callbacks import MetricsCsv
from multimae_eo.train.checkpoints import BEST, LAST, Checkpoints
from multimae_eo.train.data import TrainBatches, chip_sizes, model_config, train_statistics
from multimae_eo.train.finetune_module import FinetuneModule
from multimae_eo.train.finetune_recipe import FinetuneRecipe, former_defaults
from multimae_eo.train.fit import fit
from multimae_eo.train.head_start import from_probe, start_head
from multimae_eo.train.peak_rate import recorded_rate
from multimae_eo.train.recipe import ModelRecipe
from multimae_eo.train.resumed import resolved
from multimae_eo.train.run import (
    RunResult,
    card_facts,
    claim_run,
    read_checkpoint,
)
from multimae_eo.train.threads import ThreadCount
from multimae_eo.train.validation_score import score_rule


@single_writer()
def finetune(
    recipe: FinetuneRecipe,
    source: Source,
    out: Path,
    *,
    model: MultiMAE | None,
    init: Mapping[str, str] | None = None,
    spec: str = "",
    splits: tuple[Indices, Indices] | None = None,
) -> RunResult:
    """Fine-tune ``model`` (None: a new encoder by the recipe), or continue in ``out``.

    Leaves ``recipe.yaml``, ``metrics.csv``, TensorBoard events, ``checkpoints/``, ``report.html``
    and ``model/``, the weights that were best on validation. ``init``, ``spec``: how model and
    source were named, for the record. ``splits``: training and validation chips (default: the
    source's).

    Raises:
        ConfigError: the recipe does not fit the data, or ``out`` holds another run.
        DataError: no labels, or labels that do not suit the task.
        TrainingError: the loss is not finite.
    """
    started = time.monotonic()
    recipe = resolved(recipe, out)
    inputs = _inputs(recipe, source, model)
    train, val = splits or source.train_val(val_fraction=recipe.data.val_fraction)
    train, target = labelled(source, train, inputs, recipe)
    if len(val):
        val, _ = labelled(source, val, inputs, recipe, required=False)
    check_head(recipe.head, dense=target.dense)
    probed = from_probe(recipe, target)
    sizes = shown_sizes(chip_sizes(source, inputs, train), recipe.data.chip)
    record: dict[str, Any] = recipe.to_plain() | {"init": dict(init or {})}
    claim_run(out, record, source, spec, defaults=former_defaults())

    def measured(modalities: ModalitySet) -> Statistics:
        limit, kept = recipe.data.statistics_chips, out / "statistics.json"
        return train_statistics(source, modalities, train, limit=limit, kept=kept)

    # The same new weights whenever a run is started again.
    pl.seed_everything(recipe.run.seed, verbose=False)
    encoder = _encoder(recipe, inputs, sizes, model, measured)
    predictor = Predictor(encoder, target, recipe.head, decoders=recipe.decoders.keep)
    # A run that is continued takes its head from the checkpoint.
    if probed and not (out / "checkpoints" / LAST).exists():
        _report(start_head(predictor, source, train, val, recipe))
    run = recipe.run
    batches = TrainBatches(
        source, train, inputs, recipe.data, seed=run.seed, accumulate=run.accumulate
    )
    metrics = MetricsCsv(out / "metrics.csv")
    module, _ = fit(
        partial(_module, predictor, recipe, out),
        batches,
        _validation(source, val, inputs, recipe),
        recipe=recipe,
        out=out,
        metrics=metrics,
        callbacks=[_checkpoints(recipe, target, out), _thread_count(recipe, encoder, inputs)],
    )
    best = _best_row(metrics, module)
    if module.global_rank == 0:
        metrics.save()
        record["learning_rate"] = module.lr
        card = _card(record, source, spec, best)
        _save(module, out, card=card, facts=card_facts(source, best))
    return RunResult(
        model=out / "model",
        metrics=best,
        seconds=time.monotonic() - started,
        first_process=module.global_rank == 0,
    )


def labelled(
    source: Source,
    indices: Indices,
    inputs: ModalitySet,
    recipe: FinetuneRecipe,
    *,
    required: bool = True,
) -> tuple[Indices, Target]:
    """The chips that have a label and any of ``inputs``, and what their labels are.

    Reads every chip once. Raises DataError where labels do not suit the task, or, if ``required``,
    where there are none.
    """
    scan = TargetScan(recipe.task, source.class_names, source.name, ids=source.class_ids)
    kept = []
    for i in indices.tolist():
        sample = source.read(i, list(inputs))
        seen = any(n not in sample.valid or sample.valid[n].any() for n in sample.pixels)
        if seen and scan.add(sample.label):
            kept.append(i)
    if not required and not kept:
        return np.array([], dtype=np.int64), Target(kind="value")
    if len(kept) < len(indices):
        _report(f"{len(indices) - len(kept)} of {len(indices)} chips have no label or no input")
    return np.array(kept, dtype=np.int64), scan.target()


def _inputs(recipe: FinetuneRecipe, source: Source, model: MultiMAE | None) -> ModalitySet:
    names = recipe.inputs
    if not names and model is not None:
        names = [n for n in source.modalities if n in model.modalities]
    if len(set(names)) < len(names):
        raise ConfigError(f"inputs: {', '.join(names)}: one is named twice")
    return source.modalities.select(names or list(source.modalities))


def shown_sizes(sizes: Mapping[str, int], chip: int | None) -> dict[str, int]:
    """Sides of the windows that are shown of chips with these ``sizes``, in each one's pixels."""
    finest = max(sizes.values())
    shown = {n: side * (chip or finest) / finest for n, side in sizes.items()}
    if (chip or 0) > finest or any(side != int(side) for side in shown.values()):
        raise ConfigError(
            f"data.chip: a window of {chip} px does not fall on pixels of chips of "
            + ", ".join(f"{side} px ({n})" for n, side in sizes.items())
        )
    return {n: int(side) for n, side in shown.items()}


def _new_encoder(
    recipe: FinetuneRecipe,
    inputs: ModalitySet,
    sizes: Mapping[str, int],
    measured: Callable[[ModalitySet], Statistics],
) -> MultiMAE:
    """An encoder of random weights; ConfigError for options that need pre-trained ones."""
    for given, problem in (
        (recipe.adapt.lora > 0, "adapt.lora: differences from random weights teach little;"),
        (recipe.decoders.keep, "decoders.keep: a new encoder has no decoders;"),
        (recipe.patch is not None, "patch: nothing is pre-trained; set model.patch, or"),
    ):
        if given:
            raise ConfigError(f"{problem} give a --model")
    full_chips = replace(recipe.data, chip=None)
    config = model_config(ModelRecipe(**vars(recipe.model)), full_chips, inputs, sizes)
    return MultiMAE(inputs, (), config, measured(inputs))


def _encoder(
    recipe: FinetuneRecipe,
    inputs: ModalitySet,
    sizes: Mapping[str, int],
    model: MultiMAE | None,
    measured: Callable[[ModalitySet], Statistics],
) -> MultiMAE:
    """The encoder that is trained: the given model's for these inputs, or a new one."""
    if model is None:
        return _new_encoder(recipe, inputs, sizes, measured)
    adapted = adapt(
        model, inputs, sizes, measured, decoders=recipe.decoders.keep, patch=recipe.patch
    )
    if recipe.decoders.keep and not adapted.encoder.tasks:
        raise ConfigError(
            "decoders.keep: the model has no decoders of these inputs; leave it out, or choose "
            "others with --inputs"
        )
    if recipe.patch is not None:
        _report(f"patches of {recipe.patch} px: projections of pre-training are resampled")
    for note in adapted.notes:
        _report(note)
    if adapted.notes and (recipe.freeze != "none" or recipe.adapt.lora):
        _report("new weights of inputs are frozen with the others, as they were drawn")
    return adapted.encoder


def _validation(
    source: Source, val: Indices, inputs: ModalitySet, recipe: FinetuneRecipe
) -> ChipLoader | None:
    """Batches of full chips, as predictions are made for them."""
    if not len(val):
        _report("no validation chips: the last weights are taken for the best")
        return None
    return make_loader(
        source,
        val,
        batch_size=recipe.data.batch_size,
        modalities=list(inputs),
        workers=recipe.data.workers,
    )


def _checkpoints(recipe: FinetuneRecipe, target: Target, out: Path) -> Checkpoints:
    run, rule = recipe.run, score_rule(target)
    return Checkpoints(
        out / "checkpoints",
        every_steps=run.checkpoint_steps,
        keep=run.keep,
        monitor=f"val/{rule.name}",
        sign=rule.sign,
        patience=run.patience,
        min_epochs=run.min_epochs,
    )


def _module(
    predictor: Predictor,
    recipe: FinetuneRecipe,
    out: Path,
    *,
    steps: int,
    warmup: int,
    samples: int,
) -> FinetuneModule:
    """The module that trains ``predictor``, with the run's peak learning rate."""
    width = predictor.encoder.config.encoder.width
    lr = recorded_rate(out, recipe.optim.lr, width, samples)
    return FinetuneModule(predictor, recipe, steps=steps, warmup=warmup, lr=lr)


def _save(module: FinetuneModule, out: Path, *, card: str, facts: CardFacts) -> None:
    """Write the model folder of the weights that were best, and the page of the run."""
    path = out / "checkpoints" / BEST
    if path.exists():
        module.load_state_dict(read_checkpoint(path)["state_dict"])
    merge_low_rank(module.predictor.encoder.encoder)
    module.predictor.save_pretrained(out / "model", card=card, facts=facts)
    finetune_page(out, module.score.rule.name).write(out / "report.html")


def _thread_count(recipe: FinetuneRecipe, encoder: MultiMAE, inputs: ModalitySet) -> ThreadCount:
    """For the tokens that the encoder sees of complete chips."""
    sizes = [encoder.config.inputs[name] for name in inputs]
    tokens = recipe.augment.num_visible_tokens
    if tokens is None:
        tokens = sum(math.prod(i.grid(i.size, i.size)) for i in sizes)
    return ThreadCount(width=encoder.config.encoder.width, tokens=recipe.data.batch_size * tokens)


def _best_row(metrics: MetricsCsv, module: FinetuneModule) -> dict[str, float]:
    """Validation of the weights that were best."""
    name = f"val/{module.score.rule.name}"
    rows = [r for _, r in sorted(metrics.rows.items()) if name in r]
    if not rows:
        return {}
    best = min(rows, key=lambda r: (module.score.rule.sign * r[name], r["val/loss"]))
    return {k: v for k, v in best.items() if k.startswith("val")}


def _card(record: Mapping[str, Any], source: Source, spec: str, best: dict[str, float]) -> str:
    start = record["init"].get("model", "none")
    lines = [
        "## Training",
        "",
        f"Data: {source.name} ({len(source)} chips{f', {spec}' if spec else ''}); "
        f"start: {'random initialisation' if start == 'none' else start}; "
        f"seed {record['run']['seed']}.",
        "",
    ]
    if best:
        lines += ["| validation | value |", "|---|---|"]
        lines += [f"| {k.removeprefix('val/')} | {v:.4f} |" for k, v in sorted(best.items())]
    text = yaml.safe_dump(dict(record), sort_keys=False).strip()
    return "\n".join([*lines, "", "```yaml", text, "```"])


def _report(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
