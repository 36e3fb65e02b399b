"""Which files belong to which chip: path patterns with ``{id}``, and the table of chips."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from multimae_eo.errors import ConfigError, DataError, SplitError, did_you_mean
from multimae_eo.files import read_text, reading, require_regular
from multimae_eo.sources.acquisition_dates import DATE_PATTERN, date_text, days_since_1970
from multimae_eo.sources.base import split_name
from multimae_eo.sources.file_names import (
    DATE,
    composed,
    existing_path,
    same_suffixes,
    split_suffix,
    walk_files,
)
from multimae_eo.sources.raster.remote import is_remote
from multimae_eo.sources.yaml_section import one_line

Row = Mapping[str, str]

_TABLE_BYTES = 1 << 30
UNLISTED = "unlisted"
"""The split of a chip that a split table does not name: readable, but never trained on."""


@dataclass(frozen=True)
class Pattern:
    """A path with ``{id}`` in it, relative to a root or absolute. An id may contain slashes:
    ``{id}.tif`` matches ``forest/17.tif`` with the id ``forest/17``. With ``{date}`` a chip has a
    file for each of its dates: ``{id}/{date}.tif`` matches ``17/2019-07-15.tif``.

    Letters are compared in Unicode's composed form (NFC), which ids have too; the extension in any
    case, ``.tif`` like ``.tiff`` and ``.jpg`` like ``.jpeg``.
    """

    text: str

    def __post_init__(self) -> None:
        if "{id}" not in self.text:
            raise ConfigError(f"the path {self.text!r} needs {{id}} where the chip's id stands")
        others = set(re.findall(r"\{[^}]*\}", self.text)) - {"{id}", DATE}
        if others:
            raise ConfigError(
                f"the path {self.text!r} knows only {{id}} and {DATE}, not {min(others)}"
            )

    @property
    def dated(self) -> bool:
        """Whether a chip has a file for each date."""
        return DATE in self.text

    def path(self, key: str) -> str:
        """The path of one chip's file as the pattern writes it."""
        return self.text.replace("{id}", key)

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        body, suffix = split_suffix(composed(self.text))
        first, *more = [re.escape(part) for part in body.split("{id}")]
        ending = "(?i:" + "|".join(map(re.escape, same_suffixes(suffix))) + ")"
        text = first + "(?P<id>.+)" + "(?P=id)".join(more) + ending
        text = text.replace(re.escape(DATE), f"(?P<date>{DATE_PATTERN})", 1)
        return re.compile(text.replace(re.escape(DATE), "(?P=date)"))

    def key(self, path: str) -> str | None:
        """The id in a path, or None where the pattern does not match."""
        match = self._regex.fullmatch(composed(path))
        return match["id"] if match else None

    def days(self, path: str) -> float:
        """The date in a path that matches, in days since 1970; DataError where it is none."""
        match = self._regex.fullmatch(composed(path))
        assert match is not None
        try:
            return days_since_1970(match["date"])
        except ValueError as error:
            raise DataError(f"{path}: {error}; rename it, or move it elsewhere") from error

    def discover(self, root: Path) -> ChipFiles:
        """All files that match; hidden files and folders are skipped.

        Raises DataError where two files are the same chip's, and of the same date.
        """
        if is_remote(self.text):
            raise DataError(
                f"{self.text}: files on a server or in a zip file cannot be "
                "listed; copy the chips, or use a scene file or STAC"
            )
        fixed = PurePosixPath(self.text.split("{id}")[0] + "x").parent
        absolute = os.path.isabs(fixed)
        paths: dict[str, str] = {}
        series: dict[str, dict[float, str]] = {}
        others: list[str] = []
        for path in walk_files(existing_path(root, str(fixed))):
            name = (path if absolute else os.path.relpath(path, root)).replace(os.sep, "/")
            key = self.key(name)
            if not key:
                others.append(name)
            elif self.dated:
                dates, days = series.setdefault(key, {}), self.days(name)
                if dates.setdefault(days, name) != name:
                    raise DataError(
                        f"{dates[days]} and {name} are both chip {key!r} of {self.text} on "
                        f"{date_text(days)}; rename or move one"
                    )
            elif paths.setdefault(key, name) != name:
                self._choose(paths, key, name)
        if self.dated:
            ordered = {k: tuple(sorted(d.items())) for k, d in series.items()}
            return ChipFiles({k: d[0][1] for k, d in ordered.items()}, tuple(others), ordered)
        return ChipFiles(paths, tuple(others))

    def _choose(self, paths: dict[str, str], key: str, name: str) -> None:
        """Keep the file whose name is exactly that of the pattern, if one of the two is."""
        exact = [n for n in (paths[key], name) if n == self.path(key)]
        if not exact:
            raise DataError(
                f"{paths[key]} and {name} are both chip {key!r} of {self.text}; rename or move one"
            )
        paths[key] = exact[0]


