"""assess: samples of a map, and accuracies and areas by labelled samples and rasters."""

from __future__ import annotations

import importlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely

import multimae_eo
from multimae_eo.errors import ClassMapError, ConfigError, DataError
from multimae_eo.evaluation.class_map_file import ClassMapRaster
from multimae_eo.evaluation.sample_design import SamplePlan, draw_sample
from multimae_eo.metrics.design_based import ReferenceSample, estimate_accuracy
from tests.support.scene_files import CRS, grid

NAMES = {1: "forest", 2: "grass", 4: "water"}


def write_map(path: Path, ids: np.ndarray, *, names: bool = True, **profile: object) -> Path:
    settings = {"crs": CRS, "transform": grid(1, 1).transform, "nodata": 0, **profile}
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint8", count=1, height=ids.shape[0],
        width=ids.shape[1], **settings,
    ) as file:  # fmt: skip
        file.write(ids.astype(np.uint8), 1)
        if names:
            file.update_tags(**{f"class_{i}": n for i, n in NAMES.items()})
    return path


def landscape(seed: int = 0, height: int = 60, width: int = 80) -> np.ndarray:
    """Classes in patches of 4 pixels, with a hole of nodata."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice([1, 2, 4], p=[0.6, 0.3, 0.1], size=(height // 4, width // 4))
    truth = np.kron(coarse, np.ones((4, 4), dtype=int))
    truth[:4, :4] = 0
    return truth


def with_errors(truth: np.ndarray, share: float = 0.15, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wrong = (rng.random(truth.shape) < share) & (truth > 0)
    return np.where(wrong, rng.choice([1, 2, 4], size=truth.shape), truth)


@pytest.fixture
def maps(tmp_path: Path) -> tuple[Path, Path]:
    """A map and the truth."""
    truth = landscape()
    return (
        write_map(tmp_path / "map.tif", with_errors(truth)),
        write_map(tmp_path / "truth.tif", truth),
    )


def labelled(sample: Path, truth: Path, out: Path, *, empty: int = 0) -> Path:
    """The sample with its label column filled in from the truth."""
    meta, _, shapes, values = pyogrio.raw.read(sample, layer="sample")
    points = shapely.centroid(shapely.from_wkb(shapes))
    at = zip(shapely.get_x(points), shapely.get_y(points), strict=True)
    with rasterio.open(truth) as file:
        ids = [int(v[0]) for v in file.sample(at)]
    fields = list(meta["fields"])
    labels = np.array([NAMES[i] for i in ids], dtype=object)
    labels[:empty] = None
    values[fields.index("label")] = labels
    pyogrio.raw.write(
        out, shapes, values, fields, layer="sample", driver="GPKG",
        geometry_type=meta["geometry_type"], crs=meta["crs"],
    )  # fmt: skip
    return out


def test_a_drawn_sample_is_labelled_and_assessed(maps, tmp_path):
    """Draw, label, assess, as a user does; the truth lies in the intervals."""
    predicted, truth = maps
    drawn = multimae_eo.assess(
        predicted, draw=400, expected="0.85", seed=1, out=tmp_path / "s.gpkg"
    )
    assert sum(drawn["units"].values()) == 400
    assert drawn["expected"]["overall"] == pytest.approx(np.sqrt(0.85 * 0.15 / 400), rel=0.05)
    reference = labelled(tmp_path / "s.gpkg", truth, tmp_path / "l.gpkg", empty=3)
    record = multimae_eo.assess(predicted, reference=reference, out=tmp_path / "accuracy")
    assert (record["design"], record["units"], record["unlabelled"]) == ("stratified", 397, 3)
    expected = multimae_eo.assess(predicted, reference=truth, out=tmp_path / "census")
    assert record["overall"]["low"] < expected["overall"]["value"] < record["overall"]["high"]
    for got, true in zip(record["classes"], expected["classes"], strict=True):
        assert got["name"] == true["name"] == NAMES[got["id"]]
        assert got["area_ha"]["low"] < true["area_ha"]["value"] < got["area_ha"]["high"]
    saved = json.loads((tmp_path / "accuracy/accuracy.json").read_text())
    assert saved == json.loads(json.dumps(record))
    page = (tmp_path / "accuracy/report.html").read_text()
    assert "stratified random sample" in page
    assert "forest" in page


def test_a_reference_raster_is_a_census(maps, tmp_path):
    predicted, truth = maps
    record = multimae_eo.assess(predicted, reference=truth, out=tmp_path / "a")
    with rasterio.open(predicted) as one, rasterio.open(truth) as two:
        mapped, observed = one.read(1), two.read(1)
    seen = observed > 0
    assert record["overall"]["value"] == pytest.approx((mapped == observed)[seen].mean())
    assert record["overall"]["standard_error"] == 0
    water = record["classes"][2]
    assert water["area_ha"]["value"] == pytest.approx((observed == 4).sum() * 100 / 1e4)
    right = ((mapped == 4) & (observed == 4)).sum()
    assert water["users"]["value"] == pytest.approx(right / (mapped == 4).sum())
    assert water["producers"]["value"] == pytest.approx(right / (observed == 4).sum())


def test_a_reference_raster_of_a_part_in_another_crs(maps, tmp_path):
    """It is read on the map's grid; what it does not cover is left out."""
    predicted, truth = maps
    with rasterio.open(truth) as file:
        part = file.read(1)[:, :40]
    write_map(tmp_path / "west.tif", part)
    whole = write_map(tmp_path / "no_nodata.tif", part, nodata=None)
    record = multimae_eo.assess(predicted, reference=tmp_path / "west.tif", out=tmp_path / "a")
    assert record["share_of_map"] == pytest.approx(0.5, abs=0.01)
    other = multimae_eo.assess(predicted, reference=whole, out=tmp_path / "b")
    assert 0 in {c["id"] for c in other["classes"]} or other["share_of_map"] <= 0.51


