"""A record's files: fetched, unpacked, and given their folder in one step when all are right.

``OUT/FOLDER`` appears by a rename, so that it is complete whenever it is there. Until then
downloads lie in ``.NAME.download`` beside it, from which an interrupted fetch continues. Checksums
of what was fetched are in ``OUT/.fetched/NAME.json``, and expected again where none is published.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from multimae_eo.download.records import Checksum, PublicFile, PublicRecord
from multimae_eo.download.transfer import (
    INCOMPLETE,
    Download,
    FileDownload,
    file_checksums,
    require_space,
)
from multimae_eo.download.unpack import unpack
from multimae_eo.errors import ConfigError, DownloadError, OutputError
from multimae_eo.files import (
    output_errors,
    output_lock,
    read_json,
    remove,
    replacing,
    write_file,
)

MIRRORS_VARIABLE = "MULTIMAE_EO_MIRRORS"
"""Names mirrors, separated by white space, beside those of ``--mirror``."""
STATES = ("published", "recorded", "first use")
"""By what a file was verified: a published checksum, one recorded earlier, or nothing yet."""
_RECORDS = ".fetched"

_log = logging.getLogger(__name__)
Progress = Callable[[str, int, int | None], None]
"""Takes the stage ("download" in bytes, "unpack" in files), what is done, and all or None."""


@dataclass(frozen=True, kw_only=True)
class FetchedFile:
    """A file that was fetched. ``verified``: one of ``STATES``."""

    name: str
    address: str
    size: int
    sha256: str
    verified: str


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What ``fetch`` brought: ``folder``, its files, and whether it had been there before."""

    record: PublicRecord
    folder: Path
    files: tuple[FetchedFile, ...]
    present: bool = False

    @property
    def first_use(self) -> tuple[FetchedFile, ...]:
        """Files of which nobody published a checksum, and that were fetched for the first time."""
        return tuple(f for f in self.files if f.verified == STATES[2])


