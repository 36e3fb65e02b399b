"""A class map as polygons: simplified together, so that neighbours keep their common border."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from multimae_eo.errors import DataError
from multimae_eo.modality import ClassMapEntry
from multimae_eo.scenes.vector_output import VectorLayer, write_features
from multimae_eo.sources.raster.reading import open_dataset

_HECTARE = 10_000.0


def write_polygons(
    raster: Path,
    out: Path,
    classes: tuple[ClassMapEntry, ...],
    *,
    pixel_m2: float,
    least_pixels: int = 4,
    tolerance: float = 1.0,
) -> int:
    """Write a class map as polygons with ``class_id``, ``class_name`` and ``area_ha``.

    Args:
        raster: The map.
        out: File to write: .gpkg, .geojson or .parquet.
        classes: Names and colours of the map's ids.
        pixel_m2: Area of a pixel in square metres.
        least_pixels: Patches of fewer pixels are merged into their largest neighbour.
        tolerance: Of the simplification, in pixels; 0 for the pixels' outlines.

    Returns:
        The number of polygons. Areas are those of the pixels, before simplification.

    Raises:
        DataError: the map is empty. OutputError: ``out`` cannot be written.
    """
    import shapely
    from rasterio.features import shapes, sieve
    from shapely.geometry import shape as as_shape

    with open_dataset(raster) as dataset:
        ids, mask = dataset.read(1), dataset.read_masks(1) > 0
        crs, transform = dataset.crs.to_string(), dataset.transform
    if least_pixels > 1:
        # Nodata is never given a class: what is merged stays within the mask.
        merged = sieve(np.where(mask, ids, 0), size=least_pixels, mask=mask.astype("uint8"))
        ids = np.where(mask, merged, ids)
    # In pixels, so that all corners are whole numbers.
    listed = list(shapes(ids.astype(np.int32), mask=mask))
    if not listed:
        raise DataError(f"{raster}: has no pixel with a class")
    outlines = np.array([as_shape(record) for record, _ in listed], dtype=object)
    numbers = np.array([int(value) for _, value in listed], dtype=np.int64)
    pixels = shapely.area(outlines)
    if tolerance:
        # A corner of one polygon has to be one of its neighbours, too.
        corners = shapely.transform(shapely.segmentize(outlines, 1.0), np.round)
        outlines = np.asarray(shapely.coverage_simplify(corners, tolerance), dtype=object)
    outlines = shapely.transform(outlines, lambda xy: np.stack(transform @ tuple(xy.T), axis=1))
    names = {c.id: c.name for c in classes}
    layer = VectorLayer(
        name=out.stem,
        kind="Polygon",
        crs=crs,
        shapes=outlines,
        columns={
            "class_id": numbers,
            "class_name": np.array([names.get(i, str(i)) for i in numbers.tolist()], dtype=object),
            "area_ha": pixels * pixel_m2 / _HECTARE,
        },
        classes=classes,
        class_column="class_id",
    )
    write_features(out, layer)
    return len(outlines)
