from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import rasterio
import yaml
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine

from multimae_eo.errors import (
    BandError,
    ClassMapError,
    ConfigError,
    DataError,
    FormatError,
    SplitError,
)
from multimae_eo.loading.open_source import open_source
from multimae_eo.sample import Calibration, collate, crop
from multimae_eo.sources.base import ConcatSource
from multimae_eo.sources.dataset.dataset_file import DatasetFileSource
from multimae_eo.sources.raster.reading import read_raster
from tests.support import example_data
from tests.support.paths import DATA, REAL_DATA, ROOT

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="its data need rasterio")

S2 = ("B2", "B3", "B4", "B8")


def tif(path, pixels, bands=(), *, nodata=None, left=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=pixels.dtype,
        count=count,
        height=height,
        width=width,
        nodata=nodata,
        crs=CRS.from_epsg(32630),
        transform=Affine(10, 0, 500_000 + left, 0, -10, 4_000_000),
    ) as out:
        out.write(pixels)
        for i, name in enumerate(bands, 1):
            out.set_band_description(i, name)


def s2_chip(seed, size=8):
    return np.random.default_rng(seed).integers(1, 5000, (4, size, size)).astype(np.uint16)


@pytest.fixture
def world(tmp_path):
    """Three chips: Sentinel-2 with named bands, a DEM, land cover, masks and a table."""
    for i, key in enumerate(("a", "b", "c")):
        tif(tmp_path / "s2" / f"{key}.tif", s2_chip(i), S2)
        tif(tmp_path / "dem" / f"{key}.tif", np.full((1, 8, 8), i, np.int16), nodata=-9999)
        cover = np.where(np.eye(8), 10, 80).astype(np.uint8)[None]
        tif(tmp_path / "cover" / f"{key}.tif", cover)
        (tmp_path / "mask").mkdir(exist_ok=True)
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "mask" / f"{key}.png")
    (tmp_path / "chips.csv").write_text(
        "id,split,label,level,offset\n"
        "a,train,forest,l1c,-0.1\nb,validation,water,l2a,0\nc,test,forest,l2a,\n"
    )
    return tmp_path


def spec(**more):
    return {
        "chips": "s2/{id}.tif",
        "size": 8,
        "modalities": {
            "rgb": {
                "sensor": "s2",
                "bands": ["B4", "green", 0.49],
                "scale": "1e-4",
                "level": "l2a",
            },
            "elevation": {"path": "dem/{id}.tif", "band": "cop_dem"},
            "landcover": {"path": "cover/{id}.tif", "legend": "esa_worldcover"},
        },
        **more,
    }


def write(folder, record):
    path = folder / "data.yaml"
    path.write_text(record if isinstance(record, str) else yaml.safe_dump(record, sort_keys=False))
    return path


def opened(folder, record):
    return DatasetFileSource(write(folder, record))


def changed(modality, **keys):
    record = spec()
    record["modalities"][modality].update(keys)
    return record


def test_bands_are_taken_by_name_alias_and_wavelength_never_by_position(world):
    source = opened(world, spec(name="w"))
    assert source.name == "w"
    assert list(source.keys) == ["a", "b", "c"]
    assert source.modalities["rgb"].band_names == ("B4", "B3", "B2")
    sample = source.read(1)
    stored = s2_chip(1)
    np.testing.assert_array_equal(sample.pixels["rgb"], stored[[2, 1, 0]])
    assert sample.pixels["rgb"].dtype == np.uint16
    assert sample.calibration["rgb"] == Calibration(scale=1e-4, offset=0.0, level="l2a")
    assert sample.pixels["elevation"].max() == 1
    assert source.modalities["elevation"].unit == "m"
    assert sample.geometry.bounds == (500_000, 3_999_920, 500_080, 4_000_000)
    assert not sample.valid
    assert set(source.read(1, ["elevation"]).pixels) == {"elevation"}
    assert pickle.loads(pickle.dumps(source)).read(1).key == "b"


