"""Features written as GeoPackage, GeoJSON or GeoParquet, with the colours of their classes.

A GeoPackage carries its style in the table ``layer_styles``, which QGIS applies as it opens the
layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, OutputError, did_you_mean
from multimae_eo.files import reason_of, remove, replacing, single_writer
from multimae_eo.modality import ClassMapEntry

VECTOR_OUTPUTS = {
    ".gpkg": "GPKG",
    ".geojson": "GeoJSON",
    ".parquet": "Parquet",
    ".geoparquet": "Parquet",
}
"""Extensions of files that can be written, and their formats."""


@dataclass(frozen=True, kw_only=True)
class VectorLayer:
    """Features to write.

    ``shapes``: shapely geometries (n,), all of one kind ("Point", "Polygon" or "MultiPolygon").
    ``columns``: arrays (n,) by name; texts as objects, None for no value. ``crs``: authority or
    WKT. ``classes``: those that ``class_column`` holds the ids of, for the colours.
    """

    name: str
    kind: str
    crs: str
    shapes: npt.NDArray[np.object_]
    columns: Mapping[str, npt.NDArray[np.generic]]
    classes: Sequence[ClassMapEntry] = ()
    class_column: str = ""


def require_vector_output(path: Path) -> None:
    """ConfigError unless the name ends like a format that can be written."""
    if path.suffix.lower() not in VECTOR_OUTPUTS:
        raise ConfigError(
            f"{path}: no vector format is called {path.suffix!r}; "
            + did_you_mean(path.suffix, VECTOR_OUTPUTS)
        )


@single_writer(folder=False, argument="path")
def write_features(path: Path, layer: VectorLayer) -> Path:
    """Write a layer; returns ``path``. Raises ConfigError for its extension, OutputError."""
    require_vector_output(path)
    driver = VECTOR_OUTPUTS[path.suffix.lower()]
    with replacing(path) as temporary:
        if driver == "Parquet":
            _write_parquet(temporary, layer)
        else:
            # GDAL asks for the extension.
            named = temporary.with_name(temporary.name + path.suffix)
            try:
                _write_layer(named, layer, driver, path)
                named.replace(temporary)
            finally:
                remove(named)
    return path


def _write_layer(named: Path, layer: VectorLayer, driver: str, path: Path) -> None:
    import pyogrio.raw
    import shapely

    try:
        pyogrio.raw.write(
            named,
            shapely.to_wkb(layer.shapes),
            list(layer.columns.values()),
            list(layer.columns),
            layer=layer.name,
            driver=driver,
            geometry_type=layer.kind,
            crs=layer.crs,
        )
        if driver == "GPKG" and layer.classes:
            style = _style_row(layer)
            pyogrio.raw.write(
                named,
                None,
                [
                    np.array([v], dtype=None if isinstance(v, int) else object)
                    for v in style.values()
                ],
                list(style),
                layer="layer_styles",
                driver=driver,
                geometry_type=None,
                append=True,
            )
    except (RuntimeError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written: {reason_of(error)}") from error


def _style_row(layer: VectorLayer) -> dict[str, object]:
    """A row of the table in which QGIS looks up the style of a layer."""
    return {
        "f_table_catalog": "",
        "f_table_schema": "",
        "f_table_name": layer.name,
        "f_geometry_column": "geom",
        "styleName": "classes",
        "styleQML": _qml(layer),
        "styleSLD": "",
        "useAsDefault": 1,
        "description": "class colours",
        "owner": "",
    }


def _qml(layer: VectorLayer) -> str:
    """QGIS's style: a category per class, with its name and colour."""
    root = ElementTree.Element("qgis", version="3.22.0", styleCategories="Symbology")
    renderer = ElementTree.SubElement(
        root, "renderer-v2", type="categorizedSymbol", attr=layer.class_column, symbollevels="0"
    )
    categories = ElementTree.SubElement(renderer, "categories")
    symbols = ElementTree.SubElement(renderer, "symbols")
    point = layer.kind == "Point"
    for number, entry in enumerate(layer.classes):
        ElementTree.SubElement(
            categories, "category", value=str(entry.id), symbol=str(number), label=entry.name,
            render="true", type="long",
        )  # fmt: skip
        symbol = ElementTree.SubElement(
            symbols, "symbol", name=str(number), type="marker" if point else "fill", alpha="1"
        )
        drawn = ElementTree.SubElement(
            symbol, "layer", attrib={"class": "SimpleMarker" if point else "SimpleFill"}
        )
        color = ",".join(map(str, (*entry.color, 255)))
        settings = {"color": color, "outline_color": "40,40,40,255", "outline_width": "0.1"}
        settings |= {"name": "circle", "size": "2.4"} if point else {"style": "solid"}
        for key, value in settings.items():
            ElementTree.SubElement(drawn, "prop", k=key, v=value)
    return ElementTree.tostring(root, encoding="unicode")


def _write_parquet(temporary: Path, layer: VectorLayer) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely
    from rasterio.crs import CRS

    crs = CRS.from_user_input(layer.crs).to_dict(projjson=True)
    entry: dict[str, object] = {
        "encoding": "WKB",
        "geometry_types": sorted({g.geom_type for g in layer.shapes}),
        "crs": crs,
    }
    if len(layer.shapes):
        entry["bbox"] = shapely.total_bounds(layer.shapes).tolist()
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": entry}}
    columns = {name: pa.array(values.tolist()) for name, values in layer.columns.items()}
    table = pa.table(
        {**columns, "geometry": pa.array(shapely.to_wkb(layer.shapes).tolist(), pa.binary())}
    )
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), temporary)
