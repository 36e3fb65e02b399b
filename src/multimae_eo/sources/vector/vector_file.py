"""Features of a GeoPackage, GeoJSON, GeoParquet, Shapefile or FlatGeobuf, checked as they are read.

pyogrio reads all of them but GeoParquet, which pyarrow reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, DataError, FormatError, did_you_mean
from multimae_eo.files import parse_json, reading, require_regular
from multimae_eo.sources.raster.grid import Bounds

VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".parquet", ".geoparquet", ".shp", ".fgb")
"""Names of files that hold features."""
_PARQUET = (".parquet", ".geoparquet")
_FORMATS = "GeoPackage, GeoJSON, GeoParquet, Shapefile or FlatGeobuf"
_SIGNATURES = (b"SQLite format 3", b"{", b"PAR1", b"\x00\x00\x27\x0a", b"fgb")
_UNDEFINED = ("Undefined geographic SRS", "Undefined Cartesian SRS")
"""GeoPackage's two systems for an unknown CRS; older GDAL writes the first where none is given."""
_FULL_TURN = 360.0

Shapes = npt.NDArray[np.object_]


@dataclass(frozen=True, kw_only=True)
class VectorFeatures:
    """Features that have a geometry.

    ``crs``: authority or WKT. ``shapes``: shapely geometries (n,), none empty. ``columns``: values
    of each column, aligned with them. ``rows``: their positions in the file. ``empty``: number of
    features without a geometry, which are left out.
    """

    path: Path
    crs: str
    shapes: Shapes
    columns: Mapping[str, list[Any]]
    rows: npt.NDArray[np.int64]
    empty: int = 0

    def __len__(self) -> int:
        return len(self.shapes)

    def take(self, rows: npt.NDArray[np.generic]) -> VectorFeatures:
        """The features at some indices, or where a mask is true."""
        kept = np.arange(len(self))[rows]
        return replace(
            self,
            shapes=self.shapes[kept],
            columns={n: [values[i] for i in kept] for n, values in self.columns.items()},
            rows=self.rows[kept],
        )


def is_vector(path: Path) -> bool:
    """Whether a path is named like a vector file."""
    return path.suffix.lower() in VECTOR_SUFFIXES


def read_features(
    path: Path, *, columns: Sequence[str] | None = None, layer: str = "", crs: str = ""
) -> VectorFeatures:
    """Read a layer's features.

    Args:
        path: The file.
        columns: Names of the columns to read (default: all).
        layer: Name of the layer, where the file has several with geometries.
        crs: The CRS, in place of the one that the file declares.

    Raises:
        ConfigError: no such file, column or layer; pyogrio is not installed. FormatError: a file
        that cannot be read, or without a CRS. DataError: no feature has a geometry.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file; name a {_FORMATS}")
    _require_format(path)
    with reading(path, FormatError, f"restore it, or save it as {_FORMATS}", form="features"):
        if path.suffix.lower() in _PARQUET:
            declared, wkb, values = _read_parquet(path, columns)
        else:
            declared, wkb, values = _read_layer(path, columns, layer)
        shapely = _shapely()
        shapes = shapely.force_2d(shapely.from_wkb(np.asarray(wkb, dtype=object)))
    usable = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    if not usable.any():
        raise DataError(f"{path}: none of its {len(shapes)} features has a geometry")
    rows = np.flatnonzero(usable)
    return VectorFeatures(
        path=path,
        crs=_crs_of(path, crs or declared, given=bool(crs)),
        shapes=_valid(shapes[rows]),
        columns={n: [_plain(column[i]) for i in rows] for n, column in values.items()},
        rows=rows,
        empty=len(shapes) - len(rows),
    )


def on_crs(features: VectorFeatures, crs: str, bounds: Bounds | None, area: str) -> VectorFeatures:
    """The features with coordinates in ``crs``.

    ``bounds``: the area, in ``crs``, that some feature has to touch, if given; ``area``: its
    name. Raises
    DataError where none does: what is known of the reason is in the message.
    """
    _require_degrees(features)
    shapely = _shapely()
    shapes = _transformed(features.shapes, features.crs, crs)
    if bounds is None:
        return replace(features, crs=crs, shapes=shapes)
    box = shapely.box(*bounds)
    if shapely.intersects(shapely.box(*shapely.bounds(shapes).T), box).any():
        return replace(features, crs=crs, shapes=shapes)
    swapped = shapely.transform(features.shapes, lambda xy: xy[:, ::-1])
    try:
        swapped = _transformed(swapped, features.crs, crs)
    except DataError:
        swapped = shapes
    if shapely.intersects(shapely.box(*shapely.bounds(swapped).T), box).any():
        raise DataError(
            f"{features.path}: longitude and latitude (x and y) are swapped: no feature lies in "
            f"{area}, but they would with the axes exchanged; write x first"
        )
    raise DataError(
        f"{features.path}: no feature lies in {area}: its extent is {_extent(shapes)}, that of "
        f"{area} {_rounded(bounds)} in {crs[:40]}; check the CRS that the file declares "
        f"({features.crs[:40]}), or name another one with `crs:`"
    )


def _require_format(path: Path) -> None:
    """FormatError unless the first bytes are those of a format named here.

    GDAL goes by content, and some of its formats name other files and addresses.
    """
    require_regular(path, FormatError)
    with reading(path, FormatError), path.open("rb") as stream:
        start = stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(_SIGNATURES):
        raise FormatError(f"{path}: is no {_FORMATS}; restore it, or save it as one")


def _read_layer(
    path: Path, columns: Sequence[str] | None, layer: str
) -> tuple[str, Any, dict[str, Any]]:
    pyogrio = _pyogrio()
    layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if not layers:
        raise FormatError(f"{path}: has no layer with geometries")
    if layer and layer not in layers:
        raise ConfigError(f"{path}: no layer {layer!r}; {did_you_mean(layer, layers)}")
    if not layer and len(layers) > 1:
        raise ConfigError(f"{path}: has several layers ({', '.join(layers)}); name one: `layer:`")
    chosen = layer or layers[0]
    fields = [str(f) for f in pyogrio.read_info(path, layer=chosen)["fields"]]
    _require_columns(path, columns, fields)
    meta, _, shapes, values = pyogrio.raw.read(
        path, layer=chosen, columns=None if columns is None else list(columns)
    )
    named = dict(zip((str(f) for f in meta["fields"]), values, strict=True))
    return str(meta["crs"] or ""), shapes, named


def _read_parquet(path: Path, columns: Sequence[str] | None) -> tuple[str, Any, dict[str, Any]]:
    """GeoParquet; without a CRS in its metadata it is longitude and latitude (OGC:CRS84)."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    metadata = (schema.metadata or {}).get(b"geo")
    if metadata is None:
        raise FormatError(f"{path}: is Parquet without geometries (no `geo` metadata)")
    geo = parse_json(metadata, path, FormatError)
    geometry = str(geo.get("primary_column", "geometry"))
    entry = geo["columns"][geometry]
    if entry.get("encoding") != "WKB":
        raise FormatError(f"{path}: geometries encoded as {entry.get('encoding')}; write WKB")
    fields = [name for name in schema.names if name != geometry]
    _require_columns(path, columns, fields)
    chosen = fields if columns is None else list(columns)
    table = pq.read_table(path, columns=[*chosen, geometry])
    declared = entry.get("crs", "OGC:CRS84")
    text = json.dumps(declared) if isinstance(declared, Mapping) else str(declared or "")
    return text, table[geometry].to_pylist(), {n: table[n].to_pylist() for n in chosen}


