"""STAC files: items found, checked, warped onto one grid, masked and merged. No network."""

from __future__ import annotations

import datetime
import importlib
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from multimae_eo.errors import ConfigError, DataError, FormatError
from multimae_eo.geo import Window
from multimae_eo.loading.open_source import open_source
from multimae_eo.sources.acquisition_dates import days_since_1970
from multimae_eo.sources.scene.chips import SceneChips
from multimae_eo.sources.scene.scene_list import list_scenes
from multimae_eo.sources.scene.single_raster import RasterRule
from multimae_eo.sources.stac.source import StacArea, open_stac
from multimae_eo.store.writer import prepare
from tests.support.paths import DATA

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("pystac")
pystac_client = pytest.importorskip("pystac_client")
pytest.importorskip("odc.stac")

import pystac  # noqa: E402
from rasterio.enums import Resampling  # noqa: E402
from rasterio.vrt import WarpedVRT  # noqa: E402
from rasterio.warp import transform, transform_bounds  # noqa: E402

UTM, NEXT = "EPSG:32630", "EPSG:32631"
LEFT, TOP = 500000.0, 5800000.0
SIZE = 64
AREA = [-3.0, 52.3423, -2.9923, 52.3477]
ABERYSTWYTH = DATA / "scene_aberystwyth"


def write(path: Path, pixels: np.ndarray, **profile: object) -> None:
    """A COG of (C, H, W) pixels, 10 m from (LEFT, TOP) unless the profile says otherwise."""
    at = rasterio.transform.from_origin(LEFT, TOP, 10, 10)
    with rasterio.open(
        path, "w", driver="COG", dtype=pixels.dtype, count=len(pixels), height=pixels.shape[1],
        width=pixels.shape[2], **{"crs": UTM, "transform": at, **profile},
    ) as file:  # fmt: skip
        file.write(pixels)


def item_of(
    name: str, day: str, assets: dict[str, Path], extra: dict | None = None, **properties: object
) -> pystac.Item:
    """An item whose box is that of its rasters; ``extra``: fields of every asset."""
    boxes = []
    for path in assets.values():
        with rasterio.open(path) as file:
            boxes.append(transform_bounds(file.crs, "EPSG:4326", *file.bounds))
    w, s, e, n = (f(b[i] for b in boxes) for i, f in enumerate((min, min, max, max)))
    shape = {"type": "Polygon", "coordinates": [[[w, s], [e, s], [e, n], [w, n], [w, s]]]}
    when = datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC)
    item = pystac.Item(name, shape, [w, s, e, n], when, properties)
    for key, path in assets.items():
        fields = (extra or {}).get(key, {})
        item.add_asset(key, pystac.Asset(str(path), roles=["data"], extra_fields=fields))
    return item


def catalogue_of(folder: Path, items: dict[str, list[pystac.Item]]) -> Path:
    """A static catalogue with a collection for each key."""
    catalogue = pystac.Catalog("c", "a test's own")
    extent = pystac.Extent(
        pystac.SpatialExtent([-180, -90, 180, 90]), pystac.TemporalExtent([None, None])
    )
    for name, members in items.items():
        collection = pystac.Collection(name, name, extent)
        collection.add_items(members)
        catalogue.add_child(collection)
    catalogue.normalize_and_save(str(folder / "cat"), pystac.CatalogType.SELF_CONTAINED)
    return folder / "cat/catalog.json"


FILE = """
name: two-zones
area: [-3.0, 52.3423, -2.9923, 52.3477]
dates: 2021-05-01/2021-06-30
grid: {crs: "EPSG:32630", resolution: 10}
catalog: cat/catalog.json
chips: {size: 16}
modalities:
  rgb:
    collections: [s2]
    sensor: sentinel2
    bands: [B4, B3, B2]
    level: l2a
    mask: {asset: scl, classes: [9]}
    max_cloud: 60
  elevation: {collections: [dem], band: dem, assets: [height], nodata: -32768}
"""
SCALE = {"raster:bands": [{"nodata": 0, "scale": 0.0001, "offset": 0.0}]}


