"""The HTTP routes of the demo. Numbers and short ids only: no part of one is ever a path."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi import Path as InPath
from fastapi.responses import FileResponse, JSONResponse, Response

from multimae_eo.demo.dispatch import ERRORS, client_key, run_job
from multimae_eo.demo.drawing import Palette
from multimae_eo.demo.label_service import LabelService
from multimae_eo.demo.map_service import MapService
from multimae_eo.demo.runs_service import RunsService
from multimae_eo.demo.schemas import (
    ClassColorsRequest,
    FewShotRequest,
    LabelMapRequest,
    LabelsRequest,
    ReconstructRequest,
    Rectangle,
    SimilarRequest,
)
from multimae_eo.demo.services import Services
from multimae_eo.errors import DataError

Number = Annotated[int, InPath(ge=0, le=2**31 - 1)]
Zoom = Annotated[int, InPath(ge=0, le=24)]
LayerId = Annotated[str, InPath(pattern=r"^[so]\d{1,3}$")]
Metres = Annotated[float, Query(ge=-2.1e7, le=2.1e7, allow_inf_nan=False)]

_PNG: dict[int | str, dict[str, object]] = {200: {"content": {"image/png": {}}}}


class PngResponse(Response):
    """A picture."""

    media_type = "image/png"


def location_routes(app: FastAPI, services: Services) -> None:
    """The data, its locations, and their reconstruction."""
    service = services.reconstruct

    @app.get("/api/about", responses=ERRORS)
    async def info() -> dict[str, object]:
        return services.info

    @app.get("/api/locations/{location}", responses=ERRORS)
    async def look(request: Request, location: Number, palette: Palette = "official") -> Response:
        key = client_key(request, "look")
        return JSONResponse(
            await run_job(
                request, services.work, lambda _: service.look(location, palette), key=key
            )
        )

    @app.get(
        "/api/locations/{location}/picture.png", responses=ERRORS | _PNG, response_class=PngResponse
    )
    async def thumbnail(
        request: Request, location: Number, palette: Palette = "official"
    ) -> Response:
        data = await run_job(
            request, services.drawing, lambda _: service.thumbnail(location, palette)
        )
        return PngResponse(data, headers={"cache-control": "private, max-age=60"})

    @app.post("/api/reconstruct", responses=ERRORS)
    async def reconstruct(request: Request, body: ReconstructRequest) -> Response:
        key = client_key(request, "reconstruct")
        return JSONResponse(
            await run_job(
                request,
                services.work,
                lambda cancellation: service.reconstruct(
                    body.location, body.options(), cancellation
                ),
                key=key,
            )
        )


def search_routes(app: FastAPI, services: Services) -> None:
    """Features, similar locations, and maps from a few examples."""
    service = services.search

    @app.get("/api/features", responses=ERRORS)
    async def features() -> dict[str, object]:
        return service.index.status()

    @app.post("/api/features", responses=ERRORS)
    async def compute_features() -> dict[str, object]:
        service.index.start(services.background)
        return service.index.status()

    @app.post("/api/similar", responses=ERRORS)
    async def similar(request: Request, body: SimilarRequest) -> Response:
        point = None if body.point is None else (body.point.x, body.point.y)
        return JSONResponse(
            await run_job(
                request,
                services.work,
                lambda _: service.similar(body.location, point, body.count),
                key=client_key(request, "similar"),
            )
        )

    @app.post("/api/few-shot", responses=ERRORS)
    async def few_shot(request: Request, body: FewShotRequest) -> Response:
        a, b = ([(p.x, p.y) for p in points] for points in (body.a, body.b))
        return JSONResponse(
            await run_job(
                request,
                services.work,
                lambda _: service.few_shot(a, b),
                key=client_key(request, "few-shot"),
            )
        )

    @app.get("/api/location-at", responses=ERRORS)
    async def location_at(request: Request, x: Metres, y: Metres) -> dict[str, object]:
        location = await run_job(request, services.drawing, lambda _: service.at(x, y))
        return {"location": location, "bounds": service.bounds_of(location)}


def map_routes(app: FastAPI, services: Services) -> None:
    """Layers of the scene and maps over it: legends, tiles, values and statistics."""

    def service() -> MapService:
        return _map(services)

    @app.get("/api/map", responses=ERRORS)
    async def describe(request: Request) -> Response:
        return JSONResponse(
            await run_job(request, services.drawing, lambda _: service().describe())
        )

    @app.get("/api/layers/{layer}/legend", responses=ERRORS)
    async def legend(request: Request, layer: LayerId, palette: Palette = "official") -> Response:
        return JSONResponse(
            await run_job(request, services.drawing, lambda _: service().legend(layer, palette))
        )

    @app.get(
        "/api/layers/{layer}/tiles/{z}/{x}/{y}.png",
        responses=ERRORS | _PNG,
        response_class=PngResponse,
    )
    async def tile(
        request: Request, layer: LayerId, z: Zoom, x: Number, y: Number,
        palette: Palette = "official",
    ) -> Response:  # fmt: skip
        data = await run_job(
            request, services.drawing, lambda _: service().tile(layer, z, x, y, palette)
        )
        return PngResponse(data)

    @app.get("/api/layers/{layer}/value", responses=ERRORS)
    async def value(request: Request, layer: LayerId, x: Metres, y: Metres) -> Response:
        key = client_key(request, f"value {layer}")
        return JSONResponse(
            await run_job(
                request, services.drawing, lambda _: service().values(layer, x, y), key=key
            )
        )

    @app.post("/api/area", responses=ERRORS)
    async def area(request: Request, body: Rectangle) -> Response:
        bounds = (body.west, body.south, body.east, body.north)
        return JSONResponse(
            await run_job(
                request,
                services.drawing,
                lambda cancellation: service().area(body.layer, bounds, cancellation.check),
                key=client_key(request, f"area {body.layer}"),
            )
        )


def overlay_routes(app: FastAPI, services: Services) -> None:
    """Maps by the model: made on request, and downloaded."""

    @app.post("/api/layers/{layer}/make", responses=ERRORS)
    async def make(layer: LayerId) -> dict[str, object]:
        job = _map(services).overlay(layer).job
        job.start(services.background)
        return job.status()

    @app.get("/api/layers/{layer}/state", responses=ERRORS)
    async def state(layer: LayerId) -> dict[str, object]:
        return _map(services).overlay(layer).job.status()

    @app.get("/api/layers/{layer}/map.tif", responses=ERRORS, response_class=FileResponse)
    async def download(layer: LayerId) -> FileResponse:
        path = _map(services).file(layer)
        return FileResponse(path, media_type="image/tiff; application=geotiff", filename=path.name)


def label_routes(app: FastAPI, services: Services) -> None:
    """Drawn polygons: as GeoJSON, and as a map of the scene."""

    def service() -> LabelService:
        if services.labels is None:
            raise DataError("polygons need a scene; start the demo with --scene")
        return services.labels

    @app.post("/api/labels/geojson", responses=ERRORS)
    async def geojson(request: Request, body: LabelsRequest) -> Response:
        polygons = [p.drawn() for p in body.polygons]
        return JSONResponse(
            await run_job(
                request, services.drawing, lambda _: service().geojson(polygons, body.crs)
            )
        )

    @app.post("/api/labels/map", responses=ERRORS)
    async def labelled_map(request: Request, body: LabelMapRequest) -> Response:
        polygons = [p.drawn() for p in body.polygons]
        return JSONResponse(
            await run_job(
                request,
                services.work,
                lambda _: service().map(polygons, body.palette),
                key=client_key(request, "labelled map"),
            )
        )

    @app.post("/api/labels/colors", responses=ERRORS)
    async def colors(body: ClassColorsRequest) -> list[str]:
        return service().colors(body.names, body.palette)


def run_routes(app: FastAPI, services: Services) -> None:
    """Training runs."""

    def service() -> RunsService:
        if services.runs is None:
            raise DataError("no run folders were given; start the demo with --runs")
        return services.runs

    @app.get("/api/runs", responses=ERRORS)
    async def runs() -> list[dict[str, object]]:
        return service().runs()

    @app.get("/api/runs/{run}", responses=ERRORS)
    async def one_run(request: Request, run: Number) -> Response:
        return JSONResponse(await run_job(request, services.drawing, lambda _: service().run(run)))

    @app.get("/api/runs/{run}/pictures/{index}.png", responses=ERRORS | _PNG,
             response_class=FileResponse)  # fmt: skip
    async def run_picture(run: Number, index: Number) -> FileResponse:
        return FileResponse(service().picture(run, index), media_type="image/png")


def _map(services: Services) -> MapService:
    if services.map is None:
        raise DataError("there is no map without a scene; start the demo with --scene")
    return services.map
