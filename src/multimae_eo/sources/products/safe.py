"""Sentinel-2 SAFE folders, L1C and L2A: calibration from MTD_MSIL*.xml, whatever the baseline.

reflectance = (DN + RADIO_ADD_OFFSET) / QUANTIFICATION_VALUE, with BOA_ADD_OFFSET for L2A (ESA,
Sentinel-2 Products Specification Document). Offsets exist since processing baseline 04.00.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from multimae_eo.errors import FormatError
from multimae_eo.sources.products.product import (
    Product,
    ProductBand,
    QualityMask,
    elements,
    number_in,
    read_xml,
    require_file,
)

_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
"""By ``band_id``."""
_IMAGE = re.compile(r"_(B\d\d|B8A|SCL)(?:_(10|20|60)m)?$")
_OFFSETS_SINCE = 4.0
_UNUSABLE_CLASSES = (0, 1, 3, 8, 9, 10)
"""Of the scene classification: no data, saturated, cloud shadow, clouds, thin cirrus."""


def is_safe(path: Path) -> bool:
    """Whether a folder is a Sentinel-2 SAFE product, complete or not."""
    return path.is_dir() and (
        (path.suffix.upper() == ".SAFE" and "MSI" in path.name) or any(path.glob("MTD_MSIL*.xml"))
    )


def safe_product(path: Path) -> Product:
    """Read a SAFE folder's metadata; FormatError for one that is incomplete or damaged."""
    metadata = next((f for f in sorted(path.glob("MTD_MSIL*.xml"))), None)
    if metadata is None:
        raise FormatError(f"{path}: no MTD_MSIL1C.xml or MTD_MSIL2A.xml; download it again")
    root = read_xml(metadata)
    level = "l2a" if "L2A" in metadata.name else "l1c"
    tag = "BOA" if level == "l2a" else "RADIO"
    quantification = number_in(
        metadata,
        _text(root, "BOA_QUANTIFICATION_VALUE" if level == "l2a" else "QUANTIFICATION_VALUE"),
        "quantification value",
    )
    if quantification <= 0:
        raise FormatError(f"{metadata}: quantification value {quantification:g}; download it again")
    offsets = {
        e.get("band_id", ""): number_in(metadata, e.text, f"{tag}_ADD_OFFSET")
        for e in elements(root, f"{tag}_ADD_OFFSET")
    }
    baseline = number_in(metadata, _text(root, "PROCESSING_BASELINE"), "processing baseline")
    if baseline >= _OFFSETS_SINCE and not offsets:
        raise FormatError(
            f"{metadata}: baseline {baseline:05.2f} without {tag}_ADD_OFFSET; download it again"
        )
    images = _images(path, metadata, root)
    bands = {}
    for index, name in enumerate(_BANDS):
        if name in images:
            offset = offsets.get(str(index), 0.0) / quantification
            bands[name] = ProductBand(path=images[name], scale=1 / quantification, offset=offset)
    if not bands:
        raise FormatError(f"{metadata}: lists no band files; download it again")
    mask, notes = _mask(path, level, images)
    return Product(
        kind=f"Sentinel-2 {level.upper()} SAFE, baseline {baseline:05.2f}",
        path=path,
        sensor="sentinel2",
        level=level,
        time=(_text(root, "PRODUCT_START_TIME") or "")[:10],
        bands=bands,
        nodata=_special_values(metadata, root),
        mask=mask,
        notes=notes,
    )


def _text(root: ET.Element, name: str) -> str | None:
    return next((e.text for e in elements(root, name)), None)


def _images(path: Path, metadata: Path, root: ET.Element) -> dict[str, Path]:
    """The finest file of each band and of the scene classification, as the metadata list them."""
    listed = [e.text or "" for n in ("IMAGE_FILE", "IMAGE_ID") for e in elements(root, n)]
    granules = {Path(name).parts[1] for name in listed if len(Path(name).parts) > 2}
    if len(granules) > 1:
        raise FormatError(
            f"{metadata}: {len(granules)} granules in one product (a format of before 2016); name "
            "the band files of one in `bands:`"
        )
    finest: dict[str, tuple[int, Path]] = {}
    for name in listed:
        match = _IMAGE.search(name.strip())
        if match is None or ".." in Path(name).parts or Path(name).is_absolute():
            continue
        band = match[1] if match[1] in ("B8A", "SCL") else f"B{int(match[1][1:])}"
        size = int(match[2] or 0)
        if band not in finest or size < finest[band][0]:
            finest[band] = (size, path / f"{name.strip()}.jp2")
    return {band: file for band, (_, file) in finest.items()}


def _mask(
    path: Path, level: str, images: dict[str, Path]
) -> tuple[QualityMask | None, tuple[str, ...]]:
    if level == "l2a" and "SCL" in images:
        require_file(path, images["SCL"], "the scene classification (SCL)")
        return QualityMask(path=images["SCL"], classes=_UNUSABLE_CLASSES), ()
    classes = sorted(path.glob("GRANULE/*/QI_DATA/MSK_CLASSI_B00.jp2"))
    if classes:  # bands: opaque clouds, cirrus, snow
        return QualityMask(path=classes[0], bands=(0, 1), classes=(1,)), ()
    return None, ("no raster cloud mask in the product: clouds stay valid",)


def _special_values(metadata: Path, root: ET.Element) -> tuple[float, ...]:
    """Digital numbers that are no measurement: no data, saturated."""
    return tuple(
        number_in(metadata, e.text, "special value") for e in elements(root, "SPECIAL_VALUE_INDEX")
    ) or (0.0,)
