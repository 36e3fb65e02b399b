"""Uncertainty of scores: bootstrap intervals over chips and seeds, paired tests, Holm's correction.

A score is a function of how much each chip weighs (``WeightedScore``), so that its bootstrap, its
jackknife and its difference from another score on the same chips are one computation. Chips are
what is resampled: pixels of one chip, and runs with other seeds on the same chips, are not
independent. Splits should keep neighbouring chips together; intervals cannot know of neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, DataError

Array = npt.NDArray[np.float64]
Method = Literal["percentile", "bca"]
WeightedScore = Callable[[Array], Array]
"""Weights of the chips (R, N), each ≥ 0 → scores (R,)."""

RESAMPLES = 1000
LEVEL = 0.95
_BLOCK = 4_000_000  # weights held at once
_EXACT = 18  # pairs that differ, up to which all sign flips are tried


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score and the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]".replace("-", "−")


def mean_score(outcomes: npt.ArrayLike) -> WeightedScore:
    """The weighted mean of one outcome per chip (N,)."""
    values = np.asarray(outcomes, np.float64)

    def score(weights: Array) -> Array:
        result: Array = weights @ values / np.maximum(weights.sum(axis=1), 1e-300)
        return result

    return score


def score_interval(
    score: WeightedScore,
    chips: int,
    *,
    method: Method = "percentile",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A score's bootstrap interval over ``chips``; see ``hierarchical_interval`` for seeds.

    ``method``: "percentile", or "bca", which also corrects bias and skewness (Efron 1987).
    A score that no resample changes (every chip right) gets an interval of zero width, which
    does not generalise to chips unlike these. Raises ConfigError for options out of range,
    DataError for no chips.
    """
    _check(chips, level, resamples, method)
    drawn = _finite(_over_resamples([score], chips, resamples, np.random.default_rng(seed)))
    value = float(score(np.ones((1, chips)))[0])
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        tails = _bca_tails(tails, drawn, value, _jackknife(score, chips))
    return _interval(value, drawn, tails)


