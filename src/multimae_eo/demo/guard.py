"""Checks of every request: host, origin, size, rate; and the headers of every response."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")

_HEADERS = (
    ("content-security-policy",
     "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
     "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Limits:
    """``hosts``: host names that are served; with ``local_address`` also the address that a request
    reached. ``body``: bytes of a request. ``rate``, ``burst``: requests per second and address,
    over time and at once. ``waiting``: jobs in the queue of model work. ``header_seconds``,
    ``body_seconds``: time for a client to send either; ``half_open``: connections that do.
    """

    hosts: tuple[str, ...] = LOOPBACK
    local_address: bool = False
    body: int = 1 << 16
    rate: float = 60.0
    burst: int = 240
    waiting: int = 64
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    half_open: int = 128


@dataclass
class _Bucket:
    tokens: float
    at: float


@dataclass
class Guard:
    """An ASGI middleware. Refuses with 400 (host), 403 (origin), 413 (size) or 429 (rate)."""

    app: App
    limits: Limits = field(default_factory=Limits)
    _buckets: OrderedDict[str, _Bucket] = field(default_factory=OrderedDict)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(k.encode(), v.encode()) for k, v in _HEADERS]
                headers = list(message.get("headers", []))
                if not any(k.lower() == b"cache-control" for k, _ in headers):
                    added.append((b"cache-control", b"no-store"))
                message["headers"] = [*headers, *added]
            await send(message)

        refused = self._refused(scope, headers)
        if refused is None and scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
            body = await _read(receive, self.limits.body)
            if body is None:
                refused = (413, f"the request is larger than {self.limits.body} bytes")
            else:
                receive = _again(body, receive)
        if refused is not None:
            await _refuse(*refused, respond)
            return
        await self.app(scope, receive, respond)

    def _refused(self, scope: Message, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        hosts = self.limits.hosts
        if self.limits.local_address:
            address = str((scope.get("server") or ("",))[0])
            hosts = (*hosts, f"[{address}]" if ":" in address else address)
        if not _names(host, hosts):
            return 400, "unknown host; demo --allow_host NAME serves it by this name"
        origin = headers.get("origin")
        if origin is not None and urlsplit_host(origin) != host.lower():
            return 403, "this server serves its own page only"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.limits.body:
            return 413, f"the request is larger than {self.limits.body} bytes"
        client = (scope.get("client") or ("",))[0]
        if not self._allowed(str(client)):
            return 429, "too many requests; wait a moment"
        return None

    def _allowed(self, client: str) -> bool:
        now = time.monotonic()
        bucket = self._buckets.setdefault(client, _Bucket(float(self.limits.burst), now))
        self._buckets.move_to_end(client)
        while len(self._buckets) > 4096:
            self._buckets.popitem(last=False)
        gained = (now - bucket.at) * self.limits.rate
        bucket.tokens, bucket.at = min(self.limits.burst, bucket.tokens + gained), now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


def _names(host: str, hosts: Collection[str]) -> bool:
    """Whether a Host header names one of ``hosts``, at any port."""
    bare = host.lower()
    if not bare.endswith("]") and ":" in bare and (port := bare.rpartition(":"))[2].isdigit():
        bare = port[0]
    return bool(bare) and bare in hosts


def urlsplit_host(origin: str) -> str:
    """Host and port of an Origin header; "" where it is malformed."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


async def _read(receive: Receive, most: int) -> bytes | None:
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        part: bytes = message.get("body", b"")
        body += part
        if len(body) > most:
            return None
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, once more; then the messages after it."""
    replayed = False

    async def read() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read


async def _refuse(status: int, detail: str, send: Send) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
