"""How a modality is scaled: streaming, mergeable statistics in physical units that skip nodata.

One pass over the data gives, per modality and product level, each band's count, mean, variance,
minimum and maximum (continuous) or each class's count (categorical). Partial results of several
processes merge exactly (Chan, Golub & LeVeque 1979, pairwise update), to float64 rounding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ContractError, DataError
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sample import Pixels, Sample, Validity

Array = npt.NDArray[np.float64]


@dataclass
class Moments:
    """Running moments per band. ``m2`` is the sum of squared deviations from the mean."""

    count: Array
    mean: Array
    m2: Array
    minimum: Array
    maximum: Array

    @classmethod
    def empty(cls, channels: int) -> Moments:
        """Moments of nothing."""
        zero = np.zeros(channels)
        return cls(
            zero.copy(), zero.copy(), zero.copy(), np.full(channels, np.inf),
            np.full(channels, -np.inf),
        )  # fmt: skip

    @classmethod
    def of(cls, values: npt.NDArray[np.generic], valid: npt.NDArray[np.bool_] | None) -> Moments:
        """Moments of ``values`` (C, …) where ``valid`` (broadcastable to it) holds."""
        flat = values.reshape(len(values), -1).astype(np.float64)
        if valid is None:
            ok = np.ones(flat.shape, dtype=bool)
        else:
            ok = np.broadcast_to(valid, values.shape).reshape(flat.shape)
        count = ok.sum(axis=1).astype(np.float64)
        n = np.maximum(count, 1.0)
        # What overflows, or is not a number, shows in m2, and is refused with the chip's name.
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.where(ok, flat, 0.0).sum(axis=1) / n
            deviation = np.where(ok, flat - mean[:, None], 0.0)
            # The second term corrects the rounding of the mean (two-pass with compensation).
            m2 = (deviation**2).sum(axis=1) - deviation.sum(axis=1) ** 2 / n
        return cls(
            count,
            mean,
            m2,
            np.where(ok, flat, np.inf).min(axis=1, initial=np.inf),
            np.where(ok, flat, -np.inf).max(axis=1, initial=-np.inf),
        )

    def merge(self, other: Moments) -> Moments:
        """Moments of both populations together."""
        count = self.count + other.count
        n = np.maximum(count, 1.0)
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / n),
            self.m2 + other.m2 + delta**2 * (self.count * other.count / n),
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
        )

    @property
    def std(self) -> Array:
        """Population standard deviation."""
        return np.sqrt(np.maximum(self.m2, 0.0) / np.maximum(self.count, 1.0))


@dataclass
class Statistics:
    """Statistics of a modality set; build with ``Statistics(modalities)`` and ``update``.

    ``moments[name][level]`` for continuous modalities (``""`` where there are no levels),
    ``class_counts[name]`` (in legend order) for categorical ones.
    """

    modalities: ModalitySet
    moments: dict[str, dict[str, Moments]] = field(default_factory=dict)
    class_counts: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, modality in self.modalities.items():
            if modality.categorical:
                self.class_counts.setdefault(name, np.zeros(len(modality.classes)))
            else:
                levels = self.moments.setdefault(name, {})
                for level in modality.levels or ("",):
                    levels.setdefault(level, Moments.empty(modality.channels))

    def update(self, sample: Sample) -> None:
        """Add one sample's valid pixels; DataError where they are not finite, or beyond bounds."""
        for name in sample.pixels:
            if name not in self.modalities:
                continue
            modality = self.modalities[name]
            pixels, valid = _bands_first(sample, name)
            if modality.categorical:
                ids = pixels[0] if valid is None else pixels[0][valid[0]]
                self.class_counts[name] += count_classes(ids, modality)
                continue
            calibration = sample.calibration_of(modality)
            moments = Moments.of(pixels, valid)
            if not np.isfinite(moments.m2).all():
                least, most = moments.minimum.min(), moments.maximum.max()
                raise DataError(
                    f"{sample.key}: {name}: values from {least:g} to {most:g} have no mean and "
                    "variance; declare what is no measurement as nodata"
                )
            # The physical moments follow from the raw ones; converting pixels first would round.
            physical = Moments(
                moments.count,
                np.where(
                    moments.count > 0, moments.mean * calibration.scale + calibration.offset, 0.0
                ),
                moments.m2 * calibration.scale**2,
                *_ordered(moments, calibration.scale, calibration.offset),
            )
            level = (
                modality.levels[modality.level_index(calibration.level)] if modality.levels else ""
            )
            levels = self.moments[name]
            levels[level] = levels[level].merge(physical)

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of both populations; the modality sets must be equal."""
        if self.modalities.fingerprint != other.modalities.fingerprint:
            raise ContractError("statistics of different modality sets cannot be merged")
        merged = Statistics(self.modalities)
        for name, levels in self.moments.items():
            merged.moments[name] = {
                level: mine.merge(other.moments[name][level]) for level, mine in levels.items()
            }
        for name, counts in self.class_counts.items():
            merged.class_counts[name] = counts + other.class_counts[name]
        return merged

    def select(self, names: Iterable[str]) -> Statistics:
        """The statistics of some modalities, in the order given."""
        chosen = self.modalities.select(names)
        return Statistics(
            chosen,
            {n: self.moments[n] for n in chosen if n in self.moments},
            {n: self.class_counts[n] for n in chosen if n in self.class_counts},
        )

    def union(self, other: Statistics) -> Statistics:
        """Statistics over the union of two modality sets; shared modalities are merged."""
        both = self.modalities.union(other.modalities)
        return self._widened(both).merge(other._widened(both))

    def _widened(self, modalities: ModalitySet) -> Statistics:
        return Statistics(
            modalities,
            {n: dict(levels) for n, levels in self.moments.items()},
            {n: c.copy() for n, c in self.class_counts.items()},
        )

    def mean_std(self, name: str) -> tuple[Array, Array]:
        """Mean and standard deviation per product level and band, shaped (levels, C).

        A level without data takes the others' mean over the levels that have some; a constant
        band gets a standard deviation of 1, so that it normalises to 0 and never blows up.
        """
        modality = self.modalities[name]
        levels = [self.moments[name][level] for level in modality.levels or ("",)]
        pooled = levels[0]
        for more in levels[1:]:
            pooled = pooled.merge(more)
        if not (pooled.count > 0).all():
            empty = [b for b, c in zip(modality.band_names, pooled.count, strict=True) if c == 0]
            raise DataError(
                f"modality {name!r}: no valid pixel in band(s) {', '.join(empty)}; nothing to "
                "normalise with. Check its nodata value, or leave it out"
            )
        rows = [
            (np.where(m.count > 0, m.mean, pooled.mean), np.where(m.count > 0, m.std, pooled.std))
            for m in levels
        ]
        mean = np.stack([r[0] for r in rows])
        std = np.stack([r[1] for r in rows])
        _require_finite(f"modality {name!r}", mean, std)
        floor = 1e-6 * np.maximum(np.abs(mean), 1e-6)
        return mean, np.where(std > floor, std, 1.0)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 over all numbers."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; ``from_dict`` is its inverse, bit for bit.

        Raises DataError for statistics that are NaN or infinite.
        """
        self._require_finite()
        return {
            "continuous": {
                name: {level: _moments_to_dict(m) for level, m in levels.items()}
                for name, levels in self.moments.items()
            },
            "categorical": {name: c.tolist() for name, c in self.class_counts.items()},
        }

    @classmethod
    def from_dict(cls, modalities: ModalitySet, record: Mapping[str, Any]) -> Statistics:
        """Rebuild statistics written by ``to_dict``; DataError where they are not finite."""
        statistics = cls(
            modalities,
            {
                name: {level: _moments_from_dict(m) for level, m in levels.items()}
                for name, levels in record["continuous"].items()
            },
            {name: np.asarray(c, np.float64) for name, c in record["categorical"].items()},
        )
        statistics._require_finite()
        return statistics

    def _require_finite(self) -> None:
        for name, levels in self.moments.items():
            for level, m in levels.items():
                where = f"statistics of {name}{f' ({level})' if level else ''}"
                _require_finite(where, m.count, m.mean, m.m2)
                # Without a pixel they are ±inf; with one they are numbers.
                _require_finite(where, m.minimum[m.count > 0], m.maximum[m.count > 0])
        for name, counts in self.class_counts.items():
            _require_finite(f"class counts of {name}", counts)


