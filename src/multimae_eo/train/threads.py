"""How many threads a run trains with: measured when it begins, kept when it resumes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from multimae_eo.runtime import fastest_threads

logger = logging.getLogger(__name__)


class ThreadCount(Callback):
    """Trains with the number of threads that is fastest on this machine as the run begins.

    Sums depend on the number of threads in their last bits. A resumed run therefore takes the count
    of its checkpoint, where this machine has as many; OMP_NUM_THREADS changes it.

    ``width``: of the encoder. ``tokens``: that it sees in a batch.
    """

    def __init__(self, *, width: int, tokens: int) -> None:
        self._width, self._tokens = width, tokens
        self._count: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the count; an accelerator's run keeps torch's."""
        if trainer.strategy.root_device.type != "cpu":
            return
        usable = torch.get_num_threads()
        if self._count is None or self._count > usable:
            self._count = fastest_threads(self._width, self._tokens, str(trainer.precision))
        elif self._count != usable:
            logger.info("threads: %d, as when the run began", self._count)
        torch.set_num_threads(self._count)

    def state_dict(self) -> dict[str, int | None]:
        """The count, for the checkpoint."""
        return {"threads": self._count}

    def load_state_dict(self, state_dict: dict[str, int | None]) -> None:
        """The count of a checkpoint; a user's OMP_NUM_THREADS wins."""
        if not os.environ.get("OMP_NUM_THREADS"):
            self._count = state_dict["threads"]


@contextmanager
def threads_restored() -> Iterator[None]:
    """After the context torch uses as many threads as before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
