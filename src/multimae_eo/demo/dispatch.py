"""From a request to the job queue that does its work, and from errors to responses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from multimae_eo.demo.jobs import BusyError, Cancellation, JobQueue, SupersededError
from multimae_eo.demo.schemas import ErrorResponse
from multimae_eo.errors import DataError, MultiMAEError

T = TypeVar("T")

ERRORS: dict[int | str, dict[str, object]] = {
    code: {"model": ErrorResponse, "description": reason}
    for code, reason in (
        (400, "cannot be done, and why"),
        (403, "from another site's page"),
        (404, "no such location, layer or run"),
        (409, "superseded by a newer request of the same client"),
        (413, "too large"),
        (422, "malformed"),
        (429, "too many requests"),
        (503, "the job queue is full"),
    )
}
_CLIENT = "x-client"


def client_key(request: Request, kind: str) -> str:
    """The job key of a page's requests of one kind, of which a newer one supersedes the older.

    "" for a request that names no client.
    """
    client = request.headers.get(_CLIENT, "")
    return f"{kind}:{client[:64]}" if client else ""


async def run_job(
    request: Request, queue: JobQueue, work: Callable[[Cancellation], T], *, key: str = ""
) -> T:
    """The result of ``work``, done by a queue; cancelled when the client disconnects.

    Raises BusyError, SupersededError, and what ``work`` raises.
    """
    job = queue.submit(work, key=key)
    waiting = asyncio.wrap_future(job.future)
    # A cancelled job may still fail, when nobody waits for it any more.
    waiting.add_done_callback(lambda f: None if f.cancelled() else f.exception())
    try:
        while True:
            finished, _ = await asyncio.wait({waiting}, timeout=0.25)
            if finished:
                break
            if await request.is_disconnected():
                job.cancel()
                raise SupersededError("the client disconnected")
    except asyncio.CancelledError:
        job.cancel()
        raise
    if waiting.cancelled():
        raise SupersededError("superseded by a newer request of this client")
    result: T = waiting.result()
    return result


def add_error_handlers(app: FastAPI) -> None:
    """Turn users' mistakes into responses of one line."""

    def respond(_: Request, error: Exception) -> Response:
        code, headers = 400, {}
        if isinstance(error, BusyError):
            code, headers = 503, {"retry-after": "1"}
        elif isinstance(error, SupersededError):
            code = 409
        elif isinstance(error, DataError):
            code = 404
        return JSONResponse({"detail": str(error)}, code, headers)

    def malformed(_: Request, error: Exception) -> Response:
        errors: list[dict[str, Any]] = getattr(error, "errors", list)()
        first = errors[0] if errors else {"loc": (), "msg": "malformed"}
        field = ".".join(str(p) for p in first["loc"] if p != "body")
        return JSONResponse({"detail": f"{field}: {first['msg']}".removeprefix(": ")}, 422)

    from fastapi.exceptions import RequestValidationError

    app.add_exception_handler(MultiMAEError, respond)
    app.add_exception_handler(RequestValidationError, malformed)
