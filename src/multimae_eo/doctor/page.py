"""A diagnosis as one HTML file: findings, histograms of every band, mosaics of chips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from multimae_eo.doctor.finding import BandSummary, Diagnosis
from multimae_eo.doctor.scan import choose, validity
from multimae_eo.doctor.table import evidence_text
from multimae_eo.errors import DataError
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.reports.html import Report
from multimae_eo.reports.pictures import RGB, Stretch, absent_picture, describe, picture, stretch_of
from multimae_eo.sample import Sample
from multimae_eo.sources.base import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHIPS, _PER_ROW = 12, 12
_NAMED = 12
_BAR, _RANGE = "#0072B2", "#D55E00"


def write_page(diagnosis: Diagnosis, source: Source, path: Path) -> Path:
    """Write the page, whole or not at all. Reads some chips of ``source`` again for mosaics.

    Raises OutputError.
    """
    counts = diagnosis.counts
    page = Report(f"Data doctor: {diagnosis.source}", _lead(diagnosis))
    page.facts(
        {
            "chips": diagnosis.chips,
            "examined": diagnosis.examined,
            "errors": counts["error"],
            "warnings": counts["warning"],
            "notes": counts["note"],
        }
    )
    page.heading("Findings")
    if diagnosis.findings:
        page.table(
            {
                "severity": f.severity,
                "check": f.check,
                "where": f.where or "data set",
                "finding": f.what,
                "evidence": evidence_text(f),
                "remedy": f.remedy,
            }
            for f in diagnosis.findings
        )
    else:
        page.text("Nothing to report.")
    page.heading("Values").table(_rows(diagnosis), "Over all examined chips, in physical units.")
    page.gallery(_histograms(diagnosis, source.modalities))
    if diagnosis.classes:
        page.heading("Classes").gallery(_shares(diagnosis))
    named = list(dict.fromkeys(k for f in diagnosis.findings for k in f.chips))[:_NAMED]
    _add_mosaics(page, source, "Chips", [source.keys[i] for i in choose(source, _CHIPS)][:_CHIPS])
    if named:
        _add_mosaics(page, source, "Chips that findings name", named)
    return page.write(path)


def _lead(diagnosis: Diagnosis) -> str:
    return ", ".join(f"{name or 'no split'}: {n}" for name, n in diagnosis.splits.items())


def _rows(diagnosis: Diagnosis) -> Iterator[dict[str, object]]:
    for band in diagnosis.bands:
        low, middle, high = (v if math.isfinite(v) else None for v in band.percentiles)
        yield {
            "modality": band.modality,
            "band": band.band,
            "1 %": low,
            "median": middle,
            "99 %": high,
            "unit": band.unit,
            "nodata": f"{100 * band.nodata:.3g} %" if band.nodata else "–",
        }


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure as NewFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    edge = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    return NewFigure(figsize=(width, height), dpi=110, layout=edge, facecolor="white")


def _histograms(diagnosis: Diagnosis, modalities: ModalitySet) -> Iterator[tuple[Figure, str, str]]:
    """A small histogram per band; dashed lines where the physical range ends inside it."""
    for summary in diagnosis.bands:
        if not summary.counts:
            continue
        modality = modalities[summary.modality]
        band = modality.bands[modality.band_names.index(summary.band)]
        name = summary.band
        if name != summary.modality:
            name = f"{summary.modality}/{summary.band}"
        yield _histogram(summary, band.physical_range, name), "", f"Histogram of {name}"


def _histogram(summary: BandSummary, span: tuple[float, float] | None, title: str) -> Figure:
    figure = _new_figure(3.5, 1.9)
    axes = figure.add_subplot()
    axes.stairs(summary.counts, summary.edges, fill=True, color=_BAR)
    for end in span or ():
        if summary.edges[0] < end < summary.edges[-1]:
            axes.axvline(end, color=_RANGE, linestyle="--", linewidth=1.2)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", parse_math=False)
    axes.set_xlabel(summary.unit, fontsize=9, parse_math=False)
    axes.set_yticks([])
    axes.tick_params(labelsize=8.5, colors="#3a404a")
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _shares(diagnosis: Diagnosis) -> Iterator[tuple[Figure, str, str]]:
    groups: dict[str, list[tuple[str, float]]] = {}
    for known in diagnosis.classes:
        groups.setdefault(known.modality, []).append((known.name, known.share))
    for name, rows in groups.items():
        figure = _new_figure(3.5, 0.9 + 0.2 * len(rows))
        axes = figure.add_subplot()
        axes.barh([n for n, _ in rows], [100 * share for _, share in rows], color=_BAR)
        axes.invert_yaxis()
        axes.set_title(name, loc="left", fontsize=10, fontweight="bold", parse_math=False)
        axes.set_xlabel("%", fontsize=9)
        axes.tick_params(labelsize=8, colors="#3a404a")
        axes.spines[["top", "right"]].set_visible(False)
        yield figure, "", f"Shares of the classes of {name}"


def _add_mosaics(page: Report, source: Source, title: str, keys: Sequence[str]) -> None:
    samples: list[Sample] = []
    for key in keys:
        try:
            samples.append(source.read(source.index_of(key)))
        except DataError:
            continue
    if samples:
        page.heading(title)
        page.picture(
            mosaic(samples, source.modalities),
            "A column per chip, a row per modality; colours are comparable within a row.",
            f"{title}: mosaics of every modality",
        )


def mosaic(samples: Sequence[Sample], modalities: ModalitySet) -> Figure:
    """A row per modality and a column per chip; a checker where a chip lacks the modality."""
    rows = [m for n, m in modalities.items() if any(n in s.pixels for s in samples)]
    figure = _new_figure(1.25 * len(samples) + 0.4, 1.3 * len(rows) + 0.35)
    grid = figure.subplots(len(rows), len(samples), squeeze=False)
    for line, modality in zip(grid, rows, strict=True):
        images = _images(samples, modality)
        for axes, sample in zip(line, samples, strict=True):
            axes.imshow(images[sample.key], interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
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
        oks = [validity(s, modality.name).reshape(len(v), 1, -1)
               for s, v in zip(having, joined, strict=True)]  # fmt: skip
        fit = stretch_of(modality, np.concatenate(joined, axis=2), np.concatenate(oks, axis=2))
    images = {
        s.key: picture(modality, shown[s.key], valid=validity(s, modality.name), stretch=fit)
        for s in having
    }
    blank = absent_picture(*next(iter(images.values())).shape[:2])
    return {s.key: images.get(s.key, blank) for s in samples}
