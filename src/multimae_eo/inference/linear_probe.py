"""What reads classes or values out of frozen features: linear models and nearest neighbours.

Both map standardised features (n, D) to (n, C). Targets are shares of classes (one-hot for one
class per chip), 0 and 1 for several labels, or values; so one probe serves every kind of task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

Array = npt.NDArray[np.float64]
Loss = Literal["softmax", "sigmoid", "square"]
FittedProbe = Callable[[npt.NDArray[np.generic]], Array]
"""Features (n, D) → probabilities of the C classes, or values: (n, C)."""

ABSENT = 1e3
"""The negative bias of a class without a training row, whose probability is almost 0."""

_MOST_ITERATIONS = 200


@dataclass(frozen=True)
class Scaler:
    """Standardises features by the training chips; constant features become 0."""

    mean: Array
    scale: Array

    @classmethod
    def of(cls, features: npt.NDArray[np.generic]) -> Scaler:
        """Fit to features (n, D)."""
        values = features.astype(np.float64)
        scale = values.std(axis=0)
        constant = scale <= 1e-10 * np.maximum(np.abs(values).max(axis=0, initial=0.0), 1e-300)
        return cls(values.mean(axis=0), np.where(constant, np.inf, scale))

    def __call__(self, features: npt.NDArray[np.generic]) -> Array:
        """Standardise features (n, D)."""
        scaled: Array = (features.astype(np.float64) - self.mean) / self.scale
        return scaled


def neighbour_probes(
    features: npt.NDArray[np.generic], targets: Array, neighbours: Sequence[int]
) -> Iterator[tuple[int, FittedProbe]]:
    """k nearest neighbours by cosine similarity on standardised features, weighted by it.

    One per k that is no larger than the number of training rows. scikit-learn's.
    """
    from sklearn.neighbors import KNeighborsRegressor

    scaler = Scaler.of(features)
    for k in (k for k in neighbours if k <= len(features)):
        # The mean of one-hot targets is what a classifier of neighbours calls its probability.
        fitted = KNeighborsRegressor(k, metric="cosine", weights="distance")
        fitted.fit(scaler(features), targets)

        def probe(new: npt.NDArray[np.generic], fitted: KNeighborsRegressor = fitted) -> Array:
            outputs: Array = fitted.predict(scaler(new)).reshape(len(new), -1)
            return outputs

        yield k, probe


@dataclass(frozen=True)
class LinearProbe:
    """A linear model of standardised features; a ``FittedProbe``.

    ``weight``: float64 (D, C), ``bias``: (C,); of a class without a training row, -ABSENT.
    """

    scaler: Scaler
    weight: Tensor
    bias: Tensor
    loss: Loss

    def __call__(self, features: npt.NDArray[np.generic]) -> Array:
        """Probabilities of the C classes, or values: (n, C)."""
        values = torch.from_numpy(self.scaler(features)) @ self.weight + self.bias
        outputs: Array = _ACTIVATIONS[self.loss](values).numpy()
        return outputs

    def of_raw_features(self) -> tuple[Tensor, Tensor]:
        """Weight (D, C) and bias (C,) of the same model of features that are not standardised."""
        weight = self.weight / torch.from_numpy(self.scaler.scale)[:, None]
        return weight, self.bias - torch.from_numpy(self.scaler.mean) @ weight


def linear_probes(
    features: npt.NDArray[np.generic], targets: Array, loss: Loss, strengths: Sequence[float]
) -> Iterator[tuple[float, LinearProbe]]:
    """Linear models on standardised features, one per strength, from the strongest regularisation.

    Each minimises ``strength · Σ loss + ½‖W‖²`` with an intercept that is free, as scikit-learn's
    LogisticRegression and Ridge (strength = C = 1/alpha) do, by L-BFGS, or exactly for "square".
    """
    scaler = Scaler.of(features)
    x = torch.from_numpy(scaler(features))
    y = torch.from_numpy(targets)
    # In the span of fewer rows than features lies the whole solution.
    basis = torch.linalg.qr(x.T).Q if len(x) < x.shape[1] else None
    x = x if basis is None else x @ basis
    fit = _ridge if loss == "square" else _Descent(loss)
    for strength in sorted(strengths):
        weight, bias = fit(x, y, strength)
        if basis is not None:
            weight = basis @ weight
        yield strength, LinearProbe(scaler, weight, bias, loss)


_ACTIVATIONS: dict[Loss, Callable[[Tensor], Tensor]] = {
    "softmax": lambda values: values.softmax(dim=1),
    "sigmoid": torch.sigmoid,
    "square": lambda values: values,
}


def _ridge(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    mean = y.mean(dim=0)
    gram = x.T @ x + torch.eye(x.shape[1], dtype=x.dtype) / strength
    return torch.linalg.solve(gram, x.T @ (y - mean)), mean


class _Descent:
    """L-BFGS that starts where the last, stronger regularisation ended."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self._start: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        if self._start is None:
            zero = torch.zeros(1, dtype=x.dtype)
            self._start = (zero.expand(x.shape[1], y.shape[1]), zero.expand(y.shape[1]))
        # Classes without a row have no finite optimum; they keep a probability of almost 0.
        occurring = (y > 0).any(dim=0) if self._loss == "softmax" else torch.ones(y.shape[1]).bool()
        weight, bias = (t.clone()[..., occurring].requires_grad_() for t in self._start)
        optimiser = torch.optim.LBFGS(
            [weight, bias],
            max_iter=_MOST_ITERATIONS,
            tolerance_grad=1e-5,
            tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            optimiser.zero_grad()
            values = x @ weight + bias
            if self._loss == "softmax":
                fault = -(y[:, occurring] * values.log_softmax(dim=1)).sum()
            else:
                fault = F.binary_cross_entropy_with_logits(values, y, reduction="sum")
            total = (fault + weight.square().sum() / (2 * strength)) / len(x)
            total.backward()
            return total

        with torch.enable_grad():
            optimiser.step(objective)
        full_weight = torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype)
        full_bias = torch.full((y.shape[1],), -ABSENT, dtype=x.dtype)
        full_weight[:, occurring], full_bias[occurring] = weight.detach(), bias.detach()
        self._start = (full_weight, full_bias)
        return self._start
