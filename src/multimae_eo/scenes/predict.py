"""What a fine-tuned model says of a whole scene: classes, probabilities, or values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from multimae_eo.class_colors import class_colors
from multimae_eo.errors import ConfigError, ContractError
from multimae_eo.modality import Band, LegendClass, Modality, ModalitySet
from multimae_eo.network.config import ModelConfig
from multimae_eo.network.predictor import Predictor
from multimae_eo.sample import Batch
from multimae_eo.scenes.engine import Job, SceneOptions, map_scene
from multimae_eo.scenes.layers import Layer, LayerKind
from multimae_eo.scenes.reconstruct import (
    Sized,
    array_of,
    device_of,
    moved,
    observed,
    require_inputs,
    scene_cut,
)
from multimae_eo.scenes.tiling import cut_in_cells
from multimae_eo.sources.scene.scene import Scene

_FIELD = "prediction"


class ScenePredictor(Sized, Protocol):
    """A model of labels. ``class_names``: of its classes; empty where it predicts values.
    ``per_chip``: whether it has one answer for a whole chip."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of its classes, in the order of its probabilities."""

    @property
    def per_chip(self) -> bool:
        """Whether ``predict`` gives one answer for a whole chip."""

    def predict(self, batch: Batch, inputs: Sequence[str] | None = None) -> Tensor:
        """Probabilities (B, classes, H, W) or values (B, 1, H, W); ``per_chip`` without H and W."""


class Answering(nn.Module):
    """A Predictor as scenes ask it: in probabilities, or in values of the labels' unit."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    @property
    def modalities(self) -> ModalitySet:
        """Its inputs."""
        return self.predictor.encoder.modalities

    @property
    def config(self) -> ModelConfig:
        """Of its encoder, with the sides of its chips."""
        return self.predictor.encoder.config

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of its classes, none for values."""
        return self.predictor.target.classes

    @property
    def per_chip(self) -> bool:
        """Whether its labels are one per chip."""
        return not self.predictor.target.dense

    def observed_rows(self, batch: Batch, inputs: Sequence[str] | None = None) -> Tensor:
        """Chips with anything observed in ``inputs``: indices int64 (n,)."""
        return self.predictor.encoder.observed_rows(batch, inputs)

    def predict(self, batch: Batch, inputs: Sequence[str] | None = None) -> Tensor:
        """Probabilities (B, classes[, H, W]), or values (B, 1)."""
        said = self.predictor.answers(self.predictor.predict(batch, inputs).float())
        return said if self.class_names else said[:, None]


def predict_scene(
    model: ScenePredictor | Predictor,
    scene: Scene,
    *,
    out: Path,
    inputs: Sequence[str] | None = None,
    extras: Sequence[LayerKind] = (),
    options: SceneOptions | None = None,
) -> list[Path]:
    """Map a scene with a fine-tuned model; a COG and a quick-look PNG for each raster.

    Writes ``out`` (a ``.tif``): class ids from 0 with names and a colour table, nodata 255 (the
    likeliest label, where labels are multi-hot), or float32 values with NaN. ``extras`` also
    ``<out's stem>.probabilities.tif``, a band per class, and ``<out's stem>.confidence.tif``, the
    likeliest class's probability. The grid is the scene's; for a model that has one answer per
    chip it has a pixel per window, or finer where windows overlap (by default they do not).

    Raises as ``reconstruct_scene``; ConfigError for extras of a model without classes.
    """
    asked: ScenePredictor = Answering(model) if isinstance(model, Predictor) else model
    chosen = options or SceneOptions(overlap=default_overlap(asked))
    if out.suffix != ".tif":
        raise ConfigError(f"{out}: the map is a GeoTIFF; let its name end in .tif")
    for kind in extras:
        if not asked.class_names:
            raise ConfigError(f"{kind}: the model predicts values, not classes")
    names = require_inputs(asked, scene, inputs)
    cut = scene_cut(asked, scene, names, chosen)
    if asked.per_chip:
        cut = cut_in_cells(cut, _FIELD, chosen.overlap)
    ratio = cut.ratios.get(_FIELD, 1) if asked.per_chip else 1
    about = _prediction(tuple(asked.class_names))
    kinds: list[LayerKind] = ["value", *extras]
    layers = tuple(
        Layer(
            stem=out.stem if k == "value" else f"{out.stem}.{k}",
            kind=k,
            field=_FIELD,
            ratio=ratio,
            modality=about,
        )
        for k in kinds
    )
    mapper = _Predict(asked, scene.modalities.select(names), cut.chip // ratio)
    job = Job(
        scene=scene,
        cut=cut,
        mapper=mapper if chosen.dask else mapper.to(chosen.device),
        layers=layers,
        options=chosen,
    )
    return map_scene(job, out.parent, keep=f".{out.name}.partial")


def default_overlap(model: ScenePredictor) -> float:
    """Of windows: half for maps, none for a model with one answer per chip."""
    return 0.0 if model.per_chip else 0.5


def _prediction(class_names: tuple[str, ...]) -> Modality:
    """What a fine-tuned model predicts, as a modality."""
    if not class_names:
        return Modality(name=_FIELD, bands=(Band(name="value"),))
    classes = tuple(
        LegendClass(id=i, name=name, color=color)
        for i, (name, color) in enumerate(zip(class_names, class_colors(class_names), strict=True))
    )
    bands = (Band(name="class"),)
    return Modality(name=_FIELD, bands=bands, kind="categorical", classes=classes)


@dataclass(frozen=True)
class _Predict:
    """Predicts windows: one field of ``side`` × ``side`` pixels per window."""

    model: ScenePredictor
    modalities: ModalitySet
    side: int

    def __call__(self, batch: Batch) -> tuple[Sequence[int], Mapping[str, Any]]:
        inputs = list(self.modalities)
        batch = batch.to(device_of(self.model))
        rows, batch = observed(self.model, batch, inputs)
        if not rows:
            return rows, {}
        said = array_of(self.model.predict(batch, inputs))
        if self.model.per_chip and said.ndim == 2:
            said = said[:, :, None, None]
        count = max(1, len(self.model.class_names))
        if said.ndim != 4 or said.shape[1] != count or self.side % said.shape[-1]:
            raise ContractError(
                f"the model's prediction has shape {said.shape}; expected (B, {count}, H, W) with "
                f"H and W that divide {self.side}"
            )
        times = self.side // said.shape[-1]
        return rows, {_FIELD: said.repeat(times, axis=2).repeat(times, axis=3)}

    def to(self, device: str) -> _Predict:
        return replace(self, model=moved(self.model, device))

    def describe(self) -> dict[str, Any]:
        return {"verb": "predict", "inputs": list(self.modalities),
                "classes": list(self.model.class_names)}  # fmt: skip