def test_a_sample_labelled_from_a_raster_in_one_step(maps, tmp_path):
    predicted, truth = maps
    out = tmp_path / "a"
    record = multimae_eo.assess(predicted, draw=300, reference=truth, out=out, seed=3)
    assert record["units"] == 300
    again = multimae_eo.assess(predicted, reference=out / "sample.gpkg", out=tmp_path / "b")
    assert again["overall"] == record["overall"]
    assert again["classes"] == record["classes"]


@pytest.mark.parametrize("design", ["srs", "stratified", "cluster"])
def test_the_design_travels_in_the_samples_columns(maps, tmp_path, design):
    predicted, truth = maps
    sample = tmp_path / "s.gpkg"
    multimae_eo.assess(predicted, draw=60, design=design, units="pixels", out=sample)
    reference = labelled(sample, truth, tmp_path / "l.gpkg")
    record = multimae_eo.assess(predicted, reference=reference, out=tmp_path / "a")
    assert record["design"] == design
    assert record["overall"]["standard_error"] > 0


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".parquet"])
def test_a_sample_opens_in_qgis(maps, tmp_path, suffix):
    """Layer, CRS, points on pixels' centres, ids, class names, an empty column to fill in."""
    path = tmp_path / f"sample{suffix}"
    multimae_eo.assess(maps[0], draw=40, out=path)
    if suffix == ".parquet":
        geopandas: Any = importlib.import_module("geopandas")
        frame = geopandas.read_parquet(path)
        assert frame.crs == CRS
        assert frame["label"].isna().all()
        return
    info = pyogrio.read_info(path, layer="sample")
    assert info["crs"] == CRS
    assert info["geometry_type"] == "Point"
    fields = ["id", "map_class", "map_name", "stratum", "stratum_size", "label"]
    assert list(info["fields"]) == fields
    _, _, shapes, values = pyogrio.raw.read(path, layer="sample")
    named = dict(zip(fields, values, strict=True))
    assert named["id"].tolist() == list(range(1, 41))
    assert {NAMES[i] for i in named["map_class"].tolist()} == set(named["map_name"])
    assert all(v is None for v in named["label"])
    x, y = (f(shapely.from_wkb(shapes)) for f in (shapely.get_x, shapely.get_y))
    with rasterio.open(maps[0]) as file:
        ids = [int(v[0]) for v in file.sample(zip(x, y, strict=True))]
        cols, rows = ~file.transform @ (x, y)
    assert ids == named["map_class"].tolist()
    np.testing.assert_allclose(np.stack([cols, rows]) % 1, 0.5, atol=1e-6)


def test_a_geopackage_has_the_style_that_qgis_applies(maps, tmp_path):
    multimae_eo.assess(maps[0], draw=40, out=tmp_path / "s.gpkg")
    with sqlite3.connect(tmp_path / "s.gpkg") as database:
        row = database.execute(
            "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles"
        ).fetchone()
        column = database.execute(
            "SELECT column_name FROM gpkg_geometry_columns WHERE table_name = 'sample'"
        ).fetchone()
    assert row[:3] == ("sample", column[0], 1)
    assert 'attr="map_class"' in row[3]
    assert 'label="water"' in row[3]


def test_two_maps_on_one_sample(maps, tmp_path):
    """The paired difference is that of the separate accuracies, with a smaller error."""
    predicted, truth = maps
    better = write_map(tmp_path / "better.tif", with_errors(landscape(), share=0.05))
    record = multimae_eo.assess(better, draw=500, reference=truth, out=tmp_path / "a")
    sample = tmp_path / "a/sample.gpkg"
    record = multimae_eo.assess(better, reference=sample, other=predicted, out=tmp_path / "b")
    comparison = record["comparison"]
    expected = record["overall"]["value"] - comparison["other_overall"]["value"]
    assert comparison["difference"]["value"] == pytest.approx(expected)
    assert comparison["difference"]["low"] > 0
    assert comparison["mcnemar_p"] < 0.01
    assert comparison["right_in_map_only"] > comparison["right_in_other_only"]


