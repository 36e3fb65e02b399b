"""A file for the QGIS plug-in Deepness: opened, fed and read as the plug-in does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from multimae_eo.errors import ConfigError
from multimae_eo.export.deepness import DeepnessGraph
from multimae_eo.export.files import FileOptions, export_model, read_record
from multimae_eo.export.graphs import GraphOptions, PredictGraph, build_graph
from multimae_eo.network.config import EncoderConfig, HeadConfig, InputConfig
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import Target
from multimae_eo.sample import Calibration, Sample, collate

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CLASSES = ("land", "open water")
LEVEL = {"rgb": "l2a"}


class Plugin:
    """Loads a model and processes tiles by the rules of Deepness' ``ModelBase``."""

    def __init__(self, path: Path) -> None:
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = runtime.InferenceSession(
            str(path), options=options, providers=["CPUExecutionProvider"]
        )
        (self.input,) = self.session.get_inputs()
        (self.output,) = self.session.get_outputs()
        self.metadata = self.session.get_modelmeta().custom_metadata_map

    def entry(self, name: str) -> Any:
        return json.loads(self.metadata[name])

    def channel_names(self) -> list[str]:
        names = sorted(self.entry("class_names").items(), key=lambda pair: int(pair[0]))
        assert [int(k) for k, _ in names] == list(range(len(names))), "consecutive, or refused"
        return [name for _, name in names]

    def process(self, tiles: np.ndarray) -> np.ndarray:
        """tiles: (N, H, W, C) as read from a raster, of its dtype."""
        tiles = tiles[:, :, :, : self.input.shape[-3]]
        given: Any = np.float32(tiles * 1.0 / 255.0)
        mean = np.array(self.entry("standardization_mean"), np.float32)
        std = np.array(self.entry("standardization_std"), np.float32)
        given = np.transpose((given - mean) / std, (0, 3, 1, 2))
        assert given.dtype == np.float32
        (out,) = self.session.run(None, {self.input.name: given})
        return np.asarray(out)

    def classes(self, tiles: np.ndarray) -> np.ndarray:
        result = self.process(tiles).copy()
        result[result < self.entry("seg_thresh")] = 0.0
        return np.asarray(np.argmax(result, axis=1))


@pytest.fixture
def make_predictor(make_model):
    def make(kind="map", **changes):
        torch.manual_seed(1)
        classes = () if "value" in kind else CLASSES
        target = Target(kind=kind, classes=classes, mean=3.0, std=2.0)
        encoder = make_model(encoder=EncoderConfig(width=32, depth=1, heads=2), **changes)
        return Predictor(encoder, target, HeadConfig()).eval()

    return make


def tiles_of(batch, names):
    """The raster's bands as the plug-in reads them: (N, H, W, C)."""
    return np.concatenate([batch.pixels[n].numpy() for n in names], axis=1).transpose(0, 2, 3, 1)


def exported(predictor, path, **options):
    settings = {"scale": 1e-4, "offset": 0.0, **options}
    return export_model(
        predictor, path, GraphOptions(what="predict", levels=LEVEL, **settings),
        FileOptions(format="deepness", model_hash="0123456789abcdef"),
    )  # fmt: skip


@pytest.mark.slow
def test_a_map_is_the_models(make_predictor, make_sample, modalities, tmp_path):
    predictor, inputs = make_predictor(), ("rgb", "elevation")
    record = exported(predictor, tmp_path / "map.onnx", inputs=inputs)
    plugin = Plugin(tmp_path / "map.onnx")
    assert plugin.entry("model_type").capitalize() == "Segmentor"
    assert plugin.channel_names() == ["no data", *CLASSES] == record["classes"]
    assert plugin.input.shape[1:] == [4, 16, 16]
    assert plugin.output.shape[1] == 3
    assert plugin.output.shape[2] == plugin.output.shape[3] == 16
    assert plugin.entry("tile_size") == plugin.entry("tiles_size") == 16
    assert plugin.entry("resolution") == 1000, "centimetres per pixel"
    assert 0 <= plugin.entry("tiles_overlap") < 100
    assert record["max_difference"] < 1e-5
    assert read_record(tmp_path / "map.onnx")["inputs"]["image"]["channels"][0] == {
        "band": "B4", "modality": "rgb", "scale": 1e-4, "offset": 0.0,
    }  # fmt: skip

    batch = collate([make_sample(s) for s in (0, 2)], modalities)
    with torch.no_grad():
        expected = predictor.predictions(predictor(batch, inputs))
    scores = plugin.process(tiles_of(batch, inputs))
    assert_close(torch.from_numpy(scores[:, 1:]), expected, atol=1e-5, rtol=0)
    assert not scores[:, 0].any()
    labels = plugin.classes(tiles_of(batch, inputs))
    assert np.array_equal(labels, expected.argmax(dim=1).numpy() + 1)

    item = json.loads((tmp_path / "map.onnx.stac.json").read_text())
    (given,), (output,) = item["properties"]["mlm:input"], item["properties"]["mlm:output"]
    assert given["value_scaling"] == [{"type": "scale", "value": 255}]
    assert given["bands"] == ["B4", "B3", "B2", "elevation"]
    names = [c["description"] for c in output["classification:classes"]]
    assert names == ["no data", *CLASSES]
    assert output["result"]["shape"] == [-1, 3, 16, 16]


