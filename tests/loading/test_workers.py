"""Worker processes are used only where they can hand their batches over."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from multimae_eo.loading import workers
from multimae_eo.loading.workers import usable_workers

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/shm")


@pytest.fixture(autouse=True)
def _log_again():
    workers._log_no_workers.cache_clear()
    yield
    workers._log_no_workers.cache_clear()


def statvfs(monkeypatch, free: int) -> None:
    state = SimpleNamespace(f_bavail=free // 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda folder: state)


def test_workers_need_shared_memory(tmp_path, monkeypatch, caplog):
    statvfs(monkeypatch, 64 * 2**20)
    assert usable_workers(2, tmp_path) == 2
    assert not caplog.records
    statvfs(monkeypatch, 64 * 2**10)
    assert usable_workers(2, tmp_path) == usable_workers(4, tmp_path) == 0
    assert len(caplog.records) == 1, "logged once"
    assert "0.1 MB free" in caplog.text
    assert "--shm-size" in caplog.text


def test_a_folder_that_lacks_or_is_read_only_is_named(tmp_path, monkeypatch, caplog):
    assert usable_workers(2, tmp_path / "none") == 0
    assert "none: No such file" in caplog.text
    statvfs(monkeypatch, 64 * 2**20)
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    assert usable_workers(2, tmp_path) == 0
    assert "cannot be written to" in caplog.text


def test_without_workers_nothing_is_asked(tmp_path):
    assert usable_workers(0, tmp_path / "none") == 0