def scene_of(folder: Path, name: str, day: str, seed: int, **properties: object) -> pystac.Item:
    """A Sentinel-2 item with random bands, a strip of nodata, and a cloud in its SCL (20 m)."""
    rng = np.random.default_rng(seed)
    assets = {k: folder / f"{name}-{k}.tif" for k in ("red", "green", "blue", "scl")}
    for key in ("red", "green", "blue"):
        pixels = rng.integers(1, 5000, (1, SIZE, SIZE)).astype(np.uint16)
        pixels[:, :, seed * 8 : seed * 8 + 4] = 0
        write(assets[key], pixels)  # nodata is told by STAC alone
    clouds = np.full((1, SIZE // 2, SIZE // 2), 4, np.uint8)
    clouds[:, seed * 4 : seed * 4 + 8, 10:20] = 9
    at = rasterio.transform.from_origin(LEFT, TOP, 20, 20)
    write(assets["scl"], clouds, transform=at, nodata=0)
    extra = dict.fromkeys(("red", "green", "blue"), SCALE)
    return item_of(name, day, assets, extra, **properties)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three optical items of one place, and a DEM in the next UTM zone, at 30 m."""
    scenes = [
        scene_of(tmp_path, "early", "2021-05-10", 1, **{"eo:cloud_cover": 50}),
        scene_of(tmp_path, "clear", "2021-05-20", 2, **{"eo:cloud_cover": 5}),
        scene_of(tmp_path, "late", "2021-06-20", 3, **{"eo:cloud_cover": 20}),
        scene_of(tmp_path, "overcast", "2021-05-02", 4, **{"eo:cloud_cover": 90}),
        scene_of(tmp_path, "old", "2020-05-20", 5, **{"eo:cloud_cover": 0}),
    ]
    x, y = transform(UTM, NEXT, [LEFT - 300], [TOP + 300])
    at = rasterio.transform.from_origin(x[0], y[0], 30, 30)
    relief = np.random.default_rng(9).integers(-5, 900, (1, 60, 60)).astype(np.int16)
    write(tmp_path / "height.tif", relief, crs=NEXT, transform=at)
    dem = item_of("tile", "2021-05-15", {"height": tmp_path / "height.tif"})
    catalogue_of(tmp_path, {"s2": scenes, "dem": [dem]})
    (tmp_path / "area.yaml").write_text(FILE)
    return tmp_path


def stac_file(folder: Path, name: str = "rgb", top: dict | None = None, **changes: Any) -> Path:
    """The test's STAC file with keys of the top, or of one modality, replaced (None: removed)."""
    record = yaml.safe_load(FILE)
    for where, new in ((record, top or {}), (record["modalities"][name], changes)):
        for key, value in new.items():
            where[key] = value
            if value is None:
                del where[key]
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(record, sort_keys=False))
    return path


def whole(area: StacArea) -> Window:
    return area.grid.extent


def scene_arrays(folder: Path, name: str, area: StacArea) -> tuple[np.ndarray, np.ndarray]:
    """By hand: an item's bands and usable pixels on the area's grid (both at 10 m, aligned)."""
    bands, ok = [], None
    for key in ("red", "green", "blue"):
        with rasterio.open(folder / f"{name}-{key}.tif") as file:
            bands.append(file.read(1))
    with rasterio.open(folder / f"{name}-scl.tif") as file:
        clouds = np.kron(file.read(1), np.ones((2, 2), np.uint8)) == 9
    pixels = np.stack(bands)
    ok = (pixels > 0).all(axis=0) & ~clouds
    grid = area.grid
    row, col = round((grid.transform.f - TOP) / 10), round((LEFT - grid.transform.c) / 10)
    placed = np.zeros((3, grid.height, grid.width), np.uint16)
    fine = np.zeros((grid.height, grid.width), bool)
    for r in range(SIZE):
        for c in range(SIZE):
            if 0 <= r + row < grid.height and 0 <= c + col < grid.width:
                placed[:, r + row, c + col] = pixels[:, r, c]
                fine[r + row, c + col] = ok[r, c]
    return placed, fine


def test_the_first_valid_pixel_wins_and_clouds_are_masked(folder: Path) -> None:
    area = StacArea(folder / "area.yaml")
    sample = area.read(whole(area))
    expected = np.zeros((3, area.grid.height, area.grid.width), np.uint16)
    done = np.zeros(expected.shape[1:], bool)
    used = []
    for name, day in (("early", "2021-05-10"), ("clear", "2021-05-20"), ("late", "2021-06-20")):
        pixels, ok = scene_arrays(folder, name, area)
        used += [f"{day}T00:00:00Z"] if (ok & ~done).any() else []
        expected = np.where(ok & ~done, pixels, expected)
        done |= ok
    assert 0 < done.sum() < done.size
    assert sample.pixels["rgb"].dtype == np.uint16
    assert np.array_equal(sample.valid["rgb"][0], done)
    assert np.array_equal(sample.pixels["rgb"], expected)
    assert sample.time == f"{used[0]}/{used[-1]}"
    assert sample.calibration["rgb"].scale == 1e-4
    assert sample.calibration["rgb"].level == "l2a"


def test_least_cloudy_and_median(folder: Path) -> None:
    area = StacArea(stac_file(folder, composite="least_cloudy"))
    window = whole(area)
    found = area.read(window, ["rgb"]).pixels["rgb"]
    pixels, ok = scene_arrays(folder, "clear", area)
    assert ok.sum() > 100
    assert np.array_equal(found[:, ok], pixels[:, ok])
    area = StacArea(stac_file(folder, composite="median"))
    sample = area.read(window, ["rgb"])
    stack = np.stack(
        [np.where(ok, p, np.nan) for p, ok in
         (scene_arrays(folder, n, area) for n in ("early", "clear", "late"))]
    )  # fmt: skip
    ok = np.isfinite(stack).any(axis=0)[0]
    assert np.array_equal(sample.valid["rgb"][0], ok)
    median = np.nanmedian(stack[:, :, ok], axis=0)
    assert np.array_equal(sample.pixels["rgb"][:, ok], np.rint(median))
    with pytest.raises(ConfigError, match="classes have no median"):
        StacArea(
            stac_file(folder, sensor=None, bands=None, level=None, composite="median",
                      legend={1: "a", 2: "b"})
        )  # fmt: skip


@pytest.mark.parametrize("series", ["days", "months"])
def test_items_of_a_period_are_a_series(folder: Path, series: str) -> None:
    """A date for each day, or the composite of each month: "early" and "clear" are of May."""
    area = StacArea(stac_file(folder, series=series, composite="least_cloudy"))
    sample = area.read(whole(area), ["rgb"])
    arrays = {n: scene_arrays(folder, n, area) for n in ("early", "clear", "late")}
    expected = [arrays[n] for n in arrays]
    days = ["2021-05-10", "2021-05-20", "2021-06-20"]
    if series == "months":
        (early, seen), (clear, first) = arrays["early"], arrays["clear"]
        may = np.where(first, clear, np.where(seen, early, 0)), first | seen
        expected, days = [may, arrays["late"]], ["2021-05-15", "2021-06-20"]
    assert sample.dates["rgb"].tolist() == [days_since_1970(d) for d in days]
    for date, (pixels, ok) in enumerate(expected):
        assert np.array_equal(sample.valid["rgb"][date, 0], ok)
        assert np.array_equal(sample.pixels["rgb"][date], np.where(ok, pixels, 0))
    source = open_stac(stac_file(folder, series=series, top={"chips": {"size": 8}}))
    chips = [source.read(i, ["rgb"]) for i in range(len(source))]
    assert {c.pixels["rgb"].ndim for c in chips if "rgb" in c.pixels} == {4}
    with pytest.raises(ConfigError, match="did you mean 'months'"):
        StacArea(stac_file(folder, series="month"))


@pytest.mark.slow
def test_another_zone_is_warped_as_a_whole_warp_would(folder: Path) -> None:
    """Chips from odc-stac, put together, equal one warp of the whole, edges included."""
    source = open_source(f"stac:{folder / 'area.yaml'}")
    assert isinstance(source, SceneChips)
    grid = StacArea(folder / "area.yaml").grid
    with (
        rasterio.open(folder / "height.tif") as file,
        WarpedVRT(
            file, crs=grid.crs, transform=grid.transform, height=grid.height, width=grid.width,
            resampling=Resampling.bilinear, src_nodata=-32768, add_alpha=True, tolerance=1e-6,
        ) as view,
    ):  # fmt: skip
        values, alpha = view.read()
    assert (alpha > 0).all()
    seen = 0
    for index, key in enumerate(source.keys):
        row, col = int(key[1:6]), int(key[7:12])
        sample = source.read(index, ["elevation"])
        expected = values[row : row + 16, col : col + 16]
        height, width = expected.shape
        assert np.array_equal(sample.pixels["elevation"][0, :height, :width], expected)
        if (height, width) != (16, 16):
            assert sample.valid["elevation"].sum() == expected.size
        seen += expected.size
    assert seen > 1000
    store = prepare(source, folder / "store")
    assert len(store) == len(source)
    assert store.read(0).time is not None
    assert store.read(0).geometry == source.read(0).geometry
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.read(0).pixels["rgb"], source.read(0).pixels["rgb"])


