"""What lies where in a chip store, and how its files are written: whole, or not at all.

``docs/store.md`` is the reference of the format.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, FormatError
from multimae_eo.files import read_json as read_json_file
from multimae_eo.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

IMAGES_VERSION, FORMAT_VERSION = 1, 2
"""Of stores that hold images alone, which earlier releases read, and of those that hold series."""
PLAN_VERSION = 1
PLAN = "plan.json"
HEADER = "store.json"
INDEX = "index.parquet"
CHECKSUMS = "checksums.json"
PARTS = "parts"
LABELS = "labels"
DATES = "dates"

_CHUNK = 1 << 22
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a store is made of; written first. A store continues only under an equal plan.

    ``modalities`` and ``keys`` are digests: of the modalities with their classes, scales and
    nodata and the label classes; and of all keys with their splits, in order.
    """

    format_version: int = PLAN_VERSION
    source: str
    modalities: str
    chips: int
    keys: str
    shard_chips: int

    def to_json(self) -> str:
        """The plan as JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.chips // self.shard_chips)

    def members(self, shard: int) -> range:
        """Indices of a shard's chips."""
        start = shard * self.shard_chips
        return range(start, min(start + self.shard_chips, self.chips))


def array_path(group: str, shard: int, *, valid: bool = False) -> str:
    """Where a shard's array lies in the store; ``group`` is a modality's name or ``LABELS``.

    Pixels are (n, C, H, W) in the source's type and label maps (n, H, W). Validity is uint8
    (n, 1 or C, H, ceil(W/8)): bits packed along the width, the highest first. A chip has a row, and
    in a series one for each of its dates, in order.
    """
    return f"{group}/{shard:05d}{'.valid' if valid else ''}.npy"


def part_path(shard: int) -> str:
    """Where the record of a finished shard lies while ``prepare`` is under way."""
    return f"{PARTS}/{shard:05d}.json"


def check_names(names: Sequence[str]) -> None:
    """ConfigError for a modality whose name cannot be a folder of a store."""
    for name in names:
        if name in (LABELS, PARTS) or not _FOLDER.fullmatch(name):
            raise ConfigError(
                f"modality {name!r}: cannot be a folder of a chip store; rename it (letters, "
                f"digits, '_', '-' and '.', and neither {LABELS!r} nor {PARTS!r})"
            )


def write_bytes(path: Path, data: bytes) -> str:
    """Write a file atomically; returns its checksum. Raises OutputError."""
    return _write(path, lambda file: file.write(data))


def write_array(path: Path, array: npt.NDArray[np.generic]) -> str:
    """Write an array as ``.npy``, without a copy of it; see ``write_bytes``."""
    return _write(path, lambda file: np.save(file, array, allow_pickle=False))


class _Hashed:
    """A file to write to, hashing what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = _digest()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def hexdigest(self) -> str:
        return str(self._digest.hexdigest())


def _write(path: Path, fill: Callable[[_Hashed], object]) -> str:
    with replacing(path) as temporary, temporary.open("wb") as file:
        hashed = _Hashed(file)
        fill(hashed)
    return hashed.hexdigest()


def _digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def checksum(data: bytes) -> str:
    """32 hex digits of BLAKE2b."""
    digest = _digest()
    digest.update(data)
    return str(digest.hexdigest())


def checksum_file(path: Path) -> str:
    """``checksum`` of a file, read in chunks."""
    digest = _digest()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return str(digest.hexdigest())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; FormatError names the file."""
    remedy = "delete the store and prepare it again"
    record = read_json_file(path, FormatError, remedy=remedy)
    if not isinstance(record, dict):
        raise FormatError(f"{path}: is not a JSON object; delete the store and prepare it again")
    return record


def json_bytes(record: Mapping[str, object]) -> bytes:
    """A JSON object as text, the same for equal ones."""
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


def footprint(bounds: Sequence[float] | None) -> bytes | None:
    """Bounds (left, bottom, right, top) as a WKB polygon, little endian."""
    if bounds is None:
        return None
    left, bottom, right, top = bounds
    ring = ((left, bottom), (right, bottom), (right, top), (left, top), (left, bottom))
    head = struct.pack("<BIII", 1, 3, 1, len(ring))
    return head + b"".join(struct.pack("<dd", x, y) for x, y in ring)


def index_table(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], series: Collection[str] = ()
) -> pa.Table:
    """Arrow table of some chips, from the rows of a part record; all columns but ``label``.

    ``series``: the names of modalities that have dates in any chip of the store.
    """
    import pyarrow as pa

    bounds = [r["bounds"] for r in rows]
    columns: dict[str, Any] = {
        "key": pa.array([r["key"] for r in rows], pa.string()),
        "split": pa.array([r["split"] for r in rows], pa.string()),
        "label_row": pa.array([r["label_row"] for r in rows], pa.int32()),
        "geometry": pa.array([footprint(b) for b in bounds], pa.binary()),
        "crs": pa.array([r["crs"] for r in rows], pa.string()),
        "time": pa.array([r["time"] for r in rows], pa.string()),
    }
    for side, what in enumerate(("left", "bottom", "right", "top")):
        values = [None if b is None else b[side] for b in bounds]
        columns[what] = pa.array(values, pa.float64())
    kinds = {
        "present": (pa.bool_(), False),
        "row": (pa.int32(), -1),
        "valid_fraction": (pa.float64(), 0.0),
        "valid_bands": (pa.int32(), 0),
        "scale": (pa.float64(), 1.0),
        "offset": (pa.float64(), 0.0),
        "level": (pa.string(), ""),
    }
    for name in names:
        records = [r["modalities"].get(name, {}) for r in rows]
        for what, (kind, absent) in kinds.items():
            columns[column(name, what)] = pa.array([r.get(what, absent) for r in records], kind)
        if name in series:
            dates = [r.get(DATES) for r in records]
            columns[column(name, DATES)] = pa.array(dates, pa.list_(pa.float64()))
    return pa.table(columns)


def column(name: str, what: str) -> str:
    """Name of a modality's column of the index. No name of a modality holds a slash."""
    return f"{name}/{what}"


def index_bytes(
    tables: Sequence[pa.Table], labels: Sequence[object], labelled: Mapping[str, Any] | None
) -> bytes:
    """The index as Parquet, from the tables of all parts and every chip's label.

    ``labelled``: shape and type of a label; the column is null where labels are maps.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind: pa.DataType = pa.null()
    if labelled is not None and len(labelled["shape"]) < 2:
        kind = pa.float64() if np.dtype(labelled["dtype"]).kind == "f" else pa.int64()
        kind = pa.list_(kind) if labelled["shape"] else kind
    column = pa.chunked_array([pa.array(labels, kind)])
    table = pa.concat_tables(tables).append_column("label", column)
    buffer = io.BytesIO()
    pq.write_table(table.combine_chunks(), buffer, compression="zstd")
    return buffer.getvalue()
