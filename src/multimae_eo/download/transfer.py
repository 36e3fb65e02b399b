"""One file over HTTP: continued where it ended, from the first address that has it, and verified.

What has arrived lies beside the file as ``NAME.incomplete``, with ``NAME.incomplete.json``, which
names the address and the version that the server gave it. A file without a published checksum is
continued only if the server confirms that version, so that no file is put together from two.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from multimae_eo.download.records import Checksum, PublicFile
from multimae_eo.errors import DownloadError, OutputError
from multimae_eo.files import output_errors, read_json, reason_of, remove, write_file
from multimae_eo.version import __version__

INCOMPLETE = ".incomplete"
"""Ending of a file that has not arrived in full."""
_BLOCK = 1 << 18
_TIMEOUT = 60.0
# Attempts without a single new byte, and the seconds before each further one.
_ATTEMPTS = 5
_WAIT = 1.0
_LONGEST_WAIT = 60.0
_SPARE_BYTES = 50_000_000
"""Bytes of the disk that a download leaves free."""
_TEMPORARY_STATUS = {408, 425, 429, 500, 502, 503, 504}
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml[^>]*>\s*<!doctype html)", re.IGNORECASE)

_log = logging.getLogger(__name__)
Progress = Callable[[int, int | None], None]
"""Takes the bytes of a file that have arrived, and all of its bytes or None where unknown."""


@dataclass(frozen=True, kw_only=True)
class Download:
    """A file that arrived: from where, its size, and its SHA-256."""

    address: str
    size: int
    sha256: str


class _PermanentError(DownloadError):
    """Trying the same address again does not help."""


class _WaitError(OSError):
    """The server asks to come back after ``seconds``, None where it states no time."""

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass
class _Arrived:
    """What the server reports of a response: where its bytes begin, the size of the file, and the
    version of it (an ETag or a date)."""

    start: int
    total: int | None
    version: str


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        """The request of the new address. Raises _PermanentError for one that is not followed."""
        scheme = urlsplit(newurl).scheme
        allowed = ("https",) if urlsplit(req.full_url).scheme == "https" else ("https", "http")
        if scheme not in allowed:
            raise _PermanentError(f"redirects to {scheme or 'no'}:, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclass
class FileDownload:
    """Brings one file to ``target``. ``wait``: called with seconds between attempts."""

    file: PublicFile
    addresses: Sequence[str]
    target: Path
    progress: Progress | None = None
    wait: Callable[[float], object] = time.sleep
    checksum: Checksum | None = None
    _opener: urllib.request.OpenerDirector = field(
        default_factory=lambda: urllib.request.build_opener(_SafeRedirects())
    )

    @property
    def part(self) -> Path:
        """Where the bytes lie until all have arrived."""
        return self.target.with_name(self.target.name + INCOMPLETE)

    @property
    def _version_file(self) -> Path:
        return self.part.with_name(self.part.name + ".json")

    def run(self) -> Download:
        """Fetch and verify the file; returns where it came from.

        Raises DownloadError naming every address with its reason; OutputError where the disk is
        full or cannot be written.
        """
        if not self.addresses:
            raise DownloadError(
                f"{self.file.name}: no public address of it is confirmed; give one that has it "
                "with --mirror"
            )
        reasons = []
        for address in self.addresses:
            try:
                return self._from(address)
            except (DownloadError, OSError, http.client.HTTPException, ValueError) as error:
                reasons.append(f"{address}: {_reason(error)}")
                _log.info("%s", reasons[-1])
        raise DownloadError(f"{self.file.name}: cannot be fetched: {'; '.join(reasons)}")

    def _from(self, address: str) -> Download:
        """From one address; once more from the beginning if a continued file is not right."""
        if urlsplit(address).scheme not in ("http", "https"):
            raise _PermanentError("expected an address that begins with https:// or http://")
        continued = self._receive_all(address)
        try:
            return self._verified(address)
        except _PermanentError:
            self._discard()
            if not continued:
                raise
        _log.info("%s: what was continued is not right; starting again", address)
        self._receive_all(address)
        try:
            return self._verified(address)
        except _PermanentError:
            self._discard()
            raise

    def _receive_all(self, address: str) -> bool:
        """Receive the whole file, in several attempts; whether it was continued."""
        failures, continued = 0, self._resumable(address) > 0
        while True:
            before = self._size()
            try:
                self._receive(address)
                return continued
            except (_PermanentError, OutputError):
                raise
            except (OSError, http.client.HTTPException) as error:
                failures = 0 if self._size() > before else failures + 1
                continued = continued or self._size() > 0
                if failures >= _ATTEMPTS:
                    raise
                seconds = error.seconds if isinstance(error, _WaitError) else None
                if seconds is None:
                    seconds = _WAIT * 2 ** max(0, failures - 1)
                _log.info("%s: %s; trying again in %g s", address, _reason(error), seconds)
                self.wait(min(seconds, _LONGEST_WAIT))

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _resumable(self, address: str) -> int:
        """Bytes that may be continued from this address; 0 removes what is there."""
        size = self._size()
        if not size:
            return 0
        stored = self._stored_version()
        same = stored.get("address") == address and bool(stored.get("version"))
        if (self.checksum or same) and size <= self.file.max_bytes:
            return size
        self._discard()
        return 0

    def _stored_version(self) -> dict[str, object]:
        try:
            record = read_json(self._version_file, DownloadError, limit=1 << 16)
        except DownloadError:
            return {}
        return record if isinstance(record, dict) else {}

    def _receive(self, address: str) -> None:
        """One request; returns when every byte has arrived. Raises OSError where more may come."""
        start = self._resumable(address)
        if start and start == self.file.size:
            return  # only to be verified
        request = urllib.request.Request(address, headers=self._headers(address, start))
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as response:
                arrived = self._checked(response, start)
                self._store_version(address, arrived)
                self._write(response, arrived)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and _total_of(error.headers) == start:
                    return  # everything was there
                if error.code == 416:
                    self._discard()
                    raise OSError("the part that arrived does not fit the file") from error
                if error.code in _TEMPORARY_STATUS:
                    seconds = _retry_after(error.headers)
                    raise _WaitError(f"status {error.code}", seconds) from error
                raise _PermanentError(_status(error.code)) from error

    def _headers(self, address: str, start: int) -> dict[str, str]:
        headers = {"User-Agent": f"multimae-eo/{__version__}", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            stored = self._stored_version()
            if stored.get("address") == address and stored.get("version"):
                headers["If-Range"] = str(stored["version"])
        return headers

    def _checked(self, response: http.client.HTTPResponse, start: int) -> _Arrived:
        """Of a response: that it is the file, or the part of it that was requested."""
        headers = response.headers
        if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
            raise _PermanentError(f"sends the file encoded as {encoding}")
        if headers.get_content_type() == "text/html":
            raise _PermanentError("sends a web page (a login or an error?) instead of the file")
        total = _total_of(headers)
        if response.status == 206:
            first = _first_of(headers)
            if first != start:
                raise _PermanentError(f"sends the bytes from {first} instead of from {start}")
        elif response.status == 200:
            start = 0
        else:
            raise _PermanentError(_status(response.status))
        if total is not None and self.file.size is not None and total != self.file.size:
            raise _PermanentError(f"has {total} bytes, {self.file.size} were published")
        if total is not None and total > self.file.max_bytes:
            raise _PermanentError(f"has {total} bytes, at most {self.file.max_bytes} are accepted")
        require_space(self.target, (total or 0) - start)
        return _Arrived(start=start, total=total, version=_version(headers))

    def _store_version(self, address: str, arrived: _Arrived) -> None:
        if arrived.start == 0:
            record = {"address": address, "version": arrived.version}
            write_file(self._version_file, json.dumps(record).encode(), durable=False)

    def _write(self, response: http.client.HTTPResponse, arrived: _Arrived) -> None:
        done, total, cut = arrived.start, arrived.total or self.file.size, False
        with output_errors(self.part):
            file = self.part.open("r+b" if arrived.start else "wb")
        with file:
            file.seek(arrived.start)
            while True:
                try:
                    block = response.read(_BLOCK)
                except http.client.IncompleteRead as error:
                    block, cut = error.partial, True
                if not block:
                    break
                if done == 0 and _PAGE.match(block):
                    raise _PermanentError("sends a web page instead of the file")
                done += len(block)
                if done > self.file.max_bytes:
                    raise _PermanentError(f"sends more than {self.file.max_bytes} bytes")
                with output_errors(self.part):
                    file.write(block)
                if self.progress is not None:
                    self.progress(done, total)
            with output_errors(self.part):
                file.truncate(done)
        if cut or (total is not None and done < total):
            raise ConnectionError(f"the connection ended after {done} of {total or '?'} bytes")

    def _verified(self, address: str) -> Download:
        """Compare with what was published, and give the file its name."""
        size = self._size()
        if self.file.size is not None and size != self.file.size:
            raise _PermanentError(f"has {size} bytes, {self.file.size} were published")
        names = {"sha256", self.checksum.algorithm if self.checksum else "sha256"}
        digits = file_checksums(self.part, sorted(names))
        if self.checksum and digits[self.checksum.algorithm] != self.checksum.digits:
            raise _PermanentError(
                f"its {self.checksum.algorithm} is {digits[self.checksum.algorithm]}, expected "
                f"{self.checksum.digits}: it is damaged, or not the file that was published"
            )
        with output_errors(self.target):
            os.replace(self.part, self.target)
        remove(self._version_file)
        return Download(address=address, size=size, sha256=digits["sha256"])

    def _discard(self) -> None:
        remove(self.part)
        remove(self._version_file)


def file_checksums(path: Path, algorithms: Sequence[str]) -> dict[str, str]:
    """Checksums of a file by algorithm (md5, sha256), as hexadecimal digits."""
    states = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with output_errors(path), path.open("rb") as file:
        while block := file.read(1 << 20):
            for state in states.values():
                state.update(block)
    return {name: state.hexdigest() for name, state in states.items()}


def require_space(path: Path, size: int) -> None:
    """OutputError where ``size`` more bytes do not fit the disk of ``path``."""
    folder = next(p for p in path.absolute().parents if p.is_dir())
    free = shutil.disk_usage(folder).free
    if size > free - _SPARE_BYTES:
        raise OutputError(
            f"{path}: needs {size / 1e9:.2f} GB, {folder} has {free / 1e9:.2f} GB free; free space "
            "or choose another --out"
        )


def _total_of(headers: Message) -> int | None:
    """The size of the whole file, from Content-Range or else Content-Length."""
    if match := re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", headers.get("Content-Range", "")):
        return int(match[1])
    length = headers.get("Content-Length", "")
    return int(length) if "Content-Range" not in headers and length.isdigit() else None


def _first_of(headers: Message) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _version(headers: Message) -> str:
    """What ``If-Range`` takes: a strong ETag, or the date of the last change."""
    tag = str(headers.get("ETag", ""))
    return tag if tag.startswith('"') else str(headers.get("Last-Modified", ""))


def _retry_after(headers: Message) -> float | None:
    text = headers.get("Retry-After", "")
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _status(code: int) -> str:
    meaning = http.client.responses.get(code, "")
    return f"the server's status is {code} {meaning}".rstrip()


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return reason_of(error.reason)
    return reason_of(error)
