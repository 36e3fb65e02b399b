"""What looks alike: nearest neighbours among embeddings, by cosine, read a row group at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, DataError, FormatError, did_you_mean

Array = npt.NDArray[np.float32]
_COLUMNS = ("key", "bbox", "time", "vector")


@dataclass(frozen=True)
class _Group:
    """Some rows: ``boxes`` (n, 4) in degrees, NaN where there is none; ``vectors`` (n, D)."""

    keys: list[str]
    times: list[str | None]
    boxes: npt.NDArray[np.float64]
    vectors: Array


def search(
    path: Path,
    *,
    at: tuple[float, float] | None = None,
    key: str | None = None,
    k: int = 10,
) -> list[dict[str, Any]]:
    """The ``k`` embeddings most like one of the file, itself first.

    ``at``: the one that lies at (longitude, latitude) in degrees, of several the one whose centre
    is nearest; or ``key``: the one of this key. Returns ``key``, ``similarity`` (cosine), ``lon``
    and ``lat`` of the centre (None without a place) and ``time``.

    Raises ConfigError where neither or both are given, or ``k`` < 1; FormatError for a file that is
    no embeddings; DataError where nothing has the key or lies there.
    """
    if (at is None) == (key is None):
        raise ConfigError("search: give either --at LON,LAT or --key KEY")
    if k < 1:
        raise ConfigError(f"k must be ≥ 1, got {k}")
    own, wanted = _find(path, at, key)
    wanted = wanted / max(float(np.linalg.norm(wanted)), 1e-12)
    best: list[tuple[float, int, dict[str, Any]]] = []
    number = 0
    for group in _groups(path):
        lengths = np.maximum(np.linalg.norm(group.vectors, axis=1), 1e-12)
        alike = group.vectors @ wanted / lengths
        rank = alike.copy()
        if number <= own < number + len(rank):
            rank[own - number] = np.inf  # before others that equal it
        for row in np.argsort(-rank, kind="stable")[:k]:
            told = _told(group, int(row), float(alike[row]))
            item = (float(rank[row]), -number - int(row), told)
            (heapq.heappush if len(best) < k else heapq.heappushpop)(best, item)
        number += len(group.keys)
    return [record for _, _, record in sorted(best, key=lambda b: (-b[0], -b[1]))]


def _find(path: Path, at: tuple[float, float] | None, key: str | None) -> tuple[int, Array]:
    """The row that is asked for, and its vector."""
    found: tuple[float, int, Array] | None = None
    nearest: tuple[float, str] = (np.inf, "")
    number = 0
    keys: list[str] = []
    for group in _groups(path):
        if at is None:
            if key in group.keys:
                row = group.keys.index(key)
                return number + row, group.vectors[row]
            keys += group.keys[: max(0, 2000 - len(keys))]
        else:
            (west, south), (east, north) = group.boxes[:, :2].T, group.boxes[:, 2:].T
            gap = np.hypot((west + east) / 2 - at[0], (south + north) / 2 - at[1])
            inside = (west <= at[0]) & (at[0] <= east) & (south <= at[1]) & (at[1] <= north)
            for place in np.flatnonzero(inside).tolist():
                if found is None or gap[place] < found[0]:
                    found = float(gap[place]), number + place, group.vectors[place]
            known = np.where(np.isfinite(gap), gap, np.inf)
            closest = int(np.argmin(known))
            nearest = min(nearest, (float(known[closest]), group.keys[closest]))
        number += len(group.keys)
    if found is not None:
        return found[1], found[2]
    if at is not None:
        hint = f"the nearest is {nearest[1]}" if nearest[1] else "none has a place on the ground"
        raise DataError(f"{path}: nothing lies at {at[0]},{at[1]} (longitude, latitude); {hint}")
    raise DataError(f"{path}: no key {key!r}; {did_you_mean(str(key), keys).split('; valid')[0]}")


def _told(group: _Group, row: int, similarity: float) -> dict[str, Any]:
    west, south, east, north = (float(v) for v in group.boxes[row])
    placed = np.isfinite(west)
    return {
        "key": group.keys[row],
        "similarity": similarity,
        "lon": (west + east) / 2 if placed else None,
        "lat": (south + north) / 2 if placed else None,
        "time": group.times[row],
    }


def _groups(path: Path) -> Iterator[_Group]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            lacking = [c for c in _COLUMNS if c not in file.schema_arrow.names]
            if lacking:
                raise FormatError(
                    f"{path}: no embeddings, column {lacking[0]!r} is missing; write one with "
                    "multimae-eo embed"
                )
            for number in range(file.num_row_groups):
                table = file.read_row_group(number, columns=list(_COLUMNS))
                box = table["bbox"].combine_chunks()
                corners = [
                    box.field(n).fill_null(np.nan).to_numpy(zero_copy_only=False)
                    for n in ("xmin", "ymin", "xmax", "ymax")
                ]
                vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                yield _Group(
                    keys=table["key"].to_pylist(),
                    times=table["time"].to_pylist(),
                    boxes=np.stack(corners, axis=1),
                    vectors=vectors.astype(np.float32).reshape(table.num_rows, -1),
                )
    except (OSError, pa.ArrowException) as error:
        told = " ".join(str(error).split())
        raise FormatError(f"{path}: cannot be read as GeoParquet: {told}") from error
