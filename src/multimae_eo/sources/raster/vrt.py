"""VRT files name other files: they may reach only those beside them."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

from multimae_eo.errors import FormatError

_SOURCES = {"SourceFilename", "SourceDataset", "KeyedFilename"}
_DEEPEST, _MOST_BYTES = 8, 1 << 26


def require_beside(path: Path, depth: int = 0) -> tuple[Path, ...]:
    """The files that a VRT reads, those of VRTs inside it included.

    FormatError where one lies outside the VRT's folder, is not a local file, or is code.
    """
    if depth > _DEEPEST:
        raise FormatError(f"{path}: VRT files nested more than {_DEEPEST} deep; write one of them")
    if path.stat().st_size > _MOST_BYTES:
        raise FormatError(f"{path}: a VRT of more than {_MOST_BYTES} bytes is not read; split it")
    text = path.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise FormatError(f"{path}: a VRT with a document type is not read")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise FormatError(f"{path}: cannot be read as VRT: {error}; restore the file") from error
    files: list[Path] = []
    for element in root.iter():
        if element.tag in ("PixelFunctionCode", "PixelFunctionLanguage"):
            raise FormatError(f"{path}: a VRT with pixel functions of its own is not run")
        if element.tag not in _SOURCES:
            continue
        source = _resolved(path, (element.text or "").strip(), element.get("relativeToVRT") == "1")
        if source not in files:
            files.append(source)
            if source.suffix.lower() == ".vrt":
                files += require_beside(source, depth + 1)
    return tuple(files)


def _resolved(vrt: Path, name: str, relative: bool) -> Path:
    folder = os.path.abspath(vrt.parent)
    target = os.path.normpath(os.path.join(folder if relative else os.curdir, name))
    target = os.path.abspath(target)
    outside = not Path(target).is_relative_to(folder)
    if outside or name.startswith("/vsi") or ":/" in name:
        raise FormatError(
            f"{vrt}: names {name!r}, which does not lie in its folder; a VRT may read only files "
            "beside it: move it, or build it there"
        )
    if not os.path.isfile(target):
        raise FormatError(f"{vrt}: names {name!r}: no such file")
    return Path(target)
