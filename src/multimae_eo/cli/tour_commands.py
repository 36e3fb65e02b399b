"""Subcommands that show the package: quickstart, demo."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from multimae_eo.cli.parser import Subcommand, argument
from multimae_eo.errors import ConfigError
from multimae_eo.runtime import Precision

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import Message

    from multimae_eo.demo.guard import Limits


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Run all steps on a synthetic data set: from chips to a map, with a report.

    Args:
        out: folder to write
        seed: seed of the data and the model
        chips: number of synthetic chips
        device: auto, cpu, cuda, cuda:N or mps
        precision: auto, 32-true or bf16-mixed; auto: bfloat16 where the device multiplies it
            natively
        data_only: stop when chips and a scene are written
    """

    examples: ClassVar[tuple[str, ...]] = (
        "quickstart --out quickstart",
        "quickstart --data_only --chips 200 --out small",
    )
    out: str = "quickstart"
    seed: int = 0
    chips: int = 600
    device: str = "auto"
    precision: Precision = "auto"
    data_only: bool = argument(default=False, aliases=("--world_only",))

    def run(self) -> None:
        """Print the report's path, or the dataset file's."""
        from multimae_eo.quickstart import make_synthetic_data, quickstart

        out = Path(self.out)
        if self.data_only:
            print(make_synthetic_data(out, seed=self.seed, chips=self.chips))
            return
        report = quickstart(
            out, seed=self.seed, chips=self.chips, device=self.device, precision=self.precision
        )
        print(report)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Serve a web page: mask and reconstruct, map, search, training runs.

    Args:
        model: model folder
        scene: scene file (YAML)
        data: instead of a scene: SOURCE
        predictor: folder of a fine-tuned model
        map: a raster to show over the scene
        accuracy: accuracy and areas of --map: accuracy.json of assess, or record.json of map
        runs: a run folder, or a folder of them
        host: address to listen on; 0.0.0.0 are all of this machine's
        allow_host: a name by which browsers reach the page, beside the address; repeatable
        port: port (0: any free one)
        threads: worker threads of the model (default: number of cores)
        device: auto, cpu, cuda, cuda:N or mps
        precision: precision of the model; auto: bfloat16 where the device multiplies it natively
        check: load everything, serve one request and exit
    """

    examples: ClassVar[tuple[str, ...]] = (
        "demo --model runs/first/model --scene scene.yaml --runs runs",
    )
    model: str
    scene: str | None = None
    data: str | None = None
    predictor: str | None = None
    map: str | None = None
    accuracy: str | None = None
    runs: str | None = None
    host: str = "127.0.0.1"
    allow_host: tuple[str, ...] | None = argument(default=None, aliases=("--allow-host",))
    port: int = 8000
    threads: int | None = None
    device: str = "auto"
    precision: Precision = "auto"
    check: bool = False

    def run(self) -> None:
        """Print the page's address and serve until interrupted."""
        start = time.perf_counter()
        try:
            import fastapi  # noqa: F401
            import uvicorn
        except ImportError as error:
            raise ConfigError("the demo needs more: pip install 'multimae-eo[demo]'") from error
        if not 0 <= self.port < 65536:
            raise ConfigError(f"--port: expected 0 … 65535, got {self.port}")
        limits = self._limits()
        app = self._app(limits)
        if self.check:
            _check(app)
            print(f"ready after {time.perf_counter() - start:.1f} s")
            return
        listening = _listen(self.host, self.port)
        host, port = listening.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        print(f"loaded in {time.perf_counter() - start:.1f} s", file=sys.stderr)
        print(f"http://{address}:{port}/", flush=True)
        from multimae_eo.demo.connections import bounded_protocol

        config = uvicorn.Config(
            app, http=bounded_protocol(limits), ws="none", log_level="warning",
            server_header=False, limit_concurrency=limits.half_open + 256,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listening])

    def _limits(self) -> Limits:
        """Which names are served; an address that others use is checked, too."""
        from multimae_eo.demo.guard import LOOPBACK, Limits

        names = tuple(name.lower() for name in self.allow_host or ())
        for name in names:
            if not re.fullmatch(r"[a-z0-9.-]+|\[[0-9a-f:.]+\]", name):
                raise ConfigError(
                    f"--allow_host {name}: expected a host name or address, without scheme and port"
                )
        every = self.host in ("0.0.0.0", "::")
        bound = () if every else (f"[{self.host}]" if ":" in self.host else self.host.lower(),)
        return Limits(hosts=(*LOOPBACK, *bound, *names), local_address=every)

    def _app(self, limits: Limits) -> FastAPI:
        import torch

        from multimae_eo.demo.server import create_app
        from multimae_eo.demo.services import DemoData
        from multimae_eo.loading.open_source import open_source
        from multimae_eo.network.multimae import MultiMAE
        from multimae_eo.network.predictor import Predictor
        from multimae_eo.runtime import resolve_device, usable_threads
        from multimae_eo.scenes.scene_inputs import open_for

        cores = usable_threads().count
        threads = self.threads or min(cores, 8)
        if threads < 1:
            raise ConfigError(f"--threads must be ≥ 1, got {threads}")
        # Requests are small: several at once serve people better than one on all cores.
        torch.set_num_threads(max(1, cores // threads))
        model = MultiMAE.from_pretrained(self.model)
        predictor = self.predictor
        shown = DemoData(
            scene=None if self.scene is None else open_for(model, Path(self.scene)),
            source=None if self.data is None else open_source(self.data),
            runs=None if self.runs is None else Path(self.runs),
            predictor=None if predictor is None else Predictor.from_pretrained(predictor),
            map=None if self.map is None else Path(self.map),
            accuracy=None if self.accuracy is None else Path(self.accuracy),
            device=resolve_device(self.device),
            precision=self.precision,
        )
        return create_app(model, shown, threads=threads, limits=limits)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":  # Windows would share the port with another program
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        # From here on whoever reads the address can connect; responses wait for the server.
        listening.listen(256)
    except OSError as error:
        listening.close()
        raise ConfigError(f"{host}:{port}: {error.strerror}; choose another --port") from error
    return listening


def _check(app: FastAPI) -> None:
    """Send one request through everything, without a network."""
    import asyncio

    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": "/api/about", "raw_path": b"/api/about", "query_string": b"",
        "root_path": "", "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    if statuses != [200]:
        raise ConfigError(f"the demo does not respond: HTTP status {statuses}")


TOUR_COMMANDS: dict[str, type[Subcommand]] = {"quickstart": Quickstart, "demo": Demo}
