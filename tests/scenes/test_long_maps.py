"""Maps that are interrupted, shared by processes or threads, and held in little memory."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from multimae_eo.errors import OutputError
from multimae_eo.files import LOCK
from multimae_eo.scenes.blend import BlendedRows, WindowBlender
from multimae_eo.scenes.blocks import BlockWriter
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.scenes.reconstruct import reconstruct_scene
from multimae_eo.scenes.threads import OperationThreads, WriteQueue, prefetch
from multimae_eo.sources.scene.scene import Scene

rasterio = pytest.importorskip("rasterio")

from tests.support.killed_map import KILLED_AFTER_ONE_BLOCK  # noqa: E402
from tests.support.scene_files import CRS, Fake, grid, optical_scene  # noqa: E402


def test_reading_ahead_keeps_the_order_and_its_bound():
    running, most, lock = 0, 0, threading.Lock()

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (number % 3))
        with lock:
            running -= 1
        return number

    asked = iter(range(40))
    for number, done in enumerate(prefetch(work, asked, lambda i: i, threads=3)):
        assert done == number
    assert 1 < most <= 3
    asked = iter(range(40))
    next(prefetch(work, asked, lambda i: i, threads=3))
    assert next(asked) <= 6, "no more is taken than may wait"


def test_what_goes_wrong_behind_is_raised():
    def fail() -> None:
        raise ValueError("behind")

    with pytest.raises(ValueError, match="behind"), WriteQueue() as queue:
        queue.submit(fail)
    order: list[int] = []
    with WriteQueue() as queue:
        for i in range(50):
            queue.submit(order.append, i)
    assert order == list(range(50))


def test_what_is_submitted_is_done_unless_it_follows_a_failure():
    done: list[int] = []

    def fail() -> None:
        raise ValueError("behind")

    def submit(*work: Callable[..., None], error: type[Exception] | None = None) -> None:
        with WriteQueue() as queue:
            queue.submit(time.sleep, 0.1)
            for number, part in enumerate(work):
                queue.submit(part, *([number] if part == done.append else []))
            if error is not None:
                raise error

    with pytest.raises(KeyError):
        submit(done.append, done.append, error=KeyError)
    assert done == [0, 1], "the caller's failure is not that of what it submitted"
    with pytest.raises(ValueError, match="behind"):
        submit(fail, done.clear)
    assert done, "what follows a failure would be built on it"


def test_a_block_whose_rows_were_not_written_gets_no_name(tall, tmp_path, monkeypatch):
    """Its end is queued behind the rows that failed."""
    written: list[int] = []

    def failing(self: BlockWriter, rows: BlendedRows) -> None:
        written.append(rows.top)
        if len(written) == 2:
            time.sleep(0.3)  # while the end of the block is queued
            raise OutputError("no space")

    monkeypatch.setattr(BlockWriter, "write", failing)
    with pytest.raises(OutputError, match="no space"):
        reconstruct_scene(
            Fake(), Scene(tall), inputs=["rgb"], outputs=["elevation"], out=tmp_path / "out",
            options=SceneOptions(model_hash="one"),
        )  # fmt: skip
    assert not list((tmp_path / "out").rglob("block-*"))


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_maps_that_overlap_in_time_leave_the_threads_as_they_were(first_to_end):
    """As those of a worker of Dask with several threads."""
    operation_threads, before = OperationThreads(), torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        maps = [operation_threads.divided(3), operation_threads.divided(4)]
        assert [m.__enter__() for m in maps] == [3, 4], "of all threads, not of what is left"
        maps[first_to_end].__exit__(None, None, None)
        assert torch.get_num_threads() < 6
        maps[1 - first_to_end].__exit__(None, None, None)
        assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_threads_of_the_model_change_no_byte(make_model, tmp_path, precision):
    """Each predicts batches of its own, without gradients and in the precision that was chosen."""
    scene = Scene(optical_scene(tmp_path, 100, 150))
    model = make_model()
    original, states = model.reconstruct, set()

    def observed(*arguments, **options):
        states.add((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        threads.add((threading.get_ident(), torch.get_num_threads()))
        return original(*arguments, **options)

    model.reconstruct = observed
    before, maps = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        threads: set[tuple[int, int]] = set()
        try:
            paths = reconstruct_scene(
                model, scene, inputs=["rgb"], out=tmp_path / str(count),
                options=SceneOptions(batch_size=2, precision=precision),
            )  # fmt: skip
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(before)
        maps.append([path.read_bytes() for path in paths])
        assert len(threads) == count
        assert {n for _, n in threads} == {1}
    assert maps[0] == maps[1]
    assert states == {(False, precision == "bf16-mixed")}
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scenes_height(tmp_path):
    """Everything NumPy and Python hold, with tall sparse rasters."""
    import rasterio

    class Ones(Fake):
        def reconstruct(self, batch, inputs=None, *, outputs=None, samples=8, seed=0, **_):
            ones = torch.ones(len(batch), 1, 16, 16)
            return {"elevation": SimpleNamespace(mean=ones, std=ones)}

    def peak(height: int) -> int:
        folder = tmp_path / str(height)
        folder.mkdir()
        path = optical_scene(folder, 4, 64)
        with rasterio.open(
            folder / "s2.tif", "w", driver="GTiff", dtype="uint16", count=3, height=height,
            width=64, crs=CRS, transform=grid(1, 1).transform, tiled=True, blockxsize=64,
            blockysize=64,
            nodata=65535, sparse_ok=True,
        ) as file:  # fmt: skip
            file.descriptions = ("B4", "B3", "B2")
        scene = Scene(path)
        tracemalloc.start()
        reconstruct_scene(
            Ones(), scene, inputs=["rgb"], outputs=["elevation"], out=folder / "out",
            options=SceneOptions(overlap=0.0),
        )  # fmt: skip
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)  # what is imported and cached
    short = peak(1_000)
    assert peak(16_000) < short + 1_000_000, "float32 of the whole would be 4 MB"


def test_the_rows_of_a_finished_block_are_freed_at_once(tall, tmp_path, monkeypatch):
    """They are the most that a map holds; the collector may not run for many blocks."""
    blenders: list[weakref.ref[WindowBlender]] = []
    most, create = 0, WindowBlender.__init__

    def created(self: WindowBlender, *arguments: Any) -> None:
        nonlocal most
        create(self, *arguments)
        blenders.append(weakref.ref(self))
        most = max(most, sum(ref() is not None for ref in blenders))

    monkeypatch.setattr(WindowBlender, "__init__", created)
    gc.disable()
    try:
        reconstruct_scene(
            Fake(), Scene(tall), inputs=["rgb"], outputs=["elevation"], out=tmp_path / "out",
            options=SceneOptions(batch_size=4),
        )  # fmt: skip
    finally:
        gc.enable()
    assert len(blenders) == 3
    assert most <= 2, "one that is finished, and the next"
    assert not [ref for ref in blenders if ref() is not None]


# Resuming, processes --------------------------------------------------------------------------


@pytest.fixture
def model_folder(make_model, tmp_path) -> Path:
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def tall(tmp_path) -> Path:
    """Three blocks of rows for a model of 16 px."""
    folder = tmp_path / "tall"
    folder.mkdir()
    return optical_scene(folder, 500, 24, hole=np.s_[100:180, :])


def arguments(model: Path, scene: Path, out: Path, *more: str) -> list[str]:
    return ["reconstruct", "--model", str(model), "--scene", str(scene), "--inputs", "rgb",
            "--outputs", "elevation,landcover", "--device", "cpu", "--precision", "32-true",
            "--out", str(out), *more]  # fmt: skip


def maps(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if p.is_file()}


@pytest.mark.slow
def test_a_killed_map_goes_on_and_equals_an_uninterrupted_one(run, model_folder, tall, tmp_path):
    out = tmp_path / "out"
    command = arguments(model_folder, tall, out)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_ONE_BLOCK, *command], env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert {p.name for p in out.iterdir()} == {".scene.partial", LOCK}
    first = out / ".scene.partial/block-00000/elevation.rows"
    stamp = first.stat().st_mtime_ns

    code, _, err = run(*command, "--overlap", "0.25")
    assert code == 1
    assert "overlap: 0.5 there, 0.25 here" in err
    assert first.stat().st_mtime_ns == stamp, "what is refused is left alone"

    assert run(*command)[0] == 0
    clean = tmp_path / "clean"
    assert run(*arguments(model_folder, tall, clean))[0] == 0
    assert maps(out) == maps(clean)
    assert set(maps(out)) == {
        "elevation.tif", "elevation.tif.png", "landcover.tif", "landcover.tif.png",
        "landcover.tif.aux.xml",
    }  # fmt: skip
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_finished_blocks_are_not_computed_again(tall, tmp_path):
    class Counting(Fake):
        rows = 0

        def reconstruct(self, batch, *a, **k):
            Counting.rows += len(batch)
            if Counting.rows > 60:
                raise KeyboardInterrupt
            return super().reconstruct(batch, *a, **k)

    def go(model: Fake, **changes: Any) -> list[Path]:
        return reconstruct_scene(
            model, Scene(tall), inputs=["rgb"], outputs=["elevation"], out=tmp_path / "out",
            options=SceneOptions(model_hash="one", **changes),
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        go(Counting())
    model = Fake()
    with pytest.raises(OutputError, match="model: 'one' there, 'two' here"):
        reconstruct_scene(
            model, Scene(tall), inputs=["rgb"], outputs=["elevation"], out=tmp_path / "out",
            options=SceneOptions(model_hash="two"),
        )  # fmt: skip
    told: list[tuple[int, int]] = []
    go(model, progress=lambda *t: told.append(t))
    windows = 62 * 2
    assert 0 < sum(model.batches) < 0.8 * windows
    assert told[0][0] > 0, "progress begins where it was"
    assert told[-1] == (500 * 24, 500 * 24)
    assert told == sorted(told)


@pytest.mark.slow
def test_processes_share_a_scene(run, model_folder, tall, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(*arguments(model_folder, tall, one))[0] == 0
    assert run(*arguments(model_folder, tall, two, "--workers", "2"))[0] == 0
    assert maps(one) == maps(two)


def test_bfloat16_is_close(run, model_folder, tall, tmp_path):
    values = []
    for precision in ("32-true", "bf16-mixed"):
        out = tmp_path / precision
        command = arguments(model_folder, tall, out, "--precision", precision, "--draws", "2")
        assert run(*command)[0] == 0
        with rasterio.open(out / "elevation.tif") as cog:
            values.append(cog.read(1))
    assert np.array_equal(*(np.isnan(v) for v in values))
    difference = np.abs(values[0] - values[1])
    assert 0 < np.nanmax(difference) < 0.05 * np.nanstd(values[0]) + 5
