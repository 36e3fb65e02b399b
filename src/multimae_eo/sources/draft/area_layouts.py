"""Rasters of one area: single rasters, mosaics of tiles, a file per band."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from multimae_eo.catalog import SENSORS
from multimae_eo.modality import canonical
from multimae_eo.sources.draft.file_groups import (
    FolderFiles,
    covering_glob,
    dates_of,
    stem,
    words_of,
)
from multimae_eo.sources.draft.modality_evidence import ModalityDraft, modality_drafts
from multimae_eo.sources.draft.pixel_evidence import FileEvidence
from multimae_eo.sources.draft.yaml_draft import Draft, Entry
from multimae_eo.sources.raster.header import RasterHeader
from multimae_eo.sources.raster.reading import read_header
from multimae_eo.sources.vector.vector_file import read_features
from multimae_eo.sources.yaml_section import BLANK

_OPTICAL = ("sentinel2", "landsat8", "hls")
_CHIP = 128
_MOSAIC_SIGNS = re.compile(r"[\d_\-. ]+$")


@dataclass(frozen=True, kw_only=True)
class NamedRaster:
    """A raster of one band, the band's name in the catalogue, and its sensors."""

    name: str
    header: RasterHeader
    bands: Mapping[str, str]
    rest: str


def area_draft(files: FolderFiles) -> Draft | None:
    """The draft of a scene file; None where there is no raster with a location on the ground.

    Raises FormatError for a raster that cannot be read.
    """
    headers = {name: read_header(files.folder / name) for name in files.rasters}
    located = {n: h for n, h in headers.items() if h.geometry is not None}
    if not located:
        return None
    dates = sorted({d for n in located if (d := dates_of(n))})
    chosen = dates[-1] if dates else ""
    kept = {n: h for n, h in located.items() if dates_of(n) in ("", chosen)}
    drafts, notes, doubts = _modalities(files.folder, kept)
    if len(dates) > 1:
        doubts.append(
            f"files of {len(dates)} dates ({', '.join(dates[:4])}{', …' if dates[4:] else ''}): "
            f"this file names those of {chosen}; write a scene file for each date"
        )
    if len(files.vectors) > 1:
        notes.append(f"vector files beside the rasters: {', '.join(files.vectors[:3])}")
    lost = sorted(set(headers) - set(located))
    if lost:
        notes.append(f"left out, without georeferencing: {', '.join(lost[:3])}")
    time = [Entry("time", chosen, "the date in the file names")] if chosen else []
    return Draft(
        kind="scene",
        folder=files.folder,
        entries=(
            Entry("name", _name(files, kept)),
            *time,
            Entry("modalities", tuple(d.entry(drafts) for d in drafts)),
            Entry("chips", {"size": _CHIP}, "only where the scene is a SOURCE: the side of its "
                  "chips in pixels of the grid; see `split`, `label` and `min_valid`"),
            *_vector_labels(files),
        ),
        evidence=(
            f"{len(kept)} raster(s) of one area",
            *(f"{d.name}: {d.evidence}" for d in drafts),
            *notes,
        ),
        doubts=tuple(doubts),
    )  # fmt: skip


def _vector_labels(files: FolderFiles) -> list[Entry]:
    """The ``labels:`` of the only vector file beside the rasters."""
    if len(files.vectors) != 1:
        return []
    features = read_features(files.folder / files.vectors[0])
    columns = list(features.columns)
    column = (
        Entry("column", columns[0], "the only column")
        if len(columns) == 1
        else Entry("column", BLANK, f"the column of the classes: one of {', '.join(columns)}")
    )
    comment = "the vector file beside the rasters; remove it where it holds no labels"
    return [Entry("labels", (Entry("vector", files.vectors[0]), column), comment)]


def _name(files: FolderFiles, kept: Mapping[str, RasterHeader]) -> str:
    return stem(next(iter(kept))) if len(kept) == 1 else files.folder.resolve().name or "scene"


def _modalities(
    folder: Path, headers: Mapping[str, RasterHeader]
) -> tuple[list[ModalityDraft], list[str], list[str]]:
    """Band files first, then a modality for each group of rasters that are named alike; notes,
    and doubts."""
    drafts, doubts, taken = _band_files(folder, headers)
    notes: list[str] = []
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, header in headers.items():
        if name in taken:
            continue
        key = (_MOSAIC_SIGNS.sub("", stem(name)), header.count, str(header.dtype))
        groups.setdefault(key, []).append(name)
    for names in sorted(groups.values(), key=lambda g: (_metres(headers[g[0]]), -len(g))):
        made, more = modality_drafts(FileEvidence.of(folder, names), " ".join(names[:2]))
        path = Entry("path", covering_glob(names, list(headers)))
        drafts += _with_path(made, drafts, path, names[0])
        notes += more
        extents = {h.geometry.bounds for n in names if (h := headers[n]).geometry is not None}
        if len(extents) < len(names):
            doubts.append(
                f"several of {', '.join(names[:3])} cover the same ground; of a mosaic, the first "
                "file with a valid pixel is used"
            )
    return drafts, notes, doubts


