"""The page about a fine-tuning run."""

from __future__ import annotations

from pathlib import Path

from multimae_eo.reports.html import Report
from multimae_eo.reports.plots import Curve, Role, curve_figure
from multimae_eo.reports.run_page import read_metrics

_CURVES: tuple[tuple[str, str, Role], ...] = (
    ("training", "train/loss", "train"),
    ("validation", "val/loss", "val"),
    ("baseline", "val_baseline/loss", "baseline"),
)


def finetune_page(run: Path, metric: str) -> Report:
    """Build the page of a run folder, from ``metrics.csv`` and ``recipe.yaml``.

    ``metric``: what decided which weights are best, besides the loss.
    """
    metrics = read_metrics(run / "metrics.csv")
    page = Report(f"Fine-tuning run: {run.resolve().name}", f"Validation {metric} and losses")
    epoch = metrics.last("epoch")
    values = metrics.of(f"val/{metric}")[1]
    page.facts(
        {
            "epochs": None if epoch is None else int(epoch) + 1,
            f"last validation {metric}": metrics.last(f"val/{metric}"),
            f"lowest validation {metric}": float(values.min()) if len(values) else None,
            f"highest validation {metric}": float(values.max()) if len(values) else None,
            "last validation loss": metrics.last("val/loss"),
            "loss of the best constant": metrics.last("val_baseline/loss"),
        }
    )
    losses = [
        Curve(label=label, x=column[0], y=column[1], role=role)
        for label, name, role in _CURVES
        if (column := metrics.of(name)).shape[1]
    ]
    pictures = [(curve_figure(losses, title="loss"), "", "Loss by step")] if losses else []
    x, y = metrics.of(f"val/{metric}")
    if len(x):
        drawn = curve_figure([Curve(label=metric, x=x, y=y, role="val")], title=metric)
        pictures.append((drawn, "", f"Validation {metric} by step"))
    page.heading("Curves").gallery(pictures)
    page.text(
        "The baseline predicts the shares of the training labels, without looking at a chip. "
        "Training losses include label smoothing and mixed chips; validation losses do not."
    )
    text = (run / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
    return page.heading("Recipe").code(text, "The recipe as it was run")
