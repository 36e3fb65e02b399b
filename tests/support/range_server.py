"""A local HTTP server of a folder that serves ranges, counts requests, and drops connections."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Served:
    """``address``: of the folder. ``requests``: path and range (or HEAD) of each. ``drop``: how
    many of the next requests, after ``spare`` more, lose their connection half-way."""

    address: str
    requests: list[tuple[str, str]] = field(default_factory=list)
    drop: int = 0
    spare: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()

    def dropped(self, path: str, part: str) -> bool:
        with self.lock:
            self.requests.append((path, part))
            if self.spare:
                self.spare -= 1
                return False
            if self.drop:
                self.drop -= 1
                return True
            return False


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """Serve a folder on this machine while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.respond(body=True)

        def do_HEAD(self) -> None:
            self.respond(body=False)

        def respond(self, *, body: bool) -> None:
            part = self.headers.get("Range", "") if body else "HEAD"
            drop = served.dropped(self.path, part)
            path = folder / self.path.split("?")[0].lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data, first = path.read_bytes(), 0
            size = len(data)
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", part):
                first = int(match[1])
                data = data[first : int(match[2] or size - 1) + 1]
                self.send_response(206)
                last = first + len(data) - 1
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            else:
                self.send_response(200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data[: len(data) // 2] if drop else data)
            if drop:
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = Served(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
