"""Sentinel-1 radiometrically terrain-corrected (RTC) backscatter as GeoTIFF, linear or in dB."""

from __future__ import annotations

import re
from pathlib import Path

from multimae_eo.errors import FormatError
from multimae_eo.sources.draft.pixel_evidence import BandValues, FileEvidence
from multimae_eo.sources.products.product import Product, ProductBand

_POLARISATION = re.compile(r"(?i)(?:^|[_.\-])(VV|VH|HH|HV)(?=[_.\-]|$)")
_CODE = re.compile(r"_[gs]([pad])[uwf][nm]?\w*")
"""HyP3's product code: gamma or sigma nought, then power, amplitude or decibel."""
_FACTORS = {"p": 10.0, "a": 20.0, "d": 0.0}
_MOSTLY, _ALMOST_NONE, _LINEAR_MEDIAN = 0.5, 1.0e-3, 2.0


def rtc_files(path: Path) -> dict[str, Path]:
    """The single-band GeoTIFFs of a folder whose names end with a polarisation."""
    files: dict[str, Path] = {}
    listed = sorted(path.glob("*.tif*")) if path.is_dir() else [path]
    for file in listed:
        names = _POLARISATION.findall(file.stem)
        if len(names) == 1 and file.suffix.lower() in (".tif", ".tiff"):
            if names[0].upper() in files:
                raise FormatError(f"{files[names[0].upper()]} and {file.name} are both {names[0]}")
            files[names[0].upper()] = file
    return files


def rtc_product(path: Path) -> Product:
    """RTC backscatter; FormatError where it cannot be decided whether it is linear or in dB."""
    files = rtc_files(path)
    factors = {name: _factor(file) for name, file in files.items()}
    if len(set(factors.values())) > 1:
        raise FormatError(f"{path}: some of {', '.join(files)} are linear, others in dB")
    return Product(
        kind="Sentinel-1 RTC",
        path=path,
        sensor="sentinel1",
        bands={name: ProductBand(path=file) for name, file in files.items()},
        decibel=next(iter(factors.values())),
    )


def _factor(path: Path) -> float:
    """10 for power, 20 for amplitude, 0 for decibels; by the values, and the code in the name."""
    evidence = FileEvidence.of(path.parent, [path.name])
    values = evidence.values([0])
    unit = _unit(values)
    code = _CODE.search(path.stem)
    named = code[1] if code else ""
    if named and unit and (named == "d") != (unit == "d"):
        raise FormatError(f"{path}: its name means {named!r} (power, amplitude, dB), its {values}")
    chosen = named or unit
    if not chosen:
        raise FormatError(
            f"{path}: linear or in dB? {values}; declare it as `path:` with `scale: 1` for dB, or "
            "convert it (10 · log10 of power)"
        )
    return _FACTORS[chosen]


def _unit(values: BandValues) -> str:
    """``d`` where most values are negative, ``p`` where none is and they are small, else ""."""
    if values.negative > _MOSTLY:
        return "d"
    if values.negative < _ALMOST_NONE and 0 < values.median < _LINEAR_MEDIAN:
        return "p"
    return ""
