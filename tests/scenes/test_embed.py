"""Embeddings: their vectors, their places, the file they are in, and finding them again."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from multimae_eo.errors import ConfigError, ContractError, DataError, FormatError, OutputError
from multimae_eo.geo import Geometry, Window
from multimae_eo.inference.search import search
from multimae_eo.sample import Sample, collate
from multimae_eo.scenes.embed import embed_scene, embed_source
from multimae_eo.scenes.geoparquet import EmbeddingWriter, on_the_globe
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.sources.base import Source
from multimae_eo.sources.scene.scene import Scene

rasterio = pytest.importorskip("rasterio")

from tests.support.scene_files import optical_scene  # noqa: E402


def corners(wkb: bytes) -> np.ndarray:
    """A polygon of one ring, read by hand."""
    order, kind, rings, points = struct.unpack("<BIII", wkb[:13])
    assert (order, kind, rings) == (1, 3, 1)
    return np.frombuffer(wkb[13:], "<f8").reshape(points, 2)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """3 × 4 chips of 16 px; the last row and column moved back; one chip without data."""
    return Scene(optical_scene(tmp_path, 40, 60, hole=np.s_[:16, :16]))


def test_a_scenes_chips_are_encoded_in_their_places(make_model, scene, tmp_path):
    from rasterio.warp import transform

    model, out = make_model().eval(), tmp_path / "emb.parquet"
    count = embed_scene(
        model, scene, out, inputs=["rgb"], options=SceneOptions(model_hash="abc", batch_size=4)
    )
    table = pq.read_table(out)
    assert count == table.num_rows == 11
    keys = table["key"].to_pylist()
    assert sorted(keys)[0] == "made-up@0,16"
    assert "made-up@24,44" in keys
    first, last = keys.index("made-up@0,16"), keys.index("made-up@24,44")
    assert set(table["model_hash"].to_pylist()) == {"abc"}
    assert set(table["time"].to_pylist()) == {"2021-05-27"}
    assert table["crs"][0].as_py() == "EPSG:32630"
    assert table["bounds"][first].as_py() == [500160.0, 5799840.0, 500320.0, 5800000.0]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 32)

    sample = scene.read(Window(row=24, col=44, height=16, width=16), ["rgb"])
    batch = collate([sample], scene.modalities)
    with torch.no_grad():
        expected = model.encode(batch, ["rgb"]).pooled[0].numpy()
    assert np.abs(np.array(table["vector"][last].as_py()) - expected).max() < 1e-5

    ring = corners(table["geometry"][first].as_py())
    left, bottom, right, top = table["bounds"][first].as_py()
    lon, lat = transform(
        "EPSG:32630", "EPSG:4326",
        [left, right, right, left, left], [bottom, bottom, top, top, bottom],
    )  # fmt: skip
    assert np.abs(ring - np.stack([lon, lat], axis=1)).max() < 1e-9
    box = table["bbox"][first].as_py()
    assert box == {
        "xmin": ring[:, 0].min(), "ymin": ring[:, 1].min(),
        "xmax": ring[:, 0].max(), "ymax": ring[:, 1].max(),
    }  # fmt: skip


def test_places_agree_with_pyproj():
    pyproj = pytest.importorskip("pyproj")
    places = [
        Geometry(crs="EPSG:32630", bounds=(500000.0, 5799000.0, 500640.0, 5799640.0)),
        Geometry(crs="EPSG:27700", bounds=(260000.0, 280000.0, 260640.0, 280640.0)),
        None,
        Geometry(crs="EPSG:4326", bounds=(-4.0, 52.0, -3.9, 52.1)),
    ]
    polygons, boxes = on_the_globe(places)
    for i, place in enumerate(places):
        if place is None:
            assert np.isnan(boxes[i]).all()
            continue
        change = pyproj.Transformer.from_crs(place.crs, "EPSG:4326", always_xy=True)
        left, bottom, right, top = place.bounds
        ring = np.array(
            [change.transform(*c) for c in ((left, bottom), (right, bottom), (right, top))]
        )
        # Datum shifts of two PROJ versions may differ by metres; UTM's must not.
        tolerance = 1e-4 if place.crs == "EPSG:27700" else 1e-9
        assert np.abs(polygons[i]["xy"][:3] - ring).max() < tolerance
        xy = polygons[i]["xy"]
        area = np.sum(xy[:-1, 0] * xy[1:, 1] - xy[1:, 0] * xy[:-1, 1])
        assert area > 0, "counter-clockwise"


def test_the_file_is_geoparquet(make_model, scene, tmp_path):
    out = tmp_path / "emb.parquet"
    embed_scene(make_model().eval(), scene, out, dtype="float16")
    file = pq.ParquetFile(out)
    geo = json.loads(file.metadata.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    column = geo["columns"][geo["primary_column"]]
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert "crs" not in column, "the default is longitude and latitude"
    assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    boxes = [b.as_py() for b in file.read()["bbox"]]
    assert column["bbox"] == [
        min(b["xmin"] for b in boxes), min(b["ymin"] for b in boxes),
        max(b["xmax"] for b in boxes), max(b["ymax"] for b in boxes),
    ]  # fmt: skip
    assert file.schema_arrow.field("vector").type == pa.list_(pa.float16(), 32)
    assert not list(tmp_path.glob(".*.part"))


def test_patches_tile_their_chips(make_model, scene, tmp_path):
    out = tmp_path / "emb.parquet"
    count = embed_scene(make_model().eval(), scene, out, per="patch")
    table = pq.read_table(out).to_pylist()
    # Chips that touch the hole (24 px high rows overlap it) are not all whole.
    assert count == len(table)
    first = [r for r in table if r["key"].startswith("made-up@0,16/")]
    first.sort(key=lambda r: [int(v) for v in r["key"].split("/")[1].split(",")])
    assert [r["key"].split("/")[1] for r in first[:5]] == ["0,0", "0,1", "0,2", "0,3", "1,0"]
    assert len(first) == 16
    assert first[0]["bounds"] == [500160.0, 5799960.0, 500200.0, 5800000.0]
    assert first[15]["bounds"] == [500280.0, 5799840.0, 500320.0, 5799880.0]
    mean = np.mean([r["vector"] for r in first], axis=0)
    whole = tmp_path / "chips.parquet"
    embed_scene(make_model().eval(), scene, whole)
    chips = {r["key"]: r["vector"] for r in pq.read_table(whole).to_pylist()}
    assert np.abs(mean - chips["made-up@0,16"]).max() < 1e-5


class Places(Source):
    """Chips with and without a place; one larger than the others, one empty."""

    name = "places"

    def __init__(self, modalities, make_sample, count: int = 6) -> None:
        self.modalities, self.make = modalities, make_sample
        self.keys = [f"chip-{i}" for i in range(count)]
        self.split_of = [""] * count

    def read(self, index, names=None):
        sample = self.make(index, names=("rgb",), size=32 if index == 2 else 16)
        place = Geometry(crs="EPSG:4326", bounds=(index, 50.0, index + 1.0, 51.0))
        empty = {"rgb": np.zeros((1, 16, 16), bool)} if index == 4 else {}
        return Sample(
            key=self.keys[index], pixels=sample.pixels, calibration=sample.calibration,
            valid=empty, geometry=None if index == 3 else place,
        )  # fmt: skip


def test_a_sources_chips_may_lack_place_and_data(make_model, modalities, make_sample, tmp_path):
    from multimae_eo.inference.extraction import encoder_features

    model, source = make_model().eval(), Places(modalities, make_sample)
    out = tmp_path / "emb.parquet"
    assert embed_source(model, source, out, inputs=["rgb"]) == 5
    table = pq.read_table(out).to_pylist()
    keys = ["chip-0", "chip-1", "chip-2", "chip-5", "chip-3"]
    assert [r["key"] for r in table] == keys, "what has no footprint is last"
    assert table[4]["geometry"] is None
    assert table[4]["bbox"] is None
    assert table[4]["bounds"] is None
    big = encoder_features(model, ["rgb"], "mean")(collate([source.read(2)], modalities))
    assert np.abs(big[0] - table[2]["vector"]).max() < 1e-6
    found = search(out, key="chip-3", k=2)
    assert found[0]["key"] == "chip-3"
    assert found[0]["lon"] is None


def test_search_finds_itself_first_and_agrees_with_a_plain_computation(make_model, scene, tmp_path):
    out = tmp_path / "emb.parquet"
    embed_scene(make_model().eval(), scene, out, per="patch")
    table = pq.read_table(out).to_pylist()
    vectors = np.array([r["vector"] for r in table])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in (0, 50, len(table) - 1):
        found = search(out, key=table[row]["key"], k=7)
        assert found[0]["key"] == table[row]["key"]
        assert abs(found[0]["similarity"] - 1) < 1e-5
        expected = np.sort(vectors @ vectors[row])[::-1][:7]
        assert np.abs([f["similarity"] for f in found] - expected).max() < 1e-5
        box = table[row]["bbox"]
        at = (box["xmin"] + box["xmax"]) / 2, (box["ymin"] + box["ymax"]) / 2
        assert search(out, at=at, k=1)[0]["key"] == table[row]["key"]


def test_search_over_many_row_groups_prefers_the_asked_among_equals(tmp_path):
    writer = EmbeddingWriter(tmp_path / "e.parquet", 2, model_hash="")
    for i in range(9000):
        place = Geometry(crs="EPSG:4326", bounds=(i * 0.01, 0.0, i * 0.01 + 0.01, 0.01))
        angle = 0.0 if i in (10, 5000, 8999) else 1 + i * 1e-4
        writer.add(f"k{i}", place, None, np.array([np.cos(angle), np.sin(angle)]))
    writer.finish()
    assert pq.ParquetFile(tmp_path / "e.parquet").num_row_groups == 3
    assert [f["key"] for f in search(tmp_path / "e.parquet", key="k8999", k=3)] == [
        "k8999", "k10", "k5000",
    ]  # fmt: skip
    assert search(tmp_path / "e.parquet", at=(50.005, 0.005), k=1)[0]["key"] == "k5000"


def test_search_over_several_files_of_one_model_only(run, refused, tmp_path):
    def write(name: str, digest: str, width: int = 2) -> Path:
        writer = EmbeddingWriter(tmp_path / name, width, model_hash=digest)
        for i in range(3):
            bounds = (float(i), 0.0, i + 1.0, 1.0)
            vector = np.eye(width)[0] + (0.1 * i + len(name) * 0.01) * np.eye(width)[1]
            writer.add(f"{name}@{i}", Geometry(crs="EPSG:4326", bounds=bounds), None, vector)
        return writer.finish()

    a, bb, other = write("a", "0123"), write("bb", "0123"), write("other", "4567")
    unnamed, wide = write("unnamed", ""), write("wide", "", width=3)
    matches = search([a, bb], key="bb@1", k=6)
    assert [m["key"] for m in matches[:2]] == ["bb@1", "a@1"]
    assert {m["file"] for m in matches} == {str(a), str(bb)}
    assert "file" not in search(a, key="a@0")[0]
    assert len(search([a, unnamed], key="a@0", k=9)) == 6, "no hash is recorded: taken for the same"

    both = tmp_path / "both.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(a), pq.read_table(other)]), both)
    for paths, words in (
        ([a, bb, other], rf"{a} and {other}: embeddings of two models \(model_hash 0123 and 4567"),
        ([both], rf"{both}: embeddings of two models \(model_hash 0123 and 4567"),
        ([a, wide], r"vectors of width 2 and 3"),
    ):
        with pytest.raises(ContractError, match=words):
            search(paths, key="a@0")
    with pytest.raises(ConfigError, match="no file of embeddings"):
        search([], key="a@0")
    code, printed, _ = run("search", "--embeddings", f"{a},{bb}", "--key", "bb@1", "--k", "2")
    assert code == 0
    assert str(bb) in printed.splitlines()[0]
    message = refused("search", "--embeddings", f"{a},{other}", "--at=0.5,0.5")
    assert str(a) in message
    assert str(other) in message


def test_what_cannot_be_is_told(make_model, scene, tmp_path):
    out = tmp_path / "emb.parquet"
    model = make_model().eval()
    with pytest.raises(ConfigError, match="per must be chip or patch"):
        embed_scene(model, scene, out, per="pixel")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean 'rgb'"):
        embed_scene(model, scene, out, inputs=["rbg"])
    empty = tmp_path / "empty"
    empty.mkdir()
    hollow = Scene(optical_scene(empty, 20, 20, hole=np.s_[:, :]))
    with pytest.raises(DataError, match="nothing is observed in the inputs rgb"):
        embed_scene(model, hollow, out)
    assert not out.exists()
    embed_scene(model, scene, out)
    with pytest.raises(ConfigError, match="either --at LON,LAT or --key"):
        search(out)
    with pytest.raises(DataError, match="did you mean 'made-up@0,16'"):
        search(out, key="made-up@0,17")
    with pytest.raises(DataError, match=r"no embedding covers 8\.0,50\.0.*the nearest is made-up@"):
        search(out, at=(8.0, 50.0))
    (tmp_path / "no.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(FormatError, match="cannot be read as GeoParquet"):
        search(tmp_path / "no.parquet", key="a")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(FormatError, match="column 'bbox' is missing"):
        search(tmp_path / "other.parquet", key="a")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another --out"):
        embed_scene(model, scene, tmp_path / "file" / "emb.parquet")


def test_the_command_line_embeds_and_searches(run, refused, make_model, scene, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    out = str(tmp_path / "emb.parquet")
    model = ["--model", str(tmp_path / "model"), "--device", "cpu"]
    code, said, _ = run("embed", *model, "--scene", str(scene.path), "--out", out)
    assert code == 0
    assert said == f"{out}: 11 vectors\n"
    from multimae_eo.model_folder.folder import model_hash

    assert pq.read_table(out)["model_hash"][0].as_py() == model_hash(tmp_path / "model")
    search_it = ["search", "--embeddings", out]
    code, said, _ = run(*search_it, "--key", "made-up@16,0", "--k", "3", "--json")
    found = json.loads(said)
    assert len(found) == 3
    assert found[0]["key"] == "made-up@16,0"
    at = f"--at={found[1]['lon']},{found[1]['lat']}"
    code, said, _ = run(*search_it, at, "--k", "2")
    assert said.splitlines()[0].split()[0] == found[1]["key"]
    assert "expected LON,LAT" in refused(*search_it, "--at", "here")
    assert "either --data or --scene" in refused("embed", *model, "--out", out)
    assert "--device abacus: cannot be used on this machine" in refused(
        "embed", "--model", str(tmp_path / "model"), "--device", "abacus", "--out", out,
        "--scene", str(scene.path),
    )  # fmt: skip


def test_geopandas_opens_it_in_the_right_place(make_model, scene, tmp_path):
    geopandas = pytest.importorskip("geopandas")
    out = tmp_path / "emb.parquet"
    embed_scene(make_model().eval(), scene, out)
    frame = geopandas.read_parquet(out)
    assert frame.crs.equals("EPSG:4326", ignore_axis_order=True), "longitude first"
    assert len(frame) == 11
    assert frame.geometry.is_valid.all()
    back = frame.geometry.to_crs(frame["crs"][0]).bounds.to_numpy()
    assert np.abs(back - np.array(frame["bounds"].tolist())).max() < 0.01, "metres"


def in_reading_order(key: str) -> list[int]:
    """Row and column of a chip, then of its patch."""
    return [int(v) for part in key.partition("@")[2].split("/") for v in part.split(",")]


def test_a_water_pixel_finds_water(made, run, tmp_path):
    out = tmp_path / "emb.parquet"
    scene = Scene(Path(made / "world/scene.yaml"))
    words = ["--model", made / "run/model", "--scene", made / "world/scene.yaml"]
    assert run("embed", *words, "--inputs", "rgb", "--per", "patch", "--out", str(out))[0] == 0
    cover = scene.read(scene.grid.extent, ["landcover"]).pixels["landcover"][0] == 80
    table = pq.read_table(out)
    shares = {}
    for key, (left, bottom, right, top) in zip(
        table["key"].to_pylist(), table["bounds"].to_pylist(), strict=True
    ):
        col, row = ~scene.grid.transform @ (left, top)
        end, last = ~scene.grid.transform @ (right, bottom)
        shares[key] = float(cover[round(row) : round(last), round(col) : round(end)].mean())
    water = min((k for k, s in shares.items() if s == 1), key=in_reading_order)
    box = table["bbox"][table["key"].to_pylist().index(water)].as_py()
    at = f"--at={(box['xmin'] + box['xmax']) / 2},{(box['ymin'] + box['ymax']) / 2}"
    code, said, _ = run("search", "--embeddings", str(out), at, "--k", "6", "--json")
    assert code == 0
    found = [row["key"] for row in json.loads(said)]
    assert found[0] == water
    assert np.mean([shares[k] for k in found[1:]]) > 0.8 > 2 * np.mean(list(shares.values()))
