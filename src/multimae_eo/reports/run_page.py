"""The report of a pre-training run: losses, baselines, skill, pictures and speed."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import FormatError
from multimae_eo.files import METRICS_BYTES, read_text, reading
from multimae_eo.reports.curves import Curve, Role, curve_figure
from multimae_eo.reports.html import Report
from multimae_eo.sources.yaml_section import YAML_BYTES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    _Picture = tuple[Path | Figure, str, str]

Array = npt.NDArray[np.float64]

_NONE: Array = np.zeros((2, 0))
_CURVES: tuple[tuple[str, str, Role], ...] = (
    ("training", "train", "train"),
    ("validation", "val", "val"),
    ("baseline", "val_baseline", "baseline"),
)


@dataclass(frozen=True)
class Metrics:
    """A run's numbers: ``columns[name]`` is (2, N), steps above values, in order of steps.

    ``dropped``: how many recorded values were not finite.
    """

    columns: dict[str, Array] = field(default_factory=dict)
    dropped: int = 0

    def of(self, name: str) -> Array:
        """A column's steps and values; empty where it was never recorded."""
        return self.columns.get(name, _NONE)

    def last(self, name: str) -> float | None:
        """The most recent value."""
        values = self.of(name)[1]
        return float(values[-1]) if len(values) else None

    @property
    def tasks(self) -> list[str]:
        """Names T with a column train/T or val/T, in order, other than the total ``loss``."""
        names = (n.split("/", 1)[1] for n in self.columns if n.startswith(("train/", "val/")))
        return list(dict.fromkeys(n for n in names if n != "loss"))


def read_metrics(path: Path) -> Metrics:
    """Read a ``metrics.csv``: a ``step`` column and sparse others.

    A run that was resumed may record a step twice; the later record counts.
    """
    by_step: dict[str, dict[float, float]] = {}
    dropped = 0
    if not path.exists():
        raise FormatError(f"{path}: not there; is {path.parent} a run folder?")
    text = read_text(path, FormatError, limit=METRICS_BYTES, remedy="restore the file")
    with reading(path, FormatError, form="metrics"):
        rows = csv.DictReader(io.StringIO(text, newline=""))
        if "step" not in (rows.fieldnames or ()):
            raise FormatError(f"{path}: no column 'step'; expected a run's metrics.csv")
        for row in rows:
            step = float(row["step"] or "nan")
            for name, cell in row.items():
                if name in ("step", None) or not isinstance(cell, str) or not cell.strip():
                    continue
                value = float(cell)
                if np.isfinite(value) and np.isfinite(step):
                    by_step.setdefault(name, {})[step] = value
                else:
                    dropped += 1
    columns = {n: np.array(sorted(v.items()), np.float64).T for n, v in by_step.items()}
    return Metrics(columns, dropped)


def run_page(run: Path) -> Report:
    """Build the page of a run folder: ``metrics.csv``, ``recipe.yaml``, ``pictures/*.png``."""
    metrics = read_metrics(run / "metrics.csv")
    page = Report(f"Training run: {run.resolve().name}", _lead(metrics))
    page.facts(_facts(metrics))
    if metrics.dropped:
        page.text(f"{metrics.dropped} recorded values were not finite and are not drawn.")
    if rows := _task_rows(metrics):
        page.heading("Losses").table(
            rows,
            "Validation loss on masked patches. Skill is 1 − loss / baseline, where the baseline "
            "predicts the training mean or the most frequent class: 0 equals the baseline, 1 is "
            "perfect.",
        )
    page.gallery(_loss_pictures(metrics))
    pictures = sorted((run / "pictures").glob("*.png"), key=natural_order)
    if pictures:
        page.heading("Reconstruction").picture(
            pictures[-1],
            f"The latest picture, {pictures[-1].name}.",
            "Reconstructions of validation chips beside the truth",
        )
    if speed := _speed_pictures(metrics):
        page.heading("Speed").gallery(speed)
    recipe = run / "recipe.yaml"
    if recipe.is_file():
        page.heading("Recipe").code(
            read_text(recipe, FormatError, limit=YAML_BYTES, remedy="restore the file"),
            "The recipe as it was run",
        )
    return page


def run_report(run: Path) -> Path:
    """Write ``run/report.html`` from a run folder's metrics, recipe and pictures; its path.

    Raises FormatError where ``metrics.csv`` is missing or damaged.
    """
    return run_page(run).write(run / "report.html")


def _lead(metrics: Metrics) -> str:
    tasks = metrics.tasks
    return f"Tasks: {', '.join(tasks)}" if tasks else ""


def _facts(metrics: Metrics) -> dict[str, object]:
    steps = [c[0].max() for c in metrics.columns.values() if c.shape[1]]
    rate = metrics.of("throughput/samples_per_s")[1]
    wait = metrics.of("throughput/loader_wait")[1]
    epoch = metrics.last("epoch")
    facts: dict[str, object] = {
        "steps": int(max(steps)) if steps else 0,
        "epochs": None if epoch is None else int(epoch) + 1,
        "training loss": metrics.last("train/loss"),
        "validation loss": metrics.last("val/loss"),
        "samples per second (median)": float(np.median(rate)) if len(rate) else None,
        "time waiting for data (median)": f"{100 * np.median(wait):.1f} %" if len(wait) else None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _task_rows(metrics: Metrics) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for task in metrics.tasks:
        val, baseline = metrics.last(f"val/{task}"), metrics.last(f"val_baseline/{task}")
        losses = metrics.of(f"val/{task}")[1]
        rows.append(
            {
                "task": task,
                "training": metrics.last(f"train/{task}"),
                "validation": val,
                "best validation": float(losses.min()) if len(losses) else None,
                "baseline": baseline,
                "skill": 1 - val / baseline if val is not None and baseline else None,
            }
        )
    return rows


def loss_curves(metrics: Metrics, task: str) -> list[Curve]:
    """Training, validation and baseline loss of a task ("loss": of all), where recorded."""
    return [
        Curve(label=label, x=column[0], y=column[1], role=role)
        for label, part, role in _CURVES
        if (column := metrics.of(f"{part}/{task}")).shape[1]
    ]


def _loss_pictures(metrics: Metrics) -> list[_Picture]:
    pictures: list[_Picture] = []
    for task in ["loss", *metrics.tasks]:
        if curves := loss_curves(metrics, task):
            title = "all tasks" if task == "loss" else task
            drawn = curve_figure(curves, title=title, unit="loss")
            pictures.append((drawn, "", f"Loss of {title} by step"))
    return pictures


def _speed_pictures(metrics: Metrics) -> list[_Picture]:
    pictures: list[_Picture] = []
    for name, title, unit in (
        ("throughput/samples_per_s", "throughput", "samples per second"),
        ("throughput/loader_wait", "waiting for data", "share of time"),
        ("lr", "learning rate", ""),
    ):
        x, y = metrics.of(name)
        if len(x):
            drawn = curve_figure([Curve(label=title, x=x, y=y)], title=title, unit=unit)
            pictures.append((drawn, "", f"{title} by step"))
    return pictures


def natural_order(path: Path) -> list[tuple[bool, int, str]]:
    """Sort key by which step-9 comes before step-10."""
    parts = re.split(r"(\d+)", path.stem)
    return [(p.isdigit(), int(p) if p.isdigit() else 0, p) for p in parts]
