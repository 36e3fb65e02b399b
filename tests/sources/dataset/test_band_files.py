"""Dataset files with a file per band."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from multimae_eo.errors import BandError, ConfigError, DataError, FormatError
from multimae_eo.loading.open_source import open_source
from multimae_eo.sources.base import Source
from tests.support.scene_files import write

RGB = '{B4: "{id}/{id}_B04.tif", B3: "{id}/{id}_B03.tif", B2: "{id}/{id}_B02.tif"}'


def band(
    folder: Path, key: str, name: str, side: int = 8, dtype: str = "uint16"
) -> npt.NDArray[np.generic]:
    rng = np.random.default_rng(100 * len(key) + int(name[1:3]))
    pixels = rng.integers(1, 3000, (1, side, side)).astype(dtype)
    (folder / key).mkdir(exist_ok=True)
    write(folder / key / f"{key}_{name}.tif", pixels, ("",))
    return pixels


def source(folder: Path, bands: str = RGB, more: str = "") -> Source:
    (folder / "d.yaml").write_text(
        f"modalities:\n  rgb: {{bands: {bands}, sensor: sentinel2, level: l2a, "
        f"scale: 1.0e-4{more}}}\n"
    )
    return open_source(folder / "d.yaml")


def test_bands_of_own_files_are_stacked_in_order(tmp_path: Path) -> None:
    expected = {}
    for key in ("a", "bb"):
        expected[key] = np.concatenate([band(tmp_path, key, n) for n in ("B04", "B03", "B02")])
    opened = source(tmp_path)
    assert list(opened.keys) == ["a", "bb"]
    assert opened.modalities["rgb"].band_names == ("B4", "B3", "B2")
    for i, key in enumerate(opened.keys):
        np.testing.assert_array_equal(opened.read(i).pixels["rgb"], expected[key])


def test_nodata_of_one_band_is_invalid_in_that_band_alone(tmp_path: Path) -> None:
    for name in ("B04", "B03", "B02"):
        pixels = band(tmp_path, "a", name)
        if name == "B03":
            pixels[0, 2, 5] = 0
            write(tmp_path / "a" / "a_B03.tif", pixels, ("",), nodata=0)
    valid = source(tmp_path).read(0).valid["rgb"]
    assert (~valid).sum() == 1
    assert not valid[1, 2, 5]


def test_a_chip_with_some_of_the_bands_is_an_error_even_if_optional(tmp_path: Path) -> None:
    for key in ("a", "b"):
        for name in ("B04", "B03", "B02"):
            band(tmp_path, key, name)
    (tmp_path / "b" / "b_B03.tif").unlink()
    for more in ("", ", optional: true"):
        with pytest.raises(DataError, match=r"1 chips have no file, first .*b/b_B03\.tif"):
            source(tmp_path, more=more)


@pytest.mark.parametrize(
    ("name", "side", "dtype", "message"),
    [
        ("B02", 4, "uint16", r"4×4 px, uint16, but 8×8 px, uint16 in .*a_B04\.tif; give bands"),
        ("B02", 8, "float32", r"8×8 px, float32, but 8×8 px, uint16"),
    ],
)
def test_other_sizes_and_dtypes_are_errors(
    tmp_path: Path, name: str, side: int, dtype: str, message: str
) -> None:
    for other in ("B04", "B03"):
        band(tmp_path, "a", other)
    band(tmp_path, "a", name, side, dtype)
    with pytest.raises(FormatError, match=message):
        source(tmp_path)


def test_a_file_of_another_band_is_an_error(tmp_path: Path) -> None:
    for name in ("B04", "B03", "B02"):
        band(tmp_path, "a", name)
    with pytest.raises(BandError, match="no band 'B8'"):
        source(tmp_path, bands='{B4: "{id}/{id}_B04.tif", B8: "{id}/{id}_B03.tif"}')
    write(tmp_path / "a" / "a_B05.tif", np.ones((2, 8, 8), np.uint16), ("", ""))
    with pytest.raises(BandError, match="has 2 bands; a band's file has one"):
        source(tmp_path, bands='{B4: "{id}/{id}_B04.tif", B5: "{id}/{id}_B05.tif"}')


@pytest.mark.parametrize(
    ("bands", "more", "message"),
    [
        ('{B4: "a_B04.tif"}', "", "needs {id}"),
        ('{B4: "{id}.tif", B3: 3}', "", "expected a path with {id} for each band"),
        (RGB, ', path: "{id}.tif"', "not beside a file per band"),
    ],
)
def test_invalid_entries_name_the_key(tmp_path: Path, bands: str, more: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source(tmp_path, bands, more)
