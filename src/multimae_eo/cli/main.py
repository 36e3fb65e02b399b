"""The command line: one parser and one line per verb. Heavy imports wait until a verb runs.

Exit codes: 0 done, 1 a user's error told in one line, 2 usage. Progress goes to stderr, results to
stdout. ``--debug`` shows the traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from multimae_eo.cli.demo import DEMO_VERBS
from multimae_eo.cli.ecosystem import ECOSYSTEM_VERBS
from multimae_eo.cli.examples import examples
from multimae_eo.cli.parts import SOURCE, counter, print_json
from multimae_eo.cli.predict import PREDICT_VERBS
from multimae_eo.cli.scenes import SCENE_VERBS
from multimae_eo.cli.streams import make_printable, require_separate_outputs
from multimae_eo.cli.study import STUDY_VERBS
from multimae_eo.cli.transfer import TRANSFER_VERBS
from multimae_eo.errors import MultiMAEError, did_you_mean
from multimae_eo.processes import noted_interrupts

OVERRIDDEN = ("pretrain", "finetune", "study", "benchmark")
"""Verbs that take options of a recipe beside their own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    make_printable()
    arguments = [a for a in arguments if a != "--debug"]
    with noted_interrupts() as interrupts:
        try:
            return _run(arguments, debug)
        except BaseException as error:
            # Libraries turn an interrupt into other errors: an import that failed, exit code 1.
            if debug or not (interrupts or isinstance(error, KeyboardInterrupt)):
                raise
            _complain("interrupted")
            return 130


