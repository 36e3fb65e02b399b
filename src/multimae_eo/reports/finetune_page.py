"""The report of a fine-tuning run."""

from __future__ import annotations

from pathlib import Path

from multimae_eo.errors import FormatError
from multimae_eo.files import read_text
from multimae_eo.reports.curves import Curve, curve_figure
from multimae_eo.reports.html import Report
from multimae_eo.reports.run_page import loss_curves, read_metrics
from multimae_eo.sources.yaml_section import YAML_BYTES


def finetune_page(run: Path, metric: str) -> Report:
    """Build the page of a run folder, from ``metrics.csv`` and ``recipe.yaml``.

    ``metric``: the validation metric that selected the best weights.
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
    losses = loss_curves(metrics, "loss")
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
    recipe = run / "recipe.yaml"
    text = read_text(recipe, FormatError, limit=YAML_BYTES, remedy="restore the file")
    return page.heading("Recipe").code(text, "The recipe as it was run")
