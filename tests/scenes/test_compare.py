"""Change between two dates: from two files of embeddings, or from two scenes and a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import multimae_eo
from multimae_eo.errors import ConfigError, ContractError, DataError, FormatError
from multimae_eo.geo import Geometry
from multimae_eo.scenes.geoparquet import EmbeddingWriter
from multimae_eo.sources.scene.scene import Scene

rasterio = pytest.importorskip("rasterio")

from multimae_eo.scenes.embed import embed_scene  # noqa: E402
from multimae_eo.scenes.embedding_raster import embed_raster  # noqa: E402
from multimae_eo.scenes.job import SceneOptions  # noqa: E402
from tests.support.paths import DATA  # noqa: E402
from tests.support.scene_files import CRS, optical_scene, write  # noqa: E402

CHANGED = np.s_[16:24, 32:40]
"""Pixels that differ at the second date: four patches."""


@pytest.fixture(scope="module")
def dates(tmp_path_factory) -> tuple[Scene, Scene]:
    """One landscape of 32 × 48 px at two dates; the second has a chip without data."""
    folder = tmp_path_factory.mktemp("dates")
    scenes = []
    for name, time in (("before", "2021-05-27"), ("after", "2022-05-30")):
        (folder / name).mkdir()
        path = optical_scene(folder / name, 32, 48)
        path.write_text(path.read_text().replace("2021-05-27", time))
        if name == "after":
            pixels = np.load(folder / name / "red.npy")
            pixels[(slice(None), *CHANGED)] = 9000 - 2 * pixels[(slice(None), *CHANGED)]
            pixels[:, :16, 16:32] = 0
            write(folder / name / "s2.tif", pixels, ("B4", "B3", "B2"))
        scenes.append(Scene(path))
    return scenes[0], scenes[1]


def embedded(model, dates, folder: Path, suffix: str, **options) -> list[Path]:
    paths = [folder / f"before{suffix}", folder / f"after{suffix}"]
    write_embeddings = embed_raster if suffix == ".tif" else embed_scene
    for scene, path in zip(dates, paths, strict=True):
        hashed = SceneOptions(model_hash="abc", overlap=0.0)
        write_embeddings(model, scene, path, per="patch", options=hashed, **options)
    return paths


@pytest.mark.parametrize(("suffix", "dtype"), [(".tif", "int8"), (".parquet", "float32")])
def test_a_change_is_where_pixels_changed(make_model, dates, tmp_path, suffix, dtype):
    paths = embedded(make_model().eval(), dates, tmp_path, suffix, dtype=dtype)
    summary = multimae_eo.compare(*paths, out=tmp_path / "change")
    assert summary == json.loads((tmp_path / "change/summary.json").read_text())
    assert summary["compared"] == 96 - 16
    assert summary["unmatched"] == [16, 0]
    assert summary["times"] == ["2021-05-27", "2022-05-30"]
    assert summary["model_hash"] == "abc"
    with rasterio.open(tmp_path / "change/change.tif") as file:
        change = file.read(1)
        assert file.transform == dates[0].grid.coarser(4).transform
        assert file.tags()["before"] == "2021-05-27"
    assert np.isnan(change[:4, 4:8]).all()
    assert np.isfinite(change).sum() == 80
    elsewhere = np.ones(change.shape, bool)
    elsewhere[4:8, 8:12] = False  # the chip that changed: attention reaches its other patches
    noise = 1e-3 if dtype == "int8" else 1e-6
    assert np.nanmax(change[elsewhere]) < noise
    changed = change[4:6, 8:10]
    assert changed.min() > 10 * noise
    assert changed.min() > np.median(change[4:8, 8:12])
    table = pq.read_table(tmp_path / "change/change.parquet").to_pydict()
    assert table["distance"] == sorted(table["distance"], reverse=True)
    assert table["distance"][0] == pytest.approx(np.nanmax(change), abs=1e-6)
    assert table["percentile"][0] == pytest.approx(100 * 79 / 80)
    box, (row, col) = table["bbox"][0], np.unravel_index(np.nanargmax(change), change.shape)
    x, y = dates[0].grid.coarser(4).transform @ (col + 0.5, row + 0.5)
    from rasterio.warp import transform

    lon, lat = transform(CRS, "EPSG:4326", [x], [y])
    assert box["xmin"] < lon[0] < box["xmax"]
    assert box["ymin"] < lat[0] < box["ymax"]
    assert summary["largest"][0]["lon"] == pytest.approx(lon[0], abs=1e-4)
    assert (tmp_path / "change/change.tif.png").is_file()


@pytest.mark.slow
def test_two_scenes_and_a_model(make_model, dates, run, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    words = ["compare", *(str(s.path) for s in dates), "--model", str(tmp_path / "model")]
    code, printed, _ = run(*words, "--device", "cpu", "--out", str(tmp_path / "change"))
    assert code == 0
    summary = json.loads(printed)
    assert summary["compared"] == 80
    assert summary["model_hash"]
    names = {p.name for p in (tmp_path / "change").iterdir() if not p.name.startswith(".")}
    assert names == {
        "after.tif", "after.tif.png", "before.tif", "before.tif.png", "change.parquet",
        "change.tif", "change.tif.png", "summary.json",
        *(f"{n}.tif.{end}.json" for n in ("before", "after") for end in ("stac", "collection")),
    }  # fmt: skip
    again = multimae_eo.compare(
        tmp_path / "change/before.tif", tmp_path / "change/after.tif", out=tmp_path / "again"
    )
    assert again["cosine_distance"] == summary["cosine_distance"]


def moved(path: Path, to: Path, columns: float) -> Path:
    """A copy of a raster, shifted to the east."""
    shutil.copy(path, to)
    with rasterio.open(to, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        file.transform = file.transform @ type(file.transform).translation(columns, 0)
    return to


def test_grids_are_matched_or_refused(make_model, dates, tmp_path, caplog):
    model = make_model().eval()
    before, after = embedded(model, dates, tmp_path, ".tif")
    shifted = moved(after, tmp_path / "shifted.tif", 2)
    summary = multimae_eo.compare(before, shifted, out=tmp_path / "change")
    assert "8 × 10 pixels of both" in summary["notes"][0]
    assert "8 × 10 pixels of both" in caplog.text
    with rasterio.open(tmp_path / "change/change.tif") as file:
        assert file.shape == (8, 10)
        assert file.transform.c == dates[0].grid.transform.c + 2 * 40
    with pytest.raises(ContractError, match="not whole pixels; embed both scenes on one grid"):
        multimae_eo.compare(
            before, moved(after, tmp_path / "half.tif", 0.5), out=tmp_path / "other"
        )
    with pytest.raises(DataError, match="do not overlap"):
        multimae_eo.compare(before, moved(after, tmp_path / "far.tif", 99), out=tmp_path / "other")
    embed_raster(model, dates[0], tmp_path / "chips.tif", per="chip")
    with pytest.raises(ContractError, match=r"pixels of \(40\.0, 40\.0\).*\(160\.0, 160\.0\)"):
        multimae_eo.compare(before, tmp_path / "chips.tif", out=tmp_path / "other")
    with rasterio.open(shifted, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        file.crs = "EPSG:32631"
    with pytest.raises(ContractError, match=r"EPSG:32630.*EPSG:32631"):
        multimae_eo.compare(before, shifted, out=tmp_path / "other")
    assert not (tmp_path / "other/summary.json").exists()


def table(path: Path, keys, *, model_hash="abc", width=2, geometry=None) -> Path:
    writer = EmbeddingWriter(path, width, model_hash=model_hash)
    for key in keys:
        writer.add(key, geometry, None, np.arange(1.0, width + 1))
    writer.finish()
    return path


def test_what_cannot_be_compared_is_refused_in_one_line(make_model, dates, refused, tmp_path):
    a = table(tmp_path / "a.parquet", ["x", "y"])
    out = ["--out", str(tmp_path / "change")]

    def message(*words: object) -> str:
        return refused("compare", *map(str, words), *out)

    other = table(tmp_path / "b.parquet", ["x", "y"], model_hash="def")
    assert "two models (model_hash abc and def)" in message(a, other)
    wide = table(tmp_path / "w.parquet", ["x", "y"], width=3)
    assert "vectors of 2 dimensions" in message(a, wide)
    apart = table(tmp_path / "n.parquet", ["z"])
    assert "no embedding of one has the footprint or key" in message(a, apart)
    place = Geometry(crs=CRS, bounds=(0.0, 0.0, 1.0, 1.0))
    dated = table(tmp_path / "d.parquet", ["x", "y"], geometry=place)
    assert "several embeddings of one footprint" in message(a, dated)
    assert "--model" in message(dates[0].path, dates[1].path)
    (tmp_path / "junk.parquet").write_bytes(b"PAR1")
    assert "cannot be read as GeoParquet" in message(a, tmp_path / "junk.parquet")
    assert "one is a raster, the other a table" in message(a, dates[0].path.parent / "s2.tif")
    optical = dates[0].path.parent / "s2.tif"
    assert "is no raster of embeddings" in message(optical, optical)
    with pytest.raises(ConfigError, match="two scenes need a model"):
        multimae_eo.compare(*dates, out=tmp_path / "change")
    with pytest.raises(FormatError, match="No such file"):
        multimae_eo.compare(a, tmp_path / "missing.parquet", out=tmp_path / "change")


def test_chips_without_a_footprint_are_matched_by_key(tmp_path, caplog):
    a = table(tmp_path / "a.parquet", ["x", "y"], model_hash="")
    b = table(tmp_path / "b.parquet", ["y", "z"])
    summary = multimae_eo.compare(a, b, out=tmp_path / "change")
    assert summary["compared"] == 1
    assert summary["largest"] == [{"key": "y", "distance": 0.0, "lon": None, "lat": None}]
    assert summary["raster"] is None
    assert not (tmp_path / "change/change.tif").exists()
    for text in ("no model_hash is recorded", "1 embeddings of a.parquet", "no raster"):
        assert text in caplog.text


def test_moved_back_chips_make_no_grid(make_model, tmp_path):
    """The last chips of 40 × 52 px overlap the others: a table, no raster."""
    scene = Scene(optical_scene(tmp_path, 40, 52))
    embed_scene(make_model().eval(), scene, tmp_path / "a.parquet")
    summary = multimae_eo.compare(
        tmp_path / "a.parquet", tmp_path / "a.parquet", out=tmp_path / "change"
    )
    assert summary["compared"] == 12
    assert summary["cosine_distance"]["max"] == pytest.approx(0, abs=1e-9)
    assert summary["raster"] is None


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "hls_water").exists(), reason="its data need rasterio")
def test_water_that_came_or_went_is_a_change(make_model, tmp_path):
    """Two chips of one place (their elevation is equal) at two dates: a third of the labels differ.

    The chips have no georeferencing: they are given one.
    """
    labels = []
    for chip in ("111", "65"):
        with rasterio.open(DATA / f"hls_water/images/{chip}.tif") as file:
            pixels = file.read([4, 3, 2]).clip(1).astype("uint16")
        write(tmp_path / f"{chip}.tif", pixels, ("B4", "B3", "B2"))
        with rasterio.open(DATA / f"hls_water/labels/{chip}.png") as file:
            labels.append(file.read(1).reshape(32, 4, 32, 4))
    changed = (labels[0] != labels[1]).mean(axis=(1, 3)) > 0.5
    assert 0.2 < changed.mean() < 0.5
    multimae_eo.compare(
        tmp_path / "111.tif", tmp_path / "65.tif", model=make_model().eval(), inputs=["rgb"],
        level="l2a", scale=1e-4, device="cpu", out=tmp_path / "change",
    )  # fmt: skip
    with rasterio.open(tmp_path / "change/change.tif") as file:
        distance = file.read(1)
    ranks = distance.ravel().argsort().argsort().reshape(distance.shape) + 1
    above = ranks[changed].sum() - changed.sum() * (changed.sum() + 1) / 2
    auc = above / (changed.sum() * (~changed).sum())
    assert auc > 0.6, "random weights already separate them"
