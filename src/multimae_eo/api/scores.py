"""Scores of models: ``evaluate``, ``evaluate_subsets``, ``evaluate_early``, ``probe``, ``study``
and ``benchmark``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimae_eo.api.loading import adaptation, load_predictor, load_pretrained, load_source

if TYPE_CHECKING:
    from multimae_eo.evaluation.geobench_suites import SuiteName
    from multimae_eo.evaluation.study import StudyPlan
    from multimae_eo.network.multimae import MultiMAE
    from multimae_eo.network.predictor import Predictor
    from multimae_eo.sources.base import Source

Progress = Callable[[int, int], None]
InputSets = Sequence[str] | Mapping[str, Sequence[str] | None] | None


def evaluate(
    model: Predictor | str | Path,
    *,
    data: Source | str | Path,
    split: str = "test",
    inputs: Sequence[str] | None = None,
    out: str | Path | None = None,
    flips: bool = False,
    adapt: int = 0,
    adapt_lr: float = 1e-4,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compute a fine-tuned model's metrics on a split, with 95 % bootstrap intervals over chips.

    Args:
        model: A fine-tuned model, or its folder.
        data: A source with labels, or what ``open_source`` opens.
        split: Chips of this split.
        inputs: Modalities to use (default: all that model and data share).
        out: Folder for ``metrics.json``, ``predictions.parquet``, ``card.md`` and ``report.html``.
        flips: Average predictions over mirror images.
        adapt: Steps of test-time training on the chips of the split, without their labels: see
            ``predict``.
        adapt_lr: Learning rate of these steps.
        seed: Seed of the bootstrap, and of the masks of test-time training.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, 32-true, bf16-mixed or 16-mixed.
        progress: Called with the chips done and the chips in all.

    Returns:
        ``{"task", "split", "chips", "inputs", "metrics": {name: {value, low, high}}}``; accuracies
        and IoU are shares between 0 and 1, errors are in the labels' unit.

    Raises:
        SplitError: an unknown or empty split. DataError: chips without labels, or of another kind.
        ContractError: classes or inputs are not the model's. ConfigError: an unknown input, or a
        device that this machine does not have.
    """
    from multimae_eo.evaluation.predictions import evaluate as run

    with _opened(model, data, flips, device, precision) as (predictor, source):
        return run(
            predictor,
            source,
            split=split,
            inputs=inputs,
            out=None if out is None else Path(out),
            seed=seed,
            adapt=adaptation(adapt, adapt_lr, seed),
            progress=progress,
        )


def evaluate_subsets(
    model: Predictor | str | Path,
    *,
    data: Source | str | Path,
    split: str = "test",
    drop: Sequence[str] | None = None,
    out: str | Path | None = None,
    flips: bool = False,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
) -> list[dict[str, object]]:
    """Compute a fine-tuned model's metrics from subsets of its inputs.

    Args:
        drop: Modalities that are left out in all combinations (default: all).
        model, data, split, out, flips, seed, device, precision, progress: As for ``evaluate``.

    Returns:
        A row per subset, all inputs first: scores with ``<score> low`` and ``<score> high``.

    Raises:
        As ``evaluate``.
    """
    from multimae_eo.evaluation.robustness import drop_inputs

    with _opened(model, data, flips, device, precision) as (predictor, source):
        return drop_inputs(
            predictor,
            source,
            drop,
            split=split,
            out=None if out is None else Path(out),
            seed=seed,
            progress=progress,
        )


def evaluate_early(
    model: Predictor | str | Path,
    *,
    data: Source | str | Path,
    days: Sequence[float],
    split: str = "test",
    inputs: Sequence[str] | None = None,
    out: str | Path | None = None,
    flips: bool = False,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
) -> list[dict[str, object]]:
    """Compute a fine-tuned model's metrics from the first days of each chip's series.

    Args:
        days: Days since a chip's first date; a row for each. Later dates are withheld.
        out: Folder for ``early.csv``, ``early.md``, ``early.json`` and ``early.html``.
        model, data, split, inputs, flips, seed, device, precision, progress: As for ``evaluate``.

    Returns:
        A row for each of ``days``: scores with ``<score> low`` and ``<score> high``.

    Raises:
        ConfigError: days that are negative, or data without dates. And as ``evaluate``.
    """
    from multimae_eo.evaluation.early_season import early_season

    with _opened(model, data, flips, device, precision) as (predictor, source):
        return early_season(
            predictor,
            source,
            days,
            split=split,
            inputs=inputs,
            out=None if out is None else Path(out),
            seed=seed,
            progress=progress,
        )


