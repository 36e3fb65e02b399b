"""What the command line's verbs share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

SOURCE = (
    "a dataset, scene or STAC file (YAML), a chip store, mmearth:DIR or geobench:ROOT/NAME; "
    "several separated by commas become one"
)
"""What may be given as data."""


def names_in(text: str | None) -> list[str] | None:
    """Names separated by commas."""
    return None if text is None else [n.strip() for n in text.split(",") if n.strip()]


def print_json(record: Any) -> None:
    """Print a record for a program to read."""
    print(json.dumps(record, indent=1, default=str))


class counter:  # noqa: N801 - reads as a noun in a with statement
    """A progress bar on stderr, for callbacks of (done, total)."""

    def __init__(self, unit: str) -> None:
        from tqdm import tqdm

        self._bar = tqdm(unit=unit, file=sys.stderr, disable=not sys.stderr.isatty())

    def __enter__(self) -> Callable[[int, int], None]:
        return self._show

    def _show(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