def _require_columns(path: Path, columns: Sequence[str] | None, fields: Sequence[str]) -> None:
    for name in columns or ():
        if name not in fields:
            raise ConfigError(f"{path}: no column {name!r}; {did_you_mean(name, fields)}")


def _crs_of(path: Path, text: str, *, given: bool) -> str:
    from rasterio.crs import CRS
    from rasterio.errors import RasterioError

    if not text or (not given and any(name in text for name in _UNDEFINED)):
        raise FormatError(f"{path}: declares no CRS; name it with `crs:`, as in EPSG:4326")
    try:
        crs = CRS.from_user_input(text)
    except (RasterioError, ValueError) as error:
        if given:
            raise ConfigError(f"crs: {text!r} is no CRS; write it as in EPSG:4326") from error
        raise FormatError(f"{path}: its CRS cannot be read; name it with `crs:`") from error
    return str(crs.to_string())


def _require_degrees(features: VectorFeatures) -> None:
    """DataError for a geographic CRS with coordinates that are no degrees."""
    from rasterio.crs import CRS

    if not CRS.from_user_input(features.crs).is_geographic:
        return
    left, bottom, right, top = _shapely().total_bounds(features.shapes)
    largest = max(abs(v) for v in (left, bottom, right, top))
    if largest > _FULL_TURN:
        raise DataError(
            f"{features.path}: a coordinate of {largest:.0f} is no degree: the file declares "
            f"{features.crs[:40]}, its coordinates are in another CRS; name it with `crs:`"
        )
    if max(abs(bottom), abs(top)) > _FULL_TURN / 4:
        raise DataError(
            f"{features.path}: a latitude of {max(abs(bottom), abs(top)):.4g}°: longitude and "
            "latitude are swapped; write x (longitude) first"
        )


def _transformed(shapes: Shapes, source: str, target: str) -> Shapes:
    if source == target:
        return shapes
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    def project(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.stack(transform(source, target, xy[:, 0], xy[:, 1]), axis=1)

    try:
        moved: Shapes = _shapely().transform(shapes, project)
    except RasterioError as error:
        raise DataError(f"coordinates cannot be transformed to {target[:40]}: {error}") from error
    if not np.isfinite(_shapely().get_coordinates(moved)).all():
        raise DataError(
            f"coordinates in {source[:40]} cannot be transformed to {target[:40]}; check the CRS"
        )
    return moved


def _valid(shapes: Shapes) -> Shapes:
    """Self-intersecting polygons mended; others as they are."""
    shapely = _shapely()
    bad = ~shapely.is_valid(shapes)
    if bad.any():
        shapes = shapes.copy()
        shapes[bad] = shapely.make_valid(shapes[bad])
    return shapes


def _plain(value: object) -> object:
    """A cell as a Python value; None where there is none."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _extent(shapes: Shapes) -> str:
    return _rounded(_shapely().total_bounds(shapes))


def _rounded(bounds: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in bounds) + ")"


@cache
def _shapely() -> ModuleType:
    try:
        import shapely
    except ImportError as error:
        raise _missing("shapely") from error
    return shapely


@cache
def _pyogrio() -> Any:
    try:
        import pyogrio
        import pyogrio.raw
    except ImportError as error:
        raise _missing("pyogrio") from error
    return pyogrio


def _missing(name: str) -> ConfigError:
    return ConfigError(f"vector files need {name}; install it with pip install 'multimae-eo[geo]'")
