"""Features drawn on a grid: the highest and the lowest index of each pixel.

Pixels whose centre a polygon covers are its, and those that a line or a point touches. Where both
results differ, features of different indices overlap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from multimae_eo.sources.vector.vector_file import Shapes

if TYPE_CHECKING:
    from affine import Affine

_AREAL = (3, 6)  # shapely's type ids of polygons
Indices = npt.NDArray[np.int64]


def rasterize_indices(
    shapes: Shapes,
    indices: Indices,
    transform: Affine,
    shape: tuple[int, int],
    *,
    all_touched: bool = False,
) -> tuple[Indices, Indices]:
    """The highest and the lowest index at each pixel, (H, W), -1 where there is no feature.

    Args:
        shapes: Geometries in the grid's CRS, (n,).
        indices: Index of each, from 0, (n,).
        transform: Affine transform of the grid.
        shape: Rows and columns.
        all_touched: Draw all pixels that a polygon touches.
    """
    import shapely
    from rasterio.features import rasterize

    highest = np.full(shape, -1, dtype=np.int64)
    lowest = np.full(shape, np.iinfo(np.int64).max, dtype=np.int64)
    parts, owner = shapely.get_parts(shapes, return_index=True)
    areal = np.isin(shapely.get_type_id(parts), _AREAL)
    for chosen, touched in ((areal, all_touched), (~areal, True)):
        numbers = indices[owner[chosen]]
        order = np.argsort(numbers, kind="stable")
        pairs = list(zip(parts[chosen][order], (numbers[order] + 1).tolist(), strict=True))
        if not pairs:
            continue
        # The last one drawn stays: the highest of ascending indices, the lowest of descending.
        settings = {"out_shape": shape, "transform": transform, "dtype": "int32"}
        up = rasterize(pairs, all_touched=touched, **settings).astype(np.int64)
        down = rasterize(pairs[::-1], all_touched=touched, **settings).astype(np.int64)
        highest = np.maximum(highest, up - 1)
        lowest = np.where(down > 0, np.minimum(lowest, down - 1), lowest)
    return highest, np.where(highest < 0, -1, lowest)
