"""Scores of predicted dates beside interpolation in time, and intervals of calibrated width.

Everything streams over batches in constant memory, by band. The intervals are split conformal
(Papadopoulos et al. 2002; Lei et al. 2018): their width is the model's predictive std, scaled so
that intervals of the calibration chips hold 90 % of the truths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import DataError
from multimae_eo.modality import Modality
from multimae_eo.statistics import Moments

Array = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

CONFIDENCE = 0.9
"""Share of truths that intervals shall hold."""
_NORMAL = 1.6448536269514722
"""Half an interval of 90 % of a normal distribution, in standard deviations."""
_FLOORS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 2.0)
"""Tried least predictive stds, in standard deviations of the training data."""
_RATIOS = np.logspace(-4, 4, 4001)
"""Edges of the histogram of errors in units of the predictive std: 0.5 % apart."""
METHODS = ("model", "linear", "nearest")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Pixels of dates that a model was not shown, all (C, N), in physical units.

    ``valid``: bool, what is scored. ``between``: bool, those with a valid date on both sides; the
    others lie beyond the first or the last valid date. ``std``: predictive std of the model.
    """

    truth: Array
    valid: Bool
    between: Bool
    mean: Array
    std: Array
    linear: Array
    nearest: Array


@dataclass(frozen=True, kw_only=True)
class IntervalScale:
    """Half the width of a 90 % interval: ``factor`` · √(std² + ``floor``²); both (C,)."""

    factor: Array
    floor: Array

    @classmethod
    def normal(cls, channels: int) -> IntervalScale:
        """Without calibration: that of a normal distribution with the predictive std."""
        return cls(factor=np.full(channels, _NORMAL), floor=np.zeros(channels))

    def half_width(self, std: Array) -> Array:
        """Half widths of (C, …) predictive stds."""
        shape = (-1, *[1] * (std.ndim - 1))
        return np.asarray(
            self.factor.reshape(shape) * np.sqrt(std**2 + self.floor.reshape(shape) ** 2)
        )

    def to_dict(self, modality: Modality) -> dict[str, dict[str, float]]:
        """``factor`` and ``floor`` (in the modality's unit) by band."""
        rows = zip(modality.band_names, self.factor, self.floor, strict=True)
        return {band: {"factor": float(a), "floor": float(b)} for band, a, b in rows}


class IntervalCalibration:
    """Finds the scale whose intervals hold 90 % of the truths that were added.

    Of several floors it takes the one with the narrowest intervals, by band. ``band_std``: standard
    deviation (C,) of the training data, in physical units.
    """

    def __init__(self, modality: Modality, band_std: Array) -> None:
        self.modality = modality
        self._floors = np.array(_FLOORS)[:, None] * band_std
        self._counts = np.zeros((*self._floors.shape, len(_RATIOS) + 1), dtype=np.int64)
        self._totals = np.zeros(self._floors.shape)

    def update(self, held: HeldOut) -> None:
        """Add the pixels of a batch."""
        for band in range(len(held.truth)):
            ok = held.valid[band]
            error = np.abs(held.truth[band] - held.mean[band])[ok]
            for row, floors in enumerate(self._floors):
                std = np.sqrt(held.std[band][ok] ** 2 + floors[band] ** 2)
                # An error without any std is beyond every width.
                ratio = np.where(
                    std > 0, error / np.maximum(std, 1e-300), np.where(error > 0, np.inf, 0.0)
                )
                edge = np.searchsorted(_RATIOS, ratio)
                self._counts[row, band] += np.bincount(edge, minlength=len(_RATIOS) + 1)
                self._totals[row, band] += std.sum()

    def scale(self, where: str) -> IntervalScale:
        """The scale; DataError, with ``where`` the chips are from, for a band without a pixel."""
        total = self._counts.sum(axis=2)
        if not total.all():
            raise DataError(
                f"{where}: no valid pixel of {self.modality.name} to calibrate intervals with; "
                "name a split whose chips have several clear dates"
            )
        rank = np.ceil((total + 1) * CONFIDENCE)
        reached = self._counts.cumsum(axis=2) >= np.minimum(rank, total)[:, :, None]
        edge = reached.argmax(axis=2)
        factor = _RATIOS[np.minimum(edge, len(_RATIOS) - 1)]
        width = np.where(edge < len(_RATIOS), factor * self._totals / total, np.inf)
        best = width.argmin(axis=0)
        bands = np.arange(len(best))
        return IntervalScale(factor=factor[best, bands], floor=self._floors[best, bands])


