"""What a system may deny: one line, exit code 1, and nothing half-written; or it is done without.

Every command that writes: a disk without room (``test_full_disk.py`` has more), a folder that
nobody may write to, 64 open files, no shared memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.writers import WRITERS
from tests.test_full_disk import full_disk

resource = pytest.importorskip("resource", reason="limits are a Unix matter")

COMMAND = (sys.executable, str(ROOT / "tests/support/command/multimae-eo"))
DENIED = Path("/sys/kernel")
"""No user may make a file or folder there, root included."""


def one_line(errors: str) -> str:
    """The only error on stderr, which is its last line."""
    assert "Traceback" not in errors
    lines = [line for line in errors.splitlines() if line.startswith("multimae-eo: error: ")]
    assert len(lines) == 1, errors
    assert errors.endswith(lines[0] + "\n")
    return lines[0]


@pytest.mark.skipif(not DENIED.is_dir() or sys.platform != "linux", reason="a folder of Linux")
@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_nobody_may_write_to(made, fine, refused, name):
    message = refused(*WRITERS[name].command(made, fine, DENIED / "out"))
    assert f"{DENIED}/out" in message
    assert "cannot" in message


@pytest.mark.parametrize("limit", [0, pytest.param(3_000, marks=pytest.mark.release)])
@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_without_room(made, fine, refused, tmp_path, name, limit):
    with full_disk(limit):
        message = refused(*WRITERS[name].command(made, fine, tmp_path / "out"))
    assert str(tmp_path / "out") in message
    assert not list(tmp_path.rglob(".*.part"))


def started(arguments: list[str], prefix: tuple[str, ...] = (), files: int = 0) -> tuple[int, str]:
    """Exit code and stderr of a command in a process of its own."""

    def limit() -> None:
        if files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [*prefix, *COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=200,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        preexec_fn=limit,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", [
    "prepare", *(pytest.param(n, marks=pytest.mark.release) for n in WRITERS if n != "prepare")
])  # fmt: skip
def test_few_open_files(made, fine, tmp_path, name):
    writer = WRITERS[name]
    out = tmp_path / "out"
    code, errors = started([*writer.command(made, fine, out), *writer.shared], files=64)
    assert code == 0 or one_line(errors)
    assert "Traceback" not in errors
    assert code == 1 or Path(f"{out}{writer.suffix}").exists()
    assert not list(tmp_path.rglob(".*.part"))


UNSHARE = shutil.which("unshare")


def without_shared_memory(how: str) -> tuple[str, ...]:
    """A command's prefix: /dev/shm is read-only or tiny for it. Skips where that is not allowed."""
    options = {"read-only": "ro", "tiny": "size=64k"}[how]
    script = f'mount -t tmpfs -o {options} none /dev/shm && exec "$@"'
    prefix = (str(UNSHARE), "-m", "sh", "-c", script, "sh")
    if (
        UNSHARE is None
        or subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount")
    return prefix


@pytest.mark.parametrize("how", [
    "read-only", pytest.param("tiny", marks=pytest.mark.release),
])  # fmt: skip
@pytest.mark.parametrize("name", [
    "prepare", *(pytest.param(n, marks=pytest.mark.release) for n, w in WRITERS.items()
                 if w.shared and n != "prepare"),
])  # fmt: skip
def test_no_shared_memory(made, fine, tmp_path, name, how):
    writer, out = WRITERS[name], tmp_path / "out"
    arguments = [*writer.command(made, fine, out), *writer.shared]
    code, errors = started(arguments, without_shared_memory(how))
    assert code == 0 or one_line(errors)
    assert "Traceback" not in errors
