"""The demo's application: routes behind a guard, and one page."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response

from multimae_eo.demo.dispatch import add_error_handlers
from multimae_eo.demo.guard import Guard, Limits
from multimae_eo.demo.routes import (
    label_routes,
    location_routes,
    map_routes,
    overlay_routes,
    run_routes,
    search_routes,
)
from multimae_eo.demo.services import DemoData, make_services
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.version import __version__

PAGE = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "panels.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **{
        f"{name}.js": "text/javascript; charset=utf-8"
        for name in ("main", "api", "dom", "plots", "chip", "reconstruct", "viewer", "map",
                     "search", "label", "runs")
    },
}  # fmt: skip


def create_app(
    model: MultiMAE, data: DemoData, *, threads: int = 2, limits: Limits | None = None
) -> FastAPI:
    """The application. ``threads``: of model work, and as many of drawing.

    Raises ConfigError where model and data share no modality, a run folder is none, or a map
    cannot be read. Maps that are made live in a temporary folder, deleted at the end.
    """
    bounds = limits or Limits()
    folder = tempfile.TemporaryDirectory(prefix="multimae-eo-demo-")
    services = make_services(model, data, Path(folder.name), threads, bounds)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # The first reconstruction is slow while libraries warm up; nobody has to wait for that.
        services.work.submit(services.warm_up)
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
    add_error_handlers(app)
    location_routes(app, services)
    search_routes(app, services)
    map_routes(app, services)
    overlay_routes(app, services)
    label_routes(app, services)
    run_routes(app, services)
    _page_routes(app)
    app.add_middleware(Guard, limits=bounds)
    return app


def _page_routes(app: FastAPI) -> None:
    """The page's files, by name, from memory: a request's path opens nothing."""
    folder = files("multimae_eo.demo") / "page"
    for name, kind in PAGE.items():
        data = (folder / name).read_bytes()
        for path in (f"/{name}", *(["/"] if name == "index.html" else [])):
            app.add_api_route(path, _giver(data, kind), methods=["GET"], include_in_schema=False)


def _giver(data: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def give() -> Response:
        return Response(data, media_type=kind)

    return give
