"""Checks a model's inputs before it predicts: scale, offset, level, band order and pixel size.

The first windows (or a few chips) are compared with the model's own statistics and contract. What
looks wrong becomes one warning with the evidence and the remedy.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from multimae_eo.catalog import SENSORS
from multimae_eo.errors import InputWarning
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.plausible import (
    BLUE_UM,
    DARK,
    DECIBEL_NEGATIVE,
    LIFTED,
    NEVER_NEGATIVE,
    RED_UM,
    SCALE_FACTORS,
    TO_DECIBEL,
    UNDO_OFFSET,
    Array,
    is_cirrus,
    level_seen,
    looks_lifted,
    negative_share,
    outside_message,
    share_outside,
)
from multimae_eo.sample import Sample
from multimae_eo.sources.base import Indices, Source
from multimae_eo.statistics import Statistics

CHIPS = 12
"""Chips that are checked."""
_SIDE = 48
"""Pixels a side that are checked in each."""
_FACTOR_HIGH, _FACTOR_LOW = 0.8, 1.3
"""Decimal logarithms by which mean and deviation must both be off to be another scale."""
_SHIFT = (0.03, 0.2)
_SLACK = 0.015
"""Distance of the darkest pixels below the doctor's limit: the model's means count, too."""
_ORDER_COST, _ORDER_RATIO, _ORDER_MISFIT = 0.1, 0.35, 0.1
"""On the real data of the tests bands in their order cost up to 0.13, and a reversal of three gives
a gain of 0.15 or better."""
_SIZES_FINER, _SIZES_COARSER, _SIZES_MIXED = 4.0, 2.5, 1.6


@dataclass
class _Input:
    """Pixels of one continuous input in physical units: (C, N), NaN where invalid."""

    modality: Modality
    level: str = ""
    scale: float = 1.0
    parts: list[Array] = field(default_factory=list)
    pixel_m: list[float] = field(default_factory=list)

    @property
    def values(self) -> Array:
        return np.concatenate(self.parts, axis=1)


def check_source(
    modalities: ModalitySet,
    statistics: Statistics | None,
    source: Source,
    indices: Indices | Sequence[int],
    *,
    inputs: Sequence[str],
) -> str:
    """Look at a few chips of a source; see ``check_samples``."""
    count = min(CHIPS, len(indices))
    chosen = [int(indices[i]) for i in np.linspace(0, len(indices) - 1, count).astype(int)]
    names = [n for n in inputs if n in modalities and not modalities[n].categorical]
    samples = (source.read(i, names) for i in chosen) if names else ()
    return check_samples(modalities, statistics, samples, where=source.name)


def check_samples(
    modalities: ModalitySet,
    statistics: Statistics | None,
    samples: Iterable[Sample],
    *,
    where: str,
) -> str:
    """Compare samples with a model's modalities and statistics; returns the warning, or "".

    One InputWarning names every mismatch with its evidence and remedy. It is raised where Python's
    filters make such warnings errors.
    """
    if statistics is None:
        return ""
    mismatches = list(input_mismatches(modalities, statistics, samples))
    if not mismatches:
        return ""
    message = f"{where}: {'; '.join(mismatches)}"
    warnings.warn(message, InputWarning, stacklevel=2)
    return message


def input_mismatches(
    modalities: ModalitySet, statistics: Statistics, samples: Iterable[Sample]
) -> Iterator[str]:
    """What looks unlike the model's inputs, a sentence each, with evidence and remedy."""
    inputs = _gather(modalities, samples)
    sizes = [text for one in inputs.values() for text in _pixel_size(one)]
    yield from sizes[:1]
    scales = [text for one in inputs.values() for text in _scale(one, statistics)]
    scales = scales or list(_too_dark(inputs.values(), statistics))
    if scales:
        yield scales[0]  # on another scale nothing else can be seen
        return
    sensors: dict[tuple[str, str], list[_Input]] = {}
    for one in inputs.values():
        if one.modality.unit == "reflectance":
            sensors.setdefault((one.modality.sensor, one.level), []).append(one)
    for members in sensors.values():
        lifted = list(_offset(members, statistics))
        yield from lifted
        if not lifted:
            yield from _level(members, statistics)
            yield from _order(members, statistics)


