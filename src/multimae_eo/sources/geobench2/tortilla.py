"""Tortilla files (version 1 of the TACO format): bytes of files behind a table of where they are.

A header of 200 bytes begins with ``#y`` (``WX`` with a collection's metadata at the end), the
offset and the length of the table, little-endian 64-bit integers. The table is Parquet, with a row
per file; offsets count from the header. A file may be a tortilla itself. ``tacoreader``, which is
for version 2, no longer reads such files; tests/plugins compares this reader with its former one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multimae_eo.errors import ConfigError, FormatError
from multimae_eo.files import reading, require_regular
from multimae_eo.sample import Pixels

REMEDY = "download it again"
NESTED = "TORTILLA"
_MAGIC = (b"#y", b"WX")
_FIXED = ("tortilla:id", "tortilla:file_format", "tortilla:data_split", "tortilla:offset",
          "tortilla:length")  # fmt: skip
_MOST_BYTES = 1 << 30
"""Of a table: the largest of the benchmark has some megabytes."""
_MOST_VALUES = 1 << 28
"""Of one image: a chip has at most some millions."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file in a tortilla. ``offset``: from the start of the outermost file, in bytes.

    ``split``: "" where none is stored. ``metadata``: the other columns of its row.
    """

    name: str
    file_format: str
    split: str
    offset: int
    length: int
    metadata: Mapping[str, Any]


def stored_files(path: Path, offset: int = 0, *, metadata: bool = True) -> list[StoredFile]:
    """The files of the tortilla that begins at ``offset``, in the order of its table.

    ``metadata``: also read the columns that the format does not need. Raises FormatError for
    another or a damaged file.
    """
    require_regular(path, FormatError)
    with reading(path, FormatError, REMEDY, form="a tortilla"):
        content = _table_bytes(path, offset)
        columns = None if metadata else list(_FIXED)
        rows: list[dict[str, Any]] = pq.read_table(
            pa.BufferReader(content), columns=columns
        ).to_pylist()
        return [
            StoredFile(
                name=str(row["tortilla:id"]),
                file_format=str(row["tortilla:file_format"]),
                split=row["tortilla:data_split"] or "",
                offset=offset + int(row["tortilla:offset"]),
                length=int(row["tortilla:length"]),
                metadata={n: v for n, v in row.items() if n not in _FIXED},
            )
            for row in rows
        ]


def _table_bytes(path: Path, offset: int) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(offset)
        header = file.read(18)
        if header[:2] not in _MAGIC:
            raise FormatError(f"{path}: no tortilla at byte {offset}; {REMEDY}")
        start, length = (int.from_bytes(header[i : i + 8], "little") for i in (2, 10))
        if not 0 < length <= min(_MOST_BYTES, size - offset - start):
            raise FormatError(
                f"{path}: is incomplete: its table would end after the file; {REMEDY}"
            )
        file.seek(offset + start)
        return file.read(length)


def read_image(path: Path, image: StoredFile) -> Pixels:
    """A stored GeoTIFF's pixels (C, H, W) in their dtype.

    Raises FormatError for another or a damaged file, ConfigError where rasterio is missing.
    """
    try:
        import rasterio
    except ImportError as error:
        raise ConfigError(
            "reading GeoTIFFs needs rasterio; pip install 'multimae-eo[geo]'"
        ) from error
    if min(image.offset, image.length) < 0:
        raise FormatError(f"{path}: {image.name}: negative offset or length; {REMEDY}")
    location = f"/vsisubfile/{image.offset}_{image.length},{path.resolve()}"
    with (
        reading(f"{path}: {image.name}", FormatError, REMEDY, form="a GeoTIFF"),
        rasterio.open(location, driver="GTiff") as file,
    ):
        if file.count * file.height * file.width > _MOST_VALUES:
            raise FormatError(
                f"{path}: {image.name}: {file.count} × {file.height} × {file.width} pixels are no "
                f"chip; {REMEDY}"
            )
        pixels = file.read()
    if pixels.dtype.kind not in "iuf":
        raise FormatError(f"{path}: {image.name}: dtype {pixels.dtype} is no real number")
    return np.asarray(pixels)


def require_images(path: Path, files: Sequence[StoredFile], count: int) -> None:
    """FormatError unless a chip has at least ``count`` files."""
    if len(files) < count:
        raise FormatError(
            f"{path}: a chip has {len(files)} images, expected at least {count}; {REMEDY}"
        )
