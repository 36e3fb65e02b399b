"""The command line's verbs of transfer: fine-tune, and evaluate what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multimae_eo.cli.parts import SOURCE, Verb, counter, names_in, print_json
from multimae_eo.errors import ConfigError

OPTIONS = ("task", "inputs", "model", "head", "data")
"""Options of ``finetune`` that share their first word with parts of its recipe."""


def _finetune_options(parser: Any) -> None:
    from multimae_eo.train.finetune_recipe import FinetuneRecipe
    from multimae_eo.train.options import options_help

    parser.add_argument("--model", type=str, required=True, help="model folder, or none")
    parser.add_argument("--data", type=str, required=True, help=SOURCE)
    parser.add_argument(
        "--task", type=str, required=True, help="classification, segmentation or regression"
    )
    parser.add_argument("--inputs", type=str, default=None, help="modalities, m1,m2 (default: all)")
    parser.add_argument("--head", type=str, default=None, help="linear, convnext, upernet or dpt")
    parser.add_argument("--recipe", type=str, default=None, help="a YAML file of the options below")
    parser.add_argument("--out", type=str, required=True, help="run folder; run again to resume")
    parser.epilog = (
        "any option of the recipe overrides it, as in --optim.lr 3e-4:\n"
        + options_help(FinetuneRecipe)
    )


def _finetune(options: Any, overrides: list[str]) -> None:
    from multimae_eo.loading.open_source import open_source
    from multimae_eo.train.finetune import finetune as run
    from multimae_eo.train.finetune_recipe import load_finetune

    given = [f"--task={options.task}"]
    inputs = names_in(options.inputs)
    if inputs is not None:
        given.append(f"--inputs=[{','.join(inputs)}]")
    if options.head is not None:
        given.append(f"--head.name={options.head}")
    recipe = load_finetune(
        None if options.recipe is None else Path(options.recipe), [*given, *overrides]
    )
    scratch = options.model == "none"
    if not scratch and any(o.startswith("--model.") for o in overrides):
        raise ConfigError("--model.… describes a new encoder: give it with --model none")
    model, digest = (None, "") if scratch else _encoder(options.model)
    done = run(
        recipe,
        open_source(options.data),
        Path(options.out),
        model=model,
        init={"model": options.model, "hash": digest},
        spec=options.data,
    )
    if not done.first_process:
        return
    for name, value in sorted(done.metrics.items()):
        print(f"{name}\t{value:.5f}")
    print(done.model)


def _encoder(place: str) -> tuple[Any, str]:
    """A pre-trained model, or the encoder of a fine-tuned one, and its hash."""
    from multimae_eo.model_folder.folder import load_either, model_hash
    from multimae_eo.network.predictor import Predictor

    model = load_either(place)
    return model.encoder if isinstance(model, Predictor) else model, model_hash(place)


def _evaluate_options(parser: Any) -> None:
    parser.add_argument("--model", type=str, required=True, help="fine-tuned model folder")
    parser.add_argument("--data", type=str, required=True, help=SOURCE)
    parser.add_argument("--split", type=str, default="test", help="chips of this split")
    parser.add_argument("--inputs", type=str, default=None, help="modalities, m1,m2 (default: all)")
    parser.add_argument("--out", type=str, default=None, help="folder for metrics and predictions")
    parser.add_argument(
        "--drop", type=str, default=None, help="leave inputs out in all combinations: all, or m1,m2"
    )
    parser.add_argument("--flips", action="store_true", help="average over mirror images")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _evaluate(options: Any, overrides: list[str]) -> None:
    if options.drop is not None:
        _drop(options, overrides)
        return
    from multimae_eo.evaluate.predictions import evaluate as run
    from multimae_eo.loading.open_source import open_source

    with counter("chips") as progress:
        record = run(
            _predictor(options),
            open_source(options.data),
            split=options.split,
            inputs=names_in(options.inputs),
            out=None if options.out is None else Path(options.out),
            seed=options.seed,
            progress=progress,
        )
    if options.json:
        print_json(record)
        return
    for name, score in record["metrics"].items():
        print(f"{name}\t{score['value']:.4f}\t[{score['low']:.4f}, {score['high']:.4f}]")


def _predictor(options: Any) -> Any:
    from multimae_eo.network.predictor import Predictor

    predictor = Predictor.from_pretrained(options.model)
    predictor.flips = options.flips
    return predictor


def _drop(options: Any, _: list[str]) -> None:
    from multimae_eo.evaluate.robustness import drop_inputs, score_names
    from multimae_eo.loading.open_source import open_source
    from multimae_eo.reports.tables import display_row, markdown_table

    if options.inputs is not None:
        raise ConfigError("--drop tries sets of inputs by itself: leave --inputs out")
    with counter("sets of inputs") as progress:
        rows = drop_inputs(
            _predictor(options),
            open_source(options.data),
            None if options.drop == "all" else names_in(options.drop),
            split=options.split,
            out=None if options.out is None else Path(options.out),
            seed=options.seed,
            progress=progress,
        )
    if options.json:
        print_json(rows)
    else:
        print("\n".join(markdown_table([display_row(r, score_names(rows)) for r in rows])))


TRANSFER_VERBS: dict[str, Verb] = {
    "finetune": (_finetune_options, _finetune, "transfer to labels; run again to resume"),
    "evaluate": (_evaluate_options, _evaluate, "a fine-tuned model's metrics with intervals"),
}
