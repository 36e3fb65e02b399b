"""Writing and reading files safely: the one atomic write, the lock of an output, reading errors.

A file or folder is written under a temporary name beside its own, brought to the disk, and
renamed: whatever interrupts a writer, a final name holds all of its content or the previous one.
An output has one writer at a time: ``single_writer``. Its lock is a file, which works on every
file system and operating system, and which names its holder.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import inspect
import json
import logging
import os
import re
import shutil
import socket
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from multimae_eo.errors import MultiMAEError, OutputError

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-[0-9a-f]{8}\.part")
# As versions before 0.2 named them.
_FORMER = re.compile(r"(\..+\.\d+\.part|.+\.\d+\.tmp|(last|best|epoch_\d+)\.ckpt\.tmp)")
_NAME_BYTES = 200

LOCK = ".lock"
JSON_BYTES = 1 << 28
"""Of a JSON file that is read as one; a store of millions of chips has a header of 10 MB."""
METRICS_BYTES = 1 << 28
"""Of a run's ``metrics.csv`` that is read as one."""
# A lock is touched this often; one of another machine that was not for so long is stale.
_TOUCH_SECONDS, _STALE_SECONDS = 20.0, 120.0
# Folders below an output in which leftovers are looked for.
_SWEEP_DEPTH = 4
_WINDOWS = os.name == "nt"
# Of Windows' process functions.
_QUERY_LIMITED_INFORMATION, _ERROR_ACCESS_DENIED = 0x1000, 5
# There a file that another process is reading can neither be renamed nor removed.
_PAUSES = (0.01, 0.05, 0.1, 0.2, 0.4) if _WINDOWS else ()

_log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

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
            sync_and_rename(temporary, path, durable=durable)
        except BaseException:
            remove(temporary)
            raise


def sync_and_rename(temporary: Path, path: Path, *, durable: bool = True) -> None:
    """Sync a temporary file, or a folder's files, and rename it to ``path``; raises OSError.

    A folder does not replace another one.
    """
    if durable:
        for file in [f for f in temporary.rglob("*") if f.is_file()] or [temporary]:
            _sync(file)
    _patiently(os.replace, temporary, path)
    if durable:
        # The rename itself; some file systems cannot sync a folder.
        with suppress(OSError):
            _sync(path.parent)


def _patiently(action: Callable[..., None], *paths: Path) -> None:
    """Call ``action``, on Windows again after a pause while a reader has the file open."""
    for pause in _PAUSES:
        try:
            return action(*paths)
        except PermissionError:
            time.sleep(pause)
    return action(*paths)


def exchange_folder(temporary: Path, folder: Path) -> None:
    """Rename a folder to ``folder``, in place of what is there; at any moment one of them is on the
    disk. Raises OSError.
    """
    previous = temporary_path(folder)
    if folder.exists():
        os.replace(folder, previous)
    try:
        sync_and_rename(temporary, folder)
    except OSError:
        if previous.exists():
            os.replace(previous, folder)
        raise
    remove(previous)


def _sync(path: Path) -> None:
    folder = path.is_dir()
    if folder and _WINDOWS:
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
    path: Path | str,
    kind: type[MultiMAEError],
    remedy: str = "restore the file",
    *,
    form: str = "",
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
        what = f" as {form}" if form else ""
        raise kind(f"{path}: cannot be read{what}: {reason_of(error)}; {remedy}") from error


def require_regular(path: Path, kind: type[MultiMAEError]) -> None:
    """A ``kind`` where ``path`` is a pipe, a device or a folder: reading it may never end."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # opening it reports the reason
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise kind(f"{path}: is {what}; give a file")


def read_text(
    path: Path, kind: type[MultiMAEError], *, limit: int, remedy: str, form: str = ""
) -> str:
    """A text file of at most ``limit`` bytes, UTF-8; a ``kind`` otherwise."""
    require_regular(path, kind)
    with reading(path, kind, remedy, form=form):
        size = path.stat().st_size
        if size > limit:
            raise kind(f"{path}: has {size} bytes, at most {limit} are read; {remedy}")
        return path.read_text(encoding="utf-8")


def read_json(
    path: Path,
    kind: type[MultiMAEError],
    *,
    limit: int = JSON_BYTES,
    remedy: str = "restore the file",
    form: str = "JSON",
    object_hook: Callable[[dict[str, object]], object] | None = None,
) -> Any:
    """A JSON document of bounded size and depth; a ``kind`` that names the file otherwise.

    ``object_hook``: replaces each object as it is parsed, as of ``json.loads``.
    """
    text = read_text(path, kind, limit=limit, remedy=remedy, form=form)
    return parse_json(text, path, kind, remedy=remedy, form=form, object_hook=object_hook)


def parse_json(
    text: str | bytes,
    where: Path | str,
    kind: type[MultiMAEError],
    *,
    remedy: str = "restore the file",
    form: str = "JSON",
    object_hook: Callable[[dict[str, object]], object] | None = None,
) -> Any:
    """The JSON document in ``text``; a ``kind`` that names ``where`` otherwise."""
    with reading(where, kind, remedy, form=form):
        return json.loads(text, object_hook=object_hook)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file that this package wrote, as 64 hex digits; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason_of(error: Exception) -> str:
    """An exception's message in one short line, with its type where the message alone is bare."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    text = lines[0][:300] if lines else ""
    if isinstance(error, KeyError):
        return f"{text} is missing"
    return text if " " in text else f"{type(error).__name__} {text}".strip()


