"""How accurate a class map is, by a reference sample or a reference raster: assess.

The estimators are those of ``metrics.design_based``. A sample that ``draw_sample`` drew carries its
design in its columns; another one is taken for what ``design`` states.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from multimae_eo.errors import ClassMapError, ConfigError, DataError, did_you_mean
from multimae_eo.evaluation.assess_page import assess_page
from multimae_eo.evaluation.class_map_file import NO_CLASS, ClassMapRaster, Ids, masked_ids
from multimae_eo.evaluation.sample_design import LABEL_COLUMN, DrawnSample
from multimae_eo.files import single_writer, write_file
from multimae_eo.metrics.design_based import (
    Accuracy,
    Estimate,
    ReferenceSample,
    census_accuracy,
    compare_accuracy,
    estimate_accuracy,
)
from multimae_eo.scenes.raster_output import class_names_in
from multimae_eo.sources.raster.reading import open_dataset, read_header
from multimae_eo.sources.vector.vector_file import VectorFeatures, on_crs, read_features

if TYPE_CHECKING:
    from rasterio.vrt import WarpedVRT

DesignName = Literal["auto", "srs", "stratified", "cluster"]
_HECTARE = 10_000.0


@dataclass(frozen=True, kw_only=True)
class LabelledPixels:
    """Pixels of a map with their reference class, (n,) each, and how they were drawn.

    ``unlabelled``, ``outside``: features without a label, and off the map, which are left out.
    """

    design: str
    rows: Ids
    cols: Ids
    sample: ReferenceSample
    unlabelled: int = 0
    outside: int = 0


@dataclass(frozen=True, kw_only=True)
class ReferenceFile:
    """Where reference labels are: a vector file's column, or a raster.

    ``design``: of a sample that does not carry it. ``cluster``: the column of clusters.
    """

    path: Path
    column: str = LABEL_COLUMN
    layer: str = ""
    crs: str = ""
    design: DesignName = "auto"
    cluster: str = ""


@single_writer()
def assess_features(
    target: ClassMapRaster,
    reference: ReferenceFile,
    *,
    out: Path,
    other: ClassMapRaster | None = None,
) -> dict[str, Any]:
    """Accuracy and areas of a map by labelled points or polygons; see ``write_assessment``.

    ``other``: a second map, compared on the same pixels. Raises ConfigError, FormatError and
    DataError for the files, ClassMapError for a label that is no class of the map.
    """
    features = read_features(reference.path, layer=reference.layer, crs=reference.crs)
    if reference.column not in features.columns:
        raise ConfigError(
            f"{reference.path}: no column {reference.column!r}; "
            + did_you_mean(reference.column, features.columns)
        )
    grid = target.grid
    on_map = on_crs(features, grid.crs, grid.footprint(grid.extent).bounds, "the map")
    pixels = _labelled_pixels(target, on_map, reference)
    return write_assessment(target, pixels, str(reference.path), out=out, other=other)


@single_writer()
def assess_drawn(
    target: ClassMapRaster, drawn: DrawnSample, labels: Ids, where: str, *, out: Path
) -> dict[str, Any]:
    """Accuracy and areas by a drawn sample with its labels (n,); NO_CLASS for none."""
    kept = labels != NO_CLASS
    if not kept.any():
        raise DataError(f"{where}: has no class at any of the {len(drawn)} sampled pixels")
    sample = ReferenceSample(
        map_class=drawn.map_class[kept],
        reference_class=labels[kept],
        stratum=drawn.stratum[kept],
        stratum_sizes=dict(drawn.stratum_sizes),
        cluster=None if drawn.cluster is None else drawn.cluster[kept],
    )
    pixels = LabelledPixels(
        design=drawn.design,
        rows=drawn.rows[kept],
        cols=drawn.cols[kept],
        sample=sample,
        unlabelled=int((~kept).sum()),
    )
    return write_assessment(target, pixels, where, out=out)


@single_writer()
def assess_raster(target: ClassMapRaster, path: Path, *, out: Path) -> dict[str, Any]:
    """Accuracy of a map where a reference raster has a class: a census, without sampling error.

    The raster is read on the map's grid, nearest neighbour. Raises DataError where they share no
    pixel.
    """
    classes, counts, names = _confusion(target, path)
    target = replace(target, names={**names, **target.names})
    covered = int(counts.sum())
    if not covered:
        raise DataError(f"{path}: has no class on any pixel of {target.path}; check its extent")
    record = _record(
        target, census_accuracy(classes, counts), "census", str(path), pixels=covered
    ) | {"share_of_map": covered / sum(target.counts.values())}
    return _write(target, record, out)


def labels_at(
    target: ClassMapRaster, path: Path, rows: Ids, cols: Ids
) -> tuple[Ids, dict[int, str]]:
    """A reference raster's ids at pixels of the map, and the names of its classes."""
    ids = np.full(len(rows), NO_CLASS, dtype=np.int64)
    with _on_grid(target, path) as view:
        tags = {**view.src_dataset.tags(), **view.src_dataset.tags(1)}
        for top in range(0, target.grid.height, target.block_rows):
            bottom = min(top + target.block_rows, target.grid.height)
            here = (rows >= top) & (rows < bottom)
            if here.any():
                block = masked_ids(view, ((top, bottom), (0, target.grid.width)))
                ids[here] = block[rows[here] - top, cols[here]]
    return ids, class_names_in(tags)


