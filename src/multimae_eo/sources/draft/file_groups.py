"""The files of a folder, sorted into rasters, tables and vector files, and grouped by name."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from multimae_eo.sources.base import split_name
from multimae_eo.sources.file_names import composed, walk_files

RASTERS = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg", ".npy", ".img", ".vrt")
TABLES = (".csv", ".parquet")
VECTORS = (".gpkg", ".geojson", ".shp", ".fgb", ".geoparquet")
_SEPARATORS = "_-. "
_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_]?(0[1-9]|1[0-2])[-_]?(0[1-9]|[12]\d|3[01])(?!\d)")
_ORDINAL = re.compile(r"(?<!\d)(20\d\d)(\d{3})(?=T\d{6}|[._])")


@dataclass(frozen=True, kw_only=True)
class FolderFiles:
    """Files of a folder and of those below it, as paths relative to it with ``/``, in order."""

    folder: Path
    rasters: tuple[str, ...]
    tables: tuple[str, ...]
    vectors: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, paths: Sequence[Path] | None = None) -> FolderFiles:
        """All files of a folder, or only ``paths`` in it; hidden files are left out."""
        listed = list(walk_files(folder)) if paths is None else [str(p) for p in paths]
        names = sorted(os.path.relpath(path, folder).replace(os.sep, "/") for path in listed)
        sorted_by_kind = {
            kind: tuple(n for n in names if n.lower().endswith(kind))
            for kind in (RASTERS, TABLES, VECTORS)
        }
        return cls(
            folder=folder,
            rasters=sorted_by_kind[RASTERS],
            tables=sorted_by_kind[TABLES],
            vectors=sorted_by_kind[VECTORS],
        )

    @cached_property
    def by_folder(self) -> Mapping[str, tuple[str, ...]]:
        """The rasters of each folder that holds some; ``.`` is the folder itself."""
        groups: dict[str, list[str]] = {}
        for name in self.rasters:
            groups.setdefault(str(PurePosixPath(name).parent), []).append(name)
        return {folder: tuple(names) for folder, names in groups.items()}

    def below(self, folder: str) -> FolderFiles:
        """The rasters of one folder alone."""
        return FolderFiles(
            folder=self.folder, rasters=self.by_folder[folder], tables=(), vectors=()
        )


def sampled(names: Sequence[str], count: int) -> list[str]:
    """At most ``count`` of them, evenly from first to last."""
    if len(names) <= count:
        return list(names)
    step = (len(names) - 1) / (count - 1)
    return [names[round(i * step)] for i in range(count)]


def stem(name: str) -> str:
    """A file's name without folder and extension."""
    return PurePosixPath(name).stem


def _common_start(texts: Sequence[str]) -> str:
    """The longest beginning that all texts share."""
    first, last = min(texts), max(texts)
    length = next((i for i, sign in enumerate(first) if sign != last[i : i + 1]), len(first))
    return first[:length]


def common_ending(stems: Sequence[str]) -> str:
    """What all stems end with, from a separator on (``_mask``); "" where nothing is common."""
    ending = _common_start([s[::-1] for s in stems])[::-1] if len(stems) > 1 else ""
    starts = [i for i, sign in enumerate(ending) if sign in _SEPARATORS]
    return ending[starts[0] :] if starts else ""


def id_pattern(folder: str, names: Sequence[str], ending: str = "") -> str:
    """The pattern with ``{id}`` of the files of one folder."""
    suffixes = sorted({PurePosixPath(n).suffix for n in names}, key=lambda s: (s.lower(), s))
    above = "" if folder == "." else f"{folder}/"
    return f"{above}{{id}}{ending}{suffixes[0]}"


def dates_of(name: str) -> str:
    """The first date in a file's name as ``YYYY-MM-DD``, "" where there is none."""
    match = _DATE.search(name)
    if match:
        return "-".join(match.groups())
    ordinal = _ORDINAL.search(name)
    return f"{ordinal[1]}-{ordinal[2]}" if ordinal else ""


def split_folders(folders: Sequence[str]) -> dict[str, str]:
    """Folder → split, where every folder lies in one that is named after a split; else empty."""
    splits = {}
    for folder in folders:
        first = PurePosixPath(folder).parts[0] if folder != "." else ""
        name = split_name(first)
        if name not in ("train", "val", "test"):
            return {}
        splits[folder] = name
    return splits


def words_of(text: str) -> set[str]:
    """The words and numbers of a path, in lower case: ``S2_L2A/B04`` → s2, l2a, b04; those that
    capitals divide also in parts: ``S1Hand`` → s1hand, s1, hand."""
    words = [w for w in re.split(r"[^0-9A-Za-z]+", composed(text)) if w]
    parts = [p for w in words for p in re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*", w)]
    return {w.lower() for w in (*words, *parts)}


def covering_glob(names: Sequence[str], among: Sequence[str]) -> str | list[str]:
    """One path: the only name, a glob that matches these of ``among`` alone, or all the names."""
    if len(names) == 1:
        return names[0]
    start = _common_start(list(names)).rstrip("0123456789")
    glob = f"{start}*{PurePosixPath(names[0]).suffix}"
    plain = not re.search(r"[*?\[]", start)
    exact = {n for n in among if fnmatch.fnmatchcase(n, glob)} == set(names)
    return glob if plain and exact else list(names)
