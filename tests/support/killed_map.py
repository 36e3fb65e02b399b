"""A program that runs a subcommand and is killed when the first block of a map is finished."""

KILLED_AFTER_ONE_BLOCK = """
import os, signal, sys
from multimae_eo.scenes import engine
finish = engine._BlockRows.finish
def dying(rows):
    finish(rows)
    os.kill(os.getpid(), signal.SIGKILL)
engine._BlockRows.finish = dying
from multimae_eo.cli import main
main(sys.argv[1:])
"""