def hierarchical_interval(
    scores: Sequence[WeightedScore],
    chips: int,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean score of several seeds on the same ``chips``, both resampled.

    ``scores``: one per seed. With S seeds, the share of the variance that comes from seeds is
    underestimated by (S - 1) / S; with one seed the estimate is zero.
    Errors as for ``score_interval``.
    """
    _check(chips, level, resamples, "percentile")
    if not scores:
        raise DataError("no scores to give an interval of; expected one per seed")
    drawn = _finite(_over_resamples(scores, chips, resamples, np.random.default_rng(seed)))
    value = float(np.mean([s(np.ones((1, chips)))[0] for s in scores]))
    return _interval(value, drawn, np.array([(1 - level) / 2, (1 + level) / 2]))


def paired_interval(
    first: Sequence[WeightedScore],
    second: Sequence[WeightedScore],
    chips: int,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The interval of ``first`` minus ``second`` on the same resampled chips.

    One score per seed in each; as many in both are drawn together, as they saw the same labels.
    Errors as for ``score_interval``.
    """
    if len(first) == len(second):
        pairs = list(zip(first, second, strict=True))
    else:
        pairs = [(a, b) for a in first for b in second]
    differences = [_difference(a, b) for a, b in pairs]
    return hierarchical_interval(differences, chips, level=level, resamples=resamples, seed=seed)


def permutation_test(
    first: npt.ArrayLike, second: npt.ArrayLike, *, resamples: int = 9999, seed: int = 0
) -> float:
    """Two-sided p-value that the mean outcomes per chip (N,) of two configurations are equal.

    Within each chip the two outcomes are exchanged at random: all ways of it where no more than 18
    chips differ, else ``resamples`` of them. Raises DataError for outcomes that are not aligned.
    """
    difference = _paired(first, second)
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    size = np.abs(difference)
    seen = abs(float(difference.sum()))
    # Sums of the same numbers in another order differ in the last digits.
    enough = seen - 1e-9 * float(size.sum())
    if len(size) <= _EXACT:
        bits = np.arange(2 ** len(size))[:, None] >> np.arange(len(size)) & 1
        return float((np.abs((1.0 - 2.0 * bits) @ size) >= enough).mean())
    rng = np.random.default_rng(seed)
    reached = 0
    for count in _blocks(resamples, len(size)):
        signs = rng.integers(0, 2, (count, len(size))) * 2.0 - 1.0
        reached += int((np.abs(signs @ size) >= enough).sum())
    return (reached + 1) / (resamples + 1)


def mcnemar(first_right: npt.ArrayLike, second_right: npt.ArrayLike) -> float:
    """Exact two-sided p-value that two classifiers are right equally often (McNemar 1947).

    Bools (N,), whether each chip was classified right. Only chips where they differ count: a
    binomial test with probability 1/2. Raises DataError for bools that are not aligned.
    """
    from scipy.stats import binomtest

    difference = _paired(np.asarray(first_right, bool), np.asarray(second_right, bool))
    only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
    if not only_first + only_second:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being several (Holm 1979), in the order given.

    Rejecting those ≤ α keeps the chance of any false rejection ≤ α. Raises DataError for values
    outside [0, 1].
    """
    values = np.asarray(p_values, np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError(f"expected p-values from 0 to 1, got {list(p_values)}")
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return [float(v) for v in corrected]


def _difference(first: WeightedScore, second: WeightedScore) -> WeightedScore:
    return lambda weights: first(weights) - second(weights)


def _paired(first: npt.ArrayLike, second: npt.ArrayLike) -> Array:
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise DataError(f"expected outcomes of the same chips (N,), got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError("outcomes of chips must be finite; leave out chips that have none in both")
    result: Array = a - b
    return result


def _check(chips: int, level: float, resamples: int, method: str) -> None:
    if chips < 1:
        raise DataError("no chips to resample")
    if not 0 < level < 1:
        raise ConfigError(f"level: a share between 0 and 1, got {level}")
    if resamples < 1:
        raise ConfigError(f"resamples: expected ≥ 1, got {resamples}")
    if method not in ("percentile", "bca"):
        raise ConfigError(f"no interval method {method!r}; valid: percentile, bca")


def _blocks(rows: int, width: int) -> list[int]:
    """Sizes of blocks that together make ``rows``, each of a bounded number of values."""
    most = max(1, _BLOCK // max(width, 1))
    return [min(most, rows - start) for start in range(0, rows, most)]


def _over_resamples(
    scores: Sequence[WeightedScore], chips: int, resamples: int, rng: np.random.Generator
) -> Array:
    """Mean scores of resampled seeds on resampled chips: (resamples,)."""
    share = np.full(chips, 1 / chips)
    result = []
    for count in _blocks(resamples, chips):
        weights = rng.multinomial(chips, share, size=count).astype(np.float64)
        by_seed = np.stack([score(weights) for score in scores], axis=1)
        drawn = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), size=count)
        # The NaN of a seed that was not drawn must not reach the mean.
        result.append(np.where(drawn > 0, by_seed * drawn, 0.0).sum(axis=1) / len(scores))
    return np.concatenate(result)


def _jackknife(score: WeightedScore, chips: int) -> Array:
    result, start = [], 0
    for count in _blocks(chips, chips):
        weights = np.ones((count, chips))
        weights[np.arange(count), np.arange(start, start + count)] = 0.0
        result.append(score(weights))
        start += count
    return np.concatenate(result)


def _bca_tails(tails: Array, drawn: Array, value: float, left_out: Array) -> Array:
    """Which quantiles of the bootstrap are the ends of the BCa interval."""
    from scipy.special import ndtr, ndtri

    below = float(((drawn < value).sum() + 0.5 * (drawn == value).sum()) / len(drawn))
    # Infinite otherwise, where all resamples lie on one side.
    shift = float(ndtri(min(max(below, 0.5 / len(drawn)), 1 - 0.5 / len(drawn))))
    apart = left_out.mean() - left_out
    scale = float((apart**2).sum()) ** 1.5
    bend = float((apart**3).sum()) / (6 * scale) if scale > 0 else 0.0
    moved = shift + ndtri(tails)
    return np.asarray(ndtr(shift + moved / (1 - bend * moved)), np.float64)


def _finite(drawn: Array) -> Array:
    kept = drawn[np.isfinite(drawn)]
    if not len(kept):
        raise DataError("a score is not a number on any resample; the chips do not define it")
    return kept


def _interval(value: float, drawn: Array, tails: Array) -> Interval:
    low, high = np.quantile(drawn, tails)
    return Interval(value=value, low=float(low), high=float(high))
