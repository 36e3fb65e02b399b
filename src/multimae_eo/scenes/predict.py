"""Maps of a scene by a fine-tuned model: classes, probabilities, or values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from multimae_eo.class_colors import class_colors
from multimae_eo.errors import ConfigError, ContractError, DataError
from multimae_eo.files import single_writer
from multimae_eo.geo import Window
from multimae_eo.modality import Band, ClassMapEntry, Modality, ModalitySet
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import Target
from multimae_eo.sample import Batch, collate
from multimae_eo.scenes import engine
from multimae_eo.scenes.job import SceneJob, SceneOptions
from multimae_eo.scenes.output_layers import LayerKind, OutputLayer
from multimae_eo.scenes.scene_inputs import check_scene, require_inputs, scene_tiling
from multimae_eo.scenes.tiling import Tiling, tiling_in_cells
from multimae_eo.scenes.window_model import NetworkWindows, host_array
from multimae_eo.sources.scene.scene import Scene

_FIELD = "prediction"
_ADAPTED_WINDOWS, _ADAPTED_BATCH = 256, 32


class Adapt(Protocol):
    """Trains a copy of a model on the inputs of a few windows; see ``train.test_time``."""

    @property
    def record(self) -> Mapping[str, object]:
        """What decides the result, JSON-ready."""

    def __call__(self, predictor: Predictor, batches: Sequence[Batch]) -> tuple[Predictor, str]:
        """The adapted copy, and what was done, in words."""


_MOST_IDS = 65535


@single_writer(folder=False)
def predict_scene(
    model: Predictor,
    scene: Scene,
    *,
    out: Path,
    inputs: Sequence[str] | None = None,
    extras: Sequence[LayerKind] = (),
    options: SceneOptions | None = None,
    adapt: Adapt | None = None,
) -> list[Path]:
    """Map a scene with a fine-tuned model; returns the paths of the COGs.

    Writes ``out`` (a ``.tif``): class ids (the data set's own, else from 0) with names, a colour
    table and a nodata value (the
    likeliest label, where labels are multi-hot), or float32 values with NaN. ``extras`` also
    ``<out's stem>.probabilities.tif``, a band per class, and ``<out's stem>.confidence.tif``, the
    likeliest class's probability. Beside each lies a quick-look PNG. The grid is the scene's; for a
    model with one prediction per chip it has a pixel per window, or finer where windows overlap (by
    default they do not). ``adapt``: applied to the model and windows of the scene first.

    Raises as ``reconstruct_scene``; ConfigError for extras of a model without classes.
    """
    options = options or SceneOptions(overlap=default_overlap(model))
    if out.suffix != ".tif":
        raise ConfigError(f"{out}: the map is a GeoTIFF; let its name end in .tif")
    for kind in extras:
        if not model.target.classes:
            raise ConfigError(f"{kind}: the model predicts values, not classes")
    window_model = WindowPredictor(
        network=model, inputs=require_inputs(model.encoder.modalities, scene, inputs)
    )
    tiling = scene_tiling(window_model.sizes, scene, window_model.inputs, options)
    ratio = 1
    if not model.target.dense:
        tiling = tiling_in_cells(tiling, _FIELD, options.overlap)
        ratio = tiling.ratios[_FIELD]
    tags = {}
    if adapt is not None:
        windows = sampled_windows(scene, window_model.inputs, tiling)
        model, tags["adapted"] = adapt(model.to(options.device), windows)
    window_model = replace(window_model, network=model, side=tiling.chip // ratio)
    value = OutputLayer(
        stem=out.stem,
        kind="value",
        field=_FIELD,
        ratio=ratio,
        modality=_predicted_modality(model.target),
    )
    job = SceneJob(
        scene=scene,
        tiling=tiling,
        model=window_model if options.dask else window_model.to(options.device),
        layers=(value, *(replace(value, stem=f"{out.stem}.{k}", kind=k) for k in extras)),
        settings={
            "subcommand": "predict",
            "inputs": list(window_model.inputs),
            "classes": list(model.target.classes),
            **({} if adapt is None else {"adapt": dict(adapt.record)}),
        },
        tags=tags,
        options=options,
        warning=check_scene(model.encoder, scene, window_model.inputs, tiling),
    )
    return engine.run(job, out.parent, keep=f".{out.name}.partial")


def sampled_windows(scene: Scene, inputs: ModalitySet, tiling: Tiling) -> list[Batch]:
    """Batches of evenly spaced windows of a scene that have a valid pixel; DataError for none."""
    corners = [(row, col) for row in tiling.tops for col in tiling.lefts]
    step = max(1, len(corners) // _ADAPTED_WINDOWS)
    samples = []
    for row, col in corners[step // 2 :: step][:_ADAPTED_WINDOWS]:
        window = Window(row=row, col=col, height=tiling.chip, width=tiling.chip)
        sample = scene.read(window, inputs.names)
        names = [n for n in sample.pixels if sample.validity(n).any()]
        if names:
            samples.append(replace(sample.select(names), key=f"{scene.name}@{row},{col}"))
    if not samples:
        raise DataError(f"{scene.name}: nothing is observed in {', '.join(inputs)}")
    starts = range(0, len(samples), _ADAPTED_BATCH)
    return [collate(samples[i : i + _ADAPTED_BATCH], inputs) for i in starts]


def default_overlap(model: Predictor) -> float:
    """Overlap of windows: half for maps, none for a model with one prediction per chip."""
    return 0.5 if model.target.dense else 0.0


def _predicted_modality(target: Target) -> Modality:
    """The prediction as a modality: a class map with the user's own ids, or values where there are
    no classes. Ids beyond 16 bits become indices from 0."""
    names = target.classes
    if not names:
        return Modality(name=_FIELD, bands=(Band(name="value"),))
    ids = target.output_ids if max(target.output_ids) < _MOST_IDS else range(len(names))
    classes = tuple(
        ClassMapEntry(id=i, name=name, color=color)
        for i, name, color in zip(ids, names, class_colors(names), strict=True)
    )
    bands = (Band(name="class"),)
    return Modality(name=_FIELD, bands=bands, kind="categorical", classes=classes)


@dataclass(frozen=True, kw_only=True)
class WindowPredictor(NetworkWindows[Predictor]):
    """Predicts windows: one field of ``side`` × ``side`` pixels per window."""

    side: int = 1

    @property
    def encoder(self) -> MultiMAE:
        """See ``NetworkWindows``."""
        return self.network.encoder

    def fields(self, batch: Batch) -> dict[str, npt.NDArray[np.generic]]:
        """See ``NetworkWindows``."""
        network = self.network
        outputs = network.predictions(network.predict(batch, list(self.inputs)).float())
        field = host_array(outputs if network.target.classes else outputs[:, None])
        if not network.target.dense and field.ndim == 2:
            field = field[:, :, None, None]
        count = max(1, len(network.target.classes))
        if field.ndim != 4 or field.shape[1] != count or self.side % field.shape[-1]:
            raise ContractError(
                f"the model's prediction has shape {field.shape}; expected (B, {count}, H, W) with "
                f"H and W that divide {self.side}"
            )
        times = self.side // field.shape[-1]
        return {_FIELD: field.repeat(times, axis=2).repeat(times, axis=3)}
