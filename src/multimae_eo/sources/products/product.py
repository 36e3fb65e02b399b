"""A product: its band files with their calibration, and where its quality mask is valid."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import BandError, FormatError
from multimae_eo.files import read_text
from multimae_eo.sample import Validity

_METADATA_BYTES = 1 << 26
_RESTORE = "download the product again"


@dataclass(frozen=True, kw_only=True)
class ProductBand:
    """The file of a band, and physical = raw · scale + offset; None for the tags of the file."""

    path: Path
    scale: float | None = None
    offset: float | None = None


@dataclass(frozen=True, kw_only=True)
class QualityMask:
    """A raster that marks pixels as unusable: those of ``classes``, or with one of ``bits`` set.

    ``bands``: its 0-based bands; a pixel is unusable where one of them marks it.
    """

    path: Path
    bands: tuple[int, ...] = (0,)
    classes: tuple[int, ...] = ()
    bits: int = 0

    def usable(self, values: npt.NDArray[np.integer]) -> Validity:
        """Where values (C, H, W) mark nothing: (1, H, W)."""
        marked = np.isin(values, self.classes) if self.classes else (values & self.bits) != 0
        return np.asarray(~marked.any(axis=0, keepdims=True))


@dataclass(frozen=True, kw_only=True)
class Product:
    """Bands by their name in the catalogue.

    ``level``: processing level, "" where the sensor has none. ``nodata``: raw values that were
    never measured. ``decibel``: f where bands become dB by f · log10, 0 where they are
    what the catalogue has. ``kind``: the product's name for messages.
    """

    kind: str
    path: Path
    sensor: str
    bands: Mapping[str, ProductBand]
    level: str = ""
    time: str = ""
    nodata: tuple[float, ...] = ()
    mask: QualityMask | None = None
    decibel: float = 0.0
    notes: tuple[str, ...] = field(default=())

    def band(self, name: str) -> ProductBand:
        """A band whose file is there; BandError and FormatError name what is missing."""
        if name not in self.bands:
            raise BandError(
                f"{self.path}: {self.kind} has no band {name!r}; it has: {', '.join(self.bands)}"
            )
        require_file(self.path, self.bands[name].path, f"band {name}")
        return self.bands[name]


def require_file(product: Path, path: Path, what: str) -> None:
    """FormatError where a file that the product's metadata list is missing."""
    if not path.is_file():
        raise FormatError(f"{product}: {what} is missing: no file {path}; {_RESTORE}")


def read_xml(path: Path) -> ET.Element:
    """The root of an XML file; FormatError for a damaged one, or one with a document type."""
    text = read_text(path, FormatError, limit=_METADATA_BYTES, remedy=_RESTORE)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise FormatError(f"{path}: XML with a document type or entities is not read; {_RESTORE}")
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        raise FormatError(f"{path}: damaged XML: {error}; {_RESTORE}") from error


def elements(root: ET.Element, name: str) -> Iterator[ET.Element]:
    """All elements of a name, whatever their namespace."""
    return (e for e in root.iter() if e.tag.rpartition("}")[2] == name)


def number_in(path: Path, text: str | None, what: str) -> float:
    """A finite number of a product's metadata; FormatError."""
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise FormatError(f"{path}: {what}: expected a number, got {text!r}; {_RESTORE}")
    return value