def _gather(modalities: ModalitySet, samples: Iterable[Sample]) -> dict[str, _Input]:
    inputs: dict[str, _Input] = {}
    for sample in (s.clearest() for s in samples):
        for name, pixels in sample.pixels.items():
            if name not in modalities or modalities[name].categorical:
                continue
            calibration = sample.calibration_of(modalities[name])
            one = inputs.setdefault(
                name, _Input(modalities[name], calibration.level, calibration.scale)
            )
            if calibration.level != one.level:
                continue
            step = tuple(max(1, side // _SIDE) for side in pixels.shape[-2:])
            thin = (slice(None), slice(None, None, step[0]), slice(None, None, step[1]))
            values = pixels[thin].astype(np.float64) * calibration.scale + calibration.offset
            if name in sample.valid:
                values[~np.broadcast_to(sample.valid[name], pixels.shape)[thin]] = np.nan
            one.parts.append(values.reshape(len(values), -1))
            if sample.geometry is not None:
                one.pixel_m.append(sample.geometry.pixel_m(pixels.shape[-2]))
    return {n: i for n, i in inputs.items() if np.isfinite(i.values).any(axis=1).all()}


# Each way to be wrong -------------------------------------------------------------------------


def _pixel_size(one: _Input) -> Iterator[str]:
    """Pixels much coarser, or much finer, than the model's."""
    gsd, sizes = one.modality.gsd_m, [s for s in one.pixel_m if s > 0]
    if not gsd or not sizes:
        return
    sensor = SENSORS.get(one.modality.sensor)
    finest = min((b.gsd_m for b in sensor.bands if b.gsd_m), default=gsd) if sensor else gsd
    # Coarse bands are commonly resampled to the sensor's finest grid.
    coarsest = gsd * (_SIZES_MIXED if gsd > finest else _SIZES_COARSER)
    size = float(np.median(sizes))
    if min(finest, gsd) / _SIZES_FINER <= size <= coarsest:
        return
    yield (
        f"{one.modality.name}: pixels of {size:.3g} m, the model has learnt from {gsd:g} m; "
        "resample the data to the model's pixel size"
    )


def _moments(one: _Input, statistics: Statistics) -> tuple[Array, Array]:
    """The model's mean and deviation (C,) at the level of the data."""
    mean, std = statistics.mean_std(one.modality.name)
    row = one.modality.level_index(one.level) if one.modality.levels else 0
    return mean[row], std[row]


def _scale(one: _Input, statistics: Statistics) -> Iterator[str]:
    """Numbers on another scale than the model's: all its bands, mean and deviation alike."""
    modality = one.modality
    values = one.values
    finite = values[np.isfinite(values)]
    mean, std = _moments(one, statistics)
    ours = f"the model's mean is {float(np.median(mean)):.3g} {modality.unit}".strip()
    if modality.unit == "dB":
        if negative_share(finite) <= DECIBEL_NEGATIVE and float(np.median(mean)) < 0:
            yield f"{modality.name}: {NEVER_NEGATIVE} ({ours}); {TO_DECIBEL}"
        return
    spans = [b.physical_range for b in modality.bands if b.physical_range is not None]
    span = (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else None
    outside = share_outside(finite, span) if span else 0.0
    high = _factor(values, mean, std)
    limit = _FACTOR_HIGH if outside > 0.005 else _FACTOR_LOW
    if high < limit and outside <= 0.2:
        return
    what = outside_message(modality, span) if span and outside > 0.005 else "on another scale"
    yield (
        f"{modality.name}: {what}: their mean is {float(np.median(finite)):.4g}, {ours}; "
        f"{_scale_remedy(one, values, mean, std)}"
    )


def _factor(values: Array, mean: Array, std: Array) -> float:
    """The decimal logarithm by which means and deviations are both above the model's."""
    with np.errstate(divide="ignore"):
        means = np.log10(np.abs(np.nanmean(values, axis=1)) / np.maximum(np.abs(mean), 1e-30))
        deviations = np.log10(np.nanstd(values, axis=1) / np.maximum(std, 1e-30))
    return float(min(np.median(means), np.median(deviations)))


def _scale_remedy(one: _Input, values: Array, mean: Array, std: Array) -> str:
    """The scale under which means and deviations come nearest to the model's."""
    with np.errstate(divide="ignore"):
        off = np.log10(np.abs(np.nanmean(values, axis=1)) / np.maximum(np.abs(mean), 1e-30))
    excess = float(np.median(off[np.isfinite(off)])) if np.isfinite(off).any() else 0.0
    best = min((*SCALE_FACTORS, 1e3, 1e4), key=lambda f: abs(excess + np.log10(f)))
    if best == 1.0:
        return "check the unit and the nodata value"
    return f"declare `scale: {one.scale * best:.4g}` (it is {one.scale:g} now)"


def _too_dark(inputs: Iterable[_Input], statistics: Statistics) -> Iterator[str]:
    """Reflectances that are black in every band of a sensor, and were not in training."""
    members = [i for i in inputs if i.modality.unit == "reflectance"]
    if not members:
        return
    tops, lows = [], []
    for one in members:
        mean, std = _moments(one, statistics)
        seen = [b for b, band in enumerate(one.modality.bands) if not is_cirrus(band.wavelength_um)]
        values = one.values[seen]
        tops.append(float(np.nanpercentile(values, 99)))
        lows += list(np.log10(np.maximum(np.abs(np.nanmean(values, axis=1)), 1e-30) / mean[seen]))
    if max(tops) < DARK and float(np.median(lows)) < -_FACTOR_LOW:
        first = members[0]
        mean, std = _moments(first, statistics)
        yield (
            f"{', '.join(m.modality.name for m in members)}: reflectance is almost zero in every "
            f"band (99 %: {max(tops):.3g}), the model's mean is {float(np.median(mean)):.3g}; "
            + _scale_remedy(first, first.values, mean, std)
        )


def _darkest(members: Sequence[_Input]) -> dict[tuple[str, int], tuple[float | None, float]]:
    """Wavelength and 1st percentile of each band of a sensor, by modality and band index."""
    return {
        (one.modality.name, b): (band.wavelength_um, float(np.nanpercentile(one.values[b], 1)))
        for one in members
        for b, band in enumerate(one.modality.bands)
    }


def _least(lows: Iterable[tuple[float | None, float]], span: tuple[float, float]) -> float:
    return min((v for w, v in lows if w is not None and span[0] <= w <= span[1]), default=np.nan)


def _names(members: Sequence[_Input]) -> str:
    return ", ".join(m.modality.name for m in members)


def _offset(members: Sequence[_Input], statistics: Statistics) -> Iterator[str]:
    """All bands 0.1 brighter than the model's, without a dark pixel; or the other way round."""
    lows = _darkest(members)
    ground = [v for w, v in lows.values() if not is_cirrus(w)]
    shifts, least = [], []
    for one in members:
        level = one.level if one.modality.levels else ""
        mean, _ = _moments(one, statistics)
        minimum = statistics.moments[one.modality.name][level].minimum
        for b, band in enumerate(one.modality.bands):
            if not is_cirrus(band.wavelength_um):
                shifts.append(float(np.nanmean(one.values[b]) - mean[b]))
                least.append(float(minimum[b]) if minimum[b] < mean[b] else np.nan)
    if not shifts:
        return
    blue = _least(lows.values(), BLUE_UM)
    cirrus = min((v for w, v in lows.values() if is_cirrus(w)), default=np.nan)
    lifted = looks_lifted(
        lowest=min(ground) + _SLACK,
        blue=blue,
        cirrus=cirrus,
        level=members[0].level,
    )
    evenly = _SHIFT[0] < float(np.median(shifts)) < _SHIFT[1]
    if lifted and evenly and not min(least) > 0.09:
        yield (
            f"{_names(members)}: {LIFTED} (darkest {min(ground):.3g}; bands are "
            f"{float(np.median(shifts)):+.2f} from the model's means); {UNDO_OFFSET}"
        )
    elif min(least) > 0.09 and max(ground) < 0.09:
        yield (
            f"{_names(members)}: darker than anything the model has learnt from (darkest "
            f"{min(ground):.3g}, the model's {min(least):.3g}): was it trained on data with the "
            "+1000 offset? declare the same `offset:`"
        )


def _level(members: Sequence[_Input], statistics: Statistics) -> Iterator[str]:
    """Data of another processing level than declared, or than the model has learnt from."""
    first = members[0]
    if not first.modality.levels:
        return
    counts = {
        level: float(m.count.sum()) for level, m in statistics.moments[first.modality.name].items()
    }
    if not counts.get(first.level) and any(counts.values()):
        learnt = ", ".join(level for level, n in counts.items() if n)
        yield (
            f"{_names(members)}: level {first.level}, the model has learnt from {learnt} only; "
            f"take data of that level"
        )
        return
    lows = list(_darkest(members).values())
    blue, red = _least(lows, BLUE_UM), _least(lows, RED_UM)
    seen = level_seen(blue=blue, red=red)
    if seen and seen != first.level:
        yield (
            f"{_names(members)}: declared {first.level}, but the data look like {seen} (darkest "
            f"blue {blue:.3g}, red {red:.3g}); declare `level: {seen}`, or take data of the "
            "model's level"
        )


def _order(members: Sequence[_Input], statistics: Statistics) -> Iterator[str]:
    """Bands whose means and deviations fit the model's in another order."""
    for one in members:
        order = best_order(one.values, *_moments(one, statistics))
        if order is None:
            continue
        names = one.modality.band_names
        moved = [f"{names[b]} looks like {names[k]}" for k, b in enumerate(order) if b != k]
        yield (
            f"{one.modality.name}: the bands look shuffled: {', '.join(moved[:4])}; check their "
            "order and declare it (`file_bands:` or `channels:`)"
        )


def best_order(values: Array, mean: Array, std: Array) -> list[int] | None:
    """The order of bands that fits the model's statistics far better, None for as it is."""
    before, after, order = order_costs(values, mean, std)
    if before < _ORDER_COST or after > min(_ORDER_RATIO * before, _ORDER_MISFIT):
        return None
    return order


def order_costs(values: Array, mean: Array, std: Array) -> tuple[float, float, list[int]]:
    """Misfit per band of the order as it is and of the best one, and that one."""
    ours = np.log(np.stack([np.maximum(mean, 1e-6), np.maximum(std, 1e-6)]))
    theirs = np.log(np.maximum(np.stack([np.nanmean(values, 1), np.nanstd(values, 1)]), 1e-6))
    ours -= ours.mean(axis=1, keepdims=True)
    theirs -= theirs.mean(axis=1, keepdims=True)
    cost = ((ours[:, :, None] - theirs[:, None, :]) ** 2).sum(axis=0)
    order = _assignment(cost)
    count = len(mean)
    return float(np.trace(cost)) / count, float(cost[range(count), order].sum()) / count, order


def _assignment(cost: Array) -> list[int]:
    """The column of each row at the least total cost: pairs are swapped while that helps."""
    order = list(range(len(cost)))
    better = True
    while better:
        better = False
        for i in range(len(order)):
            for j in range(i + 1, len(order)):
                now = cost[i, order[i]] + cost[j, order[j]]
                if cost[i, order[j]] + cost[j, order[i]] < now - 1e-12:
                    order[i], order[j] = order[j], order[i]
                    better = True
    return order
