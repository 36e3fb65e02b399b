"""The command line, one file per group of subcommands."""

import os
import sys

# Read by OpenMP when torch is loaded. Threads that wait passively leave their core to other
# processes; spinning ones hold it, which costs a shared machine most of its throughput.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    from multimae_eo.cli.logs import log_to_stderr
    from multimae_eo.cli.main import main
except KeyboardInterrupt:
    # Ctrl-C while the command line itself is imported.
    sys.stderr.write("multimae-eo: error: interrupted\n")
    raise SystemExit(130) from None

log_to_stderr()

__all__ = ["main"]
