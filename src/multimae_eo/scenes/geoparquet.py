"""Embeddings as GeoParquet 1.1, in Hilbert order, renamed when complete.

Columns: ``key``; ``geometry`` (WKB polygons in longitude and latitude, EPSG:4326) with its
``bbox``; ``crs`` and ``bounds`` (left, bottom, right, top) as they were; ``time``; ``model_hash``;
``vector``. Embeddings without a footprint have nulls there, and are last. The metadata
``multimae_eo`` is a JSON record of the vectors' dtype, of what was embedded, and of int8's scale
and offset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, OutputError
from multimae_eo.files import output_errors, remove, sync_and_rename, temporary_path
from multimae_eo.geo import Geometry
from multimae_eo.inference.vector_codes import METADATA_KEY, CodeLoss, Dtype, VectorCodes
from multimae_eo.scenes.hilbert import hilbert_order

Array = npt.NDArray[np.float64]
WGS84 = "EPSG:4326"
_GROUP = 4096
CORNERS = ("xmin", "ymin", "xmax", "ymax")
_POLYGON = np.dtype(
    [("order", "u1"), ("type", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("xy", "<f8", (5, 2))]
)


class EmbeddingWriter:
    """Takes vectors with their footprints; ``finish`` names the file, ``discard`` removes it.

    Rows are ordered along a Hilbert curve over their footprints, so that a row group is an area.
    Until then they wait on disk, beside ``path``; memory holds their keys only.

    ``width``: of a vector. ``dtype``: of its numbers. ``model_hash``: of the model. ``details``:
    JSON-ready, for the file's metadata. Afterwards ``codes`` are those of int8, ``box`` is the
    extent (west, south, east, north) of what is located, and ``times`` and ``crs`` are those of the
    rows.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        *,
        dtype: Dtype = "float32",
        model_hash: str,
        details: Mapping[str, object] | None = None,
    ) -> None:
        self.path, self.model_hash, self.rows, self.dtype = path, model_hash, 0, dtype
        self._details = dict(details or {})
        self._row = np.dtype(
            [("polygon", _POLYGON), ("box", "<f8", 4), ("bounds", "<f8", 4), ("crs", "<i4"),
             ("time", "<i4"), ("vector", "<f4", width)]
        )  # fmt: skip
        self.codes: VectorCodes | None = None
        self.box: tuple[float, ...] | None = None
        self.times: set[str] = set()
        self.crs: set[str] = set()
        self._keys: list[str] = []
        self._texts: dict[str | None, int] = {None: -1}
        self._waiting: list[tuple[Geometry | None, str | None]] = []
        self._vectors: list[npt.NDArray[np.generic]] = []
        self._low, self._high = np.full(width, np.inf), np.full(width, -np.inf)
        self._folder = temporary_path(path)
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folder.mkdir()
            self._stream = (self._folder / "rows").open("wb")

    def add(
        self, key: str, geometry: Geometry | None, time: str | None, vector: npt.NDArray[np.generic]
    ) -> None:
        """Add one vector (width,)."""
        self._keys.append(key)
        self._waiting.append((geometry, time))
        self._vectors.append(vector)
        self.rows += 1
        if len(self._waiting) == _GROUP:
            self._flush()

    def finish(self) -> Path:
        """Write the rows in their order and the metadata, then rename the file."""
        self._flush()
        with output_errors(self.path):
            self._stream.close()
            rows: npt.NDArray[np.void] = np.zeros(0, self._row)
            if self.rows:
                rows = np.memmap(self._folder / "rows", self._row, mode="r")
            self._write(rows, self._folder / "file.parquet")
            sync_and_rename(self._folder / "file.parquet", self.path)
        remove(self._folder)
        return self.path

    def discard(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError):  # what is left in the buffer has no room either
            self._stream.close()
        remove(self._folder)

    def _text(self, text: str | None) -> int:
        return self._texts.setdefault(text, len(self._texts) - 1)

    def _flush(self) -> None:
        if not self._waiting:
            return
        geometries = [g for g, _ in self._waiting]
        rows = np.zeros(len(geometries), self._row)
        rows["vector"] = self._vectors
        with np.errstate(over="ignore"):
            stored = rows["vector"] if self.dtype != "float16" else _half(rows["vector"])
        if not np.isfinite(stored).all():
            row = int(np.flatnonzero(~np.isfinite(stored).all(axis=1))[0])
            key = self._keys[self.rows - len(rows) + row]
            raise OutputError(
                f"{self.path}: the embedding of {key!r} is not finite in {self.dtype}; "
                "check the model's inputs there, or write float32"
            )
        rows["polygon"], rows["box"] = on_the_globe(geometries)
        rows["bounds"] = [(np.nan,) * 4 if g is None else g.bounds for g in geometries]
        rows["crs"] = [self._text(None if g is None else g.crs) for g in geometries]
        rows["time"] = [self._text(time) for _, time in self._waiting]
        self.crs |= {g.crs for g in geometries if g is not None}
        self.times |= {time for _, time in self._waiting if time}
        self._low = np.minimum(self._low, rows["vector"].min(axis=0))
        self._high = np.maximum(self._high, rows["vector"].max(axis=0))
        with output_errors(self.path):
            rows.tofile(self._stream)
        self._waiting, self._vectors = [], []

    def _write(self, rows: npt.NDArray[np.void], path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        width = self._row["vector"].shape[0]
        number = pa.type_for_alias(self.dtype)
        schema = _schema(pa.list_(number, width))
        codes = VectorCodes.of_range(self._low, self._high) if self.dtype == "int8" else None
        self.codes = codes
        loss, keys, texts = CodeLoss(), np.array(self._keys, object), list(self._texts)[1:]
        order = hilbert_order(np.array(rows["box"]))
        # Not Arrow's own stream, which gives no error where the disk is full when it closes.
        with (
            path.open("wb") as stream,
            pq.ParquetWriter(stream, schema, compression="zstd") as file,
        ):
            for start in range(0, len(order), _GROUP):
                part = order[start : start + _GROUP]
                block = rows[part]
                vectors = block["vector"]
                if codes is not None:
                    vectors = codes.encode(block["vector"])
                    loss.add(block["vector"], codes.decode(vectors))
                flat = vectors.astype(self.dtype).ravel()
                columns = [
                    *_columns(keys[part].tolist(), block, texts),
                    pa.array([self.model_hash] * len(part), pa.string()),
                    pa.FixedSizeListArray.from_arrays(pa.array(flat, number), width),
                ]
                file.write_table(pa.Table.from_arrays(columns, schema=schema))
            record = {"dtype": self.dtype, "model_hash": self.model_hash, **self._details}
            if codes is not None:
                record |= {**codes.record(), **loss.record()}
            geo = geo_record(rows["box"])
            self.box = extent_of(rows["box"])
            file.add_key_value_metadata({"geo": json.dumps(geo), METADATA_KEY: json.dumps(record)})


def _half(vectors: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return vectors.astype(np.float16)


def _schema(vector: Any) -> Any:
    import pyarrow as pa

    columns: dict[str, pa.DataType] = {
        "key": pa.string(),
        "geometry": pa.binary(),
        "bbox": pa.struct([(n, pa.float64()) for n in CORNERS]),
        "crs": pa.string(),
        # Not of a fixed size: pyarrow up to 25 cannot read nulls of that from Parquet.
        "bounds": pa.list_(pa.float64()),
        "time": pa.string(),
        "model_hash": pa.string(),
        "vector": vector,
    }
    return pa.schema(columns)


def _columns(keys: list[str], rows: npt.NDArray[np.void], texts: list[str | None]) -> list[Any]:
    """``key`` to ``time`` of some rows; ``texts``: CRS and times by number, null for -1."""
    import pyarrow as pa

    polygons, boxes = footprint_columns(rows["polygon"], rows["box"])
    lacking = rows["crs"] < 0
    bounds = [None if n else b for n, b in zip(lacking, rows["bounds"].tolist(), strict=True)]
    return [
        pa.array(keys, pa.string()),
        polygons,
        boxes,
        pa.array([None if i < 0 else texts[i] for i in rows["crs"]], pa.string()),
        pa.array(bounds, pa.list_(pa.float64())),
        pa.array([None if i < 0 else texts[i] for i in rows["time"]], pa.string()),
    ]


def footprint_columns(polygons: npt.NDArray[np.generic], boxes: Array) -> tuple[Any, Any]:
    """The columns ``geometry`` and ``bbox`` of polygons and boxes; see ``on_the_globe``."""
    import pyarrow as pa

    lacking = [bool(np.isnan(box).any()) for box in boxes]
    corners = pa.StructArray.from_arrays(
        [pa.array(np.ascontiguousarray(boxes[:, i])) for i in range(4)],
        fields=[pa.field(n, pa.float64()) for n in CORNERS],
        mask=pa.array(lacking),
    )
    records = [None if n else p.tobytes() for n, p in zip(lacking, polygons, strict=True)]
    return pa.array(records, pa.binary()), corners


def geo_record(boxes: Array) -> dict[str, object]:
    """GeoParquet's metadata. No "crs": its default is longitude and latitude on WGS 84."""
    column: dict[str, object] = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": {n: ["bbox", n] for n in CORNERS}},
    }
    extent = extent_of(boxes)
    if extent is not None:
        column["bbox"] = list(extent)
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def extent_of(boxes: Array) -> tuple[float, ...] | None:
    """West, south, east and north of boxes (n, 4), of those that are finite; None without any."""
    located = boxes[np.isfinite(boxes).all(axis=1)]
    if not len(located):
        return None
    low, high = located[:, :2].min(axis=0), located[:, 2:].max(axis=0)
    return (*low.tolist(), *high.tolist())


def on_the_globe(
    geometries: Sequence[Geometry | None],
) -> tuple[npt.NDArray[np.void], Array]:
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
    polygons: npt.NDArray[np.void] = np.zeros(len(geometries), _POLYGON)
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
