"""Maps of a scene: modalities reconstructed, or what a fine-tuned model predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from multimae_eo.errors import ConfigError, ContractError, did_you_mean
from multimae_eo.infer.cutting import Cut, cut_scene
from multimae_eo.infer.engine import Job, SceneOptions, map_scene
from multimae_eo.infer.layers import Layer, LayerKind
from multimae_eo.infer.reconstruct import Reconstructor
from multimae_eo.modality import Band, LegendClass, Modality, ModalitySet
from multimae_eo.sample import Batch
from multimae_eo.sources.scene import Scene, require_scene_modalities

if TYPE_CHECKING:
    import torch

# Okabe and Ito's hues, then darker ones; beyond them colours repeat.
_PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167), (120, 120, 120), (128, 70, 0), (0, 70, 110), (0, 90, 60), (110, 40, 90),
)  # fmt: skip


class Sized(Protocol):
    """A model that knows its inputs and the size of its chips."""

    @property
    def modalities(self) -> ModalitySet:
        """What it takes in."""

    @property
    def config(self) -> Any:
        """Its ``sizes`` are the chips' sides at pre-training, by modality."""


@runtime_checkable
class Observing(Protocol):
    """A model that can tell which chips have anything for it to see."""

    def observed_rows(self, batch: Batch, inputs: Sequence[str] | None = None) -> torch.Tensor:
        """Indices int64 (n,)."""


class SceneModel(Sized, Reconstructor, Protocol):
    """A reconstructor that knows the size of its chips."""


class ScenePredictor(Sized, Protocol):
    """A fine-tuned model. ``class_names``: of its classes; empty where it predicts values."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of its classes, in the order of its probabilities."""

    def predict(self, batch: Batch, inputs: Sequence[str] | None = None) -> torch.Tensor:
        """Probabilities (B, classes, H, W) or values (B, 1, H, W); without H and W one answer
        for the whole chip."""


def require_inputs(model: Sized, scene: Scene, inputs: Sequence[str] | None) -> list[str]:
    """The inputs to read: as named, else all that model and scene share; ConfigError."""
    shared = [n for n in scene.modalities if n in model.modalities]
    for name in inputs or ():
        if name not in model.modalities:
            raise ConfigError(f"the model has no input {name!r}; {did_you_mean(name, shared)}")
    require_scene_modalities(scene, inputs or ())
    found = [n for n in shared if inputs is None or n in inputs]
    if not found:
        raise ConfigError(f"{scene.name}: has none of the inputs {', '.join(model.modalities)}")
    return found


def scene_cut(model: Sized, scene: Scene, inputs: Sequence[str], options: SceneOptions) -> Cut:
    """Cut a scene as a model wants it; see ``cut_scene`` for errors."""
    sizes = {n: model.config.sizes[n] for n in model.modalities}
    given = {n: scene.ratios[n] for n in inputs}
    return cut_scene(scene.grid, sizes, given, chip=options.chip, overlap=options.overlap)


def open_for(model: Sized, path: Path) -> Scene:
    """Open a scene file at the resolutions a model has learnt: all on one grid, or native."""
    return Scene(path, native=len(set(model.config.sizes.values())) > 1)


def reconstruct_scene(
    model: SceneModel,
    scene: Scene,
    *,
    inputs: Sequence[str],
    out: Path,
    outputs: Sequence[str] | None = None,
    options: SceneOptions | None = None,
    error: bool = False,
) -> list[Path]:
    """Predict modalities over a whole scene; a COG and a quick-look PNG for each.

    Writes ``out/<modality>.tif`` on the scene's grid (or a modality's own coarser one): float32 in
    physical units with NaN for nodata, or legend ids with a colour table. With draws also
    ``out/<modality>.spread.tif``; with ``error`` also ``out/<modality>.error.tif`` where the scene
    has the modality: prediction − truth, or 1 where the class is wrong. A pixel without any valid
    input is nodata.

    Raises:
        ConfigError: unknown inputs or outputs. ContractError: the model's modalities and the
        scene's differ in resolution. OutputError: ``out`` cannot be written, or holds an
        interrupted map of another command.
    """
    chosen = options or SceneOptions()
    names = require_inputs(model, scene, inputs)
    cut = scene_cut(model, scene, names, chosen)
    wanted = _outputs(model, outputs)
    layers = []
    for name in wanted:
        about, ratio = model.modalities[name], cut.ratios[name]
        kinds: list[tuple[LayerKind, str]] = [("value", name)]
        if chosen.draws:
            kinds.append(("spread", f"{name}.spread"))
        if error and name in scene.modalities:
            if scene.ratios[name] != ratio:
                raise ContractError(
                    f"{name}: the scene has it at ratio {scene.ratios[name]}, the model predicts "
                    f"it at {ratio}; give it `ratio: {ratio}` in the scene file"
                )
            kinds.append(("error", name))
        layers += [
            Layer(stem=name if k == "value" else f"{name}.{k}", kind=k, field=f, ratio=ratio,
                  modality=about)
            for k, f in kinds
        ]  # fmt: skip
    mapper = _Reconstruct(
        model, scene.modalities.select(names), tuple(wanted), chosen.draws, chosen.seed
    ).to(chosen.device)
    job = Job(scene=scene, cut=cut, mapper=mapper, layers=tuple(layers), options=chosen)
    return map_scene(job, out, keep=".scene.partial")