class DateScores:
    """Streaming scores of one modality: errors of the model, linear interpolation in time and the
    nearest date on the same pixels; coverage and width of 90 % intervals.

    ``scale``: of calibrated intervals; None where nothing was calibrated.
    """

    def __init__(self, modality: Modality, scale: IntervalScale | None) -> None:
        self.modality = modality
        scales = {"uncalibrated": IntervalScale.normal(modality.channels), "calibrated": scale}
        self._scales = {n: s for n, s in scales.items() if s is not None}
        self._groups = {
            g: _GroupSums(modality.channels, self._scales) for g in ("between", "beyond")
        }

    @property
    def pixels(self) -> int:
        """Scored pixels."""
        return sum(int(g.observed.count.max()) for g in self._groups.values())

    def update(self, held: HeldOut) -> None:
        """Add the pixels of a batch."""
        for group, ok in (("between", held.between), ("beyond", ~held.between)):
            self._groups[group].update(held, held.valid & ok, self._scales)

    def compute(self) -> dict[str, Any]:
        """Scores of the dates ``between`` valid ones, and ``beyond`` the first or the last; each
        that has any pixel: ``pixels``, ``unit``; ``rmse``, ``mae`` and ``r2`` of ``model``,
        ``linear`` and ``nearest``; ``intervals``; ``bands``. JSON-ready.
        """
        return {
            name: sums.result(self.modality)
            for name, sums in self._groups.items()
            if sums.observed.count.any()
        }


class _GroupSums:
    def __init__(self, channels: int, scales: Mapping[str, IntervalScale]) -> None:
        self.observed = Moments.empty(channels)
        self.squared = {m: np.zeros(channels) for m in METHODS}
        self.absolute = {m: np.zeros(channels) for m in METHODS}
        self.held = {s: np.zeros(channels) for s in scales}
        self.width = {s: np.zeros(channels) for s in scales}

    def update(self, held: HeldOut, ok: Bool, scales: Mapping[str, IntervalScale]) -> None:
        self.observed = self.observed.merge(Moments.of(held.truth, ok))
        values = {"model": held.mean, "linear": held.linear, "nearest": held.nearest}
        for method, predicted in values.items():
            error = np.where(ok, predicted - held.truth, 0.0)
            self.squared[method] += (error**2).sum(axis=1)
            self.absolute[method] += np.abs(error).sum(axis=1)
        for name, scale in scales.items():
            half = scale.half_width(held.std)
            inside = np.abs(held.truth - held.mean) <= half
            self.held[name] += (inside & ok).sum(axis=1)
            self.width[name] += np.where(ok, 2 * half, 0.0).sum(axis=1)

    def result(self, modality: Modality) -> dict[str, Any]:
        pooled = slice(None)
        return {
            "pixels": int(self.observed.count.max()),
            "unit": modality.unit,
            **self._part(pooled),
            "bands": {
                band: self._part(slice(i, i + 1))
                for i, band in enumerate(modality.band_names)
                if self.observed.count[i]
            },
        }

    def _part(self, bands: slice) -> dict[str, Any]:
        count, total = self.observed.count[bands], self.observed.m2[bands]
        n = count.sum()
        part: dict[str, Any] = {}
        for method in METHODS:
            sse = self.squared[method][bands]
            varied = total > 0
            part[method] = {
                "rmse": float(np.sqrt(sse.sum() / n)),
                "mae": float(self.absolute[method][bands].sum() / n),
                # The mean over bands, as of other reconstructions.
                "r2": float(np.mean(1 - sse[varied] / total[varied])) if varied.any() else None,
            }
        part["intervals"] = {
            name: {
                "coverage": float(self.held[name][bands].sum() / n),
                "width": float(self.width[name][bands].sum() / n),
            }
            for name in self.held
        }
        return part
