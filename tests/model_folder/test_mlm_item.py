"""Models described as STAC items (MLM): in their folder, beside and inside exported files."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from multimae_eo.catalog import make_modality
from multimae_eo.export.files import FileOptions, export_model
from multimae_eo.export.graphs import GraphOptions
from multimae_eo.modality import Band, Modality, ModalitySet
from multimae_eo.model_folder.folder import model_hash
from multimae_eo.network.card_facts import CardFacts, Score
from multimae_eo.network.config import EncoderConfig, HeadConfig, InputConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import Target

LEVEL = {"rgb": "l2a"}


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def require_valid(item: dict[str, Any]) -> None:
    """Valid for ``stac-model`` and MLM's JSON schema where they are installed."""
    schema = pytest.importorskip("stac_model.schema")
    schema.MLModelProperties.model_validate(item["properties"])


@pytest.fixture
def predictor(make_model):
    target = Target(kind="map", classes=("no forest", "forest", "Forest!"), class_ids=(3, 5, 9))
    return Predictor(make_model(), target, HeadConfig(width=8))


def require_checksum(asset: dict[str, Any], folder: Path) -> None:
    data = (folder / asset["href"]).read_bytes()
    assert asset["file:size"] == len(data)
    assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()


def test_a_folder_holds_the_facts_of_its_model(make_model, statistics, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "m", facts=CardFacts(license="CC-BY-4.0"))
    item = read(tmp_path / "m/stac.json")
    fields, asset = item["properties"], item["assets"]["model"]
    assert item["id"] == f"multimae-eo-{model_hash(tmp_path / 'm')}" == fields["mlm:name"]
    assert fields["license"] == "CC-BY-4.0"
    assert fields["mlm:total_parameters"] == sum(p.numel() for p in model.parameters())
    assert fields["mlm:hyperparameters"]["encoder.depth"] == 2
    assert "mlm:model" in asset["roles"]
    for name in ("model", "config", "modalities"):
        require_checksum(item["assets"][name], tmp_path / "m")

    rgb = next(i for i in fields["mlm:input"] if i["name"] == "rgb")
    assert rgb["bands"] == ["B4", "B3", "B2"]
    assert rgb["input"] == {
        "shape": [-1, 3, 16, 16],
        "dim_order": ["batch", "channel", "height", "width"],
        "data_type": "float32",
    }
    assert rgb["value_scaling"] is None, "normalisation is part of the model"
    assert "reflectance" in rgb["description"]
    bands = {b["name"]: b for b in asset["bands"]}
    assert set(bands) == {b for i in fields["mlm:input"] for b in i["bands"]}
    assert "l1c" in rgb["description"], "the level of most training chips, else the first"
    moments = statistics.moments["rgb"]["l1c"]
    assert bands["B3"]["statistics"]["mean"] == pytest.approx(float(moments.mean[1]))
    assert bands["B3"]["statistics"]["stddev"] == pytest.approx(float(moments.std[1]))
    assert bands["B3"]["eo:center_wavelength"] == pytest.approx(0.56)
    assert bands["B3"]["eo:full_width_half_max"] == pytest.approx(0.035)
    assert (bands["B3"]["gsd"], bands["B3"]["unit"]) == (10.0, "reflectance")

    outputs = {o["name"]: o for o in fields["mlm:output"]}
    assert outputs["features"]["result"]["shape"] == [-1, 32, 4, 4]
    assert outputs["pooled"]["result"]["shape"] == [-1, 32]
    classes = outputs["landcover_reconstructed"]["classification:classes"]
    assert tuple(c["value"] for c in classes) == model.modalities["landcover"].class_ids
    assert outputs["rgb_reconstructed"]["result"]["shape"] == [-1, 3, 16, 16]
    require_valid(item)


def test_classes_have_names_for_machines_and_people(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "p")
    item = read(tmp_path / "p/stac.json")
    (output,) = item["properties"]["mlm:output"]
    assert output["tasks"] == item["properties"]["mlm:tasks"] == ["semantic-segmentation"]
    assert output["result"]["shape"] == [-1, 3, 16, 16]
    classes = output["classification:classes"]
    assert [c["value"] for c in classes] == [3, 5, 9]
    assert [c["description"] for c in classes] == ["no forest", "forest", "Forest!"]
    names = [c["name"] for c in classes]
    assert names == ["no_forest", "forest", "Forest"]
    assert all(len(c["color_hint"]) == 6 and int(c["color_hint"], 16) >= 0 for c in classes)
    assert "license" not in item["properties"], "not declared"
    require_valid(item)


