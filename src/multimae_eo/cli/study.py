"""The command line's verbs of many runs: studies of transfer, and benchmarks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from multimae_eo.cli.parts import SOURCE, Verb, names_in
from multimae_eo.errors import ConfigError

FRACTIONS = "label fractions in percent, a,b,c"


def _common(parser: Any, methods: str) -> None:
    from multimae_eo.train.finetune_recipe import FinetuneRecipe
    from multimae_eo.train.options import options_help

    add = parser.add_argument
    add("--model", type=str, required=True, help="pre-trained model folder")
    add("--methods", type=str, default=methods, help="of finetune, scratch, linear, knn")
    add("--features", type=str, default="layers-spread", help="of probes; see the verb probe")
    add("--seeds", type=int, default=1, help="draws of each label fraction, runs of each training")
    add("--grid", action="append", type=str, help="values to try, as in optim.lr=1e-4,1e-3")
    add("--steps", type=int, default=0, help="optimiser steps at least, however few the labels")
    add("--recipe", type=str, default=None, help="a YAML file of the options below")
    add("--seed", type=int, default=0, help="the first seed, and that of the bootstrap")
    add("--out", type=str, required=True, help="folder to write; run again to resume")
    parser.epilog = (
        "any option of the recipe overrides it, as in --run.epochs 20:\n"
        + options_help(FinetuneRecipe)
    )


def _study_options(parser: Any) -> None:
    _common(parser, "finetune,scratch,linear,knn")
    add = parser.add_argument
    add("--data", type=str, required=True, help=SOURCE)
    add("--task", type=str, required=True, help="classification, segmentation or regression")
    add("--inputs", type=str, default=None, help="sets of modalities, as 'm1;m1,m2;all'")
    add("--fractions", type=str, default="100", help=FRACTIONS)


def _study(options: Any, overrides: list[str]) -> None:
    from multimae_eo.evaluate.study import default_inputs, study
    from multimae_eo.loading.open_source import open_source

    source = open_source(options.data)
    about = _studied(options, source, options.data)
    plan = _plan(options, [f"--task={options.task}", *overrides], options.fractions)
    shared = default_inputs(about)
    sets = {}
    for part in (options.inputs or "all").split(";"):
        names = shared if part.strip() == "all" else names_in(part)
        if names:
            sets[part.strip()] = names
    rows = study(about, plan, Path(options.out), inputs=sets)
    _tell(rows)


def _studied(options: Any, source: Any, spec: str) -> Any:
    from multimae_eo.evaluate.study import Studied
    from multimae_eo.model_folder.folder import model_hash
    from multimae_eo.network.multimae import MultiMAE

    folder = Path(options.model)
    model = MultiMAE.from_pretrained(folder).eval()
    return Studied(model=model, source=source, digest=model_hash(folder), spec=spec)


def _plan(options: Any, overrides: list[str], fractions: str) -> Any:
    from multimae_eo.evaluate.probe_command import percents
    from multimae_eo.evaluate.probes import ProbeOptions
    from multimae_eo.evaluate.study import Plan

    make = partial(_recipe, None if options.recipe is None else Path(options.recipe), overrides)
    return Plan(
        make=make,
        methods=tuple(names_in(options.methods) or ()),
        probing=ProbeOptions(
            features=options.features, fractions=percents(fractions), seeds=options.seeds
        ),
        grid=_grid(options.grid or []),
        steps=options.steps,
        seed=options.seed,
    )


def _recipe(path: Path | None, overrides: list[str], more: Any) -> Any:
    from multimae_eo.train.finetune_recipe import load_finetune

    return load_finetune(path, [*overrides, *more])


def _grid(texts: list[str]) -> dict[str, list[str]]:
    grid = {}
    for text in texts:
        name, given, values = text.partition("=")
        if not given or not names_in(values):
            raise ConfigError(f"grid: expected OPTION=a,b, as in optim.lr=1e-4,1e-3; got {text!r}")
        grid[name.removeprefix("--")] = names_in(values) or []
    return grid


def _tell(rows: list[dict[str, Any]]) -> None:
    """The rows of results for a terminal, as Markdown."""
    from multimae_eo.reports.tables import display_row, markdown_table

    scores = [k.removesuffix(" low") for k in rows[0] if k.endswith(" low")]
    print("\n".join(markdown_table([display_row(row, scores) for row in rows])))


def _benchmark_options(parser: Any) -> None:
    from multimae_eo.sources.geobench.bands import DATASETS

    add = parser.add_argument
    add("suite", choices=["geobench"], help="geobench: GEO-Bench version 1")
    _common(parser, "knn,linear,finetune")
    add("--root", type=str, required=True, help="folder of the benchmark as it was downloaded")
    add("--datasets", type=str, default="all", help=f"of {', '.join(DATASETS)}; all: those there")
    add("--partitions", type=str, default="default", help="such as default,0.10x_train")


def _benchmark(options: Any, overrides: list[str]) -> None:
    from multimae_eo.evaluate.benchmark import Benchmark, benchmark
    from multimae_eo.reports.tables import markdown_table

    about = _studied(options, None, "")
    runs = Benchmark(
        root=Path(options.root),
        datasets=tuple(names_in(options.datasets) or ()),
        partitions=tuple(names_in(options.partitions) or ()),
        plan_of=lambda more: _plan(options, [*overrides, *more], "100"),
    )
    rows, _ = benchmark(about.model, runs, Path(options.out), digest=about.digest)
    print("\n".join(markdown_table(rows)))


STUDY_VERBS: dict[str, Verb] = {
    "study": (_study_options, _study, "label fractions, seeds and grids beside baselines"),
    "benchmark": (_benchmark_options, _benchmark, "probes and fine-tuning on GEO-Bench"),
}