def test_unnamed_bands_need_a_declaration(world):
    for i, key in enumerate("abc"):
        tif(world / "s2" / f"{key}.tif", s2_chip(i), ("bands",) * 4)
    with pytest.raises(BandError, match=r"a\.tif: rgb: .* does not name its 4 bands.*file_bands"):
        opened(world, spec())
    named = opened(world, spec(file_bands=["B8", "B4", "B3", "B2"])).read(0)
    np.testing.assert_array_equal(named.pixels["rgb"], s2_chip(0)[[1, 2, 3]])
    numbered = opened(world, changed("rgb", channels=[4, 1, 2])).read(0)
    np.testing.assert_array_equal(numbered.pixels["rgb"], s2_chip(0)[[3, 0, 1]])
    with pytest.raises(BandError, match="file_bands names 3 bands, the file has 4"):
        opened(world, spec(file_bands=["B4", "B3", "B2"]))
    with pytest.raises(BandError, match="of a file with 4 band"):
        opened(world, changed("rgb", channels=[1, 2, 5]))
    with pytest.raises(ConfigError, match="expected 3 different number"):
        opened(world, changed("rgb", channels=[1, 2]))


def test_bands_that_a_file_lacks_are_refused_with_those_it_has(world):
    with pytest.raises(BandError, match="no band 'B12'; the file has: B2, B3, B4, B8"):
        opened(world, changed("rgb", bands=["B4", "B12"]))
    with pytest.raises(BandError, match=r"modalities\.rgb: .*no band 'B99'; it has: B1 "):
        opened(world, changed("rgb", bands=["B99"]))
    tif(world / "dem" / "a.tif", np.ones((1, 8, 8), np.int16), ["slope"])
    with pytest.raises(BandError, match="no band 'cop_dem'; the file has: slope"):
        opened(world, spec())


def test_a_chip_with_its_bands_in_another_order_is_read_by_name(world):
    tif(world / "s2" / "c.tif", s2_chip(2)[::-1], S2[::-1])
    np.testing.assert_array_equal(
        opened(world, spec()).read(2).pixels["rgb"], s2_chip(2)[[2, 1, 0]]
    )


def test_nodata_becomes_invalid_and_its_sentinel_goes_no_further(world):
    dem = np.full((1, 8, 8), 5, np.int16)
    dem[0, :2] = -9999
    tif(world / "dem" / "b.tif", dem, nodata=-9999)
    cover = np.full((1, 8, 8), 10, np.uint8)
    cover[0, 0, 0], cover[0, 0, 1] = 0, 255
    tif(world / "cover" / "b.tif", cover)
    sample = opened(world, spec()).read(1)
    assert sample.valid["elevation"].shape == (1, 8, 8)
    assert sample.valid["elevation"].sum() == 48
    assert sample.pixels["elevation"].min() == 0
    assert sample.valid["landcover"].sum() == 62
    declared = opened(world, changed("elevation", nodata=[5, "nan"])).read(1)
    assert declared.valid["elevation"].sum() == 16
    assert declared.pixels["elevation"].min() == -9999


def test_a_modality_that_is_nowhere_valid_is_absent_and_an_empty_chip_refused(world):
    tif(world / "dem" / "b.tif", np.full((1, 8, 8), -9999, np.int16), nodata=-9999)
    assert "elevation" not in opened(world, spec()).read(1).pixels
    tif(world / "cover" / "b.tif", np.zeros((1, 8, 8), np.uint8))
    tif(world / "s2" / "b.tif", np.zeros((4, 8, 8), np.uint16), S2, nodata=0)
    with pytest.raises(DataError, match=r"chip 'b' has no valid pixel.*exclude: \[b\]"):
        opened(world, spec()).read(1)
    assert list(opened(world, spec(exclude=["b"])).keys) == ["a", "c"]


def test_validity_is_per_band_where_bands_differ(world):
    pixels = s2_chip(0)
    pixels[2, 0, 0] = 0
    tif(world / "s2" / "a.tif", pixels, S2, nodata=0)
    valid = opened(world, spec()).read(0).valid["rgb"]
    assert valid.shape == (3, 8, 8)
    np.testing.assert_array_equal(valid.sum((1, 2)), [63, 64, 64])


