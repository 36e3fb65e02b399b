"""What lies beside a file of embeddings: its STAC item and collection."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import multimae_eo
from multimae_eo.errors import OutputError
from multimae_eo.network.config import InputConfig
from multimae_eo.scenes.embed import embed_source
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.sources.base import Source
from multimae_eo.sources.scene.scene import Scene
from tests.support.tiny_source import TinySource

rasterio = pytest.importorskip("rasterio")
pystac = pytest.importorskip("pystac")

from tests.support.scene_files import optical_scene  # noqa: E402

TINY_INPUTS = {
    "inputs": {
        "rgb": InputConfig(size=16, patch=4),
        "elevation": InputConfig(size=8, patch=2),
        "landcover": InputConfig(size=16, patch=4),
    }
}


@pytest.fixture
def scene_file(tmp_path: Path) -> Path:
    return optical_scene(tmp_path, 40, 64)


@pytest.fixture
def model_folder(make_model, tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def records(out: Path) -> tuple[dict, dict]:
    paths = (out.with_name(out.name + end) for end in (".stac.json", ".collection.json"))
    item, collection = (json.loads(p.read_text()) for p in paths)
    return item, collection


def linked(record: dict, rel: str) -> str:
    return str(next(link["href"] for link in record["links"] if link["rel"] == rel))


def test_a_raster_has_an_item(model_folder, scene_file, tmp_path):
    out = tmp_path / "out/emb.tif"
    count = multimae_eo.embed(
        model_folder, scene=scene_file, out=out, per="patch", dtype="int8", inputs=["rgb"]
    )
    item, collection = records(out)
    fields = item["properties"]
    with rasterio.open(out) as file:
        assert fields["proj:code"] == "EPSG:32630"
        assert fields["proj:shape"] == [file.height, file.width]
        assert fields["proj:transform"] == list(file.transform)[:6]
        assert fields["proj:bbox"] == list(file.bounds)
        tags = file.tags()
        quantization = fields["emb:quantization"]
        assert quantization["scale"] == list(file.scales)
        assert quantization["offset"] == list(file.offsets)
        expected = rasterio.warp.transform_bounds(file.crs, "EPSG:4326", *file.bounds)
        assert np.abs(np.array(item["bbox"]) - expected).max() < 1e-6
    assert (quantization["method"], quantization["quantized_dtype"]) == ("linear", "int8")
    assert fields["datetime"] == "2021-05-27T00:00:00Z"
    parameters = fields["emb:runtime_parameters"]
    assert parameters["model_hash"] == tags["model_hash"]
    assert parameters["inputs"] == {"rgb": ["B4", "B3", "B2"]}
    assert parameters["vectors"] == count
    assert (collection["emb:type"], collection["emb:dimensions"]) == ("pixel", 32)
    assert collection["emb:chip_layout"] == {
        "layout_type": "regular_grid", "chip_size": [4, 4], "stride": [4, 4],
    }  # fmt: skip
    assert (collection["data_type"], collection["gsd"]) == ("int8", 40.0)
    assert collection["extent"]["spatial"]["bbox"] == [item["bbox"]]

    asset = item["assets"]["embeddings"]
    assert asset["file:size"] == out.stat().st_size
    assert asset["file:checksum"] == "1220" + hashlib.sha256(out.read_bytes()).hexdigest()
    assert (out.parent / item["assets"]["thumbnail"]["href"]).is_file()
    for record in (item, collection):
        model_item = json.loads((out.parent / linked(record, "emb:model")).read_text())
        assert parameters["model_hash"] in model_item["id"]
        assert (out.parent / linked(record, "emb:source-data")).resolve() == scene_file
    assert linked(item, "derived_from") == linked(item, "emb:model")


def test_the_pair_is_a_static_catalogue(model_folder, scene_file, tmp_path):
    """pystac walks from the collection to its item, and to the file from there."""
    out = tmp_path / "emb.parquet"
    count = multimae_eo.embed(model_folder, scene=scene_file, out=out, inputs=["rgb"])
    collection = pystac.read_file(str(out) + ".collection.json")
    (item,) = collection.get_items()
    assert item.get_collection().id == collection.id
    assert Path(item.assets["embeddings"].get_absolute_href()) == out
    fields = item.properties
    assert "emb:quantization" not in fields, "float32 is as computed"
    assert fields["emb:runtime_parameters"]["vectors"] == count == pq.read_table(out).num_rows
    assert fields["proj:code"] == "EPSG:32630"
    assert collection.extra_fields["emb:type"] == "chip"
    assert collection.extra_fields["emb:chip_layout"]["chip_size"] == [16, 16]
    assert collection.extra_fields["gsd"] == 160.0


class Bare(Source):
    """Chips without footprint and time."""

    name = "bare chips"

    def __init__(self, modalities, make_sample) -> None:
        self.modalities, self.make = modalities, make_sample
        self.keys = ["chip-0", "chip-1", "chip-2"]
        self.split_of = [""] * 3

    def read(self, index, names=None):
        return self.make(index, names=("rgb",))


def test_chips_without_location_or_time(make_model, modalities, make_sample, tmp_path):
    out = tmp_path / "emb.parquet"
    source = Bare(modalities, make_sample)
    embed_source(make_model().eval(), source, out, dtype="float16", options=SceneOptions())
    item, collection = records(out)
    assert item["geometry"] is None
    assert "bbox" not in item
    assert item["properties"]["datetime"] is None
    assert item["properties"]["start_datetime"] < item["properties"]["end_datetime"]
    assert item["properties"]["emb:quantization"] == {
        "method": "rounding", "original_dtype": "float32", "quantized_dtype": "float16",
    }  # fmt: skip
    assert collection["emb:chip_layout"] == {"layout_type": "variable_grid"}
    assert collection["extent"]["temporal"]["interval"] == [[None, None]]
    assert linked(item, "emb:model") == "urn:multimae-eo:model:unsaved"
    assert linked(item, "emb:source-data") == "urn:multimae-eo:source:bare%20chips"


def test_times_and_systems_of_several_chips(make_model, tmp_path):
    out = tmp_path / "emb.parquet"
    embed_source(make_model(**TINY_INPUTS).eval(), TinySource(8), out, options=SceneOptions())
    item, collection = records(out)
    fields = item["properties"]
    assert fields["datetime"] is None
    assert fields["start_datetime"] == "2020-06-01T10:00:00Z"
    assert fields["end_datetime"] == "2020-06-07T10:00:00Z"
    assert collection["extent"]["temporal"]["interval"] == [
        [fields["start_datetime"], fields["end_datetime"]]
    ]
    assert "proj:code" not in fields, "they lie in two zones"
    assert len(item["geometry"]["coordinates"][0]) == 5


def test_items_follow_the_extension(model_folder, scene_file, tmp_path):
    """Only fields that the extension's schema has in items and in collections, all that it asks."""
    out = tmp_path / "emb.tif"
    multimae_eo.embed(model_folder, scene=scene_file, out=out, per="patch", dtype="int8")
    item, collection = records(out)
    in_items = {
        "emb:runtime_parameters", "emb:preprocessing", "emb:postprocessing", "emb:fit_for_use",
        "emb:uncertainty", "emb:quantization", "emb:energy",
    }  # fmt: skip
    assert {k for k in item["properties"] if k.startswith("emb:")} <= in_items
    assert set(item["properties"]["emb:quantization"]) == {
        "method", "original_dtype", "quantized_dtype", "scale", "offset",
    }  # fmt: skip
    assert set(collection) >= {"emb:type", "emb:dimensions", "data_type", "license", "extent"}
    assert {"emb:model", "emb:source-data"} <= {link["rel"] for link in collection["links"]}
    for record in (item, collection):
        assert record["stac_version"] == "1.0.0"
        assert any("/embeddings/v0.0.1/" in uri for uri in record["stac_extensions"])


