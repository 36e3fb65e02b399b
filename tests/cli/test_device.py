"""Every subcommand that runs a model moves batches to --device and computes in --precision.

No accelerator is needed: batches record where they are moved, and linear layers the autocast dtype.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from multimae_eo.cli.main import SUBCOMMANDS
from multimae_eo.sample import Batch
from tests.support.marks import mostly_slow

MODEL_COMMANDS = (
    "pretrain", "finetune", "evaluate", "probe", "study", "benchmark", "predict", "reconstruct",
    "embed", "quickstart", "demo",
)  # fmt: skip


@pytest.mark.parametrize("name", MODEL_COMMANDS)
def test_subcommands_that_run_a_model_take_device_and_precision(name):
    fields = {f.name for f in dataclasses.fields(SUBCOMMANDS[name])}
    assert {"device", "precision"} <= fields


class Recorder:
    """Devices that batches were moved to, and autocast dtypes of linear layers (None: without)."""

    def __init__(self) -> None:
        self.devices: list[str] = []
        self.dtypes: set[torch.dtype | None] = set()


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    record = Recorder()
    move, forward = Batch.to, torch.nn.Linear.forward

    def moving(self: Batch, device: Any, *arguments: Any, **options: Any) -> Batch:
        record.devices.append(str(device))
        return move(self, device, *arguments, **options)

    def computing(self: torch.nn.Linear, values: torch.Tensor) -> torch.Tensor:
        on = torch.is_autocast_enabled("cpu")
        record.dtypes.add(torch.get_autocast_dtype("cpu") if on else None)
        return forward(self, values)

    monkeypatch.setattr(Batch, "to", moving)
    monkeypatch.setattr(torch.nn.Linear, "forward", computing)
    return record


@pytest.fixture(scope="module")
def tuned(made):
    from multimae_eo.cli import main

    arguments = ["finetune", "--model", made / "run/model", "--data", made / "store"]
    arguments += ["--task", "classification", "--inputs", "rgb,elevation", "--out", made / "device"]
    assert main([*arguments, "--run.epochs=1", "--device", "cpu"]) == 0
    return made


FROZEN = "--data {0}/store --inputs rgb --methods knn --features mean --out {1}"
RUNS = {
    "evaluate": "--model {0}/device/model --data {0}/store",
    "evaluate --drop": "--model {0}/device/model --data {0}/store --drop all",
    "probe": "--model {0}/run/model " + FROZEN,
    "study": "--model {0}/run/model --task classification " + FROZEN,
    "predict": "--model {0}/device/model --scene {0}/world/scene.yaml --inputs rgb --out {1}.tif",
    "reconstruct": "--model {0}/run/model --data {0}/store --inputs rgb --limit 0 --draws 1 "
    "--out {1}",
    "reconstruct --scene": "--model {0}/run/model --scene {0}/world/scene.yaml --inputs rgb "
    "--outputs elevation --out {1}",
    "embed": "--model {0}/run/model --data {0}/store --inputs rgb --out {1}.parquet",
    "embed --scene": "--model {0}/run/model --scene {0}/world/scene.yaml --inputs rgb "
    "--out {1}.parquet",
}


@pytest.mark.parametrize("name", mostly_slow(RUNS, fast=["probe", "predict", "embed"]))
def test_batches_are_moved_and_the_precision_is_used(tuned, run, recorder, tmp_path, name):
    arguments = RUNS[name].format(tuned.folder, tmp_path / "out").split()
    code, _, err = run(name.split()[0], *arguments, "--device", "cpu", "--precision", "bf16-mixed")
    assert code == 0, err
    assert set(recorder.devices) == {"cpu"}
    assert recorder.dtypes == {torch.bfloat16}


@pytest.mark.parametrize("name", RUNS)
def test_a_device_that_is_not_there_is_an_error(tuned, refused, tmp_path, name):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    arguments = RUNS[name].format(tuned.folder, tmp_path / "out").split()
    message = refused(name.split()[0], *arguments, "--device", "cuda:7")
    assert "--device cuda:7" in message
    assert not list(tmp_path.iterdir())


def test_the_demo_computes_on_its_device(tuned, recorder, tmp_path):
    """Reconstruction, features and maps of a scene."""
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from multimae_eo import MultiMAE
    from multimae_eo.demo.guard import Limits
    from multimae_eo.demo.server import create_app
    from multimae_eo.demo.services import DemoData
    from multimae_eo.sources.scene.scene import Scene

    model = MultiMAE.from_pretrained(tuned.folder / "run/model")
    scene = Scene(tuned.folder / "world/scene.yaml")
    data = DemoData(scene=scene, device="cpu", precision="bf16-mixed")
    limits = Limits(hosts=("testserver",))
    with TestClient(create_app(model, data, limits=limits)) as client:
        body = {"location": 0, "inputs": ["rgb", "elevation"], "visible": 8}
        response = client.post("/api/reconstruct", json=body)
        assert response.status_code == 200, response.text
    assert set(recorder.devices) == {"cpu"}
    assert recorder.dtypes == {torch.bfloat16}
