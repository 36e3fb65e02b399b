"""Writes GEO-Bench-2's data sets as tortilla files from synthetic chips.

The format is that of ``pytortilla`` (tests/plugins compares them): a header of 200 bytes that
begins with ``#y``, the offset and the length of the table as little-endian 64-bit integers; the
bytes of the files; the table as Parquet. What is stored at which position is written down here
once more, as the benchmark's own generators have it, so that the reader's records can be tested
against it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from rasterio.io import MemoryFile

HEADER_BYTES = 200
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file of a tortilla. ``columns``: what else its row holds."""

    name: str
    content: bytes
    file_format: str
    split: str
    columns: Mapping[str, Any] = field(default_factory=dict)


def tortilla_bytes(entries: Sequence[Entry]) -> bytes:
    """A tortilla that holds the entries."""
    offset, rows = HEADER_BYTES, []
    for entry in entries:
        rows.append(
            {
                "tortilla:id": entry.name,
                "tortilla:file_format": entry.file_format,
                "tortilla:data_split": entry.split,
                "tortilla:offset": offset,
                "tortilla:length": len(entry.content),
                **entry.columns,
            }
        )
        offset += len(entry.content)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    table = sink.getvalue()
    header = b"#y" + b"".join(n.to_bytes(8, "little") for n in (offset, len(table), 1))
    files = b"".join(e.content for e in entries)
    return header.ljust(HEADER_BYTES, b"\0") + files + table


def geotiff(pixels: np.ndarray[Any, Any]) -> bytes:
    """Pixels (C, H, W) as the bytes of a GeoTIFF."""
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2],
            dtype=pixels.dtype, crs="EPSG:32634",
            transform=rasterio.Affine(10, 0, 500000, 0, -10, 5200000),
        ) as file:  # fmt: skip
            file.write(pixels)
        return bytes(memory.read())


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Images of a chip in order: channels, dtype, typical values and side in pixels."""

    images: Sequence[tuple[str, int, str, float, int]]
    classes: int
    label: str
    first: int = 0
    column: str = "labels"


LAYOUTS = {
    "benv2": Layout(
        images=(("s1", 2, "float32", -15.0, 16), ("s2", 12, "uint16", 1500.0, 16)),
        classes=19,
        label="names",
    ),
    "so2sat": Layout(
        images=(("s1", 2, "float32", 1e-3, 16), ("s2", 10, "float32", 0.2, 16)),
        classes=17,
        label="index",
    ),
    "forestnet": Layout(images=(("image", 6, "uint8", 90.0, 16),), classes=12, label="index"),
    "treesatai": Layout(
        images=(
            ("aerial", 4, "uint8", 90.0, 16), ("s1", 3, "float32", -9.0, 4),
            ("s2", 12, "uint16", 1500.0, 4),
        ),
        classes=15,
        label="names",
        column="species_labels",
    ),
    "burn_scars": Layout(images=(("image", 6, "float32", 0.1, 16),), classes=2, label="map"),
    "cloudsen12": Layout(images=(("image", 12, "uint16", 2000.0, 16),), classes=4, label="map"),
    "caffe": Layout(images=(("image", 1, "uint8", 60.0, 16),), classes=4, label="map"),
    "flair2": Layout(
        images=(("aerial", 5, "uint8", 100.0, 16),), classes=13, label="map", first=1
    ),
    "fotw": Layout(
        images=(
            ("window_a", 4, "uint16", 900.0, 16), ("window_b", 4, "uint16", 900.0, 16),
            ("instances", 1, "uint8", 3.0, 16),
        ),
        classes=3,
        label="map",
    ),
    "spacenet2": Layout(
        images=(("worldview", 8, "uint16", 400.0, 16), ("pan", 1, "uint16", 400.0, 16)),
        classes=2,
        label="map",
    ),
    "spacenet7": Layout(images=(("image", 3, "uint8", 100.0, 16),), classes=2, label="map"),
}  # fmt: skip


def write_geobench2(
    root: Path,
    name: str,
    *,
    chips: tuple[int, int, int] = (8, 4, 4),
    names: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write ``root/name/geobench_name.tortilla`` with so many chips of each split.

    ``names``: of the classes, for labels that are names. Returns the file.
    """
    layout = LAYOUTS[name]
    rng = np.random.default_rng(seed)
    looks = {n: rng.uniform(0.5, 1.5, (layout.classes, c)) for n, c, *_ in layout.images}
    splits = [s for s, count in zip(SPLITS, chips, strict=True) for _ in range(count)]
    entries = []
    for i, split in enumerate(splits):
        kind = i % layout.classes
        kinds = np.full((16, 16), kind)
        columns: dict[str, Any] = {
            "stac:crs": "EPSG:32634",
            "stac:geotransform": [500000.0, 10.0, 0.0, 5200000.0, 0.0, -10.0],
            "stac:raster_shape": [16, 16],
            "stac:time_start": 1.5e9,
        }
        if layout.label == "map":
            kinds = rng.integers(0, layout.classes, (4, 4)).repeat(4, axis=0).repeat(4, axis=1)
        else:
            value = [names[kind], names[(kind + 1) % len(names)]] if names else kind
            columns[layout.column] = value
        images = []
        for image, channels, dtype, typical, side in layout.images:
            part = kinds[:: 16 // side, :: 16 // side]
            values = typical * np.moveaxis(looks[image][part], -1, 0)
            values = values * rng.normal(1, 0.05, values.shape)
            assert values.shape[0] == channels
            content = geotiff(values.astype(dtype))
            images.append(
                Entry(name=image, content=content, file_format="GTiff", split=split,
                      columns=columns)
            )  # fmt: skip
        if layout.label == "map":
            content = geotiff((kinds + layout.first).astype(np.int16)[None])
            images.append(
                Entry(name="label", content=content, file_format="GTiff", split=split,
                      columns=columns)
            )  # fmt: skip
        entries.append(
            Entry(name=f"sample_{i}", content=tortilla_bytes(images), file_format="TORTILLA",
                  split=split, columns=columns)
        )  # fmt: skip
    path = root / name / f"geobench_{name}.tortilla"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tortilla_bytes(entries))
    return path
