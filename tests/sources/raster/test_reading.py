from __future__ import annotations

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import from_origin

from multimae_eo.errors import FormatError
from multimae_eo.sources.raster.reading import read_header, read_raster, valid_pixels


def write_tif(path, pixels, bands=(), **profile):
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "dtype": pixels.dtype, "count": count, **profile}
    with rasterio.open(path, "w", height=height, width=width, **profile) as out:
        out.write(pixels)
        for i, name in enumerate(bands, 1):
            out.set_band_description(i, name)
    return path


def test_a_geotiff_keeps_type_names_nodata_and_ground(tmp_path):
    pixels = np.arange(2 * 4 * 6, dtype=np.int16).reshape(2, 4, 6)
    path = write_tif(
        tmp_path / "a.tif",
        pixels,
        ["VV", "VH"],
        nodata=-9999,
        crs=CRS.from_epsg(32630),
        transform=from_origin(500_000, 4_100_000, 10, 10),
    )
    raster = read_raster(path)
    assert raster.pixels.dtype == np.int16
    np.testing.assert_array_equal(raster.pixels, pixels)
    assert raster.header == read_header(path)
    assert raster.header.names == ("VV", "VH")
    assert raster.header.nodata == (-9999.0, -9999.0)
    assert raster.header.shape == (4, 6)
    assert raster.header.geometry.crs == "EPSG:32630"
    assert raster.header.geometry.bounds == (500_000, 4_099_960, 500_060, 4_100_000)
    assert raster.mask is None


def test_a_fourth_byte_band_is_data_although_gdal_calls_it_alpha(tmp_path):
    pixels = np.zeros((4, 5, 5), dtype=np.uint8)
    raster = read_raster(write_tif(tmp_path / "bgrn.tif", pixels))
    assert raster.pixels.shape == (4, 5, 5)
    assert raster.mask is None


def test_an_internal_mask_is_kept(tmp_path):
    path = tmp_path / "m.tif"
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", dtype="uint8", count=1, height=3, width=3) as out,
    ):
        out.write(np.ones((1, 3, 3), np.uint8))
        out.write_mask(np.eye(3, dtype=bool))
    np.testing.assert_array_equal(read_raster(path).mask[0], np.eye(3, dtype=bool))


def test_scale_and_offset_that_a_file_declares_are_reported(tmp_path):
    path = write_tif(tmp_path / "s.tif", np.zeros((1, 2, 2), np.int16))
    with rasterio.open(path, "r+") as out:
        out.scales, out.offsets = (1e-4,), (-0.1,)
    (band,) = read_header(path).bands
    assert (band.scale, band.offset) == (1e-4, -0.1)


def test_images_name_their_bands_and_alpha_becomes_the_mask(tmp_path):
    rgba = np.random.default_rng(0).integers(1, 255, (4, 5, 4), dtype=np.uint8)
    rgba[0, 0, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    raster = read_raster(tmp_path / "a.png")
    assert raster.header.names == ("red", "green", "blue")
    np.testing.assert_array_equal(raster.pixels, np.moveaxis(rgba[..., :3], -1, 0))
    assert not raster.mask[0, 0, 0]
    assert raster.mask.sum() == 19

    sixteen = np.array([[0, 40_000], [65_535, 7]], dtype=np.uint16)
    Image.fromarray(sixteen).save(tmp_path / "b.png")
    gray = read_raster(tmp_path / "b.png")
    assert gray.header.names == ("",)
    assert gray.pixels.dtype == np.uint16
    np.testing.assert_array_equal(gray.pixels[0], sixteen)


def test_arrays_come_back_in_native_byte_order_and_objects_are_refused(tmp_path):
    big = np.arange(12, dtype=">f4").reshape(1, 3, 4)
    np.save(tmp_path / "big.npy", big)
    raster = read_raster(tmp_path / "big.npy")
    assert raster.pixels.dtype == np.dtype("=f4")
    np.testing.assert_array_equal(raster.pixels, big)
    np.save(tmp_path / "flat.npy", np.zeros((3, 4), bool))
    assert read_raster(tmp_path / "flat.npy").pixels.shape == (1, 3, 4)
    np.save(tmp_path / "object.npy", np.array([[{"a": 1}]]), allow_pickle=True)
    with pytest.raises(FormatError, match=r"object\.npy"):
        read_raster(tmp_path / "object.npy")


@pytest.mark.parametrize("name", ["c.tif", "c.npy"])
def test_complex_numbers_are_refused(tmp_path, name):
    pixels = np.ones((1, 3, 3), np.complex64)
    if name.endswith("tif"):
        write_tif(tmp_path / name, pixels)
    else:
        np.save(tmp_path / name, pixels)
    for read in (read_raster, read_header):
        with pytest.raises(FormatError, match="complex64"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["t.tif", "t.png", "t.npy"])
@pytest.mark.parametrize("keep", [0, 20, 0.5])
def test_a_truncated_file_is_named(tmp_path, name, keep):
    path = tmp_path / name
    noise = np.random.default_rng(1).integers(0, 255, (1, 64, 64), dtype=np.uint8)
    if name.endswith("tif"):
        write_tif(path, noise, compress="deflate")
    elif name.endswith("png"):
        Image.fromarray(noise[0]).save(path)
    else:
        np.save(path, noise)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(FormatError, match=name) as caught:
        read_raster(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"none\.tif: no such file"):
        read_raster(tmp_path / "none.tif")


def test_validity_covers_nan_infinity_and_sentinels_per_band():
    pixels = np.ones((2, 2, 3), np.float32)
    assert valid_pixels(pixels, [(), ()]) is None
    pixels[:, 0, 0] = np.nan
    pixels[:, 0, 1] = -np.inf
    shared = valid_pixels(pixels, [(-9999.0,), (-9999.0,)])
    assert shared.shape == (1, 2, 3)
    assert shared.sum() == 4
    lowest = float(np.finfo(np.float32).min)
    pixels[1, 1, 2] = lowest
    apart = valid_pixels(pixels, [(lowest,), (lowest,)])
    assert apart.shape == (2, 2, 3)
    assert (apart[0].sum(), apart[1].sum()) == (4, 3)


def test_a_sentinel_outside_the_integer_type_never_matches():
    pixels = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    for impossible in (-9999.0, 256.0, 2.5, float("nan")):
        assert valid_pixels(pixels, [(impossible,)]) is None
    assert valid_pixels(pixels, [(0.0, 5.0)]).sum() == 4
