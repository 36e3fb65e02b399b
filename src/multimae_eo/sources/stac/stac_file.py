"""The STAC file: a YAML text becomes a checked, typed ``StacSpec``. See docs/stac.md.

Nothing is searched or read here but the GeoJSON of the area.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.files import read_json, reading
from multimae_eo.modality import ModalitySet
from multimae_eo.sources.dataset.schema import ModalitySpec, modality_spec
from multimae_eo.sources.raster.warped import grid_crs
from multimae_eo.sources.scene.chip_rule import ChipRule, chip_rule
from multimae_eo.sources.yaml_section import Section, as_number, load_yaml

Composite = Literal["first", "least_cloudy", "median"]
Series = Literal["", "days", "months"]
"""Whether a modality is one image, or has a date for each day or month with an item."""
SERIES: tuple[Series, ...] = ("days", "months")
COMPOSITES: tuple[Composite, ...] = ("first", "least_cloudy", "median")

STAC_KEYS = ("name", "area", "dates", "grid", "api", "catalog", "chips", "modalities")
PASSED_KEYS = (
    "sensor", "bands", "band", "scale", "offset", "nodata", "unit", "gsd", "level", "legend",
    "kind", "custom", "wavelengths", "bandwidths",
)  # fmt: skip
STAC_MODALITY_KEYS = (
    *PASSED_KEYS, "api", "catalog", "collections", "assets", "mask", "max_cloud", "composite",
    "series", "ratio", "check_calibration",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StacSearch:
    """A search of items. ``catalogue``: the URL of an API, or a static catalogue.

    ``dates``: first and last moment, UTC. ``max_cloud``: percent, None for any.
    """

    catalogue: str
    is_api: bool
    collections: tuple[str, ...]
    dates: tuple[datetime.datetime, datetime.datetime]
    max_cloud: float | None


@dataclass(frozen=True, kw_only=True)
class MaskRule:
    """Pixels whose class in ``asset`` is among ``classes`` (or unknown) are invalid."""

    asset: str
    classes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class StacModality:
    """A modality of a STAC file. ``assets``: by band, as declared; empty to match by name.

    ``composite``: of items of one image, or of one date of a ``series``.
    """

    spec: ModalitySpec
    search: StacSearch
    assets: Mapping[str, str]
    mask: MaskRule | None
    composite: Composite
    ratio: int
    check: bool
    series: Series = ""


@dataclass(frozen=True, kw_only=True)
class StacSpec:
    """A whole STAC file. ``area``: a GeoJSON geometry in EPSG:4326."""

    file: Path
    name: str
    area: Mapping[str, object]
    crs: str
    resolution: float
    modalities: Mapping[str, StacModality]
    chip_rule: ChipRule | None


def read_stac_file(path: Path) -> StacSpec:
    """Read and check a STAC file; ConfigError names the invalid key and the valid ones."""
    top = Section.of(str(path), load_yaml(path), STAC_KEYS)
    records = top.get("modalities", {})
    if not isinstance(records, Mapping) or not records:
        raise top.error("modalities", "name at least one modality")
    grid = Section.of(f"{top.where}: grid", top.get("grid"), ("crs", "resolution"))
    resolution = grid.number("resolution")
    if resolution is None or resolution <= 0:
        raise grid.error("resolution", "expected the side of a pixel in units of the CRS")
    modalities = {str(n): _modality(top, str(n), r, path.parent) for n, r in records.items()}
    return StacSpec(
        file=path,
        name=top.text("name", path.stem),
        area=_area(top, path.parent),
        crs=grid_crs(grid.text("crs"), f"{grid.where}: crs"),
        resolution=resolution,
        modalities=modalities,
        chip_rule=chip_rule(top, ModalitySet(m.spec.modality for m in modalities.values())),
    )


def _modality(top: Section, name: str, record: object, folder: Path) -> StacModality:
    section = Section.of(f"{top.where}: modalities.{name}", record or {}, STAC_MODALITY_KEYS)
    passed = {k: v for k, v in section.record.items() if k in PASSED_KEYS}
    spec = modality_spec(top, name, passed)
    ratio = section.get("ratio", 1)
    if type(ratio) is not int or ratio < 1:
        raise section.error("ratio", "expected how many pixels of the grid make one, from 1")
    composite = section.text("composite", "first")
    if composite not in COMPOSITES:
        raise section.error("composite", did_you_mean(composite, COMPOSITES))
    if spec.modality.categorical and composite == "median":
        raise section.error("composite", "classes have no median; take first or least_cloudy")
    check = section.get("check_calibration", True)
    if not isinstance(check, bool):
        raise section.error("check_calibration", "expected true or false")
    return StacModality(
        spec=spec,
        search=_search(top, section, folder),
        assets=_assets(section, spec),
        mask=_mask(section) if "mask" in section else None,
        composite=composite,
        ratio=ratio,
        check=check,
        series=_series(section),
    )


def _series(section: Section) -> Series:
    if "series" not in section:
        return ""
    series = section.text("series")
    if series not in SERIES:
        raise section.error("series", did_you_mean(series, SERIES))
    return series


def _search(top: Section, section: Section, folder: Path) -> StacSearch:
    holder = section if "api" in section or "catalog" in section else top
    api, catalog = holder.text("api"), holder.text("catalog")
    if bool(api) == bool(catalog):
        raise ConfigError(f"{section.where}: give an `api:` (URL) or a `catalog:` (path)")
    most = section.number("max_cloud")
    if most is not None and not 0 <= most <= 100:
        raise section.error("max_cloud", "expected percent, 0 to 100")
    is_path = bool(catalog) and "://" not in catalog
    return StacSearch(
        catalogue=api or (str(folder / catalog) if is_path else catalog),
        is_api=bool(api),
        collections=section.names("collections") or (),
        dates=_dates(top),
        max_cloud=most,
    )


def _assets(section: Section, spec: ModalitySpec) -> dict[str, str]:
    value = section.get("assets", {})
    band_names = spec.rule.band_names
    if isinstance(value, list) and len(value) == len(band_names):
        value = dict(zip(band_names, value, strict=True))
    if not isinstance(value, Mapping) or not all(isinstance(a, str) and a for a in value.values()):
        raise section.error("assets", f"expected an asset for each of {', '.join(band_names)}")
    for band in value:
        if str(band) not in band_names:
            raise section.error(
                "assets", f"no band {band!r}; {did_you_mean(str(band), band_names)}"
            )
    return {str(band): asset for band, asset in value.items()}


def _mask(section: Section) -> MaskRule:
    inner = Section.of(f"{section.where}: mask", section.get("mask"), ("asset", "classes"))
    listed = inner.numbers("classes")
    if not listed or not all(c.is_integer() for c in listed):
        raise inner.error("classes", "expected the class ids that are not to be used")
    if not inner.text("asset"):
        raise inner.error("asset", "name the asset that holds the classes")
    return MaskRule(asset=inner.text("asset"), classes=tuple(int(c) for c in listed))


def _dates(top: Section) -> tuple[datetime.datetime, datetime.datetime]:
    value = top.get("dates")
    listed: Sequence[object] = value.split("/") if isinstance(value, str) else (
        value if isinstance(value, list) else [value]
    )  # fmt: skip
    if not 1 <= len(listed) <= 2:
        raise top.error("dates", "expected FIRST/LAST, as in 2021-05-01/2021-06-30")
    first, last = _moment(top, listed[0], last=False), _moment(top, listed[-1], last=True)
    if last < first:
        raise top.error("dates", "the last lies before the first")
    return first, last


def _moment(top: Section, value: object, *, last: bool) -> datetime.datetime:
    """A date means its first or last moment; times without a zone are UTC."""
    text = value.isoformat() if isinstance(value, datetime.date) else str(value).strip()
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise top.error("dates", f"{text!r} is no date; write 2021-05-01") from error
    if last and len(text) == len("2021-05-01"):
        moment = datetime.datetime.combine(moment.date(), datetime.time.max)
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _area(top: Section, folder: Path) -> dict[str, object]:
    value = top.get("area")
    if isinstance(value, str) and value:
        return _geojson(folder / value)
    numbers = [as_number(v) for v in value] if isinstance(value, list) else []
    box = [n for n in numbers if n is not None and math.isfinite(n)]
    if len(box) != 4 or len(numbers) != 4:
        raise top.error("area", "expected [west, south, east, north] in degrees, or a GeoJSON file")
    west, south, east, north = box
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise top.error("area", "expected west < east and south < north, in degrees")
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def _geojson(path: Path) -> dict[str, object]:
    record = read_json(path, ConfigError, remedy="write polygons in EPSG:4326", form="GeoJSON")
    with reading(path, ConfigError, "write polygons in EPSG:4326", form="GeoJSON"):
        return _polygons(path, record)


def _polygons(path: Path, record: Any) -> dict[str, object]:
    """The polygons of a GeoJSON document as one."""
    kind = record.get("type") if isinstance(record, dict) else None
    features = record.get("features", []) if kind == "FeatureCollection" else [record]
    shapes = [f.get("geometry") if f.get("type") == "Feature" else f for f in features if f]
    polygons: list[object] = []
    for shape in shapes:
        if not isinstance(shape, dict) or shape.get("type") not in ("Polygon", "MultiPolygon"):
            raise ConfigError(f"{path}: area: expected polygons in EPSG:4326")
        coordinates = shape["coordinates"]
        polygons += [coordinates] if shape["type"] == "Polygon" else coordinates
    if not polygons:
        raise ConfigError(f"{path}: area: holds no polygon")
    return {"type": "MultiPolygon", "coordinates": polygons}