def test_optional_files_may_be_missing_others_not(world):
    (world / "dem" / "b.tif").unlink()
    with pytest.raises(DataError, match=r"1 chips have no file, first .*b\.tif; .*optional: true"):
        opened(world, spec())
    source = opened(world, changed("elevation", optional=True))
    assert "elevation" not in source.read(1).pixels
    assert "elevation" in source.read(0).pixels
    left_out = opened(world, changed("elevation", exclude=["a", "b"]))
    assert "elevation" not in left_out.read(0).pixels
    with pytest.raises(ConfigError, match=r"modalities\.elevation: no chip 'z'"):
        opened(world, changed("elevation", exclude=["z"]))


@pytest.mark.parametrize(
    ("pixels", "bands", "error", "says"),
    [
        (np.zeros((4, 8, 7), np.uint16), S2, FormatError, "expected 8×8 px"),
        (np.zeros((4, 8, 8), np.float32), S2, FormatError, r"float32, but uint16 in .*a\.tif"),
        (np.zeros((3, 8, 8), np.uint16), ("B2", "B3", "B8"), BandError, "no band 'B4'"),
    ],
)
def test_a_chip_that_differs_from_the_declaration_is_named(world, pixels, bands, error, says):
    tif(world / "s2" / "b.tif", pixels, bands)
    with pytest.raises(error, match=says) as caught:
        opened(world, spec()).read(1)
    assert "b.tif" in str(caught.value)


def test_files_of_one_chip_must_cover_the_same_ground(world):
    tif(world / "dem" / "b.tif", np.ones((1, 8, 8), np.int16), left=40)
    with pytest.raises(DataError, match=r"b\.tif: covers .* reproject"):
        opened(world, spec()).read(1)


def test_a_class_id_outside_the_legend_is_named(world):
    tif(world / "cover" / "c.tif", np.full((1, 8, 8), 11, np.uint8))
    with pytest.raises(
        ClassMapError, match=r"c\.tif: landcover: class id 11 is not in the class map"
    ):
        opened(world, spec()).read(2)


def test_legends_may_be_written_in_the_file(world):
    record = changed("landcover", legend={10: "trees", 80: "water"}, band="cover")
    assert opened(world, record).modalities["landcover"].class_names == ("trees", "water")
    record["modalities"]["landcover"]["legend"] = [
        {"id": 10, "name": "trees", "color": "#006400"},
        {"id": 80, "name": "water", "color": [0, 100, 200]},
    ]
    legend = opened(world, record).modalities["landcover"].classes
    assert [c.color for c in legend] == [(0, 100, 0), (0, 100, 200)]
    record["modalities"]["landcover"]["legend"][0]["color"] = 3328
    with pytest.raises(ConfigError, match=r"legend\[0\]: color: expected \"#rrggbb\""):
        opened(world, record)


def test_custom_modalities_take_the_files_own_names(world):
    record = {
        "chips": "s2/{id}.tif",
        "modalities": {"mine": {"custom": True, "bands": ["b8", "B2"], "unit": "x"}},
    }
    source = opened(world, record)
    assert source.modalities["mine"].band_names == ("b8", "B2")
    np.testing.assert_array_equal(source.read(0).pixels["mine"], s2_chip(0)[[3, 0]])


