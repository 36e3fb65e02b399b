"""Accuracy and areas of maps: ``assess``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from multimae_eo.errors import ConfigError

if TYPE_CHECKING:
    from multimae_eo.evaluation.class_map_file import ClassMapRaster
    from multimae_eo.evaluation.sample_design import DrawnSample, SamplePlan


def assess(
    map: str | Path,
    *,
    out: str | Path,
    reference: str | Path | None = None,
    column: str = "label",
    layer: str = "",
    crs: str = "",
    design: Literal["auto", "srs", "stratified", "cluster"] = "auto",
    cluster: str = "",
    other: str | Path | None = None,
    draw: int | None = None,
    standard_error: float | None = None,
    allocation: Literal["proportional", "equal", "neyman"] = "neyman",
    expected: str = "",
    least: int = 10,
    units: Literal["points", "pixels"] = "points",
    block: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Estimate a class map's accuracy and areas, or draw the sample to be labelled for it.

    With ``reference``, the error matrix in shares of the area, overall, user's and producer's
    accuracy and the area of each class, with standard errors and 95 % intervals (Olofsson et al.
    2014, doi 10.1016/j.rse.2014.02.015; Stehman 2014). With ``draw`` or ``standard_error``, a
    random sample of the map's pixels. With both, and a raster as reference, the sample is labelled
    from the raster.

    Args:
        map: A GeoTIFF of class ids.
        out: Folder for ``accuracy.json`` and ``report.html``; or, to draw, the sample: .gpkg,
            .geojson or .parquet.
        reference: Labelled points or polygons (GeoPackage, GeoJSON, GeoParquet, Shapefile), or a
            raster of class ids.
        column: Column of the reference's classes: names or ids of the map.
        layer: Layer of the reference, where it has several.
        crs: CRS of the reference, in place of the one it declares.
        design: How the sample was drawn, or is to be: srs, stratified by the map's classes, or
            cluster. auto: as its columns state; else cluster for polygons, srs for points; to
            draw, stratified.
        cluster: Column of clusters, of a cluster sample that ``draw`` did not make.
        other: Another map, compared on the same pixels.
        draw: Units to draw; of a cluster design, clusters.
        standard_error: Or the standard error of overall accuracy to be reached, such as 0.02.
        allocation: Units per class: proportional, equal, or neyman, by the expected errors.
        expected: User's accuracy that is expected: 0.85, or wheat=0.9,maize=0.7 (default: 0.8).
        least: Units of any class.
        units: Points at the pixels' centres, or the pixels' squares.
        block: Side of a cluster in pixels.
        seed: Seed of the draw.

    Returns:
        Of an assessment ``overall``, ``classes`` (``users``, ``producers``, ``area_share``,
        ``area_ha``: value, standard_error, low, high), ``error_matrix``, ``comparison``; of a draw
        ``units`` and ``stratum_sizes`` by class, and ``expected`` standard errors.

    Raises:
        ConfigError: neither or both of ``reference`` and ``draw``, unknown columns or classes.
        FormatError, DataError: files that cannot be used. ClassMapError: a label that is no class
        of the map. OutputError: ``out`` cannot be written.
    """
    from multimae_eo.evaluation.assess import ReferenceFile, assess_features, assess_raster
    from multimae_eo.evaluation.class_map_file import ClassMapRaster
    from multimae_eo.evaluation.sample_design import SamplePlan, expected_accuracies
    from multimae_eo.sources.vector.vector_file import is_vector

    target = ClassMapRaster.open(Path(map))
    path = None if reference is None else Path(reference)
    if draw is not None or standard_error is not None:
        plan = SamplePlan(
            design="stratified" if design == "auto" else design,
            total=draw,
            standard_error=standard_error,
            allocation=allocation,
            expected=expected_accuracies(expected, target),
            least=least,
            block=block,
            seed=seed,
        )
        return _draw(target, plan, path, Path(out), units)
    if path is None:
        raise ConfigError("assess: give a reference, or the number of units to draw")
    if not is_vector(path):
        return assess_raster(target, path, out=Path(out))
    file = ReferenceFile(
        path=path, column=column, layer=layer, crs=crs, design=design, cluster=cluster
    )
    second = None if other is None else ClassMapRaster.open(Path(other))
    return assess_features(target, file, out=Path(out), other=second)


def _draw(
    target: ClassMapRaster,
    plan: SamplePlan,
    reference: Path | None,
    out: Path,
    units: Literal["points", "pixels"],
) -> dict[str, Any]:
    from multimae_eo.evaluation.sample_design import draw_sample, expected_errors, sample_layer
    from multimae_eo.scenes.vector_output import require_vector_output, write_features

    if reference is not None:
        return _draw_labelled(target, plan, reference, out, units)
    require_vector_output(out)
    drawn = draw_sample(target, plan)
    write_features(out, sample_layer(drawn, target, units=units))
    return _sizes(drawn, target) | {"expected": expected_errors(drawn, plan, target)}


def _draw_labelled(
    target: ClassMapRaster,
    plan: SamplePlan,
    reference: Path,
    out: Path,
    units: Literal["points", "pixels"],
) -> dict[str, Any]:
    """A sample that is labelled from a reference raster, and the assessment by it."""
    import numpy as np

    from multimae_eo.evaluation.assess import assess_drawn, labels_at
    from multimae_eo.evaluation.class_map_file import NO_CLASS
    from multimae_eo.evaluation.sample_design import draw_sample, sample_layer
    from multimae_eo.scenes.vector_output import write_features
    from multimae_eo.sources.vector.vector_file import is_vector

    if is_vector(reference):
        raise ConfigError(
            f"{reference}: a sample is labelled from a raster; draw it first, label it, and give "
            "it as reference"
        )
    drawn = draw_sample(target, plan)
    labels, names = labels_at(target, reference, drawn.rows, drawn.cols)
    texts = [None if i == NO_CLASS else str(i) for i in labels.tolist()]
    layer = sample_layer(drawn, target, units=units, labels=np.array(texts, dtype=object))
    write_features(out / "sample.gpkg", layer)
    target.names.update({i: n for i, n in names.items() if i not in target.names})
    return assess_drawn(target, drawn, labels, str(reference), out=out)


def _sizes(drawn: DrawnSample, target: ClassMapRaster) -> dict[str, Any]:
    """Drawn units per class, and the sizes of the strata."""
    units = {target.name(i): int((drawn.map_class == i).sum()) for i in target.counts}
    stratified = drawn.design == "stratified"
    sizes = {target.name(i) if stratified else "map": n for i, n in drawn.stratum_sizes.items()}
    return {"design": drawn.design, "units": units, "stratum_sizes": sizes}
