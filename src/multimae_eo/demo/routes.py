"""The addresses of the demo. Numbers and short ids only: no part of one is ever a path."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi import Path as InPath
from fastapi.responses import FileResponse, JSONResponse, Response

from multimae_eo.demo.answering import ERRORS, done, lane_of
from multimae_eo.demo.map_service import MapService
from multimae_eo.demo.runs_service import RunsService
from multimae_eo.demo.schemas import (
    FewShotRequest,
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

_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}


class PngResponse(Response):
    """A picture."""

    media_type = "image/png"


def place_routes(app: FastAPI, services: Services) -> None:
    """What is shown, its places, and their reconstruction."""
    service = services.reconstruct

    @app.get("/api/about", responses=ERRORS)
    async def about() -> dict[str, Any]:
        return services.about

    @app.get("/api/places/{place}", responses=ERRORS)
    async def look(request: Request, place: Number) -> Response:
        lane = lane_of(request, "look")
        return JSONResponse(
            await done(request, services.work, lambda _: service.look(place), lane=lane)
        )

    @app.get("/api/places/{place}/picture.png", responses=ERRORS | _PNG, response_class=PngResponse)
    async def thumbnail(request: Request, place: Number) -> Response:
        data = await done(request, services.drawing, lambda _: service.thumbnail(place))
        return PngResponse(data, headers={"cache-control": "private, max-age=60"})

    @app.post("/api/reconstruct", responses=ERRORS)
    async def reconstruct(request: Request, asked: ReconstructRequest) -> Response:
        lane = lane_of(request, "reconstruct")
        return JSONResponse(
            await done(
                request,
                services.work,
                lambda ticket: service.reconstruct(asked.place, asked.asked(), ticket),
                lane=lane,
            )
        )


def search_routes(app: FastAPI, services: Services) -> None:
    """Features, alike places, and maps from a few examples."""
    service = services.search

    @app.get("/api/features", responses=ERRORS)
    async def features() -> dict[str, Any]:
        return service.index.told()

    @app.post("/api/features", responses=ERRORS)
    async def compute_features() -> dict[str, Any]:
        service.index.want(services.long)
        return service.index.told()

    @app.post("/api/similar", responses=ERRORS)
    async def similar(request: Request, asked: SimilarRequest) -> Response:
        point = None if asked.point is None else (asked.point.x, asked.point.y)
        return JSONResponse(
            await done(
                request,
                services.work,
                lambda _: service.similar(asked.place, point, asked.count),
                lane=lane_of(request, "similar"),
            )
        )

    @app.post("/api/few-shot", responses=ERRORS)
    async def few_shot(request: Request, asked: FewShotRequest) -> Response:
        a, b = ([(p.x, p.y) for p in points] for points in (asked.a, asked.b))
        return JSONResponse(
            await done(
                request,
                services.work,
                lambda _: service.few_shot(a, b),
                lane=lane_of(request, "few-shot"),
            )
        )

    @app.get("/api/place-at", responses=ERRORS)
    async def place_at(request: Request, x: Metres, y: Metres) -> dict[str, Any]:
        place = await done(request, services.drawing, lambda _: service.at(x, y))
        return {"place": place, "bounds": service.bounds_of(place)}


def map_routes(app: FastAPI, services: Services) -> None:
    """Layers of the scene and maps over it: legends, tiles and numbers."""

    def service() -> MapService:
        return _map(services)

    @app.get("/api/map", responses=ERRORS)
    async def describe(request: Request) -> Response:
        return JSONResponse(await done(request, services.drawing, lambda _: service().describe()))

    @app.get("/api/layers/{layer}/legend", responses=ERRORS)
    async def legend(request: Request, layer: LayerId) -> Response:
        return JSONResponse(
            await done(request, services.drawing, lambda _: service().legend(layer))
        )

    @app.get(
        "/api/layers/{layer}/tiles/{z}/{x}/{y}.png",
        responses=ERRORS | _PNG,
        response_class=PngResponse,
    )
    async def tile(request: Request, layer: LayerId, z: Zoom, x: Number, y: Number) -> Response:
        data = await done(request, services.drawing, lambda _: service().tile(layer, z, x, y))
        return PngResponse(data)

    @app.get("/api/layers/{layer}/value", responses=ERRORS)
    async def value(request: Request, layer: LayerId, x: Metres, y: Metres) -> Response:
        lane = lane_of(request, f"value {layer}")
        return JSONResponse(
            await done(
                request, services.drawing, lambda _: service().values(layer, x, y), lane=lane
            )
        )

    @app.post("/api/area", responses=ERRORS)
    async def area(request: Request, asked: Rectangle) -> Response:
        bounds = (asked.west, asked.south, asked.east, asked.north)
        return JSONResponse(
            await done(
                request,
                services.drawing,
                lambda _: service().area(asked.layer, bounds),
                lane=lane_of(request, f"area {asked.layer}"),
            )
        )


def overlay_routes(app: FastAPI, services: Services) -> None:
    """Maps by the model: made when wanted, and downloaded."""

    @app.post("/api/layers/{layer}/make", responses=ERRORS)
    async def make(layer: LayerId) -> dict[str, Any]:
        job = _map(services).overlay(layer).job
        job.want(services.long)
        return job.told()

    @app.get("/api/layers/{layer}/state", responses=ERRORS)
    async def state(layer: LayerId) -> dict[str, Any]:
        return _map(services).overlay(layer).job.told()

    @app.get("/api/layers/{layer}/map.tif", responses=ERRORS, response_class=FileResponse)
    async def download(layer: LayerId) -> FileResponse:
        path = _map(services).file(layer)
        return FileResponse(path, media_type="image/tiff; application=geotiff", filename=path.name)


def run_routes(app: FastAPI, services: Services) -> None:
    """Training runs."""

    def service() -> RunsService:
        if services.runs is None:
            raise DataError("no run folders were given; start the demo with --runs")
        return services.runs

    @app.get("/api/runs", responses=ERRORS)
    async def runs() -> list[dict[str, Any]]:
        return service().runs()

    @app.get("/api/runs/{run}", responses=ERRORS)
    async def one_run(request: Request, run: Number) -> Response:
        return JSONResponse(await done(request, services.drawing, lambda _: service().run(run)))

    @app.get("/api/runs/{run}/pictures/{index}.png", responses=ERRORS | _PNG,
             response_class=FileResponse)  # fmt: skip
    async def run_picture(run: Number, index: Number) -> FileResponse:
        return FileResponse(service().picture(run, index), media_type="image/png")


def _map(services: Services) -> MapService:
    if services.map is None:
        raise DataError("there is no map without a scene; start the demo with --scene")
    return services.map