def test_custom_bands_may_have_wavelengths_and_bandwidths(world):
    """So that weights are transferred to them by wavelength, and `model.spectral` takes them."""
    mine = {"custom": True, "bands": ["b8", "B2"], "unit": "reflectance"}

    def bands(**more: object):
        record = {"chips": "s2/{id}.tif", "modalities": {"mine": {**mine, **more}}}
        return opened(world, record).modalities["mine"].bands

    read = bands(wavelengths=[0.865, 0.49], bandwidths=[0.04, 0.05])
    assert [(b.wavelength_um, b.bandwidth_um) for b in read] == [(0.865, 0.04), (0.49, 0.05)]
    assert [b.bandwidth_um for b in bands(wavelengths=[0.865, 0.49])] == [None, None]
    with pytest.raises(
        ConfigError, match=r"modalities\.mine: wavelengths: expected a number in µm"
    ):
        bands(wavelengths=[0.865])
    with pytest.raises(ConfigError, match=r"wavelengths: expected 0\.2 to 20 µm; 30 nm are 0\.03"):
        bands(wavelengths=[865, 490])
    with pytest.raises(ConfigError, match=r"bandwidths: give `wavelengths` as well"):
        bands(bandwidths=[0.04, 0.05])
    with pytest.raises(ConfigError, match=r"bandwidths: that of B2 exceeds its wavelength"):
        bands(wavelengths=[0.865, 0.49], bandwidths=[0.04, 5])
    with pytest.raises(ConfigError, match=r"bandwidths: expected 0\.001 to 10 µm"):
        bands(bandwidths=[math.nan, 0.05])
    with pytest.raises(ConfigError, match="gsd: expected metres per pixel, above 0"):
        bands(gsd=-10)
    for other in (changed("rgb", wavelengths=[0.6, 0.5, 0.4]), changed("landcover", bandwidths=1)):
        with pytest.raises(ConfigError, match="only bands of `custom: true` need it; leave it out"):
            opened(world, other)


@pytest.mark.parametrize(
    ("given", "unit"), [("Reflectance", "reflectance"), ("db", "dB"), ("K", "K"), ("mm", "mm")]
)
def test_units_of_the_catalogue_are_recognised_in_any_case(world, given, unit):
    mine = {"custom": True, "bands": ["b8", "B2"], "unit": given}
    record = {"chips": "s2/{id}.tif", "modalities": {"mine": mine}}
    assert opened(world, record).modalities["mine"].unit == unit


def test_levels_scale_and_offset_may_differ_by_chip(world):
    record = changed("rgb", level={"column": "level"}, offset={"column": "offset"})
    source = opened(world, {**record, "splits": "chips.csv", "time": {"column": "split"}})
    found = [source.read(i).calibration["rgb"] for i in range(3)]
    assert [c.level for c in found] == ["l1c", "l2a", "l2a"]
    assert [c.offset for c in found] == [-0.1, 0.0, 0.0]
    assert source.read(0).time == "train"
    with pytest.raises(
        ConfigError, match=r"data\.yaml: modality 'rgb': product level: got '(forest|water)'"
    ):
        opened(world, {**changed("rgb", level={"column": "label"}), "table": "chips.csv"})
    inline = opened(world, changed("rgb", offset={"default": 0, "chips": {"b": -0.1}}))
    assert [inline.read(i).calibration["rgb"].offset for i in range(3)] == [0.0, -0.1, 0.0]


def test_splits_from_a_table_keep_unlisted_chips_out_of_training(world):
    source = opened(world, spec(splits="chips.csv"))
    assert list(source.split_of) == ["train", "val", "test"]
    (world / "chips.csv").write_text("file,split\ns2/a.tif,train\nb.tif,val\n")
    source = opened(world, spec(splits="chips.csv"))
    assert list(source.split_of) == ["train", "val", "unlisted"]
    train, val = source.train_val()
    assert [*train, *val] == [0, 1]