@contextmanager
def _opened(
    model: Predictor | str | Path,
    data: Source | str | Path,
    flips: bool,
    device: str,
    precision: str,
) -> Iterator[tuple[Predictor, Source]]:
    """The model on its device, and the source; computes in the precision inside."""
    from multimae_eo.inference.computing import computing, on_device
    from multimae_eo.network.config import RuntimePolicy

    predictor, _ = load_predictor(model)
    predictor.set_runtime(RuntimePolicy(flips=flips))
    source, _ = load_source(data)
    torch_device, chosen = on_device(predictor, device, precision)
    with computing(torch_device, chosen):
        yield predictor, source


def probe(
    model: MultiMAE | str | Path,
    *,
    data: Source | str | Path,
    out: str | Path,
    inputs: InputSets = None,
    methods: Sequence[str] | None = None,
    features: str = "all-layers-mean-std",
    fractions: Sequence[float] = (100.0,),
    seeds: int = 1,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
) -> list[dict[str, Any]]:
    """Probe frozen features with kNN and linear models, beside a random encoder and the pixels.

    Args:
        model: A pre-trained model, or its folder.
        data: A source with labels and splits, or what ``open_source`` opens.
        out: Folder for ``results.parquet``, ``.csv`` and ``.md``, ``comparisons.csv``,
            ``report.html`` and ``card/``.
        inputs: Modalities (default: all that model and data share), or several sets by name.
        methods: knn, linear (default: those the task has; maps have no kNN).
        features: How a chip's tokens are summarised, see ``multimae-eo probe --help``.
        fractions: Label fractions in percent.
        seeds: Random subsets per label fraction.
        seed: Seed of the bootstrap, the subsets and the baselines.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: Precision of the encoder: auto, 32-true, bf16-mixed or 16-mixed.

    Returns:
        Rows of results: inputs, features, method, label fraction, the hyper-parameter chosen on
        validation, and scores on the test split with their intervals.

    Raises:
        ConfigError: an unknown method or input. DataError: no labels. SplitError: no training or
        test split.
    """
    from multimae_eo.evaluation.probes import ProbeOptions
    from multimae_eo.evaluation.probes import probe as run
    from multimae_eo.inference.computing import computing, on_device

    options = ProbeOptions(
        features=features,  # type: ignore[arg-type]  # checked there
        fractions=tuple(fractions),
        seeds=seeds,
    )
    network = load_pretrained(model).model
    source, _ = load_source(data)
    torch_device, chosen = on_device(network, device, precision)
    with computing(torch_device, chosen):
        return run(
            network,
            source,
            out=Path(out),
            inputs=inputs,
            methods=methods,
            seed=seed,
            options=options,
        )


def study(
    model: MultiMAE | str | Path,
    *,
    data: Source | str | Path,
    task: str,
    out: str | Path,
    inputs: InputSets = None,
    fractions: Sequence[float] = (100.0,),
    methods: Sequence[str] = ("finetune", "random-init", "linear", "knn"),
    features: str = "all-layers-mean-std",
    seeds: int = 1,
    grid: Mapping[str, Sequence[str]] | None = None,
    steps: int = 0,
    recipe: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str | None = None,
    overrides: Sequence[str] = (),
) -> list[dict[str, object]]:
    """Compare transfer over label fractions, seeds, sets of inputs and a grid; resumable.

    Args:
        model: A pre-trained model, or its folder.
        data: A source with labels and splits, or what ``open_source`` opens.
        task: classification, segmentation or regression.
        out: Folder for tables, plots and pages.
        inputs: Modalities (default: all that model and data share), or several sets by name.
        fractions: Label fractions in percent.
        methods: Of finetune, random-init (fine-tuning from random initialisation), linear and knn
            (frozen features).
        features: How a chip's tokens are summarised for the probes.
        seeds: Random subsets per label fraction, and training runs per setting.
        grid: Values to try by option of the recipe; chosen on validation with the first seed.
        steps: At least so many optimiser steps, however few the labels.
        recipe: Path of a YAML file (default: the defaults of ``FinetuneRecipe``).
        seed: The first seed, and that of the bootstrap.
        device: auto, cpu, cuda, cuda:N or mps, for training and inference.
        precision: Precision of training and inference (default: the recipe's for training, auto
            for inference).
        overrides: Options of the recipe, as in ``--run.epochs=20``.

    Returns:
        Rows of results, one per set of inputs, method and label fraction.

    Raises:
        ConfigError: another study in ``out``, or options that do not fit; and as ``probe`` and
        ``finetune``.
    """
    from multimae_eo.evaluation.study import Transfer, default_inputs
    from multimae_eo.evaluation.study import study as run

    source, spec = load_source(data)
    loaded = load_pretrained(model)
    transfer = Transfer(model=loaded.model.eval(), source=source, digest=loaded.digest, spec=spec)
    settings = _Settings(
        methods=methods,
        features=features,
        fractions=fractions,
        seeds=seeds,
        grid=grid,
        steps=steps,
        recipe=recipe,
        seed=seed,
        device=device,
        precision=precision,
        overrides=overrides,
    )
    plan = settings.plan([f"--task={task}"])
    shared = default_inputs(transfer)
    named = inputs if isinstance(inputs, Mapping) else {", ".join(inputs or ()) or "all": inputs}
    sets = {label: list(names or shared) for label, names in named.items()}
    return run(transfer, plan, Path(out), inputs=sets)


