"""Whatever ends a command ends its processes; Ctrl-C is answered with one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multimae_eo.processes import WorkerPool, noted_interrupts

PROC = Path("/proc/self/stat")
pytestmark = pytest.mark.skipif(not PROC.exists(), reason="processes are listed in /proc")
COMMAND = (sys.executable, "-c", "from multimae_eo.cli import main; raise SystemExit(main())")


def session(number: int) -> list[int]:
    """The processes of a session that run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == number and fields[0] not in "ZX":
            found.append(int(folder.name))
    return found


def begin(arguments: list[str], children: int) -> subprocess.Popen[str]:
    """A command in a session of its own, once it has so many processes."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    end = time.monotonic() + 90
    while len(session(process.pid)) < children and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    return process


def left(process: subprocess.Popen[str], seconds: float = 5.0) -> list[int]:
    """The processes that are left so long after the first one's end."""
    end = time.monotonic() + seconds
    while (found := session(process.pid)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def arguments_of(name: str, made, out: Path) -> list[str]:
    if name == "prepare":
        return ["prepare", made / "world/dataset.yaml", "--out", str(out), "--shard_chips", "1",
                "--workers", "2"]  # fmt: skip
    small = [a for a in made.small if "epochs" not in a]
    return ["pretrain", "--recipe", "quickstart", "--data", made / "store", "--out", str(out),
            *small, "--run.epochs=900", "--data.workers=2"]  # fmt: skip


CASES = [
    pytest.param("prepare", 4, id="prepare"),
    pytest.param("pretrain", 5, id="pretrain", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "processes"), CASES)
def test_a_killed_command_leaves_no_process(made, tmp_path, name, processes):
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    process = begin(arguments_of(name, made, tmp_path / "out"), processes)
    process.kill()
    process.communicate(timeout=30)
    assert not left(process)
    if before:
        assert not [n for n in set(os.listdir("/dev/shm")) - before if f"-{process.pid}-" in n]


@pytest.mark.parametrize(("name", "processes"), CASES)
def test_an_interrupt_of_all_is_answered_by_one(made, tmp_path, name, processes):
    process = begin(arguments_of(name, made, tmp_path / "out"), processes)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith("multimae-eo: error: interrupted\n")
    assert "Traceback" not in errors
    assert not left(process)
    assert not (tmp_path / "out/.lock").exists()


@pytest.mark.parametrize("delay", [0.5, 1.5])
def test_an_interrupt_while_it_imports(made, tmp_path, delay):
    process = begin(arguments_of("pretrain", made, tmp_path / "out"), 1)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "multimae-eo: error: interrupted\n")


def nothing() -> None: ...


def slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_an_interrupted_pool_ends_its_workers_at_once():
    def interrupted() -> None:
        with WorkerPool(1, initializer=nothing) as pool:
            pool.submit(slow, 0.0).result()
            pool.submit(slow, 60.0)
            raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begun < 30


def test_interrupts_are_noted_and_raised():
    before = signal.getsignal(signal.SIGINT)
    with noted_interrupts() as received:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before
