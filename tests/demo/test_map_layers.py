"""Tiles and numbers of a rectangle against the scene's own pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")

from rasterio.warp import transform, transform_bounds  # noqa: E402

from multimae_eo.demo.map_layers import (  # noqa: E402
    HALF,
    MERCATOR,
    FileLayer,
    Frame,
    SceneLayer,
    draw,
    frame_over,
    scene_bounds,
    tile_frame,
)
from multimae_eo.demo.map_service import MapService  # noqa: E402
from multimae_eo.demo.zonal import _outline, rectangle_area, zonal_statistics  # noqa: E402
from multimae_eo.errors import ConfigError, DataError, FormatError  # noqa: E402
from multimae_eo.geo import Window  # noqa: E402


@pytest.fixture(scope="module")
def service(model, scene, tmp_path_factory) -> MapService:
    return MapService(model, scene, tmp_path_factory.mktemp("maps"))


def test_tiles_are_those_of_the_web():
    whole, child = tile_frame(0, 0, 0), tile_frame(3, 5, 2)
    assert whole.bounds == pytest.approx((-HALF, -HALF, HALF, HALF))
    assert child.bounds == pytest.approx((HALF / 4, HALF / 4, HALF / 2, HALF / 2))


def test_a_warped_layer_has_the_scenes_own_values(scene):
    """At the middle of every pixel of a frame, by hand: nearest for classes."""
    layer = SceneLayer(scene, scene.modalities["landcover"])
    frame = frame_over(scene_bounds(scene), 100)
    values = layer.warp(frame)[0]
    rows, cols = np.mgrid[: frame.height, : frame.width]
    xs = frame.west + (cols + 0.5) * frame.step
    ys = frame.north - (rows + 0.5) * frame.step
    easting, northing = transform(MERCATOR, scene.grid.crs, xs.ravel(), ys.ravel())
    col, row = ~scene.grid.transform @ (np.array(easting), np.array(northing))
    inside = (row >= 0) & (row < scene.grid.height) & (col >= 0) & (col < scene.grid.width)
    truth = scene.read(scene.grid.extent, ["landcover"]).pixels["landcover"][0]
    ids = np.array(scene.modalities["landcover"].class_ids)
    expected = truth[row[inside].astype(int), col[inside].astype(int)]
    found = values.ravel()[inside]
    seen = np.isfinite(found)
    assert seen.mean() > 0.98
    agree = ids[found[seen].astype(int)] == expected[seen]
    assert agree.mean() > 0.99, "GDAL's approximation may differ at an edge"
    assert not np.isfinite(values.ravel()[~inside]).mean() > 0.02


WORLD = (-2.0e7, -2.0e7, 2.0e7, 2.0e7)


def centres(grid) -> tuple[np.ndarray, np.ndarray]:
    """Web-Mercator coordinates of the pixels' centres, (height, width)."""
    rows, cols = np.mgrid[: grid.height, : grid.width]
    xs, ys = grid.transform @ (cols + 0.5, rows + 0.5)
    x, y = transform(grid.crs, MERCATOR, np.ravel(xs), np.ravel(ys))
    return np.reshape(x, rows.shape), np.reshape(y, rows.shape)


def rectangles(scene) -> list[tuple[float, float, float, float]]:
    west, south, east, north = scene_bounds(scene)
    w, h = east - west, north - south
    return [
        WORLD, (west, south, east, north),
        (west + 0.213 * w, south + 0.377 * h, east - 0.311 * w, north - 0.101 * h),
        (west - w, south - h, west + 0.5 * w, south + 0.25 * h),
        (west + 0.4 * w, south + 0.4 * h, west + 0.43 * w, south + 0.41 * h),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(5))
def test_areas_are_counted_to_the_pixel(scene, service, number):
    """Every pixel whose centre lies in the rectangle, by hand, and its area in the projection."""
    bounds = rectangles(scene)[number]
    key = f"s{scene.modalities.index('landcover')}"
    grid = service.layers[key].grid
    result = service.area(key, bounds)
    truth = scene.read(scene.grid.extent, ["landcover"]).pixels["landcover"][0]
    x, y = centres(grid)
    inside = (x > bounds[0]) & (x < bounds[2]) & (y > bounds[1]) & (y < bounds[3])
    hectares = abs(grid.transform.a * grid.transform.e) / 1e4
    assert truth.shape == inside.shape
    assert inside.any()
    assert not result["estimated"]
    assert result["pixels"] == inside.sum()
    assert result["hectares"] == pytest.approx(inside.sum() * hectares, rel=1e-12)
    names = {c.id: c.name for c in scene.modalities["landcover"].classes}
    ids, counts = np.unique(truth[inside], return_counts=True)
    expected = {names[int(i)]: int(n) for i, n in zip(ids, counts, strict=True)}
    assert {c["name"]: c["pixels"] for c in result["classes"]} == expected
    for c in result["classes"]:
        assert c["hectares"] == pytest.approx(c["pixels"] * hectares, rel=1e-12)
    assert sum(c["share"] for c in result["classes"]) == pytest.approx(1)
    assert 0 < result["share"] <= 1


