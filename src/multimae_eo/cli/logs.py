"""The package's log on stderr, one message a line."""

from __future__ import annotations

import logging
import sys


class StderrHandler(logging.Handler):
    """Writes messages to the current ``sys.stderr``, warnings with their level."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        sys.stderr.write(f"multimae-eo: {level}{self.format(record)}\n")


def log_to_stderr() -> None:
    """Show the package's messages from INFO upwards, once; a second call changes nothing."""
    logger = logging.getLogger("multimae_eo")
    if any(isinstance(handler, StderrHandler) for handler in logger.handlers):
        return
    logger.addHandler(StderrHandler())
    logger.setLevel(logging.INFO)
