"""Declared and undeclared nodata, saturation, constant bands, differing sizes and dtypes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from multimae_eo.doctor.finding import Finding, percent
from multimae_eo.doctor.values import Values

_SENTINELS = (-32768.0, -9999.0, -999.0, -99.0, 0.0, 255.0, 9999.0, 32767.0, 65535.0)
_LEAST_PIXELS = 500


def gap_findings(values: Mapping[str, Values]) -> Iterator[Finding]:
    """What is missing, flat or clipped in each continuous modality."""
    for results in values.values():
        yield from _nodata(results)
        fills = dict(_undeclared_uniform(results))
        yield from fills.values()
        yield from _constant(results)
        for index in range(results.modality.channels):
            yield from _ends(results, index, reported=fills)
        yield from _forms(results)


def _nodata(results: Values) -> Iterator[Finding]:
    shares = np.array([c.invalid for c in results.chips])
    total = float(shares.mean())
    if total == 0.0:
        return
    mostly = np.flatnonzero(shares > 0.5)
    yield Finding(
        check="nodata",
        severity="warning" if total > 0.3 or len(mostly) > 0.1 * len(shares) else "note",
        where=results.modality.name,
        what="pixels without data",
        evidence={
            "nodata": percent(total),
            "chips with some": int((shares > 0).sum()),
            "chips with more than half": len(mostly),
        },
        remedy="nothing to do: they are masked out; exclude chips that are mostly empty"
        if len(mostly)
        else "nothing to do: they are masked out",
        chips=tuple(results.chips[int(i)].key for i in np.argsort(-shares)[:4] if shares[i] > 0),
    )


def _undeclared_uniform(results: Values) -> Iterator[tuple[float, Finding]]:
    """One value in all bands of a pixel, in many pixels: a fill value, not a measurement."""
    totals: Counter[float] = Counter()
    for chip in results.chips:
        totals.update(chip.uniform)
    pixels = sum(c.pixels for c in results.chips)
    for value, count in totals.most_common(3):
        share = count / pixels
        # Three equal digital numbers happen by chance in dark pictures; fill values are in a list.
        if share < 0.001 or not (value in _SENTINELS or (share > 0.01 and _lowest(results, value))):
            continue
        fill = value in _SENTINELS and (
            _alone(results, value) or (share > 0.01 and results.modality.channels > 3)
        )
        holding = sorted(results.chips, key=lambda c: -c.uniform.get(value, 0))
        yield (
            value,
            Finding(
                check="undeclared-nodata",
                severity="error" if fill else "warning",
                where=results.modality.name,
                what=f"all {results.modality.channels} bands are {value:g} at once",
                evidence={
                    "pixels": percent(share),
                    "chips": sum(value in c.uniform for c in results.chips),
                    "declared nodata": list(results.modality.nodata) or "none",
                },
                remedy=f"if it means 'never observed', declare `nodata: {value:g}`",
                chips=tuple(c.key for c in holding[:8] if value in c.uniform),
            ),
        )


def _lowest(results: Values, value: float) -> bool:
    return value <= min(float(c.low[np.isfinite(c.low)].min(initial=np.inf)) for c in results.chips)


def _alone(results: Values, value: float) -> bool:
    """Whether no other pixel comes near to having this value in all bands."""
    away = np.abs(results.raw - value).max(axis=0)
    away = away[np.isfinite(away) & (away > 0)]
    nearest, tail = np.percentile(away, [0, 1]) if away.size else (0.0, 0.0)
    return bool(nearest > tail - nearest)


def _constant(results: Values) -> Iterator[Finding]:
    flat = np.array([c.constant for c in results.chips])
    for index in range(results.modality.channels):
        seen = results.seen_raw(index)
        if not seen.size:
            yield Finding(
                check="constant",
                severity="error",
                where=results.where(index),
                what="a band without a single valid pixel",
                evidence={"chips": len(results.chips)},
                remedy="leave the band out, or check its nodata value",
            )
        elif flat[:, index].all() and seen.min() == seen.max():
            yield Finding(
                check="constant",
                severity="error",
                where=results.where(index),
                what=f"a constant band: {seen[0]:g} everywhere",
                evidence={"value": float(seen[0]), "chips": len(results.chips)},
                remedy="leave the band out; it carries nothing",
            )
    some = np.flatnonzero(flat.all(axis=1)) if len(results.chips) > 1 else np.zeros(0, np.intp)
    if 0 < len(some) < len(results.chips):
        yield Finding(
            check="constant",
            severity="warning" if len(some) > 0.1 * len(results.chips) else "note",
            where=results.modality.name,
            what="chips in which every band is constant",
            evidence={"chips": len(some), "of": len(results.chips)},
            remedy="open sea or a plain can look so; otherwise the chips are empty: exclude them",
            chips=tuple(results.chips[int(i)].key for i in some[:8]),
        )


def _ends(results: Values, index: int, *, reported: Collection[float]) -> Iterator[Finding]:
    """Pile-ups at a band's lowest and highest value: fill values and saturation."""
    seen = results.seen_raw(index)
    if seen.size < _LEAST_PIXELS or seen.min() == seen.max():
        return
    for value, rest_end in ((float(seen.min()), np.min), (float(seen.max()), np.max)):
        at_end = seen == value
        share, rest = float(at_end.mean()), seen[~at_end]
        if share < (0.002 if value in _SENTINELS else 0.01) or value in reported:
            continue
        span = float(np.subtract(*np.percentile(rest, [99, 1])))
        gap = abs(float(rest_end(rest)) - value)
        holding = tuple(
            c.key for c in results.chips if c.low[index] == value or c.high[index] == value
        )
        evidence = {"value": value, "pixels": percent(share), "chips": len(holding)}
        # A band of a few levels only has gaps everywhere.
        many = len(np.unique(rest[:5000])) > 16
        if many and gap > max(0.5 * span, 2.0 if value % 1 == 0 else 0.0):
            yield Finding(
                check="undeclared-nodata",
                severity="error" if value in _SENTINELS else "warning",
                where=results.where(index),
                what=f"a value far from all others: {value:g}",
                evidence={**evidence, "next value": float(rest_end(rest))},
                remedy=f"if it means 'never observed', declare `nodata: {value:g}`",
                chips=holding[:8],
            )
        elif rest_end is np.max and share > float((rest > value - span / 50).mean()):
            yield Finding(
                check="saturation",
                severity="warning" if share > 0.01 else "note",
                where=results.where(index),
                what=f"values pile up at the highest, {value:g}",
                evidence=evidence,
                remedy="clouds, snow and glint saturate; a large share means values were clipped",
                chips=holding[:8],
            )


def _forms(results: Values) -> Iterator[Finding]:
    """Sizes and dtypes that differ between chips."""
    for kinds, what, remedy in (
        (results.shapes, "chips of different sizes", "set `data.chip` to cut them alike"),
        (results.dtypes, "different dtypes", "convert the odd ones; their units may differ"),
    ):
        if len(kinds) > 1:
            yield Finding(
                check="sizes",
                severity="warning",
                where=results.modality.name,
                what=what,
                evidence={_form(form): count for form, count in kinds.most_common(5)},
                remedy=remedy,
            )


def _form(form: object) -> str:
    return "×".join(map(str, form)) if isinstance(form, tuple) else str(form)