def write_assessment(
    target: ClassMapRaster,
    pixels: LabelledPixels,
    where: str,
    *,
    out: Path,
    other: ClassMapRaster | None = None,
) -> dict[str, Any]:
    """Write ``accuracy.json`` and ``report.html`` into ``out``; returns the record.

    ``where``: the reference's name.
    """
    accuracy = estimate_accuracy(pixels.sample)
    record = _record(target, accuracy, pixels.design, where, pixels=sum(target.counts.values()))
    record["units"] = len(pixels.rows)
    record["unlabelled"], record["outside"] = pixels.unlabelled, pixels.outside
    if other is not None:
        record["comparison"] = _comparison(target, other, pixels)
    return _write(target, record, out)


def _write(target: ClassMapRaster, record: dict[str, Any], out: Path) -> dict[str, Any]:
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    write_file(out / "accuracy.json", text.encode())
    classes = target.classes(c["id"] for c in record["classes"])
    assess_page(record, [c.color for c in classes]).write(out / "report.html")
    return record


def _record(
    target: ClassMapRaster, accuracy: Accuracy, design: str, where: str, *, pixels: int
) -> dict[str, Any]:
    """The result as JSON: shares between 0 and 1, areas in hectares."""
    hectares = pixels * target.pixel_m2 / _HECTARE
    mapped = target.counts
    total = sum(mapped.values())
    return {
        "map": str(target.path),
        "reference": where,
        "design": design,
        "area_ha": hectares,
        "overall": plain_estimate(accuracy.overall),
        "classes": [
            {
                "id": c,
                "name": target.name(c),
                "mapped_share": mapped.get(c, 0) / total,
                "users": plain_estimate(accuracy.users[c]),
                "producers": plain_estimate(accuracy.producers[c]),
                "area_share": plain_estimate(accuracy.area[c]),
                "area_ha": plain_estimate(accuracy.area[c].scaled(hectares), most=hectares),
            }
            for c in accuracy.classes
        ],
        "error_matrix": {
            "rows": "map",
            "columns": "reference",
            "counts": accuracy.counts.tolist(),
            "proportions": accuracy.proportions.tolist(),
        },
    }


def plain_estimate(estimate: Estimate, *, most: float = 1.0) -> dict[str, float | None]:
    """Value, standard error and 95 % interval, within 0 and ``most``; None where undefined."""
    if math.isnan(estimate.value):
        return {"value": None, "standard_error": None, "low": None, "high": None}
    low, high = estimate.interval
    return {
        "value": estimate.value,
        "standard_error": estimate.standard_error,
        "low": max(0.0, low),
        "high": min(most, high),
    }


def _labelled_pixels(
    target: ClassMapRaster, features: VectorFeatures, reference: ReferenceFile
) -> LabelledPixels:
    """The map's pixels under labelled features: a point's, or all that a polygon holds."""
    labels = _reference_ids(target, features, reference)
    labelled = labels != NO_CLASS
    if not labelled.any():
        raise DataError(
            f"{reference.path}: column {reference.column!r} is empty; label the sample first"
        )
    rows, cols, owner = feature_pixels(target, features)
    keep = labelled[owner]
    rows, cols, owner = rows[keep], cols[keep], owner[keep]
    ids = target.at(rows, cols)
    inside = ids != NO_CLASS
    outside = int(labelled.sum()) - len(np.unique(owner[inside]))
    rows, cols, owner, ids = rows[inside], cols[inside], owner[inside], ids[inside]
    if not len(rows):
        raise DataError(f"{reference.path}: no labelled feature lies on a pixel with a class")
    design, stratum, sizes, cluster = _design(target, features, reference, owner, ids)
    return LabelledPixels(
        design=design,
        rows=rows,
        cols=cols,
        sample=ReferenceSample(
            map_class=ids,
            reference_class=labels[owner],
            stratum=stratum,
            stratum_sizes=sizes,
            cluster=cluster,
        ),
        unlabelled=int((~labelled).sum()),
        outside=outside,
    )


