"""The services of one demo, by panel, and the job queues that do their work."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from multimae_eo.demo.chip_locations import Locations, SceneLocations, SourceLocations
from multimae_eo.demo.guard import Limits
from multimae_eo.demo.jobs import Cancellation, JobQueue
from multimae_eo.demo.label_service import LabelService
from multimae_eo.demo.map_service import MapService
from multimae_eo.demo.reconstruct_service import MaskOptions, ReconstructService
from multimae_eo.demo.runs_service import RunsService
from multimae_eo.demo.search_service import SearchService
from multimae_eo.errors import ConfigError, MultiMAEError
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.runtime import Precision
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.sources.base import Source
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.version import __version__


@dataclass(frozen=True, kw_only=True)
class DemoData:
    """The data that the demo shows.

    ``scene`` or ``source``; ``runs``: a folder of training runs; ``predictor``: a fine-tuned model;
    ``map``: an existing raster of the scene, and ``accuracy`` its record of ``assess`` or ``map``.
    """

    scene: Scene | None = None
    source: Source | None = None
    runs: Path | None = None
    predictor: Predictor | None = None
    map: Path | None = None
    accuracy: Path | None = None
    device: str = "cpu"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if (self.scene is None) == (self.source is None):
            raise ConfigError("demo: give either --scene or --data")
        if self.scene is None and (self.predictor is not None or self.map is not None):
            raise ConfigError("demo: a --predictor or --map is shown on a scene; give --scene")
        if self.accuracy is not None and self.map is None:
            raise ConfigError("demo: --accuracy is that of a map; give --map")


@dataclass
class Services:
    """A service per panel, and the job queues: model ``work``, ``drawing``, and ``background``."""

    locations: Locations
    reconstruct: ReconstructService
    search: SearchService
    map: MapService | None
    labels: LabelService | None
    runs: RunsService | None
    work: JobQueue
    drawing: JobQueue
    background: JobQueue
    info: dict[str, object] = field(default_factory=dict)

    def close(self) -> None:
        """Stop the threads."""
        for queue in (self.work, self.drawing, self.background):
            queue.close()

    def warm_up(self, cancellation: Cancellation) -> None:
        """Look at one location and reconstruct it, so that libraries are loaded in time."""
        for location in self.locations.strip[:1]:
            with suppress(MultiMAEError):
                inputs = list(self.locations.modalities)
                self.reconstruct.look(location)
                self.reconstruct.reconstruct(
                    location, MaskOptions(inputs=inputs, visible=16), cancellation
                )


def make_services(
    model: MultiMAE, data: DemoData, folder: Path, threads: int, limits: Limits
) -> Services:
    """All services of a model and data; maps are written to ``folder``.

    Raises ConfigError where model and data share no modality, a run folder is none, or a map
    cannot be read.
    """
    locations: Locations
    maps = labels = None
    options = SceneOptions(device=data.device, precision=data.precision)
    model.to(data.device)
    if data.scene is not None:
        name, locations = data.scene.name, SceneLocations(data.scene, model)
        maps = MapService(
            model,
            data.scene,
            folder,
            predictor=data.predictor,
            map=data.map,
            accuracy=data.accuracy,
            options=options,
        )
    else:
        assert data.source is not None
        name, locations = data.source.name, SourceLocations(data.source, model)
    search = SearchService(model, locations, options)
    if data.scene is not None:
        labels = LabelService(data.scene, search)
    info = {
        "version": __version__,
        "data": name,
        "scene": data.scene is not None,
        "runs": data.runs is not None,
        "modalities": list(locations.modalities),
        "locations": locations.count,
        "strip": [{"location": n, "title": locations.title(n)} for n in locations.strip],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return Services(
        locations=locations,
        reconstruct=ReconstructService(model, locations, options),
        search=search,
        map=maps,
        labels=labels,
        runs=None if data.runs is None else RunsService(data.runs),
        work=JobQueue("model", threads=threads, waiting=limits.waiting),
        drawing=JobQueue("drawing", threads=threads, waiting=8 * limits.waiting),
        background=JobQueue("background", threads=1, waiting=limits.waiting),
        info=info,
    )
