"""Subcommands of maps: assess."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from multimae_eo.cli.output import print_json, print_table
from multimae_eo.cli.parser import Subcommand
from multimae_eo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Assess:
    """Estimate a map's accuracy and areas, or draw the sample to be labelled for it.

    Args:
        map: GeoTIFF of class ids
        reference: labelled points or polygons (.gpkg, .geojson, .parquet, .shp), or a raster of
            class ids
        column: column of the reference's classes, names or ids of the map
        layer: layer of the reference, where it has several
        crs: CRS of the reference, in place of the one it declares
        design: how the sample was drawn, or is to be (default: as its columns state; else cluster
            for polygons, srs for points; to draw, stratified)
        cluster: column of clusters, of a cluster sample that --draw did not make
        other: another map, compared on the same pixels
        draw: units to draw; of a cluster design, clusters
        standard_error: or the standard error of overall accuracy to be reached, such as 0.02
        allocation: units per class; neyman is by the expected errors
        expected: user's accuracy that is expected, 0.85 or wheat=0.9,maize=0.7 (default: 0.8)
        least: units of any class
        units: points at the pixels' centres, or the pixels' squares
        block: side of a cluster in pixels
        seed: seed of the draw
        out: folder to write; to draw, the sample (.gpkg, .geojson, .parquet)
        json: print the result as JSON
    """

    examples: ClassVar[tuple[str, ...]] = (
        "assess --map map.tif --draw 300 --expected 0.85 --out sample.gpkg",
        "assess --map map.tif --reference sample.gpkg --out accuracy",
        "assess --map map.tif --reference truth.tif --out accuracy",
    )
    map: str
    reference: str | None = None
    column: str = "label"
    layer: str = ""
    crs: str = ""
    design: Literal["auto", "srs", "stratified", "cluster"] = "auto"
    cluster: str = ""
    other: str | None = None
    draw: int | None = None
    standard_error: float | None = None
    allocation: Literal["proportional", "equal", "neyman"] = "neyman"
    expected: str = ""
    least: int = 10
    units: Literal["points", "pixels"] = "points"
    block: int = 3
    seed: int = 0
    out: str
    json: bool = False

    def run(self) -> None:
        """Print accuracies and areas as Markdown, or the drawn units per class."""
        from multimae_eo.api.accuracy import assess

        if self.reference is None and self.draw is None and self.standard_error is None:
            raise ConfigError("assess: give --reference, or --draw to make the sample for one")
        record = assess(
            self.map,
            reference=self.reference,
            column=self.column,
            layer=self.layer,
            crs=self.crs,
            design=self.design,
            cluster=self.cluster,
            other=self.other,
            draw=self.draw,
            standard_error=self.standard_error,
            allocation=self.allocation,
            expected=self.expected,
            least=self.least,
            units=self.units,
            block=self.block,
            seed=self.seed,
            out=self.out,
        )
        if self.json:
            print_json(record)
        elif "classes" in record:
            _print_accuracy(record)
        else:
            _print_sample(record, self.out)


def _print_accuracy(record: dict[str, Any]) -> None:
    for name, number in (("without a label", "unlabelled"), ("on no pixel of the map", "outside")):
        if record.get(number):
            sys.stderr.write(f"{record[number]} features {name} are left out\n")
    print(f"overall accuracy\t{_with_interval(record['overall'])}")
    print_table(
        [
            {
                "class": c["name"],
                "user's": _with_interval(c["users"]),
                "producer's": _with_interval(c["producers"]),
                "area, ha": _with_interval(c["area_ha"], digits=1),
                "mapped share": c["mapped_share"],
            }
            for c in record["classes"]
        ]
    )
    if comparison := record.get("comparison"):
        difference = _with_interval(comparison["difference"])
        print(f"less that of {comparison['other']}\t{difference}")


def _print_sample(record: dict[str, Any], out: str) -> None:
    users = record["expected"]["users"]
    print_table(
        [
            {"class": name, "units": units, "expected standard error": users[name]}
            for name, units in record["units"].items()
        ]
    )
    print(f"expected standard error of overall accuracy\t{record['expected']['overall']:.4f}")
    print(out)


def _with_interval(estimate: dict[str, Any], *, digits: int = 4) -> str:
    if estimate["value"] is None:
        return "—"
    value, low, high = (f"{estimate[k]:.{digits}f}" for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


MAP_COMMANDS: dict[str, type[Subcommand]] = {"assess": Assess}
