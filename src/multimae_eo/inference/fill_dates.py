"""Fill cloudy and missing dates of series from the other dates, with intervals and scores."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from multimae_eo.errors import ConfigError, DataError
from multimae_eo.files import single_writer, write_file
from multimae_eo.inference.input_check import check_source
from multimae_eo.inference.masked_dates import DateRule, MaskedDates
from multimae_eo.inference.reconstruct_chips import (
    ReconstructOptions,
    check_names,
    chosen_indices,
    file_name,
)
from multimae_eo.metrics.date_scores import (
    DateScores,
    HeldOut,
    IntervalCalibration,
    IntervalScale,
)
from multimae_eo.metrics.reconstruction_scores import truth_of
from multimae_eo.modality import Modality
from multimae_eo.network.finite import require_finite_output
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.time_interpolation import time_neighbours
from multimae_eo.reports.date_figures import FilledSeries, date_figure
from multimae_eo.reports.html import Report
from multimae_eo.reports.reconstruction_figures import save_figure
from multimae_eo.sample import Batch, collate
from multimae_eo.sources.acquisition_dates import date_text
from multimae_eo.sources.base import Source

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Filled:
    """Predicted dates of a batch of chips, in physical units.

    ``rows``, ``steps``: chip and date of each of n predictions. ``mean``, ``std``, ``linear``,
    ``nearest``, ``truth``: (n, C, H, W); ``valid``, ``between``: bool, alike, see ``HeldOut``.
    """

    tasks: Sequence[MaskedDates]
    rows: npt.NDArray[np.intp]
    steps: npt.NDArray[np.intp]
    arrays: Mapping[str, npt.NDArray[Any]]

    @property
    def held_out(self) -> HeldOut:
        """Their pixels, bands first."""
        flat = {n: np.moveaxis(a, 1, 0).reshape(a.shape[1], -1) for n, a in self.arrays.items()}
        return HeldOut(**flat)


@single_writer()
def fill_dates(  # noqa: PLR0913
    model: MultiMAE,
    source: Source,
    *,
    inputs: Sequence[str],
    rule: DateRule,
    out: Path,
    split: str | None = None,
    calibrate: str | None = None,
    options: ReconstructOptions | None = None,
) -> dict[str, Any]:
    """Predict dates of series from the other dates and write what came out.

    ``rule``: the dates. ``calibrate``: split whose dates, each held out in turn, set the width of
    the intervals. Writes ``scores.json``, ``index.html``, ``<key>.<modality>.png`` of the first
    chips and, with ``options.arrays``, ``arrays/<key>.<modality>.<date>.npz`` under ``out``.

    Returns ``chips``, ``dates`` (predictions made), ``skipped`` (chips without a date to predict),
    ``scores`` by modality (see ``DateScores``), ``calibration`` and ``pictures``.

    Raises ConfigError for unknown names, DataError where no chip has a date to predict, OutputError
    where ``out`` cannot be written to.
    """
    chosen = options or ReconstructOptions()
    names, outputs = _series(model, source, inputs, chosen.outputs)
    if chosen.arrays and rule.gap > 1 and not (rule.days or rule.cloudy):
        raise ConfigError("arrays: a date is in several gaps; leave gap at 1")
    indices = chosen_indices(source, None, split)
    check_source(model.modalities, model.statistics, source, indices, inputs=inputs)
    job = DatePredictor(model, source, names, chosen)
    tallies = []
    for name in outputs:
        tally = _DateTally(
            name,
            model.modalities[name],
            None if calibrate is None else job.scale(name, rule, calibrate),
        )
        for filled in job.predicted(indices, name, rule):
            tally.add(filled, chosen.limit)
            if chosen.arrays:
                _write_arrays(out, filled, tally.scale)
        tallies.append(tally)
    if not any(t.dates for t in tallies):
        raise DataError(
            f"{source.name}: none of {len(indices)} chips has a date to predict from other dates "
            f"of {', '.join(outputs)}"
        )
    chips = set().union(*(t.chips for t in tallies))
    result: dict[str, Any] = {
        "source": source.name,
        "split": split,
        "chips": len(chips),
        "skipped": len(indices) - len(chips),
        "dates": sum(t.dates for t in tallies),
        "gap": rule.gap,
        "inputs": list(inputs),
        "outputs": outputs,
        "samples": chosen.samples,
        "seed": chosen.seed,
        "calibrated_on": calibrate,
        "calibration": {t.name: t.calibrated.to_dict(t.modality) for t in tallies if t.calibrated},
        "scores": {t.name: t.scores.compute() for t in tallies if t.scores.pixels},
    }
    return _written(out, result, tallies)


def _written(out: Path, result: dict[str, Any], tallies: Sequence[_DateTally]) -> dict[str, Any]:
    """Write scores, pictures and the page; the result with the pictures' paths."""
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False)
    write_file(out / "scores.json", text.encode())
    pictures = [
        save_figure(date_figure(view), out / f"{file_name(view.key)}.{tally.name}.png")
        for tally in tallies
        for view in tally.views.values()
    ]
    _page(result, pictures).write(out / "index.html")
    return {**result, "pictures": [str(p) for p in pictures]}


