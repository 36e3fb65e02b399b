"""The rasters of a scene's modality: mosaicked where they hold the same bands, stacked by name
where each holds one band of a product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multimae_eo.errors import BandError, DataError, FormatError
from multimae_eo.geo import Window
from multimae_eo.modality import Modality
from multimae_eo.sample import Pixels, Validity
from multimae_eo.sources.band_match import ANOTHER, locate_bands, lone_band
from multimae_eo.sources.dataset.schema import ModalitySpec
from multimae_eo.sources.raster.calibration import (
    Declared,
    Linear,
    band_calibration,
    common,
    physical_type,
    require_alike,
)
from multimae_eo.sources.raster.grid import Grid
from multimae_eo.sources.raster.header import RasterHeader
from multimae_eo.sources.raster.reading import read_header
from multimae_eo.sources.raster.warped import Mosaic, view_on


@dataclass(frozen=True, kw_only=True)
class BandFile:
    """A raster, and the 0-based bands ``at`` that are read of it."""

    path: Path
    header: RasterHeader
    at: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BandGroup:
    """Rasters that hold the same ``bands`` (indices of the modality's)."""

    bands: tuple[int, ...]
    files: tuple[BandFile, ...]


@dataclass(frozen=True, kw_only=True)
class BandStack:
    """A modality's mosaics on one grid, and the calibration of what ``read`` gives.

    ``bands``: of the modality, per mosaic.
    """

    mosaics: tuple[Mosaic, ...]
    bands: tuple[tuple[int, ...], ...]
    calibration: Linear

    def read(self, window: Window) -> tuple[Pixels, Validity]:
        """A window, which may reach over the edges: pixels (C, H, W), valid (1 or C, H, W)."""
        if len(self.mosaics) == 1:
            return self.mosaics[0].read(window)
        parts = [m.read(window) for m in self.mosaics]
        order = np.argsort([b for bands in self.bands for b in bands])
        pixels = np.concatenate([p for p, _ in parts])[order]
        ok = np.concatenate([np.broadcast_to(v, p.shape) for p, v in parts])[order]
        return pixels, ok[:1] if (ok == ok[:1]).all() else ok

    @property
    def paths(self) -> tuple[str, ...]:
        """The rasters, in the order in which they are used."""
        return tuple(v.path for m in self.mosaics for v in m.views)


def group_files(spec: ModalitySpec, paths: Sequence[Path], *, pattern: bool) -> list[BandGroup]:
    """Which raster holds which bands. ``pattern``: the files were matched by a glob, which may
    take more of a product's bands than the modality has.

    Raises BandError for a band that is missing, or files whose bands have no names.
    """
    modality, rule = spec.modality, spec.rule
    headers = [read_header(p) for p in paths]
    silent = not rule.channels and not rule.file_bands
    apart = len(paths) > 1 and all(h.count == 1 for h in headers)
    if silent and apart and (pattern or modality.channels > 1):
        bands = [lone_band(h, modality, rule.band_names) for h in headers]
        # What a list names is meant: none of it is left out.
        if any(b is not None for b in bands) and (pattern or ANOTHER not in bands):
            return _stacked(modality, paths, headers, bands)
    files = [
        BandFile(path=p, header=h, at=locate_bands(h, modality, rule))
        for p, h in zip(paths, headers, strict=True)
    ]
    return [BandGroup(bands=tuple(range(modality.channels)), files=tuple(files))]


def _stacked(
    modality: Modality,
    paths: Sequence[Path],
    headers: Sequence[RasterHeader],
    band_of_file: Sequence[int | None],
) -> list[BandGroup]:
    """A group for each band; files of other bands are left out."""
    unnamed = [p for p, b in zip(paths, band_of_file, strict=True) if b is None]
    if unnamed:
        raise BandError(
            f"{unnamed[0]}: {modality.name}: neither the file nor its only band is named after a "
            "band, as the other files of the pattern are; rename it, or narrow `path:`"
        )
    groups = []
    for index, band in enumerate(modality.bands):
        files = tuple(
            BandFile(path=p, header=h, at=(0,))
            for p, h, b in zip(paths, headers, band_of_file, strict=True)
            if b == index
        )
        if not files:
            other = ", ".join(
                p.name for p, b in zip(paths, band_of_file, strict=True) if b == ANOTHER
            )
            raise BandError(
                f"{paths[0].parent}: {modality.name}: no file of the pattern holds band "
                f"{band.name!r}; other bands: {other[:120] or 'none'}; mend `path:`"
            )
        groups.append(BandGroup(bands=(index,), files=files))
    return groups


def stacks_of(
    dates: Sequence[Sequence[BandGroup]], spec: ModalitySpec, grid: Grid, where: str
) -> tuple[BandStack, ...]:
    """The groups of each date on a grid, all with one calibration. ``where``: the file that
    declares the modality, for messages.

    Pixels stay raw where all bands of all files have one calibration; else they are physical.
    BandError for calibrations that contradict one another, DataError for rasters elsewhere.
    """
    first = dates[0][0].files[0]
    calibrations = [[_calibrations(g, spec, where, first) for g in groups] for groups in dates]
    one = common([c for date in calibrations for group in date for bands in group for c in bands])
    return tuple(
        BandStack(
            mosaics=tuple(
                mosaic_on(group.files, grid, spec.modality, spec, () if one else of_group)
                for group, of_group in zip(groups, of_date, strict=True)
            ),
            bands=tuple(g.bands for g in groups),
            calibration=one or Linear(),
        )
        for groups, of_date in zip(dates, calibrations, strict=True)
    )


def _calibrations(
    group: BandGroup, spec: ModalitySpec, where: str, first: BandFile
) -> tuple[tuple[Linear, ...], ...]:
    """The calibration of the group's bands in each file. ``first``: of the modality's files."""
    name = spec.modality.name
    if spec.modality.categorical:
        return tuple((Linear(),) * len(f.at) for f in group.files)
    declared = Declared(scale=spec.scale.default, offset=spec.offset.default, where=where)
    for file in group.files:
        require_alike(file.header, file.at, first.header, first.at, declared, name)
    return tuple(band_calibration(f.header, f.at, declared, name) for f in group.files)


def mosaic_on(
    files: Sequence[BandFile],
    grid: Grid,
    modality: Modality | None,
    spec: ModalitySpec | None,
    calibrations: Sequence[tuple[Linear, ...]] = (),
) -> Mosaic:
    """Rasters on a grid; without a modality they are classes without a class map."""
    dtype = files[0].header.dtype
    kept: list[int] = []
    views = []
    for index, file in enumerate(files):
        if file.header.dtype != dtype:
            raise FormatError(
                f"{file.path}: dtype {file.header.dtype}, but {dtype} in {files[0].path.name}"
            )
        view = view_on(
            file.path,
            grid,
            nodata=spec.nodata if spec else None,
            class_map_nodata=modality.nodata if modality else (),
            names=spec.rule.file_bands if spec else (),
            nearest=modality is None or modality.categorical,
        )
        if view is not None:
            kept.append(index)
            views.append(view)
    if not views:
        raise DataError(
            f"{files[0].path}: {modality.name if modality else 'the cloud layer'} does not overlap "
            "the scene's grid at all; check its CRS and extent"
        )
    return Mosaic(
        views=tuple(views),
        bands=tuple(tuple(b + 1 for b in files[i].at) for i in kept),
        dtype=str(physical_type(dtype) if calibrations else dtype),
        calibrations=tuple(calibrations[i] for i in kept) if calibrations else (),
    )
