"""Units and scales: values against the catalogue's physical ranges, decibels against linear power.

Reflectance comes as a fraction, as x 10 000, x 1000, or as 8-bit pictures; no file declares
which. The checks look at what the values would mean under the declared scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from multimae_eo.catalog import SENSORS
from multimae_eo.doctor.finding import Finding, percent
from multimae_eo.doctor.values import Values
from multimae_eo.plausible import (
    DARK,
    DECIBEL_NEGATIVE,
    DIM,
    NEVER_NEGATIVE,
    TO_DECIBEL,
    is_cirrus,
    negative_share,
    outside_message,
    scale_advice,
    share_outside,
)


def scale_findings(values: Mapping[str, Values]) -> Iterator[Finding]:
    """Values outside their band's physical range, too small for it, or in another unit."""
    for results in values.values():
        if linear := _linear_for_decibel(results):
            yield linear
            continue
        yield from _outside(results)
        yield from _decibel_for_linear(results)
        yield from _eight_bit(results)
        yield from _chips_apart(results)
    yield from _too_small(values)


def _outside(results: Values) -> Iterator[Finding]:
    """Bands of a modality outside their range, reported for the worst one."""
    shares: dict[int, float] = {}
    for index, band in enumerate(results.modality.bands):
        seen = results.seen(index)
        if band.physical_range is not None and seen.size:
            shares[index] = share_outside(seen, band.physical_range)
    wrong = [i for i, share in shares.items() if share > 0.005]
    if not wrong:
        return
    worst = max(wrong, key=lambda i: shares[i])
    low, high = results.modality.bands[worst].physical_range or (0.0, 0.0)
    p1, middle, p99 = np.percentile(results.seen(worst), [1, 50, 99])
    most = shares[worst] > 0.2
    yield Finding(
        check="wrong-scale",
        severity="error" if most else "warning",
        where=results.modality.name if len(wrong) > 1 else results.where(worst),
        what=outside_message(results.modality, (low, high)),
        evidence={
            "bands": ", ".join(results.modality.bands[i].name for i in wrong),
            "outside": percent(shares[worst]),
            "1 %": float(p1),
            "median": float(middle),
            "99 %": float(p99),
            "scale": results.chips[0].calibration.scale,
        },
        remedy=scale_advice(results.seen_raw(worst), (low, high), results.modality.unit)
        if most
        else "check these chips, and the nodata value",
        chips=_outliers(results, worst, (low, high)),
    )


def _outliers(results: Values, band: int, span: tuple[float, float]) -> tuple[str, ...]:
    """Chips with the largest excess."""
    excess = []
    for chip in results.chips:
        ends = np.array([chip.low[band], chip.high[band]])
        ends = ends * chip.calibration.scale + chip.calibration.offset
        excess.append(float(np.nanmax([span[0] - ends.min(), ends.max() - span[1], 0.0])))
    order = sorted(range(len(excess)), key=lambda i: -excess[i])
    return tuple(results.chips[i].key for i in order[:8] if excess[i] > 0)


def _too_small(values: Mapping[str, Values]) -> Iterator[Finding]:
    """Reflectances and pictures that would all be black."""
    sensors: dict[tuple[str, str], list[Values]] = {}
    for results in values.values():
        sensors.setdefault((results.modality.sensor, results.modality.unit), []).append(results)
    for (_, unit), members in sensors.items():
        tops = [
            float(np.percentile(seen, 99))
            for results in members
            for i, band in enumerate(results.modality.bands)
            if not is_cirrus(band.wavelength_um) and (seen := results.seen(i)).size
        ]
        if not tops:
            continue
        top, names = max(tops), ", ".join(f.modality.name for f in members)
        raw = np.concatenate([f.raw[np.isfinite(f.raw)] for f in members])
        evidence = {
            "brightest band, 99 %": top,
            "scale": members[0].chips[0].calibration.scale,
            "raw 99 %": float(np.percentile(raw, 99)),
        }
        if unit == "reflectance" and top < DIM:
            yield Finding(
                check="wrong-scale",
                severity="error" if top < DARK else "warning",
                where=names,
                what="reflectance is almost zero in every band",
                evidence=evidence,
                remedy=scale_advice(raw, (-0.2, 2.0), unit)
                if top < DARK
                else "open water is as dark as this; otherwise the data may be × 1000: "
                "`scale: 0.001`",
            )
        if unit == "digital number" and top <= 1.0 < (members[0].modality.bands[0].physical_range
                                                      or (0.0, 0.0))[1]:  # fmt: skip
            yield Finding(
                check="wrong-scale",
                severity="error",
                where=names,
                what="a picture from 0 to 1 declared as one from 0 to 255",
                evidence=evidence,
                remedy="`scale: 255`, or declare reflectance with a sensor that has it",
            )