def predict_scene(
    model: ScenePredictor,
    scene: Scene,
    *,
    out: Path,
    inputs: Sequence[str] | None = None,
    probabilities: bool = False,
    options: SceneOptions | None = None,
) -> list[Path]:
    """Map a scene with a fine-tuned model; a COG and a quick-look PNG for each raster.

    Writes ``out`` (a ``.tif``): class ids from 0 with a colour table, nodata 255, or float32 values
    with NaN; with ``probabilities`` also ``<out's stem>.probabilities.tif``, a band per class.

    Raises as ``reconstruct_scene``; ConfigError for probabilities of a model without classes.
    """
    chosen = options or SceneOptions()
    if out.suffix != ".tif":
        raise ConfigError(f"{out}: the map is a GeoTIFF; let its name end in .tif")
    if probabilities and not model.class_names:
        raise ConfigError("probabilities: the model predicts values, not classes")
    names = require_inputs(model, scene, inputs)
    cut = scene_cut(model, scene, names, chosen)
    about = _prediction(tuple(model.class_names))
    kinds: list[LayerKind] = ["value", "probabilities"] if probabilities else ["value"]
    layers = tuple(
        Layer(stem=out.stem if k == "value" else f"{out.stem}.{k}", kind=k, field="prediction",
              ratio=1, modality=about)
        for k in kinds
    )  # fmt: skip
    mapper = _Predict(model, scene.modalities.select(names), cut.chip).to(chosen.device)
    job = Job(scene=scene, cut=cut, mapper=mapper, layers=layers, options=chosen)
    return map_scene(job, out.parent, keep=f".{out.name}.partial")


def _outputs(model: SceneModel, outputs: Sequence[str] | None) -> list[str]:
    able = list(dict.fromkeys(t.modality for t in model.tasks if not t.patch_normalise))
    for name in outputs or ():
        if name not in able:
            raise ConfigError(f"the model cannot predict {name!r}; {did_you_mean(name, able)}")
    return [n for n in able if outputs is None or n in outputs]


def _prediction(class_names: tuple[str, ...]) -> Modality:
    """What a fine-tuned model predicts, as a modality."""
    if not class_names:
        return Modality(name="prediction", bands=(Band(name="value"),))
    classes = tuple(
        LegendClass(id=i, name=name, color=_PALETTE[i % len(_PALETTE)])
        for i, name in enumerate(class_names)
    )
    bands = (Band(name="class"),)
    return Modality(name="prediction", bands=bands, kind="categorical", classes=classes)


@dataclass(frozen=True)
class _Reconstruct:
    """Reconstructs windows: a field per output, and ``<output>.spread`` with draws."""

    model: SceneModel
    modalities: ModalitySet
    outputs: tuple[str, ...]
    draws: int
    seed: int

    def __call__(self, batch: Batch) -> tuple[Sequence[int], Mapping[str, Any]]:
        inputs = list(self.modalities)
        batch = batch.to(_device(self.model))
        rows, batch = observed(self.model, batch, inputs)
        if not rows:
            return rows, {}
        said = self.model.reconstruct(
            batch, inputs, outputs=list(self.outputs), draws=self.draws, seed=self.seed
        )
        found = {n: _array(said[n].mean) for n in self.outputs}
        if self.draws:
            found |= {f"{n}.spread": _array(said[n].spread) for n in self.outputs}
        return rows, found

    def to(self, device: str) -> _Reconstruct:
        return replace(self, model=_moved(self.model, device))

    def describe(self) -> dict[str, Any]:
        return {"verb": "reconstruct", "inputs": list(self.modalities),
                "outputs": list(self.outputs), "draws": self.draws, "seed": self.seed}  # fmt: skip


@dataclass(frozen=True)
class _Predict:
    """Predicts windows: one field, ``prediction``, at the grid's resolution."""

    model: ScenePredictor
    modalities: ModalitySet
    chip: int

    def __call__(self, batch: Batch) -> tuple[Sequence[int], Mapping[str, Any]]:
        inputs = list(self.modalities)
        batch = batch.to(_device(self.model))
        rows, batch = observed(self.model, batch, inputs)
        if not rows:
            return rows, {}
        said = _array(self.model.predict(batch, inputs))
        if said.ndim == 2:  # one answer for a whole chip
            said = said[:, :, None, None]
        count = max(1, len(self.model.class_names))
        if said.ndim != 4 or said.shape[1] != count or self.chip % said.shape[-1]:
            raise ContractError(
                f"the model's prediction has shape {said.shape}; expected (B, {count}, H, W) with "
                f"H and W that divide {self.chip}"
            )
        times = self.chip // said.shape[-1]
        return rows, {"prediction": said.repeat(times, axis=2).repeat(times, axis=3)}

    def to(self, device: str) -> _Predict:
        return replace(self, model=_moved(self.model, device))

    def describe(self) -> dict[str, Any]:
        return {"verb": "predict", "inputs": list(self.modalities),
                "classes": list(self.model.class_names)}  # fmt: skip


def observed(model: object, batch: Batch, inputs: Sequence[str]) -> tuple[list[int], Batch]:
    """The chips a model can see anything of: a class map that is thinned may be valid only
    between the pixels that are taken."""
    if batch.complete or not isinstance(model, Observing):
        return list(range(len(batch))), batch
    rows = model.observed_rows(batch, inputs)
    found = [int(r) for r in rows]
    return found, batch if len(found) == len(batch) else batch.take(rows)


def _array(values: torch.Tensor) -> Any:
    return values.detach().float().cpu().numpy().astype(np.float32, copy=False)


def _device(model: object) -> torch.device:
    """Where a model's weights are; the CPU for one without."""
    import torch

    if isinstance(model, torch.nn.Module):
        first = next(model.parameters(), None)
        if first is not None:
            return first.device
    return torch.device("cpu")


def _moved(model: Any, device: str) -> Any:
    import torch

    return model.to(device) if isinstance(model, torch.nn.Module) else model
