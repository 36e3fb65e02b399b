"""A class map in a raster file: its classes, its pixels block by block, and their area."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.class_colors import class_colors
from multimae_eo.errors import DataError, FormatError
from multimae_eo.modality import ClassMapEntry
from multimae_eo.scenes.raster_output import class_names_in
from multimae_eo.sources.raster.grid import Grid
from multimae_eo.sources.raster.reading import open_dataset, read_header

Ids = npt.NDArray[np.int64]

NO_CLASS = -1
"""Stands for nodata in arrays of ids."""
_ROWS_BYTES = 1 << 24
_METRES_PER_DEGREE = 111_320.0


@dataclass(frozen=True, kw_only=True)
class ClassMapRaster:
    """A map of class ids. ``names``: by id, as far as the file has them."""

    path: Path
    grid: Grid
    names: dict[int, str]

    @classmethod
    def open(cls, path: Path) -> ClassMapRaster:
        """Open a raster of class ids.

        Raises FormatError for a file that is no raster, has no CRS, several bands or values that
        are not whole.
        """
        header = read_header(path)
        if header.geometry is None or header.flipped or header.rotated:
            raise FormatError(f"{path}: has no CRS, or is not north-up; warp it first")
        if header.count != 1 or header.dtype.kind not in "iu":
            raise FormatError(
                f"{path}: expected one band of class ids, got {header.count} of {header.dtype}; "
                "accuracies are those of class maps"
            )
        with open_dataset(path) as dataset:
            tags = {**dataset.tags(), **dataset.tags(1)}
        return cls(
            path=path,
            grid=Grid(
                crs=header.geometry.crs,
                transform=header.transform,
                height=header.shape[0],
                width=header.shape[1],
            ),
            names=class_names_in(tags),
        )

    def name(self, number: int) -> str:
        """A class's name, or its id where it has none."""
        return self.names.get(number, str(number))

    def classes(self, ids: Any) -> tuple[ClassMapEntry, ...]:
        """Classes of some ids, with colours by their names."""
        listed = [int(i) for i in ids]
        names = [self.name(i) for i in listed]
        return tuple(
            ClassMapEntry(id=i, name=n, color=c)
            for i, n, c in zip(listed, names, class_colors(names), strict=True)
        )

    @property
    def block_rows(self) -> int:
        """Rows that are read at once."""
        return max(1, _ROWS_BYTES // (8 * self.grid.width))

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, Ids]]:
        """First row and class ids (n, W) of blocks of rows; NO_CLASS for nodata."""
        step = rows or self.block_rows
        with open_dataset(self.path) as dataset:
            for top in range(0, self.grid.height, step):
                bottom = min(top + step, self.grid.height)
                yield top, masked_ids(dataset, ((top, bottom), (0, self.grid.width)))

    @cached_property
    def counts(self) -> dict[int, int]:
        """Pixels of each class, by ascending id. DataError where there is none."""
        totals: dict[int, int] = {}
        for _, ids in self.blocks():
            values, numbers = np.unique(ids[ids != NO_CLASS], return_counts=True)
            for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
                totals[value] = totals.get(value, 0) + number
        if not totals:
            raise DataError(f"{self.path}: has no pixel with a class")
        return dict(sorted(totals.items()))

    def at(self, rows: Ids, cols: Ids) -> Ids:
        """Class ids at pixels, (n,); NO_CLASS for nodata and outside."""
        ids = np.full(len(rows), NO_CLASS, dtype=np.int64)
        inside = (rows >= 0) & (rows < self.grid.height) & (cols >= 0) & (cols < self.grid.width)
        for top, block in self.blocks():
            here = inside & (rows >= top) & (rows < top + len(block))
            ids[here] = block[rows[here] - top, cols[here]]
        return ids

    @cached_property
    def pixel_m2(self) -> float:
        """Area of a pixel in square metres; of degrees, that in the middle of the map."""
        from rasterio.crs import CRS

        crs = CRS.from_user_input(self.grid.crs)
        area = abs(self.grid.transform.a * self.grid.transform.e)
        if crs.is_geographic:
            _, middle = self.grid.transform @ (0, self.grid.height / 2)
            return float(area * _METRES_PER_DEGREE**2 * math.cos(math.radians(middle)))
        return float(area * crs.linear_units_factor[1] ** 2)


def masked_ids(dataset: Any, window: Any) -> Ids:
    """Class ids of a window; NO_CLASS for what the file's mask leaves out."""
    ids: Ids = dataset.read(1, window=window).astype(np.int64)
    ids[dataset.read_masks(1, window=window) == 0] = NO_CLASS
    return ids