def test_an_item_is_never_written_over_an_input(model_folder, scene_file, refused, tmp_path):
    out = tmp_path / "emb.parquet"
    (tmp_path / "emb.parquet.stac.json").symlink_to(scene_file)
    before = scene_file.read_bytes()
    message = refused(
        "embed", "--model", str(model_folder), "--scene", str(scene_file), "--out", str(out)
    )
    assert "write elsewhere" in message
    assert scene_file.read_bytes() == before
    assert not out.exists()
    assert Scene(scene_file).name == "made-up"


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_zarr_group_is_the_raster(model_folder, scene_file, tmp_path, dtype):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("rioxarray")
    zarr = pytest.importorskip("zarr")
    settings = {"scene": scene_file, "per": "patch", "dtype": dtype, "inputs": ["rgb"]}
    for name in ("emb.tif", "emb.zarr"):
        count = multimae_eo.embed(model_folder, out=tmp_path / name, **settings)
    data = xarray.open_zarr(tmp_path / "emb.zarr", mask_and_scale=False)
    vectors = data["embeddings"]
    assert vectors.dims == ("time", "embedding", "y", "x")
    assert str(vectors.time.values[0])[:10] == "2021-05-27"
    with rasterio.open(tmp_path / "emb.tif") as file:
        assert np.array_equal(vectors[0].values, file.read(), equal_nan=dtype == "float32")
        assert vectors.rio.crs == file.crs
        assert vectors.rio.transform() == file.transform
        if dtype == "int8":
            assert np.array_equal(data["scale"].values, file.scales)
            assert np.array_equal(data["offset"].values, file.offsets)
    array = zarr.open_group(tmp_path / "emb.zarr", mode="r")["embeddings"]
    assert array.shards is not None
    assert "zstd" in str(array.compressors).lower()
    attributes = dict(zarr.open_group(tmp_path / "emb.zarr", mode="r").attrs)
    assert attributes["geoemb:type"] == "pixel"
    assert attributes["geoemb:dimensions"] == 32
    assert (tmp_path / attributes["geoemb:model"]).is_file()
    assert attributes["proj:code"] == "EPSG:32630"
    item, _ = records(tmp_path / "emb.zarr")
    assert item["properties"]["emb:runtime_parameters"]["vectors"] == count
    assert not list(tmp_path.glob(".*part*"))


