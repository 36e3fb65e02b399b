"""Landsat 8 and 9, Collection 2 level 2: scale and offset from MTL, validity from QA_PIXEL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from multimae_eo.errors import FormatError
from multimae_eo.files import read_json, read_text
from multimae_eo.sources.products.product import (
    Product,
    ProductBand,
    QualityMask,
    number_in,
    require_file,
)

_UNUSABLE_BITS = 0b11111
"""Of QA_PIXEL: fill, dilated cloud, cirrus, cloud, cloud shadow (USGS LSDS-1619)."""
_MTL_BYTES = 1 << 22
_RESTORE = "download the product again"


def metadata_file(path: Path) -> Path | None:
    """The MTL file of a Landsat folder, None where there is none."""
    files = sorted(f for f in path.glob("L*_MTL.*") if f.suffix in (".json", ".txt"))
    return files[0] if path.is_dir() and files else None


def landsat_product(path: Path) -> Product:
    """Read a Landsat folder's MTL; FormatError for one that is incomplete or another product."""
    metadata = metadata_file(path)
    if metadata is None:
        raise FormatError(f"{path}: no *_MTL.json or *_MTL.txt; {_RESTORE}")
    groups = _groups(metadata)
    contents, image = groups.get("PRODUCT_CONTENTS", {}), groups.get("IMAGE_ATTRIBUTES", {})
    spacecraft, level = image.get("SPACECRAFT_ID", ""), contents.get("PROCESSING_LEVEL", "")
    if not level.startswith("L2"):
        raise FormatError(
            f"{metadata}: processing level {level or 'unknown'}, expected Collection 2 level 2 "
            "(L2SP, L2SR); download level 2, or name band files in `bands:` with their scale"
        )
    if spacecraft not in ("LANDSAT_8", "LANDSAT_9"):
        raise FormatError(
            f"{metadata}: {spacecraft or 'no SPACECRAFT_ID'}: the catalogue has Landsat 8 and 9; "
            "declare a `custom: true` modality with `bands:`"
        )
    calibration = groups.get("LEVEL2_SURFACE_REFLECTANCE_PARAMETERS", {})
    bands = {}
    for number in range(1, 8):
        file = contents.get(f"FILE_NAME_BAND_{number}")
        if file:
            scale, offset = (
                number_in(metadata, calibration.get(key), key)
                for key in (f"REFLECTANCE_MULT_BAND_{number}", f"REFLECTANCE_ADD_BAND_{number}")
            )
            bands[f"B{number}"] = ProductBand(
                path=path / Path(file).name, scale=scale, offset=offset
            )
    if not bands:
        raise FormatError(f"{metadata}: lists no band files; {_RESTORE}")
    quality = path / Path(contents.get("FILE_NAME_QUALITY_L1_PIXEL", "QA_PIXEL.TIF")).name
    require_file(path, quality, "QA_PIXEL")
    return Product(
        kind=f"{spacecraft.replace('_', ' ').title()} Collection 2 {level}",
        path=path,
        sensor="landsat8",
        time=image.get("DATE_ACQUIRED", ""),
        bands=bands,
        nodata=(0.0,),
        mask=QualityMask(path=quality, bits=_UNUSABLE_BITS),
    )


def _groups(metadata: Path) -> dict[str, dict[str, str]]:
    """The entries of each innermost group of an MTL file."""
    if metadata.suffix == ".json":
        record = read_json(metadata, FormatError, remedy=_RESTORE)
        return _inner(metadata, record)
    text = read_text(metadata, FormatError, limit=_MTL_BYTES, remedy=_RESTORE)
    groups: dict[str, dict[str, str]] = {}
    name = ""
    for line in text.splitlines():
        match = re.match(r'\s*(\w+)\s*=\s*"?([^"]*?)"?\s*$', line)
        if match and match[1] == "GROUP":
            name = match[2]
        elif match and match[1] != "END_GROUP":
            groups.setdefault(name, {})[match[1]] = match[2]
    if not groups:
        raise FormatError(f"{metadata}: is no MTL file; {_RESTORE}")
    return groups


def _inner(metadata: Path, record: object) -> dict[str, dict[str, str]]:
    top = record.get("LANDSAT_METADATA_FILE") if isinstance(record, Mapping) else None
    if not isinstance(top, Mapping):
        raise FormatError(f"{metadata}: has no LANDSAT_METADATA_FILE; {_RESTORE}")
    return {
        str(name): {str(k): str(v) for k, v in entries.items()}
        for name, entries in top.items()
        if isinstance(entries, Mapping)
    }
