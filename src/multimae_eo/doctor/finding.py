"""What the doctor reports: findings, each with evidence and a remedy, gathered in a diagnosis."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing worth knowing about the data.

    ``check``: which check found it (``wrong-scale``, ``band-order``, …; docs/doctor.md explains
    each). ``where``: the modality, or ``modality/band``; empty for the data set as a whole.
    ``evidence``: numbers and short words by name. ``chips``: keys of some chips that show it.

    ``error``: training on it would be wrong. ``warning``: probably wrong, look at it. ``note``: a
    property that one should know.
    """

    check: str
    severity: Severity
    what: str
    remedy: str
    where: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    chips: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """A JSON-ready record."""
        return {
            "severity": self.severity,
            "check": self.check,
            "where": self.where,
            "what": self.what,
            "evidence": {name: _plain(value) for name, value in self.evidence.items()},
            "remedy": self.remedy,
            "chips": list(self.chips),
        }


@dataclass(frozen=True, kw_only=True)
class BandSummary:
    """One band over all examined chips, in the modality's unit.

    ``percentiles``: 1, 50, 99 %; NaN without a valid pixel. ``nodata``: share of pixels.
    ``edges``, ``counts``: a histogram between the 0.5 and 99.5 % percentiles.
    """

    modality: str
    band: str
    unit: str
    percentiles: tuple[float, float, float]
    nodata: float
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """A JSON-ready record."""
        low, middle, high = (v if math.isfinite(v) else None for v in self.percentiles)
        return {
            "modality": self.modality,
            "band": self.band,
            "unit": self.unit,
            "p1": low,
            "median": middle,
            "p99": high,
            "nodata": self.nodata,
        }


@dataclass(frozen=True, kw_only=True)
class ClassSummary:
    """One class of a class map or of the labels: its share of valid pixels or of labels."""

    modality: str
    name: str
    share: float

    def to_dict(self) -> dict[str, object]:
        """A JSON-ready record."""
        return {"modality": self.modality, "class": self.name, "share": self.share}


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A source's contents and its faults. Findings come worst first.

    ``chips``: how many the source has; ``examined``: of how many the pixels were examined.
    ``splits``: chips per split. ``present``: examined chips that have each modality.
    """

    source: str
    chips: int
    examined: int
    splits: Mapping[str, int]
    present: Mapping[str, int]
    bands: tuple[BandSummary, ...]
    classes: tuple[ClassSummary, ...]
    findings: tuple[Finding, ...]

    @property
    def counts(self) -> dict[Severity, int]:
        """Findings per severity, worst first."""
        results = Counter(f.severity for f in self.findings)
        return {s: results[s] for s in SEVERITIES}

    def of(self, check: str) -> tuple[Finding, ...]:
        """The findings of one check."""
        return tuple(f for f in self.findings if f.check == check)

    def to_dict(self) -> dict[str, object]:
        """A JSON-ready record."""
        return {
            "source": self.source,
            "chips": self.chips,
            "examined": self.examined,
            "splits": dict(self.splits),
            "present": dict(self.present),
            "counts": dict(self.counts),
            "bands": [b.to_dict() for b in self.bands],
            "classes": [c.to_dict() for c in self.classes],
            "findings": [f.to_dict() for f in self.findings],
        }


def worst_first(findings: list[Finding]) -> tuple[Finding, ...]:
    """Errors, then warnings, then notes; the order of discovery within each."""
    return tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))


def _plain(value: object) -> object:
    """Numbers that JSON has: a number that is not finite becomes null."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def percent(share: float) -> str:
    """A share as text: ``0.031`` becomes ``3.1 %``."""
    return f"{100 * share:.3g} %"
