"""Subcommands of maps: map, assess."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from multimae_eo.cli.output import names_in, print_json, print_table
from multimae_eo.cli.parser import Subcommand, argument
from multimae_eo.cli.training_commands import FINETUNING
from multimae_eo.errors import ConfigError
from multimae_eo.runtime import Precision


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


@dataclass(frozen=True, kw_only=True)
class Map:
    """Map a scene from labelled polygons, with its accuracy; run again to resume.

    Args:
        scene: scene file (YAML), a raster, or a folder of a product (SAFE, Landsat, HLS)
        labels: polygons, lines or points with a class (.gpkg, .geojson, .parquet, .shp)
        column: column of the classes, names or ids (default: the only column)
        layer: layer of the labels, where the file has several
        model: pre-trained model folder (default: none: a small network from random initialisation,
            which learns from the polygons alone)
        inputs: modalities, m1,m2 (default: all)
        method: finetune, or linear, a linear head on frozen features; auto is linear where a model
            is given and fewer than 30 polygons are
        head: linear, convnext, upernet or dpt
        chip: side of a chip in pixels (default: the model's, else 32)
        block: side of a cross-validation block in chips (default: by the number of polygons)
        folds: folds of the cross-validation, 0 for none
        steps: optimiser steps of a training run, about
        polygons: also write the map as polygons (.gpkg, .geojson, .parquet)
        least_pixels: patches of fewer pixels are merged into a neighbour in the polygons
        level: processing level of a raster: l1c, l2a
        scale: physical units per digital number of a raster
        seed: seed of the training runs
        device: auto, cpu, cuda, cuda:N or mps
        precision: precision of training and inference (default: the recipe's)
        out: GeoTIFF to write, MAP.tif; steps and report are in MAP.run
    """

    examples: ClassVar[tuple[str, ...]] = (
        "map --scene scene.yaml --labels fields.gpkg --column crop --out map.tif",
        "map --scene S2.tif --labels fields.gpkg --out map.tif --polygons map.gpkg",
    )
    scene: str
    labels: str
    column: str = ""
    layer: str = ""
    model: str | None = None
    inputs: str | None = None
    method: Literal["auto", "finetune", "linear"] = "auto"
    head: str = "linear"
    chip: int | None = None
    block: int | None = None
    folds: int = 3
    steps: int = 300
    polygons: str | None = None
    least_pixels: int = 4
    level: str = ""
    scale: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: Precision | None = None
    out: str
    overrides: tuple[str, ...] = argument(recipe=FINETUNING)

    def run(self) -> None:
        """Print areas as Markdown, and the paths of the map and its report."""
        from multimae_eo.api.map_making import map_scene

        record = map_scene(
            self.scene,
            labels=self.labels,
            column=self.column,
            layer=self.layer,
            model=None if self.model == "none" else self.model,
            inputs=names_in(self.inputs),
            method=self.method,
            head=self.head,
            chip=self.chip,
            block=self.block,
            folds=self.folds,
            steps=self.steps,
            polygons=self.polygons,
            least_pixels=self.least_pixels,
            level=self.level,
            scale=self.scale,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            out=self.out,
            overrides=self.overrides,
            progress=_to_stderr,
        )
        if "cross_validation" in record:
            overall = record["cross_validation"]["overall"]
            print(f"cross-validated accuracy\t{_with_interval(overall)}")
            _print_classes(record)
        print(record["map"])
        print(record["report"])


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _print_accuracy(record: dict[str, Any]) -> None:
    for name, number in (("without a label", "unlabelled"), ("on no pixel of the map", "outside")):
        if record.get(number):
            sys.stderr.write(f"{record[number]} features {name} are left out\n")
    print(f"overall accuracy\t{_with_interval(record['overall'])}")
    _print_classes(record)
    if comparison := record.get("comparison"):
        difference = _with_interval(comparison["difference"])
        print(f"less that of {comparison['other']}\t{difference}")


def _print_classes(record: dict[str, Any]) -> None:
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


MAP_COMMANDS: dict[str, type[Subcommand]] = {"map": Map, "assess": Assess}
