"""A small model, its scene and its chips, behind the demo's application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("rasterio")

from fastapi.testclient import TestClient

from multimae_eo import MultiMAE, open_source
from multimae_eo.demo.guard import Limits
from multimae_eo.demo.server import create_app
from multimae_eo.demo.services import DemoData
from multimae_eo.scenes.scene_inputs import open_for
from multimae_eo.sources.scene.scene import Scene

LIMITS = Limits(hosts=("testserver", "127.0.0.1", "localhost"), rate=1e6, burst=10**6)


@pytest.fixture(scope="session")
def model(made) -> MultiMAE:
    return MultiMAE.from_pretrained(made.folder / "run/model")


@pytest.fixture(scope="session")
def scene(made, model) -> Scene:
    return open_for(model, made.folder / "world/scene.yaml")


@pytest.fixture(scope="session")
def chips(made):
    return open_source(made.folder / "store")


@pytest.fixture(scope="session")
def on_scene(made, model, scene) -> Iterator[TestClient]:
    shown = DemoData(scene=scene, runs=made.folder / "run")
    with TestClient(create_app(model, shown, limits=LIMITS)) as client:
        yield client


@pytest.fixture(scope="session")
def on_chips(model, chips) -> Iterator[TestClient]:
    with TestClient(create_app(model, DemoData(source=chips), limits=LIMITS)) as client:
        yield client


@pytest.fixture(scope="session")
def finished() -> Callable[[TestClient, str, str], dict[str, Any]]:
    """Begins a job and waits for it."""
    import time

    def wait(client: TestClient, begin: str, state: str) -> dict[str, Any]:
        result = client.post(begin).json()
        for _ in range(600):
            if result["state"] != "running":
                break
            time.sleep(0.05)
            result = client.get(state).json()
        assert result["state"] == "done", result
        return result

    return wait


@pytest.fixture
def folder(made) -> Path:
    return made.folder