# One writer per output ------------------------------------------------------------------------


def single_writer(
    *, folder: bool = True, argument: str = "out"
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of a function that writes ``argument``: it holds the output's lock meanwhile."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            out = signature.bind(*args, **kwargs).arguments.get(argument)
            if out is None:
                return function(*args, **kwargs)
            with output_lock(Path(out), folder=folder):
                return function(*args, **kwargs)

        return locked

    return decorate


@dataclass(frozen=True, kw_only=True)
class LockHolder:
    """The process that holds a lock. ``birth``: its start in ticks since boot, where known."""

    pid: int
    host: str
    started: str
    birth: str = ""

    @classmethod
    def current(cls) -> LockHolder:
        """This process, from now on."""
        return cls(
            pid=os.getpid(),
            host=socket.gethostname(),
            started=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            birth=_birth(os.getpid()) or "",
        )

    def is_alive(self, lock: Path) -> bool:
        """Whether the process still runs; on another machine, whether it touched its lock."""
        if self.host != socket.gethostname():
            return time.time() - lock.stat().st_mtime < _STALE_SECONDS
        birth = _birth(self.pid)
        if birth is not None and self.birth:
            return birth == self.birth  # else the number was given to another process
        return is_running(self.pid)


_held: dict[Path, tuple[int, int]] = {}
"""Locks of this process: the thread that holds each, and how often."""
_held_guard = threading.Lock()


@contextmanager
def output_lock(out: Path, *, folder: bool = True) -> Iterator[None]:
    """Hold the lock of an output, and first sweep what ended runs left of it.

    ``folder``: the output is a folder, made here and holding its lock; else the lock is a dot
    file beside it. A thread may take a lock again. The lock of an ended process is taken over
    with a log message. Of several processes that train together only the first takes it.

    Raises OutputError, naming the holder, where another process or thread holds the lock; or
    where it cannot be written.
    """
    lock = _lock_path(out, folder)
    if _is_follower() or _again(lock):
        try:
            yield
        finally:
            _release_once(lock)
        return
    if folder and out.is_file():
        raise OutputError(f"{out}: cannot be written: it is a file; choose a folder for --out")
    made = folder and not out.exists()
    with output_errors(out):
        lock.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, out)
    ended = threading.Event()
    try:
        threading.Thread(target=_touch, args=(lock, ended), daemon=True).start()
        _sweep(out, folder)
        try:
            yield
        finally:
            # Of workers that were ended, and of those of an earlier run that ended only meanwhile.
            _sweep(out, folder)
    finally:
        ended.set()
        with _held_guard:
            _held.pop(lock, None)
        with suppress(OSError):
            _patiently(os.unlink, lock)
        if made:
            with suppress(OSError):  # something was written
                out.rmdir()


def _lock_path(out: Path, folder: bool) -> Path:
    out = Path(os.path.abspath(out))
    return out / LOCK if folder else out.with_name(f".{out.name}{LOCK}")


def _is_follower() -> bool:
    ranks = (os.environ.get(n, "") for n in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))
    return any(r.isdigit() and int(r) > 0 for r in ranks)


def _again(lock: Path) -> bool:
    """Whether this thread holds the lock already; counts it."""
    with _held_guard:
        thread, count = _held.get(lock, (0, 0))
        if thread != threading.get_ident():
            return False
        _held[lock] = thread, count + 1
        return True


def _release_once(lock: Path) -> None:
    with _held_guard:
        if lock in _held:
            thread, count = _held[lock]
            _held[lock] = thread, count - 1


def _acquire(lock: Path, out: Path) -> None:
    record = json.dumps(asdict(LockHolder.current())).encode()
    for _ in range(20):
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            _require_stale(lock, out)
            continue
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(record)
        except OSError:
            remove(lock)
            raise
        with _held_guard:
            _held[lock] = threading.get_ident(), 0
        return
    raise OutputError(f"{out}: its lock {lock} cannot be taken; delete that file")