@pytest.mark.parametrize("kind", ["class", "multilabel", "value", "value map"])
def test_every_kind_of_label_is_described(make_model, tmp_path, kind):
    classes = () if "value" in kind else ("a", "b")
    Predictor(make_model(), Target(kind=kind, classes=classes), HeadConfig()).save_pretrained(
        tmp_path / "p"
    )
    item = read(tmp_path / "p/stac.json")
    (output,) = item["properties"]["mlm:output"]
    shapes = {"value": [-1], "value map": [-1, 16, 16]}
    assert output["result"]["shape"] == shapes.get(kind, [-1, 2])
    assert len(output["result"]["dim_order"]) == len(output["result"]["shape"])
    assert output["tasks"] == ["regression" if "value" in kind else "scene-classification"]
    require_valid(item)


def test_bands_of_one_name_have_their_modalitys(tmp_path):
    """Two radars: VV of each, and a model without statistics."""
    bands = (Band(name="VV"), Band(name="VH"))
    pair = [Modality(name=n, bands=bands, unit="dB") for n in ("ascending", "descending")]
    optical = make_modality("rgb", sensor_name="sentinel2", bands=("B4", "B3", "B2"))
    modalities = ModalitySet([*pair, optical])
    config = ModelConfig(
        encoder=EncoderConfig(width=16, depth=1, heads=2),
        inputs={n: InputConfig(size=8, patch=4) for n in modalities},
    )
    MultiMAE(modalities, (), config).save_pretrained(tmp_path / "m")
    item = read(tmp_path / "m/stac.json")
    names = [b["name"] for b in item["assets"]["model"]["bands"]]
    assert names == ["ascending.VV", "ascending.VH", "descending.VV", "descending.VH",
                     "B4", "B3", "B2"]  # fmt: skip
    assert item["properties"]["mlm:input"][1]["bands"] == ["descending.VV", "descending.VH"]
    assert not any("statistics" in b for b in item["assets"]["model"]["bands"])
    require_valid(item)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_an_exported_file_has_an_item_beside_and_inside(make_model, tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    model = make_model(encoder=EncoderConfig(width=32, depth=1, heads=2)).eval()
    path = tmp_path / ("graph.onnx" if kind == "onnx" else "graph.pt2")
    export_model(
        model, path, GraphOptions(inputs=("rgb", "elevation"), levels=LEVEL),
        FileOptions(format=kind, dynamic="size", model_hash="0123456789abcdef"),
    )  # fmt: skip
    item = read(tmp_path / f"{path.name}.stac.json")
    fields, asset = item["properties"], item["assets"]["model"]
    require_checksum(asset, tmp_path)
    assert asset["href"] == f"./{path.name}"
    assert fields["mlm:framework"] == ("ONNX" if kind == "onnx" else "PyTorch")
    assert [i["name"] for i in fields["mlm:input"]] == ["rgb", "elevation"]
    assert fields["mlm:input"][0]["input"]["shape"] == [-1, 3, -1, -1]
    assert fields["mlm:output"][0]["result"]["shape"] == [-1, 32, -1, -1]
    inside = inner_metadata(path)
    assert inside["properties"]["name"] == fields["mlm:name"]
    assert inside["properties"]["input"] == fields["mlm:input"]
    require_valid(item)
    require_valid(inside)


def inner_metadata(path: Path) -> dict[str, Any]:
    if path.suffix == ".onnx":
        import onnx

        entries = {p.key: p.value for p in onnx.load(path).metadata_props}
        return dict(json.loads(entries["mlm-metadata"]))
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/extra/mlm-metadata"))
        return dict(json.loads(archive.read(name)))


def test_the_card_is_the_hubs(make_model, predictor, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    scores = (
        Score(metric="miou", value=0.61, dataset="My chips (2021)"),
        Score(metric="accuracy", value=0.9, dataset="My chips (2021)"),
        Score(metric="loss", value=float("nan"), dataset="My chips (2021)"),
    )
    facts = CardFacts(license="Apache-2.0", datasets=("My chips (2021)",), scores=scores)
    predictor.save_pretrained(tmp_path / "p", facts=facts)
    card = hub.ModelCard.load(tmp_path / "p/README.md", ignore_metadata_errors=False)
    assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "image-segmentation")
    assert card.data.datasets == ["My-chips-2021"]
    assert {"earth-observation", "sentinel2"} <= set(card.data.tags)
    results = {r.metric_type: r for r in card.data.eval_results}
    assert set(results) == {"miou", "accuracy"}, "what is not a number is no score"
    assert results["miou"].metric_value == 0.61
    assert results["miou"].dataset_name == "My chips (2021)"
    assert results["miou"].dataset_split == "validation"

    make_model().save_pretrained(tmp_path / "m")
    card = hub.ModelCard.load(tmp_path / "m/README.md", ignore_metadata_errors=False)
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.license == "unknown"
    assert card.data.eval_results is None