def _with_path(
    made: Sequence[ModalityDraft], before: Sequence[ModalityDraft], path: Entry, file: str
) -> list[ModalityDraft]:
    """Modalities of one group of rasters, under names that are free."""
    taken = [d.name for d in before]
    plain = re.sub(r"[^0-9A-Za-z]+", "_", stem(file)).strip("_").lower()
    names = {
        d.name: next(n for n in (d.name, f"{d.name}_{plain}"[:60]) if n not in taken) for d in made
    }
    return [
        replace(d, name=names[d.name], like=names[d.like])
        if d.like
        else replace(
            d,
            name=names[d.name],
            entries=(path, *d.entries),
            evidence=f"{d.evidence} ({file})",
        )
        for d in made
    ]


def _metres(header: RasterHeader) -> float:
    """The pixel size, in metres to about a tenth where the CRS has degrees."""
    size = header.pixel_size or (0.0, 0.0)
    degrees = header.geometry is not None and abs(header.geometry.bounds[3]) <= 90
    return size[0] * (111_000 if degrees else 1)


def _band_files(
    folder: Path, headers: Mapping[str, RasterHeader]
) -> tuple[list[ModalityDraft], list[str], set[str]]:
    """Modalities of files that hold a band each; doubts; and the files that were recognised."""
    singles = [b for n, h in headers.items() if h.count == 1 and (b := band_file(n, h)).bands]
    groups: dict[str, list[NamedRaster]] = {}
    for file in singles:
        groups.setdefault(file.rest, []).append(file)
    group = max(groups.values(), key=len, default=[])
    if len(group) < 2:
        return [], [], set()
    words = words_of(f"{folder.name} {group[0].name}")
    sensor = band_sensor(group, words)
    if not sensor:
        sensor = "sentinel2"
        blank = True
    else:
        blank = False
    at = {f.bands[sensor]: f for f in group if sensor in f.bands}
    drafts = []
    by_size: dict[float, list[str]] = {}
    for band in (b.name for b in SENSORS[sensor].bands if b.name in at):
        by_size.setdefault(round((at[band].header.pixel_size or (0.0,))[0], 6), []).append(band)
    for size, bands in sorted(by_size.items()):
        evidence = FileEvidence.of(folder, [at[b].name for b in bands])
        listed = [
            Entry("bands", {b: at[b].name for b in bands}),
            Entry("sensor", BLANK if blank else sensor,
                  "sensor: sentinel2 or landsat8; the names of the bands are both's"
                  if blank else ""),
            *band_calibration_entries(evidence, sensor, set(at), words),
            *_ratio(size, min(by_size)),
        ]  # fmt: skip
        name = "optical" if len(by_size) == 1 else f"optical_{size:g}m"
        drafts.append(
            ModalityDraft(
                name=name,
                entries=tuple(listed),
                evidence=f"{sensor}: a file per band, {', '.join(bands)} at {size:g} m",
            )
        )
    names = sorted(groups, key=lambda rest: -len(groups[rest]))
    doubts = (
        [f"{len(groups)} groups of band files ({', '.join(names[:3])}); only the first is in it"]
        if len(groups) > 1
        else []
    )
    return drafts, doubts, {f.name for f in singles}


def band_file(name: str, header: RasterHeader) -> NamedRaster:
    """Which band of which sensor a file's name means; the rest of its name."""
    parts = [p for p in re.split(r"[_.\-]+", stem(name)) if p]
    for index, part in enumerate(parts):
        bands = {
            sensor: band.name
            for sensor in _OPTICAL
            for band in SENSORS[sensor].bands
            if band.matches(part)
        }
        if bands:
            rest = [p for i, p in enumerate(parts) if i != index]
            rest = [p for p in rest if not re.fullmatch(r"\d+m|SR|sr", p)]
            return NamedRaster(name=name, header=header, bands=bands, rest="_".join(rest))
    return NamedRaster(name=name, header=header, bands={}, rest="")


def band_sensor(group: Sequence[NamedRaster], words: set[str]) -> str:
    """The sensor of band files, "" where their names fit several. ``words``: of their paths."""
    names = {canonical(b) for f in group for b in f.bands.values()}
    if names & {"b8a", "b11", "b12"} or words & {"s2", "sentinel2", "l2a", "l1c", "s2a", "s2b"}:
        return "sentinel2"
    if words & {"lc08", "lc09", "landsat", "landsat8", "landsat9"}:
        return "landsat8"
    return "hls" if "hls" in words else ""


def band_calibration_entries(
    evidence: FileEvidence, sensor: str, bands: set[str], words: set[str]
) -> list[Entry]:
    """Level and scale of band files, as of files that hold all bands."""
    made, _ = modality_drafts(evidence, f"{sensor} {' '.join(sorted(words))}")
    entries = [e for e in made[0].entries if e.key in ("scale", "level")] if made else []
    if not SENSORS[sensor].levels or any(e.key == "level" for e in entries):
        return entries
    if "B10" in bands:
        return [Entry("level", "l1c", "L2A products have no band B10"), *entries]
    return [Entry("level", BLANK, "processing level: l1c or l2a"), *entries]


def _ratio(size: float, finest: float) -> list[Entry]:
    ratio = size / finest if finest else 1.0
    if ratio <= 1 or abs(ratio - round(ratio)) > 1e-6:
        return []
    return [Entry("ratio", round(ratio), f"pixels of {size:g} m on a grid of {finest:g} m")]
