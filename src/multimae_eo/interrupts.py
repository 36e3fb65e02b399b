"""Ends of a process that is still importing: by Ctrl-C, and with the process that started it.

A command that is interrupted exits at once with code 130 and one line. A worker process whose
parent was killed exits, too, long before it has imported what would notice. Imported before
anything else of the package, and so imports next to nothing itself.
"""

from __future__ import annotations

import os
import signal
import sys

EXIT_CODE = 130
PARENT = "MULTIMAE_EO_PARENT"
"""Environment variable of a new worker process, until it has read it: the one that started it."""
_POLL_SECONDS = 0.5
_MESSAGE = b"multimae-eo: error: interrupted\n"


def is_command() -> bool:
    """Whether this process was started as ``multimae-eo`` or ``python -m multimae_eo.cli``.

    Programs that import the package, and worker processes, handle Ctrl-C in their own way.
    """
    started = next((a for a in sys.orig_argv[1:] if not a.startswith("-")), "")
    name = os.path.basename(started)
    return name.startswith("multimae-eo") or started.split(".")[0] == "multimae_eo"


def end_at_once(number: int = signal.SIGINT, frame: object = None) -> None:
    """End this process, which has nothing to tidy up yet, or no longer."""
    os.write(2, _MESSAGE)
    os._exit(EXIT_CODE)


def ignore() -> None:
    """From now on, in a command that has reported how it ended."""
    if is_command():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with(parent: int) -> None:
    import threading
    import time

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="early-parent-watch", daemon=True).start()


# Taken away, since programs and workers that this process starts have it for a parent.
_parent = os.environ.pop(PARENT, "")
if "--multiprocessing-fork" in sys.orig_argv and _parent.isdigit():
    _end_with(int(_parent))
if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)
