"""Rasters on a server and in zip files: the same pixels, few requests, dropped connections."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import multimae_eo
from multimae_eo.catalog import make_modality
from multimae_eo.errors import FormatError, MultiMAEError
from multimae_eo.modality import ModalitySet
from multimae_eo.sources.raster import remote
from multimae_eo.sources.raster.remote import gdal_name, is_remote
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.sources.scene.single_raster import RasterRule

rasterio = pytest.importorskip("rasterio")
from rasterio.shutil import copy  # noqa: E402

from tests.support.range_server import Served, serve  # noqa: E402
from tests.support.scene_files import optical_scene, write  # noqa: E402

SET = ModalitySet([make_modality("rgb", sensor_name="sentinel2", bands=("B4", "B3", "B2"))])
RULE = RasterRule(level="l2a", scale=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of 1024 × 1024 px as a tiled COG, and in a zip file."""
    made = tmp_path_factory.mktemp("remote")
    optical_scene(made, 1024, 1024)
    (made / "s2.tif").rename(made / "plain.tif")
    copy(made / "plain.tif", made / "s2.tif", driver="COG", BLOCKSIZE=256)
    with zipfile.ZipFile(made / "s2.zip", "w") as archive:
        archive.write(made / "s2.tif", "in/s2.tif")
    return made


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(remote, "_DELAY_SECONDS", 0.01)
    monkeypatch.setitem(remote._SETTINGS, "GDAL_HTTP_RETRY_DELAY", "0.01")
    with serve(folder) as served:
        yield served


def pixels(scene: Scene) -> np.ndarray:
    return scene.read(scene.grid.extent).pixels["rgb"]


def test_names_survive_a_path() -> None:
    for text, name in (
        ("https://host/a.tif", "/vsicurl/https://host/a.tif"),
        ("s3://bucket/a.tif", "/vsis3/bucket/a.tif"),
        ("gs://bucket/a/b.tif", "/vsigs/bucket/a/b.tif"),
        ("/vsicurl/https://host/a.tif", "/vsicurl/https://host/a.tif"),
        ("/vsizip//vsicurl/https://host/a.zip/b.tif", "/vsizip//vsicurl/https://host/a.zip/b.tif"),
        ("https://host/a.tif?x=1&y=%2F", "/vsicurl/https://host/a.tif?x=1&y=%2F"),
    ):
        assert is_remote(text)
        assert gdal_name(text) == gdal_name(Path(text)) == name
    assert not any(is_remote(p) for p in ("a.tif", "/a/b.tif", "/vsistdin/", "/vsimem/a.tif"))


def test_a_scene_on_a_server_is_read_in_ranges(folder: Path, server: Served) -> None:
    from multimae_eo.geo import Window

    scene = Scene.of_raster(Path(f"{server.address}/s2.tif?token=1"), SET, RULE)
    sample = scene.read(Window(row=300, col=300, height=64, width=64))
    local = Scene.of_raster(folder / "s2.tif", SET, RULE)
    expected = local.read(Window(row=300, col=300, height=64, width=64))
    assert np.array_equal(sample.pixels["rgb"], expected.pixels["rgb"])
    assert {path for path, _ in server.requests} == {"/s2.tif?token=1"}, "nothing beside it"
    size = (folder / "s2.tif").stat().st_size
    (_, sized), *parts = server.requests
    assert sized == "HEAD"
    fetched = 0
    for _, part in parts:
        first, last = part.removeprefix("bytes=").split("-")
        fetched += int(last) - int(first) + 1
    assert fetched < size / 3, "a window, not the file"
    before = len(server.requests)
    scene.read(Window(row=310, col=310, height=64, width=64))
    assert len(server.requests) == before, "cached"


def test_scene_files_name_addresses_and_zip_files(
    folder: Path, server: Served, tmp_path: Path
) -> None:
    text = (folder / "scene.yaml").read_text()
    expected = pixels(Scene.of_raster(folder / "s2.tif", SET, RULE))
    named = (
        text.replace("s2.tif", f"'{server.address}/s2.tif'"),
        f"root: {server.address}\n{text}",
        text.replace("s2.tif", f"/vsizip/{folder}/s2.zip/in/s2.tif"),
        text.replace("s2.tif", f"/vsizip//vsicurl/{server.address}/s2.zip/in/s2.tif"),
    )
    for record in named:
        (tmp_path / "scene.yaml").write_text(record)
        assert np.array_equal(pixels(Scene(tmp_path / "scene.yaml")), expected), record


def test_a_map_of_a_remote_scene_is_that_of_the_file(
    make_model, folder: Path, server: Served, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    write(folder / "small.tif", rng.integers(1, 4000, (3, 48, 48)).astype("uint16"),
          ("B4", "B3", "B2"))  # fmt: skip
    maps: list[bytes] = []
    for name in (str(folder / "small.tif"), f"{server.address}/small.tif"):
        paths = multimae_eo.reconstruct(
            make_model().eval(), scene=name, out=tmp_path / str(len(maps)), inputs=["rgb"],
            outputs=["elevation"], level="l2a", device="cpu",
        )  # fmt: skip
        assert isinstance(paths, list)
        maps.append(paths[0].read_bytes())
    assert maps[0] == maps[1]


@pytest.mark.parametrize("spare", [0, 2])
def test_a_dropped_connection_is_retried(folder: Path, server: Served, spare: int) -> None:
    """At once, when the header is read; or later, while pixels are."""
    server.spare, server.drop = spare, 2
    address = f"{server.address}/s2.tif?spare={spare}"
    expected = pixels(Scene.of_raster(folder / "s2.tif", SET, RULE))
    assert np.array_equal(pixels(Scene.of_raster(Path(address), SET, RULE)), expected)
    assert server.drop == 0


def test_a_dead_server_is_reported_in_one_line(
    folder: Path, server: Served, refused, make_model, tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path / "model")
    words = ["embed", "--model", str(tmp_path / "model"), "--device", "cpu", "--inputs", "rgb",
             "--level", "l2a", "--out", str(tmp_path / "e.parquet"), "--scene"]  # fmt: skip
    message = refused(*words, f"{server.address}/none.tif")
    assert f"{server.address}/none.tif: cannot be read after 3 attempts" in message
    assert "check the address" in message
    server.drop = 10_000
    with pytest.raises(FormatError, match="cannot be read after 3 attempts") as raised:
        pixels(Scene.of_raster(Path(f"{server.address}/s2.tif?dead"), SET, RULE))
    assert "\n" not in str(raised.value)


def test_a_server_that_fails_while_pixels_are_read(folder: Path, server: Served) -> None:
    scene = Scene.of_raster(Path(f"{server.address}/s2.tif?late"), SET, RULE)
    server.drop = 10_000
    with pytest.raises(FormatError, match="cannot be read after 3 attempts"):
        pixels(scene)


def test_chips_on_a_server_cannot_be_listed(server: Served, tmp_path: Path) -> None:
    rgb = (
        "modalities:\n  rgb: {sensor: sentinel2, bands: [B4, B3, B2], level: l2a, scale: 1.0e-4}\n"
    )
    for named in (
        f"root: {server.address}\nchips: 'chips/{{id}}.tif'\n",
        f"chips: '{server.address}/{{id}}.tif'\n",
    ):
        (tmp_path / "d.yaml").write_text(named + rgb)
        with pytest.raises(MultiMAEError, match="cannot be listed; copy the chips, or use a scene"):
            multimae_eo.open_source(tmp_path / "d.yaml")
