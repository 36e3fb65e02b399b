"""Clients that connect and do not send a request hold nobody up."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

pytest.importorskip("uvicorn")

import httpx
import uvicorn

from multimae_eo.demo.connections import bounded_protocol
from multimae_eo.demo.guard import LOOPBACK, Guard, Limits

LIMITS = Limits(rate=1e6, burst=10**6)


async def echo(scope, receive, send) -> None:
    """Responds with the length of the body."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message.get("more_body"):
            break
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(len(body)).encode()})


@contextmanager
def serving(limits: Limits) -> Iterator[int]:
    """A server behind the page's guard, as the command starts it; its port."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    config = uvicorn.Config(
        Guard(echo, limits), http=bounded_protocol(limits), ws="none", lifespan="off",
        log_level="error", limit_concurrency=limits.half_open + 256,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


def half_open(port: int, count: int) -> list[socket.socket]:
    """Connections that send nothing, some headers, or headers and a part of the body."""
    begun = [b"", b"GET / HTTP/1.1\r\nHost: local",
             b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"]  # fmt: skip
    sockets = []
    for i in range(count):
        sockets.append(socket.create_connection(("127.0.0.1", port)))
        sockets[-1].sendall(begun[i % len(begun)])
    return sockets


def is_closed(client: socket.socket, seconds: float) -> bool:
    client.settimeout(seconds)
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def test_300_half_open_connections_leave_the_page_to_others():
    with serving(LIMITS) as port:
        clients = half_open(port, 300)
        for length in (1, 10, 60_000):
            response = httpx.post(f"http://localhost:{port}/", content=b"x" * length, timeout=2)
            assert (response.status_code, response.json()) == (200, length)
        assert is_closed(clients[0], 10), "the one that has waited longest"
        for client in clients:
            client.close()


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_request_that_does_not_arrive_is_not_waited_for(kind):
    short = replace(LIMITS, header_seconds=0.2, body_seconds=0.2)
    with serving(short) as port:
        clients = half_open(port, kind + 1)
        assert is_closed(clients[kind], 30)
    with serving(LIMITS) as port:
        clients = half_open(port, kind + 1)
        assert not is_closed(clients[kind], 0.5)
        clients[kind].close()


def test_a_client_that_sends_slowly_and_one_that_asks_again_are_served():
    with serving(LIMITS) as port:
        (client,) = half_open(port, 1)
        for part in (b"POST / HT", b"TP/1.1\r\nHost: localhost\r\nContent-", b"Length: 4\r\n\r\n",
                     b"ab", b"cd"):  # fmt: skip
            client.sendall(part)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
        client.close()
        with httpx.Client(base_url=f"http://localhost:{port}") as session:
            assert [session.get("/").status_code for _ in range(5)] == [200] * 5


@pytest.mark.parametrize(("limits", "host", "status"), [
    (Limits(), "localhost:80", 200),
    (Limits(), "192.168.7.7", 400),
    (Limits(hosts=()), "", 400),
    (Limits(hosts=(*LOOPBACK, "eo.example.org"), local_address=True), "eo.example.org:8000", 200),
    (Limits(hosts=(*LOOPBACK, "eo.example.org"), local_address=True), "EO.example.org", 200),
    (Limits(local_address=True), "eo.example.org", 400),
    (Limits(local_address=True), "evil.example", 400),
    (Limits(hosts=(), local_address=True), "127.0.0.1:8000", 200),
])  # fmt: skip
def test_the_names_and_the_address_that_are_served(limits, host, status):
    with serving(limits) as port:
        url = f"http://127.0.0.1:{port}/"
        assert httpx.get(url, headers={"host": host}).status_code == status
