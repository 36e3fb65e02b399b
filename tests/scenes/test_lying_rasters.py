"""Rasters that lie: each is handled as docs/scenes.md says, or told in one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multimae_eo.errors import DataError, FormatError
from multimae_eo.scenes.predict import predict_scene
from multimae_eo.sources.scene.scene import Scene

rasterio = pytest.importorskip("rasterio")

from tests.support.scene_files import Fake, optical_scene, write  # noqa: E402


@pytest.fixture
def scene_of(tmp_path: Path):
    """Writes ``second.tif`` over a 32 × 40 scene and opens both, or it alone as the grid."""
    text = optical_scene(tmp_path, 32, 40).read_text()

    def make(
        pixels: np.ndarray, *, alone: bool = False, more: str = "", **profile: object
    ) -> Scene:
        names = ("B4", "B3", "B2") if alone else ("elevation",)
        write(tmp_path / "second.tif", pixels, names, **profile)
        path = tmp_path / "lying.yaml"
        second = f"  elevation: {{path: second.tif, sensor: dem, bands: [elevation]{more}}}\n"
        path.write_text(text.replace("s2.tif", "second.tif") if alone else text + second)
        return Scene(path)

    return make


def relief(height: int = 32, width: int = 40) -> np.ndarray:
    return np.arange(1, height * width + 1, dtype=np.int16).reshape(1, height, width)


def test_without_crs_or_rotated_or_elsewhere_is_one_error(scene_of):
    rotated = rasterio.Affine(10, 3, 500000, 2, -10, 5800000)
    for alone, pixels in ((False, relief()), (True, np.ones((3, 8, 8), np.uint16))):
        with pytest.raises(FormatError, match=r"second\.tif: has no CRS.*assign it"):
            scene_of(pixels, alone=alone, crs=None)
        with pytest.raises(FormatError, match=r"rotated.*warp it north-up"):
            scene_of(pixels, alone=alone, transform=rotated)
    far = rasterio.transform.from_origin(700000, 5800000, 10, 10)
    with pytest.raises(DataError, match="does not overlap the scene's grid at all"):
        scene_of(relief(), transform=far)


@pytest.mark.parametrize(("south_up", "mirrored"), [(True, False), (False, True), (True, True)])
def test_south_up_and_mirrored_are_turned_as_a_layer_and_as_the_grid(scene_of, south_up, mirrored):
    stored = (slice(None), slice(None, None, -1 if south_up else 1),
              slice(None, None, -1 if mirrored else 1))  # fmt: skip
    turned = rasterio.Affine(
        -10 if mirrored else 10, 0, 500000 + 400 * mirrored,
        0, 10 if south_up else -10, 5800000 - 320 * south_up,
    )  # fmt: skip
    scene = scene_of(relief()[stored], transform=turned)
    found = scene.read(scene.grid.extent, ["elevation"])
    assert np.array_equal(found.pixels["elevation"], relief())
    optical = np.concatenate([relief(), relief() + 1, relief() + 2]).astype(np.uint16)
    scene = scene_of(optical[stored], alone=True, transform=turned)
    assert scene.grid.transform == rasterio.Affine(10, 0, 500000, 0, -10, 5800000)
    (found,) = scene.read(scene.grid.extent).pixels.values()
    assert np.array_equal(found, optical)


@pytest.mark.parametrize("nodata", [None, float("nan"), -9999.0])
def test_nan_is_never_a_measurement(scene_of, nodata):
    """Declared or not; its neighbours keep their values."""
    pixels = relief().astype(np.float32)
    pixels[0, 5:9, 7:11] = np.nan
    scene = scene_of(pixels, nodata=nodata)
    found = scene.read(scene.grid.extent, ["elevation"])
    hole = np.isnan(pixels[0])
    assert np.array_equal(~found.valid["elevation"][0], hole)
    assert np.array_equal(found.pixels["elevation"][0][~hole], pixels[0][~hole])


def test_nodata_outside_the_number_type_marks_nothing(scene_of):
    scene = scene_of(relief(), nodata=None, more=", nodata: -99999")
    found = scene.read(scene.grid.extent, ["elevation"])
    assert "elevation" not in found.valid
    assert np.array_equal(found.pixels["elevation"], relief())


def test_a_truncated_tile_is_named_and_leaves_no_map(scene_of, tmp_path):
    noise = np.random.default_rng(0).integers(1, 4000, (3, 300, 300)).astype(np.uint16)
    scene = scene_of(noise, alone=True, compress="deflate", tiled=True, blockxsize=64,
                     blockysize=64)  # fmt: skip
    path = tmp_path / "second.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "out").mkdir()
    with pytest.raises(FormatError, match=r"second\.tif: cannot be read.*restore the file"):
        predict_scene(Fake(), scene, out=tmp_path / "out/map.tif")
    assert list((tmp_path / "out").iterdir()) == []


def antimeridian(folder: Path, spans: dict[str, tuple[float, float]]) -> Scene:
    """A UTM scene that 180° crosses, 20 km wide, and elevation in degrees: 200 + its own part."""
    from rasterio.transform import from_bounds

    left = rasterio.warp.transform("EPSG:4326", "EPSG:32660", [180.0], [-17.0])[0][0] - 10_000
    top = rasterio.warp.transform("EPSG:4326", "EPSG:32660", [180.0], [-17.0])[1][0]
    pixels = np.full((3, 20, 40), 1000, np.uint16)
    write(folder / "s2.tif", pixels, ("B4", "B3", "B2"), crs="EPSG:32660",
          transform=rasterio.transform.from_origin(left, top, 500, 500))  # fmt: skip
    for name, (west, east) in spans.items():
        width = max(8, round((east - west) * 20))
        value = np.full((1, 60, width), 200 if west < 0 else 100, np.int16)
        write(folder / name, value, ("elevation",), crs="EPSG:4326",
              transform=from_bounds(west, -18.5, east, -15.5, width, 60))  # fmt: skip
    path = folder / "scene.yaml"
    path.write_text(
        "name: fiji\nmodalities:\n"
        "  rgb: {path: s2.tif, sensor: sentinel2, bands: [B4, B3, B2], scale: 1.0e-4, level: l2a}\n"
        f"  elevation: {{path: [{', '.join(spans)}], sensor: dem, bands: [elevation]}}\n"
    )
    return Scene(path)


def test_an_area_that_the_antimeridian_crosses_takes_tiles_of_both_sides(tmp_path):
    scene = antimeridian(tmp_path, {"west.tif": (178.0, 180.0), "east.tif": (-180.0, -178.0)})
    found = scene.read(scene.grid.extent, ["elevation"])
    values = found.pixels["elevation"][0]
    assert "elevation" not in found.valid
    assert (values[:, :18] == 100).all()
    assert (values[:, 22:] == 200).all()


def test_degrees_beyond_180_are_nodata(tmp_path):
    scene = antimeridian(tmp_path, {"across.tif": (178.0, 182.0)})
    valid = scene.read(scene.grid.extent, ["elevation"]).valid["elevation"][0]
    assert valid[:, :18].all()
    assert not valid[:, 22:].any()


def test_a_map_of_the_whole_world_overlaps_every_scene(tmp_path):
    scene = antimeridian(tmp_path, {"world.tif": (-180.0, 180.0)})
    assert scene.read(scene.grid.extent, ["elevation"]).pixels["elevation"].max() == 200
