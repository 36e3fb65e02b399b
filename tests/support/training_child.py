"""A small pre-training run as a program, which tests start, signal and kill.

``child.py OUT [--a.b=value …]``. It writes the epoch and the keys of every training batch to
``OUT.keys-RANK``, prints a line per batch, and, with STOP=n in the environment, sends itself
SIGTERM at optimiser step n.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from multimae_eo.sample import Batch
from multimae_eo.sources.synthetic import SyntheticSource
from multimae_eo.train.modules import PretrainModule
from multimae_eo.train.pretrain import pretrain
from multimae_eo.train.recipe import Recipe, parse_recipe

RECIPE = {
    "modalities": ["rgb", "elevation", "landcover"],
    "model": {
        "encoder": {"width": 32, "depth": 1, "heads": 2},
        "decoder": {"width": 16, "depth": 1, "heads": 2},
        "stride": {"landcover": 2},
    },
    "masking": {"num_visible_tokens": 16},
    "optim": {"lr": 0.01, "clip": 1.0},
    "data": {"chip": 32, "batch_size": 8},
    "run": {
        "epochs": 2,
        "log_every": 1,
        "pictures_every": 0,
        "accelerator": "cpu",
        "precision": "32-true",
    },
}
"""40 chips to train on: 5 steps of 8 an epoch. In float32 on every machine: `auto` takes bfloat16
where the CPU multiplies it, whose rounding is coarser than what is compared."""


def made(overrides: Sequence[str]) -> Recipe:
    return parse_recipe(RECIPE, overrides)


def world() -> SyntheticSource:
    return SyntheticSource(chips=57, size=32, seed=3)


def record(out: Path, stop: int | None) -> None:
    """Make training steps tell what they are given."""
    original = PretrainModule.training_step

    def told(self: PretrainModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        with out.with_name(f"{out.name}.keys-{self.global_rank}").open("a") as file:
            file.write(f"{self.current_epoch} {' '.join(batch.keys)}\n")
        if stop == self.global_step and self.global_rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        print("step", flush=True)
        return original(self, batch, batch_idx)

    PretrainModule.training_step = told


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    record(folder, int(os.environ["STOP"]) if "STOP" in os.environ else None)
    pretrain(made(sys.argv[2:]), world(), folder)
