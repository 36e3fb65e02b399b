"""The command line, one file per group of subcommands."""

import os

# Read by OpenMP when torch is loaded. Threads that spin while they wait hold a core that other
# processes need; threads that sleep at once lose half of a small model's speed to waking up.
# Spinning for about 30 microseconds bridges the gaps between operations.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from multimae_eo.cli.logs import log_to_stderr
from multimae_eo.cli.main import main

log_to_stderr()

__all__ = ["main"]
