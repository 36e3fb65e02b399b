"""Scenes cut into chips: put together they are the warped scene; splits do not share ground."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.errors import ClassMapError, ConfigError, DataError, FormatError, SplitError
from multimae_eo.geo import Window
from multimae_eo.loading.open_source import open_source
from multimae_eo.sources.dataset.dataset_file import DatasetFileSource
from multimae_eo.sources.raster import reading as rasters
from multimae_eo.sources.raster.grid import Grid
from multimae_eo.sources.scene.chip_rule import ChipRule, SplitRule, split_by_blocks
from multimae_eo.sources.scene.chips import SceneChips, open_scene
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.store.writer import prepare
from tests.support.paths import DATA, ROOT

rasterio = pytest.importorskip("rasterio")

from rasterio.enums import Resampling  # noqa: E402
from rasterio.io import DatasetReader  # noqa: E402
from rasterio.vrt import WarpedVRT  # noqa: E402
from rasterio.warp import transform, transform_bounds  # noqa: E402

UTM = "EPSG:32630"
LEFT, TOP = 500000.0, 5800000.0
ABERYSTWYTH = DATA / "scene_aberystwyth"


def utm(col: float = 0, row: float = 0, gsd: float = 10) -> Affine:
    return Affine(gsd, 0, LEFT + 10 * col, 0, -gsd, TOP - 10 * row)


def write(path: Path, pixels: np.ndarray, names: tuple[str, ...] = (), **profile: object) -> None:
    given_ = {"crs": UTM, "transform": utm(), "nodata": 0, **profile}
    with rasterio.open(
        path, "w", driver="GTiff", dtype=pixels.dtype, count=len(pixels),
        height=pixels.shape[1], width=pixels.shape[2], **given_,
    ) as file:  # fmt: skip
        file.write(pixels)
        if names:
            file.descriptions = names


def degrees(height: int, width: int) -> Affine:
    """Pixels in EPSG:4326 that cover the made-up scene (70 × 90 px at 10 m) with a margin."""
    west, south, east, north = transform_bounds(
        UTM, "EPSG:4326", LEFT - 300, TOP - 1000, LEFT + 1200, TOP + 300
    )
    return rasterio.transform.from_bounds(west, south, east, north, width, height)


SCENE = """
name: made-up
time: 2021-05-27
modalities:
  rgb: {path: [a.tif, b.tif], sensor: sentinel2, bands: [B4, B3, B2], scale: 1.0e-4, level: l2a}
  elevation: {path: dem.tif, sensor: dem, bands: [elevation]}
  landcover: {path: classes.tif, legend: {1: a, 2: b, 3: c, 4: d}}
  swir: {path: swir.tif, sensor: sentinel2, bands: [B11, B12], scale: 1.0e-4, level: l2a, ratio: 2}
