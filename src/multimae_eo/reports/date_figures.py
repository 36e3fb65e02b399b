"""Pictures of predicted dates: a chart of a point's series, images of a chip's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from multimae_eo.modality import Modality
from multimae_eo.reports.pictures import picture, scalar_picture, stretch_of
from multimae_eo.reports.style import BLUE, GREY, VERMILION, finish_axes, hide_ticks, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]

_MOST_DATES, _MOST_BANDS = 6, 4


@dataclass(frozen=True, kw_only=True)
class FilledSeries:
    """A chip's series with predicted dates, in physical units.

    ``days``: (T,), since 1970. ``truth``, ``valid``: (T, C, H, W). ``filled[step]``: the
    prediction, the interpolation in time and half the width of the interval, (C, H, W) each.
    """

    key: str
    modality: Modality
    days: npt.NDArray[np.float64]
    truth: Array
    valid: npt.NDArray[np.bool_]
    filled: dict[int, tuple[Array, Array, Array]] = field(default_factory=dict)


def date_figure(view: FilledSeries) -> Figure:
    """A chart of the values of a point of 1 × 1 px; of larger chips a row of images per date."""
    return _chart(view) if view.truth.shape[-2:] == (1, 1) else _images(view)


def _chart(view: FilledSeries) -> Figure:
    """A panel per band: observed values, predictions with their intervals, the interpolation."""
    bands = view.modality.band_names[:_MOST_BANDS]
    figure = new_figure(7.0, 2.2 * len(bands))
    steps = sorted(view.filled)
    dates = _calendar(view.days)
    for band, axes in enumerate(figure.subplots(len(bands), 1, squeeze=False)[:, 0]):
        seen = view.valid[:, band, 0, 0]
        mean, linear, half = (
            np.array([view.filled[s][part][band, 0, 0] for s in steps]) for part in range(3)
        )
        at = dates[steps]
        axes.errorbar(at, mean, half, fmt="s", color=VERMILION, markersize=4, capsize=2,
                      linewidth=1, label="prediction, 90 % interval")  # fmt: skip
        axes.plot(at, linear, "x", color=GREY, markersize=5, label="linear interpolation")
        axes.plot(dates[seen], view.truth[seen, band, 0, 0], "o-", color=BLUE, markersize=3.5,
                  linewidth=0.8, label="observed", zorder=3)  # fmt: skip
        finish_axes(axes, f"{view.key}: {bands[band]}", grid="y")
        axes.tick_params(axis="x", rotation=20)
        if band == 0:
            axes.legend(fontsize=8, frameon=False)
    return figure


def _images(view: FilledSeries) -> Figure:
    """A row per date: date before, truth, interpolation, prediction, half interval, date after."""
    steps, dates = sorted(view.filled)[:_MOST_DATES], _calendar(view.days)
    seen = np.flatnonzero(view.valid.any(axis=(1, 2, 3)))
    reference = int(view.valid.mean(axis=(1, 2, 3)).argmax())
    stretch = stretch_of(view.modality, view.truth[reference], view.valid[reference])
    widths = [np.sqrt((view.filled[s][2] ** 2).mean(axis=0)) for s in steps]
    top = float(np.percentile(widths, 98)) or 1.0
    titles = ("date before", "truth", "linear", "prediction", "interval ±", "date after")
    figure = new_figure(8.4, 0.35 + 1.45 * len(steps), pad=0.03)
    grid = figure.subplots(len(steps), len(titles), squeeze=False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=8)
    for row, step in enumerate(steps):
        for axes in grid[row]:
            hide_ticks(axes)
        for column, at in ((0, seen[seen < step][-1:]), (1, seen[seen == step]),
                           (5, seen[seen > step][:1])):  # fmt: skip
            for date in at:
                image = picture(
                    view.modality, view.truth[date], valid=view.valid[date], stretch=stretch
                )
                grid[row, column].imshow(image)
                grid[row, column].set_xlabel(str(dates[date]), fontsize=7)
        mean, linear, _ = view.filled[step]
        for column, values in ((2, linear), (3, mean)):
            grid[row, column].imshow(picture(view.modality, values, stretch=stretch))
        grid[row, 4].imshow(scalar_picture(widths[row], "cividis", 0.0, top))
        grid[row, 4].set_xlabel(f"to {top:.3g} {view.modality.unit}", fontsize=7)
        grid[row, 0].set_ylabel(str(dates[step]), fontsize=7)
    return figure


def _calendar(days: npt.NDArray[np.float64]) -> npt.NDArray[np.datetime64]:
    return np.floor(days).astype(np.int64).astype("datetime64[D]")
