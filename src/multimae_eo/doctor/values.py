"""Values of every modality: a sample of pixels of each chip, and each band's extremes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from multimae_eo.doctor.finding import BandSummary
from multimae_eo.doctor.scan import Array, Bool, Chip
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sample import Calibration, Pixels

_PIXELS = 600_000
"""Pixels kept per modality, over all chips."""
_BINS = 40


@dataclass(frozen=True, kw_only=True)
class ChipValues:
    """One modality of one chip. C bands.

    ``raw``: (C, k) pixels, NaN where nodata. ``low``, ``high``: (C,) extremes of all valid pixels,
    NaN where there are none. ``invalid``: share of nodata. ``uniform``: values that all bands of a
    pixel share, with their number of pixels.
    """

    key: str
    split: str
    raw: Array
    calibration: Calibration
    low: Array
    high: Array
    invalid: float
    uniform: Mapping[float, int]
    pixels: int

    @property
    def physical(self) -> Array:
        """The sampled pixels in physical units, (C, k)."""
        return np.asarray(self.raw * self.calibration.scale + self.calibration.offset)

    @property
    def constant(self) -> Bool:
        """Bands (C,) that have one value in the whole chip."""
        return np.asarray(self.low == self.high)


@dataclass
class Values:
    """One continuous modality over the examined chips."""

    modality: Modality
    chips: list[ChipValues] = field(default_factory=list)
    dtypes: Counter[str] = field(default_factory=Counter)
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)

    @cached_property
    def raw(self) -> Array:
        """All sampled pixels as stored, (C, N); NaN where nodata."""
        return np.concatenate([c.raw for c in self.chips], axis=1)

    @cached_property
    def physical(self) -> Array:
        """All sampled pixels in physical units, (C, N)."""
        return np.concatenate([c.physical for c in self.chips], axis=1)

    def seen(self, band: int) -> Array:
        """A band's valid sampled pixels in physical units."""
        row = self.physical[band]
        return np.asarray(row[np.isfinite(row)])

    def seen_raw(self, band: int) -> Array:
        """A band's valid sampled pixels as stored."""
        row = self.raw[band]
        return np.asarray(row[np.isfinite(row)])

    def where(self, band: int) -> str:
        """``modality/band``."""
        return f"{self.modality.name}/{self.modality.bands[band].name}"

    def summaries(self) -> list[BandSummary]:
        """A line per band for the report."""
        results = []
        for index, band in enumerate(self.modality.bands):
            seen = self.seen(index)
            five = np.percentile(seen, [1, 50, 99, 0.5, 99.5]) if seen.size else np.full(5, np.nan)
            counts, edges = _histogram(seen, float(five[3]), float(five[4]))
            results.append(
                BandSummary(
                    modality=self.modality.name,
                    band=band.name,
                    unit=self.modality.unit,
                    percentiles=(float(five[0]), float(five[1]), float(five[2])),
                    nodata=float(np.isnan(self.raw[index]).mean()),
                    edges=edges,
                    counts=counts,
                )
            )
        return results


class ValueScan:
    """Collects ``Values`` of every continuous modality that some chip has."""

    def __init__(self, modalities: ModalitySet, chips: int) -> None:
        self._modalities = modalities
        self._per_chip = int(np.clip(_PIXELS // max(chips, 1), 128, 4096))
        self.results: dict[str, Values] = {}

    def add(self, chip: Chip) -> None:
        """Take in one chip."""
        for name, pixels in chip.sample.pixels.items():
            modality = self._modalities[name]
            if modality.categorical:
                continue
            values = self.results.setdefault(name, Values(modality))
            values.dtypes[str(pixels.dtype)] += 1
            values.shapes[(pixels.shape[-2], pixels.shape[-1])] += 1
            values.chips.append(self._of(chip, modality, pixels))

    def _of(self, chip: Chip, modality: Modality, pixels: Pixels) -> ChipValues:
        flat = pixels.reshape(len(pixels), -1)
        ok = chip.sample.validity(modality.name).reshape(flat.shape)
        all_valid = bool(ok.all())
        size = flat.shape[1]
        rng = np.random.default_rng(chip.index)
        at = rng.integers(0, size, self._per_chip) if size > self._per_chip else np.arange(size)
        raw = flat[:, at].astype(np.float64)
        if all_valid:
            low, high = flat.min(axis=1).astype(np.float64), flat.max(axis=1).astype(np.float64)
        else:
            raw[~ok[:, at]] = np.nan
            low = np.where(ok, flat, np.inf).min(axis=1)
            high = np.where(ok, flat, -np.inf).max(axis=1)
            low, high = (np.where(np.isfinite(v), v, np.nan) for v in (low, high))
        return ChipValues(
            key=chip.key,
            split=chip.split,
            raw=raw,
            calibration=chip.sample.calibration_of(modality),
            low=low,
            high=high,
            invalid=0.0 if all_valid else float(1.0 - ok.mean()),
            uniform=_uniform(flat, ok, all_valid),
            pixels=size,
        )


def _histogram(seen: Array, low: float, high: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    if not seen.size:
        return (), ()
    margin = 1e-9 * max(abs(low), abs(high), 1e-9)
    counts, edges = np.histogram(seen, _BINS, range=(low - margin, high + margin))
    return tuple(counts.tolist()), tuple(edges.tolist())


def _uniform(flat: Pixels, ok: Bool, all_valid: bool) -> dict[float, int]:
    """Values that three or more bands have at once, all of them, in one pixel."""
    if len(flat) < 3:
        return {}
    same = (flat[1:] == flat[0]).all(axis=0)
    if not all_valid:
        same &= ok.all(axis=0)
    if not same.any():
        return {}
    values, counts = np.unique(flat[0][same], return_counts=True)
    return {float(v): int(n) for v, n in zip(values, counts, strict=True)}
