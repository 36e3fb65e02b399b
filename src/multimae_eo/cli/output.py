"""Results on stdout and progress on stderr. Nothing heavy is imported here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multimae_eo.train.run import RunResult


def names_in(text: str | None) -> list[str] | None:
    """``m1,m2`` as a list; None for None."""
    return None if text is None else [n.strip() for n in text.split(",") if n.strip()]


def print_json(record: object) -> None:
    """Print a result for programs."""
    print(json.dumps(record, indent=1, default=str))


def print_table(rows: Sequence[dict[str, object]], scores: Sequence[str] = ()) -> None:
    """Print rows as Markdown; ``scores``: columns with an interval in ``<score> low``, ``high``."""
    from multimae_eo.reports.tables import display_row, markdown_table

    print("\n".join(markdown_table([display_row(row, scores) for row in rows] if scores else rows)))


def print_run(result: RunResult) -> None:
    """Print a training run's metrics and the folder of its model, in the first process only."""
    if not result.first_process:
        return
    for name, value in sorted(result.metrics.items()):
        print(f"{name}\t{value:.5f}")
    print(result.model)


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


def scene_counter(out: str, unit: str) -> counter:
    """A progress bar of pixels or chips; where ``out`` is of several scenes it counts those."""
    from multimae_eo.scenes.each_scene import is_pattern

    several = is_pattern(out)
    return counter("scenes" if several else unit, scaled=unit == "px" and not several)


class stages:  # noqa: N801 - reads as a noun in a with statement
    """Progress bars on stderr, one after the other, for callbacks of (stage, done, total).

    ``units``: by stage; "B" is scaled to kB, MB, GB.
    """

    def __init__(self, **units: str) -> None:
        self._units = units
        self._stage = ""
        self._counter: counter | None = None
        self._show: Callable[[int, int], None] | None = None

    def __enter__(self) -> Callable[[str, int, int | None], None]:
        return self._report

    def _report(self, stage: str, done: int, total: int | None) -> None:
        if stage != self._stage or self._show is None:
            self._close()
            unit = self._units[stage]
            self._stage, self._counter = stage, counter(unit, scaled=unit == "B")
            self._show = self._counter.__enter__()
        self._show(done, total or 0)

    def _close(self) -> None:
        if self._counter is not None:
            self._counter.__exit__()

    def __exit__(self, *exc: object) -> None:
        self._close()