def test_splits_by_fraction_are_stable_when_chips_are_added(tmp_path):
    for i in range(200):
        np.save(tmp_path / f"{i}.npy", np.ones((1, 2, 2), np.float32))
    record = {
        "chips": "{id}.npy",
        "splits": {"val": 0.2, "test": "0.3"},
        "modalities": {"elevation": {"band": "cop_dem"}},
    }
    before = opened(tmp_path, record)
    shares = [before.split_of.count(s) / 200 for s in ("train", "val", "test")]
    np.testing.assert_allclose(shares, [0.5, 0.2, 0.3], atol=0.1)
    np.save(tmp_path / "new.npy", np.ones((1, 2, 2), np.float32))
    later = opened(tmp_path, record)
    after = dict(zip(later.keys, later.split_of, strict=True))
    assert len(after) == 201
    assert all(after[k] == s for k, s in zip(before.keys, before.split_of, strict=True))


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("id,split\nz,train\nb,val\n", SplitError, "1 of 2 chips have no file: 'z'"),
        ("id,split\na,train\na,val\n", SplitError, "'a' is listed twice"),
        ("id,split\na,\n", SplitError, "'a' has an empty split"),
        ("id,split\n", SplitError, "lists no chip"),
        ("id,set\na,train\n", ConfigError, "no column 'split'; valid: id, set"),
        ("name,split\na,train\n", ConfigError, "needs a column `id` or `file`"),
        (b"\xff\xfe\x00", ConfigError, "cannot be read as CSV"),
    ],
)
def test_a_bad_table_is_refused(world, text, error, says):
    (world / "chips.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error, match=says) as caught:
        opened(world, spec(splits="chips.csv"))
    assert "chips.csv" in str(caught.value)


def test_class_labels_from_columns_folders_and_numbers(world):
    source = opened(world, spec(splits="chips.csv", labels={"column": "label"}))
    assert source.class_names == ("forest", "water")
    assert [source.read(i).label for i in range(3)] == [0, 1, 0]
    with pytest.raises(ClassMapError, match=r"chips\.csv: chip 'b': no class 'water'"):
        opened(world, spec(splits="chips.csv", labels={"column": "label", "classes": ["forest"]}))
    folder = opened(world, spec(labels={"folder": True}))
    assert folder.class_names == ("s2",)
    numeric = opened(world, spec(table="chips.csv", labels={"column": "offset", "numeric": True}))
    assert numeric.read(0).label == np.float32(-0.1)
    assert numeric.read(2).label is None
    (world / "many.csv").write_text("id,tags\na,x;y\nb,y\nc,z\n")
    many = opened(world, spec(table="many.csv", labels={"column": "tags", "separator": ";"}))
    np.testing.assert_array_equal(many.read(0).label, [1, 1, 0])


def test_mask_labels_map_ids_and_ignore(world):
    labels: dict[str, object] = {
        "mask": "mask/{id}.png", "classes": ["land", "water"], "ignore": [255],
    }  # fmt: skip
    source = opened(world, spec(labels=labels))
    label = source.read(0).label
    assert label.dtype == np.int64
    np.testing.assert_array_equal(label, np.eye(8))
    ids = np.zeros((8, 8), np.uint8)
    ids[0, :3] = 1, 255, 7
    Image.fromarray(ids).save(world / "mask" / "b.png")
    with pytest.raises(ClassMapError, match=r"b\.png: mask id 7 is neither a class nor ignored"):
        source.read(1)
    labels["ids"] = {0: "water", 1: "land", 7: "land"}
    label = opened(world, spec(labels=labels)).read(1).label
    assert label[0, :4].tolist() == [0, -1, 0, 1]
    Image.fromarray(ids[:4]).save(world / "mask" / "c.png")
    with pytest.raises(FormatError, match=r"c\.png: the label mask is 4×8 px, the chips are 8×8"):
        source.read(2)
    (world / "mask" / "c.png").unlink()
    with pytest.raises(DataError, match="1 chips have no file"):
        opened(world, spec(labels=labels))
    assert opened(world, spec(labels={**labels, "optional": True})).read(2).label is None


def test_images_and_per_chip_folders(tmp_path):
    for key in ("x/1", "y/2"):
        folder = tmp_path / key
        folder.mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "image.png")
        Image.fromarray(pixels).save(folder / "._image.png", format="png")
    record = {
        "chips": "{id}/image.png",
        "modalities": {"rgb": {"sensor": "rgb", "bands": ["blue", "red"]}},
    }
    source = opened(tmp_path, record)
    assert list(source.keys) == ["x/1", "y/2"]
    np.testing.assert_array_equal(source.read(0).pixels["rgb"], np.moveaxis(pixels, -1, 0)[[2, 0]])


