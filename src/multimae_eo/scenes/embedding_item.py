"""STAC items and collections of files of embeddings, by the embeddings extension.

The extension (github.com/geo-embeddings/embeddings-stac-specification, 0.0.1) has the type, number
of dimensions and layout of embeddings in a collection, and the quantisation and the parameters of
the computation in an item. Both link to the model's own item (MLM) and to the source.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from multimae_eo.files import sha256_of, write_file
from multimae_eo.inference.vector_codes import Dtype, VectorCodes
from multimae_eo.modality import ModalitySet
from multimae_eo.model_folder.hub import hub_address
from multimae_eo.model_folder.mlm_item import ANY_TIME, FILE_SCHEMA, ITEM_FILE, ITEM_SUFFIX
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.sources.raster.grid import Grid
from multimae_eo.version import __version__

EMBEDDINGS_SCHEMA = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
PROCESSING_SCHEMA = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
PROJECTION_SCHEMA = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
COLLECTION_SUFFIX = ".collection.json"
_STAC_VERSION = "1.0.0"  # Which the extension's schema demands.
_MEDIA_TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".tiff": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".zarr": "application/vnd.zarr; version=3",
}
_GLOBE = (-180.0, -90.0, 180.0, 90.0)

Record = dict[str, object]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class EmbeddingFacts:
    """What is to be stated of a file of embeddings.

    ``kind``: pixel for a raster of patches, else chip. ``per``: of what a vector is. ``inputs``:
    with their bands. ``chip``: side of the ground of a vector in pixels of the finest input, and
    their distance, where they lie on a grid. ``gsd``: side in metres. ``ring``: outline
    (n, 2) in longitude and latitude. ``times``: of the samples, as recorded. ``codes``: of int8.
    ``grid``: of a raster; ``crs``: of a table whose rows share it.
    """

    name: str
    kind: str
    per: str
    width: int
    dtype: Dtype
    count: int
    inputs: ModalitySet
    chip: tuple[int, int] | None = None
    gsd: float | None = None
    ring: npt.NDArray[np.float64] | None = None
    times: Collection[str] = ()
    codes: VectorCodes | None = None
    grid: Grid | None = None
    crs: str = ""


def write_items(out: Path, facts: EmbeddingFacts, options: SceneOptions) -> None:
    """Write ``<out>.stac.json`` and ``<out>.collection.json``; raises OutputError."""
    links = _links(out, facts, options)
    for suffix, record in (
        (COLLECTION_SUFFIX, _collection(out, facts, links)),
        (ITEM_SUFFIX, _item(out, facts, options, links)),
    ):
        write_file(out.with_name(out.name + suffix), json.dumps(record, indent=1).encode())


def box_ring(box: Sequence[float]) -> npt.NDArray[np.float64]:
    """The outline (5, 2) of (west, south, east, north), counter-clockwise."""
    west, south, east, north = box
    corners = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return np.array(corners, np.float64)


def _item(
    out: Path, facts: EmbeddingFacts, options: SceneOptions, links: Sequence[Mapping[str, str]]
) -> Record:
    schemas = [EMBEDDINGS_SCHEMA, PROCESSING_SCHEMA, FILE_SCHEMA]
    projection = projection_fields(facts)
    schemas += [PROJECTION_SCHEMA] if projection else []
    quantization = quantization_record(facts)
    properties: Record = {
        "title": f"Embeddings of {facts.name}",
        **time_fields(facts.times),
        "data_type": facts.dtype,
        **({} if facts.gsd is None else {"gsd": facts.gsd}),
        "emb:runtime_parameters": _parameters(facts, options),
        **({"emb:quantization": quantization} if quantization else {}),
        "processing:software": {"multimae-eo": __version__},
        "processing:datetime": _instant(datetime.now(UTC)),
        **projection,
    }
    record: Record = {
        "type": "Feature",
        "stac_version": _STAC_VERSION,
        "stac_extensions": schemas,
        "id": _identifier(out.name),
        "collection": _collection_id(out),
        "geometry": None,
        "properties": properties,
        "links": [
            *links,
            {"rel": "collection", "href": f"./{out.name}{COLLECTION_SUFFIX}",
             "type": "application/json"},
        ],
        "assets": _assets(out, facts),
    }  # fmt: skip
    if facts.ring is not None:
        record["geometry"] = {"type": "Polygon", "coordinates": [facts.ring.tolist()]}
        record["bbox"] = list(_bbox(facts.ring))
    return record


def _collection(out: Path, facts: EmbeddingFacts, links: Sequence[Mapping[str, str]]) -> Record:
    times = time_fields(facts.times)
    interval = [times.get("start_datetime", times["datetime"])]
    interval.append(times.get("end_datetime", times["datetime"]))
    if times == ANY_TIME:
        interval = [None, None]
    box = _GLOBE if facts.ring is None else _bbox(facts.ring)
    return {
        "type": "Collection",
        "stac_version": _STAC_VERSION,
        "stac_extensions": [EMBEDDINGS_SCHEMA],
        "id": _collection_id(out),
        "title": f"Embeddings of {facts.name}",
        "description": f"{facts.count} embeddings per {facts.per} of "
        f"{', '.join(facts.inputs)}, by multimae-eo {__version__}",
        # STAC's word where no licence is declared.
        "license": "proprietary",
        "extent": {
            "spatial": {"bbox": [list(box)]},
            "temporal": {"interval": [interval]},
        },
        "emb:type": facts.kind,
        "emb:dimensions": facts.width,
        "data_type": facts.dtype,
        **({} if facts.gsd is None else {"gsd": facts.gsd}),
        "emb:chip_layout": layout_record(facts),
        "links": [
            *links,
            {"rel": "item", "href": f"./{out.name}{ITEM_SUFFIX}", "type": "application/geo+json"},
        ],
    }


def _parameters(facts: EmbeddingFacts, options: SceneOptions) -> Record:
    """What decided the vectors, beside the weights."""
    return {
        "model_hash": options.model_hash,
        "inputs": {name: list(m.band_names) for name, m in facts.inputs.items()},
        "per": facts.per,
        "dimensions": facts.width,
        "vectors": facts.count,
        "precision": options.precision,
        **({} if facts.chip is None else {"chip_size": facts.chip[0], "stride": facts.chip[1]}),
    }


def layout_record(facts: EmbeddingFacts) -> Record:
    """How the ground of the vectors lies: side and step in pixels where it is a grid."""
    if facts.chip is None:
        return {"layout_type": "variable_grid"}
    size, stride = ([side, side] for side in facts.chip)
    return {"layout_type": "regular_grid", "chip_size": size, "stride": stride}


def quantization_record(facts: EmbeddingFacts) -> Record | None:
    """How float32 vectors became the stored ones; None for float32."""
    if facts.dtype == "float32":
        return None
    record: Record = {
        "method": "linear" if facts.codes is not None else "rounding",
        "original_dtype": "float32",
        "quantized_dtype": facts.dtype,
    }
    return record if facts.codes is None else {**record, **facts.codes.record()}


def projection_fields(facts: EmbeddingFacts) -> Record:
    """CRS, and of a raster its shape, transform and bounds, by the projection extension."""
    crs = facts.crs if facts.grid is None else facts.grid.crs
    if not crs:
        return {}
    by_code = re.fullmatch(r"[A-Za-z_]+:\w+", crs)
    record: Record = {"proj:code": crs} if by_code else {"proj:code": None, "proj:wkt2": crs}
    if facts.grid is not None:
        grid = facts.grid
        bounds = grid.footprint(grid.extent).bounds
        record["proj:shape"] = [grid.height, grid.width]
        record["proj:transform"] = [float(v) for v in tuple(grid.transform)[:6]]
        record["proj:bbox"] = [float(v) for v in bounds]
    return record


def _assets(out: Path, facts: EmbeddingFacts) -> Record:
    asset: Record = {
        "href": f"./{out.name}",
        "title": f"{facts.count} vectors of {facts.width} {facts.dtype}",
        "type": _MEDIA_TYPES.get(out.suffix.lower(), "application/octet-stream"),
        "roles": ["data"],
        "data_type": facts.dtype,
    }
    if out.is_file():
        asset["file:size"] = out.stat().st_size
        asset["file:checksum"] = f"1220{sha256_of(out)}"
    assets: Record = {"embeddings": asset}
    picture = out.with_name(f"{out.name}.png")
    if facts.grid is not None and picture.is_file():
        assets["thumbnail"] = {
            "href": f"./{picture.name}",
            "title": "First three principal components",
            "type": "image/png",
            "roles": ["thumbnail"],
        }
    return assets


def _links(out: Path, facts: EmbeddingFacts, options: SceneOptions) -> list[dict[str, str]]:
    model = model_address(out, options)
    source = source_address(out, options.source_location, facts.name)
    return [
        {"rel": "emb:model", "href": model, "type": "application/geo+json"},
        {"rel": "derived_from", "href": model, "type": "application/geo+json"},
        {"rel": "emb:source-data", "href": source, "title": facts.name},
    ]


def model_address(out: Path, options: SceneOptions) -> str:
    """Where the model's STAC item is, from the folder of ``out``; a URN by its hash else."""
    name = options.model_location
    if name and Path(name).is_dir():
        return _relative(Path(name) / ITEM_FILE, out)
    address = hub_address(name, ITEM_FILE) if name else ""
    return address or f"urn:multimae-eo:model:{options.model_hash or 'unsaved'}"