def _bands_first(sample: Sample, name: str) -> tuple[Pixels, Validity | None]:
    """Pixels and validity of a modality with the bands first: (C, H, W), or (C, T, H, W)."""
    pixels, valid = sample.pixels[name], sample.valid.get(name)
    if name in sample.dates:
        pixels, valid = pixels.swapaxes(0, 1), None if valid is None else valid.swapaxes(0, 1)
    return pixels, valid


def _require_finite(where: str, *numbers: Array) -> None:
    """DataError for numbers that are NaN or infinite."""
    if not all(np.isfinite(n).all() for n in numbers):
        raise DataError(
            f"{where}: holds numbers that are NaN or infinite; declare what is no measurement as "
            "nodata, then compute them again"
        )


def count_classes(ids: npt.NDArray[np.generic], modality: Modality) -> Array:
    """Pixels per class, in the order of the class map."""
    table, counts = np.unique(ids, return_counts=True)
    count_of = dict(zip(table.tolist(), counts.tolist(), strict=True))
    return np.array([count_of.get(i, 0) for i in modality.class_ids], dtype=np.float64)


def moments_from(mean: Iterable[float], std: Iterable[float], count: float = 1.0) -> Moments:
    """Moments from published means and standard deviations, with an assumed count."""
    mean_, std_ = np.asarray(list(mean), np.float64), np.asarray(list(std), np.float64)
    n = np.full(mean_.shape, float(count))
    return Moments(n, mean_, std_**2 * n, mean_.copy(), mean_.copy())


def _ordered(moments: Moments, scale: float, offset: float) -> tuple[Array, Array]:
    low, high = moments.minimum * scale + offset, moments.maximum * scale + offset
    return (low, high) if scale > 0 else (high, low)


def _moments_to_dict(m: Moments) -> dict[str, list[float | None]]:
    return {
        key: [float(v) if np.isfinite(v) else None for v in getattr(m, key)]
        for key in ("count", "mean", "m2", "minimum", "maximum")
    }


def _moments_from_dict(record: Mapping[str, list[float | None]]) -> Moments:
    blank = {"minimum": np.inf, "maximum": -np.inf}
    return Moments(
        *(
            np.array([blank.get(key, 0.0) if v is None else v for v in record[key]], np.float64)
            for key in ("count", "mean", "m2", "minimum", "maximum")
        )
    )
