"""Work on a Dask cluster: one connection per address, results as they are finished."""

from __future__ import annotations

import concurrent.futures
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from multimae_eo.errors import ConfigError, OutputError

T = TypeVar("T")

_SECONDS_TO_CONNECT = 10
_log = logging.getLogger(__name__)


class DaskCluster:
    """The workers of a scheduler, which see the outputs under the same paths as this process."""

    def __init__(self, address: str, client: Any) -> None:
        self.address, self._client = address, client
        self._guard = threading.Lock()
        self._held: dict[int, tuple[object, Any]] = {}

    @property
    def threads(self) -> int:
        """How many tasks the workers compute at once, at present."""
        return sum(self._client.nthreads().values())

    def hold(self, value: object) -> Any:
        """A reference to an object, to be given to ``results``; it travels once to each worker.

        Kept until the connection ends. The same object is sent only once.
        """
        with self._guard:
            if id(value) not in self._held:
                # A task, so that the scheduler can make it again where its holder died.
                task = self._client.submit(_same, _Held(value), pure=False)
                self._held[id(value)] = value, task
            return self._held[id(value)][1]

    def abandon(self) -> None:
        """End the connection; threads that wait for results of it get an OutputError."""
        self._client.close()

    def release(self, value: object) -> None:
        """Let the workers forget an object that they hold."""
        with self._guard:
            self._held.pop(id(value), None)

    def results(
        self,
        function: Callable[..., T],
        items: Sequence[object],
        *shared: object,
        folder: Path,
        priority: int = 0,
    ) -> Iterator[T]:
        """``function(item, *shared)`` of every item, as the workers finish them.

        ``folder``: where the workers write; errors name it. ``priority``: tasks of a higher one
        come first. Tasks of a worker that died are given
        to another. Raises what ``function`` raises; OutputError where tasks kill their workers
        again and again, where a worker does not see the folder, or without the scheduler.
        """
        from distributed import KilledWorker, as_completed

        arguments = (str(folder), *shared)
        settings = {"pure": False, "priority": priority}
        tasks = [self._client.submit(_called, function, i, *arguments, **settings) for i in items]
        try:
            for task in as_completed(tasks, loop=self._client.loop):
                yield task.result()
        except KilledWorker as error:
            raise OutputError(
                f"{folder}: workers at {self.address} died over one block again and again, "
                "perhaps for want of memory; run again to go on, with more memory per worker"
            ) from error
        except concurrent.futures.CancelledError as error:
            raise OutputError(
                f"{folder}: the connection to the scheduler at {self.address} was lost; run again "
                "to go on"
            ) from error
        finally:
            remaining = [t for t in tasks if not t.done()]
            if remaining and self._client.status == "running":
                self._client.cancel(remaining)

    def result(self, function: Callable[..., T], *arguments: object, folder: Path) -> T:
        """``function(*arguments)`` by a worker, before all ``results``; raises as those."""
        first, *rest = arguments
        (value,) = self.results(function, [first], *rest, folder=folder, priority=1)
        return value


_connections: dict[str, tuple[DaskCluster, int]] = {}
"""By address: the connection of this process, and how many contexts use it."""
_guard = threading.RLock()


@contextmanager
def connected(address: str) -> Iterator[DaskCluster]:
    """A connection to a scheduler; contexts inside one another, and threads, share it.

    ``address``: such as ``tcp://10.0.0.1:8786``, or the scheduler's file (``scheduler.json``).
    Raises ConfigError without ``distributed``, or where no scheduler responds.
    """
    with _guard:
        cluster, users = _connections.get(address, (None, 0))
        if cluster is None:
            cluster = DaskCluster(address, _client(address))
        _connections[address] = cluster, users + 1
    try:
        yield cluster
    finally:
        with _guard:
            users = _connections[address][1] - 1
            _connections[address] = cluster, users
            if not users:
                del _connections[address]
        if not users:
            cluster._client.close()


def _client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError("--dask needs distributed: pip install 'multimae-eo[dask]'") from error
    of_file = address.endswith(".json")
    if of_file and not Path(address).is_file():
        raise ConfigError(
            f"--dask {address}: no such file; `dask scheduler --scheduler-file` writes it"
        )
    where = {"scheduler_file": address} if of_file else {"address": address}
    try:
        client = Client(**where, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--dask {address}: no scheduler responds there; start one with `dask scheduler` and "
            "give the address that it prints"
        ) from error
    if not client.nthreads():
        _log.info("%s: has no worker yet; waiting for one", address)
    return client


@dataclass(frozen=True)
class _Held:
    """An object that workers hold, as something to be pickled.

    distributed takes torch's modules apart by a serializer of its own, which fails on attributes
    that are no plain data, and the task that needs the module then waits for ever.
    """

    value: object


def _same(value: T) -> T:
    return value


def _called(function: Callable[..., T], item: object, folder: str, *shared: object) -> T:
    """In a worker: call a function, where the worker sees what it is to write to."""
    if not Path(folder).is_dir():
        raise OutputError(
            f"{folder}: the worker on {socket.gethostname()} does not see it; choose an "
            "--out on storage that all workers share"
        )
    return function(item, *(s.value if isinstance(s, _Held) else s for s in shared))