def fetch_record(
    record: PublicRecord,
    out: Path,
    *,
    mirrors: Sequence[str] = (),
    progress: Progress | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> Fetched:
    """Fetch a record into ``out / record.folder``, or find it there; see the head of this file.

    ``mirrors``: addresses that are tried before the publisher's (see ``mirror_address``).
    ``wait``: called with seconds between attempts.

    Raises DownloadError where no address has a file, or it is not what was published; OutputError
    where the disk is full, another process fetches it, or the folder is somebody else's.
    """
    folder = out / record.folder
    with output_lock(folder, folder=False):
        if folder.exists():
            return Fetched(record=record, folder=folder, files=_present(record, out), present=True)
        fetching = _Fetching(
            record=record, out=out, mirrors=tuple(mirrors), progress=progress, wait=wait,
        )  # fmt: skip
        return Fetched(record=record, folder=folder, files=fetching.run())


def mirror_address(mirror: str, record: str, name: str) -> str:
    """A file's address on a mirror: ``MIRROR/RECORD/NAME``, or with ``{record}`` and ``{file}``.

    >>> mirror_address("https://host/eo/", "eurosat-ms", "EuroSAT_MS.zip")
    'https://host/eo/eurosat-ms/EuroSAT_MS.zip'
    """
    if "{file}" in mirror:
        return mirror.replace("{file}", quote(name)).replace("{record}", quote(record))
    return f"{mirror.rstrip('/')}/{quote(record)}/{quote(name)}"


def configured_mirrors(given: Sequence[str]) -> list[str]:
    """Mirrors of an option, then those of the variable. ConfigError for what is no address."""
    mirrors = [*given, *os.environ.get(MIRRORS_VARIABLE, "").split()]
    for mirror in mirrors:
        if not mirror.startswith(("https://", "http://")):
            raise ConfigError(f"mirror {mirror!r}: expected an address that begins with https://")
    return mirrors


def _present(record: PublicRecord, out: Path) -> tuple[FetchedFile, ...]:
    """What an earlier fetch brought; OutputError where the folder is not from one."""
    folder = out / record.folder
    stored = stored_files(record.name, out)
    if not stored:
        raise OutputError(
            f"{folder}: exists, but was not written by fetch; move it away, or choose another --out"
        )
    for file in record.files:
        path = folder / file.name
        if file.unpacking is None and not path.is_file():
            raise OutputError(f"{path}: was fetched, but is gone; delete {folder} and fetch again")
    return tuple(stored.values())


def stored_files(name: str, out: Path) -> dict[str, FetchedFile]:
    """The files of a record that were fetched into ``out`` before, by name; {} for none.

    Raises DownloadError where their list is damaged.
    """
    path = out / _RECORDS / f"{name}.json"
    if not path.is_file():
        return {}
    content = read_json(path, DownloadError, limit=1 << 24, remedy="delete it")
    try:
        return {f["name"]: FetchedFile(**f) for f in content["files"]}
    except (KeyError, TypeError) as error:
        raise DownloadError(f"{path}: is not a list of fetched files; delete it") from error


@dataclass
class _Fetching:
    """One run of ``fetch_record``, under its lock."""

    record: PublicRecord
    out: Path
    mirrors: tuple[str, ...]
    progress: Progress | None
    wait: Callable[[float], object]
    arrived: dict[str, int] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.out / self.record.folder

    @property
    def downloads(self) -> Path:
        """Where files lie until all of them are there."""
        return self.folder.with_name(f".{self.folder.name}.download")

    def run(self) -> tuple[FetchedFile, ...]:
        """Fetch, verify, unpack, and give the folder its name."""
        earlier = stored_files(self.record.name, self.out)
        with output_errors(self.downloads):
            self.downloads.mkdir(parents=True, exist_ok=True)
        self._require_space()
        files = tuple(self._fetched(file, earlier.get(file.name)) for file in self.record.files)
        with replacing(self.folder, durable=False) as staging:
            staging.mkdir()
            for file in self.record.files:
                self._install(file, staging)
            # Thousands of files: one call for all of them.
            if hasattr(os, "sync"):
                os.sync()
            self._store(files)
        remove(self.downloads)
        return files

    def _require_space(self) -> None:
        """For what is still to come; an archive needs as much again when it is unpacked."""
        needed = 0
        for file in self.record.files:
            done = sum(p.stat().st_size for p in self._parts(file) if p.is_file())
            needed += max(0, (file.size or 0) - done)
            needed += (file.size or 0) if file.unpacking else 0
        require_space(self.downloads / "file", needed)

    def _parts(self, file: PublicFile) -> tuple[Path, Path]:
        path = self.downloads / file.name
        return path, path.with_name(path.name + INCOMPLETE)

    def _fetched(self, file: PublicFile, earlier: FetchedFile | None) -> FetchedFile:
        """One file in the downloads folder, verified."""
        target = self.downloads / file.name
        checksum, verified = file.checksum, STATES[0]
        if checksum is None:
            verified = STATES[2] if earlier is None else STATES[1]
            if earlier is not None:
                checksum = Checksum(algorithm="sha256", digits=earlier.sha256)
        received = self._arrived_before(file, target, checksum)
        if received is None:
            with output_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
            transfer = FileDownload(
                file=file, addresses=self._addresses(file), target=target, checksum=checksum,
                progress=self._counted(file), wait=self.wait,
            )  # fmt: skip
            try:
                received = transfer.run()
            except DownloadError as error:
                if verified == STATES[1] and "sha256" in str(error):
                    path = self.out / _RECORDS / f"{self.record.name}.json"
                    raise DownloadError(
                        f"{error}; that checksum was recorded when it was first fetched: if the "
                        f"publisher has changed the file, delete {path}"
                    ) from error
                raise
            write_file(self._note(target), json.dumps(asdict(received)).encode(), durable=False)
        return FetchedFile(
            name=file.name, address=received.address, size=received.size, sha256=received.sha256,
            verified=verified,
        )  # fmt: skip

    def _note(self, target: Path) -> Path:
        """Beside a file that has arrived: from where."""
        return target.with_name(f"{target.name}.arrived.json")

    def _arrived_before(
        self, file: PublicFile, target: Path, checksum: Checksum | None
    ) -> Download | None:
        """A file that an interrupted run had fetched, if it is still right."""
        if not target.is_file() or not self._note(target).is_file():
            return None
        try:
            content = read_json(self._note(target), DownloadError, limit=1 << 16)
            received = Download(**content)
        except (DownloadError, TypeError):
            return None
        expected = checksum or Checksum(algorithm="sha256", digits=received.sha256)
        digits = file_checksums(target, [expected.algorithm])[expected.algorithm]
        if digits != expected.digits:
            remove(target)
            return None
        if self.progress is not None:
            self._counted(file)(received.size, received.size)
        return received

    def _addresses(self, file: PublicFile) -> list[str]:
        mirrored = [mirror_address(m, self.record.name, file.name) for m in self.mirrors]
        return [*mirrored, file.address] if file.address else mirrored

    def _counted(self, file: PublicFile) -> Callable[[int, int | None], None]:
        """The progress of one file as that of all: bytes, of all where every size is known."""

        def count(done: int, total: int | None) -> None:
            self.arrived[file.name] = done
            sizes = [total if f is file else f.size for f in self.record.files]
            total_bytes = None if None in sizes else sum(s for s in sizes if s is not None)
            if self.progress is not None:
                self.progress("download", sum(self.arrived.values()), total_bytes)

        return count

    def _install(self, file: PublicFile, staging: Path) -> None:
        """Move a file into the new folder, or unpack it there."""
        source, target = self.downloads / file.name, staging / file.name
        if file.unpacking is None:
            with output_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                _link_or_move(source, target)
            return
        unpack(source, staging, file.unpacking, progress=self._unpacked)

    def _unpacked(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress("unpack", done, total)

    def _store(self, files: tuple[FetchedFile, ...]) -> None:
        record = {
            "name": self.record.name,
            "licence": self.record.licence,
            "source": self.record.source,
            "fetched": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "files": [asdict(f) for f in files],
        }
        path = self.out / _RECORDS / f"{self.record.name}.json"
        write_file(path, json.dumps(record, indent=1).encode())


def _link_or_move(source: Path, target: Path) -> None:
    """A second name for a file, so that an interrupted run keeps it; raises OSError."""
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        os.replace(source, target)
