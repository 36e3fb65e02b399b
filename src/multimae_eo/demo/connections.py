"""Connections that are slow to send a request: closed after a time, and never more than some.

uvicorn waits for a request's headers and body as long as a client likes, and counts what waits
against the connections that it serves.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from multimae_eo.demo.guard import Limits


def bounded_protocol(limits: Limits) -> Any:
    """The class of a server's connections, for ``uvicorn.Config(http=…)``."""
    return partial(BoundedProtocol, limits=limits, waiting={})


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 whose headers have to arrive within ``header_seconds``, a body within
    ``body_seconds``. Of more than ``half_open`` connections that wait for a request, the one that
    has waited longest is closed.

    ``waiting``: shared by the connections of a server, in the order in which they began to wait.
    """

    def __init__(
        self, *arguments: Any, limits: Limits, waiting: dict[BoundedProtocol, None], **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._limits, self._waiting = limits, waiting
        self._state: object = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._follow()

    def handle_events(self) -> None:
        """Data have arrived, or a response is complete."""
        super().handle_events()
        self._follow()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by whichever side."""
        self._stop()
        super().connection_lost(exc)

    def _follow(self) -> None:
        """Start or stop the clock, by what the client has sent of its request."""
        state = self.conn.their_state
        seconds = {
            h11.IDLE: self._limits.header_seconds, h11.SEND_BODY: self._limits.body_seconds
        }.get(state)  # fmt: skip
        if state is self._state:
            return  # more of the same, on the clock that runs
        self._stop()
        self._state = state
        if seconds is None or self.transport.is_closing():
            return
        self._timer = self.loop.call_later(seconds, self.transport.abort)
        self._waiting[self] = None
        while len(self._waiting) > self._limits.half_open:
            longest = next(iter(self._waiting))
            longest._stop()
            longest.transport.abort()

    def _stop(self) -> None:
        self._waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