chips: {size: 16}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A scene of 70 × 90 px at 10 m: two tiles, a DEM and classes in degrees, SWIR at 20 m."""
    rng = np.random.default_rng(3)
    red = rng.integers(500, 4000, (3, 70, 90)).astype(np.uint16)
    red[:, 30:64, :34] = 0
    np.save(tmp_path / "red.npy", red)
    write(tmp_path / "a.tif", red[:, :, :50], ("B4", "B3", "B2"))
    write(tmp_path / "b.tif", red[:, :, 45:], ("B4", "B3", "B2"), transform=utm(45))
    relief = rng.integers(10, 500, (1, 60, 80)).astype(np.int16)
    write(tmp_path / "dem.tif", relief, crs="EPSG:4326", transform=degrees(60, 80), nodata=-9999)
    classes = rng.integers(1, 5, (1, 110, 130)).astype(np.uint8)
    write(tmp_path / "classes.tif", classes, crs="EPSG:4326", transform=degrees(110, 130))
    swir = rng.integers(1, 9000, (2, 35, 45)).astype(np.uint16)
    write(tmp_path / "swir.tif", swir, ("B11", "B12"), transform=utm(gsd=20))
    (tmp_path / "scene.yaml").write_text(SCENE)
    return tmp_path


def scene_file(folder: Path, **changes: object) -> Path:
    """The made-up scene with sections replaced."""
    record = yaml.safe_load(SCENE)
    for key, value in changes.items():
        if value is None:
            record.pop(key)
        elif isinstance(value, dict) and key == "modalities":
            record[key] |= value
        else:
            record[key] = value
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(record, sort_keys=False))
    return path


def together(source: SceneChips, name: str, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """All chips of a modality put back on its grid: pixels and validity (C, H, W).

    What chips hold beyond the grid must be invalid.
    """
    ratio = source._area.ratios[name]
    own = grid.coarser(ratio)
    pixels = ok = None
    for index, key in enumerate(source.keys):
        sample = source.read(index)
        if name not in sample.pixels:
            continue
        cut = sample.pixels[name]
        valid = np.broadcast_to(sample.valid.get(name, np.ones((1, 1, 1), bool)), cut.shape)
        if pixels is None:
            pixels = np.zeros((len(cut), own.height, own.width), cut.dtype)
            ok = np.zeros(pixels.shape, bool)
        row, col = int(key[1:6]) // ratio, int(key[7:12]) // ratio
        height, width = min(cut.shape[1], own.height - row), min(cut.shape[2], own.width - col)
        pixels[:, row : row + height, col : col + width] = cut[:, :height, :width]
        ok[:, row : row + height, col : col + width] = valid[:, :height, :width]
        assert not valid[:, height:].any()
        assert not valid[:, :, width:].any()
        assert not cut[~valid].any(), "no sentinel travels further than the reader"
    assert pixels is not None
    assert ok is not None
    return pixels, ok


def sources_of(file: DatasetReader, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Where in a file each pixel's centre lies: rows and columns, (H · W) each."""
    rows, cols = np.mgrid[0 : grid.height, 0 : grid.width] + 0.5
    xs = grid.transform.c + cols * grid.transform.a
    ys = grid.transform.f + rows * grid.transform.e
    x, y = map(np.asarray, transform(grid.crs, file.crs, xs.ravel(), ys.ravel()))
    inverse = ~file.transform
    return inverse.e * y + inverse.f, inverse.a * x + inverse.c


def nearest_by_hand(path: Path, grid: Grid) -> np.ndarray:
    """The source pixel under each pixel's centre, by coordinates alone (no warper)."""
    with rasterio.open(path) as file:
        source = file.read(1)
        row, col = (np.floor(v).astype(int) for v in sources_of(file, grid))
        inside = (row >= 0) & (row < file.height) & (col >= 0) & (col < file.width)
    found = np.zeros(len(row), source.dtype)
    found[inside] = source[row[inside], col[inside]]
    return found.reshape(grid.height, grid.width)


def bilinear_by_hand(path: Path, grid: Grid) -> np.ndarray:
    """The four source pixels around each pixel's centre, weighted by distance (no warper)."""
    with rasterio.open(path) as file:
        source = file.read(1).astype(float)
        row, col = (v - 0.5 for v in sources_of(file, grid))
    r, c = np.floor(row).astype(int), np.floor(col).astype(int)
    down, right = row - r, col - c
    upper = source[r, c] * (1 - right) + source[r, c + 1] * right
    lower = source[r + 1, c] * (1 - right) + source[r + 1, c + 1] * right
    return (upper * (1 - down) + lower * down).reshape(grid.height, grid.width)