def _require_stale(lock: Path, out: Path) -> None:
    """Set the lock of an ended process aside; OutputError where its holder is alive."""
    try:
        content = _lock_bytes(lock)
        holder = _holder(content)
        if holder is None:
            # Not written yet, or on a disk that was full.
            if time.time() - lock.stat().st_mtime < _TOUCH_SECONDS:
                raise OutputError(f"{out}: another process has just begun to write to it; wait")
        elif holder.is_alive(lock):
            raise OutputError(
                f"{out}: process {holder.pid} on {holder.host} has been writing to it since "
                f"{holder.started}; wait for it, end it, or choose another --out"
            )
        aside = temporary_path(lock)
        _patiently(os.rename, lock, aside)
    except FileNotFoundError:
        return  # its holder has just ended, or another process took it over
    if _lock_bytes(aside) != content:
        # Another process was faster, and this is its lock.
        with suppress(OSError):
            os.link(aside, lock)
        remove(aside)
        return
    remove(aside)
    if holder is not None:
        _log.warning(
            "%s: taking over from process %d on %s, which began %s and has ended",
            out, holder.pid, holder.host, holder.started,
        )  # fmt: skip


def _lock_bytes(lock: Path) -> bytes:
    with lock.open("rb") as file:
        return file.read(4096)


def _holder(content: bytes) -> LockHolder | None:
    try:
        record = json.loads(content)
        return LockHolder(
            pid=int(record["pid"]),
            host=str(record["host"]),
            started=str(record["started"]),
            birth=str(record.get("birth", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _touch(lock: Path, ended: threading.Event) -> None:
    while not ended.wait(_TOUCH_SECONDS):
        with suppress(OSError):
            os.utime(lock)


def _birth(pid: int) -> str | None:
    """When a process of this machine started, in the system's ticks; None where it is not known.

    "" of a process that has ended, and of one that was not waited for.
    """
    if _WINDOWS:
        return _birth_on_windows(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    except (OSError, IndexError):
        return None


def is_running(pid: int) -> bool:
    """Whether a process of this machine has not ended."""
    if _WINDOWS:
        return _birth(pid) != ""  # os.kill would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # it is another user's
    return _birth(pid) != ""


def _birth_on_windows(pid: int) -> str | None:
    import ctypes
    from ctypes import wintypes

    kernel: Any = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel.OpenProcess.argtypes = (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
    kernel.OpenProcess.restype = wintypes.HANDLE  # 64 bits, ctypes assumes 32
    times = [wintypes.FILETIME() for _ in range(4)]
    pointers = (ctypes.POINTER(wintypes.FILETIME),) * 4
    kernel.GetProcessTimes.argtypes = (wintypes.HANDLE, *pointers)
    kernel.CloseHandle.argtypes = (wintypes.HANDLE,)
    handle = kernel.OpenProcess(_QUERY_LIMITED_INFORMATION, False, pid)
    if not handle:
        denied = ctypes.get_last_error() == _ERROR_ACCESS_DENIED  # type: ignore[attr-defined,unused-ignore]
        return None if denied else ""
    try:
        if not kernel.GetProcessTimes(handle, *(ctypes.byref(t) for t in times)):
            return None
    finally:
        kernel.CloseHandle(handle)
    started, ended = (t.dwHighDateTime << 32 | t.dwLowDateTime for t in times[:2])
    # Whoever holds a handle of a process keeps it in the list after its end.
    return "" if ended else str(started)


def _sweep(out: Path, folder: bool) -> None:
    """Remove temporary files and folders that ended processes left of an output."""
    if not folder:
        name = temporary_path(out).name.rpartition(f".{os.getpid()}-")[0]
        for path in out.parent.iterdir():
            if path.name.startswith(f"{name}.") and _is_leftover(path):
                remove(path)
        return
    for base, folders, names in os.walk(out):
        here = Path(base)
        if here != out and _is_locked(here / LOCK):
            folders.clear()
            continue
        leftovers = [here / n for n in (*folders, *names) if _is_leftover(here / n)]
        for path in leftovers:
            remove(path)
        deep = len(here.relative_to(out).parts) >= _SWEEP_DEPTH
        folders[:] = [] if deep else [n for n in folders if here / n not in leftovers]


def _is_leftover(path: Path) -> bool:
    if not is_temporary(path):
        return False
    match = _TEMPORARY.fullmatch(path.name)
    if match is None:
        return True
    if _is_locked(path.with_name(f".{match['name']}{LOCK}")):
        return False
    pid = int(match["pid"])
    return pid != os.getpid() and not is_running(pid)


def _is_locked(lock: Path) -> bool:
    try:
        holder = _holder(_lock_bytes(lock))
        # This process's own temporaries are known by its number.
        return holder is not None and holder.pid != os.getpid() and holder.is_alive(lock)
    except OSError:
        return False
