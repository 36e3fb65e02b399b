"""A diagnosis as text for a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping

from multimae_eo.doctor.finding import Diagnosis, Finding, Severity

_COLOURS: Mapping[Severity, str] = {"error": "31;1", "warning": "33;1", "note": "36"}
_INDENT = " " * 9


def table(diagnosis: Diagnosis, *, width: int = 100, colour: bool = False) -> str:
    """The values of every band, then every finding with its evidence and remedy.

    ``width``: columns of the terminal. ``colour``: with ANSI colours.
    """
    counts = ", ".join(f"{n} {_plural(s, n)}" for s, n in diagnosis.counts.items())
    lines = [_headline(diagnosis), "", *_bands(diagnosis), "", counts]
    for finding in diagnosis.findings:
        lines += ["", *_lines(finding, max(width, 40), colour)]
    return "\n".join(lines)


def show(value: object) -> str:
    """A piece of evidence as text: four digits, lists and counts in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {show(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(show(v) for v in value)
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    return "–" if value is None else str(value)


def evidence_text(finding: Finding) -> str:
    """A finding's numbers in one line."""
    return " · ".join(f"{name}: {show(value)}" for name, value in finding.evidence.items())


def _headline(diagnosis: Diagnosis) -> str:
    splits = ", ".join(f"{name or 'no split'} {n}" for name, n in diagnosis.splits.items())
    seen = "all" if diagnosis.examined == diagnosis.chips else f"{diagnosis.examined}"
    return f"{diagnosis.source}: {diagnosis.chips} chips ({splits}), {seen} examined"


def _bands(diagnosis: Diagnosis) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("band", "1 %", "median", "99 %", "nodata", "unit")]
    for band in diagnosis.bands:
        name = band.modality if band.modality == band.band else f"{band.modality}/{band.band}"
        gap = f"{100 * band.nodata:.3g} %" if band.nodata else "–"
        rows.append((name, *(show(v) for v in band.percentiles), gap, band.unit))
    names: dict[str, list[str]] = {}
    for entry in diagnosis.classes:
        if entry.share > 0:
            names.setdefault(entry.modality, []).append(f"{entry.name} {100 * entry.share:.3g} %")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows if len(rows) > 1 else []:
        first, *middle, last = (
            cell.ljust(w) if i in (0, len(row) - 1) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *middle, last]).rstrip()
    for name, shares in names.items():
        yield f"{name}: {', '.join(shares)}"


def _lines(finding: Finding, width: int, colour: bool) -> Iterator[str]:
    word = finding.severity.ljust(8)
    if colour:
        word = f"\x1b[{_COLOURS[finding.severity]}m{word}\x1b[0m"
    yield f"{word} {finding.check}" + (f"  {finding.where}" if finding.where else "")
    chips = f"chips: {', '.join(finding.chips[:4])}{' …' if len(finding.chips) > 4 else ''}"
    for text in (
        finding.what,
        evidence_text(finding),
        f"→ {finding.remedy}",
        chips if finding.chips else "",
    ):
        if text:
            yield from textwrap.wrap(text, width, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _plural(severity: Severity, count: int) -> str:
    return severity if count == 1 else f"{severity}s"
