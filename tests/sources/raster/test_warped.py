"""Rasters on their own grid are read as they are: the same as interpolating them, for less."""

from __future__ import annotations

from pathlib import Path
from unittest import mock
from uuid import uuid4

import numpy as np
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multimae_eo.geo import Window
from multimae_eo.sources.raster import warped
from multimae_eo.sources.raster.grid import Grid

LEFT, TOP, PIXEL = 300_000.0, 5_800_000.0, 10.0


def raster(
    path: Path, values: np.ndarray, *, row: float = 0, col: float = 0, **more: object
) -> Path:
    """A raster of (C, H, W) ``values``, its corner at a row and column of the grid."""
    more = {"photometric": "minisblack", **more}  # four bytes a pixel are no alpha
    transform = rasterio.Affine(PIXEL, 0, LEFT + col * PIXEL, 0, -PIXEL, TOP - row * PIXEL)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(values), height=values.shape[1], width=values.shape[2],
        dtype=values.dtype, crs="EPSG:32630", transform=transform, **more,
    ) as file:  # fmt: skip
        file.write(values)
    return path


def grid(height: int, width: int) -> Grid:
    transform = rasterio.Affine(PIXEL, 0, LEFT, 0, -PIXEL, TOP)
    return Grid(crs="EPSG:32630", transform=transform, height=height, width=width)


def both(view: warped.View, bands: list[int], window: Window) -> list[tuple[np.ndarray, ...]]:
    """What is read as it is, and what is interpolated; fails where nothing is read as it is."""
    own = warped._Open(view)
    assert own.shift is not None, "read as it is"
    with mock.patch.object(warped, "_shift", return_value=None):
        other = warped._Open(view)
    try:
        return [o.read(bands, window) for o in (own, other)]
    finally:
        own.close()
        other.close()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_it_is_what_warping_gives(tmp_path: Path, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "int16", "int32", "float32"]))
    count = data.draw(st.integers(1, 4))
    height, width = data.draw(st.integers(5, 40)), data.draw(st.integers(5, 40))
    seed, nodata = data.draw(st.integers(0, 99)), data.draw(st.sampled_from([None, 0, 3]))
    # Few values, so that nodata is often in some bands only.
    values = np.random.default_rng(seed).integers(0, 5, (count, height, width)).astype(dtype)
    values[:, : height // 3] = 3
    row, col = data.draw(st.integers(-6, 9)), data.draw(st.integers(-6, 9))
    # A name per example: of two files of one name within a clock tick GDAL may keep the first.
    path = raster(tmp_path / f"{uuid4().hex}.tif", values, row=row, col=col, nodata=nodata)
    view = warped.view_on(path, grid(32, 32), nodata=None, nearest=data.draw(st.booleans()))
    if view is None:
        return
    at = view.covers
    top, left = data.draw(st.integers(0, at.height - 1)), data.draw(st.integers(0, at.width - 1))
    window = Window(
        row=at.row + top,
        col=at.col + left,
        height=data.draw(st.integers(1, at.height - top)),
        width=data.draw(st.integers(1, at.width - left)),
    )
    bands = data.draw(st.permutations(range(1, count + 1)))[: data.draw(st.integers(1, count))]
    (pixels, seen), (warped_pixels, warped_seen) = both(view, bands, window)
    assert pixels.dtype == warped_pixels.dtype
    assert pixels.shape == warped_pixels.shape == (len(bands), window.height, window.width)
    np.testing.assert_array_equal(seen, warped_seen)
    np.testing.assert_array_equal(pixels, warped_pixels)
    unseen = ~np.broadcast_to(seen, pixels.shape)
    assert not pixels[unseen].any(), "no sentinel travels further"
    part = values[np.array(bands) - 1]
    expected = np.zeros((len(bands), 40 + 32, 40 + 32), dtype)
    expected[:, 16 + row : 16 + row + height, 16 + col : 16 + col + width] = part + 1
    expected = expected[:, 16 + window.row :, 16 + window.col :][:, : window.height, : window.width]
    truth = (expected > 0) & (expected - 1 != nodata if nodata is not None else True)
    np.testing.assert_array_equal(~unseen, truth)


def test_half_a_pixel_aside_is_interpolated(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", np.ones((2, 20, 20), "uint16"), row=0.5)
    view = warped.view_on(path, grid(16, 16), nodata=[0], nearest=False)
    assert view is not None
    assert warped._Open(view).shift is None


def test_a_mask_beside_the_values_is_heeded(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", np.ones((1, 20, 20), np.uint8))
    with rasterio.open(path, "r+") as file:
        file.write_mask(np.tri(20, dtype=bool))
    view = warped.view_on(path, grid(20, 20), nodata=None, nearest=True)
    assert view is not None
    _, seen = view.read([1], Window(row=0, col=0, height=20, width=20))
    np.testing.assert_array_equal(seen[0], np.tri(20, dtype=bool))


def test_an_alpha_band_is_heeded(tmp_path: Path) -> None:
    values = np.full((4, 20, 20), 9, np.uint8)
    values[3] = 255 * np.tri(20)
    path = raster(tmp_path / "a.tif", values, photometric="rgb", alpha="yes")
    view = warped.view_on(path, grid(20, 20), nodata=None, nearest=True)
    assert view is not None
    pixels, seen = view.read([1, 2, 3], Window(row=0, col=0, height=20, width=20))
    assert pixels.shape == (3, 20, 20)
    np.testing.assert_array_equal(seen[0], np.tri(20, dtype=bool))
