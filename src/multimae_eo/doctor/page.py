"""A diagnosis as one HTML file: findings, histograms of every band, mosaics of chips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multimae_eo.doctor.finding import Diagnosis
from multimae_eo.doctor.scan import choose
from multimae_eo.doctor.table import evidence_text
from multimae_eo.errors import DataError
from multimae_eo.modality import ModalitySet
from multimae_eo.reports.charts import histogram_figure, share_figure
from multimae_eo.reports.chip_pictures import mosaic
from multimae_eo.reports.html import Report
from multimae_eo.sample import Sample
from multimae_eo.sources.base import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHIPS, _PER_ROW = 12, 12
_NAMED = 12


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
        drawn = histogram_figure(
            summary.counts,
            summary.edges,
            title=name,
            unit=summary.unit,
            limits=band.physical_range or (),
        )
        yield drawn, "", f"Histogram of {name}"


def _shares(diagnosis: Diagnosis) -> Iterator[tuple[Figure, str, str]]:
    groups: dict[str, list[tuple[str, float]]] = {}
    for entry in diagnosis.classes:
        groups.setdefault(entry.modality, []).append((entry.name, entry.share))
    for name, rows in groups.items():
        figure = share_figure(rows, title=name)
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
