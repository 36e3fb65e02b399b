"""Harmonized Landsat Sentinel-2 (HLS) v2: band COGs of one granule, validity from Fmask."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from multimae_eo.errors import FormatError
from multimae_eo.sources.products.product import (
    Product,
    ProductBand,
    QualityMask,
    require_file,
)

_FILE = re.compile(r"(HLS\.(L30|S30)\.T\w{5}\.(\d{7})T\d{6}\.v[\d.]+)\.(\w+)\.tif")
_NAMES = {
    "L30": {"B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "nir",
            "B06": "swir1", "B07": "swir2"},
    "S30": {"B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B8A": "nir",
            "B11": "swir1", "B12": "swir2"},
}  # fmt: skip
_UNUSABLE_BITS = 0b1110
"""Of Fmask: cloud, adjacent to cloud or shadow, cloud shadow (HLS v2 User Guide, table 9)."""
_SCALE = 1.0e-4


def granules(path: Path) -> dict[str, dict[str, Path]]:
    """The files of each HLS granule in a folder, by band."""
    files: dict[str, dict[str, Path]] = {}
    for file in sorted(path.glob("HLS.*.tif")) if path.is_dir() else ():
        if match := _FILE.fullmatch(file.name):
            files.setdefault(match[1], {})[match[4]] = file
    return files


def hls_product(path: Path) -> Product:
    """The only HLS granule of a folder; FormatError for several, or without Fmask."""
    files = granules(path)
    if len(files) != 1:
        raise FormatError(
            f"{path}: {len(files)} HLS granules ({', '.join(list(files)[:2])}); a scene is one: "
            "give each a folder"
        )
    granule, by_band = next(iter(files.items()))
    _, product, _, date, *_ = granule.split(".")
    names = _NAMES[product]
    require_file(path, by_band.get("Fmask", path / f"{granule}.Fmask.tif"), "Fmask")
    day = datetime.strptime(date[:7], "%Y%j")
    return Product(
        kind=f"HLS {product}",
        path=path,
        sensor="hls",
        time=f"{day:%Y-%m-%d}",
        bands={
            name: ProductBand(path=by_band.get(b, path / f"{granule}.{b}.tif"), scale=_SCALE)
            for b, name in names.items()
        },
        nodata=(-9999.0,),
        mask=QualityMask(path=by_band["Fmask"], bits=_UNUSABLE_BITS),
    )