def _linear_for_decibel(results: Values) -> Finding | None:
    """Radar backscatter in dB is mostly negative; linear power never is."""
    seen = results.physical[np.isfinite(results.physical)]
    if results.modality.unit != "dB" or not seen.size:
        return None
    negative, top = negative_share(seen), float(np.percentile(seen, 99))
    if negative > DECIBEL_NEGATIVE:
        return None
    return Finding(
        check="decibel",
        severity="error",
        where=results.modality.name,
        what=NEVER_NEGATIVE,
        evidence={
            "negative": percent(negative),
            "median": float(np.median(seen)),
            "99 %": top,
        },
        remedy=f"{TO_DECIBEL} before `prepare`, or declare it with its own unit (`custom: true`)",
    )


def _decibel_for_linear(results: Values) -> Iterator[Finding]:
    sensor = SENSORS.get(results.modality.sensor)
    if sensor is None or sensor.unit != "dB" or results.modality.unit == "dB":
        return
    seen = results.physical[np.isfinite(results.physical)]
    negative = negative_share(seen)
    if negative > DECIBEL_NEGATIVE:
        yield Finding(
            check="decibel",
            severity="error",
            where=results.modality.name,
            what=f"declared in {results.modality.unit or 'no unit'}, but values are negative: "
            "these are dB",
            evidence={"negative": percent(negative), "median": float(np.median(seen))},
            remedy="drop `unit:`; the catalogue's unit of this sensor is dB",
        )


def _eight_bit(results: Values) -> Iterator[Finding]:
    """Bands kept as 8-bit pictures among bands of measured values."""
    if results.modality.unit != "reflectance" or not results.chips:
        return
    ends = [
        (min((c.low[i] for c in results.chips), default=0.0), max(c.high[i] for c in results.chips))
        for i in range(results.modality.channels)
    ]
    tops = np.array([high for _, high in ends])
    pictures = [i for i, (low, high) in enumerate(ends) if 100 < high <= 255 and low < high]
    if pictures and len(pictures) < len(tops) and tops.max() > 1000:
        yield Finding(
            check="wrong-scale",
            severity="warning",
            where=", ".join(results.where(i) for i in pictures),
            what="8-bit values among bands of more bits: pictures, not measurements?",
            evidence={"highest": float(tops[pictures].max()), "other bands": float(tops.max())},
            remedy="open water can look so in the infrared; otherwise leave these bands out, or "
            "take them from the original product",
        )


def _chips_apart(results: Values) -> Iterator[Finding]:
    """Some chips on another scale than the rest."""
    if results.modality.unit != "reflectance" or len(results.chips) < 3:
        return
    tops = []
    for chip in results.chips:
        seen = chip.physical[np.isfinite(chip.physical)]
        tops.append(float(np.percentile(np.abs(seen), 95)) if seen.size else np.nan)
    high = np.array(tops)
    middle = float(np.nanmedian(high))
    odd = np.flatnonzero((high > 200 * middle) | ((high > 0) & (high * 500 < middle)))
    if len(odd):
        yield Finding(
            check="wrong-scale",
            severity="error",
            where=results.modality.name,
            what="chips on different scales",
            evidence={
                "chips": len(odd),
                "their 95 %": float(high[odd[0]]),
                "median chip": middle,
            },
            remedy="give these chips their own `scale: {default: …, chips: {…}}`",
            chips=tuple(results.chips[int(i)].key for i in odd[:8]),
        )