def test_areas_of_a_map_are_rasterios_zonal_count(tmp_path, scene):
    from rasterio.mask import raster_geometry_mask

    grid, path = scene.grid, tmp_path / "map.tif"
    pixels = np.random.default_rng(0).integers(0, 4, (1, grid.height, grid.width)).astype(np.uint8)
    with rasterio.open(path, "w", driver="GTiff", width=grid.width, height=grid.height, count=1,
                       dtype="uint8", nodata=0, crs=grid.crs,
                       transform=grid.transform) as file:  # fmt: skip
        file.write(pixels)
        file.update_tags(class_1="water", class_2="land", class_3="ice")
    layer, bounds = FileLayer(path), rectangles(scene)[2]
    statistics = zonal_statistics(layer, bounds)
    ring = _outline(bounds, grid.crs)
    with rasterio.open(path) as file:
        outside, _, _ = raster_geometry_mask(file, [{"type": "Polygon", "coordinates": [ring]}])
    expected = np.bincount(pixels[0][~outside], minlength=4)[1:]
    assert statistics.counts.tolist() == expected.tolist()
    assert statistics.pixels == expected.sum()


@pytest.mark.parametrize("crs", ["EPSG:4326", MERCATOR, "EPSG:32632", "EPSG:2225"])
def test_areas_are_those_on_the_ground(tmp_path, crs):
    """Of degrees, Web Mercator, metres and feet, against the ellipsoid's."""
    rows = cols = 40
    left, bottom, right, top = transform_bounds("EPSG:4326", crs, 8.9, 40.0, 9.1, 40.2)
    if crs == "EPSG:2225":
        left, bottom, right, top = transform_bounds("EPSG:4326", crs, -122.1, 40.0, -121.9, 40.2)
    at = rasterio.transform.from_bounds(left, bottom, right, top, cols, rows)
    with rasterio.open(tmp_path / "m.tif", "w", driver="GTiff", width=cols, height=rows, count=1,
                       dtype="float32", crs=crs, transform=at) as file:  # fmt: skip
        file.write(np.ones((1, rows, cols), np.float32))
    layer = FileLayer(tmp_path / "m.tif")
    statistics = zonal_statistics(layer, WORLD)
    assert statistics.pixels == rows * cols
    # 0.2° × 0.2° at 40.1° N are 379.0 km² (Geod of PROJ, WGS 84); the projected boxes are larger.
    expected = rectangle_area(layer.bounds)
    assert expected == pytest.approx(379.0e6, rel=0.03)
    assert statistics.area == pytest.approx(expected, rel=0.03)
    if crs in ("EPSG:4326", MERCATOR):
        assert statistics.area == pytest.approx(379.0e6, rel=1e-3)


def test_of_very_many_pixels_a_coarse_copy_is_counted_and_called_an_estimate(
    scene, service, monkeypatch
):
    from multimae_eo.demo import zonal

    key = f"s{scene.modalities.index('landcover')}"
    exact = [service.area(key, b) for b in rectangles(scene)[1:3]]
    monkeypatch.setattr(zonal, "EXACT", 100)
    for before, bounds in zip(exact, rectangles(scene)[1:3], strict=True):
        result = service.area(key, bounds)
        assert result["estimated"]
        assert result["hectares"] == pytest.approx(before["hectares"], rel=0.05)


def test_numbers_of_a_rectangle_are_those_of_its_pixels(scene, service):
    window = Window(row=40, col=60, height=48, width=48)
    bounds = transform_bounds(scene.grid.crs, MERCATOR, *scene.grid.footprint(window).bounds)
    key = f"s{scene.modalities.index('elevation')}"
    (band,) = service.area(key, bounds)["bands"]
    sample = scene.read(window, ["elevation"])
    truth = sample.pixels["elevation"].astype(float)
    assert band["mean"] == pytest.approx(truth.mean(), abs=0.05 * truth.std() + 0.5)
    assert band["std"] == pytest.approx(truth.std(), rel=0.1)


