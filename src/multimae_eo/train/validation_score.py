"""The score on validation chips that decides which weights of a fine-tuning run are best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from multimae_eo.metrics.regression import RegressionSums, root_mean_square
from multimae_eo.metrics.task_metrics import Counts, Predictions, confusion_matrix, values_of
from multimae_eo.network.target import LabelKind, Target

State = tuple[npt.NDArray[np.float64], ...]


@dataclass(frozen=True)
class ScoreRule:
    """A score: its name, -1 where more is better and 1 where less is, and its computation.

    ``reduce``: a batch's predictions and labels → arrays with an axis of rows first, which are
    concatenated, or summed where ``summed``. ``value``: those arrays → the score.
    """

    name: str
    sign: float
    reduce: Callable[[Tensor, Tensor], State]
    value: Callable[[State], float]
    summed: bool = True


def score_rule(target: Target) -> ScoreRule:
    """The rule for a kind of labels: accuracy, mAP, mIoU, or RMSE."""
    rules: dict[LabelKind, ScoreRule] = {
        "class": ScoreRule("accuracy", -1.0, _confusion, _accuracy),
        "multilabel": ScoreRule("map", -1.0, _ranked, _mean_average_precision, summed=False),
        "map": ScoreRule("miou", -1.0, _confusion, _mean_iou),
    }
    return rules.get(target.kind, ScoreRule("rmse", 1.0, _square_error, _rmse))


class ValidationScore:
    """Accumulates the score of ``score_rule`` over batches, and over processes."""

    def __init__(self, target: Target) -> None:
        self.rule = score_rule(target)
        self._states: list[State] = []

    def reset(self) -> None:
        """Begin a validation."""
        self._states = []

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add a batch's ``Predictor.predictions`` and labels; ignored ones may be among them."""
        self._states.append(self.rule.reduce(predictions, labels))
        if self.rule.summed:
            self._states = self._merged(self._states)

    def compute(self) -> float:
        """The score of all processes' chips, the same in each; NaN where none has a label."""
        states = self._merged(self._states)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            of_ranks: list[list[State]] = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(of_ranks, states)
            states = self._merged([state for of_rank in of_ranks for state in of_rank])
        return self.rule.value(states[0]) if states else float("nan")

    def _merged(self, states: Sequence[State]) -> list[State]:
        if not states:
            return []
        if self.rule.summed:
            return [tuple(np.sum(arrays, axis=0) for arrays in zip(*states, strict=True))]
        return [tuple(np.concatenate(arrays) for arrays in zip(*states, strict=True))]


def _array(values: Tensor) -> npt.NDArray[np.float64]:
    array: npt.NDArray[np.float64] = values.detach().cpu().double().numpy()
    return array


def _confusion(predictions: Tensor, labels: Tensor) -> State:
    classes = predictions.shape[1]
    seen = labels >= 0
    truth, predicted = labels[seen].cpu().numpy(), predictions.argmax(dim=1)[seen].cpu().numpy()
    return (confusion_matrix(truth, predicted, classes).astype(np.float64),)


def _ranked(predictions: Tensor, labels: Tensor) -> State:
    return _array(predictions), _array(labels)


def _square_error(predictions: Tensor, labels: Tensor) -> State:
    sums = RegressionSums.of(_array(labels), _array(predictions))
    return sums.count.sum(keepdims=True), sums.square_error.sum(keepdims=True)


def _counts(state: State) -> Counts:
    return Counts.of_confusion(state[0].astype(np.int64))


def _accuracy(state: State) -> float:
    return float(_counts(state).accuracy[0])


def _mean_iou(state: State) -> float:
    return float(_counts(state).mean_iou[0])


def _mean_average_precision(state: State) -> float:
    probability, truth = state
    predictions = Predictions(
        kind="multilabel",
        keys=tuple(map(str, range(len(truth)))),
        truth=truth,
        predicted=probability > 0.5,
        probability=probability,
    )
    return values_of(predictions)["mAP"]


def _rmse(state: State) -> float:
    count, square_error = state
    return float(root_mean_square(square_error, count)[0])
