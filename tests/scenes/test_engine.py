"""Scenes: tiled equals whole, weights sum to one, nodata stays nodata, exact grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.catalog import make_modality
from multimae_eo.class_colors import class_colors
from multimae_eo.errors import ConfigError, ContractError, DataError, FormatError
from multimae_eo.geo import Window
from multimae_eo.modality import ModalitySet, Task
from multimae_eo.network.config import DecoderConfig, EncoderConfig, InputConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.scenes.blend import BlendedRows, WindowBlender
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.scenes.predict import predict_scene
from multimae_eo.scenes.reconstruct import reconstruct_scene
from multimae_eo.scenes.scene_inputs import open_for
from multimae_eo.scenes.tiling import make_tiling
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.statistics import Statistics

rasterio = pytest.importorskip("rasterio")

from tests.support.paths import DATA, ROOT  # noqa: E402
from tests.support.scene_files import CRS, Fake, grid, optical_scene, write  # noqa: E402

ABERYSTWYTH = DATA / "scene_aberystwyth"


def blended(image: np.ndarray, *, chip: int, overlap: float, function, ratio: int = 1):
    """An image through windows, block by block; ``ratio``: of what the function gives."""
    height, width = image.shape
    sizes, given = {"x": chip, "y": chip // ratio}, {"x": 1}
    tiling = make_tiling(grid(height, width), sizes, given, overlap=overlap)
    rows: list[BlendedRows] = []
    for block in tiling.blocks:
        blender = WindowBlender(tiling, block, {"y": ratio}, rows.append)
        for tile in tiling.tiles(block):
            for w in tile.windows:
                piece = np.full((w.height, w.width), np.nan, np.float32)
                part = image[w.row : w.row + w.height, w.col : w.col + w.width]
                piece[: part.shape[0], : part.shape[1]] = part
                if np.isfinite(piece).any():
                    blender.add(w, {"y": function(piece)[None]}, np.isfinite(piece), tile.floor)
        blender.finish()
    values = np.concatenate([r.values["y"] for r in rows if "y" in r.values], axis=1)[0]
    observed = np.concatenate([r.observed for r in rows])
    assert [r.top for r in rows] == list(np.cumsum([0, *(len(r.observed) for r in rows)]))[:-1]
    return values[: -(-height // ratio), : -(-width // ratio)], observed[:height, :width]


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    chip=st.integers(4, 16),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.8]),
)
def test_tiled_equals_whole_for_any_size(height, width, chip, overlap):
    """A pointwise model sees no windows: the blend must equal the untiled result."""
    image = np.random.default_rng(height * 97 + width).random((height, width)).astype(np.float32)

    def pointwise(x):
        return np.nan_to_num(3 * x**2 - 1)

    values, observed = blended(image, chip=chip, overlap=overlap, function=pointwise)
    assert values.shape == (height, width)
    assert observed.all()
    assert np.abs(values - pointwise(image)).max() < 1e-5


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 60), width=st.integers(1, 60), ratio=st.sampled_from([2, 4]))
def test_coarser_outputs_lie_on_the_coarser_grid(height, width, ratio):
    image = np.random.default_rng(height + 61 * width).random((height, width)).astype(np.float32)
    up = [(0, -height % ratio), (0, -width % ratio)]

    def corner(x):
        return np.nan_to_num(x)[::ratio, ::ratio]

    values, _ = blended(image, chip=16, overlap=0.5, function=corner, ratio=ratio)
    assert np.abs(values - np.pad(image, up)[::ratio, ::ratio]).max() < 1e-5


@pytest.mark.parametrize(("height", "chip", "overlap"), [(200, 4, 0.5), (1, 8, 0.5), (97, 4, 0.0)])
def test_many_blocks_meet_without_a_seam(height, chip, overlap):
    image = np.random.default_rng(0).random((height, 7)).astype(np.float32)
    image[60:80] = np.nan
    tiling = make_tiling(grid(height, 7), {"x": chip}, {"x": 1}, overlap=overlap)
    assert (len(tiling.blocks) > 1) is (height > 90)
    values, observed = blended(image, chip=chip, overlap=overlap, function=np.nan_to_num)
    assert np.array_equal(observed, np.isfinite(image))
    assert np.abs((values - image)[observed]).max() < 1e-6


def test_a_constant_model_gives_a_constant_map_without_seams():
    values, _ = blended(
        np.zeros((70, 90), np.float32), chip=16, overlap=0.5,
        function=lambda x: np.full_like(x, 4.2),
    )  # fmt: skip
    assert np.abs(values - 4.2).max() < 1e-5


def test_blending_has_no_seams():
    """Each window is off by its own offset; the map must change no faster at borders."""
    rng = np.random.default_rng(0)

    def offset(x):
        return np.zeros_like(x) + rng.normal()

    values, _ = blended(np.zeros((128, 128), np.float32), chip=32, overlap=0.5, function=offset)
    steps = np.abs(np.diff(values[16:112, 16:112], axis=1)).max(axis=0)
    borders = np.zeros(95, bool)
    borders[[i for i in range(95) if (i + 17) % 16 == 0]] = True
    assert steps[borders].max() < 1.5 * steps[~borders].max()
    assert steps.max() < 0.5, "a hard border would step by the offsets' own size"


# The engine over rasters -------------------------------------------------------------------------


@pytest.fixture
def scene_folder(tmp_path: Path) -> Path:
    optical_scene(tmp_path, 45, 61, hole=np.s_[30:, :20])
    red = np.load(tmp_path / "red.npy")
    # Two tiles that overlap by a few columns.
    write(tmp_path / "a.tif", red[:, :, :40], ("B4", "B3", "B2"))
    shifted = rasterio.transform.from_origin(500000 + 350, 5800000, 10, 10)
    write(tmp_path / "b.tif", red[:, :, 35:], ("B4", "B3", "B2"), transform=shifted)
    whole = np.zeros((3, 45, 61), np.uint16)
    write(tmp_path / "grid.tif", whole + 1, ("B4", "B3", "B2"))
    return tmp_path


def test_a_scene_becomes_a_cog_on_its_exact_grid(scene_folder):
    out = scene_folder / "out"
    paths = reconstruct_scene(
        Fake(), Scene(scene_folder / "scene.yaml"), inputs=["rgb"], out=out,
        options=SceneOptions(samples=2, model_hash="0123456789abcdef"),
    )  # fmt: skip
    assert sorted(p.name for p in paths) == [
        "elevation.spread.tif", "elevation.tif", "landcover.spread.tif", "landcover.tif",
    ]  # fmt: skip
    red = np.load(scene_folder / "red.npy")
    with (
        rasterio.open(scene_folder / "s2.tif") as source,
        rasterio.open(out / "elevation.tif") as cog,
    ):
        assert cog.transform == source.transform
        assert cog.crs == source.crs
        assert cog.shape == source.shape
        assert cog.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert cog.dtypes == ("float32",)
        assert np.isnan(cog.nodata)
        values = cog.read(1)
        assert cog.tags()["unit"] == "m"
        assert cog.tags()["model_hash"] == "0123456789abcdef"
        assert cog.tags()["software"].startswith("multimae-eo ")
    observed = red[0] > 0
    assert np.isnan(values[~observed]).all()
    expected = red[0] * 1e-2
    assert np.abs(values[observed] - expected[observed]).max() < 1e-3
    with rasterio.open(out / "landcover.tif") as cog:
        classes = cog.read(1)
        assert cog.nodata == 0
        assert cog.colormap(1)[80] == (0, 100, 200, 255)
        assert cog.tags()["class_10"] == "tree cover"
    assert (classes[~observed] == 0).all()
    assert (classes[observed] == np.where(expected[observed] > 20, 10, 80)).all()
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*(p.name for p in paths), *(f"{p.name}.png" for p in paths), "landcover.tif.aux.xml"]
    ), "no temporary file is left"


def test_a_large_map_has_tiles_and_overviews(tmp_path):
    scene = Scene(optical_scene(tmp_path, 600, 700, hole=np.s_[100:300, 200:500]))
    model = Fake(64)
    (path,) = reconstruct_scene(
        model, scene, inputs=["rgb"], outputs=["elevation"], out=tmp_path / "out"
    )
    with rasterio.open(path) as cog:
        assert cog.profile["tiled"]
        assert cog.overviews(1) == [2]
        assert cog.profile["compress"] == "deflate"
        hole = np.isnan(cog.read(1))
    red = np.load(tmp_path / "red.npy")
    assert np.array_equal(hole, red[0] == 0)
    assert set(model.batches[:-1]) == {32}, "batches hold windows of several rows"
    windows = 18 * 21
    assert sum(model.batches) < windows, "windows without any data never reach the model"


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (5, 7), (16, 16), (33, 17)])
def test_predictions_over_scenes_of_any_size(tmp_path, shape):
    scene = Scene(optical_scene(tmp_path, *shape))
    paths = predict_scene(Fake(), scene, out=tmp_path / "map.tif", extras=["probabilities"])
    red = np.load(tmp_path / "red.npy")[0] * 1e-4
    with rasterio.open(paths[0]) as cog:
        assert cog.shape == shape
        assert cog.nodata == 255
        assert cog.colormap(1)[0][:3] == class_colors(Fake.class_names)[0]
        assert cog.tags()["class_1"] == "water"
        assert np.array_equal(cog.read(1), np.where(red > 0.2, 0, 1))
    with rasterio.open(paths[1]) as cog:
        assert cog.descriptions == ("land", "water")
        both = cog.read()
    assert np.abs(both.sum(axis=0) - 1).max() < 1e-5
    assert np.abs(both[0] - np.where(red > 0.2, 0.9, 0.1)).max() < 1e-5


def test_values_are_mapped_as_float_with_nan(tmp_path):
    class Value(Fake):
        class_names: tuple[str, ...] = ()

        def predict(self, batch, inputs=None):
            return self.red(batch) * 7.5

    scene = Scene(optical_scene(tmp_path, 20, 40, hole=np.s_[:5, :5]))
    (path,) = predict_scene(Value(), scene, out=tmp_path / "map.tif")
    with rasterio.open(path) as cog:
        values = cog.read(1)
        assert cog.dtypes == ("float32",)
        assert np.isnan(cog.nodata)
    red = np.load(tmp_path / "red.npy")[0] * 7.5e-4
    assert np.isnan(values[:5, :5]).all()
    red[:5, :5] = np.nan
    assert np.allclose(values, red, atol=1e-5, equal_nan=True)
    with pytest.raises(ConfigError, match="predicts values, not classes"):
        predict_scene(Value(), scene, out=tmp_path / "map.tif", extras=["probabilities"])
    with pytest.raises(ConfigError, match=r"end in \.tif"):
        predict_scene(Value(), scene, out=tmp_path / "map.png")

    class Wrong(Fake):
        def predict(self, batch, inputs=None):
            return torch.zeros(len(batch), 3, 16, 16)

    with pytest.raises(ContractError, match=r"expected \(B, 2, H, W\)"):
        predict_scene(Wrong(), scene, out=tmp_path / "map.tif")


def with_truth(folder: Path) -> Path:
    """The scene with an elevation that has a hole, and a land cover that is right in the left."""
    red = np.load(folder / "red.npy")[:1]
    relief = np.rint(red * 1e-2 - 3).astype(np.int16)
    relief[:, 5:9, 5:9] = -9999
    write(folder / "dem.tif", relief, ("elevation",), nodata=-9999)
    cover = np.where(red * 1e-2 > 20, 10, 80).astype(np.uint8)
    cover[:, :, 30:] = 10
    write(folder / "cover.tif", cover, ("cover",), nodata=0)
    text = (folder / "scene.yaml").read_text()
    path = folder / "truth.yaml"
    path.write_text(
        text + "  elevation: {path: dem.tif, sensor: dem, bands: [elevation]}\n"
        "  landcover: {path: cover.tif, legend: esa_worldcover}\n"
    )
    return path


def test_errors_are_told_where_the_truth_is_known(scene_folder):
    scene, out = Scene(with_truth(scene_folder)), scene_folder / "out"
    reconstruct_scene(Fake(), scene, inputs=["rgb"], out=out, error=True)
    red = np.load(scene_folder / "red.npy")[0]
    expected = red * 1e-2 - np.rint(red * 1e-2 - 3)
    expected[5:9, 5:9] = np.nan
    expected[red == 0] = np.nan
    with rasterio.open(out / "elevation.error.tif") as cog:
        assert np.allclose(cog.read(1), expected, atol=1e-3, equal_nan=True)
        assert cog.tags()["unit"] == "m"
    wrong = np.where(np.arange(61)[None] >= 30, red * 1e-2 <= 20, False).astype(np.float32)
    wrong[red == 0] = np.nan
    with rasterio.open(out / "landcover.error.tif") as cog:
        assert np.array_equal(cog.read(1), wrong, equal_nan=True)
    for stem in ("elevation", "elevation.error", "landcover", "landcover.error"):
        assert (out / f"{stem}.tif.png").stat().st_size > 1000


def test_tiles_in_any_order_equal_the_whole_raster(scene_folder):
    text = (scene_folder / "scene.yaml").read_text()
    base = "  base: {path: grid.tif, sensor: sentinel2, bands: [B8], channels: [1], level: l2a}\n"
    text = text.replace("  rgb:", base + "  rgb:").replace("path: s2.tif", "path: [b.tif, a.tif]")
    (scene_folder / "tiles.yaml").write_text(text)
    whole, tiles = Scene(scene_folder / "scene.yaml"), Scene(scene_folder / "tiles.yaml")
    for window in (
        Window(row=0, col=0, height=45, width=61),
        Window(row=25, col=10, height=16, width=40),
        Window(row=40, col=50, height=16, width=16),
    ):
        a, b = whole.read(window), tiles.read(window, ["rgb"])
        ok_a = a.valid.get("rgb", np.ones((1, 1, 1), bool))
        ok_b = b.valid.get("rgb", np.ones((1, 1, 1), bool))
        shape = a.pixels["rgb"].shape
        assert np.array_equal(np.broadcast_to(ok_a, shape), np.broadcast_to(ok_b, shape))
        assert np.array_equal(a.pixels["rgb"] * ok_a, b.pixels["rgb"] * ok_b)


def test_another_crs_and_resolution_is_warped_as_rasterio_does(scene_folder):
    from rasterio.warp import Resampling, reproject, transform_bounds

    left, bottom, right, top = transform_bounds(CRS, "EPSG:4326", 499900, 5799400, 500800, 5800100)
    relief = np.random.default_rng(0).integers(10, 500, (1, 40, 50)).astype(np.int16)
    transform = rasterio.transform.from_bounds(left, bottom, right, top, 50, 40)
    write(scene_folder / "dem.tif", relief, ("elevation",), crs="EPSG:4326", transform=transform,
          nodata=-9999)  # fmt: skip
    text = (scene_folder / "scene.yaml").read_text()
    (scene_folder / "dem.yaml").write_text(
        text + "  elevation: {path: dem.tif, sensor: dem, bands: [elevation]}\n"
    )
    scene = Scene(scene_folder / "dem.yaml")
    found = scene.read(Window(row=0, col=0, height=45, width=61), ["elevation"])
    expected = np.zeros((45, 61), np.int16)
    reproject(
        relief[0], expected, src_transform=transform, src_crs="EPSG:4326",
        dst_transform=scene.grid.transform, dst_crs=CRS, resampling=Resampling.bilinear,
    )  # fmt: skip
    assert "elevation" not in found.valid
    assert np.abs(found.pixels["elevation"][0].astype(int) - expected).max() <= 1


def test_scenes_that_lie_are_told(scene_folder):
    red = np.ones((3, 8, 8), np.uint16)
    text = (scene_folder / "scene.yaml").read_text()

    def opened(**profile: object) -> Scene:
        write(scene_folder / "bad.tif", red, ("B4", "B3", "B2"), **profile)
        (scene_folder / "bad.yaml").write_text(text.replace("s2.tif", "bad.tif"))
        return Scene(scene_folder / "bad.yaml")

    with pytest.raises(FormatError, match="has no CRS"):
        opened(crs=None)
    with pytest.raises(FormatError, match="rotated; warp it north-up"):
        opened(transform=rasterio.Affine(10, 3, 500000, 2, -10, 5800000))
    far = rasterio.transform.from_origin(700000, 5800000, 10, 10)
    write(scene_folder / "far.tif", red[:1], ("elevation",), transform=far)
    (scene_folder / "far.yaml").write_text(
        text + "  elevation: {path: far.tif, sensor: dem, bands: [elevation]}\n"
    )
    with pytest.raises(DataError, match="does not overlap"):
        Scene(scene_folder / "far.yaml")
    (scene_folder / "far.tif").write_bytes(b"II*\0nonsense")
    with pytest.raises(FormatError, match=r"far\.tif"):
        Scene(scene_folder / "far.yaml")
    with pytest.raises(ConfigError, match="did you mean 'rgb'"):
        reconstruct_scene(
            Fake(), Scene(scene_folder / "scene.yaml"), inputs=["rbg"], out=scene_folder / "o"
        )


def test_a_failure_leaves_no_half_written_map(scene_folder):
    class Broken(Fake):
        def reconstruct(self, *a, **k):
            raise RuntimeError("boom")

    out = scene_folder / "out"
    with pytest.raises(RuntimeError, match="boom"):
        reconstruct_scene(Broken(), Scene(scene_folder / "scene.yaml"), inputs=["rgb"], out=out)
    assert not out.exists(), "neither a map nor its folder"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlap": 1.0}, "overlap must be in"),
        ({"workers": 0}, "workers must be ≥ 1"),
        ({"precision": "16"}, "precision must be one of auto, 32-true, bf16-mixed"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        SceneOptions(**changes)


def test_a_batch_too_large_for_the_device_is_halved(scene_folder):
    class Small(Fake):
        def reconstruct(self, batch, *a, **k):
            if len(batch) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().reconstruct(batch, *a, **k)

    maps = []
    for model in (Small(), Fake()):
        out = scene_folder / type(model).__name__
        scene = Scene(scene_folder / "scene.yaml")
        (path,) = reconstruct_scene(model, scene, inputs=["rgb"], outputs=["elevation"], out=out)
        maps.append(path.read_bytes())
    assert maps[0] == maps[1]


# Several resolutions --------------------------------------------------------------------------


@pytest.fixture
def native(tmp_path) -> tuple[MultiMAE, Path]:
    """A model of 16 px of rgb and 8 px of swir on the same ground, and a scene of both."""
    modalities = ModalitySet(
        [
            make_modality("rgb", sensor_name="sentinel2", bands=("B4", "B3", "B2")),
            make_modality("swir", sensor_name="sentinel2", bands=("B11", "B12")),
        ]
    )
    path = optical_scene(tmp_path, 37, 51, hole=np.s_[:20, :30])
    coarse = np.random.default_rng(5).integers(500, 4000, (2, 19, 26)).astype(np.uint16)
    write(tmp_path / "swir.tif", coarse, ("B11", "B12"),
          transform=rasterio.transform.from_origin(500000, 5800000, 20, 20))  # fmt: skip
    path.write_text(
        path.read_text() + "  swir: {path: swir.tif, sensor: sentinel2, bands: [B11, B12], "
        "scale: 1.0e-4, level: l2a, ratio: 2}\n"
    )
    statistics = Statistics(modalities)
    scene = Scene(path, native=True)
    statistics.update(scene.read(Window(row=0, col=0, height=36, width=50)))
    config = ModelConfig(
        encoder=EncoderConfig(width=32, depth=1, heads=2),
        decoder=DecoderConfig(width=16, depth=1, heads=2),
        inputs={"rgb": InputConfig(size=16, patch=4), "swir": InputConfig(size=8, patch=4)},
    )
    torch.manual_seed(0)
    tasks = [Task(name=n, modality=n) for n in modalities]
    return MultiMAE(modalities, tasks, config, statistics).eval(), path


def test_modalities_of_several_resolutions_keep_their_own_grid(native, tmp_path):
    model, path = native
    scene = open_for(model, path)
    assert scene.ratios == {"rgb": 1, "swir": 2}
    paths = reconstruct_scene(
        model, scene, inputs=["rgb", "swir"], out=tmp_path / "out", error=True
    )
    assert len(paths) == 4
    with rasterio.open(tmp_path / "out/swir.tif") as cog:
        assert cog.shape == (19, 26)
        assert cog.transform.a == 20
        assert np.isfinite(cog.read()).all()
    with rasterio.open(tmp_path / "out/rgb.tif") as cog:
        assert cog.shape == (37, 51)
        assert np.isfinite(cog.read()).all(), "swir was observed where rgb was not"
    reconstruct_scene(model, scene, inputs=["rgb"], out=tmp_path / "alone")
    with rasterio.open(tmp_path / "alone/swir.tif") as cog:
        hole = np.isnan(cog.read(1))
    assert hole[:10, :15].all()
    assert not hole[10:].any()
    assert not hole[:, 15:].any()
    # Read on one grid, the scene is not what the model has learnt.
    with pytest.raises(ContractError, match="cover different ground"):
        reconstruct_scene(model, Scene(path), inputs=["rgb", "swir"], out=tmp_path / "o")
    with pytest.raises(ConfigError, match="choose a multiple of 2"):
        reconstruct_scene(
            model, scene, inputs=["rgb"], out=tmp_path / "o", options=SceneOptions(chip=15)
        )
    with pytest.raises(ContractError, match="name the finest modality first"):
        reconstruct_scene(model, Scene(path), inputs=["swir"], out=tmp_path / "o")


def test_one_window_equals_the_model_itself(native, tmp_path):
    """A scene of exactly one chip: the map is what the model says of the chip."""
    from multimae_eo.sample import collate

    model, _ = native
    folder = tmp_path / "one"
    folder.mkdir()
    scene = Scene(optical_scene(folder, 16, 16))
    reconstruct_scene(model, scene, inputs=["rgb"], outputs=["rgb"], out=folder / "out")
    sample = scene.read(Window(row=0, col=0, height=16, width=16))
    said = model.reconstruct(collate([sample], scene.modalities), ["rgb"], samples=0)
    with rasterio.open(folder / "out/rgb.tif") as cog:
        assert np.abs(cog.read() - said["rgb"].mean[0].numpy()).max() < 1e-5


def test_a_window_valid_only_between_the_pixels_a_model_takes_is_nodata(make_model, tmp_path):
    """Class maps are thinned: an odd valid pixel may be all there is, and the model sees none."""
    cover = np.zeros((1, 16, 40), np.uint8)
    cover[0, 4, 4] = 10  # every second pixel is taken, from 1
    cover[0, :, 30:] = 30
    write(tmp_path / "cover.tif", cover, ("cover",), nodata=0)
    path = tmp_path / "scene.yaml"
    path.write_text("modalities:\n  landcover: {path: cover.tif, legend: esa_worldcover}\n")
    (out,) = reconstruct_scene(
        make_model().eval(), Scene(path), inputs=["landcover"], outputs=["elevation"],
        out=tmp_path / "out", options=SceneOptions(overlap=0.0),
    )  # fmt: skip
    with rasterio.open(out) as cog:
        values = cog.read(1)
    assert np.isfinite(values[:, 30:]).all()


@pytest.mark.slow
@pytest.mark.skipif(not ABERYSTWYTH.is_dir(), reason="its data need rasterio")
def test_elevation_from_optical_over_a_real_scene(tmp_path):
    example = ROOT / "examples/scene_aberystwyth.yaml"
    scene = Scene(example)
    statistics = Statistics(scene.modalities.select(["optical", "elevation"]))
    whole = Window(row=200, col=200, height=256, width=256)
    statistics.update(scene.read(whole, ["optical", "elevation"]))
    config = ModelConfig(
        encoder=EncoderConfig(width=16, depth=1, heads=1),
        decoder=DecoderConfig(width=8, depth=1, heads=1),
        inputs={n: InputConfig(size=64, patch=16) for n in statistics.modalities},
    )
    torch.manual_seed(0)
    tasks = [Task(name="elevation", modality="elevation")]
    model = MultiMAE(statistics.modalities, tasks, config, statistics).eval()
    (path, error) = reconstruct_scene(
        model, scene, inputs=["optical"], out=tmp_path, error=True,
        options=SceneOptions(overlap=0.25),
    )  # fmt: skip
    with rasterio.open(path) as cog, rasterio.open(error) as missed:
        assert cog.transform == scene.grid.transform
        assert cog.crs.to_epsg() == 27700
        assert cog.shape == (scene.grid.height, scene.grid.width)
        values, wrong = cog.read(1), missed.read(1)
    known = scene.read(scene.grid.extent, ["optical", "elevation"])
    ok = known.valid["optical"].any(axis=0)
    assert np.array_equal(np.isfinite(values), ok)
    truth = known.pixels["elevation"][0]
    both = np.isfinite(wrong)
    assert np.abs((values - truth - wrong)[both]).max() < 1e-2
