"""What a run shows and records: progress, metrics, pictures, averaged weights."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ProgressBar, WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch.optim.swa_utils import get_ema_avg_fn
from tqdm import tqdm

from multimae_eo.errors import FormatError
from multimae_eo.files import METRICS_BYTES, read_text, reading, write_file
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sample import Batch

DrawChips = Callable[[MultiMAE, Path], None]
"""Draws a model's reconstructions of a few chips into a file."""


class MetricsCsv(Logger):
    """``metrics.csv``: one row per logged step, rewritten atomically, continued on resume.

    Rows later than the step a run resumes from are dropped: that work is done again.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, float]] = {}
        if path.exists():
            remedy = "delete it to resume without its past"
            text = read_text(path, FormatError, limit=METRICS_BYTES, remedy=remedy)
            with reading(path, FormatError, remedy):
                for row in csv.DictReader(io.StringIO(text, newline="")):
                    step = int(row.pop("step"))
                    self.rows[step] = {k: float(v) for k, v in row.items() if v}

    @property
    def name(self) -> str:
        """Unused by this logger."""
        return ""

    @property
    def version(self) -> str:
        """Unused by this logger."""
        return ""

    def drop_after(self, step: int) -> None:
        """Forget rows of steps not yet taken."""
        self.rows = {s: r for s, r in self.rows.items() if s < step}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to a step's row."""
        row = self.rows.setdefault(step or 0, {})
        row.update({k: float(v) for k, v in metrics.items()})

    @rank_zero_only
    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """The recipe is written to its own file."""

    @rank_zero_only
    def save(self) -> None:
        """Write all rows under a temporary name, then rename."""
        if not self.rows:
            return
        columns = sorted({k for row in self.rows.values() for k in row}, key=_column_order)
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *columns], lineterminator="\n")
        writer.writeheader()
        for step in sorted(self.rows):
            shown = {k: f"{v:.6g}" for k, v in self.rows[step].items()}
            writer.writerow({"step": step, **shown})
        write_file(self.path, text.getvalue().encode())


def _column_order(name: str) -> tuple[int, str]:
    order = ("epoch", "train/loss", "train/", "val/loss", "val/", "val_baseline/")
    rank = next((i for i, p in enumerate(order) if name == p or name.startswith(p)), len(order))
    return rank, name


class Progress(ProgressBar):
    """One bar for the whole run on stderr: loss, samples/s, loader wait, time left.

    Without a terminal it writes a line per validation instead. Logs the throughput, too.
    """

    def __init__(self, *, log_every: int) -> None:
        super().__init__()
        self.log_every, self.steps = log_every, 0
        self.bar: tqdm[NoReturn] | None = None
        self._shown = True
        self._waited = self._counted = 0.0
        self._samples = 0
        self._since = self._idle_since = time.perf_counter()

    def disable(self) -> None:
        """Called by Lightning on ranks other than the first."""
        self._shown = False

    def enable(self) -> None:
        """Show the bar."""
        self._shown = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar where a resumed run stands."""
        self.steps = int(trainer.estimated_stepping_batches)
        self._since = self._idle_since = time.perf_counter()
        if self._shown and sys.stderr.isatty():
            self.bar = tqdm(
                total=self.steps, initial=trainer.global_step, unit="step", dynamic_ncols=True,
                file=sys.stderr, leave=True,
            )  # fmt: skip

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """The wait for the loader ends here."""
        self._waited += time.perf_counter() - self._idle_since
        self._samples += len(batch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT,
        batch: Batch, batch_idx: int,
    ) -> None:  # fmt: skip
        """Log the throughput now and then, and move the bar."""
        now = self._idle_since = time.perf_counter()
        step = trainer.global_step
        if step and step % self.log_every == 0 and self._samples:
            seconds = now - self._since
            speed = self._samples * trainer.world_size / seconds
            wait = self._waited / seconds
            pl_module.log_dict(
                {
                    "throughput/samples_per_s": speed,
                    "throughput/loader_wait": wait,
                    "lr": trainer.optimizers[0].param_groups[0]["lr"],
                },
                batch_size=len(batch),
            )
            if self.bar is not None:
                loss = float(outputs["loss"]) if isinstance(outputs, Mapping) else math.nan
                self.bar.set_postfix_str(
                    f"epoch {trainer.current_epoch + 1} loss {loss:.3f} "
                    f"{speed:.0f} samples/s loader wait {wait:.0%}",
                    refresh=False,
                )
            self._since, self._waited, self._samples = now, 0.0, 0
        if self.bar is not None:
            self.bar.n = step
            self.bar.refresh() if step == self.steps else self.bar.update(0)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is not training: stop the clock."""
        self._counted = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart the clock; without a terminal, print the losses."""
        self._since += time.perf_counter() - self._counted
        self._idle_since = time.perf_counter()
        if self.bar is None and self._shown:
            values = trainer.callback_metrics
            loss, constant = values.get("val/loss"), values.get("val_baseline/loss")
            if loss is not None and constant is not None:
                self._line(trainer, float(loss), float(constant))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def _line(self, trainer: pl.Trainer, loss: float, constant: float) -> None:
        speed = trainer.callback_metrics.get("throughput/samples_per_s")
        rate = (
            "" if speed is None or math.isnan(float(speed)) else f", {float(speed):.0f} samples/s"
        )
        sys.stderr.write(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: validation loss {loss:.4f} "
            f"(constant prediction {constant:.4f}){rate}\n"
        )
        sys.stderr.flush()


class Ema(WeightAveraging):
    """Exponential moving average of the weights, used in validation and saved at the end."""

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False, avg_fn=get_ema_avg_fn(decay))


class Pictures(Callback):
    """Calls ``draw(model, path)`` every so many validated epochs, and at the end."""

    def __init__(self, folder: Path, every: int, draw: DrawChips) -> None:
        self.folder, self.every, self.draw = folder, every, draw

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw while the averaged weights, if any, are in place."""
        epoch = trainer.current_epoch + 1
        if epoch == trainer.max_epochs or (self.every and epoch % self.every == 0):
            assert isinstance(pl_module.model, MultiMAE)
            self.draw(pl_module.model, self.folder / f"epoch_{epoch:05d}.png")


class ValidateLast(Callback):
    """Validates after the last epoch, too, whatever ``run.val_every``: its results are reported."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the last epoch one of those that are validated."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class Resume(Callback):
    """Keeps the metrics file in step with the checkpoint a run resumes from."""

    def __init__(self, metrics: MetricsCsv) -> None:
        self.metrics = metrics

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop rows of work that will be done again."""
        self.metrics.drop_after(trainer.global_step)