def test_zarr_shards_are_filled_from_parts_of_any_height(tmp_path):
    """Rows come in blocks whose height is not that of shards."""
    zarr = pytest.importorskip("zarr")
    from multimae_eo.scenes.embedding_item import EmbeddingFacts
    from multimae_eo.scenes.embedding_zarr import write_zarr
    from tests.support.scene_files import grid
    from tests.support.tiny_source import modalities

    pixels = np.random.default_rng(0).normal(size=(2, 300, 150)).astype(np.float32)
    facts = EmbeddingFacts(
        name="a", kind="pixel", per="patch", width=2, dtype="float32", count=1,
        inputs=modalities(), chip=(1, 1), grid=grid(300, 150),
    )  # fmt: skip
    edges = [0, 7, 130, 131, 280, 300]
    parts = (pixels[:, a:b] for a, b in itertools.pairwise(edges))
    write_zarr(tmp_path / "e.zarr", facts, SceneOptions(), parts)
    group = zarr.open_group(tmp_path / "e.zarr", mode="r")
    assert np.array_equal(group["embeddings"][0], pixels)
    assert "time" not in group, "none is recorded"

    (tmp_path / "other.zarr").mkdir()
    (tmp_path / "other.zarr/mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="no Zarr group"):
        write_zarr(tmp_path / "other.zarr", facts, SceneOptions(), iter([pixels]))
    assert (tmp_path / "other.zarr/mine.txt").read_text() == "mine"
