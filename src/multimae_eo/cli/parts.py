"""What the verbs of the command line share. Nothing heavy is imported here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

SOURCE = (
    "a dataset, scene or STAC file (YAML), a chip store, mmearth:DIR or geobench:ROOT/NAME; "
    "several separated by commas become one"
)

Verb = tuple[Callable[[Any], None], Callable[[Any, list[str]], None], str]
"""Adds its options to a parser, runs with them, and in a few words."""


def names_in(text: str | None) -> list[str] | None:
    """``m1,m2`` as a list."""
    return None if text is None else [n.strip() for n in text.split(",") if n.strip()]


def print_json(record: Any) -> None:
    """A result for programs, on stdout."""
    print(json.dumps(record, indent=1, default=str))


class counter:  # noqa: N801 - reads as a noun in a with statement
    """A progress bar on stderr, for callbacks of (done, total). ``scaled``: k, M, G before the
    unit."""

    def __init__(self, unit: str, *, scaled: bool = False) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            unit=unit, unit_scale=scaled, file=sys.stderr, disable=not sys.stderr.isatty()
        )

    def __enter__(self) -> Callable[[int, int], None]:
        return self._show

    def _show(self, done: int, total: int) -> None:
        if self._bar.total is None:
            # What an interrupted run had done does not count for the rate.
            self._bar.initial = self._bar.n = done
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