def test_polygons_are_clusters_of_pixels(maps, tmp_path):
    predicted, truth = maps
    rng = np.random.default_rng(0)
    corners = rng.choice(14 * 19, size=40, replace=False)
    origin = grid(1, 1).transform
    shapes, labels = [], []
    with rasterio.open(truth) as file:
        ids = file.read(1)
    for corner in corners.tolist():
        row, col = (int(v) * 4 for v in divmod(corner, 19))
        if not ids[row, col]:
            continue
        left, top = origin @ (col, row)
        shapes.append(shapely.box(left, top - 40, left + 40, top))
        labels.append(str(ids[row, col]))
    path = tmp_path / "fields.geojson"
    pyogrio.raw.write(
        path, shapely.to_wkb(shapes), [np.array(labels, dtype=object)], ["crop"],
        driver="GeoJSON", geometry_type="Polygon", crs=CRS,
    )  # fmt: skip
    record = multimae_eo.assess(predicted, reference=path, column="crop", out=tmp_path / "a")
    assert record["design"] == "cluster"
    assert record["units"] == 16 * len(shapes)
    with pytest.raises(DataError, match="not independent"):
        multimae_eo.assess(
            predicted, reference=path, column="crop", design="srs", out=tmp_path / "b"
        )


def test_the_standard_error_decides_the_size(maps, tmp_path):
    drawn = multimae_eo.assess(
        maps[0], standard_error=0.02, expected="water=0.6", out=tmp_path / "s.gpkg"
    )
    assert drawn["expected"]["overall"] == pytest.approx(0.02, rel=0.05)
    equal = multimae_eo.assess(maps[0], draw=90, allocation="equal", out=tmp_path / "e.gpkg")
    assert set(equal["units"].values()) == {30}


@pytest.mark.parametrize("design", ["srs", "stratified", "cluster"])
def test_a_draw_is_repeatable_and_every_pixel_has_its_chance(tmp_path, design):
    path = write_map(tmp_path / "m.tif", landscape(height=8, width=16))
    target = ClassMapRaster.open(path)
    expected = dict.fromkeys(target.counts, 0.8)
    hits = np.zeros((8, 16))
    for seed in range(200):
        plan = SamplePlan(design=design, total=8, expected=expected, least=2, block=2, seed=seed)
        drawn = draw_sample(target, plan)
        assert len(set(zip(drawn.rows.tolist(), drawn.cols.tolist(), strict=True))) == len(drawn)
        hits[drawn.rows, drawn.cols] += 1
    again = draw_sample(target, plan)
    np.testing.assert_array_equal(again.rows, drawn.rows)
    assert (hits[:4, :4] == 0).all(), "nodata is never drawn"
    assert (hits[:4, 4:] > 0).all()
    assert (hits[4:] > 0).all()


def population(seed: int) -> tuple[np.ndarray, np.ndarray]:
    truth = landscape(seed, height=120, width=120)
    truth[truth == 0] = 1
    return truth, with_errors(truth, seed=seed + 1)


def coverage(design: str, draws: int, seed: int) -> dict[str, float]:
    """Share of draws whose 95 % intervals hold the true overall accuracy and areas.

    Intervals are normal approximations: a class needs some 40 sampled units (of 300 in a simple
    random sample water has 24, and its intervals hold the truth in 92 of 100).
    """
    truth, predicted = population(7)
    rng = np.random.default_rng(seed)
    right = (truth == predicted).mean()
    areas = {c: (truth == c).mean() for c in (1, 2, 4)}
    held: dict[Any, int] = {"overall": 0, **dict.fromkeys(areas, 0)}
    flat_truth, flat_map = truth.ravel(), predicted.ravel()
    members = {c: np.flatnonzero(flat_map == c) for c in (1, 2, 4)}
    blocks = np.arange(truth.size).reshape(30, 4, 30, 4).transpose(0, 2, 1, 3).reshape(900, 16)
    for _ in range(draws):
        cluster = None
        if design == "srs":
            units = rng.choice(truth.size, 600, replace=False)
            stratum, sizes = np.zeros(600, dtype=int), {0: truth.size}
        elif design == "stratified":
            units = np.concatenate([rng.choice(m, 100, replace=False) for m in members.values()])
            stratum, sizes = flat_map[units], {c: len(m) for c, m in members.items()}
        else:
            chosen = rng.choice(900, 80, replace=False)
            units = blocks[chosen].ravel()
            cluster = np.repeat(chosen, 16)
            stratum, sizes = np.zeros(len(units), dtype=int), {0: 900}
        accuracy = estimate_accuracy(
            ReferenceSample(
                map_class=flat_map[units],
                reference_class=flat_truth[units],
                stratum=stratum,
                stratum_sizes=sizes,
                cluster=cluster,
            )
        )
        low, high = accuracy.overall.interval
        held["overall"] += low <= right <= high
        for c, area in areas.items():
            low, high = accuracy.area[c].interval
            held[c] += low <= area <= high
    return {str(k): v / draws for k, v in held.items()}