def warped_whole(path: Path, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """A raster warped in one piece, bilinear: values and validity (H, W)."""
    with (
        rasterio.open(path) as file,
        WarpedVRT(
            file, crs=grid.crs, transform=grid.transform, height=grid.height, width=grid.width,
            resampling=Resampling.bilinear, tolerance=1e-6, add_alpha=True,
        ) as view,
    ):  # fmt: skip
        read = view.read()
    return read[0], read[1] > 0


def test_chips_put_together_are_the_scene(folder: Path) -> None:
    """Every modality, edges included, against NumPy or one warp of the whole."""
    source = open_source(folder / "scene.yaml")
    assert isinstance(source, SceneChips)
    grid = Scene(folder / "scene.yaml").grid
    assert (grid.height, grid.width, grid.transform) == (70, 90, utm()), "tiles are one grid"
    red = np.load(folder / "red.npy")
    pixels, ok = together(source, "rgb", grid)
    assert np.array_equal(pixels, red)
    assert np.array_equal(ok, np.broadcast_to(red[:1] > 0, red.shape))
    # A chip without any optical pixel is left out, and its other layers with it.
    kept = np.zeros((70, 90), bool)
    for key in source.keys:
        kept[int(key[1:6]) : int(key[1:6]) + 16, int(key[7:12]) : int(key[7:12]) + 16] = True
    pixels, ok = together(source, "landcover", grid)
    assert np.array_equal(pixels[0], nearest_by_hand(folder / "classes.tif", grid) * kept)
    assert np.array_equal(ok[0], kept)
    pixels, ok = together(source, "elevation", grid)
    values, seen = warped_whole(folder / "dem.tif", grid)
    assert np.array_equal(pixels[0], values * kept)
    assert np.array_equal(ok[0], seen & kept)
    assert np.abs(values - bilinear_by_hand(folder / "dem.tif", grid)).max() <= 0.51
    pixels, _ = together(source, "swir", grid)
    with rasterio.open(folder / "swir.tif") as file:
        assert np.array_equal(pixels, file.read() * kept[::2, ::2])


def test_a_coarser_modality_keeps_its_native_pixels(folder: Path) -> None:
    source = open_scene(folder / "scene.yaml")
    sample = source.read(0)
    assert {n: p.shape[-1] for n, p in sample.pixels.items()} == {
        "rgb": 16, "elevation": 16, "landcover": 16, "swir": 8,
    }  # fmt: skip
    # The scene engine has one grid; there the same file reads everything on it.
    assert Scene(folder / "scene.yaml").read(Window(row=0, col=0, height=16, width=16)).pixels[
        "swir"
    ].shape == (2, 16, 16)
    with pytest.raises(ConfigError, match=r"swir .ratio 2.; choose multiples of 2"):
        open_scene(scene_file(folder, chips={"size": 15}))
    with pytest.raises(ConfigError, match="ratio: expected"):
        open_scene(scene_file(folder, modalities={"swir": {"path": "swir.tif", "ratio": 0.5}}))


def test_a_chip_says_where_and_when_it_is(folder: Path) -> None:
    source = open_scene(folder / "scene.yaml")
    sample = source.read(source.index_of("r00016c00032"))
    assert sample.geometry is not None
    assert sample.geometry.crs == UTM
    assert sample.geometry.bounds == (LEFT + 320, TOP - 320, LEFT + 480, TOP - 160)
    assert sample.time == "2021-05-27"
    assert sample.calibration["rgb"].level == "l2a"
    assert sample.calibration["rgb"].scale == 1e-4
    assert set(source.read(0, ["swir"]).pixels) == {"swir"}


def test_empty_and_cloudy_chips_are_skipped_by_rule(folder: Path) -> None:
    red = np.load(folder / "red.npy")
    share = {
        (r, c): float((red[0, r : r + 16, c : c + 16] > 0).sum()) / 256
        for r in range(0, 70, 16)
        for c in range(0, 90, 16)
    }
    for least in (0.0, 0.3, 0.9):
        source = open_scene(scene_file(folder, chips={"size": 16, "min_valid": least}))
        wanted = [f"r{r:05d}c{c:05d}" for (r, c), s in share.items() if s > 0 and s >= least]
        assert source.keys == wanted
        assert source.skipped["empty"] == len(share) - len(wanted)
    clouds = np.zeros((1, 70, 90), np.uint8)
    clouds[:, :16, :8], clouds[:, :16, 16:19] = 9, 9  # half of one chip, 3/16 of the next
    write(folder / "clouds.tif", clouds, nodata=255)
    for most, skipped in ((0.1, {"r00000c00000", "r00000c00016"}), (0.2, {"r00000c00000"})):
        cloud = {"path": "clouds.tif", "classes": [8, 9], "max_fraction": most}
        source = open_scene(scene_file(folder, chips={"size": 16, "cloud": cloud}))
        assert not skipped & set(source.keys)
        assert source.skipped["cloudy"] == len(skipped)
        assert "clouds" not in source.modalities
    cloud = {"modality": "landcover", "classes": [1], "max_fraction": 0.26}
    source = open_scene(scene_file(folder, chips={"size": 16, "cloud": cloud}))
    assert 0 < source.skipped["cloudy"] < 30
    for index in range(len(source)):
        sample = source.read(index)
        ok = sample.valid.get("landcover", np.ones((1, 16, 16), bool))
        assert (sample.pixels["landcover"][ok] == 1).mean() <= 0.26


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(100, 300),
    width=st.integers(100, 300),
    size=st.integers(5, 20),
    stride=st.integers(3, 24),
    block=st.integers(1, 3),
)
def test_chips_of_different_splits_share_no_pixel(height, width, size, stride, block):
    rule = ChipRule(
        size=size, stride=stride, split=SplitRule(block=block, shares={"val": 0.2, "test": 0.2})
    )
    windows = list(rule.windows(height, width))
    seen = np.zeros((height + 30, width + 30), bool)
    owner = np.full(seen.shape, "", dtype="U5")
    for window, split in zip(windows, split_by_blocks(windows, rule, "x"), strict=True):
        seen[window.slices] = True
        if split is not None:
            assert np.isin(owner[window.slices], ["", split]).all()
            owner[window.slices] = split
    if stride <= size:
        assert seen[:height, :width].all(), "chips cover the whole grid"