@pytest.mark.slow
def test_pixels_without_data_are_the_first_class(make_predictor, make_sample, modalities, tmp_path):
    """Sentinel-2's nodata, and the plug-in's padding. One label per chip fills its tile."""
    predictor = make_predictor("class")
    exported(predictor, tmp_path / "map.onnx", inputs=("rgb",), offset=-0.1)
    plugin = Plugin(tmp_path / "map.onnx")
    sample = make_sample(0, names=("rgb",))
    hole = np.zeros((16, 16), bool)
    hole[4:, 10:] = True
    valid = {"rgb": ~hole[None]}
    batch = collate([replace(sample, valid=valid)], modalities)
    with torch.no_grad():
        expected = predictor.predictions(predictor(batch, ("rgb",)))[0].numpy()
    tiles = tiles_of(batch, ["rgb"]) + 1000  # Digital numbers with an offset, as since 2022.
    tiles[:, hole] = 0
    scores = plugin.process(tiles)[0]
    assert np.abs(scores[1:, ~hole] - expected[:, None]).max() < 1e-4
    assert np.array_equal(scores[0], hole)
    assert not scores[1:, hole].any()
    assert not plugin.classes(np.zeros((1, 16, 16, 3), np.uint16)).any()


@pytest.mark.slow
def test_values_of_reflectance(make_predictor, make_sample, modalities, tmp_path):
    predictor = make_predictor("value map")
    exported(predictor, tmp_path / "map.onnx", inputs=("rgb",), scale=1.0)
    plugin = Plugin(tmp_path / "map.onnx")
    assert plugin.entry("model_type").capitalize() == "Regressor"
    assert plugin.input.shape[0] == 1, "its regressors take one tile at a time"
    assert plugin.entry("reg_output_scaling") == 1.0
    batch = collate([make_sample(0, names=("rgb",))], modalities)
    with torch.no_grad():
        expected = predictor.predictions(predictor(batch, ("rgb",)))
    tiles = tiles_of(batch, ["rgb"]).astype(np.float32) * np.float32(1e-4)
    out = torch.from_numpy(plugin.process(tiles))
    assert_close(out[:, 0], expected, atol=1e-3, rtol=0)
    tiles[:, :3] = 0
    assert np.isnan(plugin.process(tiles)[0, 0, :3]).all()
    assert np.isfinite(plugin.process(tiles)[0, 0, 3:]).all()


def test_coarser_bands_are_resampled_by_the_plugin(make_predictor, modalities):
    """Bands of 20 m come as pairs of equal pixels; their mean is the band again."""
    inputs = {
        "rgb": InputConfig(size=16, patch=4),
        "elevation": InputConfig(size=8, patch=2),
        "landcover": InputConfig(size=16, patch=4),
    }
    predictor, names = make_predictor(inputs=inputs), ("rgb", "elevation")
    inner = build_graph(predictor, GraphOptions(what="predict", inputs=names, levels=LEVEL))
    assert isinstance(inner, PredictGraph)
    graph = DeepnessGraph(inner, scale=1e-4, offset=0.0)
    rng = np.random.default_rng(3)
    sample = Sample(
        key="a",
        pixels={
            "rgb": rng.integers(1, 4000, (3, 16, 16)).astype(np.uint16),
            "elevation": rng.integers(1, 900, (1, 8, 8)).astype(np.int16),
        },
        calibration={"rgb": Calibration(scale=1e-4, level="l2a")},
    )
    fine = sample.pixels["elevation"].repeat(2, axis=1).repeat(2, axis=2)
    tile = np.concatenate([sample.pixels["rgb"].astype(np.float32), fine])[None] / 255
    batch = collate([sample], modalities)
    with torch.no_grad():
        (scores,) = graph(torch.from_numpy(tile.astype(np.float32)))
        expected = predictor.predictions(predictor(batch, names))
    assert_close(scores[:, 1:], expected, atol=1e-5, rtol=0)
    assert not scores[:, 0].any()


def test_what_the_plugin_cannot_take_is_refused(make_model, make_predictor, tmp_path):
    file = FileOptions(format="deepness")
    rgb: dict[str, Any] = {"inputs": ("rgb",), "levels": LEVEL}
    dn: dict[str, Any] = {"scale": 1e-4, **rgb}
    for model, options, settings, words in (
        (make_predictor(), GraphOptions(what="predict", **rgb), file, "--scale 1e-4"),
        (make_model(), GraphOptions(what="encoder", **rgb), file, "maps only"),
        (make_model(), GraphOptions(what="predict", **dn), file, "has no head"),
        (make_predictor(), GraphOptions(what="predict", **dn),
         replace(file, dynamic="size"), "one size"),
        (make_predictor(), GraphOptions(what="predict", scale=0.0, **rgb), file, "must not be 0"),
        (make_predictor(), GraphOptions(what="predict", scale=2.0, **rgb),
         FileOptions(format="onnx"), "belong to --format deepness"),
        (make_predictor(inputs={"rgb": InputConfig(size=8, patch=2),
                                "elevation": InputConfig(size=16, patch=4),
                                "landcover": InputConfig(size=16, patch=4)}),
         GraphOptions(what="predict", **dn), file, "predicts at the pixels of elevation"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            export_model(model.eval(), tmp_path / "m.onnx", options, settings)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_refuses_a_model_without_a_map(made, refused, tmp_path):
    message = refused(
        "export", "--model", str(made / "run/model"), "--format", "deepness", "--inputs", "rgb",
        "--levels", "rgb=l2a", "--out", str(tmp_path / "m.onnx"),
    )  # fmt: skip
    assert "has no head" in message
