"""Training runs: their curves, pictures and speed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from multimae_eo.errors import ConfigError, DataError
from multimae_eo.reports.run_page import Metrics, natural_order, read_metrics

_MOST_POINTS = 400
_CURVES = (("training", "train"), ("validation", "val"), ("baseline", "val_baseline"))
_SPEED = (
    ("throughput/samples_per_s", "throughput", "samples per second"),
    ("throughput/loader_wait", "waiting for data", "share of time"),
    ("lr", "learning rate", ""),
)


class RunsService:
    """The run folders in ``folder`` (or the one that it is), by number.

    Raises ConfigError where there is none.
    """

    def __init__(self, folder: Path) -> None:
        is_run = (folder / "metrics.csv").is_file()
        runs = [folder] if is_run else sorted(p.parent for p in folder.glob("*/metrics.csv"))
        if not runs:
            raise ConfigError(f"{folder}: holds no run folder (one with a metrics.csv)")
        self._runs = runs

    def runs(self) -> list[dict[str, object]]:
        """``run`` (its number) and ``name`` of each."""
        return [{"run": i, "name": p.resolve().name} for i, p in enumerate(self._runs)]

    def run(self, number: int) -> dict[str, object]:
        """Losses per task, speed, facts and how many pictures there are; FormatError."""
        folder = self._folder(number)
        metrics = read_metrics(folder / "metrics.csv")
        losses = [
            {
                "title": "all tasks" if task == "loss" else task,
                "curves": [
                    {"role": role, **_points(metrics, f"{part}/{task}")} for role, part in _CURVES
                ],
                "skill": _skill(metrics, task),
            }
            for task in ("loss", *metrics.tasks)
        ]
        speed = [
            {"title": title, "unit": unit, "curves": [{"role": "training", **points}]}
            for name, title, unit in _SPEED
            if (points := _points(metrics, name))["x"]
        ]
        steps = [c[0].max() for c in metrics.columns.values() if c.shape[1]]
        rate = metrics.of("throughput/samples_per_s")[1]
        return {
            "name": folder.resolve().name,
            "steps": int(max(steps, default=0)),
            "epoch": metrics.last("epoch"),
            "samples_per_s": float(np.median(rate)) if len(rate) else None,
            "losses": losses,
            "speed": speed,
            "pictures": [p.stem for p in self._pictures(number)],
        }

    def picture(self, number: int, index: int) -> Path:
        """The file of a picture; DataError for an unknown number."""
        pictures = self._pictures(number)
        if not 0 <= index < len(pictures):
            raise DataError(f"no picture {index}: there are {len(pictures)}")
        return pictures[index]

    def _pictures(self, number: int) -> list[Path]:
        paths = (self._folder(number) / "pictures").glob("*.png")
        return sorted((p for p in paths if p.is_file()), key=natural_order)

    def _folder(self, number: int) -> Path:
        if not 0 <= number < len(self._runs):
            raise DataError(f"no run {number}: there are {len(self._runs)}")
        return self._runs[number]


def _points(metrics: Metrics, name: str) -> dict[str, list[float]]:
    x, y = metrics.of(name)
    step = max(1, -(-len(x) // _MOST_POINTS))
    keep = np.unique([*range(0, len(x), step), *([len(x) - 1] if len(x) else [])]).astype(int)
    return {"x": x[keep].tolist(), "y": y[keep].tolist()}


def _skill(metrics: Metrics, task: str) -> float | None:
    value, baseline = metrics.last(f"val/{task}"), metrics.last(f"val_baseline/{task}")
    return 1 - value / baseline if value is not None and baseline else None
