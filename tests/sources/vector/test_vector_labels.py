"""Labels from vector files, of scenes and of data sets of chips."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import yaml

import multimae_eo
from multimae_eo.errors import ClassMapError, ConfigError, DataError, FormatError, SplitError
from multimae_eo.sources.vector.feature_splits import deal
from multimae_eo.sources.vector.vector_labels import VectorLabels, VectorSpec
from tests.support.scene_files import CRS, grid, optical_scene, write

SIDE = 96
LEFT, TOP = 500000, 5800000


def square(row: int, col: int, height: int = 6, width: int = 6) -> shapely.Polygon:
    """A rectangle of pixels of the scene."""
    left, top = LEFT + 10 * col, TOP - 10 * row
    return shapely.box(left, top - 10 * height, left + 10 * width, top)


def write_vector(
    path: Path,
    shapes: list[Any],
    columns: dict[str, list[Any]],
    *,
    crs: str | None = CRS,
    kind: str = "Unknown",
    layer: str | None = None,
    append: bool = False,
) -> Path:
    if path.suffix == ".parquet":
        geopandas: Any = pytest.importorskip("geopandas")
        geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs).to_parquet(path)
        return path
    values = []
    for column in columns.values():
        texts = any(isinstance(v, str) or v is None for v in column)
        values.append(np.array(column, dtype=object if texts else None))
    drivers = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".shp": "ESRI Shapefile"}
    pyogrio.raw.write(
        path, shapely.to_wkb(np.array(shapes, dtype=object)), values, list(columns),
        driver=drivers[path.suffix], geometry_type=kind, crs=crs, layer=layer, append=append,
    )  # fmt: skip
    return path


def moved(shapes: list[Any], crs: str) -> list[Any]:
    from rasterio.warp import transform

    def project(xy: np.ndarray) -> np.ndarray:
        return np.stack(transform(CRS, crs, xy[:, 0], xy[:, 1]), axis=1)

    return list(shapely.transform(np.array(shapes, dtype=object), project))


def add_labels(scene: Path, chips: dict[str, Any], **labels: Any) -> Path:
    record = yaml.safe_load(scene.read_text())
    record |= {"chips": chips, "labels": {"vector": "fields.gpkg", "column": "crop", **labels}}
    path = scene.with_name("labelled.yaml")
    path.write_text(yaml.safe_dump(record))
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return optical_scene(tmp_path, SIDE, SIDE)


def whole_map(source: Any) -> np.ndarray:
    """The labels of all chips put together; -1 where there is none."""
    image = np.full((SIDE, SIDE), -1)
    for index, key in enumerate(source.keys):
        row, col = int(key[1:6]), int(key[7:12])
        label = source.read(index).label
        part = image[row : row + 32, col : col + 32]
        label = label[: part.shape[0], : part.shape[1]]
        assert not ((part >= 0) & (label >= 0)).any(), "a pixel is labelled once"
        part[label >= 0] = label[label >= 0]
    return image


@pytest.mark.parametrize(
    ("suffix", "crs"),
    [
        # GeoJSON is longitude and latitude.
        (".geojson", "EPSG:4326"),
        *((s, c) for s in (".gpkg", ".shp", ".parquet") for c in (CRS, "EPSG:4326", "EPSG:3857")),
    ],
)
def test_every_format_and_crs_gives_the_same_pixels(scene, suffix, crs):
    shapes = [square(3, 5), square(40, 50, 8, 10), square(70, 20)]
    path = scene.parent / f"fields{suffix}"
    crops = ["wheat", "maize", "wheat"]
    write_vector(path, moved(shapes, crs), {"crop": crops}, crs=crs, kind="Polygon")
    source: Any = multimae_eo.open_source(add_labels(scene, {"size": 32}, vector=path.name))
    assert source.class_names == ("maize", "wheat")
    expected = np.full((SIDE, SIDE), -1)
    expected[3:9, 5:11], expected[40:48, 50:60], expected[70:76, 20:26] = 1, 0, 1
    np.testing.assert_array_equal(whole_map(source), expected)
    assert source.skipped["without labels"] == 9 - len(source)


def test_ids_names_lines_and_points(scene):
    shapes = [square(2, 2), shapely.LineString([(LEFT + 5, TOP - 405), (LEFT + 95, TOP - 405)]),
              shapely.Point(LEFT + 505, TOP - 505)]  # fmt: skip
    columns: dict[str, list[Any]] = {"crop": [7, 3, 3], "title": ["wheat", "maize", "maize"]}
    write_vector(scene.parent / "fields.gpkg", shapes, columns)
    source = multimae_eo.open_source(add_labels(scene, {"size": 32}))
    assert (source.class_names, source.class_ids) == (("3", "7"), (3, 7))
    image = whole_map(source)
    assert (image[2:8, 2:8] == 1).all()
    assert (image[40, :10] == 0).all()
    assert image[50, 50] == 0
    assert (image >= 0).sum() == 36 + 10 + 1
    named = multimae_eo.open_source(add_labels(scene, {"size": 32}, names="title"))
    assert (named.class_names, named.class_ids) == (("maize", "wheat"), (3, 7))
    ids = multimae_eo.open_source(add_labels(scene, {"size": 32}, ids={7: "b", 3: "a"}))
    assert (ids.class_names, ids.class_ids) == (("a", "b"), (3, 7))


def test_overlaps_empty_geometries_and_missing_labels_are_left_out_and_reported(scene):
    shapes = [square(0, 0, 10, 10), square(5, 5, 10, 10), square(20, 0), None, square(50, 50),
              square(2, 2, 2, 2)]  # fmt: skip
    crops = ["wheat", "maize", "wheat", "wheat", None, "wheat"]
    write_vector(scene.parent / "fields.gpkg", shapes, {"crop": crops}, kind="Polygon")
    path = add_labels(scene, {"size": 32}, classes=["wheat", "maize", "rye"])
    source = multimae_eo.open_source(path)
    image = whole_map(source)
    assert (image[5:10, 5:10] == -1).all(), "two classes: neither"
    assert (image[:5, :5] == 0).all(), "two features of one class are that class"
    assert (image[10:15, 5:15] == 1).all()
    text = "; ".join(source.notes)
    assert "1 features without a geometry" in text
    assert "1 features without a label" in text
    assert "1 pairs of features of different classes overlap" in text
    assert "classes without a geometry: rye" in text


def test_three_classes_on_one_pixel_are_ignored_in_any_order(scene):
    shapes = [square(0, 0), square(0, 0), square(0, 0), square(20, 20)]
    write_vector(scene.parent / "fields.gpkg", shapes, {"crop": ["b", "c", "b", "a"]})
    source = multimae_eo.open_source(add_labels(scene, {"size": 32}))
    image = whole_map(source)
    assert (image[:6, :6] == -1).all()
    assert (image[20:26, 20:26] == 0).all()


def test_values(scene):
    write_vector(
        scene.parent / "fields.gpkg", [square(0, 0), square(40, 40)], {"crop": [1.5, 20.25]}
    )
    source = multimae_eo.open_source(add_labels(scene, {"size": 32}, numeric=True))
    label = source.read(0).label
    assert label.dtype == np.float32
    assert (label[:6, :6] == 1.5).all()
    assert np.isnan(label[6:]).all()


def fields(scene: Path, count: int = 36, seed: int = 0) -> list[shapely.Polygon]:
    """Squares of 10 px every 16 px, so that some lie across chips of 32 px."""
    shapes = [square(16 * r + 3, 16 * c + 9, 10, 10) for r in range(6) for c in range(6)][:count]
    shapes = [s for s in shapes if s.bounds[2] < LEFT + 10 * SIDE]
    crops = [("wheat", "maize", "rye")[i % 3] for i in range(len(shapes))]
    write_vector(scene.parent / "fields.gpkg", shapes, {"crop": crops})
    return shapes


@pytest.mark.parametrize(
    "split", [{"polygons": True, "val": 0.2, "test": 0.2}, {"block": 1, "val": 0.2, "test": 0.2}]
)
def test_no_polygon_is_in_two_splits(scene, split):
    shapes = fields(scene)
    source = multimae_eo.open_source(add_labels(scene, {"size": 32, "split": split}))
    assert set(source.split_of) == {"train", "val", "test"}
    image = np.full((SIDE, SIDE), "", dtype=object)
    for index, key in enumerate(source.keys):
        row, col = int(key[1:6]), int(key[7:12])
        sample = source.read(index)
        where = np.add(np.argwhere(sample.label >= 0), (row, col))
        for y, x in where.tolist():
            assert image[y, x] in ("", source.split_of[index])
            image[y, x] = source.split_of[index]
    for shape in shapes:
        left, bottom, right, top = shape.bounds
        rows = slice(int((TOP - top) / 10), int((TOP - bottom) / 10))
        cols = slice(int((left - LEFT) / 10), int((right - LEFT) / 10))
        assert len(set(image[rows, cols].ravel().tolist()) - {""}) == 1
    np.testing.assert_array_equal((image != "").sum(), 100 * len(shapes))
    assert len(set(source.keys)) == len(source.keys)


def test_folds_test_every_polygon_once(scene):
    shapes = fields(scene)
    tested = np.zeros((SIDE, SIDE), dtype=int)
    for fold in range(3):
        split = {"block": 1, "folds": 3, "fold": fold, "val": 0.2}
        path = add_labels(scene, {"size": 32, "split": split})
        source = multimae_eo.open_source(path)
        for index in source.split("test").tolist():
            row, col = int(source.keys[index][1:6]), int(source.keys[index][7:12])
            label = source.read(index).label
            part = tested[row : row + 32, col : col + 32]
            part += (label >= 0)[: part.shape[0], : part.shape[1]]
    assert set(np.unique(tested)) == {0, 1}
    assert tested.sum() == 100 * len(shapes)


def test_groups_are_dealt_by_the_share_of_each_class():
    rng = np.random.default_rng(0)
    classes = rng.choice(3, size=200, p=[0.8, 0.15, 0.05])
    weights = rng.uniform(1, 3, size=200)
    groups = [f"g{i // 2}" for i in range(200)]
    splits = np.array(deal(groups, classes, weights, {"train": 0.75, "test": 0.25}, where="x"))
    for index in range(3):
        share = (
            weights[(classes == index) & (splits == "test")].sum() / weights[classes == index].sum()
        )
        assert 0.15 < share < 0.35
    assert all(splits[i] == splits[i + 1] for i in range(0, 200, 2))
    with pytest.raises(SplitError, match="too few"):
        deal(["a", "a"], classes[:2], weights[:2], {"train": 0.5, "test": 0.5}, where="x")


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    """Four chips of 16 px side by side, and polygons, one across two of them."""
    rng = np.random.default_rng(0)
    for number in range(4):
        origin = rasterio.transform.from_origin(LEFT + 160 * number, TOP, 10, 10)
        pixels = rng.integers(1, 4000, (3, 16, 16)).astype(np.uint16)
        write(tmp_path / f"c{number}.tif", pixels, ("B4", "B3", "B2"), transform=origin)
    shapes = [square(2, 2), square(2, 12, 6, 8), square(2, 36), square(2, 52)]
    write_vector(tmp_path / "fields.gpkg", shapes, {"crop": ["wheat", "maize", "wheat", "maize"]})
    path = tmp_path / "dataset.yaml"
    path.write_text(
        "modalities:\n  rgb: {path: 'c{id}.tif', sensor: sentinel2, bands: [B4, B3, B2], "
        "scale: 1.0e-4, level: l2a}\n"
        "labels: {vector: fields.gpkg, column: crop}\nsplits: {val: 0.4}\n"
    )
    return path


def test_chips_of_a_dataset_file(chips):
    source = multimae_eo.open_source(chips)
    assert source.class_names == ("maize", "wheat")
    first, second = source.read(0), source.read(1)
    assert (first.label[2:8, 2:8] == 1).all()
    assert (first.label[2:8, 12:] == 0).all()
    assert (second.label[2:8, :4] == 0).all()
    assert (second.label[:, 4:] == -1).all()


def test_chips_that_share_a_polygon_share_a_split(chips):
    for seed in range(6):
        text = chips.read_text().replace("val: 0.4", f"val: 0.4, seed: {seed}")
        path = chips.with_name(f"d{seed}.yaml")
        path.write_text(text)
        try:
            source = multimae_eo.open_source(path)
        except SplitError:
            continue  # a split of three groups may stay empty
        assert source.split_of[0] == source.split_of[1]


def test_chips_without_a_crs_are_refused(chips):
    pixels = np.ones((3, 16, 16), dtype=np.uint16)
    for number in range(4):
        write(chips.with_name(f"c{number}.tif"), pixels, ("B4", "B3", "B2"), crs=None)
    with pytest.raises(DataError, match="vector labels need"):
        multimae_eo.open_source(chips)


def test_bad_input_is_one_line(scene, tmp_path):
    good = [square(3, 5), square(40, 50)]
    path = scene.parent / "fields.gpkg"

    def opened(shapes: list[Any], crops: list[Any], crs: str | None = CRS, **labels: Any):
        path.unlink(missing_ok=True)
        write_vector(path, shapes, {"crop": crops}, crs=crs)
        return multimae_eo.open_source(add_labels(scene, {"size": 32}, **labels))

    crops: list[Any] = ["wheat", "maize"]
    with pytest.raises(ConfigError, match=r"no column 'corp'; did you mean 'crop'"):
        opened(good, crops, column="corp")
    with pytest.raises(ClassMapError, match=r"no class 'maize'; did you mean 'maise'"):
        opened(good, crops, classes=["wheat", "maise"])
    with pytest.raises(FormatError, match="declares no CRS; name it with `crs:`"):
        opened(good, crops, crs=None)
    with pytest.raises(DataError, match="is no degree: the file declares"):
        opened(good, crops, crs="EPSG:4326")
    with pytest.raises(DataError, match="no feature lies in the scene: its extent is"):
        opened(good, crops, crs="EPSG:32633")
    degrees = moved(good, "EPSG:4326")
    swapped = [shapely.transform(s, lambda xy: xy[:, ::-1]) for s in degrees]
    with pytest.raises(DataError, match=r"longitude and latitude .*are swapped"):
        opened(swapped, crops, crs="EPSG:4326")
    with pytest.raises(DataError, match="none of its 2 features has a geometry"):
        opened([None, shapely.Polygon()], crops)
    with pytest.raises(DataError, match="no feature has a label in column 'crop'"):
        opened(good, [None, None])
    with pytest.raises(ClassMapError, match="is not a number; leave out `numeric: true`"):
        opened(good, crops, numeric=True)
    with pytest.raises(ConfigError, match="no such file"):
        opened(good, crops, vector="no.gpkg")
    with pytest.raises(ConfigError, match=r"unknown key 'colum'"):
        opened(good, crops, colum="crop")
    path.write_bytes(b"SQLite format 3\0 broken")
    with pytest.raises(FormatError, match="cannot be read as features"):
        multimae_eo.open_source(add_labels(scene, {"size": 32}))


@pytest.mark.parametrize("number", [0, -1], ids=["geographic", "Cartesian"])
def test_an_undefined_system_is_no_crs(scene, number):
    """GeoPackage numbers them; older GDAL writes 0 where no CRS is given."""
    path = scene.parent / "fields.gpkg"
    write_vector(path, [square(3, 5)], {"crop": ["a"]}, crs=CRS)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for table in ("gpkg_contents", "gpkg_geometry_columns"):
            database.execute(f"UPDATE {table} SET srs_id = ?", (number,))
    with pytest.raises(FormatError, match="declares no CRS; name it with `crs:`"):
        multimae_eo.open_source(add_labels(scene, {"size": 32}))


def test_the_crs_can_be_given(scene):
    write_vector(
        scene.parent / "fields.gpkg", [square(3, 5), square(9, 40)], {"crop": ["a", "b"]}, crs=None
    )
    source = multimae_eo.open_source(add_labels(scene, {"size": 32}, crs=CRS))
    assert (whole_map(source)[3:9, 5:11] == 0).all()
    with pytest.raises(ConfigError, match="is no CRS"):
        multimae_eo.open_source(add_labels(scene, {"size": 32}, crs="EPSG:nothing"))


def test_one_of_several_layers(scene):
    path = scene.parent / "fields.gpkg"
    write_vector(path, [square(3, 5), square(9, 40)], {"crop": ["a", "b"]}, layer="one")
    write_vector(path, [square(3, 5)], {"crop": ["a"]}, layer="two", append=True)
    with pytest.raises(ConfigError, match=r"has several layers \(one, two\); name one"):
        multimae_eo.open_source(add_labels(scene, {"size": 32}))
    source = multimae_eo.open_source(add_labels(scene, {"size": 32}, layer="one"))
    assert source.class_names == ("a", "b")
    with pytest.raises(ConfigError, match="no layer 'on'; did you mean 'one'"):
        multimae_eo.open_source(add_labels(scene, {"size": 32}, layer="on"))


def test_bad_splits_are_one_line(scene):
    fields(scene)
    for split, message in (
        ({"polygons": True}, "shares lie between"),
        ({"polygons": True, "block": 2, "val": 0.1}, "expected {block"),
        ({"block": 1, "folds": 1}, "folds are two or more"),
        ({"block": 1, "folds": 3, "fold": 3}, "the number of a fold"),
        ({"block": 1, "folds": 3, "test": 0.2}, "one of them is the test split"),
    ):
        with pytest.raises(ConfigError, match=message):
            multimae_eo.open_source(add_labels(scene, {"size": 32, "split": split}))
    record = yaml.safe_load(scene.read_text())
    record["chips"] = {"size": 32, "split": {"polygons": True, "val": 0.2}}
    scene.write_text(yaml.safe_dump(record))
    with pytest.raises(ConfigError, match="those of vector `labels:`"):
        multimae_eo.open_source(scene)


def test_labels_travel_to_other_processes(scene):
    import pickle

    fields(scene)
    source = multimae_eo.open_source(add_labels(scene, {"size": 32}))
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(0).label, source.read(0).label)


def test_self_intersecting_polygons_are_mended(scene):
    bow = shapely.Polygon([(0, 0), (80, 80), (80, 0), (0, 80)])
    bow = shapely.transform(bow, lambda xy: np.add(xy, (LEFT, TOP - 80)))
    write_vector(scene.parent / "fields.gpkg", [bow, square(60, 60)], {"crop": ["a", "b"]})
    labels = VectorLabels(VectorSpec(path=scene.parent / "fields.gpkg", column="crop"))
    geometry = grid(SIDE, SIDE).footprint(grid(SIDE, SIDE).extent)
    label = labels.read(geometry, (SIDE, SIDE))
    assert 24 <= (label == 0).sum() <= 40
