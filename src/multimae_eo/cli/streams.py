"""Standard output and error under any encoding, warnings in one line, and outputs kept apart."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import TextIO

from multimae_eo.errors import InputWarning


def make_printable(*, strict: bool = False) -> None:
    """Let output under any encoding replace the signs that it lacks, and print warnings about
    inputs in one line; where ``strict`` they are errors."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    warnings.simplefilter("error" if strict else "always", InputWarning)
    show = warnings.showwarning

    def show_input_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, InputWarning):
            print(f"multimae-eo: warning: {' '.join(str(message).split())}", file=sys.stderr)
        else:
            show(message, category, filename, lineno, file, line)

    if getattr(show, "__name__", "") != "show_input_warning":
        warnings.showwarning = show_input_warning


def require_separate_outputs(options: Mapping[str, object]) -> None:
    """OutputError where a subcommand's output is, contains or overwrites one of its inputs."""
    from multimae_eo.sources import input_paths

    if any(options.get(name) for name in input_paths.OUTPUT_OPTIONS):
        input_paths.require_separate_outputs(options)
