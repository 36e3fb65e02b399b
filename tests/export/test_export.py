"""Graphs for other runtimes say what the model says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from multimae_eo.errors import ConfigError, FormatError, OutputError
from multimae_eo.export import files
from multimae_eo.export.files import FileOptions, export_model, read_record
from multimae_eo.export.graphs import GraphOptions, build_graph, random_images
from multimae_eo.geo import Window
from multimae_eo.inference.backbone import physical_tensors
from multimae_eo.network.config import EncoderConfig, HeadConfig, InputConfig
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.reconstruction import reconstruct
from multimae_eo.network.target import Target
from multimae_eo.sample import collate
from tests.support.paths import DATA, ROOT

LEVEL = {"rgb": "l2a"}
INPUTS = [("rgb",), ("rgb", "elevation"), ("rgb", "elevation", "landcover")]

QUICK = {
    INPUTS[0]: {("torch", 16), ("torch", 24), ("onnx", 16)},
    INPUTS[1]: {("torch", 24)},
    INPUTS[2]: {("torch", 16), ("onnx", 24)},
}
EUROSAT = DATA / "eurosat_ms"


@pytest.fixture
def small(make_model):
    """One block: a graph takes as long to trace and optimise as it has nodes."""
    return make_model(encoder=EncoderConfig(width=32, depth=1, heads=2)).eval()


@pytest.fixture
def wide(make_model):
    """Enough weights to outweigh the rest of a graph's file."""
    return make_model(encoder=EncoderConfig(width=256, depth=1, heads=4)).eval()


