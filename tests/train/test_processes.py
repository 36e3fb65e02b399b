"""One process or several, whole or stopped, split as one likes: the same run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from multimae_eo import MultiMAE
from multimae_eo.errors import CheckpointError, ConfigError
from multimae_eo.info.paths import describe
from multimae_eo.sample import Batch
from multimae_eo.train.modules import PretrainModule
from multimae_eo.train.pretrain import pretrain
from multimae_eo.train.run import read_checkpoint
from tests.support import training_child as child

TOLERANCE = 2e-5
"""Largest difference of any weight after 10 steps of up to 3e-4 each, from sums in another order.
Not of keys' biases: they change no output, so that AdamW follows the rounding of their zero
gradients."""


def train(out: Path, *overrides: str) -> dict[str, torch.Tensor]:
    pretrain(child.made(overrides), child.world(), out)
    return dict(MultiMAE.from_pretrained(out / "model").state_dict())


def start(out: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(Path(child.__file__)), str(out), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def keys(out: Path) -> dict[int, Counter[str]]:
    """How often each chip was trained on in each epoch, by all processes of all starts."""
    found: dict[int, Counter[str]] = {}
    for path in out.parent.glob(f"{out.name}.keys-*"):
        for line in path.read_text().splitlines():
            epoch, *names = line.split()
            found.setdefault(int(epoch), Counter()).update(names)
    return found


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert set(ours) == set(theirs)
    said = [k for k in ours if not k.endswith(("qkv.bias", "kv.bias"))]
    return max(float((ours[k] - theirs[k]).abs().max()) for k in said)


def same(a: Any, b: Any) -> bool:
    """Bit for bit, in records of records."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return train(tmp_path_factory.mktemp("one") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_are_one(one, tmp_path, strategy):
    out = tmp_path / "run"
    options = ("--run.devices=2", f"--run.strategy={strategy}", "--data.batch_size=4")
    running = start(out, *options)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 0, said
    assert "Warning" not in said
    assert apart(one, dict(MultiMAE.from_pretrained(out / "model").state_dict())) < TOLERANCE
    seen = keys(out)
    assert {n for epoch in seen.values() for n in epoch.values()} == {1}
    assert [len(epoch) for epoch in seen.values()] == [40, 40]


@pytest.mark.slow
def test_stopped_in_two_processes_it_continues_in_one(one, tmp_path, monkeypatch):
    """A signal to one of them: both stop after the same step, with exit code 0."""
    out = tmp_path / "run"
    options = ("--run.devices=2", "--run.strategy=ddp", "--data.batch_size=4")
    running = start(out, *options, STOP="2")
    _, said = running.communicate(timeout=300)
    assert running.returncode == 0, said
    assert "stopped by SIGTERM after step 3" in said
    with pytest.raises(ConfigError, match=r"8 samples per optimiser step; here 8 .* 1 process"):
        train(out, "--run.accumulate=2")
    monkeypatch.setattr(PretrainModule, "training_step", PretrainModule.training_step)
    child.record(out, None)
    # Another split of the same eight: in one process, as two batches of four.
    now = train(out, "--data.batch_size=4", "--run.accumulate=2")
    assert apart(one, now) < TOLERANCE
    for epoch in keys(out).values():
        assert set(epoch.values()) == {1}, "none is repeated"
        assert len(epoch) == 40, "none is lost"


@pytest.mark.slow
def test_accumulated_batches_are_one_large_batch(one, tmp_path):
    assert apart(one, train(tmp_path / "run", "--data.batch_size=2", "--run.accumulate=4")) < (
        TOLERANCE
    )


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 4])
def test_sigterm_saves_exits_0_and_is_continued_bit_for_bit(one, tmp_path, monkeypatch, step):
    """In the middle of an epoch, and in its last step."""
    out = tmp_path / "run"
    original = PretrainModule.training_step

    def signalled(self: PretrainModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        if self.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(PretrainModule, "training_step", signalled)
    with pytest.raises(SystemExit) as ended:
        train(out)
    assert ended.value.code == 0
    assert signal.getsignal(signal.SIGTERM) == before
    assert read_checkpoint(out / "checkpoints/last.ckpt")["global_step"] == step + 1
    monkeypatch.setattr(PretrainModule, "training_step", original)
    assert same(train(out), one)
    assert signal.getsignal(signal.SIGTERM) == before
    lines = (out / "metrics.csv").read_text().splitlines()
    assert len(lines) == 11, "a row per step"


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.release)])
def test_killed_at_any_moment_it_ends_bit_for_bit_equal(tmp_path, kills):
    """Weights, averaged weights, optimiser, schedule, position: the whole last checkpoint."""
    options = ("--run.checkpoint_steps=1", "--optim.ema=0.9", f"--run.epochs={2 * kills + 4}")
    whole = train(tmp_path / "whole", *options)
    out, chance = tmp_path / "killed", random.Random(0)
    for _ in range(kills):
        running = start(out, *options)
        assert running.stdout is not None
        assert running.stderr is not None
        for _ in range(chance.randint(1, 12)):
            assert running.stdout.readline() == "step\n", running.stderr.read()
        time.sleep(chance.uniform(0, 0.1))
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        running.stdout.close()
        running.stderr.close()
    assert same(train(out, *options), whole)
    ours, theirs = (read_checkpoint(p / "checkpoints/last.ckpt") for p in (out, tmp_path / "whole"))
    for what in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert same(ours[what], theirs[what]), what
    assert same(ours["averaging_state"], theirs["averaging_state"])


@pytest.mark.slow
def test_checkpoints_are_kept_by_rule_and_verified(tmp_path):
    out = tmp_path / "run"
    train(out, "--run.epochs=3", "--run.keep=2")
    names = ["best.ckpt", "epoch_00002.ckpt", "epoch_00003.ckpt", "last.ckpt"]
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == names
    told = describe(out, verify=True)["checkpoints"]
    assert told["epoch_00002.ckpt"] == "whole, step 10"
    damaged = out / "checkpoints/epoch_00002.ckpt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"epoch_00002\.ckpt: damaged"):
        describe(out, verify=True)
