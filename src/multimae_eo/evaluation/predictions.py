"""A fine-tuned model on a split: its predictions, its metrics and its card."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, ContractError, DataError, did_you_mean
from multimae_eo.files import single_writer, write_file
from multimae_eo.inference.input_check import check_source
from multimae_eo.loading.loader import make_loader
from multimae_eo.metrics.intervals import hierarchical_interval
from multimae_eo.metrics.task_metrics import (
    Predictions,
    TaskKind,
    all_scores,
    chip_outcomes,
)
from multimae_eo.network.finite import require_finite_output
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import LabelKind, kind_of
from multimae_eo.reports.score_card import Cost, card
from multimae_eo.sample import Batch
from multimae_eo.sources.base import Indices, Source
from multimae_eo.train.finetune_module import resized_outputs
from multimae_eo.train.test_time import CHIPS, AdaptOptions

Array = npt.NDArray[Any]
BATCH = 32

_TASKS: Mapping[LabelKind, TaskKind] = {
    "class": "classification",
    "multilabel": "multilabel",
    "map": "segmentation",
    "value": "regression",
    "value map": "regression",
}


@dataclass(frozen=True, kw_only=True)
class SplitPredictions:
    """Predictions of a split's chips from ``inputs``, and the seconds they took."""

    predictions: Predictions
    inputs: tuple[str, ...]
    seconds: float


