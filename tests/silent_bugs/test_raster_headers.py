"""What a raster's header says is obeyed, for every file: each test is a fault met in public."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multimae_eo.errors import BandError, DataError, FormatError, MultiMAEError
from multimae_eo.geo import Window
from multimae_eo.sample import Sample
from multimae_eo.sources.dataset.dataset_file import DatasetFileSource
from multimae_eo.sources.dataset.label_texts import class_texts
from multimae_eo.sources.raster.header import crs_text
from multimae_eo.sources.raster.reading import read_header, read_raster
from multimae_eo.sources.scene.scene import Scene

rasterio = pytest.importorskip("rasterio")

RGB = ("B4", "B3", "B2")
OPTICAL = "sensor: sentinel2, bands: [B4, B3, B2], level: l2a"
NIR = "sensor: sentinel2, bands: [B8], level: l2a, scale: 1.0e-4"
NORTH_UP = rasterio.Affine(10, 0, 500_000, 0, -10, 5_600_000)


def tif(path: Path, pixels: np.ndarray, names: tuple[str, ...] = (), **more: object) -> None:
    tags = {k: more.pop(k) for k in ("scales", "offsets", "colorinterp") if k in more}
    mask, internal = more.pop("mask", None), more.pop("internal", True)
    profile = {"driver": "GTiff", "crs": "EPSG:32630", "transform": NORTH_UP, **more}
    path.parent.mkdir(exist_ok=True)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
        rasterio.open(
            path, "w", count=len(pixels), dtype=pixels.dtype, height=pixels.shape[1],
            width=pixels.shape[2], **profile,
        ) as file,
    ):  # fmt: skip
        for key, value in tags.items():
            setattr(file, key, value)
        file.write(pixels)
        if names:
            file.descriptions = names
        if mask is not None:
            file.write_mask(mask)


def dn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(300, 3000, shape).astype(np.uint16)


def chip(folder: Path, entry: str, path: str = "{id}.tif", *, index: int = 0, **top: str) -> Sample:
    """A chip of a data set of one modality ``x``; ``top``: further sections of its file."""
    more = "".join(f"{k}: {v}\n" for k, v in top.items())
    text = f"{more}modalities:\n  x: {{path: '{path}', {entry}}}\n"
    (folder / "data.yaml").write_text(text)
    return DatasetFileSource(folder / "data.yaml").read(index)


def scene(
    folder: Path, entry: str, path: str = "x.tif", height: int = 16, width: int = 16
) -> Sample:
    (folder / "scene.yaml").write_text(f"modalities:\n  x: {{path: '{path}', {entry}}}\n")
    return Scene(folder / "scene.yaml").read(Window(row=0, col=0, height=height, width=width))


def physical(sample: Sample) -> np.ndarray:
    how = sample.calibration["x"]
    return sample.pixels["x"].astype(np.float64) * how.scale + how.offset


def seen(sample: Sample) -> np.ndarray:
    pixels = sample.pixels["x"]
    return np.broadcast_to(sample.valid.get("x", np.ones((1, 1, 1), bool)), pixels.shape)


def test_an_undeclared_offset_is_applied_by_chips_and_scenes(tmp_path):
    tif(tmp_path / "x.tif", dn(3, 16, 16), RGB, scales=[1e-4] * 3, offsets=[-0.1] * 3)
    for entry in (OPTICAL, OPTICAL + ", scale: 1.0e-4"):
        for read in (chip, scene):
            how = read(tmp_path, entry).calibration["x"]
            assert (how.scale, how.offset) == (1e-4, -0.1)
    for read in (chip, scene):
        with pytest.raises(BandError, match=r"yaml declares offset -0\.2, the file's tag is -0\.1"):
            read(tmp_path, OPTICAL + ", offset: -0.2")
        with pytest.raises(BandError, match="write `offset:` as well"):
            read(tmp_path, OPTICAL + ", scale: 1")
        assert read(tmp_path, OPTICAL + ", scale: 1, offset: 0").calibration["x"].offset == 0


def test_bands_of_different_scales_become_physical(tmp_path):
    pixels = dn(3, 16, 16)
    scales, offsets = [1e-4, 2e-4, 5e-4], [0.0, -0.1, 0.2]
    tif(tmp_path / "x.tif", pixels, RGB, scales=scales, offsets=offsets)
    expected = pixels * np.reshape(scales, (3, 1, 1)) + np.reshape(offsets, (3, 1, 1))
    for read in (chip, scene):
        sample = read(tmp_path, OPTICAL)
        np.testing.assert_allclose(physical(sample), expected, rtol=1e-6)
        assert (sample.calibration["x"].scale, sample.calibration["x"].offset) == (1, 0)


def test_another_baseline_in_a_later_file_is_harmonised_or_refused(tmp_path):
    pixels = dn(3, 16, 16)
    new = {"scales": [1e-4] * 3, "offsets": [-0.1] * 3}
    tif(tmp_path / "c/a.tif", pixels, RGB)
    tif(tmp_path / "c/b.tif", pixels + 1000, RGB, **new)
    with pytest.raises(BandError, match=r"b\.tif is tagged with scale 0\.0001, .*a\.tif with none"):
        chip(tmp_path, OPTICAL, "c/{id}.tif", index=1)
    known = OPTICAL + ", scale: 1.0e-4"
    first, second = (physical(chip(tmp_path, known, "c/{id}.tif", index=i)) for i in (0, 1))
    np.testing.assert_allclose(first, second, atol=1e-9)
    tif(tmp_path / "t1.tif", pixels, RGB)
    east = rasterio.Affine(10, 0, 500_160, 0, -10, 5_600_000)
    tif(tmp_path / "t2.tif", pixels + 1000, RGB, transform=east, **new)
    found = physical(scene(tmp_path, known, "t*.tif", width=32))
    np.testing.assert_allclose(found[:, :, :16], found[:, :, 16:], atol=1e-7)
    with pytest.raises(BandError, match=r"t2\.tif is tagged with scale 0\.0001"):
        scene(tmp_path, OPTICAL, "t*.tif", width=32)


def test_a_vertical_datum_is_no_other_ground(tmp_path):
    compound = rasterio.crs.CRS.from_user_input("EPSG:32630+5773")
    assert crs_text(compound) == "EPSG:32630"
    assert crs_text(rasterio.crs.CRS.from_epsg(4979)) == "EPSG:4326"
    tif(tmp_path / "i/x.tif", dn(3, 16, 16), RGB)
    tif(tmp_path / "m/x.tif", np.full((1, 16, 16), 9, np.float32), ("elevation",), crs=compound)
    dem = 'dem: {path: "m/{id}.tif", sensor: dem, bands: [elevation]}'
    (tmp_path / "d.yaml").write_text(
        f"modalities:\n  x: {{path: 'i/{{id}}.tif', {OPTICAL}}}\n  {dem}\n"
    )
    sample = DatasetFileSource(tmp_path / "d.yaml").read(0)
    assert sorted(sample.pixels) == ["dem", "x"]


@pytest.mark.parametrize("internal", [True, False])
def test_a_mask_survives_beside_nodata_on_any_grid(tmp_path, internal):
    pixels, mask = dn(3, 256, 256), np.full((256, 256), 255, np.uint8)
    pixels[:, 200:204, 200:204], mask[:, :64] = 0, 0
    tif(tmp_path / "x.tif", pixels, RGB, nodata=0, mask=mask, internal=internal)
    for sample in (chip(tmp_path, OPTICAL), scene(tmp_path, OPTICAL, height=256, width=256)):
        assert not seen(sample)[:, :, :64].any()
        assert not seen(sample)[:, 200:204, 200:204].any()
        assert seen(sample).sum() == 3 * (256 * 192 - 16)


def test_near_infrared_is_no_transparency_and_transparency_no_band(tmp_path):
    pixels = np.random.default_rng(1).integers(1, 255, (4, 16, 16)).astype(np.uint8)
    pixels[3, :, :8] = 0
    tif(tmp_path / "x.tif", pixels, ("red", "green", "blue", "nir"))
    own = "custom: true, sensor: air, bands: "
    for read in (chip, scene):
        assert seen(read(tmp_path, own + "[red, green, blue]")).all()
        assert seen(read(tmp_path, own + "[nir]")).all()
    tif(tmp_path / "x.tif", pixels)
    declared = own + "[red, green], file_bands: [red, green, blue, nir]"
    clear = own + "[red, green], file_bands: [red, green, blue]"
    for read in (chip, scene):
        assert seen(read(tmp_path, declared)).all()
        ok = seen(read(tmp_path, clear))
        assert not ok[..., :8].any()
        assert ok[..., 8:].all()


def test_nodata_in_some_bands_never_enters_an_interpolation(tmp_path):
    pixels = np.full((3, 32, 32), 1000, np.int16)
    pixels[0, :, :10] = -9999
    tif(tmp_path / "x.tif", pixels, RGB, nodata=-9999)
    own = chip(tmp_path, OPTICAL)
    grid = rasterio.Affine(15, 0, 500_005, 0, -15, 5_599_995)
    tif(tmp_path / "g.tif", np.ones((1, 20, 20), np.uint8), ("elevation",), transform=grid)
    (tmp_path / "w.yaml").write_text(
        "modalities:\n  dem: {path: g.tif, sensor: dem, bands: [elevation]}\n"
        f"  x: {{path: x.tif, {OPTICAL}}}\n"
    )
    warped = Scene(tmp_path / "w.yaml").read(Window(row=0, col=0, height=20, width=20))
    for sample in (own, scene(tmp_path, OPTICAL, height=32, width=32), warped):
        ok = seen(sample)
        assert set(sample.pixels["x"][ok].tolist()) == {1000}
        assert 0 < ok[0].sum() < ok[1].sum()


def test_sixteen_bits_of_a_colour_png_are_kept(tmp_path):
    pixels = dn(3, 16, 16)
    with rasterio.open(
        tmp_path / "x.png", "w", driver="PNG", count=3, height=16, width=16, dtype="uint16"
    ) as file:
        file.write(pixels)
    raster = read_raster(tmp_path / "x.png")
    assert raster.header.names == ("red", "green", "blue")
    np.testing.assert_array_equal(raster.pixels, pixels)


def test_transparent_colours_greys_and_palette_entries_are_not_observed(tmp_path):
    from PIL import Image

    colours = np.random.default_rng(2).integers(1, 255, (8, 8, 3)).astype(np.uint8)
    colours[0, 0], colours[0, 1] = (9, 8, 7), (9, 8, 6)
    Image.fromarray(colours).save(tmp_path / "rgb.png", transparency=(9, 8, 7))
    ok = read_raster(tmp_path / "rgb.png").observed((0, 1, 2))
    assert ok.sum() == 63
    assert not ok[0, 0, 0]
    greys = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(greys).save(tmp_path / "grey.png", transparency=5)
    assert not read_raster(tmp_path / "grey.png").observed([0])[0, 0, 5]
    image = Image.fromarray(greys % 4).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "p.png", transparency=2)
    palette = read_raster(tmp_path / "p.png")
    np.testing.assert_array_equal(palette.observed([0])[0], greys % 4 != 2)
    (tmp_path / "d.yaml").write_text(
        "modalities:\n  x: {path: '{id}.png', custom: true, sensor: own, bands: [grey]}\n"
    )
    (tmp_path / "rgb.png").unlink()
    (tmp_path / "grey.png").unlink()
    with pytest.raises(BandError, match="indices of a palette, not measured values"):
        DatasetFileSource(tmp_path / "d.yaml")


@pytest.mark.parametrize(("south_up", "mirrored"), [(True, False), (False, True), (True, True)])
def test_an_image_stored_south_up_or_mirrored_lies_on_its_label(tmp_path, south_up, mirrored):
    label = np.zeros((1, 16, 16), np.uint8)
    label[:, :4, :7] = 1
    image = np.where(label == 1, 5000, 300).astype(np.uint16).repeat(3, axis=0)
    stored = image[:, :: -1 if south_up else 1, :: -1 if mirrored else 1]
    at = rasterio.Affine(
        -10 if mirrored else 10, 0, 500_160 if mirrored else 500_000,
        0, 10 if south_up else -10, 5_599_840 if south_up else 5_600_000,
    )  # fmt: skip
    tif(tmp_path / "i/x.tif", stored, RGB, transform=at)
    tif(tmp_path / "m/x.tif", label)
    sample = chip(
        tmp_path, OPTICAL, "i/{id}.tif", labels="{mask: 'm/{id}.tif', classes: [dark, bright]}"
    )
    np.testing.assert_array_equal(sample.pixels["x"], image)
    np.testing.assert_array_equal(sample.label, label[0])
    from PIL import Image

    Image.fromarray(label[0]).save(tmp_path / "m/x.png")
    with pytest.raises(DataError, match="no georeferencing that gives its orientation"):
        chip(
            tmp_path, OPTICAL, "i/{id}.tif", labels="{mask: 'm/{id}.png', classes: [dark, bright]}"
        )


def test_a_rotated_grid_is_refused(tmp_path):
    tif(tmp_path / "x.tif", dn(3, 16, 16), RGB, transform=rasterio.Affine(9, 3, 5e5, 3, -9, 56e5))
    for read in (chip, scene):
        with pytest.raises(FormatError, match=r"x\.tif: its grid is rotated; warp it north-up"):
            read(tmp_path, OPTICAL)


def test_a_lone_band_is_what_its_name_or_its_file_says(tmp_path):
    for band, value in (("B02", 700), ("B08", 3000)):
        tif(tmp_path / f"T30_{band}_10m.tif", np.full((1, 16, 16), value, np.uint16))
    assert set(scene(tmp_path, NIR, "T30_*_10m.tif").pixels["x"].ravel()) == {3000}
    both = NIR.replace("[B8]", "[B8, B2]")
    found = scene(tmp_path, both, "T30_*_10m.tif").pixels["x"]
    assert [set(band.ravel()) for band in found] == [{3000}, {700}]
    with pytest.raises(
        BandError, match=r"no file of the pattern holds band 'B3'; other bands: T30"
    ):
        scene(tmp_path, NIR.replace("[B8]", "[B3]"), "T30_*_10m.tif")
    with pytest.raises(BandError, match=r"B02_10m\.tif: x: no band 'B8'; the file has: another"):
        scene(tmp_path, NIR, "T30_B02_10m.tif")
    tif(tmp_path / "c/0.tif", np.full((1, 16, 16), 50, np.uint16), ("cloud_probability",))
    with pytest.raises(BandError, match="no band 'B8'; the file has: cloud_probability"):
        chip(tmp_path, NIR, "c/{id}.tif")
    declared = chip(tmp_path, NIR + ", channels: [1]", "c/{id}.tif")
    assert set(declared.pixels["x"].ravel()) == {50}


def test_an_array_with_channels_last_is_refused_or_declared(tmp_path):
    np.save(tmp_path / "0.npy", np.moveaxis(dn(12, 16, 16), 0, -1))
    text = "modalities:\n  x: {path: '{id}.npy', " + OPTICAL + ", channels: [4, 3, 2]}\n"
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(FormatError, match=r"\(16, 16, 12\) looks like \(H, W, C\), expected"):
        DatasetFileSource(tmp_path / "d.yaml")
    np.save(tmp_path / "0.npy", dn(12, 16, 16))
    assert DatasetFileSource(tmp_path / "d.yaml").read(0).pixels["x"].shape == (3, 16, 16)


def test_numeric_labels_take_the_tags_of_their_file(tmp_path):
    tif(tmp_path / "i/x.tif", dn(3, 8, 8), RGB)
    heights = np.arange(64, dtype=np.int16).reshape(1, 8, 8)
    tif(tmp_path / "m/x.tif", heights, scales=[0.1], offsets=[2.0], nodata=7)
    sample = chip(tmp_path, OPTICAL, "i/{id}.tif", labels="{mask: 'm/{id}.tif', numeric: true}")
    expected = heights[0] * 0.1 + 2
    assert np.isnan(sample.label[0, 7])
    np.testing.assert_allclose(sample.label[1:], expected[1:], rtol=1e-6)


VRT = """<VRTDataset rasterXSize="8" rasterYSize="8"><SRS>EPSG:32630</SRS>
<GeoTransform>500000, 10, 0, 5600000, 0, -10</GeoTransform>
<VRTRasterBand dataType="UInt16" band="1"><SimpleSource>
<SourceFilename relativeToVRT="{relative}">{name}</SourceFilename><SourceBand>1</SourceBand>
</SimpleSource></VRTRasterBand></VRTDataset>"""


def test_a_vrt_reads_only_files_beside_it_and_only_by_its_name(tmp_path):
    tif(tmp_path / "secret.tif", dn(1, 8, 8))
    tif(tmp_path / "in/a.tif", dn(1, 8, 8))
    folder = tmp_path / "in"

    def refused(match: str, name: str = "a.vrt") -> None:
        with pytest.raises(MultiMAEError, match=match) as caught:
            read_header(folder / name)
        assert "\n" not in str(caught.value)

    (folder / "a.vrt").write_text(VRT.format(relative=1, name="a.tif"))
    np.testing.assert_array_equal(read_raster(folder / "a.vrt").pixels, dn(1, 8, 8))
    for relative, name in (
        (1, "../secret.tif"), (0, str(tmp_path / "secret.tif")), (0, "/vsicurl/http://a.b/c.tif"),
    ):  # fmt: skip
        (folder / "b.vrt").write_text(VRT.format(relative=relative, name=name))
        refused("does not lie in its folder", "b.vrt")
    (folder / "c.tif").write_text(VRT.format(relative=1, name="a.tif"))
    refused("is a VRT under another name", "c.tif")
    (folder / "d.vrt").write_text(VRT.format(relative=1, name="c.tif"))
    refused("is a VRT under another name", "d.vrt")
    (folder / "e.png").write_bytes((folder / "a.tif").read_bytes())
    refused("cannot be read", "e.png")


def test_an_offset_without_a_scale_is_a_baseline_too(tmp_path):
    moved = {"offsets": [-1000.0] * 3}
    tif(tmp_path / "c/a.tif", dn(3, 16, 16), RGB)
    tif(tmp_path / "c/b.tif", dn(3, 16, 16), RGB, **moved)
    with pytest.raises(BandError, match=r"b\.tif is tagged with offset -1000, .*a\.tif with none"):
        chip(tmp_path, OPTICAL, "c/{id}.tif", index=1)
    with pytest.raises(BandError, match=r"tagged with offset -1000.*declare `offset:`"):
        scene(tmp_path, OPTICAL, "c/*.tif")
    assert (
        chip(tmp_path, OPTICAL + ", offset: 0", "c/{id}.tif", index=1).calibration["x"].offset == 0
    )
    tif(tmp_path / "s/t_B04.tif", dn(1, 16, 16), scales=[1e-4])
    for band in ("B03", "B02"):
        tif(tmp_path / f"s/t_{band}.tif", dn(1, 16, 16))
    with pytest.raises(BandError, match=r"B03\.tif with none"):
        scene(tmp_path, OPTICAL, "s/*.tif")


@pytest.mark.parametrize("layer", ["T30_SCL_20m", "T30_AOT_10m", "x_QA60", "B04/0", "p_cloud_mask"])
def test_a_lone_layer_of_a_product_is_no_band(tmp_path, layer):
    (tmp_path / "B04").mkdir()
    tif(tmp_path / f"{layer}.tif", dn(1, 16, 16))
    with pytest.raises(BandError, match="no band 'B8'; the file has: another band"):
        scene(tmp_path, NIR, f"{layer}.tif")


def test_a_list_of_band_files_is_a_stack_by_name(tmp_path):
    for band, value in (("B02", 2), ("B03", 3), ("B04", 4), ("B08", 8)):
        tif(tmp_path / f"t_{band}.tif", np.full((1, 16, 16), value, np.uint16))
    text = "modalities:\n  x: {path: [%s], " + OPTICAL + "}\n"
    (tmp_path / "s.yaml").write_text(text % "t_B02.tif, t_B03.tif, t_B04.tif")
    found = Scene(tmp_path / "s.yaml").read(Window(row=0, col=0, height=16, width=16))
    assert found.pixels["x"][:, 0, 0].tolist() == [4, 3, 2]
    (tmp_path / "s.yaml").write_text(text % "t_B02.tif, t_B03.tif, t_B04.tif, t_B08.tif")
    with pytest.raises(BandError):
        Scene(tmp_path / "s.yaml")


def test_a_label_map_with_transparency_and_bytes_of_fill(tmp_path):
    tif(tmp_path / "i/x.tif", dn(3, 16, 16), RGB)
    pixels = np.ones((2, 16, 16), np.uint8)
    pixels[1] = np.where(np.arange(16) < 4, 0, 255)
    tif(tmp_path / "m/x.tif", pixels, photometric="minisblack", alpha="yes")
    found = chip(tmp_path, OPTICAL, "i/{id}.tif", labels="{mask: 'm/{id}.tif', classes: [a, b]}")
    assert np.array_equal(found.label, np.where(pixels[1] > 0, 1, -1))
    heights = np.arange(256, dtype=np.uint8).reshape(1, 16, 16) % 30
    heights[0, :3] = 255
    tif(tmp_path / "m/x.tif", heights)
    with pytest.raises(DataError, match=r"48 of 256 values are 255.*a fill value"):
        chip(tmp_path, OPTICAL, "i/{id}.tif", labels="{mask: 'm/{id}.tif', numeric: true}")


@pytest.mark.parametrize(
    "texts",
    [("['a' 'b']", "['b']"), ("{'a', 'b'}", "{'b'}"), ("('a', 'b')", "('b',)"), ("[1  2]", "[2]")],
)
def test_lists_of_classes_as_programs_print_them(texts):
    names, several = class_texts({"p": texts[0], "q": texts[1]}, "")
    assert several
    assert [len(n) for n in names.values()] == [2, 1]
    assert names["p"][1] == names["q"][0]
