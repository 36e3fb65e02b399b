"""The demo's application: services behind a guard, and one page."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from multimae_eo.demo.answering import tell_errors
from multimae_eo.demo.chip_locations import Places, ScenePlaces, SourcePlaces
from multimae_eo.demo.guard import Guard, Limits
from multimae_eo.demo.jobs import Ticket, Workshop
from multimae_eo.demo.map_service import MapService
from multimae_eo.demo.reconstruct_service import Asked, ReconstructService
from multimae_eo.demo.routes import (
    map_routes,
    overlay_routes,
    place_routes,
    run_routes,
    search_routes,
)
from multimae_eo.demo.runs_service import RunsService
from multimae_eo.demo.search_service import SearchService
from multimae_eo.errors import ConfigError, MultiMAEError
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.sources.base import Source
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.version import __version__

PAGE = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "panels.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **{
        f"{name}.js": "text/javascript; charset=utf-8"
        for name in ("main", "api", "dom", "plots", "chip", "reconstruct", "viewer", "map",
                     "search", "runs")
    },
}  # fmt: skip


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


def create_app(
    model: MultiMAE, shown: Shown, *, threads: int = 2, limits: Limits | None = None
) -> FastAPI:
    """The application. ``threads``: of model work, and as many of drawing.

    Raises ConfigError where model and data share no modality, a run folder is none, or a map
    cannot be read. Maps that are made live in a temporary folder, deleted at the end.
    """
    bounds = limits or Limits()
    folder = tempfile.TemporaryDirectory(prefix="multimae-eo-demo-")
    services = _services(model, shown, Path(folder.name), threads, bounds)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # The first look is slow where a library warms up; nobody has to wait for that.
        services.work.submit(lambda ticket: _warm_up(services, ticket))
        yield
        services.close()
        folder.cleanup()

    app = FastAPI(
        title="multimae-eo demo",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
    )
    tell_errors(app)
    place_routes(app, services)
    search_routes(app, services)
    map_routes(app, services)
    overlay_routes(app, services)
    run_routes(app, services)
    _page_routes(app)
    app.add_middleware(Guard, limits=bounds)
    return app


def _services(
    model: MultiMAE, shown: Shown, folder: Path, threads: int, limits: Limits
) -> Services:
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


def _warm_up(services: Services, ticket: Ticket) -> None:
    for place in services.places.strip[:1]:
        with suppress(MultiMAEError):
            inputs = list(services.places.modalities)
            services.reconstruct.look(place)
            services.reconstruct.reconstruct(place, Asked(inputs=inputs, visible=16), ticket)


def _name(source: Source | None) -> str:
    return "" if source is None else source.name


def _page_routes(app: FastAPI) -> None:
    """The page's files, by name, from memory: a request's path opens nothing."""
    folder = files("multimae_eo.demo") / "page"
    for name, kind in PAGE.items():
        data = (folder / name).read_bytes()
        for path in (f"/{name}", *(["/"] if name == "index.html" else [])):
            app.add_api_route(path, _giver(data, kind), methods=["GET"], include_in_schema=False)


def _giver(data: bytes, kind: str) -> Any:
    async def give() -> Response:
        return Response(data, media_type=kind)

    return give
