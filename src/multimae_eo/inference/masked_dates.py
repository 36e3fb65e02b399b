"""Dates of a chip that a model is not shown: cloudy ones, those asked for, or each in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError
from multimae_eo.sample import Sample
from multimae_eo.sources.acquisition_dates import days_since_1970

Bool = npt.NDArray[np.bool_]

EACH, CLOUDY = "each", "cloudy"


@dataclass(frozen=True, kw_only=True)
class MaskedDates:
    """A chip with dates of one series to predict.

    ``truth``: the chip, in which dates that were never acquired are invalid. ``masked``: bool (T,).
    """

    truth: Sample
    name: str
    masked: Bool

    @property
    def given(self) -> Sample:
        """The chip as a model is shown it: masked dates are invalid."""
        valid = self.truth.validity(self.name).copy()
        valid[self.masked] = False
        return replace(self.truth, valid={**self.truth.valid, self.name: valid})


@dataclass(frozen=True, kw_only=True)
class DateRule:
    """Which dates of a series are masked from the model.

    ``days``: these (since 1970), acquired or not. Without any, ``cloudy``: all dates of which a
    smaller share than ``clear`` is valid; else every run of ``gap`` consecutive dates in turn.
    """

    days: tuple[float, ...] = ()
    cloudy: bool = False
    gap: int = 1
    clear: float = 0.5

    @classmethod
    def parse(cls, dates: str | Sequence[str], *, gap: int = 1, clear: float = 0.5) -> DateRule:
        """``each``, ``cloudy``, or ISO dates, a list or separated by commas; ConfigError."""
        if gap < 1:
            raise ConfigError(f"gap: must be ≥ 1, got {gap}")
        if not 0 < clear <= 1:
            raise ConfigError(f"clear: a share of valid pixels in (0, 1], got {clear}")
        words = [w.strip() for w in dates.split(",")] if isinstance(dates, str) else list(dates)
        if words in ([EACH], [CLOUDY]):
            return cls(cloudy=words == [CLOUDY], gap=gap, clear=clear)
        try:
            days = sorted({float(int(days_since_1970(word))) for word in words})
        except ValueError as error:
            raise ConfigError(
                f"dates: {error}; give ISO dates with commas, {EACH} or {CLOUDY}"
            ) from None
        if not days:
            raise ConfigError(f"dates: name at least one, or {EACH} or {CLOUDY}")
        return cls(days=tuple(days), gap=gap, clear=clear)

    def each(self) -> DateRule:
        """The rule that hides every run of as many dates in turn: what is known can be scored."""
        return DateRule(gap=self.gap)

    def masked(self, sample: Sample, name: str) -> Iterator[MaskedDates]:
        """What to predict of a chip's series; nothing where no other date has a valid pixel."""
        if self.days:
            sample = _with_dates(sample, name, self.days)
            masks = [np.isin(np.floor(sample.dates[name]), self.days)]
        elif self.cloudy:
            masks = [sample.validity(name).mean(axis=(1, 2, 3)) < self.clear]
        else:
            steps = np.arange(len(sample.dates[name]))
            starts = steps[: len(steps) - self.gap + 1]
            masks = [(steps >= start) & (steps < start + self.gap) for start in starts]
        seen = sample.validity(name).any(axis=(1, 2, 3))
        for mask in masks:
            useful = self.days or self.cloudy or (seen & mask).any()
            if mask.any() and useful and (seen & ~mask).any():
                yield MaskedDates(truth=sample, name=name, masked=mask)


def _with_dates(sample: Sample, name: str, days: Sequence[float]) -> Sample:
    """The chip with invalid pixels at those ``days`` that its series has no date on."""
    new = np.array([d for d in days if d not in np.floor(sample.dates[name])])
    if not len(new):
        return sample
    pixels, dates = sample.pixels[name], np.concatenate([sample.dates[name], new])
    order = dates.argsort(kind="stable")
    blank = np.zeros_like(pixels, shape=(len(new), *pixels.shape[1:]))
    valid = np.concatenate([sample.validity(name), np.zeros(blank.shape, dtype=bool)])
    return replace(
        sample,
        pixels={**sample.pixels, name: np.concatenate([pixels, blank])[order]},
        valid={**sample.valid, name: valid[order]},
        dates={**sample.dates, name: dates[order]},
    )