def _run(arguments: list[str], debug: bool) -> int:
    try:
        # Usage errors exit here with 2, --help and --version with 0.
        verb, options, overrides = _parse(arguments)
        require_separate_outputs(vars(options))
        _VERBS[verb][1](options, overrides)
        sys.stdout.flush()
    except MultiMAEError as error:
        if debug or isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise
        _complain(str(error))
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug:
            raise
        _complain(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
        return 1
    except MemoryError:
        if debug:
            raise
        _complain("out of memory; use a smaller --data.batch_size or chip")
        return 1
    return 0


def _complain(text: str) -> None:
    print(f"multimae-eo: error: {' '.join(text.split())}", file=sys.stderr)


def _parse(arguments: list[str]) -> tuple[str, Any, list[str]]:
    from argparse import RawDescriptionHelpFormatter

    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    from multimae_eo.version import __version__

    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Keeps the lines of the list of recipe options."""

    parser = ArgumentParser(
        prog="multimae-eo",
        description="One multi-modal masked autoencoder for all Earth-observation sensors.",
        epilog="multimae-eo VERB --help explains a verb; --debug shows tracebacks.",
        version=__version__,
        default_env=False,
        formatter_class=Formatter,
    )
    known: list[str] = []
    commands = parser.add_subcommands(required=True, dest="verb", metavar="VERB")
    wanted = next((a for a in arguments if not a.startswith("-")), None)
    if wanted is not None and wanted not in _VERBS:
        parser.error(f"no verb {wanted!r}; {did_you_mean(wanted, _VERBS)}")
    for name, (build, _, about) in _VERBS.items():
        # Only the wanted verb's options are built: --help must answer at once.
        own = ArgumentParser(description=about, default_env=False, formatter_class=Formatter)
        if name == wanted:
            build(own)
            own.epilog = "\n\n".join(filter(None, [examples(name), own.epilog]))
            known = list(own._option_string_actions)
        commands.add_subcommand(name, own, help=about)
    rest: list[str] = arguments
    overrides: list[str] = []
    if wanted in OVERRIDDEN:
        rest, overrides = _split_overrides(arguments, wanted)
    for option in (a.split("=", maxsplit=1)[0] for a in rest if a.startswith("--") and a != "--"):
        if wanted is not None and option not in known:
            parser.error(f"{wanted} has no option {option}; {did_you_mean(option, known)}")
    parsed = parser.parse_args(rest)
    return parsed.verb, parsed[parsed.verb], overrides


def _split_overrides(arguments: list[str], verb: str = "pretrain") -> tuple[list[str], list[str]]:
    """Take the recipe's own options (``--optim.lr 3e-4``) out of the arguments."""
    from dataclasses import fields

    from multimae_eo.cli.transfer import OPTIONS
    from multimae_eo.train.finetune_recipe import FinetuneRecipe
    from multimae_eo.train.recipe import Recipe

    kind, own = (Recipe, ("data",)) if verb == "pretrain" else (FinetuneRecipe, OPTIONS)
    roots = {f.name for f in fields(kind)} - set(own)
    rest: list[str] = []
    overrides: list[str] = []
    take = False
    for item in arguments:
        option = item.split("=", maxsplit=1)[0]
        path = option.removeprefix("--").split(".")
        is_override = option.startswith("--") and (path[0] in roots or len(path) > 1)
        if is_override or (take and not item.startswith("--")):
            overrides.append(item)
            take = is_override and "=" not in item
        else:
            rest.append(item)
            take = False
    return rest, overrides


# quickstart ---------------------------------------------------------------------------------


def _quickstart_options(parser: Any) -> None:
    parser.add_argument("--out", type=str, default="quickstart", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="decides the world and the model")
    parser.add_argument("--chips", type=int, default=600, help="chips of the world")
    parser.add_argument(
        "--world_only", action="store_true", help="stop when chips and a scene are on disk"
    )


def _quickstart(options: Any, _: list[str]) -> None:
    from multimae_eo.quickstart import make_world, quickstart

    step = make_world if options.world_only else quickstart
    print(step(Path(options.out), seed=options.seed, chips=options.chips))


# inspect ------------------------------------------------------------------------------------


def _inspect_options(parser: Any) -> None:
    from multimae_eo.doctor import CHIPS

    parser.add_argument("source", type=str, help=SOURCE)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--html", type=str, default=None, help="report to write, with pictures")
    parser.add_argument("--chips", type=int, default=CHIPS, help="most chips to examine")


def _inspect(options: Any, _: list[str]) -> None:
    import shutil

    from multimae_eo.doctor import inspect
    from multimae_eo.doctor.table import table
    from multimae_eo.loading.open_source import open_source

    source = open_source(options.source)
    with counter("chips") as progress:
        diagnosis = inspect(source, chips=options.chips, progress=progress)
    if options.html is not None:
        from multimae_eo.doctor.page import write_page

        write_page(diagnosis, source, Path(options.html))
    if options.json:
        print_json(diagnosis.to_dict())
    else:
        width = min(shutil.get_terminal_size().columns, 120)
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(table(diagnosis, width=width, colour=colour))


# prepare ------------------------------------------------------------------------------------


def _prepare_options(parser: Any) -> None:
    parser.add_argument("source", type=str, help=SOURCE)
    parser.add_argument("--out", type=str, required=True, help="chip store to write")
    parser.add_argument("--workers", type=int, default=1, help="processes that read")
    parser.add_argument("--shard_chips", type=int, default=512, help="chips per shard")
    parser.add_argument("--append", action="store_true", help="add chips to a finished store")


def _prepare(options: Any, _: list[str]) -> None:
    from multimae_eo.loading.open_source import open_source
    from multimae_eo.store.append import append
    from multimae_eo.store.writer import prepare

    source, out = open_source(options.source), Path(options.out)
    with counter("chips") as progress:
        store = (
            append(source, out, workers=options.workers, progress=progress)
            if options.append
            else prepare(
                source,
                out,
                workers=options.workers,
                shard_chips=options.shard_chips,
                progress=progress,
            )
        )
    print(f"{options.out}: {len(store)} chips, {', '.join(store.modalities)}")


# pretrain -----------------------------------------------------------------------------------


def _pretrain_options(parser: Any) -> None:
    from multimae_eo.train.options import options_help
    from multimae_eo.train.recipe import Recipe, recipe_names

    shown = ", ".join(recipe_names())
    parser.add_argument("--recipe", type=str, required=True, help=f"a YAML file, or one of {shown}")
    parser.add_argument("--data", type=str, required=True, help=SOURCE)
    parser.add_argument("--init", type=str, default=None, help="model folder to start from")
    parser.add_argument("--out", type=str, required=True, help="run folder; run again to resume")
    parser.epilog = (
        "any option of the recipe overrides it, as in --optim.lr 3e-4:\n" + options_help(Recipe)
    )


def _pretrain(options: Any, overrides: list[str]) -> None:
    from multimae_eo.loading.open_source import open_source
    from multimae_eo.train.pretrain import Init, pretrain
    from multimae_eo.train.recipe import load_recipe

    recipe = load_recipe(options.recipe, overrides)
    source = open_source(options.data)
    init = None
    if options.init is not None:
        from multimae_eo.model_folder.folder import model_hash
        from multimae_eo.network.multimae import MultiMAE

        init = Init(
            model=MultiMAE.from_pretrained(options.init),
            name=options.init,
            digest=model_hash(options.init),
        )
    done = pretrain(recipe, source, Path(options.out), spec=options.data, init=init)
    if not done.first_process:
        return
    for name, value in sorted(done.metrics.items()):
        print(f"{name}\t{value:.5f}")
    print(done.model)


# probe --------------------------------------------------------------------------------------


def _probe_options(parser: Any) -> None:
    from multimae_eo.evaluate.probe_command import add_options

    add_options(parser, SOURCE)


def _probe(options: Any, _: list[str]) -> None:
    from multimae_eo.evaluate.probe_command import run

    print_json(run(options))


# convert ------------------------------------------------------------------------------------


def _convert_options(parser: Any) -> None:
    parser.add_argument("checkpoint", type=str, help="the reference's .pth")
    parser.add_argument("--out", type=str, required=True, help="model folder to write")
    parser.add_argument("--statistics", type=str, default=None, help="MMEarth's *_band_stats.json")


def _convert(options: Any, _: list[str]) -> None:
    from multimae_eo.convert.reference import convert

    statistics = None if options.statistics is None else Path(options.statistics)
    model = convert(Path(options.checkpoint), statistics=statistics)
    model.save_pretrained(options.out)
    if statistics is None:
        print(
            "multimae-eo: the model carries no statistics and will refuse data; "
            "convert with --statistics to use it",
            file=sys.stderr,
        )
    print(options.out)


_VERBS: dict[str, tuple[Callable[[Any], None], Callable[[Any, list[str]], None], str]] = {
    "quickstart": (_quickstart_options, _quickstart, "the whole tour on a synthetic world"),
    "inspect": (_inspect_options, _inspect, "the data doctor: what is wrong with a source"),
    "prepare": (_prepare_options, _prepare, "any source into a chip store, with statistics"),
    "pretrain": (_pretrain_options, _pretrain, "pre-train; run again to resume"),
    **TRANSFER_VERBS,
    **PREDICT_VERBS,
    **STUDY_VERBS,
    **SCENE_VERBS,
    **DEMO_VERBS,
    "probe": (_probe_options, _probe, "frozen features against labels, beside baselines"),
    "convert": (_convert_options, _convert, "the reference's released weights"),
    **ECOSYSTEM_VERBS,
}


if __name__ == "__main__":
    sys.exit(main())
