"""``product_at``: which product a path is."""

from __future__ import annotations

from pathlib import Path

from multimae_eo.errors import FormatError
from multimae_eo.sources.products.hls import granules, hls_product
from multimae_eo.sources.products.landsat import landsat_product, metadata_file
from multimae_eo.sources.products.product import Product
from multimae_eo.sources.products.radar import rtc_files, rtc_product
from multimae_eo.sources.products.safe import is_safe, safe_product


def product_at(path: Path, *, radar: bool = True) -> Product | None:
    """The product that a path is, None where it is none. ``radar``: also plain GeoTIFFs whose
    names end with a polarisation.

    FormatError for a product that is incomplete or damaged.
    """
    if is_safe(path):
        return safe_product(path)
    if metadata_file(path) is not None:
        return landsat_product(path)
    if granules(path):
        return hls_product(path)
    if radar and path.exists() and rtc_files(path):
        return rtc_product(path)
    return None


def open_product(path: Path) -> Product:
    """The product that a path is; FormatError where it is none, or is incomplete or damaged."""
    product = product_at(path)
    if product is None:
        missing = "no such file or folder" if not path.exists() else "is none of the products"
        raise FormatError(
            f"{path}: {missing}; expected a Sentinel-2 SAFE folder, a Landsat Collection 2 level 2 "
            "folder (with MTL), the COGs of an HLS granule, or Sentinel-1 RTC GeoTIFFs"
        )
    return product
