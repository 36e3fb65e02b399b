"""The tour, small: what it leaves, that it learnt something, and that a seed decides it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multimae_eo import MultiMAE, open_source, quickstart
from multimae_eo.catalog import class_map
from multimae_eo.errors import OutputError
from multimae_eo.evaluation import probes
from multimae_eo.inference import reconstruct_chips
from multimae_eo.quickstart import GIVEN
from multimae_eo.scenes import reconstruct


def test_it_leaves_what_it_promises(tour):
    for name in (
        "quickstart.json",
        "report.html",
        "world/dataset.yaml",
        "world/scene.yaml",
        "store/index.parquet",
        "run/recipe.yaml",
        "run/metrics.csv",
        "run/report.html",
        "run/checkpoints/last.ckpt",
        "model/config.json",
        "model/modalities.json",
        "model/model.safetensors",
        "model/README.md",
        "reconstruction/reconstruction.png",
        "reconstruction/index.html",
        "reconstruction/scores.json",
        "probe/results.csv",
        "probe/results.md",
        "scene/landcover.tif",
        "scene/landcover.tif.png",
        "scene/elevation.tif",
    ):
        assert (tour.out / name).stat().st_size > 0, name
    left = [p for p in tour.out.rglob("*") if p.name.endswith((".tmp", ".part"))]
    assert not left
    assert any((tour.out / "run/tensorboard").glob("events*"))


def test_the_store_holds_the_world(tour):
    source, store = open_source(tour.out / "world/dataset.yaml"), open_source(tour.out / "store")
    assert len(source) == len(store) == tour.chips
    assert list(source.keys) == list(store.keys)
    a, b = source.read(5), store.read(5)
    assert {n: p.tolist() for n, p in a.pixels.items()} == {
        n: p.tolist() for n, p in b.pixels.items()
    }
    assert set(store.splits) == {"train", "val", "test"}


def test_maps_are_cogs_on_the_scenes_grid_with_crs_classes_and_nodata(tour):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(next((tour.out / "world/scene").glob("*s2*.tif"))) as scene:
        grid = (scene.crs, scene.transform, scene.shape)
    with rasterio.open(tour.out / "scene/landcover.tif") as cover:
        assert (cover.crs, cover.transform, cover.shape) == grid
        assert cover.crs.is_projected
        assert cover.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG"
        ids = {c.id for c in class_map("esa_worldcover").classes}
        assert set(np.unique(cover.read(1))) <= ids | {int(cover.nodata)}
        assert int(cover.nodata) not in ids
        assert cover.colormap(1)[10] == (0, 100, 0, 255)
        said = cover.read(1)
    with rasterio.open(next((tour.out / "world/scene").glob("*landcover*.tif"))) as truth:
        true = truth.read(1)
    most = max((true == i).mean() for i in ids)
    assert (said == true).mean() > most, "better than the commonest class everywhere"
    with rasterio.open(tour.out / "scene/elevation.tif") as heights:
        assert heights.dtypes == ("float32",)
        assert np.isnan(heights.nodata)
        assert np.isfinite(heights.read(1)).all(), "the scene has no hole"


def test_pictures_are_pictures(tour):
    from PIL import Image

    for path in (*tour.out.glob("scene/*.png"), *tour.out.glob("reconstruction/*.png")):
        with Image.open(path) as picture:
            assert min(picture.size) > 50
            assert len(picture.convert("L").getcolors(256 * 256)) > 3, f"{path} is not blank"


def test_what_was_hidden_is_predicted_better_than_its_mean(tour):
    scores = json.loads((tour.out / "reconstruction/scores.json").read_text())["scores"]["masked"]
    assert set(scores) == {"radar", "elevation", "landcover"}
    for name in ("radar", "elevation"):
        assert scores[name]["r2"] > 0.05, "the mean scores 0"
        assert scores[name]["rmse"] < scores[name]["baseline"]["rmse"]
    cover = scores["landcover"]
    assert cover["accuracy"] > cover["baseline"]["accuracy"]
    assert not set(GIVEN) & set(scores)


def test_validation_beats_the_constant_prediction(tour):
    with (tour.out / "run/metrics.csv").open(newline="") as file:
        last = [r for r in csv.DictReader(file) if r["val/loss"]][-1]
    assert float(last["val/loss"]) < float(last["val_baseline/loss"])
    assert float(last["epoch"]) == tour.epochs - 1, "the last epoch is validated"


def test_the_report_stands_alone_and_tells_the_numbers(tour):
    page = tour.report.read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:|#)', page), "nothing is loaded from elsewhere"
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"data:[^\"]+", "", page))
    scores = json.loads((tour.out / "reconstruction/scores.json").read_text())["scores"]["masked"]
    for name in scores:
        assert name in page
    assert "95 % bootstrap" in page
    assert page.count("data:image/png") >= 3


def test_the_model_folder_is_ready_for_use(tour):
    model = MultiMAE.from_pretrained(tour.out / "model")
    source = open_source(tour.out / "store")
    features = model.encode(source.batch(source.keys[:2]), inputs=["rgb"]).pooled
    assert features.shape == (2, 96)
    assert bool(features.isfinite().all())


@pytest.fixture
def only_train(monkeypatch) -> None:
    """Leave out what comes after training: it is deterministic and tested elsewhere."""

    def nothing(*arguments: Any, **options: Any) -> dict[str, Any]:
        return {}

    monkeypatch.setattr(reconstruct_chips, "reconstruct_chips", nothing)
    monkeypatch.setattr(reconstruct, "reconstruct_scene", nothing)
    monkeypatch.setattr(probes, "probe", nothing)
    monkeypatch.setattr(quickstart, "_report", lambda out, *rest: out / "report.html")


def files(out: Path) -> dict[str, bytes]:
    """World, store and weights; not what tells of time and place."""
    chosen = [p for part in ("world", "store") for p in (out / part).rglob("*") if p.is_file()]
    chosen.append(out / "model/model.safetensors")
    return {str(p.relative_to(out)): p.read_bytes() for p in chosen}


@pytest.mark.slow
@pytest.mark.usefixtures("only_train")
def test_a_seed_decides_everything_and_another_changes_it(tour, tmp_path):
    made = {}
    for name in ("a", "b"):
        quickstart.quickstart(tmp_path / name, seed=3, chips=24, epochs=1)
        made[name] = files(tmp_path / name)
    assert made["a"].keys() == made["b"].keys()
    assert [k for k in made["a"] if made["a"][k] != made["b"][k]] == []
    for chip in ("world/chips/s2/chip-00000.tif", "world/chips/radar/chip-00003.tif"):
        assert made["a"][chip] != (tour.out / chip).read_bytes(), "the tour has seed 0"
    quickstart.quickstart(tmp_path / "a", seed=3, chips=24, epochs=1)
    assert files(tmp_path / "a") == made["a"], "run again, it changes nothing"
    with pytest.raises(OutputError, match=r'holds another quickstart .*"seed": 3.*"seed": 5'):
        quickstart.quickstart(tmp_path / "a", seed=5, chips=24, epochs=1)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty and no quickstart"):
        quickstart.quickstart(tmp_path)
    with pytest.raises(OutputError, match="it is a file; choose a folder"):
        quickstart.quickstart(tmp_path / "letter.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]