def _series(
    model: MultiMAE, source: Source, inputs: Sequence[str], outputs: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Names to read, and measured modalities to predict, whose other dates are inputs."""
    _, able = check_names(model, source, inputs, outputs)
    chosen = [n for n in able if n in inputs and not model.modalities[n].categorical]
    lacking = [n for n in outputs or () if n not in chosen]
    if lacking or not chosen:
        what = lacking[0] if lacking else ", ".join(inputs)
        raise ConfigError(
            f"dates: {what}: only dates of a measured modality that is itself an input "
            "can be predicted"
        )
    return [n for n in source.modalities if n in inputs], chosen


@dataclass(frozen=True)
class DatePredictor:
    """A model on the series of a source: ``names``, the modalities that it reads, and how."""

    model: MultiMAE
    source: Source
    names: Sequence[str]
    options: ReconstructOptions

    def scale(self, name: str, rule: DateRule, split: str) -> IntervalScale:
        """The scale of a modality's intervals, from held-out dates of a split."""
        band_std = _band_std(self.model, name)
        calibration = IntervalCalibration(self.model.modalities[name], band_std)
        indices = chosen_indices(self.source, None, split)
        for filled in self.predicted(indices, name, rule.each()):
            calibration.update(filled.held_out)
        return calibration.scale(f"{self.source.name}, split {split}")

    def predicted(self, indices: Sequence[int], name: str, rule: DateRule) -> Iterator[Filled]:
        """Predictions of one series, a batch at a time."""
        model, options, names = self.model, self.options, list(self.names)
        modalities = self.source.modalities.select(names)
        for tasks in self._batches(indices, name, rule):
            given = collate([t.given for t in tasks], modalities)
            predicted = model.reconstruct(
                given.to(options.device),
                names,
                outputs=[name],
                samples=options.samples,
                seed=options.seed,
            )[name]
            require_finite_output(
                model, name, predicted.mean, given.keys[0],
                lambda given=given: model.reconstruct(  # type: ignore[misc]
                    given.to(options.device), names, outputs=[name]
                ),
            )  # fmt: skip
            yield _compared(tasks, collate([t.truth for t in tasks], modalities), name, predicted)

    def _batches(
        self, indices: Sequence[int], name: str, rule: DateRule
    ) -> Iterator[list[MaskedDates]]:
        """Up to ``batch_size`` predictions, of chips of equal sizes in pixels."""
        waiting: list[MaskedDates] = []
        shape: Mapping[str, tuple[int, ...]] = {}
        for index in indices:
            sample = self.source.read(index, self.names)
            if name not in sample.dates:
                continue
            mine = {n: p.shape[-2:] for n, p in sample.pixels.items()}
            for task in rule.masked(sample, name):
                if waiting and (len(waiting) == self.options.batch_size or mine != shape):
                    yield waiting
                    waiting = []
                shape = mine
                waiting.append(task)
        if waiting:
            yield waiting


def _compared(tasks: Sequence[MaskedDates], batch: Batch, name: str, predicted: Any) -> Filled:
    """Predictions beside the truth and the interpolation in time."""
    truth = truth_of(batch, name)
    assert truth is not None
    masked = np.zeros(truth.values.shape[:2], dtype=bool)
    for row, task in enumerate(tasks):
        masked[row, : len(task.masked)] = task.masked
    shown = truth.valid & ~masked[:, :, None, None, None]
    near = time_neighbours(
        torch.from_numpy(truth.values), torch.from_numpy(shown), batch.dates[name].cpu()
    )
    comparable = (near.has_before | near.has_after).numpy()
    arrays = {
        "truth": truth.values,
        # Without any other date there is nothing to compare with.
        "valid": truth.valid & comparable,
        "between": (near.has_before & near.has_after).numpy(),
        "mean": predicted.mean.detach().cpu().numpy().astype(np.float64),
        "std": predicted.std.detach().cpu().numpy().astype(np.float64),
        "linear": near.linear.numpy(),
        "nearest": near.nearest.numpy(),
    }
    rows, steps = np.nonzero(masked)
    arrays = {n: a[rows, steps] for n, a in arrays.items()}
    return Filled(tasks=tasks, rows=rows, steps=steps, arrays=arrays)


@dataclass
class _DateTally:
    """What has come of one series so far."""

    name: str
    modality: Modality
    calibrated: IntervalScale | None
    chips: set[str] = field(default_factory=set)
    dates: int = 0
    views: dict[str, FilledSeries] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scores = DateScores(self.modality, self.calibrated)
        self.scale = self.calibrated or IntervalScale.normal(self.modality.channels)

    def add(self, filled: Filled, limit: int) -> None:
        """Score a batch, and keep what is drawn of the first ``limit`` chips."""
        self.scores.update(filled.held_out)
        self.dates += len(filled.rows)
        for number, (row, step) in enumerate(zip(filled.rows, filled.steps, strict=True)):
            sample = filled.tasks[row].truth
            self.chips.add(sample.key)
            if sample.key not in self.views and len(self.views) >= limit:
                continue
            view = self.views.setdefault(
                sample.key,
                FilledSeries(
                    key=sample.key,
                    modality=self.modality,
                    days=sample.dates[self.name],
                    truth=sample.values_of(self.modality),
                    valid=sample.validity(self.name),
                ),
            )
            std = filled.arrays["std"][number]
            view.filled[int(step)] = (
                filled.arrays["mean"][number],
                filled.arrays["linear"][number],
                self.scale.half_width(std),
            )


def _band_std(model: MultiMAE, name: str) -> Array:
    """Standard deviation (C,) of the training data; of several levels the largest."""
    if model.statistics is None:
        return np.ones(model.modalities[name].channels)
    std: Array = model.statistics.mean_std(name)[1].max(axis=0)
    return std


def _write_arrays(out: Path, filled: Filled, scale: IntervalScale) -> None:
    for number, (row, step) in enumerate(zip(filled.rows, filled.steps, strict=True)):
        task = filled.tasks[row]
        mean, std = filled.arrays["mean"][number], filled.arrays["std"][number]
        half = scale.half_width(std)
        parts = {"mean": mean, "std": std, "low": mean - half, "high": mean + half}
        data = io.BytesIO()
        np.savez_compressed(data, **{n: a.astype(np.float32) for n, a in parts.items()})
        date = date_text(float(task.truth.dates[task.name][step]))
        path = out / "arrays" / f"{file_name(task.truth.key)}.{task.name}.{date}.npz"
        write_file(path, data.getvalue())


def _page(result: Mapping[str, Any], pictures: Sequence[Path]) -> Report:
    page = Report(
        "Filled dates",
        f"{result['source']}" + (f", split {result['split']}" if result["split"] else ""),
    )
    page.facts(
        {
            "chips": result["chips"],
            "chips without a date to predict": result["skipped"],
            "predicted dates": result["dates"],
            "intervals calibrated on": result["calibrated_on"] or "nothing",
        }
    )
    rows = [
        _row(name, group, score)
        for name, groups in result["scores"].items()
        for group, score in groups.items()
    ]
    if rows:
        page.heading("Scores").table(
            rows,
            "Of valid pixels of predicted dates, all bands pooled. Between: with a valid date on "
            "both sides; beyond: before the first or after the last valid date. Linear: "
            "interpolation in time between the nearest valid dates of each pixel.",
        )
    for path in pictures:
        page.picture(path, "", f"Predicted dates of chip {path.stem}, with 90 % intervals")
    return page


def _row(name: str, group: str, score: Mapping[str, Any]) -> dict[str, object]:
    row: dict[str, object] = {"modality": name, "dates": group}
    row |= {f"RMSE: {m}": score[m]["rmse"] for m in ("model", "linear", "nearest")}
    row |= {"R²: model": score["model"]["r2"], "R²: linear": score["linear"]["r2"]}
    for kind, interval in score["intervals"].items():
        row[f"coverage of 90 % intervals, {kind}"] = interval["coverage"]
    return {**row, "unit": score["unit"], "pixels": score["pixels"]}
