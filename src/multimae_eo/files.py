"""Writing and reading files safely: the one atomic write, and the one door of every reader.

A file or folder is written under a temporary name beside its own, brought to the disk, and
renamed: whatever interrupts a writer, a final name holds all of its content or the previous one.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from multimae_eo.errors import MultiMAEError, OutputError

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-[0-9a-f]{8}\.part")
# As versions before 0.2 named them.
_FORMER = re.compile(r"(\..+\.\d+\.part|.+\.\d+\.tmp|(last|best|epoch_\d+)\.ckpt\.tmp)")
_NAME_BYTES = 200

_REMEDIES = {
    errno.EACCES: "choose an --out that you may write to",
    errno.EPERM: "choose an --out that you may write to",
    errno.EROFS: "choose an --out that you may write to",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "allow more open files (ulimit -n)",
}


def temporary_path(path: Path) -> Path:
    """A name beside ``path`` that no other writer uses: ``.NAME.PID-TOKEN.part``."""
    name = path.name.encode()[:_NAME_BYTES].decode(errors="ignore")
    return path.with_name(f".{name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")


def is_temporary(path: Path) -> bool:
    """Whether a path is named as a temporary one of this package, of any version."""
    return bool(_TEMPORARY.fullmatch(path.name) or _FORMER.fullmatch(path.name))


def write_file(path: Path, data: bytes | memoryview, *, durable: bool = True) -> Path:
    """Write a file atomically, making its folder; returns ``path``. Raises OutputError.

    ``durable``: wait until it is on the disk, so that it outlives a power cut.
    """
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(data)
    return path


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path to write a file or folder at, put in place of ``path`` at the end.

    After an error nothing of it is left. Raises OutputError for any OSError.
    """
    temporary = temporary_path(path)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            put_in_place(temporary, path, durable=durable)
        except BaseException:
            remove(temporary)
            raise


def put_in_place(temporary: Path, path: Path, *, durable: bool = True) -> None:
    """Sync a temporary file, or a folder's files, and rename it to ``path``; raises OSError.

    A folder does not replace another one.
    """
    if durable:
        for file in [f for f in temporary.rglob("*") if f.is_file()] or [temporary]:
            _sync(file)
    os.replace(temporary, path)
    if durable:
        # The rename itself; some file systems cannot sync a folder.
        with suppress(OSError):
            _sync(path.parent)


def _sync(path: Path) -> None:
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or folder, if it can be: for leftovers, never for results."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Raise any OSError as an OutputError of one line that names ``path`` and a remedy."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def output_error(path: Path, error: Exception) -> OutputError:
    """The OutputError of a path that cannot be written."""
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    number = getattr(error, "errno", None)
    remedy = _REMEDIES.get(number or 0, "free space or choose another --out")
    return OutputError(f"{path}: cannot be written: {reason}; {remedy}")


@contextmanager
def reading(
    path: Path | str, kind: type[MultiMAEError], remedy: str = "restore the file"
) -> Iterator[None]:
    """The door of a reader: whatever a library raises on a damaged file becomes a ``kind``.

    Errors of this package pass. The message names ``path``, the first line of the reason, and
    ``remedy``.
    """
    try:
        yield
    except (MultiMAEError, MemoryError):
        raise
    except Exception as error:
        raise kind(f"{path}: cannot be read: {reason_of(error)}; {remedy}") from error


def reason_of(error: Exception) -> str:
    """An exception's message in one short line, with its type where the message alone is bare."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    text = lines[0][:300] if lines else ""
    if isinstance(error, KeyError):
        return f"{text} is missing"
    return text if " " in text else f"{type(error).__name__} {text}".strip()