def run_file(path, images):
    """The file's outputs, by the runtime it is for and without this package."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        given = {i.name: t.numpy() for i, t in zip(session.get_inputs(), images, strict=True)}
        return [torch.from_numpy(np.asarray(a)) for a in session.run(None, given)]
    with torch.no_grad():
        return list(torch.export.load(path).module()(*images))


@pytest.mark.parametrize(
    ("kind", "inputs", "size"),
    [
        pytest.param(
            kind, inputs, size, id=f"{kind}-{'+'.join(inputs)}-{size}",
            # All but a release's run keep each input configuration, size and format at least once.
            marks=[pytest.mark.slow] * ((kind, inputs, size) != ("torch", ("rgb",), 16))
            if (kind, size) in QUICK[inputs]
            else [pytest.mark.release],
        )
        for kind in ("torch", "onnx") for inputs in INPUTS for size in (16, 24)
    ],
)  # fmt: skip
def test_encoder_equals_the_model(small, make_sample, modalities, tmp_path, kind, inputs, size):
    path = tmp_path / ("graph.onnx" if kind == "onnx" else "graph.pt2")
    record = export_model(
        small,
        path,
        GraphOptions(inputs=inputs, size=size, levels=LEVEL),
        FileOptions(format=kind, model_hash="0123456789abcdef"),
    )
    batch = collate([make_sample(s, size=size) for s in (0, 2, 4)], modalities)
    with torch.no_grad():
        own = small.encode(batch, inputs)
    features, pooled = run_file(path, [physical_tensors(batch)[n] for n in inputs])
    assert_close(features, own.fused(), atol=1e-4, rtol=0)
    assert_close(pooled, own.pooled, atol=1e-4, rtol=0)
    assert record["max_difference"] <= 1e-5
    assert read_record(path) == json.loads(json.dumps(record))
    assert record["inputs"]["rgb"]["bands"] == ["B4", "B3", "B2"]
    assert (record["inputs"]["rgb"]["level"], record["model_hash"]) == ("l2a", "0123456789abcdef")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_reconstruction_equals_the_model(small, make_sample, modalities, tmp_path, kind):
    path = tmp_path / ("graph.onnx" if kind == "onnx" else "graph.pt2")
    options = GraphOptions(what="reconstruct", inputs=("rgb",), levels=LEVEL)
    record = export_model(small, path, options, FileOptions(format=kind))
    batch = collate([make_sample(s) for s in (0, 2)], modalities)
    own = small.reconstruct(batch, ["rgb"], samples=0)
    found = run_file(path, [physical_tensors(batch)["rgb"]])
    for (name, about), got in zip(record["outputs"].items(), found, strict=True):
        expected = own[name.removesuffix("_reconstructed")].mean
        assert_close(got, expected, atol=1e-4 * float(expected.abs().max().clamp_min(1)), rtol=0)
        assert len(about["bands"]) == got.shape[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "head", "dense"),
    [
        ("torch", "linear", False),
        ("onnx", "linear", True),
        pytest.param("onnx", "convnext", True, marks=pytest.mark.release),
        pytest.param("onnx", "upernet", True, marks=pytest.mark.slow),
        pytest.param("onnx", "dpt", True, marks=pytest.mark.release),
        pytest.param("onnx", "unet", True, marks=pytest.mark.slow),
    ],
)
def test_prediction_equals_the_model(
    make_model, make_sample, modalities, tmp_path, kind, head, dense
):
    target = Target(kind="class" if not dense else "map", classes=("a", "b", "c"))
    predictor = Predictor(make_model(), target, HeadConfig(name=head, width=8, depth=1)).eval()
    path = tmp_path / ("graph.onnx" if kind == "onnx" else "graph.pt2")
    options = GraphOptions(what="predict", inputs=("rgb", "elevation"), levels=LEVEL)
    record = export_model(predictor, path, options, FileOptions(format=kind))
    assert record["classes"] == ["a", "b", "c"]
    batch = collate([make_sample(s) for s in (0, 2, 4)], modalities)
    with torch.no_grad():
        own = predictor.predictions(predictor(batch, ("rgb", "elevation")))
    images = physical_tensors(batch)
    (got,) = run_file(path, [images["rgb"], images["elevation"]])
    assert_close(got, own, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_graphs_equal_the_model_on_real_chips(make_model, tmp_path, kind):
    if not EUROSAT.is_dir():
        pytest.skip("its data need rasterio")
    pytest.importorskip("rasterio")
    from multimae_eo.loading.open_source import open_source

    source = open_source(str(ROOT / "examples/eurosat_ms.yaml"))
    model = make_model().eval()
    batch = source.batch(source.keys[:3], ["rgb"])
    options = GraphOptions(inputs=("rgb",), levels={"rgb": "l1c"}, size=64)
    path = tmp_path / ("graph.onnx" if kind == "onnx" else "graph.pt2")
    images = physical_tensors(batch)
    record = export_model(model, path, options, FileOptions(format=kind), images=images)
    assert record["checked_on"] == "11 chips"
    with torch.no_grad():
        own = model.encode(batch, ["rgb"])
    features, pooled = run_file(path, [images["rgb"]])
    assert_close(features, own.fused(), atol=1e-4, rtol=0)
    assert_close(pooled, own.pooled, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_real_chips_are_part_of_the_check(small, make_sample, modalities, tmp_path):
    batch = collate([make_sample(s, size=20) for s in (0, 2)], modalities)
    options = GraphOptions(inputs=("rgb", "elevation"), levels=LEVEL, size=16)
    record = export_model(
        small, tmp_path / "g.pt2", options, FileOptions(format="torch"),
        images=physical_tensors(batch),
    )  # fmt: skip
    assert record["checked_on"] == "10 chips"
    with pytest.raises(ConfigError, match="give a smaller --size"):
        export_model(
            small, tmp_path / "h.pt2", GraphOptions(inputs=("elevation",), size=24),
            FileOptions(format="torch"), images=physical_tensors(batch),
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "quantization", "most"),
    [
        ("torch", "int8", 0.02),
        ("onnx", "bf16", 0.01),
        pytest.param("torch", "bf16", 0.01, marks=pytest.mark.release),
        pytest.param("onnx", "int8", 0.02, marks=pytest.mark.release),
    ],
)
def test_quantised_weights_are_small_and_nearly_right(wide, tmp_path, kind, quantization, most):
    sizes, options = {}, GraphOptions(inputs=("elevation",))
    for how in (None, quantization):
        path = tmp_path / f"{how}.{'onnx' if kind == 'onnx' else 'pt2'}"
        record = export_model(wide, path, options, FileOptions(format=kind, quantization=how))
        sizes[how] = path.stat().st_size
    change = record["quantization_change"]
    assert set(change) == {"features", "pooled"}
    assert 1e-4 < change["features"] < most
    assert record["max_difference"] <= 1e-4, "the file still says what the quantised model says"
    assert sizes[quantization] < (0.5 if quantization == "int8" else 0.7) * sizes[None]
    assert isinstance(wide.encoder.blocks[0].mlp.fc1, torch.nn.Linear), "the model stays as it is"


@pytest.mark.slow
def test_the_check_is_in_float32(small, tmp_path):
    """Though the process multiplies in bfloat16 where its processor can, as TerraTorch asks for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        options = GraphOptions(inputs=("rgb",), levels=LEVEL)
        record = export_model(small, tmp_path / "g.onnx", options, FileOptions(format="onnx"))
        assert record["max_difference"] < 1e-5
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.slow
def test_one_chip_at_a_time(small, tmp_path):
    options = GraphOptions(inputs=("elevation",))
    record = export_model(small, tmp_path / "g.onnx", options, FileOptions(dynamic="none"))
    assert record["batch"] == 1
    graph = build_graph(small, options)
    images = random_images(graph, None, 1, seed=9)
    with torch.no_grad():
        assert_close(run_file(tmp_path / "g.onnx", images)[0], graph(*images)[0], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_chips_of_any_size(small, make_sample, modalities, tmp_path, kind):
    """One file for every size of chip, rectangular ones too: positions are interpolated in it."""
    path = tmp_path / ("graph.onnx" if kind == "onnx" else "graph.pt2")
    inputs = ("rgb", "elevation")
    options = GraphOptions(inputs=inputs, levels=LEVEL)
    record = export_model(small, path, options, FileOptions(format=kind, dynamic="size"))
    assert record["size_steps"] == dict.fromkeys(inputs, 4)
    assert record["max_difference"] < 1e-5
    for size, width in ((8, 8), (16, 16), (24, 16), (40, 40)):
        batch = collate([make_sample(s, size=size) for s in (0, 2, 4)], modalities)
        images = [physical_tensors(batch)[n][..., :width].contiguous() for n in inputs]
        batch = batch.cut({n: Window(row=0, col=0, height=size, width=width) for n in modalities})
        with torch.no_grad():
            expected = small.encode(batch, inputs)
        features, pooled = run_file(path, images)
        assert features.shape[-2:] == (size // 4, width // 4)
        assert_close(features, expected.fused(), atol=1e-4, rtol=0)
        assert_close(pooled, expected.pooled, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "what", "head"),
    [
        ("torch", "reconstruct", "linear"),
        ("torch", "predict", "convnext"),
        ("onnx", "predict", "unet"),
        pytest.param("onnx", "predict", "linear", marks=pytest.mark.release),
        pytest.param("onnx", "reconstruct", "linear", marks=pytest.mark.release),
        pytest.param("onnx", "predict", "convnext", marks=pytest.mark.release),
    ],
)
def test_maps_of_any_size(small, make_sample, modalities, tmp_path, kind, what, head):
    path = tmp_path / ("graph.onnx" if kind == "onnx" else "graph.pt2")
    target = Target(kind="map", classes=("a", "b"))
    predictor = Predictor(small, target, HeadConfig(name=head, width=8, depth=1)).eval()
    model = predictor if what == "predict" else small
    options = GraphOptions(what=what, inputs=("rgb",), levels=LEVEL)
    export_model(model, path, options, FileOptions(format=kind, dynamic="size"))
    for size in (8, 24):
        batch = collate([make_sample(s, size=size) for s in (0, 2)], modalities).select(["rgb"])
        with torch.no_grad():
            if what == "predict":
                expected = predictor.predictions(predictor(batch, ("rgb",)))
            else:
                expected = reconstruct(small, batch, samples=0, overlap=None)["rgb"].mean
        out = run_file(path, [physical_tensors(batch)["rgb"]])[0]
        assert_close(out, expected, atol=1e-4, rtol=0)


def test_sizes_that_cut_patches_are_refused(make_model, small, tmp_path):
    uneven = make_model(
        inputs={
            "rgb": InputConfig(size=16, patch=4),
            "elevation": InputConfig(size=16, patch=5),
            "landcover": InputConfig(size=16, patch=4),
        }
    ).eval()
    file = FileOptions(format="torch", dynamic="size")
    for model, options, words in (
        (uneven, GraphOptions(inputs=("elevation",)), "not whole patches"),
        (small, GraphOptions(inputs=("landcover",)), "is a class map"),
        (small, GraphOptions(inputs=("elevation",), size=18), "take a multiple of 4, at least 8"),
        (small, GraphOptions(inputs=("elevation",), size=4), "take a multiple of 4, at least 8"),
    ):
        with pytest.raises(ConfigError, match=words):
            export_model(model, tmp_path / "g.pt2", options, file)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_graph_that_differs_is_not_written(small, tmp_path, monkeypatch):
    def other(path):
        return lambda images: [t + 1e-2 for t in build_graph(small, options)(*images)]

    options = GraphOptions(inputs=("elevation",))
    monkeypatch.setattr(files, "_open_torch", other)
    with pytest.raises(OutputError, match=r"differs from the model by 0\.0"):
        export_model(small, tmp_path / "g.pt2", options, FileOptions(format="torch"))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused(small, tmp_path):
    for options, words in (
        (GraphOptions(what="predict", inputs=("elevation",)), "has no head"),
        (GraphOptions(inputs=("elevatoin",)), "did you mean 'elevation'"),
        (GraphOptions(what="reconstruct", inputs=("elevation",), outputs=("rgp",)), "'rgp'"),
        (GraphOptions(inputs=("rgb",)), "name the one of the tensors"),
    ):
        with pytest.raises(ConfigError, match=words):
            export_model(small, tmp_path / "g.pt2", options, FileOptions(format="torch"))
    (tmp_path / "not.onnx").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="not a graph"):
        read_record(tmp_path / "not.onnx")
