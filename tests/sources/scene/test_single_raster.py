"""A single raster as SCENE: what a scene file says, it must say itself or be told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multimae_eo.errors import BandError, ConfigError, FormatError
from multimae_eo.geo import Window
from multimae_eo.network.config import HeadConfig, InputConfig
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import Target
from multimae_eo.scenes.scene_inputs import open_for
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.sources.scene.single_raster import RasterRule

rasterio = pytest.importorskip("rasterio")

from tests.support.scene_files import Fake, optical_scene, write  # noqa: E402

L2A = RasterRule(level="l2a", scale=1e-4)


@pytest.fixture
def raster(tmp_path):
    """Three bands and one that the model does not know, as stored by another order."""
    optical_scene(tmp_path, 40, 61, hole=np.s_[:9, :9])
    red = np.load(tmp_path / "red.npy")
    write(tmp_path / "all.tif", np.concatenate([red[:2], red[:1] // 2, red[2:]]),
          ("red", "green", "B8", "blue"))  # fmt: skip
    return tmp_path / "all.tif"


def test_it_reads_what_the_scene_file_says(raster, tmp_path):
    told, own = Scene(tmp_path / "scene.yaml"), open_for(Fake(), raster, inputs=["rgb"], rule=L2A)
    assert (own.grid, own.name) == (told.grid, "all")
    assert own.modalities.names == ("rgb",)
    for window in (told.grid.extent, Window(row=30, col=50, height=16, width=16)):
        a, b = own.read(window), told.read(window)
        np.testing.assert_array_equal(a.pixels["rgb"], b.pixels["rgb"])
        np.testing.assert_array_equal(a.valid["rgb"], b.valid["rgb"])
        assert a.calibration == b.calibration
    assert own.stamp() == open_for(Fake(), raster, inputs=["rgb"], rule=L2A).stamp()
    assert own.stamp() != open_for(Fake(), raster, inputs=["rgb"], rule=RasterRule(
        level="l1c", scale=1e-4)).stamp()  # fmt: skip


def test_the_command_line_maps_it_as_it_maps_the_scene_file(make_model, run, raster, tmp_path):
    torch.manual_seed(1)
    target = Target(kind="map", classes=("forest", "grass", "water"))
    predictor = Predictor(make_model(), target, HeadConfig(name="linear", width=16)).eval()
    torch.nn.init.normal_(predictor.head.project.weight)
    predictor.save_pretrained(tmp_path / "model")
    made = []
    for scene, more in ((tmp_path / "scene.yaml", ()),
                        (raster, ("--level", "l2a", "--scale", "1e-4"))):  # fmt: skip
        out = tmp_path / scene.stem / "map.tif"
        code, _, said = run(
            "predict", "--model", str(tmp_path / "model"), "--scene", str(scene), "--inputs",
            "rgb", "--out", str(out), "--device", "cpu", *more,
        )  # fmt: skip
        assert code == 0, said
        with rasterio.open(out) as file:
            made.append((file.read(), file.crs, file.transform))
            colors = [file.colormap(1)[i][:3] for i in range(3)]
    assert np.array_equal(made[0][0], made[1][0])
    assert made[0][1:] == made[1][1:]
    assert len(np.unique(made[0][0])) > 2
    assert [c.index(max(c)) for c in colors] == [1, 1, 2], "forest, grass: green; water: blue"


def test_several_inputs_of_one_sensor_and_coarser_ones(make_model, tmp_path):
    inputs = {
        "rgb": InputConfig(size=16, patch=4),
        "elevation": InputConfig(size=8, patch=4),
        "landcover": InputConfig(size=16, patch=2, stride=2),
    }
    pixels = np.random.default_rng(0).integers(1, 900, (4, 33, 32)).astype(np.uint16)
    pixels[0] = 100 + 10 * np.arange(32) + 4 * np.arange(33)[:, None]
    write(tmp_path / "both.tif", pixels, ("elevation", "B2", "B3", "B4"))
    scene = open_for(
        make_model(inputs=inputs), tmp_path / "both.tif", inputs=["rgb", "elevation"],
        rule=RasterRule(level="l2a"),
    )  # fmt: skip
    assert scene.ratios == {"rgb": 1, "elevation": 2}
    sample = scene.read(Window(row=0, col=0, height=16, width=16))
    np.testing.assert_array_equal(sample.pixels["rgb"], pixels[[3, 2, 1], :16, :16])
    blocks = pixels[0, :16, :16].reshape(8, 2, 8, 2).mean(axis=(1, 3))
    assert np.abs(sample.pixels["elevation"][0] - blocks)[1:-1, 1:-1].max() <= 1


def test_scale_is_told_declared_or_the_models(make_model, tmp_path):
    pixels = np.full((3, 20, 20), 2000, np.uint16)
    write(tmp_path / "plain.tif", pixels, ("B4", "B3", "B2"))
    write(tmp_path / "declared.tif", pixels, ("B4", "B3", "B2"))
    with rasterio.open(tmp_path / "declared.tif", "r+") as file:
        file.scales, file.offsets = (1e-4,) * 3, (-0.1,) * 3
    write(tmp_path / "float.tif", pixels.astype(np.float32) * 1e-4, ("B4", "B3", "B2"))
    model = make_model()

    def reflectance(name, **told):
        scene = open_for(
            model, tmp_path / name, inputs=["rgb"], rule=RasterRule(level="l2a", **told)
        )
        sample = scene.read(Window(row=0, col=0, height=4, width=4))
        how = sample.calibration["rgb"]
        assert how.level == "l2a"
        return float(sample.pixels["rgb"][0, 0, 0]) * how.scale + how.offset

    assert reflectance("declared.tif") == pytest.approx(0.1)
    assert reflectance("plain.tif", scale=1e-4) == pytest.approx(0.2)
    assert reflectance("plain.tif") == pytest.approx(2000 * model.modalities["rgb"].scale)
    assert reflectance("float.tif", scale=1.0) == pytest.approx(0.2)


def test_what_it_does_not_say_is_asked_for(made, refused, raster, tmp_path):
    arguments = ["embed", "--model", made / "run/model", "--out", str(tmp_path / "e.parquet")]
    said = refused(*arguments, "--scene", str(raster), "--inputs", "rgb")
    assert "all.tif: rgb: --level l1c or l2a: which has it?" in said
    level = ["--level", "l2a"]
    said = refused(*arguments, "--scene", str(raster), "--inputs", "rgb,elevation", *level)
    assert "elevation: no band 'elevation'; the file has: red, green, B8, blue" in said
    assert "choose with --inputs, or write a scene file" in said
    said = refused(*arguments, "--scene", str(tmp_path / "scene.yaml"), *level)
    assert "level and scale of its rasters stand in the scene file" in said
    floats = np.ones((3, 20, 20), np.float32)
    write(tmp_path / "float.tif", floats, ("B4", "B3", "B2"))
    said = refused(*arguments, "--scene", str(tmp_path / "float.tif"), "--inputs", "rgb", *level)
    assert "are its float32 numbers reflectance (--scale 1), or" in said
    with pytest.raises(ConfigError, match="did you mean 'l2a'"):
        open_for(Fake(), raster, inputs=["rgb"], rule=RasterRule(level="l2b"))
    write(tmp_path / "unnamed.tif", floats, ("", "", ""))
    with pytest.raises(BandError, match="does not name its 3 bands"):
        open_for(Fake(), tmp_path / "unnamed.tif", inputs=["rgb"], rule=L2A)
    with pytest.raises(FormatError, match=r"gone\.tif"):
        open_for(Fake(), tmp_path / "gone.tif", inputs=["rgb"], rule=L2A)
    with pytest.raises(ConfigError, match="did you mean 'rgb'"):
        open_for(Fake(), raster, inputs=["rgp"], rule=L2A)