def test_splits_are_repeatable_blocks_with_their_shares(folder: Path) -> None:
    chips = {"size": 8, "split": {"block": 2, "val": 0.2, "test": 0.2}}
    source = open_scene(scene_file(folder, chips=chips))
    assert set(source.splits) == {"train", "val", "test"}
    blocks: dict[tuple[int, int], set[str]] = {}
    for key, split in zip(source.keys, source.split_of, strict=True):
        blocks.setdefault((int(key[1:6]) // 16, int(key[7:12]) // 16), set()).add(split)
    assert all(len(s) == 1 for s in blocks.values())
    counts = {s: sum(s in found for found in blocks.values()) for s in source.splits}
    assert counts["val"] == counts["test"] == round(0.2 * len(blocks))
    assert open_scene(scene_file(folder, chips=chips)).split_of == source.split_of
    with pytest.raises(SplitError, match="make `block` smaller"):
        open_scene(scene_file(folder, chips=chips | {"split": {"block": 12, "val": 0.2}}))


def _read_all(source: SceneChips) -> list[bytes]:
    return [source.read(i).pixels["elevation"].tobytes() for i in range(4)]


def test_reads_agree_across_processes_and_in_any_order(folder: Path) -> None:
    source = open_scene(folder / "scene.yaml")
    backwards = [source.read(i).pixels["elevation"].tobytes() for i in (3, 2, 1, 0)][::-1]
    here = _read_all(source)
    assert here == backwards
    assert _read_all(pickle.loads(pickle.dumps(source))) == here
    # A fork inherits open rasters, and must not use them.
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_read_all, [source] * 4) == [here] * 4


def test_prepare_writes_the_chips(folder: Path) -> None:
    source = open_source(f"scene:{folder / 'scene.yaml'}")
    store = prepare(source, folder / "store")
    assert list(store.keys) == list(source.keys)
    for index in (0, 7, len(source) - 1):
        a, b = source.read(index), store.read(index)
        assert a.geometry == b.geometry
        assert a.time == b.time
        assert set(a.pixels) == set(b.pixels)
        for name, pixels in a.pixels.items():
            assert np.array_equal(pixels, b.pixels[name])
            assert (name in a.valid) == (name in b.valid)


def test_the_command_line_prepares_a_scene(folder: Path, capsys: pytest.CaptureFixture) -> None:
    from multimae_eo.cli import main

    arguments = ["prepare", str(folder / "scene.yaml"), "--out", str(folder / "store")]
    assert main(arguments) == 0
    assert "26 chips" in capsys.readouterr().out, "four of thirty are empty"
    (folder / "dem.tif").unlink()
    assert main([*arguments[:-1], str(folder / "other")]) == 1
    said = capsys.readouterr().err
    assert "dem.tif: no such file" in said
    assert len(said.splitlines()) == 1


def test_without_rasterio_the_remedy_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasters, "_rasterio", rasters._rasterio.__wrapped__)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ConfigError, match=r"pip install 'multimae-eo\[geo\]'"):
        Scene(folder / "scene.yaml")


