"""Design-based accuracy and area of a map, from a probability sample of reference labels.

The estimators of Olofsson et al. (2014, Remote Sensing of Environment 148, 42-57,
doi 10.1016/j.rse.2014.02.015) and of Stehman (2014, International Journal of Remote Sensing 35,
4923-4939), which allows strata that are not the map's classes. Every quantity is a ratio of two
totals, so that simple random, stratified and one-stage cluster sampling, also within strata, are
one estimator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from multimae_eo.errors import DataError

Floats = npt.NDArray[np.float64]
Allocation = Literal["proportional", "equal", "neyman"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value, its standard error, and the half-width of its 95 % confidence interval."""

    value: float
    standard_error: float
    half_width: float

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the 95 % confidence interval."""
        return self.value - self.half_width, self.value + self.half_width

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit, such as hectares instead of a share of the area."""
        return Estimate(
            value=self.value * factor,
            standard_error=self.standard_error * factor,
            half_width=self.half_width * factor,
        )


@dataclass(frozen=True, kw_only=True)
class ReferenceSample:
    """Sampled units with their map class, their reference class, and how they were drawn.

    Attributes:
        map_class: class id of the map at each unit, (n,).
        reference_class: class id that was observed there, (n,).
        stratum: the stratum each unit was drawn from, (n,); one stratum if all are equal.
        stratum_sizes: number of sampling units (pixels, or clusters) in each whole stratum.
        cluster: the cluster each unit belongs to, (n,); None where units were drawn one by one.
    """

    map_class: npt.NDArray[np.int64]
    reference_class: npt.NDArray[np.int64]
    stratum: npt.NDArray[np.int64]
    stratum_sizes: Mapping[int, float]
    cluster: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.map_class), len(self.reference_class), len(self.stratum)}
        if self.cluster is not None:
            lengths.add(len(self.cluster))
        if len(lengths) != 1 or lengths == {0}:
            raise DataError(
                f"reference sample: columns of {sorted(lengths)} units; "
                "each needs the same number, and at least one"
            )
        without_size = sorted(set(self.stratum.tolist()) - self.stratum_sizes.keys())
        if without_size:
            raise DataError(f"reference sample: no size is given for strata {without_size}")
        unsampled = sorted(
            k for k, size in self.stratum_sizes.items() if size and k not in self.stratum
        )
        if unsampled:
            raise DataError(
                f"reference sample: no unit was drawn from strata {unsampled}, whose part of the "
                "area is therefore unknown; draw at least two from each, or merge strata"
            )

    @property
    def classes(self) -> list[int]:
        """Ids of all classes of the map or the reference, ascending."""
        return sorted({*self.map_class.tolist(), *self.reference_class.tolist()})


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracies and areas of a map, estimated from a reference sample.

    Attributes:
        classes: class ids, ascending: the order of rows and columns.
        counts: sampled units, map class x reference class, (C, C).
        proportions: estimated shares of the area, map class x reference class, (C, C); sums to 1.
        overall: share of the area that is mapped rightly.
        users: per class, the share of the area mapped as it that is it; NaN where nothing is
            mapped as it.
        producers: per class, the share of its area that is mapped as it; NaN where it was not
            observed.
        area: per class, the share of the area that is it by the reference (not by the map).
    """

    classes: list[int]
    counts: npt.NDArray[np.int64]
    proportions: Floats
    overall: Estimate
    users: dict[int, Estimate]
    producers: dict[int, Estimate]
    area: dict[int, Estimate]


def estimate_accuracy(sample: ReferenceSample) -> Accuracy:
    """Error matrix, accuracies and areas with standard errors and 95 % intervals.

    Raises:
        DataError: a stratum holds fewer than two sampled units, so that it has no variance.
    """
    classes = sample.classes
    totals = _Totals(sample)
    mapped = {c: (sample.map_class == c).astype(float) for c in classes}
    observed = {c: (sample.reference_class == c).astype(float) for c in classes}
    ones = np.ones(len(sample.map_class))
    right = (sample.map_class == sample.reference_class).astype(float)
    pairs = [[mapped[i] * observed[j] for j in classes] for i in classes]
    return Accuracy(
        classes=classes,
        counts=np.array([[int(p.sum()) for p in row] for row in pairs]),
        proportions=np.array([[totals.ratio(p, ones).value for p in row] for row in pairs]),
        overall=totals.ratio(right, ones),
        users={c: totals.ratio(right * mapped[c], mapped[c]) for c in classes},
        producers={c: totals.ratio(right * observed[c], observed[c]) for c in classes},
        area={c: totals.ratio(observed[c], ones) for c in classes},
    )


def census_accuracy(classes: Sequence[int], counts: npt.NDArray[np.int64]) -> Accuracy:
    """Accuracies and areas where every pixel has a reference class: without sampling error.

    Args:
        classes: class ids, ascending.
        counts: pixels, map class x reference class, (C, C).
    """
    total, diagonal = counts.sum(), np.diag(counts)

    def shares(
        numerators: npt.NDArray[np.generic], denominators: npt.NDArray[np.generic]
    ) -> dict[int, Estimate]:
        return {
            c: _exact(float(n / d) if d else math.nan)
            for c, n, d in zip(classes, numerators, denominators, strict=True)
        }

    return Accuracy(
        classes=list(classes),
        counts=counts,
        proportions=counts / total,
        overall=_exact(float(diagonal.sum() / total)),
        users=shares(diagonal, counts.sum(axis=1)),
        producers=shares(diagonal, counts.sum(axis=0)),
        area=shares(counts.sum(axis=0), np.full(len(classes), total)),
    )


def estimate_from_groups(counts: npt.NDArray[np.generic], mapped_shares: Floats) -> Accuracy:
    """Accuracies and areas from groups of labelled pixels, such as polygons left out of training.

    Rows of the error matrix are weighted by the map's shares of each class (post-stratification,
    Olofsson et al. 2014, equations 4 and 9); errors are by the delete-one-group jackknife. They
    hold where the groups can stand for a random sample. A class on the map that no labelled pixel
    was predicted as keeps its share.

    Args:
        counts: pixels, group x map class x reference class, (G, C, C), G of two or more.
        mapped_shares: share of the map's area in each class, (C,).

    Raises:
        DataError: fewer than two groups.
    """
    groups, classes = len(counts), len(mapped_shares)
    if groups < 2:
        raise DataError(f"a standard error needs two groups of labelled pixels, got {groups}")
    total = counts.sum(axis=0)
    proportions = _weighted(total, mapped_shares)
    left_out = np.stack(
        [_summary(_weighted(total - part, mapped_shares)) for part in counts.astype(float)]
    )
    value = _summary(proportions)
    variance = (groups - 1) / groups * ((left_out - value) ** 2).sum(axis=0)
    errors = np.sqrt(variance)
    factor = float(stats.t.ppf(0.975, groups - 1))
    listed = [
        Estimate(value=float(v), standard_error=float(e), half_width=factor * float(e))
        for v, e in zip(value, errors, strict=True)
    ]

    def part(number: int) -> dict[int, Estimate]:
        return dict(enumerate(listed[1 + number * classes : 1 + (number + 1) * classes]))

    return Accuracy(
        classes=list(range(classes)),
        counts=total.astype(np.int64),
        proportions=proportions,
        overall=listed[0],
        users=part(0),
        producers=part(1),
        area=part(2),
    )


def _weighted(counts: npt.NDArray[np.generic], shares: Floats) -> Floats:
    """An error matrix in shares of the area, whose rows sum to the map's shares."""
    rows = counts.sum(axis=1, keepdims=True)
    matrix: Floats = np.where(rows > 0, counts / np.maximum(rows, 1), np.eye(len(shares)))
    return matrix * shares[:, None]


