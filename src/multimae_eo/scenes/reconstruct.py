"""Maps of a scene: modalities reconstructed from others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, ContractError, did_you_mean
from multimae_eo.files import single_writer
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sample import Batch
from multimae_eo.scenes import engine
from multimae_eo.scenes.job import SceneJob, SceneOptions
from multimae_eo.scenes.output_layers import OutputLayer
from multimae_eo.scenes.scene_inputs import check_scene, require_inputs, scene_tiling
from multimae_eo.scenes.tiling import Tiling
from multimae_eo.scenes.window_model import NetworkWindows, host_array
from multimae_eo.sources.scene.scene import Scene


@single_writer()
def reconstruct_scene(
    model: MultiMAE,
    scene: Scene,
    *,
    inputs: Sequence[str],
    out: Path,
    outputs: Sequence[str] | None = None,
    options: SceneOptions | None = None,
    error: bool = False,
) -> list[Path]:
    """Predict modalities over a whole scene; returns the paths of the COGs.

    Writes ``out/<modality>.tif`` on the scene's grid (or a modality's own coarser one): float32 in
    physical units with NaN for nodata, or class ids with a colour table. With draws also
    ``out/<modality>.spread.tif``, the predictive std or a class map's entropy; with ``error`` also
    ``out/<modality>.error.tif`` where the scene has the modality: prediction − truth, or 1 where
    the class is wrong. Beside each lies a quick-look PNG. A pixel without any valid input is
    nodata.

    Raises:
        ConfigError: unknown inputs or outputs. ContractError: the model's modalities and the
        scene's differ in resolution. OutputError: ``out`` cannot be written, or holds an
        interrupted map of another command.
    """
    options = options or SceneOptions()
    window_model = WindowReconstructor(
        network=model,
        inputs=require_inputs(model.modalities, scene, inputs),
        outputs=_outputs(model, outputs, scene),
        samples=options.samples,
        seed=options.seed,
    )
    tiling = scene_tiling(window_model.sizes, scene, window_model.inputs, options)
    job = SceneJob(
        scene=scene,
        tiling=tiling,
        model=window_model if options.dask else window_model.to(options.device),
        layers=tuple(
            layer
            for name in window_model.outputs
            for layer in _layers(window_model, scene, tiling, name, error=error)
        ),
        settings={
            "subcommand": "reconstruct",
            "inputs": list(window_model.inputs),
            "outputs": list(window_model.outputs),
            "samples": options.samples,
            "seed": options.seed,
        },
        options=options,
        warning=check_scene(model, scene, window_model.inputs, tiling),
    )
    return engine.run(job, out, keep=".scene.partial")


def _outputs(model: MultiMAE, names: Sequence[str] | None, scene: Scene) -> tuple[str, ...]:
    """The modalities to predict: as named, else all that the scene does not have as a series."""
    predictable = list(dict.fromkeys(t.modality for t in model.tasks if t.reconstructs))
    for name in predictable if names is None else names:
        if name in scene.dates and (names is not None or len(predictable) == 1):
            raise ConfigError(
                f"{scene.name}: {name} has {len(scene.dates[name])} dates, and a reconstructed "
                "scene is one image; reconstruct the dates of its chips (reconstruct --data)"
            )
    if names is None:
        predictable = [n for n in predictable if n not in scene.dates]
    for name in names or ():
        if name not in predictable:
            raise ConfigError(
                f"the model cannot predict {name!r}; {did_you_mean(name, predictable)}"
            )
    return tuple(n for n in predictable if names is None or n in names)


def _layers(
    model: WindowReconstructor, scene: Scene, tiling: Tiling, name: str, *, error: bool
) -> list[OutputLayer]:
    """The rasters of one output: value, and where requested uncertainty and error."""
    modality, ratio = model.network.modalities[name], tiling.ratios[name]
    value = OutputLayer(stem=name, kind="value", field=name, ratio=ratio, modality=modality)
    layers = [value]
    if model.samples:
        stem = f"{name}.spread"
        layers.append(replace(value, stem=stem, kind="std", field=stem))
    if error and name in scene.modalities:
        if scene.ratios[name] != ratio:
            raise ContractError(
                f"{name}: the scene has it at ratio {scene.ratios[name]}, the model predicts "
                f"it at {ratio}; give it `ratio: {ratio}` in the scene file"
            )
        layers.append(replace(value, stem=f"{name}.error", kind="error"))
    return layers


@dataclass(frozen=True, kw_only=True)
class WindowReconstructor(NetworkWindows[MultiMAE]):
    """Reconstructs windows: a field per output, and ``<output>.spread``, its std, with samples."""

    outputs: tuple[str, ...]
    samples: int = 0
    seed: int = 0

    @property
    def encoder(self) -> MultiMAE:
        """See ``NetworkWindows``."""
        return self.network

    def fields(self, batch: Batch) -> dict[str, npt.NDArray[np.generic]]:
        """See ``NetworkWindows``."""
        reconstructed = self.network.reconstruct(
            batch,
            list(self.inputs),
            outputs=list(self.outputs),
            samples=self.samples,
            seed=self.seed,
            uncertainty=self.samples > 0,
        )
        fields: dict[str, npt.NDArray[np.generic]] = {
            n: host_array(reconstructed[n].mean) for n in self.outputs
        }
        if self.samples:
            fields |= {f"{n}.spread": host_array(reconstructed[n].std) for n in self.outputs}
        return fields
