"""Products as SCENE and in scene files: values, validity, native grids, and damaged products."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from multimae_eo.catalog import MODALITIES
from multimae_eo.errors import BandError, ConfigError, DataError, FormatError, MultiMAEError
from multimae_eo.geo import Window
from multimae_eo.loading.open_source import open_source
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Sample
from multimae_eo.sources.draft.drafting import draft_of
from multimae_eo.sources.products.open_product import open_product
from multimae_eo.sources.scene.scene import Scene
from tests.support.product_files import (
    S2_SIZES,
    s2_numbers,
    write_landsat,
    write_raster,
    write_safe,
)
from tests.support.scene_files import Fake

SIDE = 48


def scene_of(folder: Path, modalities: str, *, native: bool = True) -> Scene:
    path = folder / "scene.yaml"
    path.write_text(f"name: one\nmodalities:\n{modalities}")
    return Scene(path, native=native)


def physical(sample: Sample, name: str) -> np.ndarray:
    """Physical values (C, H, W), NaN where invalid."""
    calibration = sample.calibration[name]
    values = sample.pixels[name] * calibration.scale + calibration.offset
    ok = sample.valid.get(name, np.ones(values.shape, dtype=bool))
    return np.where(np.broadcast_to(ok, values.shape), values, np.nan)


def read(scene: Scene) -> Sample:
    return scene.read(Window(row=0, col=0, height=scene.grid.height, width=scene.grid.width))


# Sentinel-2 -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "baseline", "offset"),
    [("L2A", "05.10", -1000), ("L2A", "02.14", None), ("L1C", "05.10", -1000),
     ("L1C", "02.09", None)],
)  # fmt: skip
def test_reflectance_of_any_baseline(
    tmp_path: Path, level: str, baseline: str, offset: int | None
) -> None:
    numbers = s2_numbers(12)
    safe = write_safe(tmp_path, numbers, level=level, baseline=baseline, offset=offset)
    scene = scene_of(
        tmp_path,
        f"  rgb: {{product: {safe.name}, bands: [B4, B3, B2]}}\n"
        f"  ired: {{product: {safe.name}, bands: [B5, B6, B7]}}\n"
        f"  coarse: {{product: {safe.name}, bands: [B1, B9]}}\n",
    )
    assert scene.ratios == {"rgb": 1, "ired": 2, "coarse": 6}
    sample = read(scene)
    assert sample.calibration["rgb"].level == level.lower()
    for name, bands in (("rgb", ("B04", "B03", "B02")), ("ired", ("B05", "B06", "B07")),
                        ("coarse", ("B01", "B09"))):  # fmt: skip
        expected = (np.concatenate([numbers[b] for b in bands]) + float(offset or 0)) / 10000
        np.testing.assert_allclose(physical(sample, name), expected, rtol=1e-6)


def test_pixels_stay_digital_numbers_where_the_bands_share_a_calibration(tmp_path: Path) -> None:
    safe = write_safe(tmp_path, s2_numbers(12))
    sample = read(scene_of(tmp_path, f"  rgb: {{product: {safe.name}, bands: [B4, B3, B2]}}\n"))
    assert sample.pixels["rgb"].dtype == np.uint16


def test_the_scene_classification_decides_validity(tmp_path: Path) -> None:
    classes = np.full((1, 6, 6), 4, np.uint8)
    classes[0, 0, :] = (0, 1, 3, 8, 9, 10)
    classes[0, 1, :] = (2, 4, 5, 6, 7, 11)
    numbers = s2_numbers(12)
    numbers["B04"][0, 11, 11] = 0
    numbers["B03"][0, 11, 10] = 65535
    safe = write_safe(tmp_path, numbers, classes=classes)
    text = f"  rgb: {{product: {safe.name}, bands: [B4, B3, B2]}}\n"
    ok = ~np.isnan(physical(read(scene_of(tmp_path, text)), "rgb"))
    assert not ok[:, :2].any()
    assert ok[:, 2:11].all()
    np.testing.assert_array_equal(ok[:, 11, 10:], [[True, False], [False, True], [True, True]])
    kept = text.replace("B2]}", "B2], mask_clouds: false}")
    assert not np.isnan(physical(read(scene_of(tmp_path, kept)), "rgb"))[:, :2].any()


def test_the_cloud_mask_of_l1c(tmp_path: Path) -> None:
    safe = write_safe(tmp_path, s2_numbers(12), level="L1C")
    marks = np.zeros((3, 2, 2), np.uint8)
    marks[0, 0, 0] = marks[1, 0, 1] = marks[2, 1, 0] = 1  # cloud, cirrus, snow
    (granule,) = (safe / "GRANULE").iterdir()
    write_raster(granule / "QI_DATA" / "MSK_CLASSI_B00.jp2", marks, 60)
    sample = read(scene_of(tmp_path, f"  rgb: {{product: {safe.name}, bands: [B4, B3, B2]}}\n"))
    ok = ~np.isnan(physical(sample, "rgb")[0])
    assert not ok[:6].any()
    assert ok[6:].all()


def tifs(folder: Path, numbers: dict[str, np.ndarray]) -> str:
    """The same bands as GeoTIFFs with a file per band: ``modalities:`` of a scene file."""
    for band, pixels in numbers.items():
        write_raster(folder / "tif" / f"T30UVD_{band}.tif", pixels, S2_SIZES[band], nodata=0)
    files = ", ".join(f'{b}: "tif/*_{b[0]}0{b[1]}.tif"' for b in ("B4", "B3", "B2"))
    rest = "sensor: sentinel2, level: l2a, scale: 1.0e-4, offset: -0.1"
    return f"  rgb: {{bands: {{{files}}}, {rest}}}\n"


def test_a_product_and_its_geotiffs_give_the_same_map(tmp_path: Path) -> None:
    import rasterio

    from multimae_eo.scenes.job import SceneOptions
    from multimae_eo.scenes.predict import predict_scene

    numbers = s2_numbers(SIDE)
    safe = write_safe(tmp_path, numbers)
    one = scene_of(tmp_path, f"  rgb: {{product: {safe.name}, bands: [B4, B3, B2]}}\n")
    two = scene_of(tmp_path, tifs(tmp_path, numbers))
    maps = []
    for name, scene in (("safe", one), ("tif", two)):
        predict_scene(Fake(), scene, out=tmp_path / f"{name}.tif", inputs=["rgb"],
                      options=SceneOptions(overlap=0.5))  # fmt: skip
        with rasterio.open(tmp_path / f"{name}.tif") as file:
            maps.append(file.read(1))
    np.testing.assert_array_equal(*maps)
    assert len(np.unique(maps[0])) == 2


def test_a_safe_folder_is_a_scene_and_a_source(tmp_path: Path) -> None:
    from multimae_eo.scenes.scene_inputs import open_for

    numbers = s2_numbers(120)
    safe = write_safe(tmp_path, numbers)
    source = open_source(safe)
    assert set(source.modalities) == {"rgb", "ired", "sired", "ebands"}
    assert source.read(0).time == "2023-05-27"
    model = Fake()
    scene = open_for(model, safe)
    assert scene.modalities.names == ("rgb",)
    np.testing.assert_array_equal(read(scene).pixels["rgb"][0], numbers["B04"][0])
    model.modalities = ModalitySet([MODALITIES["sentinel1"]])
    model.config.sizes = {"sentinel1": 16}
    with pytest.raises(ConfigError, match="has the bands of none of the inputs sentinel1"):
        open_for(model, safe)


def test_init_drafts_the_scene_file_of_a_product(tmp_path: Path) -> None:
    safe = write_safe(tmp_path, s2_numbers(12))
    draft = draft_of([safe])
    assert (draft.kind, draft.blanks) == ("scene", ())
    assert "Sentinel-2 L2A SAFE, baseline 05.10" in draft.evidence[0]
    (tmp_path / "drafted.yaml").write_text(draft.text(tmp_path))
    assert Scene(tmp_path / "drafted.yaml").time == "2023-05-27"


def damage_metadata(safe: Path, old: str, new: str) -> None:
    path = safe / "MTD_MSIL2A.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


ENTITY = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: (s / "MTD_MSIL2A.xml").unlink(), r"no MTD_MSIL1C\.xml or MTD_MSIL2A\.xml"),
        (lambda s: damage_metadata(s, "</n1:General_Info>", ""), r"MTD_MSIL2A\.xml: damaged XML"),
        (
            lambda s: damage_metadata(s, "<n1:General_Info>", f"{ENTITY}<n1:General_Info>"),
            "XML with a document type or entities is not read",
        ),
        (lambda s: damage_metadata(s, ">10000<", "><"), "quantification value: expected a number"),
        (lambda s: damage_metadata(s, "BOA_ADD_OFFSET", "X"), "baseline 05.10 without BOA_ADD"),
        (
            lambda s: next(s.rglob("*B04_10m.jp2")).unlink(),
            "band B4 is missing: no file .*B04_10m",
        ),
        (lambda s: next(s.rglob("*SCL_20m.jp2")).unlink(), r"scene classification \(SCL\) is miss"),
        (lambda s: shutil.rmtree(s / "GRANULE"), "is missing: no file"),
        (
            lambda s: next(s.rglob("*B04_10m.jp2")).write_bytes(b"\0\0\0\x0cjP  half"),
            "B04_10m.jp2: cannot be read",
        ),
    ],
)
def test_half_a_safe_gets_one_line(tmp_path: Path, damage: object, message: str) -> None:
    safe = write_safe(tmp_path, s2_numbers(12))
    assert callable(damage)
    damage(safe)
    with pytest.raises(FormatError, match=message) as error:
        scene_of(tmp_path, f"  rgb: {{product: {safe.name}, bands: [B4, B3, B2]}}\n")
    assert "\n" not in str(error.value)


def test_what_a_product_has_is_not_declared_again(tmp_path: Path) -> None:
    safe = write_safe(tmp_path, s2_numbers(12))
    with pytest.raises(ConfigError, match="scale: a `product:` has it in its metadata"):
        scene_of(tmp_path, f"  rgb: {{product: {safe.name}, bands: [B4], scale: 1}}\n")
    with pytest.raises(BandError, match=r"L2A SAFE, baseline 05\.10 has no band 'B10'"):
        scene_of(tmp_path, f"  cirrus: {{product: {safe.name}, bands: [B10]}}\n")
    with pytest.raises(FormatError, match="no such file or folder; expected a Sentinel-2 SAFE"):
        scene_of(tmp_path, "  rgb: {product: nowhere.SAFE, bands: [B4]}\n")


# Landsat, HLS, Sentinel-1 ---------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "txt"])
def test_landsat_reflectance_and_quality_bits(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(1)
    numbers = {b: rng.integers(7500, 30000, (1, 8, 8)).astype(np.uint16) for b in (2, 3, 4)}
    quality = np.full((1, 8, 8), 1 << 6, np.uint16)
    quality[0, 0, :] = [1, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7]
    product = write_landsat(tmp_path, numbers, quality, form=form)
    scene = scene_of(tmp_path, f"  optical: {{product: {product.name}, bands: [B4, B3, B2]}}\n")
    values = physical(read(scene), "optical")
    expected = np.concatenate([numbers[b] for b in (4, 3, 2)]) * 2.75e-5 - 0.2
    expected[:, 0, :5] = np.nan
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert open_product(product).time == "2023-05-27"
    mtl = next(product.glob("*_MTL.*"))
    mtl.write_text(mtl.read_text().replace("L2SP", "L1TP"))
    with pytest.raises(FormatError, match="processing level L1TP, expected Collection 2 level 2"):
        open_product(product)
    mtl.write_text("nothing")
    with pytest.raises(FormatError, match="_MTL"):
        open_product(product)


@pytest.mark.parametrize(("kind", "red"), [("L30", "B04"), ("S30", "B04")])
def test_hls_bands_and_fmask_bits(tmp_path: Path, kind: str, red: str) -> None:
    granule = f"HLS.{kind}.T30UVD.2023147T112121.v2.0"
    codes = ("B02", "B03", red, "B05" if kind == "L30" else "B8A")
    numbers = {}
    for i, code in enumerate(codes):
        numbers[code] = np.full((1, 4, 8), 500 + i, np.int16)
        numbers[code][0, 3, 0] = -9999
        write_raster(tmp_path / "h" / f"{granule}.{code}.tif", numbers[code], 30)
    mask = np.zeros((1, 4, 8), np.uint8)
    mask[0, 0] = [1 << i for i in range(8)]
    write_raster(tmp_path / "h" / f"{granule}.Fmask.tif", mask, 30, nodata=255)
    scene = scene_of(tmp_path, "  optical: {product: h, bands: [blue, green, red, nir]}\n")
    values = physical(read(scene), "optical")
    np.testing.assert_allclose(values[:, 1, 1], [0.05, 0.0501, 0.0502, 0.0503], rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(values[0, 0]), [0, 1, 1, 1, 0, 0, 0, 0])
    assert np.isnan(values[:, 3, 0]).all()
    assert open_product(tmp_path / "h").time == "2023-05-27"
    (tmp_path / "h" / f"{granule}.Fmask.tif").unlink()
    with pytest.raises(FormatError, match="Fmask is missing"):
        open_product(tmp_path / "h")


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("S1A_RTC_VV.tif", 0.1, -10.0),
        ("S1A_RTC_VV.tif", -12.5, -12.5),
        ("S1A_IW_20230527T062000_DVP_RTC10_G_gauned_ABCD_VV.tif", 0.1, -20.0),
        ("S1A_IW_20230527T062000_DVP_RTC10_G_gduned_ABCD_VV.tif", -7.0, -7.0),
    ],
)
def test_radar_is_decibels_however_it_is_stored(
    tmp_path: Path, name: str, values: float, expected: float
) -> None:
    pixels = np.full((1, 8, 8), values, np.float32)
    pixels[0, 0, 0] = np.nan
    write_raster(tmp_path / name, pixels, 10)
    scene = scene_of(tmp_path, f"  radar: {{product: {name}, bands: [VV]}}\n")
    read_back = physical(read(scene), "radar")
    assert np.isnan(read_back[0, 0, 0])
    np.testing.assert_allclose(read_back[0, 1:], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("S1A_RTC_VV.tif", 60.0, "linear or in dB"),
        ("S1A_IW_X_RTC10_G_gpuned_ABCD_VV.tif", -9.0, "its name means 'p'"),
    ],
)
def test_ambiguous_radar_is_an_error(
    tmp_path: Path, name: str, values: float, message: str
) -> None:
    write_raster(tmp_path / name, np.full((1, 8, 8), values, np.float32), 10)
    with pytest.raises(FormatError, match=message):
        scene_of(tmp_path, f"  radar: {{product: {name}, bands: [VV]}}\n")


# A file per band ------------------------------------------------------------------------------


def test_a_band_pattern_of_several_files_is_an_error(tmp_path: Path) -> None:
    for date in ("20230527", "20230606"):
        write_raster(tmp_path / f"S2_{date}_B04.tif", np.ones((1, 8, 8), np.uint16), 10)
    one = "  red: {bands: {B4: PATTERN}, sensor: sentinel2, level: l2a, scale: 1.0e-4}\n"
    both = r"S2_20230527_B04\.tif, S2_20230606_B04\.tif; they are of 2 dates \(2023-05-27, 2023"
    with pytest.raises(ConfigError, match=both):
        scene_of(tmp_path, one.replace("PATTERN", '"*_B04.tif"'))
    for tile in ("a", "b"):
        write_raster(tmp_path / f"tile_{tile}_B03.tif", np.ones((1, 8, 8), np.uint16), 10)
    with pytest.raises(ConfigError, match="narrow the pattern, or list the tiles"):
        scene_of(tmp_path, one.replace("B4: PATTERN", 'B3: "tile_*_B03.tif"'))
    listed = one.replace("B4: PATTERN", "B3: [tile_a_B03.tif, tile_b_B03.tif]")
    assert read(scene_of(tmp_path, listed)).pixels["red"].shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ("{B4: x_B03.tif}", "no band 'B4'"),
        ("{B4: missing.tif}", r"missing\.tif"),
        ("{B4: two.tif}", "has 2 bands; a band's file has one"),
        ("{B4: [x_B03.tif, 3]}", "expected a file, or a list of tiles, for B4"),
        ("{B99: x_B03.tif}", "B99"),
    ],
)
def test_bad_band_files_get_one_line(tmp_path: Path, bands: str, message: str) -> None:
    write_raster(tmp_path / "x_B03.tif", np.ones((1, 8, 8), np.uint16), 10)
    write_raster(tmp_path / "two.tif", np.ones((2, 8, 8), np.uint16), 10)
    with pytest.raises(MultiMAEError, match=message) as error:
        scene_of(tmp_path, f"  red: {{bands: {bands}, sensor: sentinel2, level: l2a}}\n")
    assert isinstance(error.value, ConfigError | DataError)
    assert "\n" not in str(error.value)


def test_bands_keep_their_native_grids_by_ratio(tmp_path: Path) -> None:
    numbers = s2_numbers(12)
    for band in ("B04", "B05"):
        write_raster(tmp_path / f"T_{band}.tif", numbers[band], S2_SIZES[band])
    rest = "sensor: sentinel2, level: l2a, scale: 1.0e-4"
    scene = scene_of(
        tmp_path,
        f'  red: {{bands: {{B4: "*B04.tif"}}, {rest}}}\n'
        f'  edge: {{bands: {{B5: "*B05.tif"}}, {rest}, ratio: 2}}\n',
    )
    np.testing.assert_array_equal(read(scene).pixels["edge"], numbers["B05"])


def test_init_drafts_band_files_and_reads_them_back(tmp_path: Path) -> None:
    numbers = s2_numbers(12)
    for band in ("B02", "B03", "B04", "B8A", "B11"):
        write_raster(tmp_path / "b" / f"T30UVD_20230527T112119_{band}.jp2", numbers[band],
                     S2_SIZES[band])  # fmt: skip
    draft = draft_of([tmp_path / "b"])
    assert {b.rpartition(".")[2] for b in draft.blanks} == {"scale", "level"}
    text = draft.text(tmp_path).replace("scale: ???", "scale: 1.0e-4")
    (tmp_path / "scene.yaml").write_text(text.replace("level: ???", "level: l2a"))
    scene = Scene(tmp_path / "scene.yaml", native=True)
    assert scene.time == "2023-05-27"
    sample = read(scene)
    np.testing.assert_array_equal(sample.pixels["optical_10m"][2], numbers["B04"][0])
    np.testing.assert_array_equal(sample.pixels["optical_20m"][1], numbers["B11"][0])