def _summary(proportions: Floats) -> Floats:
    """Overall accuracy, user's and producer's accuracies and areas, (1 + 3 C,)."""
    diagonal = np.diag(proportions)
    rows, columns = proportions.sum(axis=1), proportions.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.concatenate([[diagonal.sum()], diagonal / rows, diagonal / columns, columns])


def _exact(value: float) -> Estimate:
    error = math.nan if math.isnan(value) else 0.0
    return Estimate(value=value, standard_error=error, half_width=error)


def compare_accuracy(
    sample: ReferenceSample, *, other_map_class: npt.NDArray[np.int64]
) -> Estimate:
    """Overall accuracy of the sample's map less that of another map, on the same units (paired)."""
    first = (sample.map_class == sample.reference_class).astype(float)
    second = (other_map_class == sample.reference_class).astype(float)
    return _Totals(sample).ratio(first - second, np.ones(len(first)))


class _Totals:
    """Totals per primary sampling unit, which is a cluster or a single unit."""

    def __init__(self, sample: ReferenceSample) -> None:
        if sample.cluster is None:
            self._unit = np.arange(len(sample.stratum))
            self._stratum = sample.stratum
        else:
            # Clusters are numbered within their stratum.
            strata = np.unique(sample.stratum, return_inverse=True)[1].reshape(-1)
            clusters = np.unique(sample.cluster, return_inverse=True)[1].reshape(-1)
            _, first, self._unit = np.unique(
                strata * (clusters.max() + 1) + clusters, return_index=True, return_inverse=True
            )
            self._stratum = sample.stratum[first]
        self._count = len(self._stratum)
        self._sizes = sample.stratum_sizes
        for stratum, size in self._sizes.items():
            drawn = int((self._stratum == stratum).sum())
            if size and drawn < 2:
                raise DataError(
                    f"reference sample: stratum {stratum} has {drawn} sampled unit; "
                    "a variance needs at least two"
                )
            if drawn > size:
                raise DataError(
                    f"reference sample: stratum {stratum} has {drawn} sampled units "
                    f"but a size of {size:g}"
                )

    def ratio(self, numerator: Floats, denominator: Floats) -> Estimate:
        """Ratio of two totals over the whole area (Stehman 2014, equations 27 and 28)."""
        y = np.bincount(self._unit, weights=numerator, minlength=self._count)
        x = np.bincount(self._unit, weights=denominator, minlength=self._count)
        strata = [(size, self._stratum == h) for h, size in self._sizes.items() if size]
        total_x = sum(size * x[rows].mean() for size, rows in strata)
        if not total_x:
            return Estimate(value=math.nan, standard_error=math.nan, half_width=math.nan)
        value = sum(size * y[rows].mean() for size, rows in strata) / total_x
        variance = sum(
            size**2
            * (1 - rows.sum() / size)
            * np.var(y[rows] - value * x[rows], ddof=1)
            / rows.sum()
            for size, rows in strata
        )
        error = math.sqrt(variance) / abs(total_x)
        freedom = self._count - len(strata)
        return Estimate(
            value=float(value),
            standard_error=error,
            half_width=float(stats.t.ppf(0.975, freedom)) * error,
        )