def predict_split(
    predictor: Predictor,
    source: Source,
    *,
    split: str | Indices = "test",
    inputs: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SplitPredictions:
    """Predict the labelled chips of a split, or those at some indices.

    ``inputs``: give only these (default: all that data and model share).

    Raises:
        SplitError: an unknown or empty split. DataError: chips without labels, or of another kind.
        ContractError: classes or inputs are not the model's. ConfigError: an unknown input.
    """
    target = predictor.target
    order = _class_order(tuple(source.class_names), target.classes)
    if order is None and source.class_names and target.classes:
        raise ContractError(
            f"{source.name}: its classes ({', '.join(source.class_names)}) are not the model's "
            f"({', '.join(target.classes)})"
        )
    names = input_names(predictor, source, inputs)
    indices = source.split(split) if isinstance(split, str) else split
    keys: list[str] = []
    parts: list[tuple[Array, Array, Array]] = []
    predictor.eval()
    start = time.perf_counter()
    for batch in make_loader(source, indices, batch_size=BATCH, modalities=names):
        truth, predicted, confidence = _predict(predictor, batch, names, source.name)
        parts.append((_reordered(truth, order), predicted, confidence))
        keys += batch.keys
        if progress is not None:
            progress(len(keys), len(indices))
    seconds = time.perf_counter() - start
    truth, predicted, confidence = (np.concatenate(column) for column in zip(*parts, strict=True))
    predictions = Predictions(
        kind=_TASKS[target.kind],
        keys=tuple(keys),
        truth=truth,
        predicted=predicted,
        class_names=target.classes,
        probability=None if target.numeric else confidence,
    )
    return SplitPredictions(predictions=predictions, inputs=tuple(names), seconds=seconds)


@single_writer()
def evaluate(  # noqa: PLR0913 - each is a choice of the caller's, and none goes with another
    predictor: Predictor,
    source: Source,
    *,
    split: str = "test",
    inputs: Sequence[str] | None = None,
    out: Path | None = None,
    seed: int = 0,
    adapt: AdaptOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Predict a split's chips; metrics with 95 % bootstrap intervals over chips.

    ``out``: folder for ``metrics.json``, ``predictions.parquet`` (key, label, prediction,
    probabilities; for maps key, pixels, accuracy and mean IoU of each chip), ``card.md`` and
    ``report.html``. Other arguments and errors as of ``predict_split``.

    ``adapt``: test-time training on the split's chips first, without their labels.

    Returns ``{"task", "split", "chips", "inputs", "metrics": {name: {value, low, high}}}``,
    ``adapted`` (what was done, in words) with ``adapt``, and ``input_warning`` where the chips look
    unlike what the model has learnt from.
    """
    warning = check_source(
        predictor.encoder.modalities,
        predictor.encoder.statistics,
        source,
        source.split(split),
        inputs=input_names(predictor, source, inputs),
    )
    adapted = ""
    if adapt is not None:
        chips_to_see = _sampled_chips(predictor, source, split, inputs)
        predictor, adapted = adapt(predictor, chips_to_see)
    split_predictions = predict_split(
        predictor, source, split=split, inputs=inputs, progress=progress
    )
    predictions = split_predictions.predictions
    chips = len(predictions)
    record = {
        "task": predictor.target.task,
        "split": split,
        "chips": chips,
        "inputs": list(split_predictions.inputs),
        "metrics": {
            name: asdict(hierarchical_interval([score], chips, seed=seed))
            for name, score in all_scores(predictions).items()
        },
    }
    if adapted:
        record["adapted"] = adapted
    if warning:
        record["input_warning"] = warning
    if out is not None:
        ids = predictor.target.output_ids
        write_file(out / "predictions.parquet", _parquet(predictions, ids))
        write_file(out / "metrics.json", (json.dumps(record, indent=1) + "\n").encode())
        size = sum(p.numel() for p in predictor.parameters())
        card(
            predictions,
            out,
            title=f"{source.name}, {split}, from {', '.join(split_predictions.inputs)}",
            source=source,
            cost=Cost(parameters=size, seconds=split_predictions.seconds, chips=chips),
            seed=seed,
        )
    return record


def _sampled_chips(
    predictor: Predictor, source: Source, split: str, inputs: Sequence[str] | None
) -> list[Batch]:
    """Batches of evenly spaced chips of a split, for test-time training."""
    indices, names = source.split(split), input_names(predictor, source, inputs)
    count = min(len(indices), CHIPS)
    chosen = indices[np.linspace(0, len(indices) - 1, count).astype(np.int64)]
    return list(make_loader(source, chosen, batch_size=BATCH, modalities=names))


def input_names(predictor: Predictor, source: Source, inputs: Sequence[str] | None) -> list[str]:
    """Check ``inputs``; all that data and model share by default.

    Raises ConfigError for an unknown input, ContractError where they share none.
    """
    shared = [n for n in source.modalities if n in predictor.encoder.modalities]
    for name in inputs or ():
        if name not in shared:
            raise ConfigError(f"inputs: no {name!r} in both; {did_you_mean(name, shared)}")
    if not shared:
        raise ContractError(
            f"{source.name}: has none of the model's inputs "
            f"({', '.join(predictor.encoder.modalities)})"
        )
    return list(inputs or shared)


def _predict(
    predictor: Predictor, batch: Batch, names: Sequence[str], where: str
) -> tuple[Array, Array, Array]:
    """Labels, predictions and probabilities of a batch as ``Predictions`` takes them."""
    target, labels = predictor.target, batch.labels
    kind = None if labels is None else kind_of(labels[0].numpy(), target.task)
    if labels is None or kind != target.kind:
        raise DataError(
            f"{where}: {batch.keys[0]}: no label, or none of the kind that the model predicts "
            f"({target.kind}); evaluate on the data set it was trained for"
        )
    device = next(predictor.parameters()).device
    outputs = resized_outputs(predictor.predict(batch.to(device), names), labels).float()
    require_finite_output(
        predictor, "predictions", outputs, batch.keys[0],
        lambda: predictor.predict(batch.to(device), names),
    )  # fmt: skip
    probabilities = predictor.predictions(outputs).cpu()
    truth = labels.numpy()
    if kind == "map":
        best = probabilities.max(dim=1)
        return truth, best.indices.numpy().astype(np.int16), best.values.numpy()
    values = probabilities.numpy()
    if kind == "class":
        return truth, values.argmax(axis=1), values
    return truth, (values > 0.5).astype(np.int64) if kind == "multilabel" else values, values


def _class_order(theirs: tuple[str, ...], ours: tuple[str, ...]) -> Array | None:
    """The model's index of each of the data's classes; None where the classes are not the same."""
    if len(set(theirs)) != len(theirs) or set(theirs) != set(ours):
        return None
    return np.array([ours.index(name) for name in theirs], dtype=np.int64)


def _reordered(labels: Array, order: Array | None) -> Array:
    """Labels of the data as the model counts its classes; -1 stays."""
    if order is None or (order == np.arange(len(order))).all():
        return labels
    if labels.ndim == 2:  # multi-hot
        return labels[:, np.argsort(order)]
    return np.where(labels >= 0, order[labels], labels)


def _parquet(predictions: Predictions, ids: Sequence[int]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, object] = {"key": list(predictions.keys)}
    if predictions.kind == "regression" and predictions.truth.ndim > 1:
        pixels = np.isfinite(predictions.truth).sum(axis=(1, 2))
        columns["pixels"] = pixels.tolist()
        columns["squared_error"] = _listed(-chip_outcomes(predictions), pixels)
    elif predictions.kind == "segmentation":
        counts = predictions.counts
        pixels = counts.true.sum(axis=1)
        columns["pixels"] = pixels.astype(np.int64).tolist()
        columns["accuracy"] = _listed(counts.accuracy, pixels)
        columns["mean_iou"] = _listed(counts.mean_iou, pixels)
    else:
        truth, predicted = predictions.truth, predictions.predicted
        if predictions.kind == "classification" and ids:
            truth, predicted = (np.asarray(ids)[column] for column in (truth, predicted))
        columns |= {"label": truth.tolist(), "prediction": predicted.tolist()}
        if predictions.probability is not None:
            columns["probabilities"] = predictions.probability.tolist()
    table = pa.table(columns)
    table = table.replace_schema_metadata(
        {"classes": json.dumps(predictions.class_names), "class_ids": json.dumps(list(ids))}
    )
    held = io.BytesIO()
    pq.write_table(table, held)
    return held.getvalue()


def _listed(values: Array, pixels: Array) -> list[float | None]:
    return [float(v) if n else None for v, n in zip(values, pixels, strict=True)]
