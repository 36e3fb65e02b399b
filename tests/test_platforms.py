"""The core needs nothing that only Unix has; what cannot run here is simulated or read."""

from __future__ import annotations

import ast
import ctypes
import errno
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from multimae_eo import files, processes
from multimae_eo.files import LockHolder, output_lock, write_file
from tests.support.paths import ROOT
from tests.support.without_unix import FUNCTIONS, MODULES

PACKAGE = ROOT / "src/multimae_eo"
FILES = sorted(PACKAGE.rglob("*.py"))

# Guarded in the function that calls them.
GUARDED_BY_CALLERS = {
    ("loading/workers.py", "os.statvfs"): "usable_workers",
}


def unix_uses(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, name) of modules and functions that Windows lacks, but those behind a guard.

    A guard is ``hasattr`` of the same name, in the same function.
    """
    uses = []
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        text = ast.dump(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and f"Constant(value='{node.attr}')" in text:
                node.attr = ""  # asked for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            uses += [(node.lineno, a.name) for a in node.names if a.name in MODULES]
        elif isinstance(node, ast.ImportFrom):
            if node.module in MODULES:
                uses.append((node.lineno, node.module))
            lacking = FUNCTIONS.get(node.module or "", ())
            names = [a.name for a in node.names if a.name in lacking]
            uses += [(node.lineno, f"{node.module}.{name}") for name in names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = node.value.id
            if node.attr in FUNCTIONS.get(module, ()):
                uses.append((node.lineno, f"{module}.{node.attr}"))
    return uses


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_of_unix_is_used_without_a_guard(path):
    module = path.relative_to(PACKAGE).as_posix()
    uses = unix_uses(ast.parse(path.read_text(encoding="utf-8")))
    uses = [(line, name) for line, name in uses if (module, name) not in GUARDED_BY_CALLERS]
    assert not uses, "Windows lacks it; ask hasattr first"


def test_callers_that_guard_are_still_there():
    for (module, name), caller in GUARDED_BY_CALLERS.items():
        text = (PACKAGE / module).read_text(encoding="utf-8")
        assert name in text
        function = next(n for n in ast.walk(ast.parse(text)) if getattr(n, "name", "") == caller)
        assert "sys.platform" in ast.unparse(function)


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import fcntl", ["fcntl"]),
        ("from resource import getrusage", ["resource"]),
        ("from os import fork", ["os.fork"]),
        ("import os\ndef f(): return os.getuid()", ["os.getuid"]),
        ("import os\ndef f():\n if hasattr(os, 'getuid'): return os.getuid()", []),
        ("import os\ndef f(): return hasattr(os, 'getuid')\nx = os.getuid()", ["os.getuid"]),
        ("import signal\ndef f(): signal.signal(signal.SIGTERM, g)", []),
    ],
)
def test_unguarded_uses_are_recognised(code, names):
    assert [name for _, name in unix_uses(ast.parse(code))] == names


@pytest.mark.slow
def test_the_core_runs_without_unix(tmp_path):
    """With texts in a declared encoding, too: that of Windows is not UTF-8."""
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-m", "tests.support.without_unix",
         str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-3:] == ["pictures", "run", "store"]


def test_workers_are_spawned_where_there_is_no_fork_server(monkeypatch):
    import multiprocessing

    from multimae_eo.loading import loader

    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    context = loader._workers_context()
    assert isinstance(context, multiprocessing.context.SpawnContext)


class Kernel:
    """Windows' kernel with two processes: 1 runs, 2 has ended, 3 is another user's."""

    def __init__(self) -> None:
        self.closed: list[int] = []
        self.error = SimpleNamespace(code=87)
        self.OpenProcess = SimpleCall(lambda access, inherit, pid: pid if pid in (1, 2) else 0)
        self.GetProcessTimes = SimpleCall(self._times)
        self.CloseHandle = SimpleCall(self.closed.append)

    @staticmethod
    def _times(handle: int, started, ended, *_: object) -> int:
        started._obj.dwHighDateTime, started._obj.dwLowDateTime = 1, 7
        ended._obj.dwLowDateTime = handle == 2
        return 1


class SimpleCall:
    """A function of a library, whose types ctypes is given."""

    def __init__(self, function) -> None:
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)


@pytest.fixture
def windows(monkeypatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(ctypes, "WinDLL", lambda name, use_last_error: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: kernel.error.code, raising=False)
    monkeypatch.setattr(files, "_WINDOWS", True)
    monkeypatch.setattr(files, "_PAUSES", (0.0, 0.0))
    return kernel


def test_processes_of_windows_are_known_by_number_and_start(windows):
    assert files.is_running(1)
    assert not files.is_running(2), "its handle is still open"
    assert not files.is_running(4)
    windows.error.code = 5
    assert files.is_running(3), "access denied: it is another user's"
    assert windows.closed == [1, 2]
    assert files._birth(1) == str((1 << 32) + 7)


def test_a_number_given_to_another_process_is_no_holder(windows, tmp_path):
    holder = LockHolder(pid=1, host=LockHolder.current().host, started="", birth=str((1 << 32) + 7))
    assert holder.is_alive(tmp_path)
    reused = LockHolder(pid=1, host=holder.host, started="", birth="12")
    assert not reused.is_alive(tmp_path)


def failing(function, times: int):
    """``function``, which a reader of its file prevents the first ``times``."""
    left = [times]

    def call(*arguments):
        if left[0]:
            left[0] -= 1
            raise PermissionError(errno.EACCES, "in use")
        return function(*arguments)

    return call


def test_a_file_that_is_being_read_is_replaced_after_a_pause(windows, monkeypatch, tmp_path):
    write_file(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "replace", failing(os.replace, 2))
    assert write_file(tmp_path / "a", b"new").read_bytes() == b"new"


def test_a_lock_that_is_being_read_is_removed_after_a_pause(windows, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "unlink", failing(os.unlink, 2))
    with output_lock(tmp_path / "out"):
        write_file(tmp_path / "out/a", b"")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


def test_a_follower_on_windows_asks_for_its_launcher_by_number(windows, monkeypatch):
    """Its parent there may be the interpreter of a virtual environment."""
    monkeypatch.setattr(processes, "_WINDOWS", True)
    assert processes._has_launcher(1)
    assert not processes._has_launcher(2)


def test_the_demo_shares_no_port_on_windows(monkeypatch):
    import socket

    from multimae_eo.cli import tour_commands

    class Listening(socket.socket):
        options: tuple[Any, ...] = ()

        def setsockopt(self, *arguments):
            Listening.options = arguments
            super().setsockopt(*arguments)

    monkeypatch.setattr(socket, "socket", Listening)
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        tour_commands._listen("127.0.0.1", 0).close()
    assert Listening.options == ()
    tour_commands._listen("127.0.0.1", 0).close()
    assert socket.SO_REUSEADDR in Listening.options