def test_classes_are_never_averaged_and_may_be_coarser(folder: Path) -> None:
    """A class map of another zone, at twice the grid's pixels."""
    with rasterio.open(folder / "height.tif") as file:
        at = file.transform
    ids = np.random.default_rng(2).choice([10, 30, 80, 255], (1, 60, 60)).astype(np.uint8)
    write(folder / "classes.tif", ids, crs=NEXT, transform=at)
    catalogue_of(folder, {"s2": [item_of("map", "2021-05-10", {"map": folder / "classes.tif"})]})
    record = yaml.safe_load(FILE)
    record["modalities"] = {
        "landcover": {"legend": "esa_worldcover", "assets": ["map"], "ratio": 2}
    }
    (folder / "classes.yaml").write_text(yaml.safe_dump(record))
    area = StacArea(folder / "classes.yaml")
    grid = area.grid.coarser(2)
    assert area.grid.transform.c % 20 == 0
    with (
        rasterio.open(folder / "classes.tif") as file,
        WarpedVRT(
            file, crs=grid.crs, transform=grid.transform, height=grid.height, width=grid.width,
            resampling=Resampling.nearest, tolerance=1e-6, nodata=0,
        ) as view,
    ):  # fmt: skip
        expected = view.read(1)
    found = area.read(whole(area))
    assert found.pixels["landcover"].dtype == np.uint8
    assert np.array_equal(found.valid["landcover"][0], (expected > 0) & (expected < 255))
    assert np.array_equal(found.pixels["landcover"][0], np.where(expected == 255, 0, expected))
    assert area.read(Window(row=16, col=16, height=16, width=16)).pixels["landcover"].shape == (
        1, 8, 8,
    )  # fmt: skip


