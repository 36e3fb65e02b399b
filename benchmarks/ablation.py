"""Options of pre-training, one at a time and all together: what each gives a linear probe.

Every run pre-trains the same encoder on the same chips, with the same number of optimiser steps and
the same number of chips encoded in each (a contrastive loss has two views of half as many). Probes
are logistic regressions on frozen features of labelled chips, with few labels, on all inputs and on
one. Options are chosen by ``val``: training chips whose labels were not drawn, and validation
chips. ``test`` is for the final table.

    python benchmarks/ablation.py run --labelled STORE --unlabelled STORE,STORE --out DIR
    python benchmarks/ablation.py table --out DIR
    python benchmarks/ablation.py cost --labelled STORE --out DIR

A run killed at any time continues; a finished one has a JSON file in DIR. Results are recorded in
docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch

from multimae_eo.inference.extraction import encoder_features
from multimae_eo.inference.linear_probe import linear_probes
from multimae_eo.loading.loader import make_loader
from multimae_eo.loading.open_source import open_source
from multimae_eo.metrics.intervals import (
    Interval,
    hierarchical_interval,
    mean_score,
    paired_interval,
)
from multimae_eo.model_folder.folder import load_model
from multimae_eo.network.adapt import adapt
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.runtime import resolve_precision
from multimae_eo.sample import Batch
from multimae_eo.sources.base import ConcatSource, Source
from multimae_eo.train.contrastive import masked_views
from multimae_eo.train.data import chip_sizes, model_config
from multimae_eo.train.modules import _VALIDATION, PretrainModule
from multimae_eo.train.pretrain import pretrain
from multimae_eo.train.recipe import Recipe, load_recipe

GROUPS = (
    "--masking.roles={unused: 1, encoded: 1, decoded: 1, both: 1}",
    "--masking.alpha=1.0",
)
# What the study took into the recipe is off where it is not the row's own.
PLAIN = (
    "--contrastive.weight=0",
    "--contrastive.rot90=false",
    "--contrastive.brightness_jitter=0",
    "--masking.decoded=1.0",
)
CONTRASTIVE = (
    "--contrastive.weight=1.0",
    "--contrastive.rot90=true",
    "--contrastive.brightness_jitter=0.2",
)
CHANGES: Mapping[str, tuple[str, ...]] = {
    "baseline": (),
    "group masking": GROUPS,
    "patch-normalised": ("--targets.patch_normalised=0.3",),
    "contrastive": ("--contrastive.weight=0.3",),
    "strong contrastive": CONTRASTIVE,
    "random projections": ("--targets.random_projection=0.1",),
    "band dropout": ("--masking.band_dropout=0.2",),
}
TOGETHER = tuple(
    option for row, options in CHANGES.items() if row != "contrastive" for option in options
)
ROWS = {
    **CHANGES,
    "group masking and strong contrastive": (*GROUPS, *CONTRASTIVE),
    "all together": TOGETHER,
    "half decoded": ("--masking.decoded=0.5",),
    "strong contrastive and half decoded": (*CONTRASTIVE, "--masking.decoded=0.5"),
    "windows of two sizes": ("--data.windows=[56, 28]",),
}
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3)
FINER = "all, patches of half the side"
INPUT_SETS = {"all": None, "rgb": ["rgb"], FINER: None}


def recipe_of(row: str, seed: int, options: argparse.Namespace) -> Recipe:
    """The recipe of a run: equal steps, and equally many chips encoded in each."""
    contrastive = any("contrastive" in option for option in ROWS[row])
    # The peak rate is per 256 chips of a batch; of half as many it is the double.
    parts = 2 if contrastive else 1
    base = load_recipe(options.recipe)
    return load_recipe(
        options.recipe,
        [
            *PLAIN,
            *ROWS[row],
            f"--data.batch_size={options.batch // parts}",
            f"--optim.lr={base.optim.lr * parts}",
            f"--optim.warmup_epochs={options.warmup / parts}",
            f"--run.epochs={options.epochs // parts}",
            f"--run.val_every={options.epochs}",
            "--run.pictures_every=0",
            f"--run.seed={seed}",
            "--run.accelerator=cpu",
            *options.override,
        ],
    )


def absolute_losses(
    model: MultiMAE, source: Source, options: argparse.Namespace
) -> dict[str, float]:
    """Losses of the values of each modality on validation chips, under the baseline's masks."""
    module = PretrainModule(
        model,
        load_recipe(options.recipe, [*PLAIN, *options.override]),
        steps=1,
        warmup=0,
        lr=0.0,
    ).eval()
    sums: dict[str, list[float]] = {}
    loader = make_loader(
        source,
        source.split("val"),
        batch_size=options.batch,
        modalities=list(model.modalities),
        chip=module.recipe.data.chip,
        train=False,
    )
    with torch.inference_mode():
        for batch in loader:
            losses, _ = module._losses(batch, _VALIDATION)
            for task in (t.name for t in model.tasks if t.reconstructs):
                sums.setdefault(task, []).append(float(losses.by_task[task]))
    return {name: float(np.mean(values)) for name, values in sums.items()}


