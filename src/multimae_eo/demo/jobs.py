"""Where work is done: a few threads, a short queue, and nobody waits for what nobody wants."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from multimae_eo.errors import MultiMAEError

T = TypeVar("T")


class SupersededError(MultiMAEError):
    """The same client has asked for something newer, or has gone."""


class BusyError(MultiMAEError):
    """Too much is waiting already."""


@dataclass
class Ticket:
    """Permission to go on. Long work calls ``check`` between its steps."""

    _gone: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Have the work stop at its next step."""
        self._gone.set()

    def check(self) -> None:
        """Raise SupersededError once cancelled."""
        if self._gone.is_set():
            raise SupersededError("a newer request of this client took its place")


@dataclass(frozen=True)
class Order:
    """Work that was handed in."""

    ticket: Ticket
    future: Future[Any]

    def cancel(self) -> None:
        """Take it out of the queue, or stop it at its next step."""
        self.ticket.cancel()
        self.future.cancel()


class Workshop:
    """At most ``threads`` pieces of work at once, ``waiting`` more in the queue."""

    def __init__(self, name: str, *, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most = threads + waiting
        self._lock = threading.Lock()
        self._open: dict[Future[Any], Order] = {}
        self._latest: dict[str, Order] = {}

    def submit(self, work: Callable[[Ticket], T], *, lane: str = "") -> Order:
        """Hand in work. A newer piece in a ``lane`` cancels the older; "" is no lane.

        Raises BusyError when the queue is full.
        """
        ticket = Ticket()
        with self._lock:
            older = self._latest.pop(lane, None) if lane else None
        if older is not None:
            older.cancel()
        with self._lock:
            if len(self._open) >= self._most:
                raise BusyError("too many requests are waiting; try again in a moment")
            order = Order(ticket, self._pool.submit(_run, work, ticket))
            self._open[order.future] = order
            if lane:
                self._latest[lane] = order
        order.future.add_done_callback(lambda f: self._done(f, lane))
        return order

    def close(self) -> None:
        """Cancel what waits and stop what runs at its next step."""
        with self._lock:
            orders = list(self._open.values())
        for order in orders:
            order.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _done(self, future: Future[Any], lane: str) -> None:
        with self._lock:
            self._open.pop(future, None)
            mine = self._latest.get(lane)
            if mine is not None and mine.future is future:
                del self._latest[lane]


def _run(work: Callable[[Ticket], T], ticket: Ticket) -> T:
    ticket.check()
    return work(ticket)


State = Literal["idle", "running", "done", "failed"]


class Job:
    """Something long that is done once, in the background, when first wanted.

    ``make`` is given a function of (done, total). A job that failed begins again when wanted.
    """

    def __init__(self, make: Callable[[Callable[[int, int], None]], Any]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._result: Any = None
        self.state: State = "idle"
        self.share = 0.0
        self.problem = ""

    def want(self, workshop: Workshop) -> None:
        """Begin, unless it is under way or done. Raises BusyError when the queue is full."""
        with self._lock:
            if self.state in ("running", "done"):
                return
            self.state, self.share, self.problem = "running", 0.0, ""
        try:
            workshop.submit(self._do).future.add_done_callback(self._dropped)
        except BusyError:
            self.state = "idle"
            raise

    @property
    def result(self) -> Any:
        """What came of it; None until it is done."""
        return self._result if self.state == "done" else None

    def told(self) -> dict[str, Any]:
        """``state``, ``share`` done in [0, 1] and ``problem``, for the page."""
        return {"state": self.state, "share": round(self.share, 3), "problem": self.problem}

    def _do(self, ticket: Ticket) -> None:
        def progress(done: int, total: int) -> None:
            ticket.check()
            self.share = done / max(total, 1)

        try:
            self._result = self._make(progress)
            self.share, self.state = 1.0, "done"
        except MultiMAEError as error:
            self.problem, self.state = str(error), "failed"

    def _dropped(self, future: Future[Any]) -> None:
        try:
            future.result()
        except CancelledError:
            self.state = "idle"
        except Exception as error:
            self.problem, self.state = f"a bug: {type(error).__name__}", "failed"
