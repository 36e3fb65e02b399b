"""A map's accuracy and areas on the page, as ``assess`` and ``map`` record them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from fastapi.testclient import TestClient

from multimae_eo import assess
from multimae_eo.demo.map_accuracy import read_accuracy
from multimae_eo.demo.server import create_app
from multimae_eo.demo.services import DemoData
from multimae_eo.errors import ConfigError, FormatError
from tests.demo.conftest import LIMITS


@pytest.fixture
def assessed(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A class map with errors, and what ``assess`` wrote of it."""
    truth = folder / "world/scene/landcover.tif"
    with rasterio.open(truth) as file:
        ids, profile = file.read(), file.profile
    ids[:, ::5] = np.roll(ids[:, ::5], 40, axis=2)
    path = tmp_path / "map.tif"
    with rasterio.open(path, "w", **profile) as file:
        file.write(ids)
    assess(path, reference=truth, out=tmp_path / "accuracy")
    return path, tmp_path / "accuracy"


def test_what_assess_wrote_is_shown_with_the_map(model, scene, assessed):
    path, out = assessed
    record = json.loads((out / "accuracy.json").read_text(encoding="utf-8"))
    shown = DemoData(scene=scene, map=path, accuracy=out)
    with TestClient(create_app(model, shown, limits=LIMITS)) as client:
        overlays = client.get("/api/map").json()["overlays"]
    accuracy = overlays[0]["accuracy"]
    assert overlays[0]["title"] == "map"
    assert all(o["accuracy"] is None for o in overlays[1:])
    assert accuracy["overall"]["value"] == record["overall"]["value"] < 1
    assert accuracy["by"].startswith(Path(record["reference"]).name)
    assert len(accuracy["classes"]) == len(record["classes"])
    for ours, theirs in zip(accuracy["classes"], record["classes"], strict=True):
        assert ours["name"] == theirs["name"]
        assert ours["area_ha"]["value"] == theirs["area_ha"]["value"]
        assert ours["mapped_ha"] == pytest.approx(theirs["mapped_share"] * record["area_ha"])


def test_the_record_of_a_map_by_cross_validation(assessed, tmp_path):
    _, out = assessed
    record = json.loads((out / "accuracy.json").read_text(encoding="utf-8"))
    del record["reference"], record["design"]
    record["cross_validation"] = {"folds": 3, "overall": record.pop("overall")}
    (tmp_path / "record.json").write_text(json.dumps(record), encoding="utf-8")
    found = read_accuracy(tmp_path)
    assert found["by"] == "cross-validation in 3 folds of labels"
    assert found["overall"]["value"] == record["cross_validation"]["overall"]["value"]


@pytest.mark.parametrize("text", ["{}", "[]", '{"classes": 3}', "not JSON", '{"overall": {}}'])
def test_another_file_is_refused_by_name(tmp_path, text):
    path = tmp_path / "accuracy.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=r"accuracy\.json: .*give the accuracy\.json"):
        read_accuracy(path)


def test_an_accuracy_without_a_map_is_refused(scene, tmp_path):
    with pytest.raises(ConfigError, match="give --map"):
        DemoData(scene=scene, accuracy=tmp_path)
