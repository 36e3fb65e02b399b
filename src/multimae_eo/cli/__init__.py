"""The command line, one file per group of subcommands."""

import os

# Read by OpenMP when torch is loaded. Threads that wait passively leave their core to other
# processes; spinning ones hold it, which costs a shared machine most of its throughput.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from multimae_eo.cli.logs import log_to_stderr
from multimae_eo.cli.main import main

log_to_stderr()

__all__ = ["main"]
