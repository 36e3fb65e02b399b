"""Pictures of chips: mosaics of every modality, and examples with truth and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from multimae_eo.class_colors import Color, class_colors
from multimae_eo.metrics.task_metrics import Predictions, chip_outcomes
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.reports.pictures import (
    RGB,
    Look,
    Stretch,
    absent_picture,
    describe,
    look_of,
    picture,
    stretch_of,
)
from multimae_eo.reports.style import hide_ticks, new_figure
from multimae_eo.sample import Sample
from multimae_eo.sources.base import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACROSS, _PAD = 6, 0.05
_LOOKS = (Look.COLOUR, Look.SCALAR, Look.RELIEF, Look.PAIR, Look.CLASSES)
_IGNORED = (236, 236, 236)


def example_figure(predictions: Predictions, source: Source, *, count: int) -> Figure:
    """The best and the worst predicted chips of ``source``, half each, with truth and prediction.

    Raises DataError where ``source`` lacks a chip of the predictions.
    """
    rows = chosen_chips(predictions, count)
    samples = [source.read(source.index_of(predictions.keys[i])) for i in rows]
    images = [chip_picture(sample, source.modalities) for sample in samples]
    if predictions.kind == "segmentation":
        return _map_figure(predictions, rows, images)
    if predictions.truth.ndim > 1 and predictions.kind == "regression":
        return _value_figure(predictions, rows, images)
    across = min(_ACROSS, len(rows))
    down = -(-len(rows) // across)
    figure = new_figure(1.75 * across, 2.25 * down, pad=_PAD)
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.ravel():
        axes.axis("off")
    for axes, row, image in zip(grid.ravel(), rows, images, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(_caption(predictions, row), fontsize=7.5, loc="left", parse_math=False)
    return figure


def chosen_chips(predictions: Predictions, count: int) -> list[int]:
    """The best half and the worst half; of equal ones, those of the highest confidence.

    Of maps, the best are sought among chips of several classes, where there are any.
    """
    outcome = chip_outcomes(predictions)
    sure = np.zeros(len(predictions))
    if predictions.kind == "classification" and predictions.probability is not None:
        sure = predictions.probability.max(axis=1)
    order = np.lexsort((-sure, -np.nan_to_num(outcome, nan=-np.inf)))
    defined = [int(i) for i in order if np.isfinite(outcome[i])]
    if len(defined) <= count:
        return defined
    worst = sorted(defined, key=lambda i: (outcome[i], -sure[i]))[: count // 2]
    rest = [i for i in defined if i not in worst]
    if predictions.kind == "segmentation":
        varied = (predictions.counts.true > 0).sum(axis=1) > 1
        rest.sort(key=lambda i: not varied[i])
    return rest[: count - len(worst)] + worst


def chip_picture(sample: Sample, modalities: ModalitySet) -> RGB:
    """A chip drawn from one modality (H, W, 3): one in colour if there is any; of a series its
    clearest date."""
    sample = sample.clearest()
    ranked = sorted(sample.pixels, key=lambda n: _LOOKS.index(look_of(modalities[n])))
    modality = modalities[ranked[0]]
    return picture(modality, sample.values_of(modality), valid=sample.valid.get(modality.name))


def _unit(color: Sequence[int] | npt.NDArray[np.uint8]) -> tuple[float, float, float]:
    """A colour as matplotlib takes it: red, green and blue in 0 … 1."""
    red, green, blue = (int(value) / 255 for value in color)
    return red, green, blue


def _map_figure(predictions: Predictions, rows: list[int], images: list[RGB]) -> Figure:
    """Rows of chips, truths and predictions, a column per chip, above a key of the classes."""
    from matplotlib.patches import Patch

    accuracy = chip_outcomes(predictions)
    maps = np.stack([predictions.truth[rows], predictions.predicted[rows]])
    shown = {int(c) for c in np.unique(maps) if c >= 0}
    count = max([len(predictions.class_names), *(c + 1 for c in shown)])
    palette = class_colors([predictions.name_of(i) for i in range(count)])
    figure = _columns(
        [
            (f"{_clipped(predictions.keys[row], 18)}\n{100 * accuracy[row]:.0f} % right",
             (image, *(painted(m, palette)
                       for m in (predictions.truth[row], predictions.predicted[row]))))
            for row, image in zip(rows, images, strict=True)
        ]
    )  # fmt: skip
    entries = [Patch(color=_unit(palette[c]), label=predictions.name_of(c)) for c in sorted(shown)]
    figure.legend(handles=entries, loc="outside lower left", ncols=6, fontsize=8, frameon=False)
    return figure


def _value_figure(predictions: Predictions, rows: list[int], images: list[RGB]) -> Figure:
    """As ``_map_figure``, of maps of values in one colour scale; unknown values are light grey."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    truth, predicted = predictions.truth[rows], predictions.predicted[rows]
    span = Normalize(float(np.nanmin(truth)), float(np.nanmax(truth)))
    colours = ScalarMappable(span, colormaps["viridis"].with_extremes(bad=_unit(_IGNORED)))
    apart = np.sqrt(-chip_outcomes(predictions)[rows])
    figure = _columns(
        [
            (f"{_clipped(predictions.keys[row], 18)}\nRMSE {apart[i]:.3g}",
             (image, *(colours.to_rgba(np.ma.masked_invalid(m[i])) for m in (truth, predicted))))
            for i, (row, image) in enumerate(zip(rows, images, strict=True))
        ]
    )  # fmt: skip
    figure.colorbar(colours, ax=figure.axes, shrink=0.6)
    return figure


