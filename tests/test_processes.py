"""Whatever ends a command ends its processes; Ctrl-C is answered with one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multimae_eo import interrupts
from multimae_eo.processes import WorkerPool, noted_interrupts
from tests.support.paths import ROOT

PROC = Path("/proc/self/stat")
pytestmark = pytest.mark.skipif(not PROC.exists(), reason="processes are listed in /proc")
COMMAND = (sys.executable, str(ROOT / "tests/support/command/multimae-eo"))
INTERRUPTED = "multimae-eo: error: interrupted\n"


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


def begin(arguments: list[str], children: int, **environment: str) -> subprocess.Popen[str]:
    """A command in a session of its own, once it has so many processes."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **environment},
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


@pytest.fixture(scope="session")
def scene(tmp_path_factory) -> Path:
    """A scene of several blocks."""
    from multimae_eo.sources.synthetic import write_synthetic_data

    folder = tmp_path_factory.mktemp("large")
    write_synthetic_data(folder, chips=3, size=32, scene=1536)
    return folder


def arguments_of(name: str, made, request, out: Path) -> list[str]:
    """A command that takes long enough to be ended, with processes of its own."""
    if name == "prepare":
        return ["prepare", made / "world/dataset.yaml", "--out", str(out), "--shard_chips", "1",
                "--workers", "2"]  # fmt: skip
    if name in ("pretrain", "ddp"):
        small = [a for a in made.small if "epochs" not in a]
        shared = ["--run.devices=2", "--run.accelerator=cpu", "--run.strategy=ddp"]
        more = {"pretrain": ["--data.workers=2"], "ddp": shared}
        return ["pretrain", "--recipe", "quickstart", "--data", made / "store", "--out", str(out),
                *small, "--run.epochs=900", *more[name]]  # fmt: skip
    if name == "finetune":
        return ["finetune", "--model", made / "run/model", "--data", made / "store", "--task",
                "classification", "--inputs", "rgb,elevation", "--out", str(out),
                "--run.epochs=900", "--data.workers=2", "--run.accelerator=cpu"]  # fmt: skip
    folder: Path = request.getfixturevalue("scene")
    workers = ["--scene", str(folder / "scene.yaml"), "--device", "cpu", "--workers", "2"]
    if name == "reconstruct":
        return ["reconstruct", "--model", made / "run/model", "--inputs", "rgb", "--outputs",
                "elevation", "--out", str(out), *workers]  # fmt: skip
    assert name == "predict"
    model = str(request.getfixturevalue("fine"))
    return ["predict", "--model", model, "--out", str(out / "map.tif"), *workers]


CASES = [
    pytest.param("prepare", 4, id="prepare"),
    pytest.param("pretrain", 5, id="pretrain", marks=pytest.mark.slow),
    pytest.param("ddp", 2, id="ddp", marks=pytest.mark.slow),
    pytest.param("predict", 4, id="predict", marks=pytest.mark.slow),
    pytest.param("finetune", 5, id="finetune", marks=pytest.mark.release),
    pytest.param("reconstruct", 4, id="reconstruct", marks=pytest.mark.release),
]


@pytest.mark.parametrize(("name", "processes"), CASES)
def test_a_killed_command_leaves_no_process(made, request, tmp_path, name, processes):
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    process = begin(arguments_of(name, made, request, tmp_path / "out"), processes)
    assert process.poll() is None
    process.kill()
    assert not left(process)
    process.communicate(timeout=30)
    if before:
        assert not [n for n in set(os.listdir("/dev/shm")) - before if f"-{process.pid}-" in n]


@pytest.mark.parametrize(("name", "processes"), CASES)
def test_an_interrupt_of_all_is_answered_by_one(made, request, tmp_path, name, processes):
    process = begin(arguments_of(name, made, request, tmp_path / "out"), processes)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.endswith(INTERRUPTED)
    assert process.returncode == 130
    assert errors.count("multimae-eo: error: ") == 1
    assert "Traceback" not in errors
    assert not left(process)
    assert not list((tmp_path / "out").glob("**/*.lock"))
    assert not list((tmp_path / "out").glob("**/.*.part"))


MOMENTS = [0.0, 0.01, 0.05, 0.15, 0.4, 0.8, 1.5, 2.5, 4.0, 6.0]
"""Seconds after the first import of the package."""


def mark_of(name: str, moment: float) -> list[pytest.MarkDecorator]:
    if (name, moment) == ("prepare", 0.05):
        return []
    slow = (name, moment) in {("prepare", 0.0), ("pretrain", 1.5)}
    return [pytest.mark.slow if slow else pytest.mark.release]


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        pytest.param(case.values[0], moment, marks=mark_of(str(case.values[0]), moment))
        for case in CASES
        for moment in MOMENTS
    ],
)
def test_an_interrupt_at_any_moment_is_one_line(made, request, tmp_path, name, moment):
    arguments = arguments_of(name, made, request, tmp_path / "out")
    process = begin(arguments, 1, COMMAND_ANNOUNCES="1")
    assert process.stdout is not None
    assert process.stdout.readline() == "imports\n"
    time.sleep(moment)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert not left(process)
    if process.returncode != 0:  # it had not ended by itself
        assert errors.endswith(INTERRUPTED)
        assert process.returncode == 130
        assert errors.count("multimae-eo: error: ") == 1


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


def test_the_parent_of_a_pools_workers_is_not_that_of_others():
    """Programs that are started beside a pool, or by its workers, have workers of their own."""
    with WorkerPool(1, initializer=nothing) as pool:
        assert pool.submit(os.getenv, interrupts.PARENT).result() is None
    assert interrupts.PARENT not in os.environ
    program = "import os, multimae_eo; print(os.getenv('MULTIMAE_EO_PARENT'))"
    started = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, interrupts.PARENT: "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert started.stdout == "None\n"


def test_interrupts_are_noted_and_raised():
    before = signal.getsignal(signal.SIGINT)
    with noted_interrupts() as received:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before