def test_a_value_at_a_point(scene, service):
    row, col = 50, 70
    x, y = scene.grid.transform @ (col + 0.5, row + 0.5)
    (mx,), (my,) = transform(scene.grid.crs, MERCATOR, [x], [y])
    sample = scene.read(Window(row=row, col=col, height=1, width=1), ["landcover", "rgb"])
    name = {c.id: c.name for c in scene.modalities["landcover"].classes}
    result = service.values(f"s{scene.modalities.index('landcover')}", mx, my)
    assert result == [{"name": "class", "text": name[int(sample.pixels["landcover"][0, 0, 0])]}]
    bands = service.values("s0", mx, my)
    how = sample.calibration_of(scene.modalities["rgb"])
    truth = sample.pixels["rgb"][:, 0, 0] * how.scale + how.offset
    assert [b["value"] for b in bands] == pytest.approx(truth.tolist(), rel=0.2, abs=0.01)
    assert service.values("s0", 0.0, 0.0) == []


def test_far_away_nothing_is_drawn(scene, service):
    layer = service.layers["s0"]
    for frame in (tile_frame(5, 0, 0), tile_frame(0, 0, 0), Frame(-HALF, HALF, 1e5, 8, 8)):
        image = draw(layer, frame)
        assert image.shape == (frame.height, frame.width, 4)
        assert image[..., 3].mean() < 255 * 0.02


def test_the_coarse_copy_agrees_with_the_scene(scene, monkeypatch):
    layer = SceneLayer(scene, scene.modalities["elevation"])
    frame = frame_over(scene_bounds(scene), 60)
    exact = layer.warp(frame)
    monkeypatch.setattr("multimae_eo.demo.map_layers._OVERVIEW", 96)
    coarse = SceneLayer(scene, scene.modalities["elevation"]).warp(frame)
    both = np.isfinite(exact) & np.isfinite(coarse)
    assert both.mean() > 0.8
    assert np.corrcoef(exact[both], coarse[both])[0, 1] > 0.98


def test_any_geotiff_can_be_laid_over(tmp_path, scene):
    transform_ = scene.grid.transform
    classes = np.tile(np.array([[1, 2], [2, 7]], np.uint8), (20, 20))
    like = {"driver": "GTiff", "count": 1, "height": 40, "width": 40, "dtype": "uint8"}
    location = {"crs": scene.grid.crs, "transform": transform_, "nodata": 7}
    with rasterio.open(tmp_path / "map.tif", "w", **like, **location) as file:
        file.write(classes, 1)
        file.write_colormap(1, {1: (10, 20, 30, 255), 2: (200, 100, 0, 255)})
    layer = FileLayer(tmp_path / "map.tif")
    assert layer.modality.categorical
    assert layer.modality.class_ids == (1, 2)
    image = draw(layer, frame_over(layer.bounds, 64))
    colours = {tuple(c) for c in image[image[..., 3] > 0][:, :3]}
    assert colours == {(10, 20, 30), (200, 100, 0)}
    (tmp_path / "text.tif").write_text("no raster")
    with pytest.raises(FormatError, match="cannot be read"):
        FileLayer(tmp_path / "text.tif")
    with rasterio.open(tmp_path / "bare.tif", "w", **like) as file:
        file.write(classes, 1)
    with pytest.raises(FormatError, match="no CRS"):
        FileLayer(tmp_path / "bare.tif")


def test_unknown_layers_and_empty_rectangles_are_refused(service):
    for key in ("s99", "o99", "o0"):
        with pytest.raises(DataError):
            service.layer(key)
    with pytest.raises(ConfigError, match="empty"):
        service.area("s0", (1.0, 1.0, 1.0, 2.0))


def test_a_predictors_map_is_an_overlay(model, scene, tmp_path):
    from multimae_eo.network.config import HeadConfig
    from multimae_eo.network.predictor import Predictor
    from multimae_eo.network.target import Target

    target = Target(kind="map", classes=("dry", "wet"), counts=(1.0, 1.0), total=2.0)
    predictor = Predictor(model, target, HeadConfig())
    service = MapService(model, scene, tmp_path, predictor=predictor)
    overlay = service.overlays["o0"]
    make: Any = overlay.job._make
    layer = service._predict(make.args[0], lambda a, b: None)
    assert layer.modality.class_names == ("dry", "wet")
    values = layer.warp(frame_over(layer.bounds, 50))
    assert set(np.unique(values[np.isfinite(values)])) <= {0.0, 1.0}
