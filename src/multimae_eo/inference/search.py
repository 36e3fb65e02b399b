"""Similarity search: nearest neighbours among embeddings by cosine, a row group at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, ContractError, DataError, FormatError, did_you_mean
from multimae_eo.files import reading, require_regular
from multimae_eo.inference.vector_codes import vector_decoder

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

Array = npt.NDArray[np.float32]
_COLUMNS = ("key", "bbox", "time", "vector")
HASH_COLUMN = "model_hash"


@dataclass(frozen=True)
class _RowGroup:
    """Rows of a file: ``boxes`` (n, 4) in degrees, NaN for none; ``vectors`` (n, D)."""

    path: Path
    keys: list[str]
    times: list[str | None]
    boxes: npt.NDArray[np.float64]
    vectors: Array


def search(
    paths: Path | Sequence[Path],
    *,
    at: tuple[float, float] | None = None,
    key: str | None = None,
    k: int = 10,
) -> list[dict[str, Any]]:
    """The ``k`` embeddings most similar to one of a file or of several, itself first.

    ``at``: the query is the embedding whose footprint holds (longitude, latitude) in degrees, of
    several the one whose centre is nearest; or ``key``: the first with this key. Returns ``key``,
    ``similarity`` (cosine), ``lon`` and ``lat`` of the centre (None without a footprint) and
    ``time``; of several files also ``file``.

    Raises ConfigError where neither or both are given, or ``k`` < 1; FormatError for a file without
    embeddings; ContractError for embeddings of two models or widths; DataError where no embedding
    has the key or covers the point.
    """
    paths = [paths] if isinstance(paths, Path) else list(paths)
    if (at is None) == (key is None):
        raise ConfigError("search: give either --at LON,LAT or --key KEY")
    if k < 1:
        raise ConfigError(f"k must be ≥ 1, got {k}")
    if not paths:
        raise ConfigError("search: no file of embeddings is given")
    _require_one_model(paths)
    query = _at_point(paths, *at) if at is not None else _with_key(paths, str(key))
    unit = query.vector / max(float(np.linalg.norm(query.vector)), 1e-12)
    best: list[tuple[float, int, dict[str, object]]] = []
    number = 0
    for group in _groups(paths):
        lengths = np.maximum(np.linalg.norm(group.vectors, axis=1), 1e-12)
        similarity = group.vectors @ unit / lengths
        rank = similarity.copy()
        if number <= query.row < number + len(rank):
            rank[query.row - number] = np.inf  # before others that equal it
        for row in np.argsort(-rank, kind="stable")[:k]:
            record = _record(group, int(row), float(similarity[row]))
            if len(paths) > 1:
                record["file"] = str(group.path)
            item = (float(rank[row]), -number - int(row), record)
            (heapq.heappush if len(best) < k else heapq.heappushpop)(best, item)
        number += len(group.keys)
    return [record for _, _, record in sorted(best, key=lambda b: (-b[0], -b[1]))]


@dataclass(frozen=True)
class _Query:
    """An embedding: its row, counted over all files, and vector (D,)."""

    row: int
    vector: Array


def _require_one_model(paths: Sequence[Path]) -> None:
    """ContractError where files, or rows of a file, are of several models or widths."""
    import pyarrow.compute as pc

    first: dict[str, Path] = {}
    widths: dict[int, Path] = {}
    for path in paths:
        with _opened(path) as file:
            kind = file.schema_arrow.field("vector").type
            widths.setdefault(int(getattr(kind, "list_size", -1)), path)
            if HASH_COLUMN not in file.schema_arrow.names:
                continue
            for number in range(file.num_row_groups):
                column = file.read_row_group(number, columns=[HASH_COLUMN])[HASH_COLUMN]
                for digest in pc.unique(column).to_pylist():
                    if digest:
                        first.setdefault(digest, path)
    for unlike, what in ((first, "model_hash"), (widths, "vectors of width")):
        if len(unlike) > 1:
            (a, one), (b, other) = list(unlike.items())[:2]
            where = f"{one} and {other}" if one != other else str(one)
            raise ContractError(
                f"{where}: embeddings of two models ({what} {a} and {b}) cannot be compared; "
                "search them one by one, or embed all with one model"
            )


def _with_key(paths: Sequence[Path], key: str) -> _Query:
    number = 0
    keys: list[str] = []
    for group in _groups(paths):
        if key in group.keys:
            row = group.keys.index(key)
            return _Query(number + row, group.vectors[row])
        keys += group.keys[: max(0, 2000 - len(keys))]
        number += len(group.keys)
    hint = did_you_mean(key, keys).split("; valid")[0]
    raise DataError(f"{_names(paths)}: no key {key!r}; {hint}")


def _at_point(paths: Sequence[Path], lon: float, lat: float) -> _Query:
    best: tuple[float, _Query] | None = None
    nearest: tuple[float, str] = (np.inf, "")
    number = 0
    for group in _groups(paths):
        (west, south), (east, north) = group.boxes[:, :2].T, group.boxes[:, 2:].T
        distance = np.hypot((west + east) / 2 - lon, (south + north) / 2 - lat)
        inside = (west <= lon) & (lon <= east) & (south <= lat) & (lat <= north)
        for row in np.flatnonzero(inside).tolist():
            if best is None or distance[row] < best[0]:
                best = float(distance[row]), _Query(number + row, group.vectors[row])
        distance = np.where(np.isfinite(distance), distance, np.inf)
        closest = int(np.argmin(distance))
        nearest = min(nearest, (float(distance[closest]), group.keys[closest]))
        number += len(group.keys)
    if best is not None:
        return best[1]
    hint = f"the nearest is {nearest[1]}" if nearest[1] else "no embedding has a footprint"
    raise DataError(
        f"{_names(paths)}: no embedding covers {lon},{lat} (longitude, latitude); {hint}"
    )


def _names(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _record(group: _RowGroup, row: int, similarity: float) -> dict[str, object]:
    west, south, east, north = (float(v) for v in group.boxes[row])
    located = np.isfinite(west)
    return {
        "key": group.keys[row],
        "similarity": similarity,
        "lon": (west + east) / 2 if located else None,
        "lat": (south + north) / 2 if located else None,
        "time": group.times[row],
    }


@contextmanager
def _opened(path: Path) -> Iterator[ParquetFile]:
    """A file of embeddings, an open ``pyarrow.parquet.ParquetFile``."""
    import pyarrow.parquet as pq

    require_regular(path, FormatError)
    with (
        reading(path, FormatError, "write one with multimae-eo embed", form="GeoParquet"),
        pq.ParquetFile(path) as file,
    ):
        lacking = [c for c in _COLUMNS if c not in file.schema_arrow.names]
        if lacking:
            raise FormatError(
                f"{path}: holds no embeddings, column {lacking[0]!r} is missing; write one "
                "with multimae-eo embed"
            )
        if not file.metadata.num_rows:
            raise DataError(f"{path}: holds no embeddings; write one with multimae-eo embed")
        yield file


def _groups(paths: Sequence[Path]) -> Iterator[_RowGroup]:
    import pyarrow.compute as pc

    for path in paths:
        with _opened(path) as file:
            decode = vector_decoder(file, str(path))
            for number in range(file.num_row_groups):
                table = file.read_row_group(number, columns=list(_COLUMNS))
                corners = [
                    pc.struct_field(table["bbox"], n).fill_null(np.nan).to_numpy()
                    for n in ("xmin", "ymin", "xmax", "ymax")
                ]
                flat = pc.list_flatten(table["vector"]).to_numpy()
                group = _RowGroup(
                    path=path,
                    keys=[str(key) for key in table["key"].to_pylist()],
                    times=table["time"].to_pylist(),
                    boxes=np.stack(corners, axis=1),
                    vectors=decode(flat.reshape(table.num_rows, -1)),
                )
                if not np.isfinite(group.vectors).all():
                    row = int(np.flatnonzero(~np.isfinite(group.vectors).all(axis=1))[0])
                    raise DataError(
                        f"{path}: vector of {group.keys[row]!r} is not finite; embed again, with "
                        "a model whose weights are"
                    )
                yield group
