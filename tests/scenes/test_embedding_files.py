"""Embeddings as rasters, as int8, and in Hilbert order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multimae_eo.errors import ConfigError, DataError, FormatError
from multimae_eo.geo import Geometry
from multimae_eo.inference.search import search
from multimae_eo.inference.vector_codes import VectorCodes, metadata_record, paired_cosine
from multimae_eo.scenes.embed import embed_scene
from multimae_eo.scenes.geoparquet import EmbeddingWriter
from multimae_eo.scenes.hilbert import hilbert_codes
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.sources.scene.scene import Scene

rasterio = pytest.importorskip("rasterio")

from multimae_eo.scenes.embedding_raster import embed_raster  # noqa: E402
from tests.support.scene_files import optical_scene  # noqa: E402


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Scene:
    """2 × 3 chips of 16 px, whole; one of them without data."""
    return Scene(optical_scene(tmp_path_factory.mktemp("scene"), 32, 48, hole=np.s_[:16, 16:32]))


def test_the_curve_visits_every_cell_and_moves_by_one():
    x, y = (v.ravel() for v in np.meshgrid(np.arange(16), np.arange(16)))
    codes = hilbert_codes(x, y, bits=4)
    assert sorted(codes.tolist()) == list(range(256))
    order = np.argsort(codes)
    steps = np.abs(np.diff(x[order])) + np.abs(np.diff(y[order]))
    assert (steps == 1).all()


def test_row_groups_are_areas(tmp_path):
    """A group of a file in reading order would span the width; in Hilbert order it is compact."""
    writer, side = EmbeddingWriter(tmp_path / "e.parquet", 2, model_hash=""), 128
    for i in range(side * side):
        left, bottom = i % side * 0.01, i // side * 0.01
        place = Geometry(crs="EPSG:4326", bounds=(left, bottom, left + 0.01, bottom + 0.01))
        writer.add(f"k{i}", place, None, np.array([1.0, i]))
    writer.finish()
    file = pq.ParquetFile(tmp_path / "e.parquet")
    assert file.num_row_groups == 4
    for number in range(4):
        group = file.read_row_group(number)
        boxes = [b.as_py() for b in group["bbox"]]
        for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
            extent = max(b[high] for b in boxes) - min(b[low] for b in boxes)
            assert extent == pytest.approx(0.64, abs=1e-6), "a quarter, not a strip"
    vectors = {r["key"]: r["vector"] for r in file.read().to_pylist()}
    assert vectors == {f"k{i}": [1.0, i] for i in range(side * side)}, "each keeps its vector"


def test_int8_records_its_scale_and_what_it_costs(make_model, scene, tmp_path):
    model = make_model().eval()
    embed_scene(model, scene, tmp_path / "f.parquet", per="patch")
    embed_scene(model, scene, tmp_path / "i.parquet", per="patch", dtype="int8")
    exact, coded = (pq.read_table(tmp_path / f"{n}.parquet") for n in "fi")
    assert coded.schema.field("vector").type == pa.list_(pa.int8(), 32)
    assert coded["key"].to_pylist() == exact["key"].to_pylist()
    record = metadata_record(pq.ParquetFile(tmp_path / "i.parquet").metadata.metadata)
    assert (record["dtype"], record["per"], record["inputs"]) == ("int8", "patch", ["rgb"])
    codes = VectorCodes.of_record(record, "", 32)
    expected = np.array(exact["vector"].to_pylist())
    decoded = codes.decode(np.array(coded["vector"].to_pylist()))
    assert np.abs(decoded - expected).max() <= codes.scale.max() * 0.51
    cosine = paired_cosine(expected, decoded)
    assert record["cosine_mean"] == pytest.approx(cosine.mean(), abs=2e-6)
    assert record["cosine_min"] == pytest.approx(cosine.min(), abs=2e-6)
    assert 0.999 < cosine.min() < 1, "a few thousandths of a radian"
    key = exact["key"][3].as_py()
    ours, theirs = (search(tmp_path / f"{n}.parquet", key=key, k=9) for n in "fi")
    assert len({r["key"] for r in ours} & {r["key"] for r in theirs}) >= 8
    assert theirs[4]["similarity"] == pytest.approx(ours[4]["similarity"], abs=2e-3)


def test_int8_without_its_scale_is_refused(make_model, scene, tmp_path):
    embed_scene(make_model().eval(), scene, tmp_path / "i.parquet", dtype="int8")
    table = pq.read_table(tmp_path / "i.parquet")
    pq.write_table(table, tmp_path / "bare.parquet")
    with pytest.raises(FormatError, match="int8 vectors without their scale and offset"):
        search(tmp_path / "bare.parquet", key="made-up@0,0")


@pytest.mark.parametrize("per", ["patch", "chip"])
def test_a_raster_has_the_vectors_of_the_table(make_model, scene, tmp_path, per):
    model, out = make_model().eval(), tmp_path / "e.tif"
    options = SceneOptions(model_hash="abc", batch_size=4, overlap=0.0)
    count = embed_raster(model, scene, out, per=per, options=options)
    embed_scene(model, scene, tmp_path / "e.parquet", per=per)
    rows = pq.read_table(tmp_path / "e.parquet").to_pylist()
    assert count == len(rows)
    side = 4 if per == "patch" else 16
    with rasterio.open(out) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (file.count, file.shape) == (32, (32 // side, 48 // side))
        assert file.transform == scene.grid.coarser(side).transform
        assert file.crs == scene.grid.crs
        assert file.tags()["model_hash"] == "abc"
        assert file.tags()["time"] == "2021-05-27"
        pixels = file.read()
        for row in rows:
            left, _, _, top = row["bounds"]
            r, c = file.index(left + 1, top - 1)
            assert np.abs(pixels[:, r, c] - row["vector"]).max() < 1e-5
    assert np.isfinite(pixels[0]).sum() == count, "nothing where nothing is observed"
    assert (tmp_path / "e.tif.png").is_file()
    assert not list(tmp_path.glob(".e.tif*"))


def test_a_raster_of_int8_has_gdals_scale_and_offset(make_model, scene, tmp_path):
    model = make_model().eval()
    for dtype in ("float32", "int8"):
        embed_raster(model, scene, tmp_path / f"{dtype}.tif", dtype=dtype)
    with rasterio.open(tmp_path / "float32.tif") as file:
        exact = file.read()
    with rasterio.open(tmp_path / "int8.tif") as file:
        assert file.dtypes[0] == "int8"
        assert file.nodata == -128
        raw = file.read()
        scale, offset = (np.array(v)[:, None, None] for v in (file.scales, file.offsets))
        tags = file.tags()
    assert ((raw == -128) == np.isnan(exact)).all()
    error = np.abs(raw * scale + offset - exact)[raw != -128]
    assert error.max() <= scale.max() * 0.51
    assert 0.999 < float(tags["cosine_min"]) < float(tags["cosine_mean"]) < 1


def test_overlapping_windows_are_blended(make_model, tmp_path):
    """Where they start at whole patches; a constant scene has no edges of windows."""
    scene = Scene(optical_scene(tmp_path, 40, 52))
    for overlap in (0.0, 0.5):
        options = SceneOptions(overlap=overlap)
        embed_raster(make_model().eval(), scene, tmp_path / f"{overlap}.tif", options=options)
    maps = []
    for overlap in (0.0, 0.5):
        with rasterio.open(tmp_path / f"{overlap}.tif") as file:
            maps.append(file.read())
    assert maps[0].shape == maps[1].shape == (32, 10, 13)
    assert np.isfinite(maps[1]).all()
    assert np.abs(maps[0][:, :2, :2] - maps[1][:, :2, :2]).max() < 1e-5, "one window reaches these"
    assert np.abs(maps[0] - maps[1]).max() > 1e-3


def test_edges_reach_over_and_keep_one_grid(make_model, tmp_path):
    """40 × 52 px are not whole chips: the table's last chips are moved back, the raster's not."""
    scene = Scene(optical_scene(tmp_path, 40, 52))
    count = embed_raster(make_model().eval(), scene, tmp_path / "e.tif", per="patch")
    assert count == 10 * 13
    with rasterio.open(tmp_path / "e.tif") as file:
        assert file.shape == (10, 13)
        assert np.isfinite(file.read()).all()


def test_what_cannot_be_a_raster_is_refused(make_model, run, refused, scene, tmp_path):
    model = make_model().eval()
    with pytest.raises(ConfigError, match="float32 or int8"):
        embed_raster(model, scene, tmp_path / "e.tif", dtype="float16")
    (tmp_path / "empty").mkdir()
    empty = Scene(optical_scene(tmp_path / "empty", 20, 20, hole=np.s_[:, :]))
    with pytest.raises(DataError, match="nothing is observed"):
        embed_raster(model, empty, tmp_path / "e.tif")
    assert not list(tmp_path.glob("*.tif"))
    assert not list(tmp_path.glob(".e.tif*"))
    model.save_pretrained(tmp_path / "model")
    words = ["embed", "--model", str(tmp_path / "model"), "--device", "cpu"]
    place = ["--scene", str(scene.path)]
    message = refused(*words, "--data", str(scene.path), "--out", str(tmp_path / "e.tif"))
    assert "only a scene's embeddings are a raster" in message
    out = ["--out", str(tmp_path / "e.parquet")]
    message = refused(*words, *place, *out, "--half", "--dtype", "int8")
    assert "give one of them" in message
    code, printed, _ = run(
        *words, *place, "--per", "patch", "--dtype", "int8", "--out", str(tmp_path / "e.tif")
    )
    assert code == 0
    assert printed == f"{tmp_path / 'e.tif'}: 80 vectors\n"


def test_details_are_json(make_model, scene, tmp_path):
    embed_scene(make_model().eval(), scene, tmp_path / "e.parquet")
    metadata = pq.ParquetFile(tmp_path / "e.parquet").metadata.metadata
    assert json.loads(metadata[b"multimae_eo"])["name"] == "made-up"
    assert Path(tmp_path / "e.parquet").stat().st_size
