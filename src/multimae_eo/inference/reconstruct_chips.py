"""Reconstruct chips: any modality from any others, with pictures, scores and arrays."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multimae_eo.errors import ConfigError, DataError, did_you_mean
from multimae_eo.files import single_writer, write_file
from multimae_eo.inference.input_check import check_source
from multimae_eo.metrics.reconstruction_scores import PredictedPixels, ReconstructionScores
from multimae_eo.network.finite import require_finite_output
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.reports.html import Report
from multimae_eo.reports.reconstruction_figures import (
    chip_figure,
    reconstruction_figure,
    save_figure,
)
from multimae_eo.reports.views import ChipView, chip_views
from multimae_eo.sample import Batch, Sample, collate
from multimae_eo.sources.base import Source


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions:
    """How chips are reconstructed.

    ``limit``: chips drawn; all are scored. ``outputs``: modalities to predict (all the model can
    by default). ``arrays``: also write ``mean`` and its std (``spread``) as
    ``arrays/<key>.<modality>.npz``.
    ``samples``, ``seed``: of the random masks. ``device``: where the model is.
    """

    limit: int = 8
    outputs: tuple[str, ...] | None = None
    arrays: bool = False
    batch_size: int = 8
    samples: int = 8
    seed: int = 0
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("limit", 0), ("batch_size", 1), ("samples", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: must be ≥ {least}, got {getattr(self, name)}")


@single_writer()
def reconstruct_chips(
    model: MultiMAE,
    source: Source,
    *,
    inputs: Sequence[str],
    out: Path,
    keys: Sequence[str] | None = None,
    split: str | None = None,
    options: ReconstructOptions | None = None,
) -> dict[str, Any]:
    """Reconstruct chips of a source and write what came out.

    Writes ``reconstruction.png`` (the first chips), ``<key>.png`` (one chip each), ``scores.json``,
    ``index.html`` and, with ``arrays``, arrays under ``out``. The chips are those of ``keys``, else
    of ``split``, else all; where none of ``inputs`` was observed they are skipped and counted.

    Returns ``chips``, ``skipped``, ``pictures`` (paths), ``scores`` (``masked`` and ``given``, by
    modality) and the options: ``scores.json`` and the pictures.

    Raises ConfigError for an unknown input or output, DataError where no chip has any of the
    inputs, OutputError where ``out`` cannot be written to.
    """
    chosen = options or ReconstructOptions()
    names, outputs = check_names(model, source, inputs, chosen.outputs)
    indices = chosen_indices(source, keys, split)
    check_source(model.modalities, model.statistics, source, indices, inputs=inputs)
    tally = _Tally(model, inputs, outputs)
    for samples in chip_batches(source, indices, names, inputs, chosen.batch_size):
        batch = collate(samples, source.modalities.select(names))
        predictions = model.reconstruct(
            batch.to(chosen.device),
            list(inputs),
            outputs=outputs,
            samples=chosen.samples,
            seed=chosen.seed,
        )
        for name, pixels in predictions.items():
            require_finite_output(
                model, name, pixels.mean, batch.keys[0],
                lambda batch=batch: model.reconstruct(  # type: ignore[misc]
                    batch.to(chosen.device), list(inputs), outputs=outputs
                ),
            )  # fmt: skip
        tally.add(batch, predictions, chosen.limit)
        if chosen.arrays:
            _write_arrays(out, batch, predictions)
    if not tally.chips:
        raise DataError(
            f"{source.name}: none of {len(indices)} chips has any of the inputs "
            f"{', '.join(inputs)} observed"
        )
    result: dict[str, object] = {
        "source": source.name,
        "split": split,
        "chips": tally.chips,
        "skipped": len(indices) - tally.chips,
        "inputs": list(inputs),
        "outputs": outputs,
        "samples": chosen.samples,
        "seed": chosen.seed,
        "scores": {"masked": tally.masked.compute(), "given": tally.given.compute()},
    }
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False)
    write_file(out / "scores.json", text.encode())
    pictures = _draw(out, tally.views)
    _page(result, pictures).write(out / "index.html")
    return {**result, "pictures": [str(p) for p in pictures]}


class _Tally:
    """What has come of the chips so far."""

    def __init__(self, model: MultiMAE, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.inputs = inputs
        self.chips = 0
        self.views: list[ChipView] = []
        self.masked, self.given = (
            ReconstructionScores(
                model.modalities,
                names=[n for n in outputs if (n in inputs) is was_given],
                statistics=model.statistics,
            )
            for was_given in (False, True)
        )

    def add(self, batch: Batch, predictions: Mapping[str, PredictedPixels], limit: int) -> None:
        """Score a batch, and keep its chips for drawing until there are ``limit``."""
        self.chips += len(batch)
        self.masked.update(batch, predictions)
        self.given.update(batch, predictions)
        if (room := limit - len(self.views)) > 0:
            self.views += chip_views(batch, predictions, inputs=self.inputs)[:room]


def file_name(key: str) -> str:
    """A chip's key as a file name: letters, digits, ``.``, ``_`` and ``-``; distinct keys stay so.

    >>> file_name("chip-17")
    'chip-17'
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", key).strip("._")[:80]
    # Windows and macOS ignore case, and "reconstruction" and "index" are names of our own files.
    if safe == key and key == key.lower() and key not in ("reconstruction", "index"):
        return safe
    return f"{safe or 'chip'}-{hashlib.blake2b(key.encode(), digest_size=4).hexdigest()}"


