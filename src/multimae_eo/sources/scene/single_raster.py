"""A single raster as a scene: the bands of a model's inputs, matched by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from multimae_eo.errors import BandError, ConfigError, did_you_mean
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sources.band_match import BandRule, locate_bands
from multimae_eo.sources.dataset.schema import ModalitySpec, PerChip
from multimae_eo.sources.raster.arrays import cube_name, cube_rasters
from multimae_eo.sources.raster.header import RasterHeader
from multimae_eo.sources.raster.reading import read_header
from multimae_eo.sources.raster.remote import suffix_of

RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".img")
"""Names of a SCENE that are rasters, as cubes are; all others are scene files."""


def is_raster(path: Path) -> bool:
    """Whether a SCENE is a raster or a cube, by its name, rather than a scene file."""
    return suffix_of(path) in RASTER_SUFFIXES or cube_name(path) is not None


@dataclass(frozen=True, kw_only=True)
class RasterRule:
    """The calibration and processing level of a single raster.

    ``level``: product level of its inputs that have several. ``scale``, ``offset``: physical =
    raw · scale + offset (None: the file's tags, else the calibration of the model's training data).
    """

    level: str = ""
    scale: float | None = None
    offset: float | None = None


def raster_specs(
    path: Path, modalities: ModalitySet, rule: RasterRule
) -> Mapping[str, tuple[Path, ModalitySpec]]:
    """How each of ``modalities`` is read from the raster; of a cube, the raster of it that has
    the modality's bands.

    Raises BandError where one is not in it, ConfigError where level or scale must be given.
    """
    paths = (path,) if cube_name(path) is None else cube_rasters(path)
    return {name: _first_spec(paths, modality, rule) for name, modality in modalities.items()}


def _first_spec(
    paths: Sequence[Path], modality: Modality, rule: RasterRule
) -> tuple[Path, ModalitySpec]:
    errors: list[BandError] = []
    for path in paths:
        try:
            return path, _spec(read_header(path), modality, rule)
        except BandError as error:
            errors.append(error)
    raise errors[0]


def _spec(header: RasterHeader, modality: Modality, rule: RasterRule) -> ModalitySpec:
    bands = BandRule(band_names=modality.band_names)
    try:
        at = locate_bands(header, modality, bands)
    except BandError as error:
        raise BandError(
            f"{error}. Of a single raster all inputs are read; choose with --inputs, or write a "
            "scene file"
        ) from error
    scale, offset = (
        (None, None) if modality.categorical else _calibration(header, at, modality, rule)
    )
    return model_spec(modality, rule, scale, offset, f"{header.path}: {modality.name}")


def model_spec(
    modality: Modality, rule: RasterRule, scale: float | None, offset: float | None, where: str
) -> ModalitySpec:
    """A model's modality as a scene file would describe it; ConfigError for another level."""
    level = None
    if modality.levels:
        if rule.level not in modality.levels:
            hint = did_you_mean(rule.level, modality.levels) if rule.level else "which has it?"
            raise ConfigError(f"{where}: --level {' or '.join(modality.levels)}: {hint}")
        level = rule.level
    return ModalitySpec(
        modality=replace(modality, scale=1.0, offset=0.0),
        rule=BandRule(band_names=modality.band_names),
        path=None,
        level=PerChip(level),
        scale=PerChip(scale),
        offset=PerChip(offset),
        nodata=None,
        size=None,
        optional=False,
        exclude=frozenset(),
    )


def _calibration(
    header: RasterHeader, at: Sequence[int], modality: Modality, rule: RasterRule
) -> tuple[float | None, float | None]:
    """Scale and offset as given, None for those of the file's tags; without tags, the model's."""
    bands = [header.bands[i] for i in at]
    if any(b.scale is not None or b.offset is not None for b in bands):
        return rule.scale, rule.offset
    if rule.scale is not None:
        return rule.scale, rule.offset
    if header.dtype.kind == "f" and (modality.scale, modality.offset) != (1.0, 0.0):
        raise ConfigError(
            f"{header.path}: {modality.name}: are its {header.dtype} numbers "
            f"{modality.unit or 'physical'} (--scale 1), or as the model's data were "
            f"(--scale {modality.scale:g})?"
        )
    return modality.scale, modality.offset if rule.offset is None else rule.offset
