"""map: from a scene and polygons to a map with its accuracy; small, synthetic, on one core."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.shutil
import shapely

import multimae_eo
from tests.support.paths import DATA, ROOT
from tests.support.product_files import s2_numbers, write_safe
from tests.support.scene_files import CRS, write

SIDE = 96
LEFT, TOP = 500000, 5800000
NAMES = {"forest": 900, "water": 300, "wheat": 2600}
TINY = (
    "--model.encoder={width: 16, depth: 1, heads: 2}",
    "--run.accelerator=cpu",
    "--run.precision=32-true",
    "--run.val_every=30",
)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Classes in fields of 8 pixels, as positions in NAMES."""
    coarse = np.random.default_rng(3).integers(0, 3, (SIDE // 8, SIDE // 8))
    return np.kron(coarse, np.ones((8, 8), dtype=int))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, truth: np.ndarray) -> Path:
    """``s2.tif``, ``scene.yaml``, ``fields.gpkg``: a polygon in each field of the western half."""
    folder = tmp_path_factory.mktemp("map")
    rng = np.random.default_rng(0)
    level = np.array(list(NAMES.values()))[truth]
    pixels = np.stack([level * f + rng.normal(0, 60, level.shape) for f in (1, 0.8, 1.2)])
    write(folder / "s2.tif", np.clip(pixels, 1, 9000).astype(np.uint16), ("B4", "B3", "B2"))
    (folder / "scene.yaml").write_text(
        "time: 2021-05-27\nmodalities:\n"
        "  rgb: {path: s2.tif, sensor: sentinel2, bands: [B4, B3, B2], scale: 1.0e-4, level: l2a}\n"
    )
    shapes, crops = [], []
    for row in range(0, SIDE, 8):
        for col in range(0, SIDE // 2, 8):
            left, top = LEFT + 10 * (col + 1), TOP - 10 * (row + 1)
            shapes.append(shapely.box(left, top - 60, left + 60, top))
            crops.append(list(NAMES)[truth[row, col]])
    pyogrio.raw.write(
        folder / "fields.gpkg", shapely.to_wkb(shapes), [np.array(crops, dtype=object)], ["crop"],
        layer="fields", driver="GPKG", geometry_type="Polygon", crs=CRS,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def mapped(scene: Path) -> tuple[Path, dict]:
    out = scene / "map.tif"
    record = multimae_eo.map_scene(
        scene / "scene.yaml", labels=scene / "fields.gpkg", out=out, folds=2, steps=60, chip=16,
        polygons=scene / "map.gpkg", overrides=TINY,
    )  # fmt: skip
    return out, record


@pytest.mark.slow
def test_the_map_has_the_users_classes_and_is_right(mapped, truth):
    out, record = mapped
    with rasterio.open(out) as file:
        ids, tags, colors = file.read(1), file.tags(), file.colormap(1)
        assert file.crs == CRS
        assert file.nodata == 255
    assert [tags[f"class_{i}"] for i in range(3)] == list(NAMES)
    assert len({colors[i] for i in range(3)}) == 3
    assert (ids == truth)[:, SIDE // 2 :].mean() > 0.9, "the half without polygons"
    assert out.with_name("map.confidence.tif").is_file()
    assert out.with_name("map.tif.png").is_file()
    assert [c["name"] for c in record["classes"]] == list(NAMES)


@pytest.mark.slow
def test_cross_validation_estimates_accuracy_and_areas(mapped, truth):
    out, record = mapped
    held = record["cross_validation"]
    assert held["features"] == 72
    assert held["pixels"] == 72 * 36, "every polygon is tested once"
    assert held["overall"]["value"] > 0.85
    with rasterio.open(out) as file:
        ids = file.read(1)
    for index, entry in enumerate(record["classes"]):
        assert entry["mapped_share"] == pytest.approx((ids == index).mean())
        share = entry["area_share"]
        assert share["low"] - 0.03 < (truth == index).mean() < share["high"] + 0.03
    page = Path(record["report"]).read_text()
    assert "cross-validated accuracy" in page
    assert "multimae-eo finetune" in page
    assert json.loads((out.with_name("map.run") / "record.json").read_text())["classes"]


@pytest.mark.slow
def test_gdal_sees_class_names_where_qgis_looks_for_them(mapped, tmp_path):
    """Category names, which QGIS shows beside the colours."""
    rasterio.shutil.copy(mapped[0], tmp_path / "m.vrt", driver="VRT")
    text = (tmp_path / "m.vrt").read_text()
    names = [f"<Category>{n}</Category>" for n in NAMES]
    assert "".join(names) in text.replace("\n", "").replace(" ", "")
    assert "GDALRasterAttributeTable" in text


@pytest.mark.slow
def test_polygons_cover_the_map_with_class_area_and_style(mapped):
    out, record = mapped
    path = out.with_name("map.gpkg")
    meta, _, shapes, values = pyogrio.raw.read(path, layer="map")
    assert meta["crs"] == CRS
    named = dict(zip(meta["fields"], values, strict=True))
    assert len(shapes) == record["polygons"]
    assert set(named["class_name"]) <= set(NAMES)
    assert named["area_ha"].sum() == pytest.approx(SIDE * SIDE * 0.01)
    polygons = shapely.from_wkb(shapes)
    assert shapely.coverage_is_valid(polygons), "neighbours share their borders"
    assert shapely.area(polygons).sum() == pytest.approx(SIDE * SIDE * 100, rel=1e-6)
    with sqlite3.connect(path) as database:
        style = database.execute("SELECT f_table_name, styleQML FROM layer_styles").fetchone()
    assert style[0] == "map"
    assert 'label="wheat"' in style[1]


@pytest.mark.slow
def test_a_second_call_goes_on_where_the_first_was(mapped, scene, monkeypatch):
    """Finished steps are not run again; another call's folder is not taken."""
    out, record = mapped
    from multimae_eo.train import finetune as trained

    monkeypatch.setattr(trained, "fit", lambda *a, **k: pytest.fail("trained again"))
    before = out.stat().st_mtime_ns
    again = multimae_eo.map_scene(
        scene / "scene.yaml", labels=scene / "fields.gpkg", out=out, folds=2, steps=60, chip=16,
        polygons=scene / "map.parquet", overrides=TINY,
    )  # fmt: skip
    assert out.stat().st_mtime_ns == before
    assert again["classes"] == record["classes"]
    assert (scene / "map.parquet").is_file()
    with pytest.raises(multimae_eo.MultiMAEError, match=r"another map \(steps differ"):
        multimae_eo.map_scene(
            scene / "scene.yaml", labels=scene / "fields.gpkg", out=out, folds=2, steps=61,
            chip=16, overrides=TINY,
        )  # fmt: skip


def test_a_raster_and_a_pretrained_model_with_a_linear_head(scene, tmp_path, run, made):
    """Few polygons and a model: its encoder is frozen."""
    meta, _, shapes, values = pyogrio.raw.read(scene / "fields.gpkg")
    keep = slice(0, 24)
    few = tmp_path / "few.geojson"
    pyogrio.raw.write(
        few, shapes[keep], [values[0][keep]], ["crop"], driver="GeoJSON",
        geometry_type="Polygon", crs=meta["crs"],
    )  # fmt: skip
    code, out, err = run(
        "map", "--scene", str(scene / "s2.tif"), "--labels", str(few), "--column", "crop",
        "--model", made / "run/model", "--inputs", "rgb", "--level", "l2a", "--folds", "0",
        "--steps", "4", "--out", str(tmp_path / "m.tif"), "--run.accelerator", "cpu",
        "--run.precision", "32-true",
    )  # fmt: skip
    assert code == 0, err
    assert "a linear head is trained on frozen features" in err
    assert "--freeze=encoder" in err
    assert out.splitlines()[-2:] == [
        str(tmp_path / "m.tif"), str(tmp_path / "m.run/report.html")
    ]  # fmt: skip
    with rasterio.open(tmp_path / "m.tif") as file:
        assert set(np.unique(file.read(1))) <= {0, 1, 2}


def test_bad_input_is_one_line(scene, tmp_path, refused):
    labels, image = str(scene / "fields.gpkg"), str(scene / "scene.yaml")

    def got(*words: str, out: str = "m.tif") -> str:
        return refused("map", *words, "--out", str(tmp_path / out))

    assert "let its name end in .tif" in got("--scene", image, "--labels", labels, out="m.png")
    assert "no such file" in got("--scene", "no.yaml", "--labels", labels)
    assert "no such file" in got("--scene", image, "--labels", "no.gpkg")
    assert "labels are a GeoPackage" in got("--scene", image, "--labels", image)
    assert "did you mean 'crop'" in got("--scene", image, "--labels", labels, "--column", "crap")
    assert "folds: two or more" in got("--scene", image, "--labels", labels, "--folds", "1")
    assert "no vector format" in got(
        "--scene", image, "--labels", labels, "--polygons", str(tmp_path / "p.svg")
    )
    assert "stand in the scene file" in got("--scene", image, "--labels", labels, "--level", "l2a")
    one = tmp_path / "one.gpkg"
    meta, _, shapes, _ = pyogrio.raw.read(labels)
    crops = np.array(["wheat"] * len(shapes), dtype=object)
    pyogrio.raw.write(one, shapes, [crops, crops], ["crop", "kind"], driver="GPKG",
                      geometry_type="Polygon", crs=meta["crs"])  # fmt: skip
    assert "which column holds the classes? name it with --column: crop, kind" in got(
        "--scene", image, "--labels", str(one)
    )
    assert "labels are all of one class" in got(
        "--scene", image, "--labels", str(one), "--column", "crop", "--chip", "16",
        "--run.accelerator", "cpu",
    )  # fmt: skip


KILLED = """
import os, signal, sys
from multimae_eo.evaluation import map_plan
mark = map_plan.MapPlan.mark
def dying(plan, name):
    mark(plan, name)
    if name == {step!r}:
        os.kill(os.getpid(), signal.SIGKILL)
map_plan.MapPlan.mark = dying
from multimae_eo.scenes import engine
finish = engine._BlockRows.finish
def block(rows):
    finish(rows)
    if {step!r} == "block":
        os.kill(os.getpid(), signal.SIGKILL)
engine._BlockRows.finish = block
from multimae_eo.cli import main
main(sys.argv[1:])
"""
"""Killed when a step is done, or a block of the map."""


@pytest.mark.slow
def test_a_killed_map_goes_on_where_it_was(scene, tmp_path, run):
    """Killed after a fold, after the final training and within the map: the same map, byte by
    byte, as without an interruption."""
    words = ["map", "--scene", str(scene / "scene.yaml"), "--labels", str(scene / "fields.gpkg"),
             "--folds", "2", "--steps", "4", "--chip", "16", "--precision", "32-true",
             "--device", "cpu", *TINY[:1], "--run.val_every=30", "--out"]  # fmt: skip
    out = tmp_path / "out/m.tif"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for step in ("fold0", "final", "block"):
        ended = subprocess.run(
            [sys.executable, "-c", KILLED.format(step=step), *words, str(out)],
            env=environment, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
        assert not out.exists()
    assert "finetune" not in ended.stderr, "what was trained is not trained again"
    code, _, err = run(*words, str(out))
    assert code == 0, err
    assert "finetune" not in err
    whole = tmp_path / "whole/m.tif"
    assert run(*words, str(whole))[0] == 0
    for name in ("m.tif", "m.confidence.tif"):
        assert (out.parent / name).read_bytes() == (whole.parent / name).read_bytes(), name
    assert [p.name for p in out.parent.iterdir() if p.name.startswith(".")] == []


ABERYSTWYTH = DATA / "scene_aberystwyth"


def draw_western_polygons(out: Path, count: int) -> None:
    """Parts of one class, ``count`` of each, in the western half of the scene's class map."""
    from rasterio.features import shapes
    from scipy import ndimage

    with rasterio.open(ABERYSTWYTH / "sen2_20210527_aber_cls.tif") as file:
        ids = file.read(1)
        transform = file.transform
    ids = ids[:, : ids.shape[1] // 2]
    rng = np.random.default_rng(0)
    polygons, covers = [], []
    for number, name in enumerate(("forest", "grass", "urban", "water"), 1):
        inner = ndimage.uniform_filter((ids == number).astype(float), 5) > 0.999
        rows, cols = np.nonzero(inner)
        for at in rng.choice(len(rows), size=count, replace=False).tolist():
            window = np.zeros(ids.shape, dtype=bool)
            window[max(rows[at] - 3, 0) : rows[at] + 4, max(cols[at] - 3, 0) : cols[at] + 4] = True
            part = (window & (ids == number)).astype(np.uint8)
            found = shapes(part, mask=part > 0, transform=transform)
            parts = [shapely.geometry.shape(record) for record, _ in found]
            polygons.append(max(parts, key=lambda p: p.area))
            covers.append(name)
    pyogrio.raw.write(
        out, shapely.to_wkb(polygons), [np.array(covers, dtype=object)], ["cover"],
        layer="fields", driver="GPKG", geometry_type="Polygon", crs="EPSG:27700",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not ABERYSTWYTH.is_dir(), reason="its data need rasterio")
def test_polygons_of_the_western_half_map_the_eastern(tmp_path):
    """Four of five pixels of the eastern half are right, and intervals hold the true areas."""
    draw_western_polygons(tmp_path / "fields.gpkg", 30)
    text = (ROOT / "examples/scene_aberystwyth.yaml").read_text()
    (tmp_path / "scene.yaml").write_text(text)
    out = tmp_path / "map.tif"
    record = multimae_eo.map_scene(
        tmp_path / "scene.yaml", labels=tmp_path / "fields.gpkg", out=out, inputs=["optical"],
        folds=0, steps=200, device="cpu", precision="32-true",
    )  # fmt: skip
    assert [c["name"] for c in record["classes"]] == ["forest", "grass", "urban", "water"]
    with rasterio.open(out) as file:
        ids, profile, tags = file.read(1), file.profile, file.tags()
    half = ids.shape[1] // 2
    east = {k: v for k, v in profile.items() if k in ("crs", "transform", "nodata")}
    settings = {**east, "driver": "GTiff", "dtype": "uint8", "count": 1}
    shape = {"height": ids.shape[0], "width": ids.shape[1]}
    from rasterio.vrt import WarpedVRT

    with rasterio.open(ABERYSTWYTH / "sen2_20210527_aber_cls.tif") as truth:
        grid_of = {"crs": profile["crs"], "transform": profile["transform"], **shape}
        with WarpedVRT(truth, **grid_of) as view:
            observed = view.read(1).astype(int)
    observed = np.where(observed > 0, observed - 1, 255)
    for name, values in (("east.tif", ids), ("truth.tif", observed)):
        part = np.where(np.arange(ids.shape[1]) < half, 255, values).astype(np.uint8)
        with rasterio.open(tmp_path / name, "w", **settings, **shape) as file:
            file.write(part, 1)
            file.update_tags(**{k: v for k, v in tags.items() if k.startswith("class_")})
    mapped, reference = tmp_path / "east.tif", tmp_path / "truth.tif"
    census = multimae_eo.assess(mapped, reference=reference, out=tmp_path / "census")
    assert census["overall"]["value"] >= 0.80
    areas = {c["id"]: c["area_ha"]["value"] for c in census["classes"]}
    held = []
    for seed in range(5):
        sampled = multimae_eo.assess(
            mapped, draw=500, reference=reference, seed=seed, out=tmp_path / f"sample{seed}"
        )
        for got in sampled["classes"]:
            area = areas[got["id"]]
            held.append(got["area_ha"]["low"] <= area <= got["area_ha"]["high"])
    assert len(held) >= 15
    assert np.mean(held) >= 0.85, "of 95 %"


def test_a_product_folder_is_a_scene(tmp_path):
    """A SAFE folder as it comes, without a scene file."""
    folder = write_safe(tmp_path, s2_numbers(48))
    with rasterio.open(next(folder.rglob("*B04_10m.jp2"))) as file:
        left, top = file.transform.c, file.transform.f
        pixel, crs = file.transform.a, file.crs.to_string()
    shapes = [
        shapely.box(
            left + c * pixel, top - (r + 6) * pixel, left + (c + 6) * pixel, top - r * pixel
        )
        for r in (2, 18, 34)
        for c in (2, 18, 34)
    ]
    kinds = np.array(["a", "b", "a"] * 3, dtype=object)
    pyogrio.raw.write(
        tmp_path / "f.gpkg", shapely.to_wkb(shapes), [kinds], ["kind"], driver="GPKG",
        geometry_type="Polygon", crs=crs,
    )  # fmt: skip
    record = multimae_eo.map_scene(
        folder, labels=tmp_path / "f.gpkg", out=tmp_path / "m.tif", folds=0, steps=2, chip=12,
        overrides=("--run.accelerator=cpu", "--run.precision=32-true", *TINY[:1]),
    )  # fmt: skip
    assert [c["name"] for c in record["classes"]] == ["a", "b"]
