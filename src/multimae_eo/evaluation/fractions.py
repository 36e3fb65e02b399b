"""Label fractions of a training split: nested, stratified, and the same for the same seed.

One order of the chips is drawn per seed; a fraction is its beginning. So 5 % ⊂ 10 % ⊂ 25 %, and a
curve over fractions compares more labels, not other labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, DataError

Indices = npt.NDArray[np.int64]
_QUANTILES = 10


@dataclass(frozen=True, kw_only=True)
class Strata:
    """What chips are stratified by.

    ``stratum``: int64 (N,). ``presence``: bool (N, C), the classes that each chip shows; C is 0
    where there are none (regression).
    """

    stratum: Indices
    presence: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, labels: Iterable[npt.ArrayLike], classes: int) -> Strata:
        """Strata of chips' labels, by their kind.

        A class index: itself. A multi-hot vector (C,): the rarest class that the chip has. A map
        (H, W) of class indices, -1 ignored: the class with most pixels. A number: its decile; a
        map of numbers: that of their mean.
        Raises DataError for labels of several kinds or beyond ``classes``.
        """
        values = [np.asarray(label) for label in labels]
        if not values:
            raise DataError("no labels to stratify")
        kinds = {(v.ndim, v.dtype.kind == "f") for v in values}
        if len(kinds) > 1:
            raise DataError("labels are of several kinds; expected one class, vector, map or value")
        (dimensions, is_float), *_ = kinds
        if is_float and dimensions != 1:
            means = np.array([v[np.isfinite(v)].mean() if np.isfinite(v).any() else 0.0
                              for v in values])  # fmt: skip
            return cls(stratum=_deciles(means), presence=np.zeros((len(values), 0), bool))
        if dimensions == 1:
            presence = np.stack(values) > 0
            return cls(stratum=_rarest(presence), presence=presence)
        counts = np.stack([_counts(v, classes) for v in values])
        return cls(
            stratum=np.where(counts.any(axis=1), counts.argmax(axis=1), classes),
            presence=counts > 0,
        )

    def __len__(self) -> int:
        return len(self.stratum)


def label_fractions(
    strata: Strata, percents: Sequence[float], *, seed: int = 0
) -> dict[float, Indices]:
    """Positions of the chips in each label fraction, ascending, by its percentage.

    Smaller fractions are subsets of larger ones. Every class that any chip shows has at least one
    chip in each (so that a very small fraction may be larger than requested), and every stratum its
    share, within the chips that this takes and one. Equal arguments give equal chips; so do equal
    ``seed`` and labels with other ``percents``. Raises ConfigError for a percentage outside
    (0, 100], DataError for no chips.
    """
    if not len(strata):
        raise DataError("no chips to take a fraction of")
    for percent in percents:
        if not 0 < percent <= 100:
            raise ConfigError(f"fractions: percentages above 0 and up to 100, got {percent:g}")
    order, needed = _order(strata, np.random.default_rng([seed, 0xF0]))
    return {
        float(percent): np.sort(order[: max(needed, round(percent / 100 * len(order)))])
        for percent in percents
    }


def _order(strata: Strata, rng: np.random.Generator) -> tuple[Indices, int]:
    """An order whose beginnings are stratified, and how many chips show every class."""
    shuffled = rng.permutation(len(strata))
    cover = _cover(strata.presence, shuffled)
    is_cover = np.zeros(len(strata), bool)
    is_cover[cover] = True
    rank = np.empty(len(strata))
    for stratum in np.unique(strata.stratum):
        mine = shuffled[strata.stratum[shuffled] == stratum]
        mine = mine[np.argsort(~is_cover[mine], kind="stable")]
        # Evenly spaced, from a random start: every beginning holds the stratum's share.
        rank[mine] = (np.arange(len(mine)) + rng.random()) / len(mine)
    rank[cover] = -1.0
    ranked = shuffled[np.argsort(rank[shuffled], kind="stable")]
    return ranked.astype(np.int64), max(1, len(cover))


def _cover(presence: npt.NDArray[np.bool_], shuffled: Indices) -> list[int]:
    """Chips that together show every class: for each, the rarest first, one of the shuffled."""
    counts = presence.sum(axis=0)
    lacking = set(np.flatnonzero(counts).tolist())
    chosen: list[int] = []
    for c in np.argsort(counts, kind="stable").tolist():
        if c in lacking:
            chosen.append(int(shuffled[presence[shuffled, c]][0]))
            lacking -= set(np.flatnonzero(presence[chosen[-1]]).tolist())
    return chosen


def _rarest(presence: npt.NDArray[np.bool_]) -> Indices:
    """The rarest class that each chip has; C for chips without any."""
    classes = presence.shape[1]
    rank = np.argsort(np.argsort(presence.sum(axis=0), kind="stable"), kind="stable")
    ranked = np.where(presence, rank, classes)
    by_rank = np.append(np.argsort(rank), classes)
    rarest: Indices = by_rank[ranked.min(axis=1, initial=classes)].astype(np.int64)
    return rarest


def _counts(label: npt.NDArray[np.integer], classes: int) -> Indices:
    shown = label[label >= 0].astype(np.int64)
    if shown.size and shown.max() >= classes:
        raise DataError(f"a label holds class {shown.max()}; classes are 0 to {classes - 1}")
    return np.bincount(shown.ravel(), minlength=classes)


def _deciles(values: npt.NDArray[np.floating]) -> Indices:
    edges = np.quantile(values, np.arange(1, _QUANTILES) / _QUANTILES)
    return np.searchsorted(edges, values).astype(np.int64)