def test_files_are_read_once_a_sample(world, monkeypatch):
    from multimae_eo.sources.dataset import dataset_file

    record = changed("rgb", bands=["B4"])
    record["modalities"]["nir"] = {"sensor": "s2", "bands": ["B8"], "level": "l2a"}
    source = opened(world, record)
    read, paths = read_raster, []
    monkeypatch.setattr(
        dataset_file, "read_raster", lambda p, **layout: paths.append(p.name) or read(p, **layout)
    )
    monkeypatch.setattr(dataset_file, "read_header", None)
    source.read(0)
    assert len(paths) == 3


def test_a_scale_that_only_the_file_declares_is_not_dropped(world):
    for key in "abc":
        with rasterio.open(world / "s2" / f"{key}.tif", "r+") as out:
            out.scales = (1e-4,) * 4
    source = opened(world, changed("rgb", scale=None))
    assert source.modalities["rgb"].scale == 1e-4
    assert source.read(0).calibration["rgb"] == Calibration(scale=1e-4, offset=0.0, level="l2a")
    ignored = opened(world, changed("rgb", scale=1))
    assert ignored.read(0).calibration["rgb"].scale == 1
    with pytest.raises(BandError, match=r"data\.yaml declares scale 0\.001, the file's tag is 0"):
        opened(world, changed("rgb", scale=1e-3))


