"""Embeddings of a scene as a Zarr group (version 3): time, embedding, y, x; sharded, Zstandard.

Attributes are those of the geoembeddings convention (github.com/geo-embeddings/
embeddings-zarr-convention) with ``proj:`` and ``spatial:`` of GeoZarr; the coordinates ``x``,
``y``, ``time`` and ``spatial_ref`` are CF's, as xarray and rioxarray read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, OutputError
from multimae_eo.files import exchange_folder, output_errors, remove, temporary_path
from multimae_eo.inference.vector_codes import NODATA_CODE
from multimae_eo.scenes.embedding_item import (
    EmbeddingFacts,
    layout_record,
    model_address,
    projection_fields,
    quantization_record,
    source_address,
    time_fields,
)
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.sources.raster.grid import Grid
from multimae_eo.version import __version__

ARRAY = "embeddings"
_CHUNK, _SHARD = 32, 128
_LEVEL = 3
_GEOEMB = {
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/"
    "refs/tags/v1/schema.json",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
}


def write_zarr(
    path: Path,
    facts: EmbeddingFacts,
    options: SceneOptions,
    rows: Iterator[npt.NDArray[np.generic]],
) -> None:
    """Write the vectors of a scene, from the top, as a Zarr group; an earlier one is replaced.

    rows: parts (D, n, W) of ``facts.grid``, in its dtype; NaN, or -128 of int8, where there is no
    vector. Raises ConfigError without the package zarr, OutputError.
    """
    zarr = require_zarr(path)
    if path.exists() and not (path / "zarr.json").is_file():
        raise OutputError(f"{path}: exists and is no Zarr group; choose another path")
    grid = facts.grid
    assert grid is not None
    temporary = temporary_path(path)
    try:
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            group = zarr.open_group(str(temporary), mode="w-", zarr_format=3)
            group.attrs.update(_attributes(path, facts, options))
            _fill(_array(zarr, group, facts), rows, grid.height)
            _coordinates(group, facts)
            exchange_folder(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def require_zarr(path: Path) -> ModuleType:
    """The package zarr; ConfigError where it is not installed."""
    try:
        import zarr
    except ImportError as error:
        raise ConfigError(f"{path}: Zarr needs pip install 'multimae-eo[xarray]'") from error
    return zarr


def _array(zarr: ModuleType, group: Any, facts: EmbeddingFacts) -> Any:
    grid = facts.grid
    assert grid is not None
    sides = [min(_SHARD, -(-side // _CHUNK) * _CHUNK) for side in (grid.height, grid.width)]
    return group.create_array(
        ARRAY,
        shape=(1, facts.width, grid.height, grid.width),
        dtype=facts.dtype,
        chunks=(1, facts.width, _CHUNK, _CHUNK),
        shards=(1, facts.width, *sides),
        compressors=zarr.codecs.ZstdCodec(level=_LEVEL),
        fill_value=NODATA_CODE if facts.dtype == "int8" else float("nan"),
        dimension_names=("time", "embedding", "y", "x"),
        attributes={
            "long_name": f"embedding of {facts.name}",
            "grid_mapping": "spatial_ref",
            "coordinates": "spatial_ref",
        },
    )


def _fill(array: Any, rows: Iterator[npt.NDArray[np.generic]], height: int) -> None:
    """Write rows a shard's height at a time: a shard that is written twice is read again."""
    step, top = array.shards[2], 0
    waiting: list[npt.NDArray[np.generic]] = []
    for part in rows:
        waiting.append(part)
        count = sum(p.shape[1] for p in waiting)
        if count >= step or top + count >= height:
            block = np.concatenate(waiting, axis=1)
            ready = count if top + count >= height else count // step * step
            array[0, :, top : top + ready] = block[:, :ready]
            top, waiting = top + ready, [block[:, ready:]] if ready < count else []


def _coordinates(group: Any, facts: EmbeddingFacts) -> None:
    grid = facts.grid
    assert grid is not None
    across = [grid.transform @ (i + 0.5, 0.5) for i in range(grid.width)]
    down = [grid.transform @ (0.5, i + 0.5) for i in range(grid.height)]
    _vector(group, "x", [x for x, _ in across], {"standard_name": "projection_x_coordinate"})
    _vector(group, "y", [y for _, y in down], {"standard_name": "projection_y_coordinate"})
    _vector(group, "embedding", range(facts.width), {}, dtype="int32")
    instant = time_fields(facts.times).get("datetime")
    if instant is not None:
        start = datetime(1970, 1, 1, tzinfo=UTC)
        seconds = int((datetime.fromisoformat(instant) - start).total_seconds())
        units = {"units": "seconds since 1970-01-01T00:00:00", "calendar": "standard"}
        _vector(group, "time", [seconds], units, dtype="int64")
    if facts.codes is not None:
        for name, values in facts.codes.record().items():
            text = {"long_name": f"{name} of each dimension: value = code × scale + offset"}
            _vector(group, name, values, text, dimension="embedding")
    mapping = group.create_array("spatial_ref", shape=(), dtype="int64", attributes=_mapping(grid))
    mapping[...] = 0


def _vector(
    group: Any,
    name: str,
    values: Any,
    attributes: dict[str, str],
    *,
    dtype: str = "float64",
    dimension: str = "",
) -> None:
    numbers = np.asarray(list(values), dtype)
    array = group.create_array(
        name,
        shape=numbers.shape,
        dtype=dtype,
        dimension_names=(dimension or name,),
        attributes=attributes,
    )
    array[...] = numbers


def _mapping(grid: Grid) -> dict[str, str]:
    """CF's grid mapping as GDAL and rioxarray write it."""
    from rasterio.crs import CRS

    a, b, c, d, e, f = tuple(grid.transform)[:6]
    wkt = CRS.from_string(grid.crs).to_wkt()
    numbers = " ".join(repr(float(v)) for v in (c, a, b, f, d, e))
    return {"crs_wkt": wkt, "spatial_ref": wkt, "GeoTransform": numbers}


def _attributes(path: Path, facts: EmbeddingFacts, options: SceneOptions) -> dict[str, object]:
    projection = projection_fields(facts)
    quantization = quantization_record(facts)
    if quantization is not None:
        # Of each dimension: the arrays "scale" and "offset".
        quantization = {k: v for k, v in quantization.items() if k not in ("scale", "offset")}
    return {
        "Conventions": "CF-1.11",
        "zarr_conventions": [_GEOEMB, {"name": "proj:"}, {"name": "spatial:"}],
        "geoemb:type": facts.kind,
        "geoemb:dimensions": facts.width,
        "geoemb:model": model_address(path, options),
        "geoemb:source_data": [source_address(path, options.source_location, facts.name)],
        "geoemb:data_type": facts.dtype,
        **({} if facts.gsd is None else {"geoemb:gsd": facts.gsd}),
        **({"geoemb:chip_layout": layout_record(facts)} if facts.kind == "chip" else {}),
        **({"geoemb:quantization": quantization} if quantization else {}),
        "geoemb:build_version": f"multimae-eo {__version__}",
        "model_hash": options.model_hash,
        **{k: v for k, v in projection.items() if k in ("proj:code", "proj:wkt2") and v},
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": projection["proj:transform"],
        "spatial:shape": projection["proj:shape"],
        "spatial:bbox": projection["proj:bbox"],
    }
