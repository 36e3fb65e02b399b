from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multimae_eo import catalog
from multimae_eo.errors import ConfigError, DataError, OutputError
from multimae_eo.inference.reconstruct_chips import ReconstructOptions, file_name, reconstruct_chips
from multimae_eo.metrics.reconstruction_scores import truth_of
from multimae_eo.modality import ModalitySet, Task
from multimae_eo.reports.views import chip_views
from multimae_eo.sample import Batch, Sample
from multimae_eo.sources.base import Source
from tests.support.scene_files import StandIn

RADAR = catalog.modality("sentinel1")
ELEVATION = catalog.modality("elevation")
LANDCOVER = catalog.make_class_map("landcover", class_map_name="esa_worldcover")
SET = ModalitySet([RADAR, ELEVATION, LANDCOVER])
TASKS = (
    Task(name="sentinel1", modality="sentinel1"),
    Task(name="sentinel1_normalised", modality="sentinel1", patch_normalise=True),
    Task(name="elevation", modality="elevation", loss="l1"),
    Task(name="landcover", modality="landcover", loss="cross_entropy"),
)


class Memory(Source):
    """Chips held in memory."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.name, self.modalities, self.samples = "memory", SET, list(samples)
        self.keys = [s.key for s in samples]
        self.split_of = ["test" if i % 2 else "val" for i in range(len(samples))]

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        sample = self.samples[index]
        return sample if names is None else sample.select(names)


class Oracle(StandIn):
    """Says the truth plus two metres; remembers what it was asked."""

    def __init__(self, source: Source) -> None:
        self.modalities, self.tasks, self.statistics = SET, TASKS, source.statistics()
        self.asked: list[tuple[Batch, list[str], list[str]]] = []

    def reconstruct(
        self,
        batch: Batch,
        inputs: Sequence[str] | None = None,
        *,
        outputs: Sequence[str] | None = None,
        samples: int = 8,
        seed: int = 0,
        uncertainty: bool = True,
    ) -> dict[str, Any]:
        self.asked.append((batch, list(inputs or ()), list(outputs or ())))
        found = {}
        for name in outputs or ():
            truth = truth_of(batch, name)
            if truth is None:
                continue
            if SET[name].categorical:
                mean = np.moveaxis(np.eye(11)[truth.values[:, 0]], -1, 1)
            else:
                mean = truth.values + 2.0
            spread = torch.full((len(batch), 1, *mean.shape[-2:]), 0.5)
            found[name] = SimpleNamespace(mean=torch.from_numpy(mean).float(), std=spread)
        return found


def chip(key: str, side: int = 16, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    return Sample(
        key=key,
        pixels={
            "sentinel1": rng.normal(-12, 4, (2, side, side)).astype(np.float32),
            "elevation": rng.integers(100, 300, (1, side, side)).astype(np.int16),
            "landcover": rng.choice([10, 30, 80], (1, side, side)).astype(np.uint8),
        },
    )


@pytest.fixture(scope="module")
def source() -> Memory:
    unseen = chip("unseen", seed=9)
    unseen = Sample(
        key="unseen", pixels=unseen.pixels, valid={"sentinel1": np.zeros((1, 16, 16), bool)}
    )
    return Memory(
        [
            chip("a/1"),
            chip("b"),
            chip("c").select(["elevation"]),
            unseen,
            chip("big", 32),
            chip("e"),
        ]
    )


def test_a_folder_is_written_and_the_numbers_are_right(source: Memory, tmp_path: Path) -> None:
    model = Oracle(source)
    options = ReconstructOptions(limit=2, arrays=True, batch_size=3)
    result = reconstruct_chips(model, source, inputs=["sentinel1"], out=tmp_path, options=options)
    assert (result["chips"], result["skipped"]) == (4, 2)
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert set(scores["masked"]) == {"elevation", "landcover"}
    assert set(scores["given"]) == {"sentinel1"}
    elevation = scores["masked"]["elevation"]
    assert elevation["rmse"] == pytest.approx(2.0)
    assert elevation["mae"] == pytest.approx(2.0)
    assert elevation["pixels"] == 3 * 16 * 16 + 32 * 32
    assert elevation["r2"] > 0.99
    assert scores["masked"]["landcover"]["miou"] == 1.0
    assert [len(b) for b, _, _ in model.asked] == [2, 1, 1]  # sizes never mix in a batch
    assert all(i == ["sentinel1"] for _, i, _ in model.asked)
    assert {Path(p).name for p in result["pictures"]} == {
        "reconstruction.png",
        f"{file_name('a/1')}.png",
        "b.png",
    }
    with np.load(tmp_path / "arrays" / "b.elevation.npz", allow_pickle=False) as arrays:
        assert arrays["mean"].dtype == np.float32
        truth = source.samples[1].pixels["elevation"]
        assert np.abs(arrays["mean"] - truth - 2).max() < 1e-4
        assert arrays["spread"].shape == (1, 16, 16)
    assert len(list((tmp_path / "arrays").iterdir())) == 4 * 3
    page = (tmp_path / "index.html").read_text()
    assert "Masked modalities" in page
    assert page.count("data:image/png") == 3
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".part")]


def test_keys_and_splits_choose_the_chips(source: Memory, tmp_path: Path) -> None:
    options = ReconstructOptions(limit=0)
    model = Oracle(source)

    def chosen(**which: Any) -> list[str]:
        model.asked.clear()
        reconstruct_chips(
            model, source, inputs=["sentinel1"], out=tmp_path, options=options, **which
        )
        return [k for batch, _, _ in model.asked for k in batch.keys]

    assert chosen(keys=["e", "b"]) == ["e", "b"]
    assert chosen(split="val") == ["a/1", "big"]
    assert not list(tmp_path.glob("*.png"))


def test_mistakes_are_told_before_anything_is_written(source: Memory, tmp_path: Path) -> None:
    def attempt(inputs: list[str], **fields: Any) -> None:
        reconstruct_chips(
            Oracle(source),
            source,
            inputs=inputs,
            out=tmp_path / "out",
            options=ReconstructOptions(**fields),
        )

    with pytest.raises(ConfigError, match="did you mean 'elevation'"):
        attempt(["elevaton"])
    with pytest.raises(ConfigError, match="at least one"):
        attempt([])
    with pytest.raises(ConfigError, match="did you mean 'landcover'"):
        attempt(["elevation"], outputs=("land_cover",))
    with pytest.raises(ConfigError, match="batch_size: must be ≥ 1, got 0"):
        attempt(["elevation"], batch_size=0)
    assert not (tmp_path / "out").exists()


def test_no_chip_with_any_input_is_an_error(source: Memory, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 2 chips has any of the inputs sentinel1"):
        reconstruct_chips(
            Oracle(source), source, inputs=["sentinel1"], out=tmp_path, keys=["c", "unseen"]
        )


def test_a_path_that_is_taken_is_an_output_error(source: Memory, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("taken")
    with pytest.raises(OutputError, match="cannot be written"):
        reconstruct_chips(Oracle(source), source, inputs=["sentinel1"], out=tmp_path / "out")


@given(st.lists(st.text(min_size=1, max_size=120), min_size=2, max_size=6, unique=True))
def test_file_names_are_safe_and_distinct(keys: list[str]) -> None:
    names = [file_name(k) for k in keys]
    assert len({n.lower() for n in names}) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", n) for n in names)
    assert not {"index", "reconstruction"} & set(names)


def test_views_hold_physical_truth_and_only_what_a_chip_has(source: Memory) -> None:
    batch = source.batch(["b", "c"])
    said = Oracle(source).reconstruct(batch, ["sentinel1"], outputs=["elevation", "landcover"])
    first, second = chip_views(batch, said, inputs=["sentinel1"])
    assert set(first.truth) == set(SET)
    assert set(second.truth) == {"elevation"}
    assert first.error("elevation") == pytest.approx(np.full((16, 16), 2.0), abs=1e-3)
    assert first.predicted("landcover").shape == (1, 16, 16)
    assert (first.error("landcover") == 0).all()


def test_the_real_model_fits(source: Memory, tmp_path: Path) -> None:
    multimae = pytest.importorskip("multimae_eo.network.multimae")
    config = pytest.importorskip("multimae_eo.network.config")
    inputs = {
        "sentinel1": config.InputConfig(size=16, patch=8),
        "elevation": config.InputConfig(size=16, patch=8),
        "landcover": config.InputConfig(size=16, patch=4, stride=2),
    }
    sizes = config.ModelConfig(
        encoder=config.EncoderConfig(width=32, depth=1, heads=2),
        decoder=config.DecoderConfig(width=16, depth=1, heads=2),
        inputs=inputs,
    )
    torch.manual_seed(0)
    model = multimae.MultiMAE(SET, TASKS, sizes, source.statistics())
    options = ReconstructOptions(limit=1, samples=2, batch_size=2)
    result = reconstruct_chips(
        model, source, inputs=["elevation"], out=tmp_path, split="val", options=options
    )
    assert result["chips"] == 3
    assert set(result["scores"]["masked"]) == {"sentinel1", "landcover"}
    assert set(result["scores"]["given"]) == {"elevation"}
    assert np.isfinite(result["scores"]["masked"]["sentinel1"]["rmse"])
