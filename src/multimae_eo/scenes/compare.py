"""Change between two dates: the cosine distance of embeddings as raster, table and summary."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multimae_eo.files import replacing, single_writer, write_file
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.scenes.embed import Per
from multimae_eo.scenes.embedding_pairs import Distances, distances
from multimae_eo.scenes.embedding_raster import embed_raster
from multimae_eo.scenes.geoparquet import CORNERS, footprint_columns, geo_record, on_the_globe
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.scenes.quick_look import distance_look
from multimae_eo.scenes.raster_output import Profile, rows_at_once, write_raster
from multimae_eo.scenes.sharing import finish
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.version import __version__

_LARGEST = 10
_GROUP = 4096
_PERCENTILES = (5, 25, 50, 75, 95, 99)
_log = logging.getLogger(__name__)


@single_writer()
def compare_embeddings(
    before: Path, after: Path, out: Path, *, options: SceneOptions | None = None
) -> dict[str, object]:
    """Write the change between two files of embeddings into the folder ``out``; its summary.

    ``change.parquet`` (GeoParquet: key, geometry, distance, percentile; the largest change first),
    ``summary.json``, and where the footprints make a grid ``change.tif`` (float32, cosine distance
    0 to 2, NaN where either is not observed) with ``change.tif.png``. ``options``: whether one of
    Dask's workers computes it.

    Raises as ``embedding_pairs.distances``; OutputError.
    """
    if options is None:
        return _compare(before, after, out)
    return finish(options, out, _compare, before, after, out)


def _compare(before: Path, after: Path, out: Path) -> dict[str, object]:
    change = distances(before, after)
    for note in change.notes:
        _log.warning("%s", note)
    order = np.argsort(-change.distance, kind="stable")
    _write_table(change, order, out / "change.parquet")
    summary = {
        "before": str(before),
        "after": str(after),
        "times": list(change.times),
        "model_hash": change.model_hash,
        "compared": len(change.distance),
        "unmatched": list(change.unmatched),
        "cosine_distance": _statistics(change.distance),
        "largest": _largest(change, order),
        "table": "change.parquet",
        "raster": None if change.grid is None else "change.tif",
        "notes": list(change.notes),
    }
    if change.grid is not None:
        _write_raster(change, out / "change.tif")
    write_file(out / "summary.json", json.dumps(summary, indent=1).encode())
    return summary


@single_writer()
def compare_scenes(
    model: MultiMAE,
    before: Scene,
    after: Scene,
    out: Path,
    *,
    inputs: Sequence[str] | None = None,
    per: Per = "patch",
    options: SceneOptions | None = None,
) -> tuple[Path, Path]:
    """Embed two scenes as ``out/before.tif`` and ``out/after.tif``; see ``embed_raster``."""
    paths = out / "before.tif", out / "after.tif"
    for scene, path in zip((before, after), paths, strict=True):
        embed_raster(model, scene, path, inputs=inputs, per=per, options=options)
    return paths


def _statistics(distance: npt.NDArray[np.float64]) -> dict[str, float]:
    record = {"mean": float(distance.mean()), "std": float(distance.std())}
    values = np.percentile(distance, _PERCENTILES)
    record |= {f"p{p}": float(v) for p, v in zip(_PERCENTILES, values, strict=True)}
    return {name: round(value, 6) for name, value in record.items()} | {
        "max": round(float(distance.max()), 6)
    }


def _largest(change: Distances, order: npt.NDArray[np.int64]) -> list[dict[str, object]]:
    """The locations of the largest change: key, distance, longitude and latitude."""
    first = [int(i) for i in order[:_LARGEST]]
    _, boxes = on_the_globe([change.geometries[i] for i in first])
    records = []
    for i, box in zip(first, boxes.tolist(), strict=True):
        located = bool(np.isfinite(box).all())
        records.append(
            {
                "key": change.keys[i],
                "distance": round(float(change.distance[i]), 6),
                "lon": round((box[0] + box[2]) / 2, 6) if located else None,
                "lat": round((box[1] + box[3]) / 2, 6) if located else None,
            }
        )
    return records


def _write_raster(change: Distances, path: Path) -> None:
    grid = change.grid
    assert grid is not None
    values = np.full((1, grid.height, grid.width), np.nan, np.float32)
    values[0, change.cells[:, 0], change.cells[:, 1]] = change.distance
    tags = {"software": f"multimae-eo {__version__}", "unit": "cosine distance"}
    tags |= {n: t for n, t in zip(("before", "after"), change.times, strict=True) if t}
    if change.model_hash:
        tags["model_hash"] = change.model_hash
    profile = Profile(bands=("cosine distance",), dtype="float32", nodata=float("nan"), tags=tags)

    def rows() -> Iterator[npt.NDArray[np.generic]]:
        step = rows_at_once(grid.width, profile)
        for top in range(0, grid.height, step):
            yield values[:, top : top + step]

    write_raster(path, grid, profile, rows())
    between = " to ".join(t for t in change.times if t)
    distance_look(path, f"cosine distance {between}".strip())


def _write_table(change: Distances, order: npt.NDArray[np.int64], path: Path) -> None:
    """GeoParquet, the largest distance first; ``percentile``: share of smaller ones, in %."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, pa.DataType] = {
        "key": pa.string(),
        "geometry": pa.binary(),
        "bbox": pa.struct([(n, pa.float64()) for n in CORNERS]),
        "distance": pa.float64(),
        "percentile": pa.float64(),
    }
    schema, extents = pa.schema(columns), []
    ranked = np.sort(change.distance)
    with (
        replacing(path) as temporary,
        temporary.open("wb") as stream,
        pq.ParquetWriter(stream, schema, compression="zstd") as file,
    ):
        for start in range(0, len(order), _GROUP):
            part = order[start : start + _GROUP]
            polygons, boxes = on_the_globe([change.geometries[int(i)] for i in part])
            extents.append(boxes)
            distance = change.distance[part]
            smaller = np.searchsorted(ranked, distance) / len(ranked) * 100
            geometry, box = footprint_columns(polygons, boxes)
            arrays = [
                pa.array([change.keys[int(i)] for i in part], pa.string()),
                geometry,
                box,
                pa.array(distance, pa.float64()),
                pa.array(smaller, pa.float64()),
            ]
            file.write_table(pa.Table.from_arrays(arrays, schema=schema))
        record = geo_record(np.concatenate(extents))
        file.add_key_value_metadata({"geo": json.dumps(record)})
