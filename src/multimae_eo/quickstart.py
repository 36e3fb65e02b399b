"""The quickstart: from synthetic data to a map, through every stage of the package.

Nothing is downloaded. The report compares predictions of masked modalities with the best constant
prediction.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multimae_eo.errors import OutputError
from multimae_eo.files import LOCK, read_text, single_writer, write_file
from multimae_eo.runtime import Precision, resolve_device

GIVEN = ("rgb", "ired", "sired", "ebands")
"""Inputs of the model: the optical bands. Radar, elevation and land cover are masked."""

CHIPS = 600


@dataclass
class _Steps:
    """Announces steps on stderr and keeps how long each took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        sys.stderr.write(f"{name} …\n")
        sys.stderr.flush()
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


@single_writer()
def make_synthetic_data(out: Path, *, seed: int = 0, chips: int = CHIPS) -> Path:
    """Write a synthetic data set, chips and a scene, to ``out/world``; returns its dataset file.

    Raises OutputError when ``out`` holds something else.
    """
    from multimae_eo.sources.synthetic import write_synthetic_data

    _claim(out, {"seed": seed, "chips": chips})
    return write_synthetic_data(out / "world", chips=chips, size=64, seed=seed).dataset


@single_writer()
def quickstart(
    out: Path,
    *,
    seed: int = 0,
    chips: int = CHIPS,
    epochs: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
) -> Path:
    """Run the quickstart; returns the path of ``report.html`` in ``out``.

    Leaves ``world/`` (chips and a scene), ``store/``, ``run/``, ``model/``, ``reconstruction/``,
    ``probe/``, ``scene/`` (maps as COGs, and their pictures). Training is not done again.

    ``device``: auto, cpu, cuda, cuda:N or mps.

    Raises OutputError when ``out`` holds something else, ConfigError for a device that this machine
    does not have.
    """
    from multimae_eo.evaluation.probes import probe
    from multimae_eo.inference.computing import computing, on_device
    from multimae_eo.inference.reconstruct_chips import ReconstructOptions, reconstruct_chips
    from multimae_eo.loading.open_source import open_source
    from multimae_eo.network.multimae import MultiMAE
    from multimae_eo.scenes.job import SceneOptions
    from multimae_eo.scenes.reconstruct import reconstruct_scene
    from multimae_eo.sources.scene.scene import Scene
    from multimae_eo.store.writer import prepare
    from multimae_eo.train.pretrain import pretrain
    from multimae_eo.train.recipe import load_recipe
    from multimae_eo.train.resumed import begun_options
    from multimae_eo.train.run import run_options

    steps = _Steps()
    with steps.step("making synthetic data"):
        dataset = make_synthetic_data(out, seed=seed, chips=chips)
    with steps.step("preparing a chip store"):
        store = prepare(open_source(dataset), out / "store")
    overrides = [f"--run.seed={seed}", *([f"--run.epochs={epochs}"] if epochs else [])]
    overrides += begun_options(out / "run", overrides)
    device = resolve_device(device)
    recipe = load_recipe("quickstart", [*overrides, *run_options(device, precision)])
    with steps.step("pre-training"):
        run = pretrain(recipe, store, out / "run", spec=str(out / "store"))
    model = MultiMAE.from_pretrained(run.model)
    model.save_pretrained(out / "model")
    device, resolved = on_device(model, device, precision)
    with steps.step("reconstructing masked modalities"), computing(device, resolved):
        reconstruction = reconstruct_chips(
            model,
            store,
            inputs=list(GIVEN),
            out=out / "reconstruction",
            split="test",
            options=ReconstructOptions(limit=4, samples=4, device=device),
        )
    with steps.step("probing against a random encoder"), computing(device, resolved):
        rows = probe(model, store, inputs=list(GIVEN), out=out / "probe", seed=seed)
    with steps.step("mapping a scene"):
        maps = reconstruct_scene(
            model,
            Scene(dataset.with_name("scene.yaml")),
            inputs=list(GIVEN),
            outputs=["landcover", "elevation"],
            out=out / "scene",
            options=SceneOptions(device=device, precision=precision),
        )
    return _report(out, reconstruction, rows, maps, steps)


def _claim(out: Path, plan: dict[str, int]) -> None:
    """Make ``out`` this quickstart's folder; OutputError when it holds something else."""
    mark = out / "quickstart.json"
    text = json.dumps(plan) + "\n"
    if mark.is_file():
        there = read_text(mark, OutputError, limit=1 << 16, remedy="choose another --out")
        if there != text:
            raise OutputError(
                f"{out}: holds another quickstart ({there.strip()} there, {text.strip()} here); "
                "choose another --out, or delete it"
            )
        return
    if out.exists() and (not out.is_dir() or any(p.name != LOCK for p in out.iterdir())):
        raise OutputError(f"{out}: is not empty and no quickstart; choose another --out")
    write_file(mark, text.encode())


def _report(
    out: Path,
    reconstruction: dict[str, Any],
    rows: list[dict[str, object]],
    maps: list[Path],
    steps: _Steps,
) -> Path:
    from multimae_eo.reports.html import Report
    from multimae_eo.reports.tables import display_row

    page = Report(
        "multimae-eo: the quickstart",
        "One model was pre-trained on synthetic data in which relief decides land cover, and "
        "both decide what optical sensors and radar measure. It was then given optical bands only.",
    )
    page.heading("Masked modalities, predicted from optical bands alone")
    scores = reconstruction["scores"]["masked"]
    page.table(
        [
            {
                "modality": name,
                "score": "R²" if s["kind"] == "continuous" else "accuracy",
                "model": s["r2"] if s["kind"] == "continuous" else s["accuracy"],
                "constant": s["baseline"]["r2" if s["kind"] == "continuous" else "accuracy"],
            }
            for name, s in scores.items()
        ],
        "Test chips, not used in training. Constant: the training mean, or the majority class.",
    )
    chips = sorted((out / "reconstruction").glob("chip-*.png"))
    page.gallery((p, "", f"{p.stem}: truth, prediction, std and error") for p in chips[:2])
    page.text("More chips: reconstruction/index.html.")
    page.heading("Frozen features, probed")
    scored = [k for k in rows[0] if f"{k} low" in rows[0]] if rows else []
    page.table(
        (display_row(r, scored) for r in rows),
        "Scene class from frozen features, with 95 % bootstrap intervals.",
    )
    page.heading("A scene, mapped")
    page.gallery(
        (p.with_suffix(p.suffix + ".png"), f"scene/{p.name}", f"Map {p.stem}") for p in maps
    )
    page.heading("Time")
    page.table([{"step": k, "seconds": round(v, 1)} for k, v in steps.seconds.items()], "")
    return page.write(out / "report.html")
