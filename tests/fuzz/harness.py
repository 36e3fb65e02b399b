"""Runs the command line, in process, on a mutated input, within limits on time and memory."""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.inputs import KINDS
from tests.fuzz.mutate import mutate

SECONDS = 10
MEMORY = 2 << 30


class Hang(BaseException):
    """A command that did not end in time."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """At most ``SECONDS``, and ``MEMORY`` more than now."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    # Processor time: other programs of the machine do not count.
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(int(6 * SECONDS))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Bench:
    """A kind's valid input in a folder, which each case breaks and mends."""

    def __init__(self, name: str, folder: Path) -> None:
        self.kind, self.folder = KINDS[name], folder
        folder.mkdir(parents=True)
        self.kind.make(folder)
        self.files = sorted(p for f in self.kind.files for p in folder.rglob(f) if p.is_file())
        assert self.files

    def case(self, seed: int) -> tuple[Path, bytes]:
        """The file that a seed breaks, and its content."""
        rng = random.Random(seed)
        path = rng.choice(self.files)
        return path, mutate(path.read_bytes(), self.kind.text, rng)

    def problem(self, path: Path, content: bytes) -> str:
        """Run the command on a broken file; what is wrong with how it ended, if anything."""
        valid = path.read_bytes()
        path.write_bytes(content)
        try:
            return run_case(self.folder, self.kind.command)
        finally:
            path.write_bytes(valid)


def run_case(folder: Path, command: tuple[str, ...], *, clean: bool = False) -> str:
    """Run a command in a folder; what is wrong with how it ended, if anything.

    ``clean``: it has to end with exit code 0.
    """
    from multimae_eo.cli import main

    out = Path(tempfile.mkdtemp(prefix="fuzz-"))
    arguments = [str(out / "result") if a == "OUT" else a for a in command]
    errors, before = io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with (
            limits(), warnings.catch_warnings(),
            contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            code: object = main(arguments)
    except SystemExit as ended:
        code = ended.code
    except Hang:
        return f"took more than {SECONDS} s: {traceback.format_exc().splitlines()[-2:]}"
    except BaseException:
        return traceback.format_exc()
    finally:
        os.chdir(before)
        shutil.rmtree(out, ignore_errors=True)
    if clean and code != 0:
        return f"a valid input is refused: {errors.getvalue()}"
    return verdict(code, errors.getvalue())


def verdict(code: object, errors: str) -> str:
    """What is wrong with an exit code and the text on stderr, if anything."""
    lines = [line for line in errors.splitlines() if line.startswith("multimae-eo: error: ")]
    if code not in (0, 1, 2) or "Traceback" in errors:
        return f"exit code {code}: {errors[-2000:]}"
    if code == 1 and (len(lines) != 1 or not errors.endswith(lines[0] + "\n")):
        return f"not one line: {errors[-2000:]}"
    if "out of memory" in errors:
        return f"too much memory: {errors[-300:]}"
    return ""
