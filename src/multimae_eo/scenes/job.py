"""A scene to be mapped, and the options of the computation; processes get it by pickling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from multimae_eo.errors import ConfigError
from multimae_eo.runtime import Precision, resolve_precision
from multimae_eo.scenes.output_layers import OutputLayer
from multimae_eo.scenes.tiling import Tiling
from multimae_eo.scenes.window_model import WindowModel
from multimae_eo.sources.scene.scene import Scene

_SMALL_WINDOW = 96


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """How a scene is cut into windows and computed.

    ``chip``: side of a window in pixels of the scene's grid (default: the model's). ``overlap``:
    share of a window's side. ``batch_size``: windows per batch (default: by the device).
    ``samples``: random masks for the predictive std (0: none is written). ``device``: where the
    model is. ``precision``: 32-true, bf16-mixed, 16-mixed, or auto, which is resolved here.
    ``workers``: processes that share the scene. ``dask``: address of a Dask scheduler
    whose workers share it instead; they read the scene and write its blocks under the paths given
    here. ``model_hash``: the model's identity, for the rasters' tags; without it an interrupted map
    is begun again. ``model_location``, ``source_location``: how model and data were named, for
    links of STAC items. ``progress`` is called with the pixels done and the pixels in all.
    """

    chip: int | None = None
    overlap: float = 0.5
    batch_size: int | None = None
    samples: int = 0
    seed: int = 0
    precision: Precision = "auto"
    device: str = "cpu"
    workers: int = 1
    dask: str = ""
    model_hash: str = ""
    model_location: str = ""
    source_location: str = ""
    progress: Callable[[int, int], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap must be in [0, 1), got {self.overlap}")
        for name, least in (("samples", 0), ("workers", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be ≥ {least}, got {value}")
        if self.dask and self.workers > 1:
            raise ConfigError("workers: give either workers (here) or dask (elsewhere)")
        object.__setattr__(self, "precision", resolve_precision(self.precision, self.device))

    def windows_per_batch(self, side: int, dates: int = 1) -> int:
        """As given, else by the device and its memory. ``side``: of a window in pixels.

        On a CPU, calls of the model cost more than small windows take.
        """
        if self.batch_size is not None:
            return self.batch_size
        if not self.device.startswith("cuda"):
            return max(1, (32 if side <= _SMALL_WINDOW else 16) // dates)
        import torch

        memory = torch.cuda.get_device_properties(self.device).total_memory
        return max(1, int(min(512, max(16, 64 * (memory >> 33)))) // dates)


@dataclass(frozen=True, kw_only=True)
class SceneJob:
    """A scene, the model that is applied to its windows, and the rasters to write.

    ``settings``: what else decides the rasters' values, JSON-ready; an interrupted map goes on only
    where they are equal. ``warning``: what looks wrong with the inputs, for the rasters' tags.
    ``tags``: further ones.
    """

    scene: Scene
    tiling: Tiling
    model: WindowModel
    layers: tuple[OutputLayer, ...]
    settings: Mapping[str, object]
    options: SceneOptions
    warning: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def on(self, device: str) -> SceneJob:
        """The same with its model on another device."""
        options = replace(self.options, device=device)
        return replace(self, model=self.model.to(device), options=options)

    def packed(self) -> SceneJob:
        """A copy that can be pickled: the model in the CPU's memory, no progress callback."""
        options = replace(self.options, progress=None)
        return replace(self, model=self.model.to("cpu"), options=options)
