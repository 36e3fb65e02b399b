"""Folders that the processes of a parallel run share, and the order that keeps all of them busy."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

LONGEST_FIRST = (
    "tests/test_quickstart.py",
    "tests/test_docs.py",
    "tests/evaluation/",
    "tests/test_notebooks.py",
    "tests/train/",
    "tests/export/",
    "tests/benchmarks/",
    "tests/demo/",
    "tests/properties/",
    "tests/scenes/",
    "tests/fuzz/",
)
"""Where the long tests are. xdist gives each process a run of neighbouring tests, and one that has
finished takes from the end of another's: what comes first is never left for the end."""


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name``, by ``make(folder)`` in the process that comes first; others wait.

    It is shared: tests leave it as it is.
    """
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / name, shared / f"{name}.done"
    with FileLock(shared / f"{name}.lock"):
        if not done.is_file():
            make(folder)
            done.touch()
    return folder


def write_data_once(folder: Path) -> None:
    """Write the examples' data where they are neither real nor there from an earlier run.

    Without a raster library there are none, and their tests skip.
    """
    if folder.is_dir() or importlib.util.find_spec("rasterio") is None:
        return
    from tests.support.example_data import write_example_data

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            write_example_data(part)
            part.rename(folder)


def longest_first(items: list[pytest.Item], root: Path) -> None:
    """Order tests by ``LONGEST_FIRST``, otherwise as they are."""

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(root).as_posix()
        return next((i for i, p in enumerate(LONGEST_FIRST) if path.startswith(p)), 99)

    items.sort(key=rank)


def mark_slow(items: list[pytest.Item]) -> None:
    """Mark ``slow`` every test that needs a quickstart to have run."""
    for item in items:
        if "tour" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
