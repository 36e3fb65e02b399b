"""A fine-tuned model on a split: its predictions and its metrics."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from multimae_eo.errors import ConfigError, ContractError, DataError, did_you_mean
from multimae_eo.evaluate.metrics import confusion, iou, scores
from multimae_eo.model.predictor import Predictor
from multimae_eo.model.target import kind_of
from multimae_eo.report import write_whole
from multimae_eo.sample import Batch
from multimae_eo.sources.base import Source
from multimae_eo.store.loader import make_loader
from multimae_eo.train.finetune_module import sized

Array = npt.NDArray[Any]
BATCH = 32


def evaluate(
    predictor: Predictor,
    source: Source,
    *,
    split: str = "test",
    inputs: Sequence[str] | None = None,
    out: Path | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Predict a split's chips; metrics with 95 % bootstrap intervals over chips.

    ``inputs``: give only these (default: all that data and model share). ``out``: folder for
    ``metrics.json`` and ``predictions.parquet`` (key, label, prediction, probabilities; for maps
    key, pixels, accuracy and mean IoU of each chip).

    Returns ``{"task", "split", "chips", "inputs", "metrics": {name: {value, low, high}}}``.

    Raises:
        SplitError: an unknown or empty split. DataError: chips without labels, or of another kind.
        ContractError: classes or inputs are not the model's. ConfigError: an unknown input.
    """
    target = predictor.target
    if source.class_names and target.classes and tuple(source.class_names) != target.classes:
        raise ContractError(
            f"{source.name}: its classes ({', '.join(source.class_names)}) are not the model's "
            f"({', '.join(target.classes)})"
        )
    names = _names(predictor, source, inputs)
    indices = source.split(split)
    loader = make_loader(source, indices, batch_size=BATCH, modalities=names)
    keys: list[str] = []
    truth: list[Array] = []
    guess: list[Array] = []
    predictor.eval()
    for batch in loader:
        wanted, said = _predict(predictor, batch, names, source.name)
        keys += batch.keys
        truth.append(wanted)
        guess.append(said)
        if progress is not None:
            progress(len(keys), len(indices))
    whole = (np.concatenate(truth), np.concatenate(guess))
    found = scores(target.kind, *whole, target.classes, seed=seed)
    record = {
        "task": target.task,
        "split": split,
        "chips": len(keys),
        "inputs": names,
        "metrics": {name: asdict(score) for name, score in found.items()},
    }
    if out is not None:
        write_whole(out / "predictions.parquet", _parquet(predictor, keys, *whole))
        write_whole(out / "metrics.json", (json.dumps(record, indent=1) + "\n").encode())
    return record


def _names(predictor: Predictor, source: Source, inputs: Sequence[str] | None) -> list[str]:
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
) -> tuple[Array, Array]:
    """Labels and answers of a batch as ``scores`` takes them."""
    target, labels = predictor.target, batch.labels
    kind = None if labels is None else kind_of(labels[0].numpy(), target.task)
    if labels is None or kind != target.kind:
        raise DataError(
            f"{where}: {batch.keys[0]}: no label, or none of the kind that the model predicts "
            f"({target.kind}); evaluate on the data set it was trained for"
        )
    outputs = sized(predictor.predict(batch.to(_device(predictor)), names), labels).float()
    answers = predictor.answers(outputs).cpu().numpy()
    wanted = labels.numpy()
    if kind != "map":
        return wanted, answers
    size = target.outputs
    matrices = np.stack(
        [confusion(t, g, size) for t, g in zip(wanted, answers.argmax(axis=1), strict=True)]
    )
    return matrices, matrices


def _device(predictor: Predictor) -> torch.device:
    return next(predictor.parameters()).device


def _parquet(predictor: Predictor, keys: list[str], truth: Array, guess: Array) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = predictor.target
    columns: dict[str, Any] = {"key": keys}
    if target.kind == "map":
        pixels = truth.sum(axis=(1, 2))
        hit = np.trace(truth, axis1=1, axis2=2)
        columns["pixels"] = pixels.tolist()
        columns["accuracy"] = (hit / np.maximum(pixels, 1)).tolist()
        columns["mean_iou"] = [
            float(np.nanmean(iou(m))) if n else None for m, n in zip(truth, pixels, strict=True)
        ]
    elif target.kind == "value":
        columns |= {"label": truth.tolist(), "prediction": guess.tolist()}
    else:
        said = guess.argmax(axis=1) if target.kind == "class" else (guess > 0.5).astype(np.int64)
        columns |= {"label": truth.tolist(), "prediction": said.tolist()}
        columns |= {"probabilities": guess.tolist()}
    table = pa.table(columns).replace_schema_metadata({"classes": json.dumps(target.classes)})
    held = io.BytesIO()
    pq.write_table(table, held)
    return held.getvalue()
