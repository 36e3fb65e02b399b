"""Archives of others: members are checked before any is written, and nothing but files is made.

Refused: names that are absolute or lead out of the folder, links, devices, encrypted members, names
given twice (also by case), more members or bytes than the record allows, and members that hold more
than their header states.
"""

from __future__ import annotations

import bz2
import fnmatch
import functools
import gzip
import lzma
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from multimae_eo.download.records import Unpacking
from multimae_eo.download.transfer import require_space
from multimae_eo.errors import DownloadError
from multimae_eo.files import output_errors, reading, require_regular

_BLOCK = 1 << 20
# A tar header's own data (long names, attributes) are read in one go, so that these are bounded.
_LONGEST_READ = 1 << 24
_LONGEST_NAME = 250
_UNSAFE = re.compile(r"[\x00-\x1f\\:]")
_OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open,
}  # fmt: skip
Count = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file of an archive: its path, its size in bytes as declared, and how to open it."""

    path: PurePosixPath
    size: int
    open: Callable[[], Any]


def unpack(
    archive: Path, folder: Path, rule: Unpacking, *, progress: Count | None = None
) -> list[str]:
    """Write an archive's members into ``folder``; returns their paths below it.

    Folders that all kept members share are dropped. ``progress`` takes members done and in all.
    Raises DownloadError naming the archive for anything that is refused or damaged, OutputError
    where the disk has no room.
    """
    require_regular(archive, DownloadError)
    with _members(archive) as listed:
        kept = _checked(archive, listed, rule)
        require_space(folder, sum(m.size for m in kept))
        shared = _shared_folders([m.path for m in kept])
        names = []
        for number, member in enumerate(kept, start=1):
            names.append("/".join(member.path.parts[shared:]))
            with reading(
                archive, DownloadError, "fetch it again", form=f"an archive ({names[-1]})"
            ):
                _write(archive, member, folder / names[-1])
            if progress is not None:
                progress(number, len(kept))
    return names


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[Any]]:
    """The archive's entries, as ``zipfile`` or ``tarfile`` has them, with the archive open."""
    with ExitStack() as stack:
        with reading(archive, DownloadError, "fetch it again", form="an archive"):
            if archive.suffix == ".zip":
                listed = _zip_members(stack.enter_context(zipfile.ZipFile(archive)))
            else:
                opener = _OPENERS.get(archive.suffix)
                stream = stack.enter_context(opener(archive) if opener else archive.open("rb"))
                bounded: Any = _BoundedReads(stream)
                opened = stack.enter_context(tarfile.open(fileobj=bounded, mode="r:"))
                listed = _tar_members(opened)
        yield listed


class _BoundedReads:
    """A stream of which no more than ``_LONGEST_READ`` bytes are read at once."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _LONGEST_READ:
            raise ValueError(f"a header of {size} bytes is refused")
        return self._stream.read(size)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own."""
        return getattr(self._stream, name)


def _zip_members(opened: zipfile.ZipFile) -> Iterator[tuple[str, Member | None]]:
    """Name and member of each entry; None for a folder. Raises DownloadError for other kinds."""
    for entry in opened.infolist():
        mode = entry.external_attr >> 16
        kind = stat.S_IFMT(mode) if entry.create_system == 3 else 0
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DownloadError(f"{entry.filename!r} is a link or a device")
        if entry.flag_bits & 1:
            raise DownloadError(f"{entry.filename!r} is encrypted")
        if entry.is_dir():
            yield entry.filename, None
            continue
        yield (
            entry.filename,
            Member(
                path=PurePosixPath(entry.filename),
                size=entry.file_size,
                open=functools.partial(opened.open, entry),
            ),
        )


def _tar_members(opened: tarfile.TarFile) -> Iterator[tuple[str, Member | None]]:
    for entry in opened:
        if entry.isdir():
            yield entry.name, None
            continue
        if not entry.isreg() or entry.issparse():
            raise DownloadError(f"{entry.name!r} is a link, a device or a sparse file")
        yield (
            entry.name,
            Member(
                path=PurePosixPath(entry.name),
                size=entry.size,
                open=functools.partial(opened.extractfile, entry),
            ),
        )


def _checked(archive: Path, listed: Iterator[Any], rule: Unpacking) -> list[Member]:
    """The members to write, once all are known to be safe."""
    kept: list[Member] = []
    names: set[str] = set()
    entries = size = 0
    try:
        for name, member in listed:
            entries += 1
            if entries > 4 * rule.max_files:
                raise DownloadError(f"has more than {4 * rule.max_files} entries")
            _require_safe(name)
            if member is None or not _is_kept(member.path, rule):
                # Its bytes have to be decompressed all the same to reach the next member of a tar.
                size += member.size if member else 0
            else:
                key = str(member.path).casefold()
                if key in names:
                    raise DownloadError(f"{name!r} is there twice")
                names.add(key)
                kept.append(member)
                size += member.size
            if len(kept) > rule.max_files or size > rule.max_bytes:
                raise DownloadError(
                    f"has more than {rule.max_files} files or {rule.max_bytes} bytes"
                )
        if not kept:
            raise DownloadError(f"has no member like {', '.join(rule.keep)}")
    except DownloadError as error:
        raise DownloadError(f"{archive}: refused: {error}; nothing of it was written") from error
    except Exception as error:
        with reading(archive, DownloadError, "fetch it again", form="an archive"):
            raise error
    return kept


def _require_safe(name: str) -> None:
    parts = name.rstrip("/").split("/")
    if _UNSAFE.search(name) or name.startswith("/") or ".." in parts:
        raise DownloadError(f"{name!r} leads out of the folder, or is no plain name")
    if len(name.encode()) > _LONGEST_NAME:
        raise DownloadError(f"{name[:40]!r}… is longer than {_LONGEST_NAME} bytes")


def _is_kept(path: PurePosixPath, rule: Unpacking) -> bool:
    if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
        return False
    return any(fnmatch.fnmatchcase(path.name, pattern) for pattern in rule.keep)


def _shared_folders(paths: list[PurePosixPath]) -> int:
    """How many leading folders all paths share."""
    folders = [p.parts[:-1] for p in paths]
    first, last = min(folders), max(folders)
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return shared


def _write(archive: Path, member: Member, target: Path) -> None:
    """Write one member; no more bytes than it declares."""
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    left = member.size
    with member.open() as source, target.open("xb") as file:
        while block := source.read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise DownloadError(f"{archive}: {target.name} holds more than its header states")
            with output_errors(target):
                file.write(block)
    if left:
        raise DownloadError(f"{archive}: {target.name} ends {left} bytes before its header states")
