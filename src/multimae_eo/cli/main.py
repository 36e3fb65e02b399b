"""The command line: one typed dataclass per subcommand. Heavy imports wait until one runs.

Exit codes: 0 done, 1 a user's error in one line, 2 usage, 130 interrupted. Progress goes to stderr,
results to stdout. ``--debug`` shows the traceback, ``--strict`` makes warnings about inputs
errors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import multimae_eo
from multimae_eo import interrupts
from multimae_eo.cli.completion import Shell, script
from multimae_eo.cli.data_commands import DATA_COMMANDS
from multimae_eo.cli.evaluation_commands import EVALUATION_COMMANDS
from multimae_eo.cli.map_commands import MAP_COMMANDS
from multimae_eo.cli.model_commands import MODEL_COMMANDS
from multimae_eo.cli.parser import Subcommand, argument, make_parser, read_options
from multimae_eo.cli.scene_commands import SCENE_COMMANDS
from multimae_eo.cli.streams import make_printable, require_separate_outputs
from multimae_eo.cli.tour_commands import TOUR_COMMANDS
from multimae_eo.cli.training_commands import TRAINING_COMMANDS
from multimae_eo.errors import MultiMAEError, did_you_mean
from multimae_eo.processes import follow_launcher, noted_interrupts


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Print the script by which a shell completes subcommands and options.

    Args:
        shell: the shell
    """

    examples: ClassVar[tuple[str, ...]] = (
        "completion bash > ~/.local/share/bash-completion/completions/multimae-eo",
        "completion fish > ~/.config/fish/completions/multimae-eo.fish",
    )
    shell: Shell = argument(positional=True)  # noqa: RUF009 - a dataclasses.field

    def run(self) -> None:
        """Print the script."""
        parser = make_parser(SUBCOMMANDS, None, version=multimae_eo.__version__)
        sys.stdout.write(script(self.shell, parser))


SUBCOMMANDS: dict[str, type[Subcommand]] = {
    "quickstart": TOUR_COMMANDS["quickstart"],
    **DATA_COMMANDS,
    **TRAINING_COMMANDS,
    **EVALUATION_COMMANDS,
    **SCENE_COMMANDS,
    **MAP_COMMANDS,
    "demo": TOUR_COMMANDS["demo"],
    **MODEL_COMMANDS,
    "completion": Completion,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    follow_launcher()
    make_printable(strict="--strict" in arguments)
    with noted_interrupts() as received:
        try:
            remaining = [a for a in arguments if a not in ("--debug", "--strict")]
            return _run(remaining, debug=debug)
        except BaseException as error:
            # Libraries turn an interrupt into other errors: an import that failed, exit code 1.
            if debug or not (received or isinstance(error, KeyboardInterrupt)):
                raise
            # Once more while this one ends would be one line too many.
            with suppress(ValueError):  # of another thread
                interrupts.ignore()
            return _fail("interrupted", interrupts.EXIT_CODE)


def _run(arguments: Sequence[str], *, debug: bool) -> int:
    try:
        # Usage errors exit here with 2, --help and --version with 0.
        subcommand = parse(arguments)
        require_separate_outputs(vars(subcommand))
        subcommand.run()
        sys.stdout.flush()
    except MultiMAEError as error:
        if debug or isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise
        return _fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if debug:
            raise
        return _fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
    except MemoryError:
        if debug:
            raise
        return _fail("out of memory; use a smaller --data.batch_size or chip")
    return 0


def _fail(message: str, code: int = 1) -> int:
    print(f"multimae-eo: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def parse(arguments: Sequence[str]) -> Subcommand:
    """The subcommand with its options. Exits with 2 for wrong usage, 0 after ``--help``."""
    chosen = next((a for a in arguments if not a.startswith("-")), "")
    parser = make_parser(SUBCOMMANDS, chosen, version=multimae_eo.__version__)
    if chosen and chosen not in SUBCOMMANDS:
        parser.error(f"no subcommand {chosen!r}; {did_you_mean(chosen, SUBCOMMANDS)}")
    parsed = parser.parse_args(list(arguments))
    name = parsed.subcommand
    return read_options(SUBCOMMANDS[name], parsed[name], arguments)


if __name__ == "__main__":
    sys.exit(main())