def _reference_ids(
    target: ClassMapRaster, features: VectorFeatures, reference: ReferenceFile
) -> Ids:
    """The class id that each feature's label means, by name or by id; NO_CLASS for none."""
    by_name = {target.name(i): i for i in target.counts} | {n: i for i, n in target.names.items()}
    ids = np.full(len(features), NO_CLASS, dtype=np.int64)
    for row, value in enumerate(features.columns[reference.column]):
        text = "" if value is None else str(value).strip()
        if not text:
            continue
        if text in by_name:
            ids[row] = by_name[text]
            continue
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not number.is_integer() or number < 0:
            raise ClassMapError(
                f"{reference.path}: {reference.column}: {text!r} is no class of the map; "
                f"{did_you_mean(text, by_name)}; write a class that the map lacks as a number"
            )
        ids[row] = int(number)
    return ids


def feature_pixels(target: ClassMapRaster, features: VectorFeatures) -> tuple[Ids, Ids, Ids]:
    """Rows and columns of the pixels of each feature, and the feature's index, (n,) each.

    A polygon has the pixels whose centre it holds, at least the one at its middle; any other
    feature that at its middle.
    """
    import shapely
    from rasterio.features import rasterize

    grid = target.grid
    middles = shapely.point_on_surface(features.shapes)
    across, down = ~grid.transform @ (shapely.get_x(middles), shapely.get_y(middles))
    middle = np.floor(down).astype(np.int64), np.floor(across).astype(np.int64)
    parts = []
    polygonal = np.isin(shapely.get_type_id(features.shapes), (3, 6))
    for index in np.flatnonzero(polygonal).tolist():
        shape = features.shapes[index]
        x, y = np.asarray(shape.bounds).reshape(2, 2).T
        cols, rows = ~grid.transform @ (x, y)
        top, left = math.floor(min(rows)), math.floor(min(cols))
        drawn = rasterize(
            [(shape, 1)],
            out_shape=(math.ceil(max(rows)) - top, math.ceil(max(cols)) - left),
            transform=grid.transform @ type(grid.transform).translation(left, top),
            dtype="uint8",
        )
        at = np.nonzero(drawn)
        if len(at[0]):
            parts.append((at[0] + top, at[1] + left, np.full(len(at[0]), index)))
        else:
            polygonal[index] = False
    single = np.flatnonzero(~polygonal)
    parts.append((middle[0][single], middle[1][single], single))
    pixel_rows, pixel_cols, owner = (np.concatenate(p) for p in zip(*parts, strict=True))
    return pixel_rows, pixel_cols, owner


def _design(
    target: ClassMapRaster, features: VectorFeatures, reference: ReferenceFile, owner: Ids, ids: Ids
) -> tuple[str, Ids, Mapping[int, float], Ids | None]:
    """Design, stratum of each pixel, sizes of the strata, and cluster of each pixel."""
    columns = features.columns
    carried = {"stratum", "stratum_size"} <= columns.keys()
    single = np.zeros_like(owner)
    if carried and reference.design == "auto":
        strata = _integers(columns["stratum"], reference.path, "stratum")
        listed = _integers(columns["stratum_size"], reference.path, "stratum_size")
        sizes = dict(zip(strata.tolist(), map(float, listed.tolist()), strict=True))
        if "cluster" in columns:
            clusters = _integers(columns["cluster"], reference.path, "cluster")
            return "cluster", strata[owner], sizes, clusters[owner]
        return "stratified" if len(sizes) > 1 else "srs", strata[owner], sizes, None
    several = len(np.unique(owner)) < len(owner)
    design = reference.design
    if design == "auto":
        design = "cluster" if several or reference.cluster else "srs"
    pixels = float(sum(target.counts.values()))
    if design == "cluster":
        cluster = owner
        if reference.cluster:
            if reference.cluster not in columns:
                raise ConfigError(
                    f"{reference.path}: no column {reference.cluster!r}; "
                    + did_you_mean(reference.cluster, columns)
                )
            texts = [str(columns[reference.cluster][i]) for i in owner.tolist()]
            cluster = np.unique(texts, return_inverse=True)[1].reshape(-1).astype(np.int64)
        mean = len(owner) / len(np.unique(cluster))
        return design, single, {0: max(pixels / mean, len(np.unique(cluster)))}, cluster
    if several:
        raise DataError(
            f"{reference.path}: its polygons hold several pixels each, which are not independent; "
            "use --design cluster, or points"
        )
    if design == "stratified":
        return design, ids, {c: float(n) for c, n in target.counts.items()}, None
    return design, single, {0: pixels}, None