def test_grids_cover_and_coarsen() -> None:
    grid = Grid(crs=UTM, transform=utm(), height=7, width=5)
    assert grid.footprint(grid.extent).bounds == (LEFT, TOP - 70, LEFT + 50, TOP)
    coarse = grid.coarser(2)
    assert (coarse.height, coarse.width) == (4, 3), "the last pixels reach over the edge"
    assert coarse.transform == utm(gsd=20)
    # Tiles up and to the left extend it by whole pixels of its own.
    more = grid.covering([(LEFT - 15, TOP - 70, LEFT + 50, TOP + 1e-6)])
    assert (more.height, more.width, more.transform) == (7, 7, utm(col=-2))
    assert grid.window_of((LEFT + 21, TOP - 29, LEFT + 29, TOP - 21), margin=0) == Window(
        row=2, col=2, height=1, width=1
    )
    assert grid.window_of((LEFT + 60, TOP - 70, LEFT + 90, TOP), margin=0) is None


def test_what_a_yaml_file_is_is_seen_from_its_keys(folder: Path) -> None:
    chip = np.ones((3, 8, 8), np.uint16)
    (folder / "chips").mkdir()
    write(folder / "chips/one.tif", chip, ("B4", "B3", "B2"))
    (folder / "data.yaml").write_text(
        "modalities:\n  rgb: {path: 'chips/{id}.tif', sensor: sentinel2, bands: [B4, B3, B2], "
        "level: l2a}\n"
    )
    assert isinstance(open_source(folder / "data.yaml"), DatasetFileSource)
    with pytest.raises(ConfigError, match="needs a section `chips:"):
        open_source(scene_file(folder, chips=None))


def test_mistakes_are_told_in_one_line(folder: Path) -> None:
    def told(error: type[Exception], match: str, **changes: object) -> None:
        with pytest.raises(error, match=match) as caught:
            open_scene(scene_file(folder, **changes))
        assert "\n" not in str(caught.value)

    told(ConfigError, "did you mean 'stride'", chips={"size": 8, "strid": 4})
    told(ConfigError, "size: expected a number", chips={"stride": 4})
    told(ConfigError, "did you mean 'rgb'", chips={"size": 8, "min_valid": {"rbg": 0.5}})
    told(ConfigError, "a fraction from 0 to 1", chips={"size": 8, "min_valid": 20})
    told(ConfigError, "no class map", chips={"size": 8, "cloud": {"modality": "rgb"}})
    told(ConfigError, "leave some blocks", chips={"size": 8, "split": {"block": 2, "val": 1.0}})
    told(
        DataError, "no chip is left .30 empty", chips={"size": 16, "min_valid": {"rgb": 1.0,
        "elevation": 1.0}}, modalities={"elevation": {"path": "dem.tif", "sensor": "dem",
        "bands": ["elevation"], "nodata": list(range(10, 500))}},
    )  # fmt: skip
    landcover = {"path": "classes.tif", "legend": {1: "a", 2: "b", 3: "c"}}
    source = open_scene(scene_file(folder, modalities={"landcover": landcover}))
    with pytest.raises(ClassMapError, match="class id 4 is not in the class map"):
        source.read(0)
    told(ConfigError, "unknown key 'exclude'", modalities={"rgb": {"path": "a.tif", "exclude": []}})
    told(FormatError, "no such file", modalities={"elevation": {"path": "x.tif", "band": "dem"}})
    with rasterio.open(folder / "dem.tif", "r+") as file:
        file.scales = (0.1,)
    assert open_scene(scene_file(folder)).read(0).calibration["elevation"].scale == 0.1
    elevation = {"path": "dem.tif", "sensor": "dem", "bands": ["elevation"], "scale": 0.5}
    told(DataError, "declares scale 0.5, the file's tag is 0.1", modalities={
        "elevation": elevation})  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not ABERYSTWYTH.is_dir(), reason="its data need rasterio")
