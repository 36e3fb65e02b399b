"""Atomic writes, the lock of an output, and what ended runs leave."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from multimae_eo import files
from multimae_eo.errors import FormatError, MultiMAEError, OutputError
from multimae_eo.files import (
    LOCK,
    LockHolder,
    output_lock,
    reading,
    replacing,
    single_writer,
    temporary_path,
    write_file,
)
from tests.support.writers import WRITERS

ENDED = 2**31 - 2
"""The number of no process."""


def other_process() -> LockHolder:
    """A process that runs: the one that started the tests."""
    return replace(LockHolder.current(), pid=os.getppid(), birth="")


def plant(lock: Path, holder: LockHolder) -> None:
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(json.dumps(asdict(holder)))


def test_a_file_is_replaced_as_one(tmp_path):
    path = write_file(tmp_path / "deep" / "a.txt", b"old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert path.read_bytes() == b"old"
    assert write_file(path, b"new").read_bytes() == b"new"
    assert os.listdir(path.parent) == ["a.txt"]


def test_temporary_names_differ_and_fit():
    path = Path("x" * 250 + ".tif")
    names = {temporary_path(path).name for _ in range(20)}
    assert len(names) == 20
    assert all(len(n) < 255 and f".{os.getpid()}-" in n for n in names)
    assert all(files.is_temporary(Path(n)) for n in names)
    assert files.is_temporary(Path("00000.npy.123.tmp"))
    assert not any(files.is_temporary(Path(n)) for n in ("a.tmp", ".a.part", "map.tif", ".lock"))


@pytest.mark.parametrize("folder", [True, False])
def test_a_second_writer_is_told_who_writes_and_since_when(tmp_path, folder):
    out = tmp_path / "out"
    lock = out / LOCK if folder else tmp_path / f".out{LOCK}"
    holder = other_process()
    plant(lock, holder)
    with pytest.raises(OutputError) as caught, output_lock(out, folder=folder):
        pass
    message = str(caught.value)
    assert f"process {holder.pid} on {holder.host}" in message
    assert f"since {holder.started}" in message
    assert "\n" not in message
    assert lock.exists(), "it is the other's"


def test_a_lock_is_gone_afterwards_and_its_folder_where_nothing_was_written(tmp_path):
    with output_lock(tmp_path / "a"):
        assert (tmp_path / "a" / LOCK).is_file()
        (tmp_path / "a/result").write_bytes(b"")
    assert os.listdir(tmp_path / "a") == ["result"]
    with pytest.raises(ZeroDivisionError), output_lock(tmp_path / "b"):
        raise ZeroDivisionError
    assert not (tmp_path / "b").exists()


def test_a_thread_may_lock_again_and_another_may_not(tmp_path):
    seen: list[Exception] = []

    def second() -> None:
        try:
            with output_lock(tmp_path):
                pass
        except OutputError as error:
            seen.append(error)

    with output_lock(tmp_path), output_lock(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert (tmp_path / LOCK).exists()
    assert len(seen) == 1
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("reused", [False, True])
def test_the_lock_of_an_ended_process_is_taken_over(tmp_path, caplog, reused):
    ended = replace(LockHolder.current(), pid=ENDED, birth="1")
    if reused:
        if not Path("/proc/self/stat").exists():
            pytest.skip("processes' starts are not known here")
        ended = replace(ended, pid=os.getppid())
    plant(tmp_path / LOCK, ended)
    with caplog.at_level(logging.WARNING), output_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert f"taking over from process {ended.pid}" in caplog.text


def test_a_lock_of_another_machine_holds_while_it_is_touched(tmp_path):
    plant(tmp_path / LOCK, replace(LockHolder.current(), host="elsewhere", pid=ENDED))
    with pytest.raises(OutputError, match="on elsewhere"), output_lock(tmp_path):
        pass
    long_ago = time.time() - 3600
    os.utime(tmp_path / LOCK, (long_ago, long_ago))
    with output_lock(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"[" * 4000])
def test_a_damaged_lock_counts_until_it_is_old(tmp_path, content):
    lock = tmp_path / LOCK
    lock.write_bytes(content)
    with pytest.raises(OutputError, match="just begun"), output_lock(tmp_path):
        pass
    os.utime(lock, (0, 0))
    with output_lock(tmp_path):
        pass


def test_leftovers_of_ended_processes_are_swept(tmp_path):
    out = tmp_path / "run"
    (out / "sub/other").mkdir(parents=True)
    plant(out / "sub/other" / LOCK, other_process())
    gone = [
        out / f".a.npy.{ENDED}-0123abcd.part",
        out / "sub" / f".b.{ENDED}-0123abcd.part" / "x.rows",
        out / "sub/00000.npy.17.tmp",
        out / "last.ckpt.tmp",
    ]
    kept = [
        out / f".c.{os.getppid()}-0123abcd.part",
        out / "sub/other" / f".d.{ENDED}-0123abcd.part",
        out / "notes.tmp",
        tmp_path / f".e.{ENDED}-0123abcd.part",
    ]
    for path in gone + kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with output_lock(out):
        pass
    assert not [p for p in gone if p.exists()]
    assert not [p for p in kept if not p.exists()]


def test_leftovers_of_a_process_that_was_not_waited_for_are_swept(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()  # ends when the process does, which stays a zombie until it is waited for
    while files._birth(child.pid):
        time.sleep(0.01)
    leftover = tmp_path / f".a.npy.{child.pid}-0123abcd.part"
    leftover.write_text("half")
    with output_lock(tmp_path):
        assert not leftover.exists()
    child.wait()


def test_leftovers_of_workers_that_end_late_are_swept_at_the_end(tmp_path):
    """Workers of a killed run may still end while the next run has begun."""
    with output_lock(tmp_path):
        leftover = tmp_path / f".a.npy.{ENDED}-0123abcd.part"
        leftover.write_text("half")
    assert not leftover.exists()


def test_leftovers_of_a_file_are_swept_and_its_neighbours_kept(tmp_path):
    mine, other = (tmp_path / f".{n}.{ENDED}-0123abcd.part" for n in ("map.tif", "map2.tif"))
    mine.mkdir()
    other.mkdir()
    with output_lock(tmp_path / "map.tif", folder=False):
        pass
    assert os.listdir(tmp_path) == [other.name]


def test_of_processes_that_train_together_the_first_locks(tmp_path, monkeypatch):
    plant(tmp_path / LOCK, other_process())
    monkeypatch.setenv("LOCAL_RANK", "1")
    with output_lock(tmp_path):
        pass
    assert (tmp_path / LOCK).exists()


def test_a_decorated_function_holds_the_lock_of_its_argument(tmp_path):
    @single_writer()
    def write(number: int, out: Path | None = None) -> bool:
        return out is not None and (out / LOCK).exists()

    assert write(1, tmp_path)
    assert write(1, out=tmp_path)
    assert not write(1)


def test_where_nothing_can_be_written_it_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(OutputError, match="cannot be written: ") as caught,
        output_lock(tmp_path / "file"),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_door_makes_one_line_of_whatever_is_raised():
    expected = r"^a\.h5: cannot be read: 'x' is missing"
    with pytest.raises(FormatError, match=expected), reading("a.h5", FormatError):
        raise KeyError("x")
    expected = r"^a: cannot be read: not good; rest"
    with pytest.raises(FormatError, match=expected) as caught, reading("a", FormatError):
        raise RuntimeError("not good\nsecond")
    assert "\n" not in str(caught.value)
    with pytest.raises(OutputError), reading("a", FormatError):
        raise OutputError("as it is")
    assert issubclass(FormatError, MultiMAEError)


# convert refuses a folder that is there and no model's, locked or not.
@pytest.mark.parametrize("name", [n for n in WRITERS if n != "convert"])
def test_two_commands_on_one_output(made, fine, refused, tmp_path, name):
    writer = WRITERS[name]
    out = tmp_path / f"out{writer.suffix}"
    plant(out / LOCK if writer.folder else tmp_path / f".{out.name}{LOCK}", other_process())
    before = sorted(tmp_path.rglob("*"))
    message = refused(*writer.command(made, fine, tmp_path / "out"))
    assert f"process {os.getppid()} on" in message
    assert "has been writing to it since" in message
    assert sorted(tmp_path.rglob("*")) == before
