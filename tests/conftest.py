"""Shared fixtures: small batches of made-up modalities."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# One thread per test process: xdist's workers on the same cores would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

from multimae_eo.catalog import make_class_map, make_modality
from multimae_eo.modality import ModalitySet, Task
from multimae_eo.network.config import DecoderConfig, EncoderConfig, InputConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sample import Calibration, Sample
from multimae_eo.statistics import Statistics
from tests.support.made_once import longest_first, made_once, mark_slow, write_data_once
from tests.support.paths import DATA

SIZE = 16
# Where the files of examples/ look for their data.
os.environ["MULTIMAE_EO_DATA"] = str(DATA)


def pytest_configure(config: pytest.Config) -> None:
    write_data_once(DATA)


@dataclass(frozen=True)
class Tour:
    """A small quickstart that was run once; tests leave it as it is."""

    out: Path
    report: Path
    chips: int
    epochs: int


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    longest_first(items, config.rootpath)
    mark_slow(items)


@pytest.fixture(scope="session")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Tour:
    from multimae_eo.quickstart import quickstart

    chips, epochs = 140, 24
    out = made_once(
        tmp_path_factory, "tour", lambda out: quickstart(out, chips=chips, epochs=epochs)
    )
    return Tour(out=out, report=out / "report.html", chips=chips, epochs=epochs)


@pytest.fixture(scope="session", autouse=True)
def float32() -> Iterator[None]:
    """Numbers in tests are those of float32: ``auto`` is that here, whatever the machine."""
    from multimae_eo import runtime

    with pytest.MonkeyPatch.context() as patch:
        support = runtime.Bfloat16Support(native=False, reason="tests compute in float32")
        patch.setattr(runtime, "native_bfloat16", lambda kind: support)
        yield


@pytest.fixture(scope="session")
def modalities() -> ModalitySet:
    """Optical with product levels, elevation, and a class map."""
    return ModalitySet(
        [
            make_modality("rgb", sensor_name="sentinel2", bands=("B4", "B3", "B2")),
            make_modality("elevation", sensor_name="dem", bands=("elevation",)),
            make_class_map("landcover", class_map_name="esa_worldcover"),
        ]
    )


@pytest.fixture(scope="session")
def make_sample(modalities: ModalitySet) -> Callable[..., Sample]:
    def make(seed: int, *, names: tuple[str, ...] | None = None, size: int = SIZE) -> Sample:
        rng = np.random.default_rng(seed)
        pixels: dict[str, np.ndarray] = {
            "rgb": rng.integers(1, 4000, (3, size, size)).astype(np.uint16),
            "elevation": rng.integers(-20, 900, (1, size, size)).astype(np.int16),
            "landcover": rng.choice([10, 30, 50, 80], (1, size, size)).astype(np.uint8),
        }
        kept = {n: p for n, p in pixels.items() if names is None or n in names}
        level = "l1c" if seed % 2 else "l2a"
        calibration = {"rgb": Calibration(scale=1e-4, level=level)} if "rgb" in kept else {}
        return Sample(key=f"chip-{seed}", pixels=kept, calibration=calibration, label=seed % 3)

    return make


@pytest.fixture(scope="session")
def statistics(modalities: ModalitySet, make_sample: Callable[..., Sample]) -> Statistics:
    found = Statistics(modalities)
    for seed in range(8):
        found.update(make_sample(seed))
    return found


@pytest.fixture
def make_model(modalities: ModalitySet, statistics: Statistics) -> Callable[..., MultiMAE]:
    def make(**changes: object) -> MultiMAE:
        import torch

        torch.manual_seed(0)
        settings: dict[str, object] = {
            "encoder": EncoderConfig(width=32, depth=2, heads=2),
            "decoder": DecoderConfig(width=16, depth=1, heads=2),
            "inputs": {
                "rgb": InputConfig(size=SIZE, patch=4),
                "elevation": InputConfig(size=SIZE, patch=4),
                "landcover": InputConfig(size=SIZE, patch=2, stride=2),
            },
        }
        config = ModelConfig(**{**settings, **changes})  # type: ignore[arg-type]
        tasks = [
            Task(name="rgb", modality="rgb"),
            Task(name="elevation", modality="elevation", loss="l1"),
            Task(name="landcover", modality="landcover", loss="cross_entropy"),
            Task(name="norm_rgb", modality="rgb", patch_normalise=True),
        ]
        return MultiMAE(modalities, tasks, config, statistics)

    return make


@dataclass(frozen=True)
class Made:
    """A small world, its store, and a model pre-trained on it for an epoch."""

    folder: Path
    small = (
        "--modalities=[rgb, elevation, landcover]",
        "--model.encoder={width: 16, depth: 1, heads: 2}",
        "--model.decoder={width: 8, depth: 1, heads: 2}",
        "--data.chip=32",
        "--data.batch_size=4",
        "--masking.num_visible_tokens=8",
        "--run.epochs=1",
    )
    """What makes any recipe one of a second, on this world."""

    def __truediv__(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    pytest.importorskip("rasterio", reason="its chips are GeoTIFFs")
    from multimae_eo.cli import main
    from multimae_eo.sources.synthetic import write_synthetic_data

    folder = tmp_path_factory.mktemp("made")
    write_synthetic_data(folder / "world", chips=20, size=32, scene=192)
    here = Made(folder)
    assert main(["prepare", here / "world/dataset.yaml", "--out", here / "store"]) == 0
    run = ["pretrain", "--recipe", "quickstart", "--data", here / "store", "--out", here / "run"]
    assert main([*run, *here.small]) == 0
    return here


@pytest.fixture(scope="session")
def fine(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of ``made``, fine-tuned for an epoch to classes."""
    from multimae_eo.cli import main

    out = tmp_path_factory.mktemp("fine") / "run"
    arguments = ["finetune", "--model", made / "run/model", "--data", made / "store", "--task",
                 "classification", "--inputs", "rgb,elevation", "--out", str(out),
                 "--run.epochs=1", "--data.batch_size=8", "--run.accelerator=cpu"]  # fmt: skip
    assert main(arguments) == 0
    return out / "model"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line here; (exit code, stdout, stderr)."""

    from multimae_eo.cli import main

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def refused(run: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Runs the command line to a user's error: exit code 1, nothing on stdout, one line; which."""

    def call(*arguments: str) -> str:
        code, out, err = run(*arguments)
        assert (code, out) == (1, "")
        assert "Traceback" not in err
        told = [line for line in err.splitlines() if line.startswith("multimae-eo: error: ")]
        assert len(told) == 1
        assert err.endswith(told[0] + "\n"), "it is the last thing said, after any progress"
        return told[0]

    return call