def test_nodata_that_only_stac_tells_does_not_bleed(folder: Path) -> None:
    """Bilinear onto a shifted grid: no value below those of the raster may appear."""
    area = StacArea(stac_file(folder, top={"grid": {"crs": UTM, "resolution": 7}}, mask=None))
    sample = area.read(whole(area), ["rgb"])
    path = folder / "flat.tif"
    flat = np.full((1, SIZE, SIZE), 3000, np.uint16)
    flat[:, 20:30, 20:30] = 0
    write(path, flat)
    catalogue_of(
        folder,
        {"s2": [item_of("flat", "2021-05-10", {"red": path}, {"red": SCALE})], "dem": []},
    )
    file = stac_file(folder, top={"grid": {"crs": UTM, "resolution": 7}}, mask=None, bands=["B4"])
    record = yaml.safe_load(file.read_text())
    del record["modalities"]["elevation"]
    file.write_text(yaml.safe_dump(record))
    area = StacArea(file)
    sample = area.read(whole(area))
    ok = sample.valid["rgb"]
    assert 0.5 < ok.mean() < 1
    assert set(np.unique(sample.pixels["rgb"][ok])) == {3000}


def one_band(folder: Path, items: list[tuple[int, dict, dict]], **changes: Any) -> StacArea:
    """A modality of red alone over items of a constant raw value, raster fields, properties."""
    made = []
    for number, (value, fields, properties) in enumerate(items):
        path = folder / f"constant-{number}.tif"
        pixels = np.full((1, SIZE, SIZE), value, np.uint16)
        pixels[:, :, number * 32 + 32 :] = 0
        pixels[:, :, : number * 32] = 0
        write(path, pixels, nodata=0)
        day = f"2021-05-{number + 1:02}"
        made.append(item_of(f"i{number}", day, {"red": path}, {"red": fields}, **properties))
    catalogue_of(folder, {"s2": made})
    file = stac_file(folder, **{"bands": ["B4"], "mask": None, **changes})
    record = yaml.safe_load(file.read_text())
    del record["modalities"]["elevation"]
    file.write_text(yaml.safe_dump(record))
    return StacArea(file)


