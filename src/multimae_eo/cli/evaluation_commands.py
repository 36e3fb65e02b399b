"""Subcommands of evaluation: evaluate, probe, study, benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypedDict

from multimae_eo.cli.output import counter, names_in, print_json, print_table
from multimae_eo.cli.parser import Subcommand, argument
from multimae_eo.cli.training_commands import FINETUNING
from multimae_eo.errors import ConfigError
from multimae_eo.runtime import Precision


class _TableArguments(TypedDict):
    data: str
    split: str
    out: str | None
    flips: bool
    seed: int
    device: str
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compute a fine-tuned model's metrics, with confidence intervals.

    Args:
        model: fine-tuned model folder
        data: SOURCE
        split: chips of this split
        inputs: modalities, m1,m2 (default: all)
        out: folder for metrics and predictions
        drop: leave inputs out in all combinations: all, or m1,m2
        days: scores from the first days of each chip's series, such as 60,120,180
        flips: average predictions over mirror images
        adapt: steps of test-time training on the split's chips, by a model with decoders (0: none)
        adapt_lr: learning rate of these steps
        seed: seed of the bootstrap and of the masks of test-time training
        device: auto, cpu, cuda, cuda:N or mps
        precision: precision of inference; auto: bfloat16 where the device multiplies it natively
        json: print as JSON
    """

    examples: ClassVar[tuple[str, ...]] = (
        "evaluate --model runs/map/model --data dataset.yaml --split test --json",
    )
    model: str
    data: str
    split: str = "test"
    inputs: str | None = None
    out: str | None = None
    drop: str | None = None
    days: str | None = None
    flips: bool = False
    adapt: int = 0
    adapt_lr: float = 1e-4
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    json: bool = False

    def run(self) -> None:
        """Print metrics with intervals; with ``--drop``, a row for each set of inputs, with
        ``--days``, one for each number of days."""
        if self.drop is not None and self.days is not None:
            raise ConfigError("--drop and --days are two tables: make one at a time")
        if self.drop is not None:
            self._drop()
            return
        if self.days is not None:
            if self.adapt:
                raise ConfigError("--days scores the model as it is: leave --adapt out")
            self._early(self.days)
            return
        from multimae_eo.api.scores import evaluate

        with counter("chips") as progress:
            record = evaluate(
                self.model,
                data=self.data,
                split=self.split,
                inputs=names_in(self.inputs),
                out=self.out,
                flips=self.flips,
                adapt=self.adapt,
                adapt_lr=self.adapt_lr,
                seed=self.seed,
                device=self.device,
                precision=self.precision,
                progress=progress,
            )
        if self.json:
            print_json(record)
            return
        for name, score in record["metrics"].items():
            print(f"{name}\t{score['value']:.4f}\t[{score['low']:.4f}, {score['high']:.4f}]")

    def _table_arguments(self) -> _TableArguments:
        """What the tables of --drop and --days both take."""
        return {
            "data": self.data,
            "split": self.split,
            "out": self.out,
            "flips": self.flips,
            "seed": self.seed,
            "device": self.device,
            "precision": self.precision,
        }

    def _print_rows(self, rows: list[dict[str, object]]) -> None:
        from multimae_eo.evaluation.robustness import score_names

        if self.json:
            print_json(rows)
        else:
            print_table(rows, score_names(rows))

    def _early(self, text: str) -> None:
        from multimae_eo.api.scores import evaluate_early

        try:
            days = [float(d) for d in names_in(text) or ()]
        except ValueError as error:
            raise ConfigError(f"--days: expected numbers, such as 60,120; got {text!r}") from error
        with counter("numbers of days") as progress:
            rows = evaluate_early(
                self.model,
                days=days,
                inputs=names_in(self.inputs),
                progress=progress,
                **self._table_arguments(),
            )
        self._print_rows(rows)

    def _drop(self) -> None:
        from multimae_eo.api.scores import evaluate_subsets

        if self.inputs is not None:
            raise ConfigError("--drop tries sets of inputs by itself: leave --inputs out")
        if self.adapt:
            raise ConfigError("--drop evaluates the model as it is: leave --adapt out")
        with counter("sets of inputs") as progress:
            rows = evaluate_subsets(
                self.model,
                drop=None if self.drop == "all" else names_in(self.drop),
                progress=progress,
                **self._table_arguments(),
            )
        self._print_rows(rows)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Probe frozen features against labels, beside baselines.

    Args:
        model: model folder
        data: SOURCE
        inputs: modalities, m1,m2 (default: all); several sets as 'm1;m1,m2;all'
        methods: knn, linear (default: both; maps: linear)
        features: features of a chip from its tokens: their mean (mean), mean and std (mean-std),
            the mean after every block (all-layers-mean), or both after every block
            (all-layers-mean-std)
        fractions: label fractions in percent, a,b,c
        seeds: random subsets per label fraction
        out: folder to write
        seed: seed of the bootstrap, the random subsets and the baselines
        device: auto, cpu, cuda, cuda:N or mps
        precision: precision of the encoder; auto: bfloat16 where the device multiplies it natively
    """

    examples: ClassVar[tuple[str, ...]] = (
        "probe --model runs/first/model --data dataset.yaml --methods knn,linear --out probes",
    )
    model: str
    data: str
    inputs: str | None = None
    methods: str | None = None
    features: str = "all-layers-mean-std"
    fractions: str = "100"
    seeds: int = 1
    out: str
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"

    def run(self) -> None:
        """Print the rows of results as JSON."""
        from multimae_eo.api.scores import probe

        rows = probe(
            self.model,
            data=self.data,
            out=self.out,
            inputs=input_sets(self.inputs),
            methods=names_in(self.methods),
            features=self.features,
            fractions=percentages(self.fractions),
            seeds=self.seeds,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
        )
        print_json(rows)


@dataclass(frozen=True, kw_only=True)
class _Transfers:
    """Options of many transfer runs.

    Args:
        model: pre-trained model folder
        methods: of finetune, random-init, linear, knn
        features: features of the probes; see probe --help
        seeds: random subsets per label fraction, and training runs per setting
        grid: values to try, as in optim.lr=1e-4,1e-3; may be repeated
        steps: at least so many optimiser steps, however few the labels
        recipe: a YAML file of the options below
        seed: the first seed, and that of the bootstrap
        out: folder to write; run again to resume
        device: auto, cpu, cuda, cuda:N or mps, for training and inference
        precision: precision of training and inference; auto: bfloat16 where the device multiplies
            it natively (default: the recipe's for training, auto for inference)
    """

    model: str
    features: str = "all-layers-mean-std"
    seeds: int = 1
    grid: tuple[str, ...] | None = None
    steps: int = 0
    recipe: str | None = None
    seed: int = 0
    out: str
    device: str = "auto"
    precision: Precision | None = None
    overrides: tuple[str, ...] = argument(recipe=FINETUNING)


@dataclass(frozen=True, kw_only=True)
class Study(_Transfers):
    """Compare transfer over label fractions, seeds and grids, beside baselines.

    Args:
        data: SOURCE
        task: what the labels are
        inputs: sets of modalities, as 'm1;m1,m2;all'
        fractions: label fractions in percent, a,b,c
    """

    examples: ClassVar[tuple[str, ...]] = (
        "study --model runs/first/model --data dataset.yaml --task classification --out studies/a",
    )
    methods: str = "finetune,random-init,linear,knn"
    data: str
    task: Literal["classification", "segmentation", "regression"]
    inputs: str | None = None
    fractions: str = "100"

    def run(self) -> None:
        """Print the rows of results as Markdown."""
        from multimae_eo.api.scores import study

        sets = input_sets(self.inputs)
        rows = study(
            self.model,
            data=self.data,
            task=self.task,
            out=self.out,
            inputs=sets,
            fractions=percentages(self.fractions),
            methods=names_in(self.methods) or (),
            features=self.features,
            seeds=self.seeds,
            grid=grid_values(self.grid or ()),
            steps=self.steps,
            recipe=self.recipe,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            overrides=self.overrides,
        )
        print_table(rows, [k.removesuffix(" low") for k in rows[0] if k.endswith(" low")])


@dataclass(frozen=True, kw_only=True)
class Benchmark(_Transfers):
    """Probe and fine-tune on GEO-Bench or GEO-Bench-2.

    Args:
        suite: geobench is GEO-Bench version 1
        root: folder of the benchmark as downloaded
        datasets: of DATASETS; all for those in the folder
        partitions: such as default,0.10x_train; version 1 only
    """

    examples: ClassVar[tuple[str, ...]] = (
        "benchmark geobench --model runs/first/model --root ROOT --out benchmarks/a",
    )
    suite: Literal["geobench", "geobench2"] = argument(positional=True)
    methods: str = "knn,linear,finetune"
    root: str
    datasets: str = "all"
    partitions: str = "default"

    def run(self) -> None:
        """Print the rows of scores as Markdown."""
        from multimae_eo.api.scores import benchmark

        rows = benchmark(
            self.model,
            suite=self.suite,
            root=self.root,
            out=self.out,
            datasets=names_in(self.datasets) or (),
            partitions=names_in(self.partitions) or (),
            methods=names_in(self.methods) or (),
            features=self.features,
            seeds=self.seeds,
            grid=grid_values(self.grid or ()),
            steps=self.steps,
            recipe=self.recipe,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            overrides=self.overrides,
        )
        print_table(rows)


def input_sets(text: str | None) -> dict[str, list[str] | None] | list[str] | None:
    """``m1;m1,m2;all`` as sets by name (None: all modalities), or one list; None for all."""
    if text is None or text == "all":
        return None
    if ";" not in text:
        return names_in(text)
    parts = [part.strip() for part in text.split(";") if part.strip()]
    return {part: None if part == "all" else names_in(part) for part in parts}


def percentages(text: str) -> tuple[float, ...]:
    """``5,10,100`` as numbers. Raises ConfigError for anything else."""
    try:
        return tuple(float(part) for part in names_in(text) or ())
    except ValueError as error:
        raise ConfigError(f"fractions: expected percentages a,b,c, got {text!r}") from error


def grid_values(texts: tuple[str, ...]) -> dict[str, list[str]]:
    """``optim.lr=1e-4,1e-3`` as values by option. Raises ConfigError for anything else."""
    grid = {}
    for text in texts:
        name, given, values = text.partition("=")
        if not given or not names_in(values):
            raise ConfigError(f"grid: expected OPTION=a,b, as in optim.lr=1e-4,1e-3; got {text!r}")
        grid[name.removeprefix("--")] = names_in(values) or []
    return grid


EVALUATION_COMMANDS: dict[str, type[Subcommand]] = {
    "evaluate": Evaluate,
    "probe": Probe,
    "study": Study,
    "benchmark": Benchmark,
}
