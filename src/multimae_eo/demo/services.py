"""The services of one demo, by panel, and the job queues that do their work."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multimae_eo.demo.chip_locations import Places, ScenePlaces, SourcePlaces
from multimae_eo.demo.guard import Limits
from multimae_eo.demo.jobs import Ticket, Workshop
from multimae_eo.demo.map_service import MapService
from multimae_eo.demo.reconstruct_service import Asked, ReconstructService
from multimae_eo.demo.runs_service import RunsService
from multimae_eo.demo.search_service import SearchService
from multimae_eo.errors import ConfigError, MultiMAEError
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.sources.base import Source
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.version import __version__


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the demo is about, beside the model: ``scene`` or ``source``; training ``runs``;
    a fine-tuned model; a map of the scene that is there already."""

    scene: Scene | None = None
    source: Source | None = None
    runs: Path | None = None
    predictor: Predictor | None = None
    map: Path | None = None

    def __post_init__(self) -> None:
        if (self.scene is None) == (self.source is None):
            raise ConfigError("demo: give either --scene or --data")
        if self.scene is None and (self.predictor is not None or self.map is not None):
            raise ConfigError("demo: a --predictor or --map is shown on a scene; give --scene")


@dataclass
class Services:
    """Everything that answers, and the threads that do the work."""

    places: Places
    reconstruct: ReconstructService
    search: SearchService
    map: MapService | None
    runs: RunsService | None
    work: Workshop
    drawing: Workshop
    long: Workshop
    about: dict[str, Any] = field(default_factory=dict)

    def close(self) -> None:
        """Stop the threads."""
        for workshop in (self.work, self.drawing, self.long):
            workshop.close()

    def warm_up(self, ticket: Ticket) -> None:
        """Look at one place and reconstruct it, so that libraries are loaded before a request."""
        for place in self.places.strip[:1]:
            with suppress(MultiMAEError):
                inputs = list(self.places.modalities)
                self.reconstruct.look(place)
                self.reconstruct.reconstruct(place, Asked(inputs=inputs, visible=16), ticket)


def make_services(
    model: MultiMAE, shown: Shown, folder: Path, threads: int, limits: Limits
) -> Services:
    """All services of a model and what is shown; maps are written to ``folder``.

    Raises ConfigError where model and data share no modality, a run folder is none, or a map
    cannot be read.
    """
    places: Places
    if shown.scene is not None:
        places = ScenePlaces(shown.scene, model)
    else:
        assert shown.source is not None
        places = SourcePlaces(shown.source, model)
    maps = None
    if shown.scene is not None:
        maps = MapService(model, shown.scene, folder, predictor=shown.predictor, map=shown.map)
    about = {
        "version": __version__,
        "data": shown.scene.name if shown.scene is not None else _name(shown.source),
        "scene": shown.scene is not None,
        "runs": shown.runs is not None,
        "modalities": list(places.modalities),
        "places": places.count,
        "strip": [{"place": n, "title": places.title(n)} for n in places.strip],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return Services(
        places=places,
        reconstruct=ReconstructService(model, places),
        search=SearchService(model, places),
        map=maps,
        runs=None if shown.runs is None else RunsService(shown.runs),
        work=Workshop("model", threads=threads, waiting=limits.waiting),
        drawing=Workshop("drawing", threads=threads, waiting=8 * limits.waiting),
        long=Workshop("long", threads=1, waiting=limits.waiting),
        about=about,
    )


def _name(source: Source | None) -> str:
    return "" if source is None else source.name
