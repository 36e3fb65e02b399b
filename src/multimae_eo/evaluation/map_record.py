"""The result of a map: areas, cross-validated accuracy, and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from multimae_eo.evaluation.assess import plain_estimate
from multimae_eo.evaluation.assess_page import add_accuracy
from multimae_eo.evaluation.class_map_file import ClassMapRaster
from multimae_eo.evaluation.map_plan import MapPlan
from multimae_eo.files import write_file
from multimae_eo.metrics.design_based import estimate_from_groups
from multimae_eo.reports.html import Report

_HECTARE = 10_000.0


def map_record(plan: MapPlan, target: ClassMapRaster) -> dict[str, object]:
    """Files, mapped areas, and accuracies and areas by cross-validation, as JSON."""
    ids = sorted(target.names)
    counts = target.counts
    total = sum(counts.values())
    hectares = total * target.pixel_m2 / _HECTARE
    record: dict[str, object] = {
        "map": str(plan.options.out),
        "report": str(plan.work / "report.html"),
        "area_ha": hectares,
        "commands": [
            *(
                command
                for name in [*(f"fold{f}" for f in range(plan.options.folds)), "final"]
                for command in (plan.prepare_command(name), plan.finetune_command(name))
            ),
            plan.predict_command(),
        ],
        "notes": list(plan.notes),
    }
    if not plan.options.folds:
        record["classes"] = [
            {"id": i, "name": target.name(i), "mapped_share": counts.get(i, 0) / total} for i in ids
        ]
        return record
    shares = np.array([counts.get(i, 0) / total for i in ids])
    groups = plan.counts()
    accuracy = estimate_from_groups(groups, shares)
    record["classes"] = [
        {
            "id": i,
            "name": target.name(i),
            "mapped_share": float(shares[row]),
            "users": plain_estimate(accuracy.users[row]),
            "producers": plain_estimate(accuracy.producers[row]),
            "area_share": plain_estimate(accuracy.area[row]),
            "area_ha": plain_estimate(accuracy.area[row].scaled(hectares), most=hectares),
        }
        for row, i in enumerate(ids)
    ]
    record["cross_validation"] = {
        "folds": plan.options.folds,
        "features": len(groups),
        "pixels": int(groups.sum()),
        "overall": plain_estimate(accuracy.overall),
        "error_matrix": {
            "rows": "map",
            "columns": "reference",
            "counts": accuracy.counts.tolist(),
            "proportions": accuracy.proportions.tolist(),
        },
    }
    return record


def write_map_record(plan: MapPlan, record: Mapping[str, Any]) -> None:
    """Write ``record.json`` and ``report.html`` into the plan's folder."""
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    write_file(plan.work / "record.json", text.encode())
    page = Report(
        f"Map: {plan.options.out.name}", f"from {plan.options.labels.name}, column {plan.column}"
    )
    overall = record.get("cross_validation", {}).get("overall", {})
    page.facts(
        {
            "cross-validated accuracy": overall.get("value"),
            "folds": plan.options.folds or None,
            "area, ha": record["area_ha"],
            "classes": len(record["classes"]),
        }
    )
    page.text(*record["notes"])
    picture = plan.options.out.with_name(plan.options.out.name + ".png")
    if picture.is_file():
        page.heading("Map").picture(picture, "The map, reduced.", "The map")
    if "cross_validation" in record:
        target = ClassMapRaster.open(plan.options.out)
        colors = [c.color for c in target.classes(c["id"] for c in record["classes"])]
        add_accuracy(page, record["classes"], record["cross_validation"]["error_matrix"], colors)
        page.text(
            "Accuracies are of polygons that the model of their fold was not trained on, weighted "
            "by the map's area of each class; intervals are by jackknife over polygons. They hold "
            "for the scene where the polygons can stand for a random sample of it. Polygons that "
            "were chosen by hand seldom do; draw a sample for an estimate that holds: "
            f"multimae-eo assess --map {plan.options.out} --draw 300 --out sample.gpkg."
        )
    else:
        page.table(record["classes"], "Shares of the area.")
    page.heading("Steps").code("\n".join(record["commands"]), "The subcommands that were run")
    page.write(plan.work / "report.html")