def outcomes(
    features: np.ndarray, labels: np.ndarray, splits: Mapping[str, np.ndarray], labelled: int,
    repeats: int,
) -> dict[str, Any]:  # fmt: skip
    """Share of probes that classify each chip correctly; the regularisation is chosen on ``val``.

    ``labelled``: training chips with labels, drawn ``repeats`` times.
    """
    train = splits["train"]
    target = np.eye(int(labels.max()) + 1)[labels]
    hits = {s: np.zeros((len(STRENGTHS), len(labels))) for s in ("val", "test")}
    times = np.zeros(len(labels))
    for repeat in range(1 if labelled >= len(train) else repeats):
        chosen = np.random.default_rng(repeat).permutation(train)[:labelled]
        others = np.concatenate([np.setdiff1d(train, chosen), splits["val"]])
        times[others] += 1
        probes = linear_probes(features[chosen], target[chosen], "softmax", STRENGTHS)
        for i, (_, probe) in enumerate(probes):
            for name, rows in (("val", others), ("test", splits["test"])):
                hits[name][i, rows] += probe(features[rows]).argmax(axis=1) == labels[rows]
    used = times > 0
    best = int((hits["val"][:, used] / times[used]).mean(axis=1).argmax())
    count = 1 if labelled >= len(train) else repeats
    return {
        "strength": STRENGTHS[best],
        "val": (hits["val"][best, used] / times[used]).round(4).tolist(),
        "test": (hits["test"][best, splits["test"]] / count).round(4).tolist(),
    }


def measured(model: MultiMAE, source: Source, options: argparse.Namespace) -> dict[str, Any]:
    """Outcomes by input set and number of labels."""
    splits = {s: source.split(s) for s in ("train", "val", "test")}
    window = load_recipe(options.recipe, options.override).data.chip
    loader = make_loader(
        source,
        np.arange(len(source)),
        batch_size=64,
        chip=window,
        modalities=list(model.modalities),
        train=False,
    )
    # One window in the middle of each chip, of the size of pre-training: a quarter of the windows
    # that cover it.
    batches = list(loader)
    labels = np.concatenate([b.labels.numpy() for b in batches if b.labels is not None])
    record: dict[str, Any] = {}
    for name in options.inputs:
        inputs = INPUT_SETS[name]
        compute = encoder_features(finer(model) if name == FINER else model, inputs)
        features = np.concatenate([compute(batch) for batch in batches])
        record[name] = {
            str(n): outcomes(features, labels, splits, n, options.repeats) for n in options.labels
        }
    return record


def finer(model: MultiMAE) -> MultiMAE:
    """The model with patches of half the side, its projections resampled."""
    side = max(c.token_pixels for c in model.config.inputs.values()) // 2
    assert model.statistics is not None
    statistics = model.statistics
    adapted = adapt(
        model, model.modalities, model.config.sizes, lambda modalities: statistics, patch=side
    )
    return adapted.encoder.eval()


def run_one(row: str, seed: int, options: argparse.Namespace) -> Path:
    """Pre-train and probe one run, unless that was done; its JSON file."""
    name = f"{row.replace(' ', '_')}-{seed}"
    out: Path = options.out
    path = out / f"{name}.json"
    if path.exists():
        return path
    labelled = open_source(options.labelled)
    source = ConcatSource([labelled, *(open_source(u) for u in options.unlabelled)])
    recipe = recipe_of(row, seed, options)
    folder = out / "runs" / name
    start = time.perf_counter()
    result = pretrain(recipe, source, folder)
    trained = time.perf_counter() - start
    model = load_model(result.model)
    record = {
        "row": row,
        "seed": seed,
        "options": list(ROWS[row]),
        "machine": measure.machine("cpu"),
        "training_chips": len(source.train_val()[0]),
        "epochs": recipe.run.epochs,
        "seconds": trained,
        "losses": absolute_losses(model, labelled, options),
        "outcomes": measured(model, labelled, options),
    }
    return measure.write_results(name, record, out)


