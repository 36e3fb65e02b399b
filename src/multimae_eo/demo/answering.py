"""Between a request and the threads that do its work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from multimae_eo.demo.jobs import BusyError, SupersededError, Ticket, Workshop
from multimae_eo.demo.schemas import Told
from multimae_eo.errors import DataError, MultiMAEError

T = TypeVar("T")

ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": Told, "description": why}
    for code, why in (
        (400, "cannot be done, and why"),
        (403, "from another site's page"),
        (404, "no such place, layer or run"),
        (409, "a newer request of the same client took its place"),
        (413, "too large"),
        (422, "malformed"),
        (429, "too many requests"),
        (503, "too much is waiting"),
    )
}
_CLIENT = "x-client"


def lane_of(request: Request, kind: str) -> str:
    """Requests of one page and kind replace one another; others have no lane."""
    client = request.headers.get(_CLIENT, "")
    return f"{kind}:{client[:64]}" if client else ""


async def done(
    request: Request, workshop: Workshop, work: Callable[[Ticket], T], *, lane: str = ""
) -> T:
    """Have ``work`` done by a workshop; given up when the client goes away."""
    order = workshop.submit(work, lane=lane)
    waiting = asyncio.wrap_future(order.future)
    # What is given up may still fail; nobody is left to hear of it.
    waiting.add_done_callback(lambda f: None if f.cancelled() else f.exception())
    try:
        while True:
            finished, _ = await asyncio.wait({waiting}, timeout=0.25)
            if finished:
                break
            if await request.is_disconnected():
                order.cancel()
                raise SupersededError("the client went away")
    except asyncio.CancelledError:
        order.cancel()
        raise
    if waiting.cancelled():
        raise SupersededError("a newer request of this client took its place")
    said: T = waiting.result()
    return said


def tell_errors(app: FastAPI) -> None:
    """Users' mistakes become answers of one line."""

    def answer(_: Request, error: Exception) -> Response:
        code, headers = 400, {}
        if isinstance(error, BusyError):
            code, headers = 503, {"retry-after": "1"}
        elif isinstance(error, SupersededError):
            code = 409
        elif isinstance(error, DataError):
            code = 404
        return JSONResponse({"detail": str(error)}, code, headers)

    def malformed(_: Request, error: Exception) -> Response:
        told: list[dict[str, Any]] = getattr(error, "errors", list)()
        first = told[0] if told else {"loc": (), "msg": "malformed"}
        where = ".".join(str(p) for p in first["loc"] if p != "body")
        return JSONResponse({"detail": f"{where}: {first['msg']}".removeprefix(": ")}, 422)

    from fastapi.exceptions import RequestValidationError

    app.add_exception_handler(MultiMAEError, answer)
    app.add_exception_handler(RequestValidationError, malformed)
