"""Embeddings as GeoParquet 1.1, written batch by batch and renamed when complete.

Columns: ``key``; ``geometry`` (WKB polygons in longitude and latitude, EPSG:4326) with its
``bbox``; ``crs`` and ``bounds`` (left, bottom, right, top) as they were; ``time``; ``model_hash``;
``vector``. Embeddings without a footprint have nulls there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, OutputError
from multimae_eo.files import output_errors, put_in_place, remove, temporary_path
from multimae_eo.geo import Geometry

Array = npt.NDArray[np.float64]
WGS84 = "EPSG:4326"
_GROUP = 4096
_POLYGON = np.dtype(
    [("order", "u1"), ("type", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("xy", "<f8", (5, 2))]
)


class EmbeddingWriter:
    """Takes vectors with their footprints; ``finish`` names the file, ``discard`` removes it.

    ``width``: of a vector. ``half``: float16 rather than float32. ``model_hash``: of the model.
    """

    def __init__(self, path: Path, width: int, *, half: bool, model_hash: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path, self.model_hash, self.rows = path, model_hash, 0
        self._temporary = temporary_path(path)
        self._number = pa.float16() if half else pa.float32()
        self._width = width
        corner = pa.struct([(n, pa.float64()) for n in ("xmin", "ymin", "xmax", "ymax")])
        columns: dict[str, pa.DataType] = {
            "key": pa.string(),
            "geometry": pa.binary(),
            "bbox": corner,
            "crs": pa.string(),
            "bounds": pa.list_(pa.float64(), 4),
            "time": pa.string(),
            "model_hash": pa.string(),
            "vector": pa.list_(self._number, width),
        }
        self._schema = pa.schema(columns)
        self._waiting: list[tuple[str, Geometry | None, str | None]] = []
        self._vectors: list[npt.NDArray[np.float32]] = []
        self._extent = np.array([np.inf, np.inf, -np.inf, -np.inf])
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not Arrow's own stream, which gives no error where the disk is full when it closes.
            self._stream = self._temporary.open("wb")
        self._file = pq.ParquetWriter(self._stream, self._schema, compression="zstd")

    def add(
        self, key: str, geometry: Geometry | None, time: str | None, vector: npt.NDArray[Any]
    ) -> None:
        """Add one vector (width,)."""
        self._waiting.append((key, geometry, time))
        self._vectors.append(vector)
        self.rows += 1
        if len(self._waiting) == _GROUP:
            self._flush()

    def finish(self) -> Path:
        """Write what is left and the metadata, then rename the file."""
        self._flush()
        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            "orientation": "counterclockwise",
            "edges": "planar",
            "covering": {
                "bbox": {n: ["bbox", n] for n in ("xmin", "ymin", "xmax", "ymax")},
            },
        }
        if np.isfinite(self._extent).all():
            column["bbox"] = self._extent.tolist()
        # No "crs": GeoParquet's default is longitude and latitude on WGS 84.
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        with output_errors(self.path):
            self._file.add_key_value_metadata({"geo": json.dumps(geo)})
            self._file.close()
            self._stream.close()
            put_in_place(self._temporary, self.path)
        return self.path

    def discard(self) -> None:
        """Leave nothing behind."""
        try:
            self._file.close()
            self._stream.close()
        except OSError:  # what is left in the buffer has no room either
            pass
        remove(self._temporary)

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._waiting:
            return
        keys, geometries, times = zip(*self._waiting, strict=True)
        polygons, boxes = on_the_globe(geometries)
        lacking = np.array([g is None for g in geometries])
        self._extent[:2] = np.fmin(self._extent[:2], np.fmin.reduce(boxes[:, :2]))
        self._extent[2:] = np.fmax(self._extent[2:], np.fmax.reduce(boxes[:, 2:]))
        bounds = [None if g is None else list(g.bounds) for g in geometries]
        corners = pa.StructArray.from_arrays(
            [pa.array(boxes[:, i]) for i in range(4)],
            fields=list(self._schema.field("bbox").type),
            mask=pa.array(lacking),
        )
        flat = np.concatenate(self._vectors).astype(self._number.to_pandas_dtype())
        if not np.isfinite(flat).all():
            row = int(np.flatnonzero(~np.isfinite(flat).reshape(len(keys), -1).all(axis=1))[0])
            raise OutputError(
                f"{self.path}: the embedding of {keys[row]!r} is not finite in {self._number}; "
                "check the model's inputs there, or write without --half"
            )
        columns = [
            pa.array(keys, pa.string()),
            pa.array([None if n else p.tobytes() for n, p in zip(lacking, polygons, strict=True)],
                     pa.binary()),
            corners,
            pa.array([None if g is None else g.crs for g in geometries], pa.string()),
            pa.array(bounds, self._schema.field("bounds").type),
            pa.array(times, pa.string()),
            pa.array([self.model_hash] * len(keys), pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(flat, self._number), self._width),
        ]  # fmt: skip
        with output_errors(self.path):
            self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._waiting, self._vectors = [], []


def on_the_globe(
    geometries: Sequence[Geometry | None],
) -> tuple[npt.NDArray[Any], Array]:
    """Polygons as WKB records (n,) and their boxes (n, 4) in degrees; NaN where there is none.

    Each corner is transformed; the edges between are straight. Raises ConfigError where CRS have
    to be transformed and rasterio is not installed.
    """
    corners = np.full((len(geometries), 5, 2), np.nan)
    order = ((0, 1), (2, 1), (2, 3), (0, 3), (0, 1))  # counter-clockwise from the lower left
    for crs in {g.crs for g in geometries if g is not None}:
        rows = [i for i, g in enumerate(geometries) if g is not None and g.crs == crs]
        bounds = np.array([g.bounds for g in geometries if g is not None and g.crs == crs])
        points = np.stack([bounds[:, pair] for pair in order], axis=1)
        corners[rows] = points if crs == WGS84 else _transformed(points, crs)
    polygons = np.zeros(len(geometries), _POLYGON)
    polygons["order"], polygons["type"] = 1, 3
    polygons["rings"], polygons["points"] = 1, 5
    polygons["xy"] = corners
    return polygons, np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def _transformed(points: Array, crs: str) -> Array:
    try:
        from rasterio.warp import transform
    except ImportError as error:
        raise ConfigError(
            f"embeddings in {crs} need rasterio: pip install 'multimae-eo[geo]'"
        ) from error
    flat = points.reshape(-1, 2)
    return np.stack(transform(crs, WGS84, flat[:, 0], flat[:, 1]), axis=1).reshape(points.shape)