@pytest.mark.slow
@pytest.mark.parametrize("design", ["srs", "stratified", "cluster"])
def test_intervals_hold_the_truth_in_95_of_100_draws(design):
    held = coverage(design, 1000, seed=11)
    assert all(0.93 <= share <= 0.97 for share in held.values()), held


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_bad_input_is_one_line(maps, tmp_path, refused):
    predicted = str(maps[0])
    out = ["--out", str(tmp_path / "a")]
    points = tmp_path / "p.gpkg"
    settings = {"layer": "p", "driver": "GPKG", "geometry_type": "Point"}
    wkb = shapely.to_wkb([shapely.Point(500205, 5799795)])

    def reference(column: str, value: object, crs: str | None = CRS, shapes=wkb) -> str:
        points.unlink(missing_ok=True)
        pyogrio.raw.write(
            points, shapes, [np.array([value], dtype=object)], [column], crs=crs, **settings
        )
        return refused("assess", "--map", predicted, "--reference", str(points), *out)

    assert "give --reference, or --draw" in refused("assess", "--map", predicted, *out)
    assert "no column 'label'" in reference("klass", "grass")
    assert "did you mean 'grass'?" in reference("label", "gras")
    assert "is empty" in reference("label", None)
    assert "declares no CRS" in reference("label", "grass", crs=None)
    assert "no feature lies in the map" in reference("label", "grass", crs="EPSG:32631")
    swapped = shapely.to_wkb([shapely.Point(5799795, 500205)])
    assert "swapped" in reference("label", "grass", shapes=swapped)
    none = shapely.to_wkb([shapely.Point()])
    assert "none of its 1 features has a geometry" in reference("label", "grass", shapes=none)
    no_file = refused("assess", "--map", predicted, "--reference", "no.gpkg", *out)
    assert "no such file" in no_file
    damaged = tmp_path / "d.gpkg"
    damaged.write_bytes(b"SQLite format 3\0nothing")
    got = refused("assess", "--map", predicted, "--reference", str(damaged), *out)
    assert "cannot be read" in got
    assert "did you mean 'water'" in refused(
        "assess", "--map", predicted, "--draw", "50", "--expected", "watr=0.9",
        "--out", str(tmp_path / "s.gpkg"),
    )  # fmt: skip
    assert "no vector format" in refused(
        "assess", "--map", predicted, "--draw", "50", "--out", str(tmp_path / "s.csv")
    )
    assert "too small" in refused(
        "assess", "--map", predicted, "--draw", "3", "--out", str(tmp_path / "s.gpkg")
    )


def test_maps_of_values_are_refused(tmp_path):
    path = tmp_path / "v.tif"
    with rasterio.open(
        path, "w", driver="GTiff", dtype="float32", count=1, height=4, width=4, crs=CRS,
        transform=grid(1, 1).transform,
    ) as file:  # fmt: skip
        file.write(np.ones((1, 4, 4), np.float32))
    with pytest.raises(DataError, match="class maps"):
        multimae_eo.assess(path, draw=10, out=tmp_path / "s.gpkg")


def test_errors_in_python(maps, tmp_path):
    with pytest.raises(ConfigError, match="reference"):
        multimae_eo.assess(maps[0], out=tmp_path / "a")
    multimae_eo.assess(maps[0], draw=40, out=tmp_path / "s.gpkg")
    with pytest.raises(DataError, match="label the sample first"):
        multimae_eo.assess(maps[0], reference=tmp_path / "s.gpkg", out=tmp_path / "a")
    with pytest.raises(ClassMapError, match="no class of the map"):
        _assess_with_foreign_class(maps[0], tmp_path)


def _assess_with_foreign_class(target: Path, folder: Path) -> None:
    shapes = shapely.to_wkb([shapely.Point(500205, 5799795)])
    pyogrio.raw.write(
        folder / "f.gpkg", shapes, [np.array(["rye"], dtype=object)], ["label"],
        driver="GPKG", geometry_type="Point", crs=CRS,
    )  # fmt: skip
    multimae_eo.assess(target, reference=folder / "f.gpkg", out=folder / "a")