def raster(scale: float, offset: float) -> dict:
    return {"raster:bands": [{"scale": scale, "offset": offset}]}


def test_processing_baselines_become_one_calibration(folder: Path) -> None:
    """Raw 2000 before baseline 04.00 and 3000 after it are one reflectance, 0.2."""
    old = {"s2:processing_baseline": "03.01"}
    new = {"s2:processing_baseline": "05.09"}
    for fields, changes in (
        ((raster(1e-4, 0.0), raster(1e-4, -0.1)), {}),  # the extension tells
        (({"raster:scale": 1e-4}, {"raster:scale": 1e-4, "raster:offset": -0.1}), {}),  # STAC 1.1
        (({}, {}), {"scale": 1e-4}),  # only the baseline does
    ):
        items = [(2000, fields[0], old), (3000, fields[1], new)]
        area = one_band(folder, items, **changes)
        sample = area.read(whole(area))
        how = sample.calibration["rgb"]
        ok = sample.valid.get("rgb", np.ones_like(sample.pixels["rgb"], bool))
        assert sample.pixels["rgb"].dtype == np.uint16
        assert ok[0, 10, 40]
        assert ok[0, 10, 5]
        physical = sample.pixels["rgb"][ok] * how.scale + how.offset
        assert np.abs(physical - 0.2).max() < 1e-9
    # Scales that differ cannot stay integers.
    area = one_band(folder, [(2000, raster(1e-4, 0.0), old), (400, raster(5e-4, 0.0), old)])
    sample = area.read(whole(area))
    assert sample.pixels["rgb"].dtype == np.float32
    assert np.abs(sample.pixels["rgb"][sample.valid["rgb"]] - 0.2).max() < 1e-6


def test_calibrations_that_disagree_are_refused(folder: Path) -> None:
    new = {"s2:processing_baseline": "05.09"}
    gone = new | {"earthsearch:boa_offset_applied": True}
    with pytest.raises(
        ConfigError, match=r"metadata offset -0.1, but its baseline 05.09 .offset alr"
    ):
        one_band(folder, [(2000, raster(1e-4, -0.1), gone)])
    assert one_band(folder, [(2000, raster(1e-4, -0.1), gone)], offset=0).read(
        Window(row=0, col=0, height=16, width=16)
    ).calibration["rgb"].offset == 0  # fmt: skip
    with pytest.raises(ConfigError, match=r"declared offset 0, but its baseline 05.09 means -0"):
        one_band(folder, [(2000, {}, new)], scale=1e-4, offset=0)
    area = one_band(folder, [(2000, {}, new)], scale=1e-4, offset=0, check_calibration=False)
    assert area.read(whole(area)).calibration["rgb"].offset == 0
    with pytest.raises(ConfigError, match=r"declared scale 0.001, its metadata have 0.0001"):
        one_band(folder, [(2000, raster(1e-4, 0.0), {})], scale=1e-3)
    with pytest.raises(ConfigError, match="metadata have no scale"):
        one_band(folder, [(2000, {}, {})])
    old = {"s2:processing_baseline": "03.01"}
    area = one_band(folder, [(65500, {}, old), (3000, {}, new)], scale=1e-4)
    with pytest.raises(DataError, match="do not fit uint16"):
        area.read(whole(area))