def cost(options: argparse.Namespace, *, rounds: int = 4, steps: int = 3) -> dict[str, float]:
    """CPU milliseconds per encoded chip of a training step of each row; the best of ``rounds``.

    CPU time, because other processes may run. Rows take turns.
    """
    source = open_source(options.labelled)
    modules, batches = {}, {}
    for row in options.rows:
        recipe = recipe_of(row, 0, options)
        modalities, tasks = recipe.resolve(source.modalities)
        train = source.split("train")
        sizes = chip_sizes(source, modalities, train)
        config = model_config(recipe.model, recipe.data, modalities, sizes)
        model = MultiMAE(modalities, tasks, config, source.statistics(train[:64]))
        modules[row] = PretrainModule(model, recipe, steps=1, warmup=0, lr=0.0).train()
        loader = make_loader(
            source, train, batch_size=recipe.data.batch_size, chip=recipe.data.chip, train=True
        )
        batches[row] = next(iter(loader))
    bf16 = resolve_precision("auto", "cpu") == "bf16-mixed"
    best = dict.fromkeys(modules, float("inf"))
    for _ in range(rounds):
        for row, module in modules.items():
            start = time.process_time()
            for _ in range(steps):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = total_loss(module, batches[row])
                module.zero_grad()
                loss.backward()
            taken = (time.process_time() - start) * 1e3 / (steps * options.batch)
            best[row] = min(best[row], taken)
    return best


def total_loss(module: PretrainModule, batch: Batch) -> torch.Tensor:
    """The loss of a training step, as the module computes it, without logging."""
    recipe = module.recipe.contrastive
    if module.agreement is None:
        return module._losses(batch, 0)[0].total
    losses, reconstruction = module._losses(masked_views(batch, recipe, 0, 0), 0)
    contrastive: torch.Tensor = module.agreement(reconstruction.features.pooled)
    return losses.total + recipe.weight * contrastive


def accuracy(record: Mapping[str, Any], inputs: str, labels: int, split: str) -> list[float]:
    """Share of correct probes of each chip."""
    values: list[float] = record["outcomes"][inputs][str(labels)][split]
    return values


def cell(
    records: Sequence[Mapping[str, Any]],
    base: Mapping[int, Mapping[str, Any]],
    key: tuple[Any, ...],
) -> tuple[Interval, Interval | None]:
    """Accuracy over seeds, and its difference from the baseline of the same seeds."""
    ours = [mean_score(accuracy(r, *key)) for r in records]
    chips = len(accuracy(records[0], *key))
    both = [r for r in records if r["seed"] in base]
    if not both or records[0]["row"] == "baseline":
        return hierarchical_interval(ours, chips), None
    paired = paired_interval(
        [mean_score(accuracy(r, *key)) for r in both],
        [mean_score(accuracy(base[r["seed"]], *key)) for r in both],
        chips,
    )
    return hierarchical_interval(ours, chips), paired


def table(out: Path, split: str) -> str:
    """Markdown: a row per change, a column per input set and number of labels."""
    records = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(out.glob("*.json"))]
    base = {r["seed"]: r for r in records if r["row"] == "baseline"}
    columns = [
        (i, n) for i in records[0]["outcomes"] for n in sorted(map(int, records[0]["outcomes"][i]))
    ]
    lines = [
        "| change | seeds | " + " | ".join(f"{i}, {n} labels" for i, n in columns) + " | seconds |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for row in ROWS:
        rows = [r for r in records if r["row"] == row]
        if not rows:
            continue
        cells = []
        for inputs, labels in columns:
            value, paired = cell(rows, base, (inputs, labels, split))
            cells.append(str(value) if paired is None else f"{value.value:.3f} ({signed(paired)})")
        seconds = np.mean([r["seconds"] for r in rows])
        lines.append(f"| {row} | {len(rows)} | " + " | ".join(cells) + f" | {seconds:.0f} |")
    lines += ["", "| change | " + " | ".join(records[0]["losses"]) + " |"]
    lines += ["|---" * (len(records[0]["losses"]) + 1) + "|"]
    for row in ROWS:
        losses = [r["losses"] for r in records if r["row"] == row]
        if losses:
            means = [np.mean([x[task] for x in losses]) for task in losses[0]]
            lines.append(f"| {row} | " + " | ".join(f"{m:.3f}" for m in means) + " |")
    return "\n".join(lines)


def signed(interval: Interval) -> str:
    """A difference and its interval."""
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=("run", "table", "cost"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labelled")
    parser.add_argument("--unlabelled", type=lambda text: text.split(","), default=[])
    parser.add_argument("--recipe", default="sentinel2-groups-small")
    parser.add_argument("--override", action="append", default=[])
    parser.add_argument("--rows", type=lambda text: text.split(","), default=list(ROWS))
    parser.add_argument(
        "--inputs",
        type=lambda text: text.split(";"),
        default=["all", "rgb"],
        help=f"of the probes, with ';' between: {'; '.join(INPUT_SETS)}",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--labels", type=int, nargs="+", default=[25, 50, 500])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--split", default="val")
    return parser.parse_args(given)


def main() -> None:
    options = arguments()
    if options.action == "table":
        print(table(options.out, options.split))
        return
    if options.action == "cost":
        for row, value in cost(options).items():
            print(f"{row}\t{value:.2f} ms per encoded chip")
        return
    for seed in range(options.seeds):
        for row in options.rows:
            measure.say(f"{row}, seed {seed}: {time.strftime('%H:%M')}")
            run_one(row, seed, options)


if __name__ == "__main__":
    main()