def _columns(columns: list[tuple[str, tuple[npt.NDArray[np.generic], ...]]]) -> Figure:
    """A titled column per chip: the chip, the truth, the prediction."""
    figure = new_figure(1.6 * len(columns) + 0.5, 5.9, pad=_PAD)
    grid = figure.subplots(3, len(columns), squeeze=False)
    for (title, parts), column in zip(columns, grid.T, strict=True):
        for axes, part in zip(column, parts, strict=True):
            axes.imshow(part, interpolation="nearest")
            hide_ticks(axes)
        column[0].set_title(title, fontsize=7.5, loc="left", parse_math=False)
    for axes, name in zip(grid[:, 0], ("chip", "truth", "prediction"), strict=True):
        axes.set_ylabel(name, fontsize=9)
    return figure


def painted(index: npt.NDArray[np.integer], palette: Sequence[Color]) -> RGB:
    """A map of class indices (H, W) in a palette's colours (H, W, 3); ignored ones light grey."""
    colours = np.array(palette, np.uint8)[np.maximum(index, 0).astype(np.int64)]
    return np.where((index < 0)[..., None], np.array(_IGNORED, np.uint8), colours).astype(np.uint8)


def _caption(predictions: Predictions, row: int) -> str:
    truth, predicted = predictions.truth[row], predictions.predicted[row]
    if predictions.kind == "regression":
        return f"true {truth:.4g}\npredicted {predicted:.4g}"
    if predictions.kind == "classification":
        right = "✓" if truth == predicted else "✗"
        text = _clipped(predictions.name_of(int(predicted)), 20)
        if predictions.probability is not None:
            text += f" {100 * predictions.probability[row, int(predicted)]:.0f} %"
        return f"{_clipped(predictions.name_of(int(truth)), 22)}\n{right} {text}"
    lacking = np.flatnonzero((truth > 0) & (predicted == 0))
    extra = np.flatnonzero((truth == 0) & (predicted > 0))
    hits = int(((truth > 0) & (predicted > 0)).sum())
    wrong = [f"−{predictions.name_of(int(i))}" for i in lacking]
    wrong += [f"+{predictions.name_of(int(i))}" for i in extra]
    return f"{hits} right\n" + _clipped(", ".join(wrong) or "✓", 26)


def _clipped(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def mosaic(samples: Sequence[Sample], modalities: ModalitySet) -> Figure:
    """A row per modality and a column per chip; a checker where a chip lacks the modality."""
    rows = [m for n, m in modalities.items() if any(n in s.pixels for s in samples)]
    figure = new_figure(1.25 * len(samples) + 0.4, 1.3 * len(rows) + 0.35, pad=0.06, dpi=110)
    grid = figure.subplots(len(rows), len(samples), squeeze=False)
    for line, modality in zip(grid, rows, strict=True):
        images = _images(samples, modality)
        for axes, sample in zip(line, samples, strict=True):
            axes.imshow(images[sample.key], interpolation="nearest")
            hide_ticks(axes)
        line[0].set_ylabel(modality.name, fontsize=9, parse_math=False)
        line[0].set_title(describe(modality), loc="left", fontsize=8, parse_math=False)
    for axes, sample in zip(grid[-1], samples, strict=True):
        short = sample.key if len(sample.key) <= 18 else "…" + sample.key[-17:]
        axes.set_xlabel(short, fontsize=7, parse_math=False)
    return figure


def _images(samples: Sequence[Sample], modality: Modality) -> Mapping[str, RGB]:
    """Every chip in one stretch, that of all their pixels together."""
    having = [s for s in samples if modality.name in s.pixels]
    shown = {s.key: s.values_of(modality) for s in having}
    fit: Stretch | None = None
    if not modality.categorical:
        joined = [v.reshape(len(v), 1, -1) for v in shown.values()]
        oks = [s.validity(modality.name).reshape(len(v), 1, -1)
               for s, v in zip(having, joined, strict=True)]  # fmt: skip
        fit = stretch_of(modality, np.concatenate(joined, axis=2), np.concatenate(oks, axis=2))
    images = {
        s.key: picture(modality, shown[s.key], valid=s.validity(modality.name), stretch=fit)
        for s in having
    }
    blank = absent_picture(*next(iter(images.values())).shape[:2])
    return {s.key: images.get(s.key, blank) for s in samples}
