"""The number of threads of a run: measured as it begins, kept by a resumed run, then restored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from multimae_eo.sources.synthetic import SyntheticSource
from multimae_eo.train import threads
from multimae_eo.train.modules import PretrainModule
from multimae_eo.train.pretrain import pretrain
from multimae_eo.train.recipe import parse_recipe

RECIPE = {
    "modalities": ["rgb"],
    "model": {
        "encoder": {"width": 16, "depth": 1, "heads": 2},
        "decoder": {"width": 16, "depth": 1, "heads": 2},
        "patch": 8,
    },
    "masking": {"num_visible_tokens": 4},
    "data": {"chip": 32, "batch_size": 8},
    "run": {"log_every": 1, "pictures_every": 0, "accelerator": "cpu", "checkpoint_steps": 1},
}


@pytest.fixture(autouse=True)
def three_threads(monkeypatch) -> Iterator[None]:
    """The process uses three threads; the user has chosen none."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def counts(monkeypatch) -> list[int]:
    """Threads in each training step."""
    used: list[int] = []
    original = PretrainModule.training_step

    def step(self, batch, batch_idx):
        used.append(torch.get_num_threads())
        return original(self, batch, batch_idx)

    monkeypatch.setattr(PretrainModule, "training_step", step)
    return used


def measured(monkeypatch, count: int) -> list[tuple[int, int, str]]:
    """Let the measurement return ``count``; its arguments, call by call."""
    calls: list[tuple[int, int, str]] = []

    def fastest(width: int, rows: int, precision: str) -> int:
        calls.append((width, rows, precision))
        return count

    monkeypatch.setattr(threads, "fastest_threads", fastest)
    return calls


def train(out: Path, epochs: int) -> None:
    source = SyntheticSource(chips=16, size=32, seed=3)
    options = [f"--run.epochs={epochs}", "--run.precision=32-true"]
    pretrain(parse_recipe(RECIPE, options), source, out)


def test_the_fastest_count_is_set_for_the_run_only(tmp_path, monkeypatch, counts):
    calls = measured(monkeypatch, 2)
    train(tmp_path / "run", epochs=1)
    assert set(counts) == {2}
    assert torch.get_num_threads() == 3
    assert calls == [(16, 8 * 4, "32-true")]


@pytest.mark.slow
def test_a_resumed_run_keeps_its_count(tmp_path, monkeypatch, counts):
    """Sums differ between counts in their last bits."""
    measured(monkeypatch, 2)
    original = PretrainModule.on_train_epoch_start

    def crash(self):
        if self.current_epoch == 1:
            raise RuntimeError("power cut")

    monkeypatch.setattr(PretrainModule, "on_train_epoch_start", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "run", epochs=2)
    monkeypatch.setattr(PretrainModule, "on_train_epoch_start", original)
    assert torch.get_num_threads() == 3
    counts.clear()
    calls = measured(monkeypatch, 1)
    train(tmp_path / "run", epochs=2)
    assert counts
    assert set(counts) == {2}
    assert calls == []


def test_a_machine_with_fewer_threads_measures_again(tmp_path, monkeypatch):
    measured(monkeypatch, 2)
    callback = threads.ThreadCount(width=16, tokens=32)
    callback.load_state_dict({"threads": 8})
    trainer = type(
        "Trainer", (), {"precision": "32-true",
                        "strategy": type("Strategy", (), {"root_device": torch.device("cpu")})},
    )()  # fmt: skip
    callback.on_train_start(trainer, trainer)
    assert torch.get_num_threads() == 2
    assert callback.state_dict() == {"threads": 2}


def test_an_accelerator_keeps_torchs_count(monkeypatch):
    calls = measured(monkeypatch, 1)
    trainer = type(
        "Trainer", (), {"precision": "bf16-mixed",
                        "strategy": type("Strategy", (), {"root_device": torch.device("cuda")})},
    )()  # fmt: skip
    threads.ThreadCount(width=16, tokens=32).on_train_start(trainer, trainer)
    assert torch.get_num_threads() == 3
    assert calls == []
