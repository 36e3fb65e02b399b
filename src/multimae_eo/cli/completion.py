"""Scripts by which shells complete subcommands and options. They start no Python."""

from __future__ import annotations

from typing import Literal, get_args

from multimae_eo.cli.parser import Parser

Shell = Literal["bash", "zsh", "tcsh", "fish"]
SHELLS: tuple[Shell, ...] = get_args(Shell)


def script(shell: Shell, parser: Parser) -> str:
    """The completion script of a shell, for a parser with the options of every subcommand."""
    import shtab

    for action in parser.path_actions:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))
