"""Which files belong to which chip: path patterns with ``{id}``, and the table of chips."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from multimae_eo.errors import ConfigError, DataError, SplitError, did_you_mean
from multimae_eo.sources.yaml_section import one_line

Row = Mapping[str, str]

SPLIT_NAMES = {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}
UNLISTED = "unlisted"
"""The split of a chip that a split table does not name: readable, but never trained on."""


@dataclass(frozen=True)
class Pattern:
    """A relative path with ``{id}`` in it. An id may contain slashes: ``{id}.tif`` matches
    ``forest/17.tif`` with the id ``forest/17``.
    """

    text: str

    def __post_init__(self) -> None:
        if "{id}" not in self.text:
            raise ConfigError(f"the path {self.text!r} needs {{id}} where the chip's id stands")
        others = set(re.findall(r"\{[^}]*\}", self.text)) - {"{id}"}
        if others:
            raise ConfigError(f"the path {self.text!r} knows only {{id}}, not {min(others)}")

    def path(self, key: str) -> str:
        """The relative path of one chip's file."""
        return self.text.replace("{id}", key)

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        first, *more = [re.escape(part) for part in self.text.split("{id}")]
        return re.compile(first + "(?P<id>.+)" + "(?P=id)".join(more))

    def key(self, path: str) -> str | None:
        """The id in a relative path, or None where the pattern does not match."""
        found = self._regex.fullmatch(path)
        return found["id"] if found else None

    def discover(self, root: Path) -> frozenset[str]:
        """Ids of all files under ``root`` that match; hidden files and folders are skipped."""
        fixed = PurePosixPath(self.text.split("{id}")[0] + "x").parent
        keys = set()
        for path in _walk(root / fixed):
            key = self.key(os.path.relpath(path, root).replace(os.sep, "/"))
            if key:
                keys.add(key)
        return frozenset(keys)


def _walk(top: Path) -> Iterable[str]:
    seen: set[str] = set()
    for folder, inner, files in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a parent would never end
            inner.clear()
            continue
        seen.add(real)
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield from (os.path.join(folder, name) for name in files if not name.startswith("."))


@dataclass(frozen=True)
class Table:
    """A CSV file with a row per chip, by id. ``path`` is for messages."""

    path: Path
    columns: tuple[str, ...]
    rows: Mapping[str, Row]

    def column(self, name: str) -> dict[str, str]:
        """One column's value per chip; ConfigError names the nearest column."""
        if name not in self.columns:
            raise ConfigError(
                f"{self.path}: no column {name!r}; {did_you_mean(name, self.columns)}"
            )
        return {key: row[name] for key, row in self.rows.items()}

    def splits(self) -> dict[str, str]:
        """The split of every listed chip, under the names train, val, test where they are meant."""
        found = {}
        for key, split in self.column("split").items():
            if not split:
                raise SplitError(f"{self.path}: chip {key!r} has an empty split; name one")
            found[key] = SPLIT_NAMES.get(split.lower(), split)
        return found


def read_table(path: Path, pattern: Pattern | None, known: frozenset[str]) -> Table:
    """Read a CSV whose column ``id`` or ``file`` names the chips.

    A ``file`` is matched against ``pattern``; failing that, taken without its extension, then
    without its folder. Raises SplitError for ids without files, ids listed twice and an empty
    table, ConfigError for a file that cannot be read or has neither column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restval="", strict=True)
            columns = tuple(one_line(name) for name in reader.fieldnames or ())
            reader.fieldnames = list(columns)
            lines = [{k: (v or "").strip() for k, v in row.items() if k} for row in reader]
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; mend `splits:` or `table:`") from error
    except (OSError, UnicodeDecodeError, csv.Error, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read as CSV: {one_line(error)}") from error
    by = "id" if "id" in columns else "file"
    if by not in columns:
        raise ConfigError(f"{path}: needs a column `id` or `file`; it has: {', '.join(columns)}")
    if not lines:
        raise SplitError(f"{path}: lists no chip")
    rows: dict[str, Row] = {}
    lost: list[str] = []
    for line in lines:
        key = line[by] if by == "id" else _key_of(line[by], pattern, known)
        if key not in known:
            lost.append(line[by])
        elif key in rows:
            raise SplitError(f"{path}: chip {key!r} is listed twice")
        else:
            rows[key] = line
    if lost:
        shown = ", ".join(repr(k) for k in lost[:3]) + (", …" if len(lost) > 3 else "")
        raise SplitError(
            f"{path}: {len(lost)} of {len(lines)} chips have no file: {one_line(shown)}; "
            "mend the table, `root:` or `chips:`"
        )
    return Table(path, columns, rows)


def _key_of(file: str, pattern: Pattern | None, known: frozenset[str]) -> str:
    path = PurePosixPath(file.replace("\\", "/"))
    matched = pattern.key(str(path)) if pattern else None
    options = (matched, str(path.with_suffix("")) if path.name else None, path.stem)
    return next((o for o in options if o and o in known), file)


def require_files(
    root: Path, pattern: Pattern, needed: Iterable[str], have: frozenset[str], where: str
) -> None:
    """Raise DataError naming the first chips that lack this file."""
    missing = sorted(set(needed) - have)
    if missing:
        raise DataError(
            f"{where}: {len(missing)} chips have no file, first {root / pattern.path(missing[0])}; "
            "add it, or declare `optional: true`"
        )
