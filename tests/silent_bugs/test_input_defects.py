"""Inputs that were misread, dropped or destroyed without a word; each test holds one kind."""

from __future__ import annotations

import io
import sys
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")

from multimae_eo import open_source  # noqa: E402
from multimae_eo.cli.main import main  # noqa: E402
from multimae_eo.errors import (  # noqa: E402
    ClassMapError,
    ConfigError,
    DataError,
    FormatError,
    OutputError,
    SplitError,
)
from multimae_eo.sources.input_paths import require_separate_outputs  # noqa: E402
from multimae_eo.sources.raster.reading import read_raster  # noqa: E402

RGB = "{sensor: sentinel2, bands: [B4, B3, B2], level: l2a, scale: 1.0e-4"
_RNG = np.random.default_rng(0)


def raster(path: Path, pixels: np.ndarray | None = None, **more: object) -> Path:
    """A GeoTIFF of three named bands, or of the given pixels (C, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = _RNG.integers(300, 3000, (3, 32, 32)).astype("uint16")
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width,
        dtype=pixels.dtype.name, crs="EPSG:32630",
        transform=rasterio.transform.from_origin(500000, 5600000, 10, 10), **more,
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
        if count == 3:
            dataset.descriptions = ("B4", "B3", "B2")
    return path


def dataset(folder: Path, rest: str = "", *, chips: str = "{id}.tif", name: str = "d.yaml") -> Path:
    path = folder / name
    path.write_text(f'chips: "{chips}"\nmodalities:\n  rgb: {RGB}}}\n{rest}', encoding="utf-8")
    return path


def table(path: Path, head: str, *rows: str) -> None:
    path.write_text("\n".join((head, *rows)) + "\n", encoding="utf-8")


# Names of files -------------------------------------------------------------------------------


def test_extensions_in_any_case_are_one_kind(tmp_path: Path) -> None:
    for i, ending in enumerate(("tif", "TIF", "tiff", "Tiff")):
        raster(tmp_path / f"c/{i}.{ending}")
    source = open_source(dataset(tmp_path, chips="c/{id}.tif"))
    assert source.keys == ["0", "1", "2", "3"]
    assert all(source.read(i).pixels for i in range(4))


def test_two_files_of_one_chip_are_refused_unless_one_is_named_exactly(tmp_path: Path) -> None:
    raster(tmp_path / "c/0.TIF")
    raster(tmp_path / "c/0.tiff")
    with pytest.raises(DataError, match="both chip '0'"):
        open_source(dataset(tmp_path, chips="c/{id}.tif"))
    raster(tmp_path / "c/0.tif")
    assert open_source(dataset(tmp_path, chips="c/{id}.tif")).keys == ["0"]


def test_composed_and_decomposed_names_are_one(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Zürich")
    raster(tmp_path / f"{decomposed}/{decomposed}.tif")
    table(tmp_path / "s.csv", "id,split", unicodedata.normalize("NFC", "Zürich") + ",train")
    source = open_source(dataset(tmp_path, "splits: s.csv\n", chips="Zürich/{id}.tif"))
    assert source.keys == [unicodedata.normalize("NFC", "Zürich")]
    assert source.read(0).pixels


def test_linked_folders_beside_each_other_are_both_read(tmp_path: Path) -> None:
    raster(tmp_path / "c/a/1.tif")
    (tmp_path / "c/b").symlink_to(tmp_path / "c/a")
    (tmp_path / "c/a/loop").symlink_to(tmp_path / "c")
    assert open_source(dataset(tmp_path, chips="c/{id}.tif")).keys == ["a/1", "b/1"]


def test_ids_keep_their_zeros_and_underscores(tmp_path: Path) -> None:
    for name in ("007", "010", "8", "2019_05"):
        raster(tmp_path / f"c/{name}.tif")
    source = open_source(dataset(tmp_path, "exclude: [010, 2019_05]\n", chips="c/{id}.tif"))
    assert source.keys == ["007", "8"]
    table(tmp_path / "s.csv", "id,split", "7,train")
    with pytest.raises(SplitError, match="dropped zeros: '7' for '007'"):
        open_source(dataset(tmp_path, "splits: s.csv\n", chips="c/{id}.tif"))


def test_absolute_patterns_are_patterns(tmp_path: Path) -> None:
    raster(tmp_path / "c/1.tif")
    (tmp_path / "else").mkdir()
    assert open_source(dataset(tmp_path / "else", chips=f"{tmp_path}/c/{{id}}.tif")).keys == ["1"]
    scene = tmp_path / "else/s.yaml"
    scene.write_text(
        f'modalities:\n  rgb: {RGB}, path: "{tmp_path}/c/*.TIF"}}\nchips: {{size: 32}}\n'
    )
    assert len(open_source(scene)) == 1


def test_what_a_pattern_leaves_out_is_counted(tmp_path: Path) -> None:
    raster(tmp_path / "c/1.tif")
    for name in ("a.png", "b.png", "notes.txt", "1.tif.aux.xml"):
        (tmp_path / "c" / name).write_bytes(b"x")
    source = open_source(dataset(tmp_path, chips="c/{id}.tif"))
    assert source.notes == ("c/{id}.tif leaves out 3 other files (.png 2, .txt 1), first c/a.png",)


def test_links_that_lead_outside_are_reported(tmp_path: Path, run) -> None:
    root, other = tmp_path / "data", tmp_path / "other"
    for name in ("1", "2"):
        raster(root / f"c/{name}.tif")
    raster(other / "secret.tif")
    raster(other / "folder/5.tif")
    (root / "c/3.tif").symlink_to("1.tif")
    assert open_source(dataset(root, chips="c/{id}.tif")).outward_links == ()
    (root / "c/4.tif").symlink_to(other / "secret.tif")
    (root / "c/more").symlink_to(other / "folder")
    file = dataset(root, chips="c/{id}.tif")
    (links,) = open_source(file).outward_links
    assert links.startswith("c/{id}.tif: 2 of its files are links that lead outside")
    assert links.endswith(f"first c/4.tif -> {other / 'secret.tif'}")
    code, out, _ = run("inspect", str(file))
    assert code == 0
    assert "links that lead outside" in out
    code, _, errors = run("prepare", str(file), "--out", str(tmp_path / "store"))
    assert code == 0
    assert f"{links}\n" in errors


# Labels ---------------------------------------------------------------------------------------


def test_numeric_classes_keep_their_number(tmp_path: Path) -> None:
    for i in range(12):
        raster(tmp_path / f"c{i}.tif")
    table(tmp_path / "t.csv", "id,label,split", *(f"c{i},{i}.0,train" for i in range(12)))
    source = open_source(dataset(tmp_path, "labels: {column: label}\nsplits: t.csv\n"))
    assert source.class_names == tuple(map(str, range(12)))
    assert all(source.read(i).label == int(k[1:]) for i, k in enumerate(source.keys))
    table(tmp_path / "t.csv", "id,label,split", *(f"c{i},{10 * i},train" for i in range(12)))
    source = open_source(dataset(tmp_path, "labels: {column: label}\nsplits: t.csv\n"))
    assert source.class_ids == tuple(range(0, 120, 10))


@pytest.mark.parametrize("value", [-9999.0, -32768.0, 65535.0, float(np.finfo("f4").min)])
def test_fill_values_in_maps_of_numbers_are_declared_or_refused(
    tmp_path: Path, value: float
) -> None:
    heights = _RNG.uniform(0, 30, (1, 32, 32)).astype("float32")
    heights[:, :6] = value
    raster(tmp_path / "i/1.tif")
    raster(tmp_path / "m/1.tif", heights)
    labels = 'labels: {mask: "m/{id}.tif", numeric: true%s}\n'
    with pytest.raises(DataError, match="a fill value"):
        open_source(dataset(tmp_path, labels % "", chips="i/{id}.tif")).read(0)
    for key in (f"nodata: {value!r}", f"ignore: [{value!r}]"):
        source = open_source(dataset(tmp_path, labels % f", {key}", chips="i/{id}.tif"))
        assert np.isnan(source.read(0).label[:6]).all()
        assert np.nanmin(source.read(0).label) >= 0


def test_fill_values_in_a_column_of_numbers(tmp_path: Path) -> None:
    for i in range(4):
        raster(tmp_path / f"{i}.tif")
    table(tmp_path / "t.csv", "id,y", "0,1.5", "1,-9999", "2,2.5", "3,nan")
    with pytest.raises(DataError, match="-9999"):
        open_source(dataset(tmp_path, "labels: {column: y, numeric: true}\ntable: t.csv\n"))
    source = open_source(
        dataset(tmp_path, "labels: {column: y, numeric: true, nodata: -9999}\ntable: t.csv\n")
    )
    assert [source.read(i).label for i in range(4)] == [1.5, None, 2.5, None]


@pytest.mark.parametrize("texts", [("['a', 'b']", "['b']"), ('["a","b"]', '["b"]'),
                                   ("[a, b]", "[b]"), ("a;b", "b"), ("{a;b}", "b")])  # fmt: skip
def test_several_classes_in_their_spellings(tmp_path: Path, texts: tuple[str, str]) -> None:
    for i in range(2):
        raster(tmp_path / f"{i}.tif")
    table(tmp_path / "t.csv", "id,y", *(f'{i},"{t.replace(chr(34), chr(34) * 2)}"'
                                        for i, t in enumerate(texts)))  # fmt: skip
    separator = ', separator: ";"' if ";" in texts[0] else ""
    source = open_source(dataset(tmp_path, f"labels: {{column: y{separator}}}\ntable: t.csv\n"))
    assert source.class_names == ("a", "b")
    assert [source.read(i).label.tolist() for i in range(2)] == [[1, 1], [0, 1]]


def test_files_beside_class_folders_are_named(tmp_path: Path) -> None:
    for name in ("a/1", "b/2", "overview"):
        raster(tmp_path / f"c/{name}.tif")
    with pytest.raises(ClassMapError, match=r"beside class folders.*overview\.tif"):
        open_source(dataset(tmp_path, "labels: {folder: true}\n", chips="c/{id}.tif"))
    rest = "labels: {folder: true}\nexclude: [overview]\n"
    assert open_source(dataset(tmp_path, rest, chips="c/{id}.tif")).class_names == ("a", "b")


def test_common_names_of_splits(tmp_path: Path) -> None:
    for name in "abcde":
        raster(tmp_path / f"{name}.tif")
    table(tmp_path / "s.csv", "id,split", "a,Train", "b,VAL", "c,Validation", "d,testing", "e,TEST")
    source = open_source(dataset(tmp_path, "splits: s.csv\n"))
    assert list(source.split_of) == ["train", "val", "val", "test", "test"]
    assert len(source.split("Validation")) == 2


def test_splits_stratified_and_grouped(tmp_path: Path) -> None:
    rows = []
    for i in range(40):
        raster(tmp_path / f"c{i:02}.tif", np.full((3, 8, 8), 900, "uint16"))
        rows.append(f"c{i:02},{'rare' if i % 10 == 0 else 'many'},r{i // 4}")
    table(tmp_path / "t.csv", "id,label,region", *rows)
    rest = "labels: {column: label}\ntable: t.csv\nsplits: {Validation: 0.25, %s}\n"
    source = open_source(dataset(tmp_path, rest % "stratify: true"))
    rare = [s for k, s in zip(source.keys, source.split_of, strict=True) if k.endswith("0")]
    assert sorted(rare) == ["train"] * 3 + ["val"]
    assert sum(s == "val" for s in source.split_of) == 10
    source = open_source(dataset(tmp_path, rest % "group: region"))
    for i in range(0, 40, 4):
        assert len(set(source.split_of[i : i + 4])) == 1
    assert {"train", "val"} == set(source.split_of)


def test_a_subset_and_a_merger_of_classes(tmp_path: Path) -> None:
    for i, name in enumerate("abcd"):
        raster(tmp_path / f"i/{name}.tif")
        raster(tmp_path / f"m/{name}.tif", np.full((1, 32, 32), 10 * i, "uint8"))
    table(tmp_path / "t.csv", "id,y", "a,oak", "b,beech", "c,water", "d,cloud")
    rest = "labels: {column: y, rename: {wood: [oak, beech]}, only: [water, wood]}\ntable: t.csv\n"
    source = open_source(dataset(tmp_path, rest, chips="i/{id}.tif"))
    assert source.class_names == ("water", "wood")
    assert [source.read(i).label for i in range(4)] == [1, 1, 0, None]
    assert list(source.split_of) == ["", "", "", "unlisted"]
    mask = (
        'labels: {mask: "m/{id}.tif", classes: [oak, beech, water, cloud], '
        "ids: {0: oak, 10: beech, 20: water, 30: cloud}, "
        "rename: {oak: wood, beech: wood}, only: [wood, water]}\n"
    )
    source = open_source(dataset(tmp_path, mask, chips="i/{id}.tif"))
    assert [int(source.read(i).label[0, 0]) for i in range(4)] == [0, 0, 1, -1]
    assert source.class_ids == (0, 20)


# Kinds of files -------------------------------------------------------------------------------


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    (tmp_path / "p.gpkg").write_bytes(b"SQLite format 3\0" + bytes(100))
    (tmp_path / "p.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    (tmp_path / "p.shp").write_bytes(b"\0\0\x27\x0a" + bytes(100))
    (tmp_path / "n.nc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    np.savez(tmp_path / "z.npz", np.zeros(3))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", "x")
    (tmp_path / "inside.tif").write_bytes((tmp_path / "a.zip").read_bytes())
    (tmp_path / "page.tif").write_text("<!DOCTYPE html><html>log in</html>")
    (tmp_path / "r.zarr").mkdir()
    (tmp_path / "S2A.SAFE").mkdir()
    expected = {
        "p.gpkg": "vector file", "p.geojson": "vector file", "p.shp": "vector file",
        "n.nc": "NetCDF", "z.npz": "NumPy archive", "a.zip": "zip", "inside.tif": "zip",
        "page.tif": "web page", "r.zarr": "Zarr", "S2A.SAFE": "SAFE",
    }  # fmt: skip
    for name, words in expected.items():
        with pytest.raises(FormatError, match=words) as caught:
            read_raster(tmp_path / name)
        assert "damaged" not in str(caught.value)
    for name in ("a.zip", "S2A.SAFE", "r.zarr", "n.nc", "p.gpkg"):
        with pytest.raises(ConfigError, match=expected[name]):
            open_source(tmp_path / name)


def test_chips_that_are_not_square_are_padded(tmp_path: Path) -> None:
    raster(tmp_path / "i/1.tif", _RNG.integers(300, 3000, (3, 64, 48)).astype("uint16"))
    raster(tmp_path / "m/1.tif", np.ones((1, 64, 48), "uint8"))
    rest = 'labels: {mask: "m/{id}.tif", classes: [a, b]}\n'
    sample = open_source(dataset(tmp_path, rest, chips="i/{id}.tif")).read(0)
    assert sample.pixels["rgb"].shape == (3, 64, 64)
    assert sample.valid["rgb"][:, :, :48].all()
    assert not sample.valid["rgb"][:, :, 48:].any()
    assert (sample.label[:, :48] == 1).all()
    assert (sample.label[:, 48:] == -1).all()
    assert sample.geometry is not None
    left, bottom, right, top = sample.geometry.bounds
    assert (right - left, top - bottom) == (640.0, 640.0)


def test_arrays_with_bands_last_are_read_where_they_are_declared(tmp_path: Path) -> None:
    pixels = _RNG.integers(300, 3000, (12, 48, 64)).astype("uint16")
    (tmp_path / "c").mkdir()
    np.save(tmp_path / "c/1.npy", np.moveaxis(pixels, 0, -1))
    text = 'chips: "c/{id}.%s"\nmodalities:\n  rgb: %s, channels: [4, 3, 2]%s}\n'
    path = tmp_path / "d.yaml"
    path.write_text(text % ("npy", RGB, ""))
    with pytest.raises(FormatError, match=r"\(H, W, C\).*`layout: hwc`"):
        open_source(path).read(0)
    path.write_text(text % ("npy", RGB, ", layout: hwc"))
    sample = open_source(path).read(0)
    np.testing.assert_array_equal(sample.pixels["rgb"][:, :48], pixels[[3, 2, 1]])
    assert not sample.valid["rgb"][:, 48:].any()
    np.save(tmp_path / "c/1.npy", pixels[:, :, :48])
    with pytest.raises(FormatError, match=r"looks like \(C, H, W\)"):
        open_source(path).read(0)
    for ending, layout in (("tif", "hwc"), ("npy", "whc")):
        path.write_text(text % (ending, RGB, f", layout: {layout}"))
        with pytest.raises(ConfigError, match="layout"):
            open_source(path)
    scene = tmp_path / "s.yaml"
    scene.write_text(
        f"modalities:\n  rgb: {RGB}, path: a.npy, layout: hwc}}\nchips: {{size: 32}}\n"
    )
    with pytest.raises(ConfigError, match="unknown key 'layout'"):
        open_source(scene)


# Output ---------------------------------------------------------------------------------------


def test_output_under_any_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raster(tmp_path / "c/1.tif")
    path = dataset(tmp_path, chips="c/{id}.tif")
    for encoding in ("cp1252", "ascii"):
        held = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding=encoding))
        assert main(["inspect", str(path)]) == 0
        sys.stdout.flush()
        assert b"1 chip" in held.getvalue()


def test_outputs_never_touch_inputs(tmp_path: Path) -> None:
    chip = raster(tmp_path / "data/c/1.tif")
    (tmp_path / "link.tif").symlink_to(chip)
    (tmp_path / "hard.tif").hardlink_to(chip)
    path = dataset(tmp_path / "data", "splits: {val: 0.1}\n", chips="c/{id}.tif")
    scene = tmp_path / "s.yaml"
    scene.write_text(f"modalities:\n  rgb: {RGB}, path: link.tif}}\n")
    refused = [
        {"data": str(path), "out": str(tmp_path / "data")},
        {"data": str(path), "out": str(tmp_path / "data/c")},
        {"data": str(path), "out": str(path)},
        {"data": str(path), "out": str(chip)},
        {"data": str(path), "out": str(tmp_path / "hard.tif")},
        {"data": f"scene:{scene},{path}", "out": str(tmp_path / "link.tif")},
        {"scene": str(scene), "out": str(chip)},
        {"scene": str(chip), "out": str(tmp_path / "link.tif")},
        {"source": str(path), "html": str(path)},
        {"model": str(tmp_path / "data"), "out": str(tmp_path)},
    ]
    for options in refused:
        with pytest.raises(OutputError, match="an input"):
            require_separate_outputs(options)
    for options in (
        {"data": str(path), "out": str(tmp_path / "run")},
        {"data": str(path), "out": str(tmp_path / "data/run")},
        {"scene": str(scene), "out": str(tmp_path / "map.tif"), "model": "none"},
        {"scene": str(scene), "out": None},
    ):
        require_separate_outputs(options)
