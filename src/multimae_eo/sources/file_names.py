"""Names of files as people and systems write them: Unicode forms, extensions, links, wildcards."""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from multimae_eo.sources.acquisition_dates import DATE_PATTERN, days_since_1970
from multimae_eo.sources.raster.remote import is_remote

DATE = "{date}"
"""In a path: where the date of each file of a series stands."""
_SAME_SUFFIXES = ((".tif", ".tiff"), (".jpg", ".jpeg"), (".yaml", ".yml"))
_WILDCARDS = re.compile(r"[*?\[]")


def composed(text: str) -> str:
    """The text in Unicode's composed form (NFC); macOS decomposes the letters of file names."""
    return unicodedata.normalize("NFC", text)


def split_suffix(text: str) -> tuple[str, str]:
    """A path without its extension, and the extension, which may be empty."""
    suffix = PurePosixPath(text).suffix
    if "}" in suffix or _WILDCARDS.search(suffix):
        return text, ""
    return text.removesuffix(suffix), suffix


def same_suffixes(suffix: str) -> tuple[str, ...]:
    """The extensions, in lower case, that mean the same as this one."""
    low = suffix.lower()
    return next((same for same in _SAME_SUFFIXES if low in same), (low,))


def existing_path(root: Path, relative: str) -> Path:
    """``root / relative`` as its parts are spelt on disk: composed or decomposed.

    A path that is not there comes back as it was given.
    """
    path = root / os.path.expanduser(relative)
    if path.exists():
        return path
    parent = path.parent if path.parent.exists() else None
    if parent is None and path.parent != path:
        parent = existing_path(path.parent.parent, path.parent.name)
    if parent is not None and parent.is_dir():
        for name in os.listdir(parent):
            if composed(name) == composed(path.name):
                return parent / name
    return path


def walk_files(top: Path) -> Iterator[str]:
    """All files under a folder except hidden files, in order; links are followed, but not into a
    folder that holds them."""
    yield from _walk(str(top), (os.path.realpath(top),))


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield entry.path
            continue
        real = os.path.realpath(entry.path) if entry.is_symlink() else ""
        if real in above:  # a link back to a parent would never end
            continue
        yield from _walk(entry.path, (*above, real or os.path.join(above[-1], entry.name)))


def links_outside(root: Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Which of the files, relative to ``root`` or absolute, a symbolic link takes out of ``root``,
    with the target of each. Absolute names elsewhere are no links and count as declared."""
    base = os.path.realpath(root)
    folders: dict[str, str] = {}
    for name in names:
        path = os.path.join(root, name)
        folder = os.path.dirname(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        if not os.path.islink(path) and folders[folder] == os.path.abspath(folder):
            continue
        target = os.path.realpath(path)
        declared = os.path.abspath(path)
        lies_inside = declared.startswith(os.path.join(os.path.abspath(root), ""))
        if lies_inside and not target.startswith(os.path.join(base, "")):
            yield name, target


def matching_files(root: Path, text: str) -> tuple[list[Path], list[Path]]:
    """The files of a path with wildcards, relative to ``root`` or absolute, in order; and those in
    the same folder, of the same kind, that it leaves out.

    The extension matches in any case, ``.tif`` like ``.tiff``. A file of exactly this name is
    taken alone, whatever signs are in it.
    """
    if is_remote(text):
        return [Path(text)], []
    if is_remote(root):
        return [root / text], []
    literal = existing_path(root, text)
    if literal.exists() or not _WILDCARDS.search(text):
        return [literal], []
    body, suffix = split_suffix(os.path.expanduser(text))
    start = "" if os.path.isabs(body) else glob.escape(str(root)) + os.sep
    matches = {
        name
        for one in same_suffixes(suffix)
        for name in glob.glob(start + body + _any_case(one), recursive=True)
    }
    beside = {
        os.path.join(folder, name)
        for folder in {os.path.dirname(name) for name in matches}
        for name in os.listdir(folder or ".")
        if name.lower().endswith(same_suffixes(suffix)) and suffix
    }
    return [Path(n) for n in sorted(matches)], [Path(n) for n in sorted(beside - matches)]


def _any_case(suffix: str) -> str:
    return "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in suffix)


def counted(names: Sequence[str]) -> str:
    """How many files, with their extensions: ``7 other files (.png 5, .txt 2)``."""
    kinds: dict[str, int] = {}
    for name in names:
        kind = PurePosixPath(name).suffix or "no extension"
        kinds[kind] = kinds.get(kind, 0) + 1
    most = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{k} {n}" for k, n in most[:4]) + (", …" if len(most) > 4 else "")
    return f"{len(names)} other file{'s' if len(names) > 1 else ''} ({listed})"


def dated_files(root: Path, text: str) -> list[tuple[float, list[Path]]]:
    """The files of a path with ``{date}``, and perhaps wildcards, by date in days since 1970.

    A file whose name has something else than a date there is left out. Raises ValueError for
    a date that the calendar lacks.
    """
    files, _ = matching_files(root, text.replace(DATE, "*"))
    body, suffix = split_suffix(composed(os.path.expanduser(text)).replace(os.sep, "/"))
    parts = [_wildcards_as_regex(part) for part in body.removeprefix("./").split(DATE)]
    absolute = os.path.isabs(body)
    ending = "(?i:" + "|".join(map(re.escape, same_suffixes(suffix))) + ")"
    first = f"(?P<date>{DATE_PATTERN})".join(parts[:2])
    dated = re.compile(first + "".join("(?P=date)" + part for part in parts[2:]) + ending)
    matches: dict[float, list[Path]] = {}
    for path in files:
        name = str(path) if absolute else os.path.relpath(path, root)
        match = dated.fullmatch(composed(name).replace(os.sep, "/"))
        if match is None:
            continue
        try:
            matches.setdefault(days_since_1970(match["date"]), []).append(path)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return sorted(matches.items())


def _wildcards_as_regex(text: str) -> str:
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", text)
    return "".join(signs.get(part, re.escape(part)) for part in parts)