def test_aberystwyth_is_one_store_equal_to_a_direct_warp(tmp_path: Path) -> None:
    """Sixteen tiles, both elevation models and the class map; right and bottom edges included."""
    example = yaml.safe_load((ROOT / "examples/scene_aberystwyth.yaml").read_text())
    example["root"] = str(ABERYSTWYTH)
    example["chips"]["min_valid"] = 0.0
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(example, sort_keys=False))
    source = open_scene(tmp_path / "scene.yaml")
    assert len(source) == 15 * 15
    grid = Scene(tmp_path / "scene.yaml").grid
    assert (grid.height, grid.width) == (947, 930)

    from rasterio.merge import merge

    whole = grid.footprint(grid.extent).bounds
    tiles = sorted(ABERYSTWYTH.glob("sen2_20210527_aber_tile*.tif"))
    mosaic, _ = merge(tiles, bounds=whole, nodata=0, method="first")
    pixels, ok = together(source, "optical", grid)
    assert mosaic.shape == pixels.shape
    assert np.array_equal(pixels, mosaic)
    assert np.array_equal(ok, mosaic > 0)
    assert np.flatnonzero(~ok[0].any(axis=1)).tolist() == [250], "a row of the tiles is missing"
    pixels, ok = together(source, "landcover", grid)
    assert np.array_equal(
        pixels[0], nearest_by_hand(ABERYSTWYTH / "sen2_20210527_aber_cls.tif", grid)
    )
    for name, file in (("elevation", "AberSRTM_4326.tif"), ("elevation_local", "SRTM_aber.tif")):
        pixels, ok = together(source, name, grid)
        values, seen = warped_whole(ABERYSTWYTH / file, grid)
        assert np.array_equal(ok[0], seen)
        assert np.array_equal(pixels[0], np.where(seen, values, 0))
    store = prepare(source, tmp_path / "store")
    assert len(store) == 225
    assert set(store.modalities) == {"optical", "elevation", "elevation_local", "landcover"}
    sample = store.read(224)
    assert np.array_equal(sample.pixels["optical"], source.read(224).pixels["optical"])


def test_a_class_map_becomes_the_label_of_chips_in_some_columns(folder: Path) -> None:
    landcover = {"path": "classes.tif", "legend": {1: "a", 2: "b", 3: "c", 4: "d"}}
    plain = open_scene(scene_file(folder, modalities={"landcover": landcover}))
    width = Scene(scene_file(folder)).grid.width
    chips = {"size": 8, "label": "landcover", "columns": [0, 0.5]}
    source = open_scene(scene_file(folder, modalities={"landcover": landcover}, chips=chips))
    assert "landcover" not in source.modalities
    assert source.class_names == ("a", "b", "c", "d")
    area = plain._area
    for index in range(len(source)):
        sample = source.read(index)
        geometry = sample.geometry
        assert geometry is not None
        assert geometry.bounds[2] <= area.grid.footprint(area.grid.extent).bounds[2]
        col = int(source.keys[index].split("c")[1])
        row = int(source.keys[index][1:].split("c")[0])
        assert col + 8 <= width / 2
        known = area.read(Window(row=row, col=col, height=8, width=8), ["landcover"])
        ids, ok = known.pixels["landcover"][0], known.valid.get("landcover")
        expected = np.where(True if ok is None else ok[0], ids.astype(np.int64) - 1, -1)
        assert np.array_equal(sample.label, expected)
        assert "landcover" not in sample.pixels
    assert len(source) > 1
    for bad in ({"label": "rgb"}, {"columns": [0.5, 0.5]}, {"columns": 0.5}):
        path = scene_file(folder, modalities={"landcover": landcover}, chips={"size": 8, **bad})
        with pytest.raises(ConfigError, match=f"{next(iter(bad))}: "):
            open_scene(path)