def bad(**keys):
    record = spec()
    record.update(keys)
    return record


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (bad(chip="x"), "unknown key 'chip'; did you mean 'chips'"),
        (changed("rgb", sclae=1), "rgb: unknown key 'sclae'; did you mean 'scale'"),
        (bad(labels={"masks": 1}), "labels: unknown key 'masks'; did you mean 'mask'"),
        (bad(labels={"mask": "m/{id}.png"}), "classes: a mask needs"),
        (bad(labels={"column": "a", "folder": True}), "give one of column, folder, mask"),
        (bad(chips="s2/x.tif"), r"chips: the path 's2/x.tif' needs \{id\}"),
        (bad(chips="s2/{id}_{band}.tif"), r"knows only \{id\} and \{date\}, not \{band\}"),
        (bad(modalities={}), "name at least one modality"),
        (bad(root="nowhere"), "nowhere is not a folder"),
        (bad(size=-3), "size: expected pixels"),
        (bad(splits={"val": 1.5}), "fractions lie between 0 and 1"),
        (bad(splits={"train": 0.5}), "fractions of all but train"),
        (bad(exclude=["q"]), "no chip 'q'"),
        (bad(splits="none.csv"), r"none\.csv: no such file"),
        (changed("rgb", level=None), "level: required for sentinel2; one of l1c, l2a"),
        (changed("rgb", level="l3"), "level: valid: l1c, l2a; got 'l3'"),
        (changed("elevation", level="l2a"), "dem has no product levels"),
        (changed("rgb", sensor="sentinel3"), "rgb: no sensor 'sentinel3'; did you mean"),
        (changed("rgb", sensor=None), "a wavelength needs `sensor:`"),
        (changed("rgb", scale=0), "finite number ≠ 0"),
        (changed("rgb", scale="x"), "expected a finite number"),
        (changed("rgb", bands=[True]), "expected a list of band names"),
        (
            changed("landcover", legend="esa_worldcove"),
            "no class map 'esa_worldcove'; did you mean",
        ),
        (changed("landcover", legend=None, band="esa_worldcover"), "legend: esa_worldcover"),
        (changed("landcover", kind="continuous"), "is categorical"),
        (changed("landcover", scale=2), "class ids have no scale"),
        (changed("elevation", kind="categorical"), "needs `legend:`"),
        (changed("elevation", nodata="none"), "expected a number, nan"),
    ],
)
def test_a_wrong_key_is_named_with_its_remedy(world, record, says):
    with pytest.raises(ConfigError, match=says) as caught:
        opened(world, record)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a\nchips: [b\n", "line 3: YAML"),
        ("name: a\nname: b\n", "line 2: YAML: key 'name' is given twice"),
        ("- a\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("name: !!python/object:os.system x\n", "line 1: YAML: could not determine a constructor"),
        ("time: 2021-13-45\n", "YAML: month must be in"),
    ],
)
def test_bad_yaml_is_told_with_its_line(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        opened(tmp_path, text)


COUNTS = (
    {"eurosat_ms": 800, "s2_l2a_unlabelled": 500, "s2_l2a_unlabelled_more": 2000, "hls_water": 260,
     "terramind_examples": 5, "sen1floods11": 5}
    if REAL_DATA
    else example_data.COUNTS
)  # fmt: skip
SPLITS = (
    {"eurosat_ms": {"train": 500, "test": 200, "val": 100},
     "hls_water": {"train": 190, "test": 40, "val": 30}}
    if REAL_DATA
    else example_data.SPLITS
)  # fmt: skip


@needs_data
@pytest.mark.parametrize("name", COUNTS)
def test_the_examples_open_and_read(name):
    source = open_source(ROOT / "examples" / f"{name}.yaml")
    count = COUNTS[name]
    assert len(source) == count
    if name in SPLITS:
        assert {s: len(source.split(s)) for s in source.splits} == SPLITS[name]
    else:
        drawn = name.startswith("s2_l2a_unlabelled")
        assert set(source.splits) == ({"train", "val"} if drawn else set())
    step = max(1, count // 5)
    statistics = source.statistics(range(0, count, step))
    for modality in source.modalities.values():
        if modality.unit == "reflectance":
            mean, _ = statistics.mean_std(modality.name)
            assert ((mean > 0.0) & (mean < 0.8)).all(), modality.name


@needs_data
def test_eurosat_takes_b8a_from_the_last_band():
    source = open_source(ROOT / "examples" / "eurosat_ms.yaml")
    with rasterio.open(DATA / "eurosat_ms" / f"{source.keys[7]}.tif") as file:
        np.testing.assert_array_equal(source.read(7).pixels["ebands"], file.read([13, 8]))
    assert source.class_names[source.read(7).label] == source.keys[7].split("/")[0]


@needs_data
def test_both_levels_of_sentinel2_become_one_modality_set():
    both = open_source(
        [ROOT / "examples" / f"{n}.yaml" for n in ("eurosat_ms", "s2_l2a_unlabelled")]
    )
    assert both.modalities.names == ("rgb", "ired", "sired", "ebands")
    batch = both.batch([both.keys[0], both.keys[-1]])
    assert batch.level.tolist() == [[0] * 4, [1] * 4]
    assert batch.complete


@needs_data
def test_terramind_and_sen1floods11_share_a_batch():
    parts = [
        open_source(ROOT / "examples" / f"{n}.yaml") for n in ("terramind_examples", "sen1floods11")
    ]
    both = ConcatSource(parts)
    samples = []
    for key in ("terramind-examples/433D_629L_3_1", "sen1floods11/Nigeria_812045"):
        sample = both.read(both.index_of(key))
        side = sample.pixels["radar"].shape[-1]
        samples.append(crop(sample, top=0, left=0, size=112 / side))
    batch = collate(samples, both.modalities)
    column = both.modalities.index
    assert batch.pixels["radar"].shape == (2, 2, 112, 112)
    assert batch.present[:, column("radar")].tolist() == [True, True]
    assert batch.present[:, column("rgb")].tolist() == [True, False]
    assert batch.present[:, column("ndvi")].tolist() == [False, False]
    assert batch.offset[0, column("rgb")].item() == pytest.approx(-0.1)
    whole = both.read(both.index_of("sen1floods11/Nigeria_812045"))
    assert (~whole.valid["radar"]).sum() == 579
    assert set(np.unique(whole.label)) == {-1, 0, 1}


@needs_data
def test_terraminds_offset_chip_reads_as_dark_as_the_others_after_its_offset():
    source = open_source(ROOT / "examples" / "terramind_examples.yaml")
    for key in ("433D_629L_3_1", "282D_485L_3_3", "637U_59R_1_3"):
        sample = source.read(source.index_of(key))
        how = sample.calibration["sired"]
        water = sample.pixels["sired"].min() * how.scale + how.offset
        assert -0.01 < water < 0.03, key
