"""Dates of series: repeated ones, gaps, images among series, and seasons unlike between splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from multimae_eo.doctor.finding import Finding, percent
from multimae_eo.doctor.scan import Chip

_SAME_HOURS = 1.0
_LONG_GAP, _LEAST_GAP_DAYS = 3.0, 30.0
_UNSEEN_SHARE = 0.2
_EXAMPLES = 8
_MONTHS = 12
_DAYS_OF_YEAR = 365.2425


@dataclass
class _SeriesDates:
    """The dates of one modality, over the chips that were examined."""

    images: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    longest_gaps: dict[str, float] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    months: dict[str, Counter[int]] = field(default_factory=dict)


class DateScan:
    """Gathers the dates of every series."""

    def __init__(self) -> None:
        self._series: dict[str, _SeriesDates] = {}

    def add(self, chip: Chip) -> None:
        """Add a chip."""
        for name in chip.sample.pixels:
            one = self._series.setdefault(name, _SeriesDates())
            dates = chip.dates.get(name)
            if dates is None:
                one.images.append(chip.key)
                continue
            one.counts.append(len(dates))
            steps = np.diff(dates)
            if (steps < _SAME_HOURS / 24).any():
                one.repeated.append(chip.key)
            if len(steps):
                one.gaps += steps.tolist()
                one.longest_gaps[chip.key] = float(steps.max())
            months = (dates % _DAYS_OF_YEAR / _DAYS_OF_YEAR * _MONTHS).astype(int)
            one.months.setdefault(chip.split, Counter()).update(months.tolist())

    def findings(self) -> Iterator[Finding]:
        """What is wrong, or worth knowing, by modality."""
        for name, one in self._series.items():
            if not one.counts:
                continue
            yield from self._lengths(name, one)
            yield from self._gaps(name, one)
            yield from self._seasons(name, one)

    def _lengths(self, name: str, one: _SeriesDates) -> Iterator[Finding]:
        if one.repeated:
            yield Finding(
                check="repeated-dates",
                severity="warning",
                where=name,
                what="two acquisitions of a chip within an hour",
                evidence={"chips": len(one.repeated), "of": len(one.counts)},
                remedy="keep one of each, or join the halves of a pass into one file",
                chips=tuple(one.repeated[:_EXAMPLES]),
            )
        if one.images:
            yield Finding(
                check="dates",
                severity="note",
                where=name,
                what="chips with an undated image, where others have a series",
                evidence={"chips": len(one.images), "series": len(one.counts)},
                remedy="nothing to do, unless their date is known: then give it",
                chips=tuple(one.images[:_EXAMPLES]),
            )

    def _gaps(self, name: str, one: _SeriesDates) -> Iterator[Finding]:
        if not one.gaps:
            return
        usual = float(np.median(one.gaps))
        limit = max(_LONG_GAP * usual, _LEAST_GAP_DAYS)
        long = [k for k, gap in one.longest_gaps.items() if gap > limit]
        if long:
            yield Finding(
                check="date-gaps",
                severity="note",
                where=name,
                what="chips with a long time between two dates",
                evidence={
                    "chips": len(long),
                    "of": len(one.counts),
                    "usual step in days": round(usual, 1),
                    "longest in days": round(max(one.longest_gaps.values()), 1),
                    "dates per chip": f"{min(one.counts)} to {max(one.counts)}",
                },
                remedy="nothing to do for clouds; else add the missing dates. Train with "
                "--augment.drop_dates",
                chips=tuple(long[:_EXAMPLES]),
            )

    def _seasons(self, name: str, one: _SeriesDates) -> Iterator[Finding]:
        trained = one.months.get("train")
        for split, months in one.months.items():
            if trained is None or split in ("train", ""):
                continue
            unseen = sum(count for month, count in months.items() if month not in trained)
            share = unseen / sum(months.values())
            if share > _UNSEEN_SHARE:
                yield Finding(
                    check="seasons",
                    severity="warning",
                    where=name,
                    what=f"dates of the split {split!r} in months without a training date",
                    evidence={"share": percent(share), "dates": unseen},
                    remedy="add training dates of these months, or split by location instead",
                )
