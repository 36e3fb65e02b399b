"""The registry of public data: ``public_data.yaml``, one record per data set, as typed records."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.sources.yaml_section import Section, load_yaml, parse_yaml

RECORD_KEYS = (
    "title", "licence", "source", "folder", "note", "examples", "files", "checkpoint", "statistics",
)  # fmt: skip
FILE_KEYS = ("name", "address", "each", "bytes", "at_most", "md5", "sha256", "unpack")
UNPACK_KEYS = ("at_most", "files", "keep")
_DIGITS = {"md5": 32, "sha256": 64}


@dataclass(frozen=True, kw_only=True)
class Checksum:
    """A published checksum: ``algorithm`` md5 or sha256, ``digits`` hexadecimal in lower case."""

    algorithm: str
    digits: str


@dataclass(frozen=True, kw_only=True)
class Unpacking:
    """Limits of an archive's content: ``max_bytes``, ``max_files``; ``keep``: patterns of the names
    of its members, others are left out."""

    max_bytes: int
    max_files: int
    keep: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PublicFile:
    """A file of a record.

    ``name``: its path below the record's folder. ``address``: "" where only mirrors have it.
    ``size``: exact bytes, None where unknown. ``max_bytes``: more are refused. ``checksum``: None
    where none is published.
    """

    name: str
    address: str
    size: int | None
    max_bytes: int
    checksum: Checksum | None
    unpacking: Unpacking | None


@dataclass(frozen=True, kw_only=True)
class PublicRecord:
    """A public data set or checkpoint; see the head of ``public_data.yaml``."""

    name: str
    title: str
    licence: str
    source: str
    folder: str
    files: tuple[PublicFile, ...]
    note: str = ""
    examples: tuple[str, ...] = ()
    checkpoint: str = ""
    statistics: str = ""

    @property
    def size(self) -> int | None:
        """Bytes of all files; None where that of one is not known."""
        sizes = [f.size for f in self.files if f.size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None


def public_records(path: Path | None = None) -> dict[str, PublicRecord]:
    """Every record by name, in the file's order; ``path``: another registry than the package's.

    Raises ConfigError for a record that is not valid.
    """
    if path is None:
        packaged = resources.files("multimae_eo") / "download" / "public_data.yaml"
        where = "public_data.yaml"
        content = parse_yaml(packaged.read_text(encoding="utf-8"), where)
    else:
        where, content = str(path), load_yaml(path)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: expected records by name")
    return {str(name): _record(f"{where}: {name}", str(name), r) for name, r in content.items()}


def public_record(name: str, path: Path | None = None) -> PublicRecord:
    """One record; ConfigError names the nearest one where there is none of this name."""
    records = public_records(path)
    if name not in records:
        raise ConfigError(f"no public data are called {name!r}; {did_you_mean(name, records)}")
    return records[name]


def _record(where: str, name: str, content: object) -> PublicRecord:
    section = Section.of(where, content, RECORD_KEYS)
    listed = section.get("files", [])
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise section.error("files", "list at least one file")
    files = tuple(f for i, one in enumerate(listed) for f in _files(f"{where}: files[{i}]", one))
    names = [f.name for f in files]
    if len(set(names)) != len(names):
        raise section.error("files", "a name is given twice")
    for key in ("title", "licence", "source", "folder"):
        if key not in section:
            raise section.error(key, "is missing")
    for key in ("checkpoint", "statistics"):
        if section.text(key) and section.text(key) not in names:
            raise section.error(key, f"no such file; {did_you_mean(section.text(key), names)}")
    if not _is_inside(section.text("folder")):
        raise section.error("folder", "give a relative path without ..")
    return PublicRecord(
        name=name,
        title=section.text("title"),
        licence=section.text("licence"),
        source=section.text("source"),
        folder=section.text("folder"),
        files=files,
        note=section.text("note"),
        examples=section.names("examples") or (),
        checkpoint=section.text("checkpoint"),
        statistics=section.text("statistics"),
    )


def _files(where: str, content: object) -> Iterator[PublicFile]:
    """A file, or one for each combination of the values under ``each``."""
    section = Section.of(where, content, FILE_KEYS)
    each = section.get("each", {})
    if not isinstance(each, Mapping) or not all(isinstance(v, list) for v in each.values()):
        raise section.error("each", "expected lists of values by word")
    for values in itertools.product(*each.values()):
        words = {str(k): str(v) for k, v in zip(each, values, strict=True)}
        yield _file(section, words)


def _file(section: Section, words: Mapping[str, str]) -> PublicFile:
    address = _filled(section.text("address"), words)
    name = _filled(section.text("name"), words) or PurePosixPath(urlsplit(address).path).name
    if not _is_inside(name):
        raise section.error("name", "give a relative path without ..")
    if address and urlsplit(address).scheme != "https":
        raise section.error("address", "expected an address that begins with https://")
    size, max_bytes = _count(section, "bytes"), _count(section, "at_most")
    if (size is None) == (max_bytes is None):
        raise section.error("bytes", "give either bytes or at_most")
    return PublicFile(
        name=name,
        address=address,
        size=size,
        max_bytes=size if size is not None else max_bytes or 0,
        checksum=_checksum(section),
        unpacking=_unpacking(section) if "unpack" in section else None,
    )


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(f"{{{word}}}", value)
    return text


def _is_inside(name: str) -> bool:
    parts = name.split("/")
    return bool(name) and not ({"", ".", ".."} & set(parts)) and "\\" not in name


def _count(section: Section, key: str) -> int | None:
    value: Any = section.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise section.error(key, "expected a whole number of at least 1")
    return None if value is None else int(value)


def _checksum(section: Section) -> Checksum | None:
    given = [key for key in _DIGITS if key in section]
    if not given:
        return None
    key = given[-1]  # sha256, where both are given
    digits = section.text(key).lower()
    if not re.fullmatch(rf"[0-9a-f]{{{_DIGITS[key]}}}", digits):
        raise section.error(key, f"expected {_DIGITS[key]} hexadecimal digits in quotes")
    return Checksum(algorithm=key, digits=digits)


def _unpacking(section: Section) -> Unpacking:
    part = Section.of(f"{section.where}: unpack", section.get("unpack"), UNPACK_KEYS)
    max_bytes, max_files = _count(part, "at_most"), _count(part, "files")
    keep = part.names("keep")
    if max_bytes is None or max_files is None or not keep:
        raise ConfigError(f"{part.where}: give at_most, files and keep")
    return Unpacking(max_bytes=max_bytes, max_files=max_files, keep=keep)