@dataclass(frozen=True)
class ChipFiles(Mapping[str, str]):
    """The path of each chip's file, as it is written on disk. ``others``: files beside them that
    the pattern does not take. ``series``: days since 1970 and path of each date of each chip, where
    a chip has several files; ``paths`` then has the first."""

    paths: Mapping[str, str]
    others: tuple[str, ...] = ()
    series: Mapping[str, tuple[tuple[float, str], ...]] = field(default_factory=dict)

    @property
    def all_paths(self) -> Iterator[str]:
        """The path of every file, of all dates."""
        if self.series:
            return (path for dates in self.series.values() for _, path in dates)
        return iter(self.paths.values())

    def __getitem__(self, key: str) -> str:
        return self.paths[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class ChipTable:
    """A CSV or Parquet file with a row per chip, by id. ``path`` is for messages."""

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
        splits = {}
        for key, split in self.column("split").items():
            if not split:
                raise SplitError(f"{self.path}: chip {key!r} has an empty split; name one")
            splits[key] = split_name(split)
        return splits


def read_table(path: Path, pattern: Pattern | None, keys: Collection[str]) -> ChipTable:
    """Read a CSV or Parquet file whose column ``id`` or ``file`` names the chips.

    A ``file`` is matched against ``pattern``; failing that, taken without its extension, then
    without its folder. Raises SplitError for ids without files, ids listed twice and an empty
    table, ConfigError for a file that cannot be read or has neither column.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file; mend `splits:` or `table:`")
    columns, lines = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path)
    by = "id" if "id" in columns else "file"
    if by not in columns:
        raise ConfigError(f"{path}: needs a column `id` or `file`; it has: {', '.join(columns)}")
    if not lines:
        raise SplitError(f"{path}: lists no chip")
    rows: dict[str, Row] = {}
    lost: list[str] = []
    for line in lines:
        key = line[by] if by == "id" else _key_of(line[by], pattern, keys)
        if key not in keys:
            lost.append(line[by])
        elif key in rows:
            raise SplitError(f"{path}: chip {key!r} is listed twice")
        else:
            rows[key] = line
    if lost:
        shown = ", ".join(repr(k) for k in lost[:3]) + (", …" if len(lost) > 3 else "")
        raise SplitError(
            f"{path}: {len(lost)} of {len(lines)} chips have no file: {one_line(shown)}; "
            f"{_zeros_hint(lost, keys)}mend the table, `root:` or `chips:`"
        )
    return ChipTable(path, columns, rows)


def _csv_rows(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    """Columns and rows of a CSV file; ConfigError where it cannot be read."""
    remedy = "write it as CSV, in UTF-8"
    text = read_text(path, ConfigError, limit=_TABLE_BYTES, remedy=remedy, form="CSV")
    text = text.removeprefix("\ufeff")
    with reading(path, ConfigError, remedy, form="CSV"):
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="", strict=True)
        columns = tuple(composed(one_line(name)) for name in reader.fieldnames or ())
        reader.fieldnames = list(columns)
        lines: list[Row] = [
            {k: composed((v or "").strip()) for k, v in row.items() if k} for row in reader
        ]
    return columns, lines


def _parquet_rows(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    """Columns and rows of a Parquet file, as text; null is empty, columns of geometry are left out.

    ConfigError where it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_regular(path, ConfigError)
    with reading(path, ConfigError, "write it as Parquet or CSV", form="Parquet"):
        table = pq.read_table(path)
    kept = [
        f.name for f in table.schema
        if not (pa.types.is_nested(f.type) or pa.types.is_binary(f.type))
    ]  # fmt: skip
    values = [["" if v is None else str(v).strip() for v in table[n].to_pylist()] for n in kept]
    columns = tuple(composed(one_line(name)) for name in kept)
    rows: list[Row] = [
        {c: composed(t) for c, t in zip(columns, row, strict=True)}
        for row in zip(*values, strict=True)
    ]
    return columns, rows


def _zeros_hint(lost: Sequence[str], keys: Collection[str]) -> str:
    """Where ids have lost the zeros before them (spreadsheets take them for numbers)."""
    bare = {key.lstrip("0"): key for key in keys if key[:1] == "0"}
    number = lost[0].removesuffix(".0")
    if number not in bare:
        return ""
    return f"a spreadsheet has dropped zeros: {lost[0]!r} for {bare[number]!r}; "


def _key_of(file: str, pattern: Pattern | None, keys: Collection[str]) -> str:
    path = PurePosixPath(file.replace("\\", "/"))
    matched = pattern.key(str(path)) if pattern else None
    options = (matched, str(path.with_suffix("")) if path.name else None, path.stem)
    return next((o for o in options if o and o in keys), file)


def require_files(
    root: Path, pattern: Pattern, needed: Iterable[str], have: Collection[str], where: str
) -> None:
    """Raise DataError naming the first chips that lack this file."""
    missing = sorted(set(needed) - set(have))
    if missing:
        raise DataError(
            f"{where}: {len(missing)} chips have no file, first {root / pattern.path(missing[0])}; "
            "add it, or declare `optional: true`"
        )
