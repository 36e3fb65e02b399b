"""``prepare``, killed at any moment, continues and ends byte-identical."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multimae_eo import files
from multimae_eo.errors import FormatError
from multimae_eo.store.reader import ChipStore
from multimae_eo.store.writer import prepare
from tests.support.paths import ROOT
from tests.support.tiny_source import TinySource, files_of

PROGRAM = ROOT / "tests/support/tiny_source.py"
CHIPS, SHARD = 128, 4
ENDED = 2**31 - 2
"""The number of no process."""


def start(out: Path, *, delay: float, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(PROGRAM), str(out), str(CHIPS), str(delay), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(happened, process: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not happened() and process.poll() is None:
        assert time.monotonic() < end, "prepare did not get going"
        time.sleep(0.002)


def finished_parts(out: Path) -> set[str]:
    """Names of finished shards' records; not of the file that a killed run was writing."""
    return {p.name for p in (out / "parts").glob("[!.]*")}


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "store"
    prepare(TinySource(CHIPS, labels="map"), out, shard_chips=SHARD)
    return files_of(out)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_again_and_again_it_ends_byte_identical(tmp_path, expected, workers):
    out = tmp_path / "store"
    rng = random.Random(workers)
    finished: list[set[str]] = []
    for _ in range(10):
        before = finished_parts(out)
        process = start(out, delay=0.01, workers=workers)
        # Not while Python starts: there is nothing to interrupt yet.
        wait_for(lambda known=before: finished_parts(out) - known, process)
        time.sleep(rng.uniform(0, 0.04))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL
        assert not (out / "index.parquet").exists()
        with pytest.raises(FormatError, match="interrupted; run it again"):
            ChipStore(out)
        # Each start keeps what was finished before, and gets further.
        assert before < finished_parts(out)
        finished.append(finished_parts(out))
    assert len(finished[-1]) < CHIPS // SHARD, "the last kill should leave work to do"
    process = start(out, delay=0.0, workers=workers)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors.decode()
    assert files_of(out) == expected
    assert ChipStore(out).verify() == []


def test_a_restart_reads_no_finished_shard_again(tmp_path, expected):
    read: list[int] = []

    class Stops(TinySource):
        def read(self, index, names=None):
            if index == 10:
                raise KeyboardInterrupt
            return super().read(index, names)

    class Counts(TinySource):
        def read(self, index, names=None):
            read.append(index)
            return super().read(index, names)

    out = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        prepare(Stops(CHIPS, labels="map"), out, shard_chips=SHARD)
    prepare(Counts(CHIPS, labels="map"), out, shard_chips=SHARD)
    assert read == list(range(8, CHIPS))
    kept = {n: b for n, b in files_of(out).items() if n not in ("store.json", "checksums.json")}
    assert kept.items() <= expected.items()


class Killed(BaseException):
    """Stands for SIGKILL: no handler of errors may catch it."""


@pytest.mark.slow
def test_stopped_before_any_write_it_ends_byte_identical(tmp_path, monkeypatch):
    """Every single moment between two files, which random kills may miss."""
    source = TinySource(6, labels="map")
    whole = files_of(prepare(source, tmp_path / "whole", shard_chips=3).path)
    original = os.replace
    for last in range(40):
        left = [last]

        def replace(source: Path, target: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            original(source, target)

        out = tmp_path / f"{last}"
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", replace)
            patched.setattr(files, "remove", lambda path: None)
            patched.setattr(os, "getpid", lambda: ENDED)
            try:
                prepare(source, out, shard_chips=3)
                break
            except Killed:
                assert list(out.rglob(".*.part")), "as a kill would leave it"
        assert files_of(prepare(source, out, shard_chips=3).path) == whole
    assert last == len(whole) + 2, "every file and both part records were interrupted once"


def test_killed_between_the_index_and_the_clean_up(tmp_path, expected, monkeypatch):
    source = TinySource(CHIPS, labels="map")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *a, **k: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            prepare(source, tmp_path / "store", shard_chips=SHARD)
    assert ChipStore(tmp_path / "store").read(0).key == "chip-0"
    prepare(source, tmp_path / "store", shard_chips=SHARD)
    assert files_of(tmp_path / "store") == expected


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="lists processes by /proc")
def test_a_killed_prepare_leaves_no_process_behind(tmp_path):
    out = tmp_path / "store"

    process = start(out, delay=0.02, workers=2)
    wait_for(lambda: list(out.glob("parts/*.json")), process)
    children = [pid for pid in processes() if parent_of(pid) == process.pid]
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    end = time.monotonic() + 10

    while any(alive(pid) for pid in children) and time.monotonic() < end:
        time.sleep(0.02)
    assert not [pid for pid in children if alive(pid)]


def processes() -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]


def state(pid: int) -> list[str]:
    """A process's state and parent; nothing once it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return []


def parent_of(pid: int) -> int:
    return int((state(pid) or ["", "0"])[1])


def alive(pid: int) -> bool:
    return bool(state(pid)) and state(pid)[:1] != ["Z"]
