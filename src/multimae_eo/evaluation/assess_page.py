"""The report of an accuracy assessment: accuracies, areas and the error matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multimae_eo.class_colors import Color
from multimae_eo.reports.html import Report

_DESIGNS = {
    "srs": "simple random sample",
    "stratified": "stratified random sample",
    "cluster": "cluster sample",
    "census": "reference raster (all pixels, no sampling error)",
}


def assess_page(record: Mapping[str, Any], colors: Sequence[Color]) -> Report:
    """Build the page of a record that ``assess`` returns; ``colors``: of its classes."""
    design = _DESIGNS.get(record["design"], record["design"])
    page = Report("Accuracy of a map", f"{record['map']} by {record['reference']}: {design}")
    page.facts(
        {
            "overall accuracy": record["overall"]["value"],
            "95 % interval": _interval(record["overall"]),
            "sampled pixels": record.get("units"),
            "area, ha": record["area_ha"],
        }
    )
    add_accuracy(page, record["classes"], record["error_matrix"], colors)
    if comparison := record.get("comparison"):
        _add_comparison(page, comparison)
    return page.text(*_notes(record))


def add_accuracy(
    page: Report,
    classes: Sequence[Mapping[str, Any]],
    matrix: Mapping[str, Any],
    colors: Sequence[Color],
) -> None:
    """Add accuracies, areas and the error matrix of classes, each with its estimates."""
    page.heading("Classes").table(_class_rows(classes), "Accuracies with 95 % intervals.")
    page.heading("Areas").table(
        _area_rows(classes),
        "Hectares. Mapped: pixels counted. Estimated: by the reference, corrected for the map's "
        "errors.",
    )
    page.picture(_area_figure(classes, colors), "Bars: 95 % intervals. Crosses: mapped.")
    names = [c["name"] for c in classes]
    page.heading("Error matrix").table(
        _matrix_rows(names, matrix["proportions"]), "Shares of the area: map (rows), reference."
    )
    page.table(_matrix_rows(names, matrix["counts"]), "Sampled pixels: map (rows), reference.")


def _class_rows(classes: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    return [
        {
            "id": str(c["id"]),
            "class": c["name"],
            "user's accuracy": c["users"]["value"],
            "user's, 95 %": _interval(c["users"]),
            "producer's accuracy": c["producers"]["value"],
            "producer's, 95 %": _interval(c["producers"]),
        }
        for c in classes
    ]


def _area_rows(classes: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    return [
        {
            "class": c["name"],
            "mapped, share": c["mapped_share"],
            "estimated, share": c["area_share"]["value"],
            "estimated, ha": c["area_ha"]["value"],
            "standard error, ha": c["area_ha"]["standard_error"],
            "95 %, ha": _interval(c["area_ha"]),
        }
        for c in classes
    ]


def _matrix_rows(
    names: Sequence[str], matrix: Sequence[Sequence[float]]
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, values in zip(names, matrix, strict=True):
        cells: dict[str, object] = {"map": name}
        rows.append(cells | dict(zip(names, values, strict=True)) | {"sum": sum(values)})
    return rows


def _interval(estimate: Mapping[str, float | None]) -> str | None:
    low, high = estimate["low"], estimate["high"]
    return None if low is None or high is None else f"{low:.4g} to {high:.4g}"


def _add_comparison(page: Report, comparison: Mapping[str, Any]) -> None:
    page.heading("Compared with another map").table(
        [
            {
                "other map": comparison["other"],
                "its overall accuracy": comparison["other_overall"]["value"],
                "difference (this − other)": comparison["difference"]["value"],
                "95 %": _interval(comparison["difference"]),
                "right here only": comparison["right_in_map_only"],
                "right there only": comparison["right_in_other_only"],
                "McNemar's p": comparison["mcnemar_p"],
            }
        ],
        "Both maps at the same sampled pixels. McNemar's exact test counts pixels as independent; "
        "the interval follows the design.",
    )


def _area_figure(classes: Sequence[Mapping[str, Any]], colors: Sequence[Color]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.5 * len(classes) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    for row, (entry, color) in enumerate(zip(classes, colors, strict=True)):
        share = entry["area_share"]
        rgb = tuple(v / 255 for v in color)
        axes.barh(row, share["value"], color=rgb, height=0.6)
        axes.plot([share["low"], share["high"]], [row, row], color="black", linewidth=2)
        axes.plot(entry["mapped_share"], row, "x", color="black", markersize=8)
    axes.set_yticks(range(len(classes)), [c["name"] for c in classes], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("share of the area")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _notes(record: Mapping[str, object]) -> list[str]:
    notes = []
    if record.get("unlabelled"):
        notes.append(f"{record['unlabelled']} features have no label and are left out.")
    if record.get("outside"):
        notes.append(f"{record['outside']} features lie on no pixel with a class.")
    if "share_of_map" in record:
        notes.append(
            f"The reference covers {record['share_of_map']:.1%} of the map; accuracies and areas "
            "are those of this part."
        )
    notes.append(
        "Estimators: Olofsson et al. (2014), doi 10.1016/j.rse.2014.02.015, and Stehman (2014). "
        "Intervals hold for probability samples; for polygons that were chosen by hand they "
        "describe these polygons only."
    )
    return notes
