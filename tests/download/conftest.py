"""A local server of files, started once, empty in each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.download_server import DownloadServer, serve_downloads


@pytest.fixture(scope="session")
def running() -> Iterator[DownloadServer]:
    with serve_downloads() as server:
        yield server


@pytest.fixture
def server(running: DownloadServer) -> DownloadServer:
    running.resources.clear()
    running.requests.clear()
    return running
