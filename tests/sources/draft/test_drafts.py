"""``init``: what is recognised in folders, what stays blank, and that drafts are read back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from multimae_eo.cli.main import main
from multimae_eo.errors import ConfigError, DataError, FormatError, OutputError
from multimae_eo.loading.open_source import open_source
from multimae_eo.sources.draft.drafting import draft_of
from multimae_eo.sources.scene.scene import Scene
from tests.support.paths import DATA, REAL_DATA, ROOT
from tests.support.product_files import write_raster
from tests.support.scene_files import write

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="its data need rasterio")

TEN = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
EUROSAT = ("AnnualCrop", "Forest", "Highway", "Pasture", "River", "SeaLake")


def chip(path: Path, names: tuple[str, ...], seed: int = 0, dtype: str = "uint16") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(1, 3000, (len(names), 8, 8)).astype(dtype)
    write(path, pixels, names, nodata=None)


def mask(path: Path, ids: tuple[int, ...], seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).choice(ids, (8, 8)).astype(np.uint8)
    values.flat[: len(ids)] = ids
    Image.fromarray(values).save(path)


def filled(draft_text: str, **values: object) -> str:
    """A draft with its blanks filled in, by key."""
    for key, value in values.items():
        draft_text = re.sub(rf"(?m)^( *{key}:) \?\?\?$", rf"\1 {value}", draft_text)
    assert "???" not in draft_text
    return draft_text


def photos(folder: Path, classes: tuple[str, ...] = ("forest", "water"), count: int = 10) -> None:
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(100 * k + i).integers(0, 255, (8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


# Class folders --------------------------------------------------------------------------------


def test_class_folders_are_a_source_as_they_are(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    source = open_source(tmp_path / "photos")
    assert source.name == "photos"
    assert source.class_names == ("forest", "water")
    assert source.modalities["rgb"].band_names == ("red", "green", "blue")
    assert [source.split_of.count(s) for s in ("train", "val", "test")] == [14, 2, 4]
    labels = {key: source.read(i).label for i, key in enumerate(source.keys)}
    assert labels["forest/3"] == 0
    assert labels["water/3"] == 1


def test_the_drawn_splits_are_the_same_everywhere_and_stratified(tmp_path: Path) -> None:
    photos(tmp_path / "a")
    photos(tmp_path / "b")
    one, two = open_source(tmp_path / "a"), open_source(tmp_path / "b")
    assert one.split_of == two.split_of
    test = [k for k, s in zip(one.keys, one.split_of, strict=True) if s == "test"]
    assert sorted(k.split("/")[0] for k in test) == ["forest"] * 2 + ["water"] * 2
    assert "drawn by a hash" in draft_of([tmp_path / "a"]).text().replace("\n# ", " ")


def test_class_folders_of_numbers_are_no_layers(tmp_path: Path) -> None:
    """Files of one name in every class: 1.png of forest and 1.png of water."""
    photos(tmp_path, classes=("forest", "water", "town"))
    assert open_source(tmp_path).class_names == ("forest", "town", "water")


def test_folders_of_splits_above_class_folders(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        photos(tmp_path / split, count=2 + (split == "train"))
    source = open_source(tmp_path)
    assert source.class_names == ("forest", "water")
    assert [source.split_of.count(s) for s in ("train", "val", "test")] == [6, 4, 4]
    index = source.index_of("val/water/1")
    assert source.split_of[index] == "val"
    assert source.read(index).label == 1


def test_files_outside_of_the_splits_are_unlisted(tmp_path: Path) -> None:
    photos(tmp_path / "train")
    photos(tmp_path / "more")
    (tmp_path / "d.yaml").write_text(
        'chips: "{id}.png"\nmodalities: {rgb: {sensor: rgb, bands: [red, green, blue]}}\n'
        "splits: folder\n"
    )
    assert set(open_source(tmp_path / "d.yaml").split_of) == {"train", "unlisted"}
    (tmp_path / "d.yaml").write_text(
        (tmp_path / "d.yaml").read_text().replace('"{id}.png"', '"more/{id}.png"')
    )
    with pytest.raises(Exception, match="no folder of 'forest/0' is named train, val or test"):
        open_source(tmp_path / "d.yaml")


def test_eurosat_is_recognised_with_and_without_band_names(tmp_path: Path) -> None:
    bands = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12",
             "B8A")  # fmt: skip
    for k, name in enumerate(EUROSAT):
        for i in range(3):
            chip(tmp_path / "named" / name / f"{name}_{i}.tif", bands, 10 * k + i)
            chip(tmp_path / "plain" / name / f"{name}_{i}.tif", ("",) * 13, 10 * k + i)
    named, plain = open_source(tmp_path / "named"), open_source(tmp_path / "plain")
    assert named.modalities["rgb"].scale == 1.0e-4
    a, b = named.read(4), plain.read(4)
    for name in ("rgb", "ired", "sired", "ebands"):
        assert a.calibration[name].level == "l1c"
        np.testing.assert_array_equal(a.pixels[name], b.pixels[name])


def test_a_split_table_beside_the_folders_is_used(tmp_path: Path) -> None:
    photos(tmp_path, count=3)
    rows = [f"{c}/{i}.png,{('train', 'val', 'test')[i]}" for c in ("forest", "water")
            for i in range(3)]  # fmt: skip
    (tmp_path / "split.csv").write_text("\n".join(["file,split", *rows]) + "\n")
    source = open_source(tmp_path)
    assert source.split_of == ["train", "val", "test"] * 2


# Blanks ---------------------------------------------------------------------------------------


def test_what_files_do_not_show_is_a_blank_that_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4):
        chip(tmp_path / "chips" / f"{i}.tif", TEN, i)
    assert main(["init", str(tmp_path / "chips"), "--out", str(tmp_path / "d.yaml")]) == 0
    text = (tmp_path / "d.yaml").read_text()
    lines = text.splitlines()
    level = lines.index("    level: ???") + 1
    printed = capsys.readouterr().out
    assert f"d.yaml, line {level}: fill in `level: ???`" in printed
    assert "fill in `scale: ???`" in printed
    assert "values 1 to 2" in text
    with pytest.raises(ConfigError, match=rf"d\.yaml, line {level}: modalities\.rgb\.level: repl"):
        open_source(tmp_path / "d.yaml")
    assert main(["prepare", str(tmp_path / "d.yaml"), "--out", str(tmp_path / "store")]) == 1
    assert f"line {level}:" in capsys.readouterr().err
    (tmp_path / "d.yaml").write_text(filled(text, level="l2a", scale="1.0e-4"))
    source = open_source(tmp_path / "d.yaml")
    assert set(source.modalities) == {"rgb", "ired", "sired", "ebands"}
    assert all(m.scale == 1.0e-4 for m in source.modalities.values())
    assert source.read(0).calibration["sired"].level == "l2a"


def test_a_folder_with_a_blank_is_no_source_and_names_the_command(tmp_path: Path) -> None:
    for i in range(4):
        chip(tmp_path / "chips" / f"{i}.tif", TEN, i)
    with pytest.raises(ConfigError, match=r"modalities\.rgb\.level, .* init .*chips --out dataset"):
        open_source(tmp_path / "chips")


def test_bands_without_names_are_blanks(tmp_path: Path) -> None:
    for i in range(4):
        chip(tmp_path / f"{i}.tif", ("", "", ""), i)
    draft = draft_of([tmp_path])
    assert {b.rpartition(".")[2] for b in draft.blanks} == {"sensor", "bands", "file_bands",
                                                            "scale"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "values", "scale"),
    [("S1_VV", -15.0, 1), ("S1_VV", 0.1, "???"), ("S2_L2A", 0.2, 1), ("S2_L2A", 900.0, "???")],
)
def test_scale_is_taken_from_values_only_where_they_leave_no_doubt(
    tmp_path: Path, name: str, values: float, scale: object
) -> None:
    bands = ("VV", "VH") if name.startswith("S1") else ("B4", "B3", "B2")
    for i in range(4):
        pixels = np.full((len(bands), 8, 8), values, np.float32)
        write(tmp_path / f"{name}_{i}.tif", pixels, bands, nodata=None)
    text = draft_of([tmp_path]).text()
    assert re.findall(r"(?m)^    scale: (.*)$", text) == [str(scale)]


def test_a_quoted_or_commented_blank_is_text(tmp_path: Path) -> None:
    photos(tmp_path / "p")
    text = draft_of([tmp_path / "p"]).text() + "# ???\n"
    (tmp_path / "d.yaml").write_text(text.replace("name: p", 'name: "???"'))
    assert open_source(tmp_path / "d.yaml").name == "???"


# Images and masks, layers, tables -------------------------------------------------------------


def pairs(folder: Path, ids: tuple[int, ...] = (0, 3, 255)) -> None:
    for i in range(6):
        chip(folder / "images" / f"{i}.tif", ("VV", "VH"), i, dtype="float32")
        write(
            folder / "images" / f"{i}.tif",
            np.full((2, 8, 8), -12.0 - i, np.float32), ("VV", "VH"), nodata=None,
        )  # fmt: skip
        mask(folder / "labels" / f"{i}.png", ids, i)


def test_images_and_masks_are_a_source_as_they_are(tmp_path: Path) -> None:
    pairs(tmp_path)
    source = open_source(tmp_path)
    assert source.class_names == ("class_0", "class_3")
    label = source.read(0).label
    assert set(np.unique(label)) == {-1, 0, 1}
    with Image.open(tmp_path / "labels" / "0.png") as image:
        ids = np.asarray(image)
    np.testing.assert_array_equal(label, np.select([ids == 0, ids == 3], [0, 1], -1))


def test_pairs_in_one_folder_and_endings_of_names(tmp_path: Path) -> None:
    pairs(tmp_path / "two")
    (tmp_path / "one").mkdir()
    for i in range(6):
        for folder, ending in (("images", "_img.tif"), ("labels", "_mask.png")):
            (file,) = (tmp_path / "two" / folder).glob(f"{i}.*")
            (tmp_path / "one" / f"{i}{ending}").write_bytes(file.read_bytes())
    one, two = open_source(tmp_path / "one"), open_source(tmp_path / "two")
    assert list(one.keys) == list(two.keys)
    for i in range(6):
        np.testing.assert_array_equal(one.read(i).label, two.read(i).label)


def test_a_mask_is_known_by_its_values_where_no_name_shows_it(tmp_path: Path) -> None:
    pairs(tmp_path / "x", ids=(1, 2))
    (tmp_path / "x" / "images").rename(tmp_path / "x" / "radar")
    (tmp_path / "x" / "labels").rename(tmp_path / "x" / "annual")
    draft = draft_of([tmp_path / "x"])
    assert any("annual: one band of few whole values" in line for line in draft.evidence)
    assert open_source(tmp_path / "x").class_names == ("class_1", "class_2")


def test_a_folder_per_sensor_and_chips_that_lack_one(tmp_path: Path) -> None:
    pairs(tmp_path)
    for i in range(4):
        pixels = np.full((1, 8, 8), 100 + i, np.int16)
        (tmp_path / "DEM").mkdir(exist_ok=True)
        write(tmp_path / "DEM" / f"{i}.tif", pixels, ("",), nodata=None)
    source = open_source(tmp_path)
    assert set(source.modalities) == {"elevation", "sentinel1"}
    assert set(source.read(5).pixels) == {"sentinel1"}
    assert source.read(1).pixels["elevation"].flat[0] == 101


def test_a_table_gives_labels_and_splits(tmp_path: Path) -> None:
    for i in range(4):
        pixels = np.full((2, 8, 8), -12.0 - i, np.float32)
        write(tmp_path / f"{i}.tif", pixels, ("VV", "VH"), nodata=None)
    rows = {"id": ["0", "1", "2", "3"], "label": ["wet", "dry", "wet", "dry"],
            "split": ["train", "train", "val", "test"]}  # fmt: skip
    pq.write_table(pa.table(rows), tmp_path / "chips.parquet")
    source = open_source(tmp_path)
    assert source.class_names == ("dry", "wet")
    assert list(source.split_of) == rows["split"]
    assert source.read(0).label == 1
    (tmp_path / "chips.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "d.yaml").write_text(
        'chips: "{id}.tif"\nmodalities: {sentinel1: {}}\nsplits: chips.parquet\n'
    )
    with pytest.raises(ConfigError, match=r"chips\.parquet: cannot be read as Parquet"):
        open_source(tmp_path / "d.yaml")


def test_a_folder_per_chip_with_a_file_per_band(tmp_path: Path) -> None:
    sizes = {"B02": 12, "B03": 12, "B04": 12, "B05": 6, "B8A": 6}
    for key in ("S2A_MSIL2A_1", "S2A_MSIL2A_2"):
        (tmp_path / key).mkdir()
        for name, side in sizes.items():
            pixels = np.full((1, side, side), int(key[-1]) * 100 + side, np.uint16)
            write_raster(tmp_path / key / f"{key}_{name}.tif", pixels, 120 / side)
    draft = draft_of([tmp_path])
    assert {b.rpartition(".")[2] for b in draft.blanks} == {"scale"}
    (tmp_path / "d.yaml").write_text(filled(draft.text(tmp_path), scale="1.0e-4"))
    source = open_source(tmp_path / "d.yaml")
    assert list(source.keys) == ["S2A_MSIL2A_1", "S2A_MSIL2A_2"]
    sample = source.read(1)
    assert {n: p.shape for n, p in sample.pixels.items()} == {
        "optical_12px": (3, 12, 12), "optical_6px": (2, 6, 6),
    }  # fmt: skip
    assert sample.pixels["optical_6px"][1, 0, 0] == 206
    assert sample.calibration["optical_12px"].level == "l2a"


# Scenes ---------------------------------------------------------------------------------------


def test_a_raster_is_drafted_as_a_scene(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    optical = rng.uniform(0, 0.5, (3, 64, 64)).astype(np.float32)
    write(tmp_path / "S2_L2A_20210527.tif", optical, ("B4", "B3", "B2"), nodata=None)
    write(tmp_path / "srtm.tif", rng.integers(0, 500, (1, 64, 64)).astype(np.int16), ("",))
    draft = draft_of([tmp_path])
    assert (draft.kind, draft.blanks, draft.doubts) == ("scene", (), ())
    (tmp_path / "scene.yaml").write_text(draft.text(tmp_path))
    scene = Scene(tmp_path / "scene.yaml")
    assert scene.time == "2021-05-27"
    assert set(scene.modalities) == {"rgb", "elevation"}
    sample = scene.read(scene.grid.extent)
    np.testing.assert_array_equal(sample.pixels["rgb"], optical)


def test_tiles_are_one_modality_by_a_pattern_that_takes_no_other(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / f"s1_tile{i}.tif", np.full((2, 16, 16), -9.0 - i, np.float32),
              ("VV", "VH"), nodata=None)  # fmt: skip
    write(tmp_path / "s1_tile_dem.tif", np.ones((1, 40, 40), np.int16), ("",))
    text = draft_of([tmp_path]).text(tmp_path)
    assert "s1_tile0.tif, s1_tile1.tif" in text  # the pattern s1_tile*.tif would take the DEM


def test_files_of_one_ground_are_no_mosaic_without_a_doubt(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / f"S1_RTCx_{i}.tif", np.full((2, 2000, 16), -9.0 - i, np.float32),
              ("VV", "VH"), nodata=None)  # fmt: skip
    assert "cover the same ground" in draft_of([tmp_path]).doubts[0]
    with pytest.raises(ConfigError, match="cover the same ground"):
        open_source(tmp_path)


@pytest.mark.parametrize(("fields", "column"), [(("crop",), "crop"), (("crop", "year"), "???")])
def test_a_vector_file_beside_the_rasters_gives_labels(
    tmp_path: Path, fields: tuple[str, ...], column: str
) -> None:
    optical = np.full((3, 64, 64), 0.2, np.float32)
    write(tmp_path / "S2_L2A.tif", optical, ("B4", "B3", "B2"), nodata=None)
    square = [[500000, 5799900], [500100, 5799900], [500100, 5800000], [500000, 5799900]]
    features = [
        {
            "type": "Feature",
            "properties": dict.fromkeys(fields, "maize"),
            "geometry": {"type": "Polygon", "coordinates": [square]},
        }
    ]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32630"}}
    record = {"type": "FeatureCollection", "crs": crs, "features": features}
    (tmp_path / "fields.geojson").write_text(json.dumps(record))
    text = draft_of([tmp_path]).text(tmp_path)
    assert "  vector: fields.geojson" in text
    assert f"  column: {column}\n" in text
    (tmp_path / "scene.yaml").write_text(text.replace("column: ???", "column: crop"))
    labels = Scene(tmp_path / "scene.yaml").labels
    assert labels is not None
    assert labels.column == "crop"


def test_several_dates_are_a_doubt_and_the_draft_names_one(tmp_path: Path) -> None:
    for date in ("20210527", "20210606"):
        write(tmp_path / f"S2_L2A_{date}.tif", np.full((3, 2000, 16), 0.1, np.float32),
              ("B4", "B3", "B2"), nodata=None)  # fmt: skip
    draft = draft_of([tmp_path])
    assert "files of 2 dates (2021-05-27, 2021-06-06)" in draft.doubts[0]
    assert "S2_L2A_20210606.tif" in draft.text()
    with pytest.raises(ConfigError, match="files of 2 dates"):
        open_source(tmp_path)


# Bad input ------------------------------------------------------------------------------------


def test_bad_input_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        draft_of([tmp_path / "nowhere"])
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match="no image is in it; recognised are class folders"):
        draft_of([tmp_path])
    photos(tmp_path / "p")
    (tmp_path / "p" / "water" / "0.png").write_bytes(b"\x89PNG damaged")
    with pytest.raises(FormatError, match=r"water/0\.png: cannot be read"):
        draft_of([tmp_path / "p"])
    assert main(["init", str(tmp_path / "p")]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    from multimae_eo import init

    photos(tmp_path / "p")
    out = tmp_path / "d.yaml"
    assert init(tmp_path / "p", out=out).blanks == ()
    before = out.read_text()
    with pytest.raises(OutputError, match="exists; remove it"):
        init(tmp_path / "p", out=out)
    assert out.read_text() == before
    assert "root: p\n" in before


def test_splits_above_images_and_masks_are_explained(tmp_path: Path) -> None:
    pairs(tmp_path / "train")
    pairs(tmp_path / "val")
    with pytest.raises(DataError, match="images/train"):
        draft_of([tmp_path])


# Real data ------------------------------------------------------------------------------------


@needs_data
def test_real_class_folders_equal_their_dataset_file() -> None:
    drafted = open_source(DATA / "eurosat_ms")
    written = open_source(ROOT / "examples/eurosat_ms.yaml")
    sizes = [500, 100, 200] if REAL_DATA else [150, 30, 60]
    assert [drafted.split_of.count(s) for s in ("train", "val", "test")] == sizes
    assert len(drafted) == sum(sizes)
    assert len(drafted.class_names) == 10
    for index in (0, len(drafted) // 2, len(drafted) - 1):
        a, b = drafted.read(index), written.read(written.index_of(drafted.keys[index]))
        assert a.label == b.label
        assert a.calibration == b.calibration
        for name in b.pixels:
            np.testing.assert_array_equal(a.pixels[name], b.pixels[name])


@needs_data
def test_real_chips_of_a_file_per_band(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(DATA / "bigearthnet_examples" / "BigEarthNet-S2-Example.tar.bz2") as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    draft = draft_of([folder])
    (tmp_path / "d.yaml").write_text(filled(draft.text(tmp_path), scale="1.0e-4"))
    source = open_source(tmp_path / "d.yaml")
    shapes = {n: p.shape for n, p in source.read(0).pixels.items()}
    assert shapes == {
        "optical_120px": (4, 120, 120), "optical_60px": (6, 60, 60), "optical_20px": (2, 20, 20),
    }  # fmt: skip


@needs_data
def test_real_images_and_masks_are_a_source_as_they_are() -> None:
    source = open_source(DATA / "hls_water")
    sizes = [190, 30, 40] if REAL_DATA else [84, 15, 21]
    assert [source.split_of.count(s) for s in ("train", "val", "test")] == sizes
    assert set(source.modalities) == {"optical", "elevation", "landcover"}
    assert source.read(0).label.shape == (128, 128)
