"""The command line, one file per group of subcommands."""

from multimae_eo.cli.main import main

__all__ = ["main"]