def test_nothing_found_says_what_was_left_after_each_filter(folder: Path) -> None:
    def told(match: str, top: dict | None = None, **changes: Any) -> None:
        with pytest.raises(DataError, match=match) as caught:
            StacArea(stac_file(folder, top=top, **changes))
        assert "\n" not in str(caught.value)

    told(r"6 in the catalogue, 0 in the collections", collections=["s3"])
    told(
        r"dates 2019-01-01/2019-02-01, collections s2: 6 in the catalogue, 5 in the collections, "
        r"0 in the dates", {"dates": "2019-01-01/2019-02-01"},
    )  # fmt: skip
    told(r"4 in the dates, 0 touch the area", {"area": [10, 40, 11, 41]})
    told(r"4 touch the area, 0 with at most 1 % cloud", max_cloud=1)


def test_items_of_one_name_are_not_mixed_up(folder: Path) -> None:
    made = [item_of("same", "2021-05-10", {"red": folder / "early-red.tif"}) for _ in range(2)]
    catalogue_of(folder / "two", {"a": made[:1], "b": made[1:]})
    file = stac_file(folder, top={"catalog": "two/cat/catalog.json"}, collections=["a", "b"])
    with pytest.raises(DataError, match=r"two items of .* are called 'same'; name one collection"):
        StacArea(file)


def test_mistakes_are_told_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(error: type[Exception], match: str, top: dict | None = None, **changes: Any):
        with pytest.raises(error, match=match) as caught:
            StacArea(stac_file(folder, top=top, **changes))
        assert "\n" not in str(caught.value)

    told(ConfigError, "did you mean 'red'", assets={"B4": "rad"})
    told(ConfigError, "did you mean 'scl'", mask={"asset": "sclx", "classes": [9]})
    told(ConfigError, "band 'B8' not found among", bands=["B8"])
    told(ConfigError, "did you mean 'collections'", colections=["s2"])
    told(ConfigError, "give an `api:`", {"catalog": None})
    told(ConfigError, "is no date", {"dates": "2021-13-01/2021-14-01"})
    told(ConfigError, "west < east", {"area": [3, 52, 2, 53]})
    told(ConfigError, "is no CRS", {"grid": {"crs": "EPSG:99999999", "resolution": 10}})
    told(ConfigError, "did you mean 'median'", composite="medain")
    told(FormatError, "no such catalogue", {"catalog": "nowhere.json"})
    (folder / "broken.json").write_text("{}")
    told(FormatError, "cannot be read as STAC", {"catalog": "broken.json"})
    (folder / "early-red.tif").write_bytes(b"II*\0nonsense")
    told(FormatError, "early-red")

    def refuse(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    told(ConfigError, r"needs odc\.stac; install it with pip install 'multimae-eo\[geo\]'")


def test_the_command_line_prepares_a_stac_file(folder, capsys):
    from multimae_eo.cli import main

    assert main(["prepare", str(folder / "area.yaml"), "--out", str(folder / "store")]) == 0
    assert "rgb, elevation" in capsys.readouterr().out
    source, store = open_stac(folder / "area.yaml"), open_source(folder / "store")
    assert set(store.keys) <= set(source.keys)
    assert len(store) > 4


def test_an_api_is_asked_once_for_each_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list(
        pystac.Catalog.from_file(str(folder / "cat/catalog.json")).get_items(recursive=True)
    )
    asked: list[dict] = []

    class Client:
        def search(self, **query: Any) -> SimpleNamespace:
            asked.append(query)
            wanted = [i for i in items if i.collection_id in query["collections"]]
            return SimpleNamespace(items=lambda: iter(wanted))

    monkeypatch.setattr(pystac_client.Client, "open", lambda url: Client())
    top = {"catalog": None, "api": "https://stac.invalid/v1"}
    area = StacArea(stac_file(folder, top=top, max_cloud=None))
    assert [q["collections"] for q in asked] == [["s2"], ["dem"]]
    assert asked[0]["datetime"].startswith("2021-05-01T00:00:00")
    assert asked[0]["datetime"].endswith("2021-06-30T23:59:59.999999+00:00")
    assert asked[0]["intersects"]["type"] == "Polygon"
    assert area.read(whole(area)).pixels["rgb"].any()


@pytest.mark.slow
def test_only_chips_that_touch_the_polygon_are_cut(folder: Path) -> None:
    west, south, east, north = AREA
    triangle = [[west, south], [east, south], [west, north], [west, south]]
    shape = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [triangle]}}
    (folder / "area.geojson").write_text(json.dumps(shape))
    cut = open_stac(stac_file(folder, top={"area": "area.geojson"}))
    every = open_stac(folder / "area.yaml")
    assert set(cut.keys) < set(every.keys)
    assert len(every) * 0.4 < len(cut) < len(every) * 0.85
    top_right = max(every.keys, key=lambda k: (-int(k[1:6]), int(k[7:12])))
    assert top_right not in cut.keys


