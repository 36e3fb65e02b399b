"""Scores of predicted values, from sums per chip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multimae_eo.metrics.intervals import WeightedScore

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RegressionSums:
    """Sums over each chip's finite values, all (N,); truths are counted from their overall mean."""

    count: Array
    truth: Array
    square: Array
    square_error: Array
    absolute_error: Array

    @classmethod
    def of(
        cls, truth: npt.NDArray[np.floating], predicted: npt.NDArray[np.floating]
    ) -> RegressionSums:
        """Of values (N,), or maps (N, H, W); truths that are NaN are left out."""
        finite = np.isfinite(truth)
        values = np.where(finite, truth, 0.0).astype(np.float64)
        # Exact sums: a variance is not lost in a large mean.
        values = np.where(finite, values - values.sum() / max(int(finite.sum()), 1), 0.0)
        error = np.where(finite, truth.astype(np.float64) - predicted, 0.0)
        axes = tuple(range(1, truth.ndim))
        return cls(
            count=finite.sum(axis=axes).astype(np.float64),
            truth=values.sum(axis=axes),
            square=(values**2).sum(axis=axes),
            square_error=(error**2).sum(axis=axes),
            absolute_error=np.abs(error).sum(axis=axes),
        )

    def scores(self) -> dict[str, WeightedScore]:
        """R², and RMSE and MAE (lower is better), over all finite values of weighted chips."""
        return {"R2": self._r2, "RMSE": self._rmse, "MAE": self._mae}

    def outcomes(self) -> Array:
        """Minus the mean squared error of each chip; NaN where no truth is finite."""
        return -ratio(self.square_error, self.count)

    def _r2(self, weights: Array) -> Array:
        size = np.maximum(weights @ self.count, 1e-300)
        total = weights @ self.square - (weights @ self.truth) ** 2 / size
        return 1 - ratio(weights @ self.square_error, np.where(total > 1e-12, total, 0.0))

    def _rmse(self, weights: Array) -> Array:
        return root_mean_square(weights @ self.square_error, weights @ self.count)

    def _mae(self, weights: Array) -> Array:
        return ratio(weights @ self.absolute_error, weights @ self.count)


def root_mean_square(squares: Array, count: Array) -> Array:
    """Root of the mean of ``count`` squares, given their sum; NaN where there are none."""
    result: Array = np.sqrt(ratio(squares, count))
    return result


def ratio(above: Array, below: npt.NDArray[np.number]) -> Array:
    """``above / below``; NaN where ``below`` is not positive."""
    result: Array = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return result
