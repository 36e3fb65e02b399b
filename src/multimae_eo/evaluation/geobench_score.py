"""GEO-Bench's aggregate score: scores normalised per data set, then their interquartile mean.

As the benchmark defines it (Lacoste et al. 2023): min-max by ``normalizer.json``, 25 % cut off at
either end, and a stratified bootstrap over the seeds of every data set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, DataError, FormatError, did_you_mean
from multimae_eo.files import read_json

CUT = 0.25
RESAMPLES = 100

Normaliser = Mapping[str, tuple[float, float]]
"""By data set: the scores that become 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """A normalised score and its 95 % bootstrap interval; 1 is the best published baseline."""

    score: float
    low: float
    high: float


def load_normaliser(path: Path) -> dict[str, tuple[float, float]]:
    """Read ``normalizer.json``: ``{data set: [min, max]}``.

    Raises ConfigError where it is missing, FormatError where it is no such object.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file; it lies beside the benchmark's data sets")
    record = read_json(path, FormatError, remedy="download it again")
    if not isinstance(record, Mapping) or not record:
        raise FormatError(f"{path}: expected an object {{data set: [min, max]}}")
    for name, span in record.items():
        if (
            not isinstance(span, list)
            or len(span) != 2
            or not all(type(v) in (int, float) and math.isfinite(v) for v in span)
            or not span[0] < span[1]
        ):
            raise FormatError(f"{path}: {name}: expected [min, max] with min < max, got {span}")
    return {name: (float(low), float(high)) for name, (low, high) in record.items()}


def normalise(
    dataset: str, scores: Sequence[float], normaliser: Normaliser
) -> npt.NDArray[np.float64]:
    """Scores of one data set on the scale where its ``normaliser`` is 0 to 1; never clipped.

    Raises ConfigError for a data set that the normaliser lacks, DataError for scores that are not
    finite or none at all.
    """
    if dataset not in normaliser:
        raise ConfigError(f"no normaliser for {dataset!r}; {did_you_mean(dataset, normaliser)}")
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise DataError(f"{dataset}: expected finite scores, one per seed; got {list(scores)}")
    low, high = normaliser[dataset]
    scaled: npt.NDArray[np.float64] = (values - low) / (high - low)
    return scaled


def interquartile_mean(scores: npt.ArrayLike) -> float:
    """The mean without the lowest and highest quarter of the scores (rounded down to whole ones).

    Raises DataError for no scores.
    """
    values = np.sort(np.asarray(scores, np.float64).ravel())
    if not len(values):
        raise DataError("no scores to aggregate")
    cut = int(CUT * len(values))
    return float(values[cut : len(values) - cut].mean())


def aggregate(
    scores: Mapping[str, Sequence[float]],
    normaliser: Normaliser,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Aggregate:
    """The interquartile mean over all data sets' seeds, with its interval.

    ``scores``: by data set, one per seed, in the unit of ``normaliser``. Data sets with more seeds
    weigh more, as in the benchmark; give each as many. Errors as for ``normalise``.
    """
    if not scores:
        raise DataError("no scores to aggregate")
    scaled = [normalise(name, values, normaliser) for name, values in scores.items()]
    rng = np.random.default_rng(seed)
    drawn = [
        interquartile_mean(np.concatenate([rng.choice(v, len(v)) for v in scaled]))
        for _ in range(resamples)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Aggregate(
        score=interquartile_mean(np.concatenate(scaled)), low=float(low), high=float(high)
    )