def benchmark(
    model: MultiMAE | str | Path,
    *,
    root: str | Path,
    out: str | Path,
    suite: SuiteName = "geobench",
    datasets: Sequence[str] = ("all",),
    partitions: Sequence[str] = ("default",),
    methods: Sequence[str] = ("knn", "linear", "finetune"),
    features: str = "all-layers-mean-std",
    seeds: int = 1,
    grid: Mapping[str, Sequence[str]] | None = None,
    steps: int = 0,
    recipe: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str | None = None,
    overrides: Sequence[str] = (),
) -> list[dict[str, object]]:
    """Probe and fine-tune on data sets of GEO-Bench or GEO-Bench-2; resumable.

    Args:
        suite: ``geobench`` (version 1) or ``geobench2``.
        root: Folder of the benchmark as downloaded.
        datasets: Names of data sets; ``("all",)`` for those in ``root``.
        partitions: Names of partitions, such as ``default`` or ``0.10x_train``; version 1 only.
        model, out, methods, features, seeds, grid, steps, recipe, seed, device, precision,
            overrides: As for ``study``.

    Returns:
        Rows of scores by data set, partition and method; the aggregate is in ``out``.

    Raises:
        ConfigError: an unknown data set or partition, or another run in ``out``; and as ``study``.
    """
    from multimae_eo.evaluation.benchmark import BenchmarkPlan
    from multimae_eo.evaluation.benchmark import benchmark as run

    loaded = load_pretrained(model)
    settings = _Settings(
        methods=methods,
        features=features,
        fractions=(100.0,),
        seeds=seeds,
        grid=grid,
        steps=steps,
        recipe=recipe,
        seed=seed,
        device=device,
        precision=precision,
        overrides=overrides,
    )
    runs = BenchmarkPlan(
        suite_name=suite,
        root=Path(root),
        datasets=tuple(datasets),
        partitions=tuple(partitions),
        plan_of=lambda more: settings.plan((), more),
    )
    rows, _ = run(loaded.model.eval(), runs, Path(out), digest=loaded.digest)
    return rows


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What ``study`` and ``benchmark`` share."""

    methods: Sequence[str]
    features: str
    fractions: Sequence[float]
    seeds: int
    grid: Mapping[str, Sequence[str]] | None
    steps: int
    recipe: str | Path | None
    seed: int
    device: str
    precision: str | None
    overrides: Sequence[str]

    def plan(self, first: Sequence[str], last: Sequence[str] = ()) -> StudyPlan:
        """The plan of a study; options of the recipe before and after the overrides."""
        from multimae_eo.evaluation.probes import ProbeOptions
        from multimae_eo.evaluation.study import StudyPlan
        from multimae_eo.train.finetune_recipe import FinetuneRecipe, load_finetune
        from multimae_eo.train.run import run_options

        path = None if self.recipe is None else Path(self.recipe)
        given = [*first, *self.overrides, *run_options(self.device, self.precision), *last]

        def make(more: Sequence[str]) -> FinetuneRecipe:
            return load_finetune(path, [*given, *more])

        return StudyPlan(
            make=make,
            methods=tuple(self.methods),
            probing=ProbeOptions(
                features=self.features,  # type: ignore[arg-type]  # checked there
                fractions=tuple(self.fractions),
                seeds=self.seeds,
            ),
            grid=self.grid,
            steps=self.steps,
            seed=self.seed,
            device=self.device,
            precision=self.precision or "auto",
        )
