"""The scene engine: tiled equals whole, weights sum to one, nodata stays nodata, exact grids."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.catalog import class_map, make_modality
from multimae_eo.errors import ConfigError, DataError, FormatError
from multimae_eo.geo import Window
from multimae_eo.infer.engine import SceneOptions, blended_rows, reconstruct_scene
from multimae_eo.modality import ModalitySet, Task
from multimae_eo.sources.scene import Grid, Scene

rasterio = pytest.importorskip("rasterio")

CRS = "EPSG:32630"


def grid(height: int, width: int) -> Grid:
    return Grid(
        crs=CRS,
        transform=rasterio.transform.from_origin(500000, 5800000, 10, 10),
        height=height,
        width=width,
    )


def blended(
    image: np.ndarray, *, chip: int, overlap: float, function
) -> tuple[np.ndarray, np.ndarray]:
    height, width = image.shape

    def predict(windows):
        for w in windows:
            cut = np.full((w.height, w.width), np.nan, np.float32)
            part = image[w.row : w.row + w.height, w.col : w.col + w.width]
            cut[: part.shape[0], : part.shape[1]] = part
            yield w, {"x": function(cut)[None]}, np.isfinite(cut)

    rows = list(
        blended_rows(predict, grid(height, width), chip=chip, options=SceneOptions(overlap=overlap))
    )
    values = np.concatenate([r.values["x"] for r in rows], axis=1)[0]
    return values, np.concatenate([r.observed for r in rows])


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


def test_a_constant_model_gives_a_constant_map_without_seams():
    values, _ = blended(
        np.zeros((70, 90), np.float32), chip=16, overlap=0.5, function=lambda x: x * 0 + 4.2
    )
    assert np.abs(np.nan_to_num(values, nan=4.2) - 4.2).max() < 1e-5


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


def test_memory_does_not_grow_with_the_scenes_height():
    def peak(height: int) -> int:
        def predict(windows):
            for w in windows:
                yield w, {"x": np.ones((1, 32, 32), np.float32)}, np.ones((32, 32), bool)

        tracemalloc.start()
        for _ in blended_rows(predict, grid(height, 256), chip=32, options=SceneOptions()):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(2000) < 1.2 * peak(200)


class Fake:
    """Says elevation = 100 × the first optical band, and class by threshold."""

    def __init__(self) -> None:
        self.modalities = ModalitySet(
            [
                make_modality("rgb", sensor_name="sentinel2", bands=("B4", "B3", "B2")),
                make_modality("elevation", sensor_name="dem", bands=("elevation",)),
                class_map("landcover", legend_name="esa_worldcover"),
            ]
        )
        self.tasks = (
            Task(name="elevation", modality="elevation"),
            Task(name="landcover", modality="landcover", loss="cross_entropy"),
        )
        self.config = SimpleNamespace(sizes=dict.fromkeys(self.modalities, 16))
        self.statistics = None

    def reconstruct(self, batch, inputs=None, *, outputs=None, draws=8, seed=0):
        red = batch.pixels["rgb"][:, :1].float() * batch.scale[:, 0, None, None, None]
        share = torch.zeros(len(batch), 11, *red.shape[-2:])
        share[:, 0] = (red[:, 0] > 0.2).float()
        share[:, 7] = 1 - share[:, 0]
        found = {
            "elevation": SimpleNamespace(mean=red * 100, spread=red * 0 + 1.5),
            "landcover": SimpleNamespace(mean=share, spread=red * 0),
        }
        return {n: found[n] for n in outputs or found}


def write(path: Path, pixels: np.ndarray, names: tuple[str, ...], **profile: object) -> None:
    settings_ = {"crs": CRS, "transform": grid(1, 1).transform, "nodata": 0, **profile}
    with rasterio.open(
        path, "w", driver="GTiff", dtype=pixels.dtype, count=len(pixels),
        height=pixels.shape[1], width=pixels.shape[2], **settings_,
    ) as file:  # fmt: skip
        file.write(pixels)
        file.descriptions = names


@pytest.fixture
def scene_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    red = rng.integers(500, 4000, (3, 45, 61)).astype(np.uint16)
    red[:, 30:, :20] = 0
    # Two tiles that overlap by a few columns.
    write(tmp_path / "a.tif", red[:, :, :40], ("B4", "B3", "B2"))
    shifted = rasterio.transform.from_origin(500000 + 350, 5800000, 10, 10)
    write(tmp_path / "b.tif", red[:, :, 35:], ("B4", "B3", "B2"), transform=shifted)
    whole = np.zeros((3, 45, 61), np.uint16)
    write(tmp_path / "grid.tif", whole + 1, ("B4", "B3", "B2"))
    np.save(tmp_path / "red.npy", red)
    (tmp_path / "scene.yaml").write_text(
        "name: made-up\nmodalities:\n"
        "  rgb: {path: s2.tif, sensor: sentinel2, bands: [B4, B3, B2], scale: 1.0e-4, level: l2a}\n"
    )
    write(tmp_path / "s2.tif", red, ("B4", "B3", "B2"))
    return tmp_path


def test_a_scene_becomes_a_cog_on_its_exact_grid(scene_folder):
    out = scene_folder / "out"
    paths = reconstruct_scene(
        Fake(), Scene(scene_folder / "scene.yaml"), inputs=["rgb"], out=out,
        options=SceneOptions(draws=2),
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
    for name in ("elevation", "landcover"):
        assert (out / f"{name}.tif.png").stat().st_size > 200
    assert not [p for p in out.iterdir() if p.name.startswith(".")], "no temporary file is left"


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
    with pytest.raises(FormatError, match="rotated or south-up"):
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
    assert list(out.iterdir()) == []