def sample_size(
    weights: Mapping[int, float],
    *,
    expected_users: Mapping[int, float],
    standard_error: float,
) -> int:
    """Units needed for a standard error of overall accuracy (Olofsson et al. 2014, equation 13).

    Args:
        weights: share of the area in each stratum.
        expected_users: user's accuracy that is expected of each, 0 to 1.
        standard_error: the one aimed at, as a share (0.01 is one percentage point).
    """
    deviation = sum(w * _deviation(expected_users[h]) for h, w in weights.items())
    return math.ceil((deviation / standard_error) ** 2)


def allocate(
    total: int,
    weights: Mapping[int, float],
    *,
    allocation: Allocation = "proportional",
    expected_users: Mapping[int, float] | None = None,
    least: int = 2,
) -> dict[int, int]:
    """Sampled units per stratum.

    Args:
        total: units to draw in all.
        weights: share of the area in each stratum.
        allocation: by area, the same number each, or by area times the standard deviation that
            ``expected_users`` implies (Neyman).
        expected_users: user's accuracy that is expected of each stratum; needed for ``neyman``.
        least: units that any stratum gets.

    Raises:
        DataError: ``total`` is less than ``least`` times the number of strata.
    """
    if total < least * len(weights):
        raise DataError(
            f"a sample of {total} is too small for {len(weights)} strata of at least {least} each"
        )
    if allocation == "equal":
        shares = dict.fromkeys(weights, 1.0)
    elif allocation == "neyman":
        if expected_users is None:
            raise DataError("Neyman allocation needs the user's accuracy expected of each stratum")
        shares = {h: w * _deviation(expected_users[h]) for h, w in weights.items()}
    else:
        shares = dict(weights)
    floor = dict.fromkeys(weights, least)
    rest = total - sum(floor.values())
    # Largest remainders, above what every stratum gets.
    scale = sum(max(0.0, shares[h] / sum(shares.values()) * total - least) for h in weights)
    exact = {
        h: max(0.0, shares[h] / sum(shares.values()) * total - least) / scale * rest if scale else 0
        for h in weights
    }
    units = {h: floor[h] + math.floor(exact[h]) for h in weights}
    order: Sequence[int] = sorted(weights, key=lambda h: math.floor(exact[h]) - exact[h])
    for h in order[: total - sum(units.values())]:
        units[h] += 1
    return units


def _deviation(accuracy: float) -> float:
    return math.sqrt(accuracy * (1 - accuracy))
