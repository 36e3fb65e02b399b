"""The command line, one file per group of subcommands."""

import sys

try:
    from multimae_eo.cli.main import main
except KeyboardInterrupt:
    # Ctrl-C while the command line itself is imported.
    sys.stderr.write("multimae-eo: error: interrupted\n")
    raise SystemExit(130) from None

__all__ = ["main"]
