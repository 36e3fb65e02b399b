"""The verb of the page to play with."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from multimae_eo.cli.parts import SOURCE, Verb
from multimae_eo.errors import ConfigError


def _demo_options(parser: Any) -> None:
    parser.add_argument("--model", type=str, required=True, help="model folder")
    parser.add_argument("--scene", type=str, default=None, help="scene file (YAML)")
    parser.add_argument("--data", type=str, default=None, help=f"instead of a scene: {SOURCE}")
    parser.add_argument("--predictor", type=str, default=None, help="a fine-tuned model's folder")
    parser.add_argument("--map", type=str, default=None, help="a raster to lay over the scene")
    parser.add_argument("--runs", type=str, default=None, help="a run folder, or a folder of them")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port (0: any that is free)")
    parser.add_argument("--threads", type=int, default=None, help="of model work (default: cores)")
    parser.add_argument("--check", action="store_true", help="load everything, answer one request "
                        "and end")  # fmt: skip


def _demo(options: Any, _: list[str]) -> None:
    begun = time.perf_counter()
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ConfigError("the demo needs more: pip install 'multimae-eo[demo]'") from error
    if not 0 <= options.port < 65536:
        raise ConfigError(f"--port: expected 0 … 65535, got {options.port}")
    app = _app(options)
    if options.check:
        _check(app)
        print(f"ready after {time.perf_counter() - begun:.1f} s")
        return
    socket = _listening(options.host, options.port)
    host, port = socket.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"loaded in {time.perf_counter() - begun:.1f} s", file=sys.stderr)
    print(f"http://{shown}:{port}/", flush=True)
    config = uvicorn.Config(app, log_level="warning", server_header=False, limit_concurrency=256)
    uvicorn.Server(config).run(sockets=[socket])


def _app(options: Any) -> Any:
    import os

    import torch

    from multimae_eo.demo.guard import LOOPBACK, Limits
    from multimae_eo.demo.server import create_app
    from multimae_eo.demo.services import DemoData
    from multimae_eo.loading.open_source import open_source
    from multimae_eo.network.multimae import MultiMAE
    from multimae_eo.network.predictor import Predictor
    from multimae_eo.scenes.scene_inputs import open_for

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = options.threads or max(1, min(cores or 1, 8))
    if threads < 1:
        raise ConfigError(f"--threads must be ≥ 1, got {threads}")
    # Requests are small: several at once serve people better than one on all cores.
    torch.set_num_threads(max(1, (cores or 1) // threads))
    model = MultiMAE.from_pretrained(options.model)
    shown = DemoData(
        scene=None if options.scene is None else open_for(model, Path(options.scene)),
        source=None if options.data is None else open_source(options.data),
        runs=None if options.runs is None else Path(options.runs),
        predictor=None
        if options.predictor is None
        else Predictor.from_pretrained(options.predictor),
        map=None if options.map is None else Path(options.map),
    )
    # Beyond loopback one asked for it: the names are then those of the user's network.
    local = options.host in LOOPBACK
    limits = Limits() if local else Limits(hosts=() if options.host in ("0.0.0.0", "::")
                                           else (*LOOPBACK, options.host))  # fmt: skip
    return create_app(model, shown, threads=threads, limits=limits)


def _listening(host: str, port: int) -> Any:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        # From here on whoever reads the address can connect; answers wait for the server.
        listening.listen(256)
    except OSError as error:
        listening.close()
        raise ConfigError(f"{host}:{port}: {error.strerror}; choose another --port") from error
    return listening


def _check(app: Any) -> None:
    """One request through everything, without a network."""
    import asyncio

    said: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            said.append(message["status"])

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": "/api/about", "raw_path": b"/api/about", "query_string": b"",
        "root_path": "", "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    if said != [200]:
        raise ConfigError(f"the demo does not answer: {said}")


DEMO_VERBS: dict[str, Verb] = {
    "demo": (_demo_options, _demo, "a page: hide, map, search and look"),
}
