"""Maps of a scene: modalities reconstructed; and what all maps of a scene begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from multimae_eo.errors import ConfigError, ContractError, did_you_mean
from multimae_eo.inference.reconstruct_chips import Reconstructor
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Batch
from multimae_eo.scenes.engine import Job, SceneOptions, map_scene
from multimae_eo.scenes.layers import Layer, LayerKind
from multimae_eo.scenes.tiling import Cut, cut_scene
from multimae_eo.sources.scene.scene import Scene, require_scene_modalities
from multimae_eo.sources.scene.single_raster import RASTER_SUFFIXES, RasterRule

if TYPE_CHECKING:
    import torch


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


def open_for(
    model: Sized,
    path: Path,
    *,
    inputs: Sequence[str] | None = None,
    rule: RasterRule | None = None,
) -> Scene:
    """Open a scene file, or a single raster that holds all ``inputs`` (default: the model's).

    At the resolutions the model has learnt: all on one grid, or native. ``rule``: what a raster
    does not say of itself. Raises as ``Scene`` and ``Scene.of_raster``; ConfigError for a rule
    beside a scene file.
    """
    sizes = model.config.sizes
    if path.suffix.lower() not in RASTER_SUFFIXES:
        if rule not in (None, RasterRule()):
            raise ConfigError(f"{path}: level and scale of its rasters stand in the scene file")
        return Scene(path, native=len(set(sizes.values())) > 1)
    chosen = model.modalities.select(inputs or list(model.modalities))
    side = max(sizes[n] for n in chosen)
    ratios = {n: side // sizes[n] for n in chosen if side % sizes[n] == 0}
    return Scene.of_raster(path, chosen, rule, ratios=ratios)


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
    )
    job = Job(
        scene=scene,
        cut=cut,
        mapper=mapper if chosen.dask else mapper.to(chosen.device),
        layers=tuple(layers),
        options=chosen,
    )
    return map_scene(job, out, keep=".scene.partial")


def _outputs(model: SceneModel, outputs: Sequence[str] | None) -> list[str]:
    able = list(dict.fromkeys(t.modality for t in model.tasks if not t.patch_normalise))
    for name in outputs or ():
        if name not in able:
            raise ConfigError(f"the model cannot predict {name!r}; {did_you_mean(name, able)}")
    return [n for n in able if outputs is None or n in outputs]


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
        batch = batch.to(device_of(self.model))
        rows, batch = observed(self.model, batch, inputs)
        if not rows:
            return rows, {}
        said = self.model.reconstruct(
            batch, inputs, outputs=list(self.outputs), draws=self.draws, seed=self.seed
        )
        found = {n: array_of(said[n].mean) for n in self.outputs}
        if self.draws:
            found |= {f"{n}.spread": array_of(said[n].spread) for n in self.outputs}
        return rows, found

    def to(self, device: str) -> _Reconstruct:
        return replace(self, model=moved(self.model, device))

    def describe(self) -> dict[str, Any]:
        return {"verb": "reconstruct", "inputs": list(self.modalities),
                "outputs": list(self.outputs), "draws": self.draws, "seed": self.seed}  # fmt: skip


def observed(model: object, batch: Batch, inputs: Sequence[str]) -> tuple[list[int], Batch]:
    """The chips a model can see anything of: a class map that is thinned may be valid only
    between the pixels that are taken."""
    if batch.complete or not isinstance(model, Observing):
        return list(range(len(batch))), batch
    rows = model.observed_rows(batch, inputs)
    found = [int(r) for r in rows]
    return found, batch if len(found) == len(batch) else batch.take(rows)


def array_of(values: torch.Tensor) -> Any:
    """float32 in the host's memory."""
    return values.detach().float().cpu().numpy().astype(np.float32, copy=False)


def device_of(model: object) -> torch.device:
    """Where a model's weights are; the CPU for one without."""
    import torch

    if isinstance(model, torch.nn.Module):
        first = next(model.parameters(), None)
        if first is not None:
            return first.device
    return torch.device("cpu")


def moved(model: Any, device: str) -> Any:
    """A model on a device; what is no module stays."""
    import torch

    return model.to(device) if isinstance(model, torch.nn.Module) else model
