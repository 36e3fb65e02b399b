"""Ratios of times that were measured in alternating rounds, and the table that is printed."""

from __future__ import annotations

import importlib
import importlib.metadata
import statistics
from collections.abc import Mapping, Sequence


def paired(times: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Ratio of ``times`` to ``base``, round by round: median, least and largest."""
    ratios = [a / b for a, b in zip(times, base, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def ratio_text(row: Mapping[str, float]) -> str:
    """``1.30 (1.25–1.41)``; a single round has no range."""
    low, high = row["ratio_low"], row["ratio_high"]
    text = f"{row['ratio']:.2f}"
    return text if low == high else f"{text} ({low:.2f}–{high:.2f})"


def installed(package: str) -> str:
    """Version of an importable package; "" where it, or what it needs, is not installed."""
    try:
        importlib.import_module(package)
        return importlib.metadata.version(package)
    except (ImportError, RuntimeError, importlib.metadata.PackageNotFoundError):
        # torchvision without its operators raises a RuntimeError.
        return ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * w for w in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