def source_address(out: Path, location: str, name: str) -> str:
    """Where the data are, from the folder of ``out``; a URN by their name else."""
    if location and Path(location).exists():
        return _relative(Path(location), out)
    if re.match(r"[a-z][a-z0-9+.-]*://", location):
        return location.partition("?")[0]  # Without what may be a key.
    return f"urn:multimae-eo:source:{quote(name, safe='')}"


def _relative(path: Path, out: Path) -> str:
    try:
        relative = os.path.relpath(path.resolve(), out.parent.resolve())
    except ValueError:  # another drive
        return path.resolve().as_uri()
    text = quote(Path(relative).as_posix())
    return text if text.startswith("../") else f"./{text}"


def time_fields(times: Collection[str]) -> dict[str, str | None]:
    """STAC's date fields of recorded times; those for any time where none can be read."""
    instants = sorted({t for t in map(_parsed, times) if t is not None})
    if not instants:
        return dict(ANY_TIME)
    if len(instants) == 1:
        return {"datetime": _instant(instants[0])}
    return {
        "datetime": None,
        "start_datetime": _instant(instants[0]),
        "end_datetime": _instant(instants[-1]),
    }


def _parsed(text: str) -> datetime | None:
    for kind in (datetime, date):
        try:
            value = kind.fromisoformat(text)
        except ValueError:
            continue
        if not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return None


def _instant(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _bbox(ring: npt.NDArray[np.float64]) -> Box:
    west, south = ring.min(axis=0).tolist()
    east, north = ring.max(axis=0).tolist()
    return west, south, east, north


def _identifier(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z._-]+", "-", name).strip("-") or "embeddings"


def _collection_id(out: Path) -> str:
    return f"{_identifier(out.name)}-collection"