@pytest.mark.slow
@pytest.mark.skipif(not ABERYSTWYTH.is_dir(), reason="its data need rasterio")
def test_aberystwyth_from_a_catalogue_equals_its_scene_file(tmp_path: Path) -> None:
    """Sixteen tiles as items, in their own CRS: windows equal the merged tiles."""
    from rasterio.merge import merge

    tiles = sorted(ABERYSTWYTH.glob("sen2_20210527_aber_tile*.tif"))
    catalogue_of(tmp_path, {"s2": [item_of(t.stem, "2021-05-27", {"data": t}) for t in tiles]})
    (tmp_path / "aber.yaml").write_text(
        "area: [-4.09, 52.39, -4.03, 52.43]\ndates: 2021-05-27\ncatalog: cat/catalog.json\n"
        'grid: {crs: "EPSG:27700", resolution: 10}\nchips: {size: 64, min_valid: 0.9}\n'
        "modalities:\n  optical: {sensor: sentinel2, bands: [B2, B4, B12], level: l2a, "
        "assets: [data.1, data.3, data.10], scale: 1.0e-3, nodata: 0}\n"
    )
    source = open_stac(tmp_path / "aber.yaml")
    assert len(source) > 10
    sample = source.read(len(source) // 2)
    assert sample.geometry is not None
    # The grid lies at whole multiples of 10 m, the tiles do not: bilinear by a constant shift.
    pixels, at = merge(tiles, nodata=0, indexes=[1, 3, 10])
    col, row = ~at @ (sample.geometry.bounds[0], sample.geometry.bounds[3])
    r, c = int(np.floor(row)), int(np.floor(col))
    down, right = row - r, col - c
    part = pixels[:, r : r + 65, c : c + 65].astype(float)
    upper = part[:, :-1, :-1] * (1 - right) + part[:, :-1, 1:] * right
    lower = part[:, 1:, :-1] * (1 - right) + part[:, 1:, 1:] * right
    expected = upper * (1 - down) + lower * down
    inner = sample.valid.get("optical", np.ones((1, 64, 64), bool))[0]
    error = np.abs(sample.pixels["optical"] - expected)[:, inner]
    assert np.median(error) <= 0.5
    assert (error <= 0.51).mean() > 0.95, "but for seams, where tiles overlap"


# Items as scenes -------------------------------------------------------------------------------


def test_each_item_of_a_search_is_a_scene(folder):
    scenes = list_scenes(folder / "area.yaml")
    assert [s.name for s in scenes] == ["early", "clear", "late"], "by time, without the cloudy"
    scene = scenes[1].spec.to_scene()
    assert (scene.name, scene.time, list(scene.modalities)) == (
        "clear", "2021-05-20T00:00:00Z", ["rgb", "elevation"]
    )  # fmt: skip
    assert (scene.grid.height, scene.grid.width) == (SIZE, SIZE)
    whole = Window(row=0, col=0, height=SIZE, width=SIZE)
    sample = scene.read(whole)
    bands = []
    for key in ("red", "green", "blue"):
        with rasterio.open(folder / f"clear-{key}.tif") as file:
            bands.append(file.read(1))
    seen = sample.valid["rgb"][0]
    np.testing.assert_array_equal(sample.pixels["rgb"][:, seen], np.stack(bands)[:, seen])
    assert not seen[:, 16:20].any(), "nodata of the item's metadata"
    assert not seen[16:32, 20:40].any(), "clouds of the mask, at 20 m"
    assert seen.mean() > 0.8
    assert sample.calibration["rgb"].scale == 1e-4
    assert sample.calibration["rgb"].level == "l2a"
    area = StacArea(folder / "area.yaml")
    heights = sample.pixels["elevation"]
    assert heights.shape == (1, SIZE, SIZE)
    assert scene.stamp() == pickle.loads(pickle.dumps(scenes[1].spec)).to_scene().stamp()
    assert scene.stamp() != scenes[0].spec.to_scene().stamp()
    assert area.name == "two-zones"


def test_each_item_of_a_collection_is_a_scene(folder, make_model):
    from multimae_eo.scenes.scene_inputs import open_item

    catalogue = pystac.Catalog.from_file(str(folder / "cat/catalog.json"))
    items = [i for i in catalogue.get_items(recursive=True) if i.id in ("early", "late")]
    for item in items:
        item.make_asset_hrefs_absolute()
    collection = pystac.ItemCollection(items)
    collection.save_object(str(folder / "items.json"))
    model = make_model()
    rule = RasterRule(level="l2a")
    for given in (collection, folder / "items.json"):
        scenes = list_scenes(given)
        assert sorted(s.name for s in scenes) == ["early", "late"]
        scene = open_item(model, scenes[0].spec, inputs=["rgb"], rule=rule)
        assert list(scene.modalities) == ["rgb"]
        assert scene.modalities["rgb"].scale == 1e-4
        with pytest.raises(ConfigError, match="--level l1c or l2a"):
            open_item(model, scenes[0].spec, inputs=["rgb"])
        with pytest.raises(ConfigError, match="band 'elevation' not found among"):
            open_item(model, scenes[0].spec, rule=rule)
    with pytest.raises(ConfigError, match="is not declared; write a STAC file"):
        scenes[0].spec.to_scene()
    with pytest.raises(ConfigError, match="stand in the STAC file"):
        list_scenes(folder / "area.yaml")[0].spec.to_scene(rule=rule)
    with pytest.raises(DataError, match="has no item"):
        list_scenes(pystac.ItemCollection([]))
    (folder / "items.json").write_text('{"type": "FeatureCollection", "features": [{"id": 1}]}')
    with pytest.raises(FormatError, match=r"items\.json: cannot be read as STAC"):
        list_scenes(folder / "items.json")


def test_items_of_two_calibrations_keep_their_own(tmp_path, make_model):
    """The offset since baseline 04.00 is of one item only."""
    from multimae_eo.scenes.scene_inputs import open_item

    new = scene_of(tmp_path, "new", "2023-05-10", 1, **{"s2:processing_baseline": "05.09"})
    for key in ("red", "green", "blue"):
        new.assets[key].extra_fields = {"raster:bands": [{"scale": 0.0001, "offset": -0.1}]}
    old = scene_of(tmp_path, "old", "2021-05-10", 2, **{"s2:processing_baseline": "03.00"})
    scenes = {s.name: s.spec for s in list_scenes(pystac.ItemCollection([new, old]))}
    rule = RasterRule(level="l2a")
    for name, offset in (("new", -0.1), ("old", 0.0)):
        opened = open_item(make_model(), scenes[name], inputs=["rgb"], rule=rule)
        assert opened.modalities["rgb"].offset == pytest.approx(offset)
