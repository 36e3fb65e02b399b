"""A local HTTP server of files that misbehaves on request: cut connections, pages, redirects."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Resource:
    """A file under an address.

    ``cuts``: bytes of the body after which the connection ends, one per request, then none.
    ``statuses``: errors that the next requests get instead. ``ranges``: whether it sends parts.
    ``length``: whether the size is declared. ``redirect``: an address sent instead.
    ``shift``: bytes by which a part begins too late.
    """

    body: bytes = b""
    kind: str = "application/octet-stream"
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    tag: str = '"1"'
    ranges: bool = True
    length: bool = True
    redirect: str = ""
    shift: int = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class DownloadServer:
    """``address``: without a final slash. ``resources``: by path. ``requests``: path and range."""

    address: str
    resources: dict[str, Resource] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: str, body: bytes = b"", **options: Any) -> Resource:
        """Serve a resource; returns it."""
        self.resources[path] = Resource(body=body, **options)
        return self.resources[path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: DownloadServer

    def do_GET(self) -> None:
        part = self.headers.get("Range", "")
        self.served.requests.append((self.path, part))
        resource = self.served.resources.get(self.path)
        if resource is None:
            self.send_error(404)
        elif resource.statuses:
            self.refuse(resource)
        elif resource.redirect:
            self.send_response(302)
            self.send_header("Location", resource.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_file(resource, part)

    def refuse(self, resource: Resource) -> None:
        self.send_response(resource.statuses.pop(0))
        self.send_header("Content-Length", "0")
        for name, value in resource.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_file(self, resource: Resource, part: str) -> None:
        body, size, first = resource.body, len(resource.body), 0
        same = self.headers.get("If-Range", resource.tag) == resource.tag
        match = re.fullmatch(r"bytes=(\d+)-", part)
        if match and resource.ranges and same:
            first = int(match[1])
            if first >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first += resource.shift
            body = body[first:]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", resource.kind)
        if resource.tag:
            self.send_header("ETag", resource.tag)
        if resource.length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        for name, value in resource.headers.items():
            self.send_header(name, value)
        self.end_headers()
        cut = resource.cuts.pop(0) if resource.cuts else None
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None or not resource.length:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


@contextlib.contextmanager
def serve_downloads() -> Iterator[DownloadServer]:
    """A server on this machine while the context lasts."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *arguments: None
    served = DownloadServer(f"http://127.0.0.1:{server.server_address[1]}")
    handler.served = served  # type: ignore[attr-defined]
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
