"""What a run can be continued from: checkpoints, and one more when the machine is taken away."""

from __future__ import annotations

import math
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, Checkpoint

from multimae_eo.errors import OutputError
from multimae_eo.files import remove, sync_and_rename, temporary_path

LAST, BEST = "last.ckpt", "best.ckpt"


class Checkpoints(Checkpoint):
    """``last.ckpt`` and ``best.ckpt`` (lowest ``monitor``), each written atomically.

    ``last`` is written after every epoch and, with ``every_steps``, also in between: a run killed
    at any moment continues from it. ``keep``: the latest so many epochs' checkpoints stay, too, as
    ``epoch_00012.ckpt``. ``sign``: -1 where the highest ``monitor`` is the best.
    With ``patience``, training stops after so many validations without a better one, but not before
    ``min_epochs`` epochs.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_steps: int = 0,
        keep: int = 0,
        monitor: str = "val/loss",
        sign: float = 1.0,
        patience: int = 0,
        min_epochs: int = 0,
    ) -> None:
        self.folder, self.every_steps, self.keep = folder, every_steps, keep
        self.monitor, self.sign = monitor, sign
        self.patience, self.min_epochs = patience, min_epochs
        self.best = (math.inf, math.inf)
        self._since_best = self._epochs = 0
        self._validated = False
        self._written = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that has stopped early stays stopped."""
        self._stop(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Write ``last`` every so many optimiser steps.

        Not at an epoch's last: what a run killed in its validation has to take again is decided by
        the checkpoint before.
        """
        step = trainer.global_step
        due = self.every_steps and step and step % self.every_steps == 0 and step != self._written
        if due and not trainer.is_last_batch:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``last``, and ``best`` where validation improved; stop where it no longer does."""
        score = (math.inf, math.inf)
        if self._validated and self.monitor in trainer.callback_metrics:
            values = trainer.callback_metrics
            score = (self.sign * float(values[self.monitor]), float(values["val/loss"]))
        # Few validation chips make equal accuracies; their losses break the tie.
        better = score < self.best
        self.best = min(self.best, score)
        self._since_best = 0 if better else self._since_best + self._validated
        self._validated = False
        self._epochs = trainer.current_epoch + 1
        self.save(trainer, best=better, epoch=self._epochs)
        self._stop(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What is monitored is new."""
        self._validated = True

    def state_dict(self) -> dict[str, object]:
        """The best validation so far, how many came after it, and the epochs so far."""
        return {
            "best": list(self.best),
            "since_best": self._since_best,
            "epochs": self._epochs,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        first, second = state_dict["best"]
        self.best = (float(first), float(second))
        self._since_best = int(state_dict["since_best"])
        self._epochs = int(state_dict.get("epochs", 0))

    def _stop(self, trainer: pl.Trainer) -> None:
        enough = self._epochs >= self.min_epochs
        if self.patience and self._since_best >= self.patience and enough:
            trainer.should_stop = True

    def save(self, trainer: pl.Trainer, *, best: bool = False, epoch: int = 0) -> None:
        """Write ``last``, and copies of it where asked for. All processes have to call it."""
        self._written = trainer.global_step
        copies = [BEST] * best + [f"epoch_{epoch:05d}.ckpt"] * bool(epoch and self.keep)
        with self._replacing(LAST, trainer) as temporary:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                # Before ``last``: a run killed in between takes this epoch again, and its copies.
                for name in copies:
                    with self._replacing(name, trainer) as copy:
                        shutil.copyfile(temporary, copy)
        if trainer.is_global_zero and epoch:
            for old in sorted(self.folder.glob("epoch_*.ckpt"))[: -self.keep or None]:
                old.unlink()

    @contextmanager
    def _replacing(self, name: str, trainer: pl.Trainer) -> Iterator[Path]:
        """A temporary path, which the first rank renames to ``name`` once it is whole."""
        path = self.folder / name
        temporary = temporary_path(path)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield temporary
            if trainer.is_global_zero:
                sync_and_rename(temporary, path)
        except (OSError, RuntimeError) as error:
            remove(temporary)
            reason = str(error).split("\n", maxsplit=1)[0]
            raise OutputError(f"{path}: cannot be written: {reason}; free space") from error


class Preemption(Callback):
    """On SIGTERM: finish the step, write ``last.ckpt``, exit with code 0.

    Where several processes train, a signal to any of them stops all after the same step; on
    accelerators they ask each other every so many steps only, since asking makes the host wait.
    A signal during validation acts after the epoch's checkpoint.
    """

    def __init__(self, *, every: int) -> None:
        self.every = every
        self._stop_requested = self._saved = False
        self._before: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen. Signals reach the main thread only."""
        self._stop_requested = self._saved = False
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._request_stop)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Stop between two optimiser steps."""
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not stepped or trainer.is_last_batch:
            return
        alone = trainer.world_size == 1 or pl_module.device.type == "cpu"
        if (alone or trainer.global_step % self.every == 0) and self._agreed(trainer):
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, Checkpoints):
                    callback.save(trainer)
            # Lightning has still to write this step's losses.
            self._saved = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Leave once the step that was saved is over."""
        if self._saved:
            self._leave(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave after the epoch's checkpoint."""
        if self._agreed(trainer):
            self._leave(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen no more. Lightning puts its own handler away after this, not before."""
        self._restore()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Listen no more."""
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _request_stop(self, *_: object) -> None:
        self._stop_requested = True

    def _agreed(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return self._stop_requested
        return bool(trainer.strategy.reduce_boolean_decision(self._stop_requested, all=False))

    def _leave(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            sys.stderr.write(
                f"stopped by SIGTERM after step {trainer.global_step}; run again to continue\n"
            )
        raise SystemExit(0)