def check_names(
    model: MultiMAE, source: Source, inputs: Sequence[str], outputs: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Names to read, and names to predict."""
    shared = [n for n in source.modalities if n in model.modalities]
    if not inputs:
        raise ConfigError(f"inputs: name at least one of {', '.join(shared)}")
    for name in inputs:
        if name not in model.modalities:
            raise ConfigError(
                f"inputs: the model has no modality {name!r}; {did_you_mean(name, shared)}"
            )
        if name not in source.modalities:
            raise ConfigError(
                f"inputs: {source.name} has no {name!r}; {did_you_mean(name, shared)}"
            )
    # A patch-normalised prediction has no unit to be drawn or scored in.
    can = list(dict.fromkeys(t.modality for t in model.tasks if t.reconstructs))
    for name in outputs or ():
        if name not in can:
            raise ConfigError(f"outputs: the model predicts no {name!r}; {did_you_mean(name, can)}")
    chosen = [n for n in can if outputs is None or n in outputs]
    if not chosen:
        raise ConfigError("outputs: the model predicts nothing in physical units or classes")
    return [n for n in shared if n in inputs or n in chosen], chosen


def chosen_indices(source: Source, keys: Sequence[str] | None, split: str | None) -> list[int]:
    """The chips of ``keys``, else of ``split``, else all."""
    if keys is not None:
        return [source.index_of(k) for k in keys]
    return [int(i) for i in source.split(split)] if split else list(range(len(source)))


def chip_batches(
    source: Source,
    indices: Sequence[int],
    names: Sequence[str],
    inputs: Sequence[str],
    size: int,
) -> Iterator[list[Sample]]:
    """Runs of up to ``size`` neighbouring chips of equal sizes in which some input was observed."""
    waiting: list[Sample] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for index in indices:
        sample = source.read(index, names)
        if not any(n in sample.pixels and _observed(sample, n) for n in inputs):
            continue
        mine = {n: p.shape for n, p in sample.pixels.items()}
        clash = any(shapes.get(n, shape) != shape for n, shape in mine.items())
        if waiting and (clash or len(waiting) == size):
            yield waiting
            waiting, shapes = [], {}
        waiting.append(sample)
        shapes |= mine
    if waiting:
        yield waiting


def _observed(sample: Sample, name: str) -> bool:
    return name not in sample.valid or bool(sample.valid[name].any())


def _write_arrays(out: Path, batch: Batch, predictions: Mapping[str, PredictedPixels]) -> None:
    for name, prediction in predictions.items():
        mean, std = (
            t.detach().cpu().numpy().astype(np.float32) for t in (prediction.mean, prediction.std)
        )
        for row, key in enumerate(batch.keys):
            data = io.BytesIO()
            np.savez_compressed(data, mean=mean[row], spread=std[row])
            write_file(out / "arrays" / f"{file_name(key)}.{name}.npz", data.getvalue())


def _draw(out: Path, views: Sequence[ChipView]) -> list[Path]:
    """The contact sheet, then a sheet per chip."""
    if not views:
        return []
    # Side by side only what was masked, if anything was; a chip's own sheet shows all.
    masked = [{n: m for n, m in v.mean.items() if n not in v.inputs} or v.mean for v in views]
    sheet = [replace(v, mean=mean) for v, mean in zip(views, masked, strict=True)]
    paths = [save_figure(reconstruction_figure(sheet), out / "reconstruction.png")]
    return paths + [save_figure(chip_figure(v), out / f"{file_name(v.key)}.png") for v in views]


def _page(result: Mapping[str, Any], pictures: Sequence[Path]) -> Report:
    inputs = ", ".join(result["inputs"])
    page = Report(
        f"Reconstruction from {inputs}",
        f"{result['source']}" + (f", split {result['split']}" if result["split"] else ""),
    )
    page.facts(
        {
            "chips": result["chips"],
            "skipped: no input observed": result["skipped"],
            "random masks": result["samples"],
        }
    )
    for part, heading in (("masked", "Masked modalities"), ("given", "Given modalities")):
        scores = result["scores"][part]
        measured = [_row(n, s) for n, s in scores.items() if s["kind"] == "continuous"]
        mapped = [_row(n, s) for n, s in scores.items() if s["kind"] == "categorical"]
        if scores:
            page.heading(heading)
        if measured:
            page.table(
                measured,
                "Per modality on valid pixels, all bands pooled; R² is against the baseline's "
                "prediction of the mean, which scores 0.",
            )
        if mapped:
            page.table(
                mapped, "Class maps; the baseline predicts the most frequent class everywhere."
            )
    for path in pictures[:1]:
        page.heading("Chips").picture(path, "", "Chips in rows: inputs, truth and predictions")
    for path in pictures[1:]:
        page.picture(path, "", f"Chip {path.stem}: truth, prediction, standard deviation and error")
    return page


def _row(name: str, score: Mapping[str, Any]) -> dict[str, object]:
    baseline = score["baseline"]
    if score["kind"] == "categorical":
        return {
            "modality": name,
            "accuracy": score["accuracy"],
            "baseline accuracy": baseline["accuracy"],
            "mean IoU": score["miou"],
            "baseline mean IoU": baseline["miou"],
            "pixels": score["pixels"],
        }
    return {
        "modality": name,
        "R²": score["r2"],
        "RMSE": score["rmse"],
        "baseline RMSE": baseline["rmse"],
        "MAE": score["mae"],
        "baseline MAE": baseline.get("mae"),
        "unit": score["unit"],
        "pixels": score["pixels"],
    }