def _integers(values: Sequence[Any], path: Path, column: str) -> Ids:
    try:
        return np.array([int(v) for v in values], dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path}: column {column!r}: expected whole numbers, as the design wrote them"
        ) from error


def _comparison(
    target: ClassMapRaster, other: ClassMapRaster, pixels: LabelledPixels
) -> dict[str, Any]:
    """Another map on the same pixels: the paired difference, and McNemar's exact test."""
    from rasterio.warp import transform

    grid = target.grid
    x, y = grid.transform @ (pixels.cols + 0.5, pixels.rows + 0.5)
    if other.grid.crs != grid.crs:
        x, y = (np.asarray(v) for v in transform(grid.crs, other.grid.crs, x, y))
    cols, rows = ~other.grid.transform @ (x, y)
    ids = other.at(np.floor(rows).astype(np.int64), np.floor(cols).astype(np.int64))
    if (ids == NO_CLASS).any():
        raise DataError(
            f"{other.path}: has no class at {int((ids == NO_CLASS).sum())} of {len(ids)} sampled "
            "pixels; two maps are compared where both are"
        )
    sample = pixels.sample
    right, theirs = sample.map_class == sample.reference_class, ids == sample.reference_class
    only, only_other = int((right & ~theirs).sum()), int((theirs & ~right).sum())
    discordant = only + only_other
    p_value = stats.binomtest(only, discordant).pvalue if discordant else 1.0
    second = replace(sample, map_class=ids)
    difference = compare_accuracy(sample, other_map_class=ids)
    return {
        "other": str(other.path),
        "other_overall": plain_estimate(estimate_accuracy(second).overall),
        "difference": {
            "value": difference.value,
            "standard_error": difference.standard_error,
            "low": difference.interval[0],
            "high": difference.interval[1],
        },
        "right_in_map_only": only,
        "right_in_other_only": only_other,
        "mcnemar_p": float(p_value),
    }


def _on_grid(target: ClassMapRaster, path: Path) -> WarpedVRT:
    """A raster of class ids seen on the map's grid."""
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    header = read_header(path)
    if header.geometry is None or header.count != 1 or header.dtype.kind not in "iu":
        raise DataError(f"{path}: a reference raster has a CRS and one band of class ids")
    grid = target.grid
    # A mask of its own, so that what lies outside has no class even where it has no nodata.
    return WarpedVRT(
        open_dataset(path),
        crs=grid.crs,
        transform=grid.transform,
        height=grid.height,
        width=grid.width,
        resampling=Resampling.nearest,
        add_alpha=header.nodata[0] is None,
    )


def _confusion(
    target: ClassMapRaster, path: Path
) -> tuple[list[int], npt.NDArray[np.int64], dict[int, str]]:
    """Class ids, counts of map x reference, and the names of the reference's classes."""
    pairs: dict[tuple[int, int], int] = {}
    with _on_grid(target, path) as view:
        names = class_names_in({**view.src_dataset.tags(), **view.src_dataset.tags(1)})
        for top, ids in target.blocks():
            window = ((top, top + len(ids)), (0, target.grid.width))
            truth = masked_ids(view, window)
            both = (ids != NO_CLASS) & (truth != NO_CLASS)
            values, numbers = np.unique(
                np.stack([ids[both], truth[both]]), axis=1, return_counts=True
            )
            for (mapped, observed), number in zip(values.T.tolist(), numbers, strict=True):
                pairs[mapped, observed] = pairs.get((mapped, observed), 0) + int(number)
    classes = sorted({c for pair in pairs for c in pair})
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for (mapped, observed), number in pairs.items():
        counts[classes.index(mapped), classes.index(observed)] = number
    return classes, counts, names
