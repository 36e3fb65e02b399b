"""Mixtures of product levels: top of atmosphere among surface reflectance, and the +1000 offset.

Air scatters blue light: at the top of the atmosphere even the darkest blue pixel of a chip is near
0.07 and brighter than the darkest red one; at the surface it is near 0.01. Processing baseline
04.00 added 1000 digital numbers (0.1) to every band, so that no band has a dark pixel any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from multimae_eo.doctor.finding import Finding
from multimae_eo.doctor.scan import Array
from multimae_eo.doctor.values import Values
from multimae_eo.plausible import (
    BLUE_UM,
    LIFTED,
    OFFSET,
    RED_UM,
    UNDO_OFFSET,
    is_cirrus,
    level_seen,
    looks_lifted,
)


@dataclass(frozen=True, kw_only=True)
class _Dark:
    """The darkest pixels of a chip, as reflectance (1st percentile); NaN where unknown."""

    key: str
    level: str
    lowest: float
    blue: float
    red: float
    cirrus: float

    @property
    def lifted(self) -> bool:
        """Whether every band is about 0.1 too bright."""
        return looks_lifted(
            lowest=self.lowest, blue=self.blue, cirrus=self.cirrus, level=self.level
        )

    @property
    def seen_level(self) -> str:
        """The product level it looks like; empty where it is not clear."""
        lift = OFFSET if self.lifted else 0.0
        return level_seen(blue=self.blue - lift, red=self.red - lift)


def level_findings(values: Mapping[str, Values]) -> Iterator[Finding]:
    """Chips whose processing differs from the rest or from what is declared."""
    sensors: dict[str, list[Values]] = {}
    for results in values.values():
        if results.modality.levels:
            sensors.setdefault(results.modality.sensor, []).append(results)
    for members in sensors.values():
        darks = _darkest(members)
        where = ", ".join(f.modality.name for f in members)
        yield from _offset(darks, where)
        yield from _levels(darks, where)


def _darkest(members: list[Values]) -> list[_Dark]:
    bands: dict[str, list[tuple[float | None, float]]] = {}
    level: dict[str, str] = {}
    for results in members:
        for chip in results.chips:
            if sum(chip.uniform.values()) > 0.001 * chip.pixels:
                continue  # fill values look like dark pixels
            level[chip.key] = chip.calibration.level
            for band, row in zip(results.modality.bands, chip.physical, strict=True):
                seen: Array = row[np.isfinite(row)]
                if seen.size:
                    low = float(np.percentile(seen, 1))
                    bands.setdefault(chip.key, []).append((band.wavelength_um, low))
    return [
        _Dark(
            key=key,
            level=level[key],
            lowest=min((v for w, v in lows if not is_cirrus(w)), default=np.nan),
            blue=_within(lows, BLUE_UM),
            red=_within(lows, RED_UM),
            cirrus=min((v for w, v in lows if is_cirrus(w)), default=np.nan),
        )
        for key, lows in bands.items()
    ]


def _within(lows: list[tuple[float | None, float]], span: tuple[float, float]) -> float:
    return min((v for w, v in lows if w is not None and span[0] <= w <= span[1]), default=np.nan)


def _offset(darks: list[_Dark], where: str) -> Iterator[Finding]:
    lifted = [d for d in darks if d.lifted]
    if not lifted:
        return
    some = len(lifted) < len(darks)
    others = [d.lowest for d in darks if not d.lifted]
    yield Finding(
        check="offset-mixture" if some else "offset",
        severity="warning",
        where=where,
        what="some chips are 0.1 brighter in every band: the +1000 of processing baseline "
        "04.00" if some else LIFTED,
        evidence={
            "chips": len(lifted),
            "of": len(darks),
            "their darkest": float(np.median([d.lowest for d in lifted])),
            "the others' darkest": float(np.median(others)) if others else None,
        },
        remedy="`offset: {default: 0, chips: {KEY: -0.1}}` for these"
        if some
        else UNDO_OFFSET,
        chips=tuple(d.key for d in lifted[:8]),
    )  # fmt: skip


def _levels(darks: list[_Dark], where: str) -> Iterator[Finding]:
    declared = {d.level for d in darks if d.level}
    if len(declared) > 1:
        yield Finding(
            check="levels",
            severity="note",
            where=where,
            what="chips of several product levels, as declared",
            evidence={v: sum(d.level == v for d in darks) for v in sorted(declared)},
            remedy="nothing to do: each level has statistics of its own",
        )
    for level in sorted(declared):
        mine = [d for d in darks if d.level == level]
        odd = [d for d in mine if d.seen_level not in ("", level)]
        if not odd or len(odd) < 0.002 * len(mine):
            continue
        all_of_them = len(odd) > 0.5 * len(mine)
        yield Finding(
            check="level-mixture",
            severity="warning",
            where=where,
            what=f"declared {level}, but "
            + ("the data look" if all_of_them else "some chips look")
            + f" like {odd[0].seen_level}",
            evidence={
                "chips": len(odd),
                "of": len(mine),
                "their darkest blue": float(np.median([d.blue for d in odd])),
                "declared level's": float(
                    np.median([d.blue for d in mine if d not in odd] or [np.nan])
                ),
            },
            remedy="declare `level:` per chip (`level: {default: …, chips: {…}}`), "
            "or leave these chips out",
            chips=tuple(d.key for d in odd[:8]),
        )
