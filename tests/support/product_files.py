"""Small products with the names and metadata of ESA, USGS and NASA, of given digital numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

S2_SIZES = {
    "B01": 60, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20, "B07": 20, "B08": 10,
    "B8A": 20, "B09": 60, "B10": 60, "B11": 20, "B12": 20,
}  # fmt: skip
BAND_IDS = list(S2_SIZES)
ORIGIN = (499_980.0, 5_900_040.0)


def write_raster(path: Path, pixels: np.ndarray, size: float, **profile: object) -> None:
    """Bands (C, H, W) of square pixels of ``size`` metres; a lossless JPEG 2000 for ``.jp2``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    jp2 = path.suffix == ".jp2"
    options: dict[str, object] = (
        {"driver": "JP2OpenJPEG", "quality": 100, "reversible": True}
        if jp2
        else {"driver": "GTiff"}
    )
    with rasterio.open(
        path, "w", width=pixels.shape[2], height=pixels.shape[1], count=len(pixels),
        dtype=pixels.dtype, crs="EPSG:32630", transform=from_origin(*ORIGIN, size, size),
        **options | profile,
    ) as file:  # fmt: skip
        file.write(pixels)


def s2_numbers(side: int = 48, seed: int = 0) -> dict[str, np.ndarray]:
    """Digital numbers (1, H, W) of each band on its native grid; ``side``: pixels of 10 m."""
    rng = np.random.default_rng(seed)
    return {
        band: rng.integers(1100, 6000, (1, side * 10 // size, side * 10 // size)).astype(np.uint16)
        for band, size in S2_SIZES.items()
    }


def real_numbers(tile: Path, side: int = 120) -> dict[str, np.ndarray]:
    """Digital numbers of a real scene: a tile of ten bands with reflectance × 1000, brought to the
    numbers of baseline 05.10; the bands that it lacks are those nearest in wavelength."""
    names = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    with rasterio.open(tile) as file:
        pixels = dict(zip(names, file.read()[:, :side, :side].astype(np.uint16) * 10 + 1000,
                          strict=True))  # fmt: skip
    pixels |= {"B01": pixels["B02"], "B09": pixels["B8A"], "B10": pixels["B11"]}
    return {b: pixels[b][None, :: s // 10, :: s // 10] for b, s in S2_SIZES.items()}


def write_safe(
    folder: Path,
    numbers: Mapping[str, np.ndarray],
    *,
    level: str = "L2A",
    baseline: str = "05.10",
    offset: int | None = -1000,
    classes: np.ndarray | None = None,
) -> Path:
    """A SAFE folder. ``classes``: the scene classification at 20 m (default: vegetation)."""
    name = f"S2B_MSI{level}_20230527T112119_N0510_R037_T30UVD_20230527T135219.SAFE"
    safe, granule = folder / name, f"GRANULE/{level}_T30UVD_A022061_20230527T112116"
    images = []
    for band, pixels in numbers.items():
        size = S2_SIZES[band]
        if level == "L2A" and band == "B10":
            continue
        sizes = [s for s in (10, 20, 60) if s >= size] if level == "L2A" else [size]
        for other in sizes:
            where = f"R{other}m/" if level == "L2A" else ""
            ending = f"_{other}m" if level == "L2A" else ""
            image = f"{granule}/IMG_DATA/{where}T30UVD_20230527T112119_{band}{ending}"
            step = other // size
            write_raster(safe / f"{image}.jp2", pixels[:, ::step, ::step], other)
            images.append(image)
    if level == "L2A":
        side = numbers["B02"].shape[1] // 2
        values = np.full((1, side, side), 4, np.uint8) if classes is None else classes
        image = f"{granule}/IMG_DATA/R20m/T30UVD_20230527T112119_SCL_20m"
        write_raster(safe / f"{image}.jp2", values, 20)
        images.append(image)
    (safe / f"MTD_MSI{level}.xml").write_text(_mtd(level, baseline, offset, images))
    return safe


def _mtd(level: str, baseline: str, offset: int | None, images: list[str]) -> str:
    tag, quantification = (
        ("BOA", "BOA_QUANTIFICATION_VALUE") if level == "L2A" else ("RADIO", "QUANTIFICATION_VALUE")
    )
    listed = "".join(f"<IMAGE_FILE>{i}</IMAGE_FILE>" for i in images)
    offsets = (
        ""
        if offset is None
        else "".join(
            f'<{tag}_ADD_OFFSET band_id="{i}">{offset}</{tag}_ADD_OFFSET>' for i in range(13)
        )
    )
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no" ?>
<n1:Level-{level[1:]}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/Level">
<n1:General_Info><Product_Info><PRODUCT_START_TIME>2023-05-27T11:21:19.024Z</PRODUCT_START_TIME>
<PROCESSING_LEVEL>Level-{level[1:]}</PROCESSING_LEVEL>
<PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
<Product_Organisation><Granule_List><Granule imageFormat="JPEG2000">{listed}</Granule>
</Granule_List></Product_Organisation></Product_Info>
<Product_Image_Characteristics>
<Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT>
<SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
<Special_Values><SPECIAL_VALUE_TEXT>SATURATED</SPECIAL_VALUE_TEXT>
<SPECIAL_VALUE_INDEX>65535</SPECIAL_VALUE_INDEX></Special_Values>
<QUANTIFICATION_VALUES_LIST><{quantification} unit="none">10000</{quantification}>
<AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE>
</QUANTIFICATION_VALUES_LIST><{tag}_ADD_OFFSET_VALUES_LIST>{offsets}</{tag}_ADD_OFFSET_VALUES_LIST>
</Product_Image_Characteristics></n1:General_Info></n1:Level-{level[1:]}_User_Product>
"""


def write_landsat(
    folder: Path, numbers: Mapping[int, np.ndarray], quality: np.ndarray, *, form: str = "json"
) -> Path:
    """A Landsat 9 Collection 2 L2SP folder with its MTL as ``json`` or ``txt``."""
    name = "LC09_L2SP_204023_20230527_20230601_02_T1"
    product = folder / name
    for band, pixels in numbers.items():
        write_raster(product / f"{name}_SR_B{band}.TIF", pixels, 30, nodata=0)
    write_raster(product / f"{name}_QA_PIXEL.TIF", quality, 30, nodata=1)
    groups: dict[str, dict[str, str]] = {
        "PRODUCT_CONTENTS": {
            "PROCESSING_LEVEL": "L2SP",
            "COLLECTION_NUMBER": "02",
            **{f"FILE_NAME_BAND_{b}": f"{name}_SR_B{b}.TIF" for b in numbers},
            "FILE_NAME_QUALITY_L1_PIXEL": f"{name}_QA_PIXEL.TIF",
        },
        "IMAGE_ATTRIBUTES": {"SPACECRAFT_ID": "LANDSAT_9", "DATE_ACQUIRED": "2023-05-27"},
        "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": {
            **{f"REFLECTANCE_MULT_BAND_{b}": "2.75e-05" for b in numbers},
            **{f"REFLECTANCE_ADD_BAND_{b}": "-0.2" for b in numbers},
        },
        "LEVEL1_RADIOMETRIC_RESCALING": {
            **{f"REFLECTANCE_MULT_BAND_{b}": "2.0000E-05" for b in numbers},
            **{f"REFLECTANCE_ADD_BAND_{b}": "-0.100000" for b in numbers},
        },
    }
    if form == "json":
        text = json.dumps({"LANDSAT_METADATA_FILE": groups})
    else:
        inner = "".join(
            f"  GROUP = {g}\n" + "".join(f'    {k} = "{v}"\n' for k, v in e.items())
            + f"  END_GROUP = {g}\n" for g, e in groups.items()
        )  # fmt: skip
        text = f"GROUP = LANDSAT_METADATA_FILE\n{inner}END_GROUP = LANDSAT_METADATA_FILE\nEND\n"
    (product / f"{name}_MTL.{form}").write_text(text)
    return product
