"""Labelled real series as tables of points: where they lie, and how arrays become tables.

Sets lie in ``time_series`` below a folder of data (``MULTIMAE_EO_DATA``); examples/ has a file for
each, with its pitfalls. Three are tables already. The others are arrays:

    python benchmarks/series.py table --set fuel_moisture --out DIR

writes ``DIR/fuel_moisture.parquet`` and, beside it, the example's file.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from multimae_eo import open_source
from multimae_eo.sources.base import Indices, Source

Array = npt.NDArray[Any]

TABLES = ("modis_sinop", "cerrado", "landsat_rondonia")
EXAMPLES = measure.ROOT / "examples"
MONTHLY_BANDS = (
    "VV", "VH", *(f"optical_{i}" for i in range(1, 12)),
    "temperature", "precipitation", "elevation", "slope", "index",
)  # fmt: skip
"""Of the last axis, by position; what the eleven optical ones are is not documented."""
BLOCK_DEGREES = 0.5
_YEAR, _DAY, _MONTH_DAYS = 2018, 15, 30.44
_BLOCK, _GAP, _STEP = 20, 2, 2
_TEST, _VAL = 6, 4


def open_set(name: str, data: Path, folder: Path) -> Source:
    """A set as a source; its table, where the set is arrays, is written into ``folder``."""
    return open_source(EXAMPLES / f"{name}.yaml" if name in TABLES else table(name, data, folder))


def table(name: str, data: Path, folder: Path) -> Path:
    """Write a set of arrays as a table; returns the series file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = ARRAYS[name](data / "time_series" / name)
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return Path(shutil.copy(EXAMPLES / f"{name}.yaml", folder))


def monthly(folder: Path) -> dict[str, list[Any]]:
    """Points with 18 values a month, whose test split is of other sites.

    Dates are the middle of the first month in a year that is none of the data's, and months from
    there. A fifth of the 0.5° blocks of training sites is for validation.
    """
    names = ("s1_s2_era5_srtm", "latlon", "month", "target", "is_test")
    values, position, month, target, is_test = (np.load(folder / f"{n}.npy") for n in names)
    blocks = [f"{a}/{b}" for a, b in np.floor(position / BLOCK_DEGREES).astype(int)]
    ours = sorted({b for b, test in zip(blocks, is_test, strict=True) if not test})
    held_out = set(np.random.default_rng(0).permutation(ours)[: max(1, len(ours) // 5)])
    splits = [
        "test" if test else "val" if block in held_out else "train"
        for block, test in zip(blocks, is_test, strict=True)
    ]
    columns: dict[str, list[Any]] = {
        "id": [f"p{i:04d}" for i in range(len(values))],
        "dates": [_months(int(first), values.shape[1]) for first in month[:, 0]],
        "target": target.astype(float).tolist(),
        "split": splits,
        "latitude": position[:, 0].tolist(),
        "longitude": position[:, 1].tolist(),
    }
    return columns | {n: values[:, :, i].tolist() for i, n in enumerate(MONTHLY_BANDS)}


def _months(first: int, count: int) -> list[datetime.date]:
    start = datetime.date(_YEAR, first % 12 + 1, _DAY)
    return [start + datetime.timedelta(days=round(i * _MONTH_DAYS)) for i in range(count)]


def pixels(folder: Path) -> dict[str, list[Any]]:
    """Every second pixel of a patch in both directions, as points; null where it was cloudy.

    Splits are blocks of 20 × 20 px, of which a border of 2 px is left out: no two splits are nearer
    than 4 px. Pixels without a class, or of one with fewer than 100 pixels, are left out.
    """
    ndvi, cloud, seen, classes = (
        np.load(folder / f"{n}.npy")[..., 0] for n in ("NDVI", "CLM", "IS_VALID", "LULC")
    )
    times = json.loads((folder / "timestamps.json").read_text(encoding="utf-8"))
    clear = seen.astype(bool) & (cloud == 0) & np.isfinite(ndvi)
    across = classes.shape[1] // _BLOCK
    count = classes.shape[0] // _BLOCK * across
    order = np.random.default_rng(0).permutation(count)
    split_of = dict.fromkeys(order[:_TEST], "test") | dict.fromkeys(order[_TEST:][:_VAL], "val")
    common = {c for c, n in zip(*np.unique(classes, return_counts=True), strict=True) if n >= 100}
    inside = range(_GAP, _BLOCK - _GAP, _STEP)
    columns: dict[str, list[Any]] = {n: [] for n in ("id", "dates", "NDVI", "class", "split")}
    for block in range(count):
        corner = (block // across * _BLOCK, block % across * _BLOCK)
        for row, column in ((corner[0] + i, corner[1] + j) for i in inside for j in inside):
            if classes[row, column] in common - {0}:
                ok, values = clear[:, row, column], ndvi[:, row, column]
                columns["id"].append(f"b{block:02d}/{row}_{column}")
                columns["dates"].append(times)
                columns["NDVI"].append(
                    [float(v) if k else None for v, k in zip(values, ok, strict=True)]
                )
                columns["class"].append(f"class {classes[row, column]}")
                columns["split"].append(split_of.get(block, "train"))
    return columns


ARRAYS: Mapping[str, Callable[[Path], dict[str, list[Any]]]] = {
    "fuel_moisture": monthly,
    "algae_blooms": monthly,
    "slovenia_patch": pixels,
}
SETS = (*TABLES, *ARRAYS)


def places(source: Source, indices: Indices, degrees: float = BLOCK_DEGREES) -> list[str]:
    """The block of each point: of ``degrees``, or what its id begins with, up to a slash."""
    names = []
    for index in indices.tolist():
        sample = source.read(index)
        if sample.geometry is None:
            names.append(sample.key.partition("/")[0])
            continue
        left, bottom, right, top = sample.geometry.bounds
        x, y = (left + right) / 2, (bottom + top) / 2
        names.append(f"{round(x // degrees)}/{round(y // degrees)}")
    return names


def folds(names: Sequence[str], count: int) -> npt.NDArray[np.int64]:
    """A fold of each point: places are whole, and folds about equal in points."""
    of_place: dict[str, int] = {}
    sizes = np.zeros(count)
    unique, points = np.unique(np.array(names), return_counts=True)
    shuffled = np.random.default_rng(0).permutation(len(unique))
    for i in sorted(shuffled.tolist(), key=lambda i: -int(points[i])):
        fold = int(sizes.argmin())
        of_place[str(unique[i])] = fold
        sizes[fold] += points[i]
    return np.array([of_place[n] for n in names], dtype=np.int64)
