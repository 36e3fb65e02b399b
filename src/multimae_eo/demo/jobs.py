"""Job queues: a few threads, a bounded queue, and jobs that a newer request cancels."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from multimae_eo.errors import MultiMAEError

T = TypeVar("T")

JobState = Literal["idle", "running", "done", "failed"]


class SupersededError(MultiMAEError):
    """The same client has sent a newer request, or has disconnected."""


class BusyError(MultiMAEError):
    """The queue is full."""


@dataclass
class Cancellation:
    """Whether a job was cancelled. Long work calls ``check`` between its steps."""

    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Have the work stop at its next step."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise SupersededError once cancelled."""
        if self._cancelled.is_set():
            raise SupersededError("superseded by a newer request of this client")


@dataclass(frozen=True)
class QueuedJob:
    """A job that was submitted, and its result in the future."""

    cancellation: Cancellation
    future: Future[Any]

    def cancel(self) -> None:
        """Take it out of the queue, or stop it at its next step."""
        self.cancellation.cancel()
        self.future.cancel()


class JobQueue:
    """Runs at most ``threads`` jobs at once and holds ``waiting`` more."""

    def __init__(self, name: str, *, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._capacity = threads + waiting
        self._lock = threading.Lock()
        self._open: dict[Future[object], QueuedJob] = {}
        self._latest: dict[str, QueuedJob] = {}

    def submit(self, work: Callable[[Cancellation], T], *, key: str = "") -> QueuedJob:
        """Queue a job. A newer job of a ``key`` cancels the older; "" is no key.

        Raises BusyError when the queue is full.
        """
        cancellation = Cancellation()
        with self._lock:
            older = self._latest.pop(key, None) if key else None
        if older is not None:
            older.cancel()
        with self._lock:
            if len(self._open) >= self._capacity:
                raise BusyError("too many requests are waiting; try again in a moment")
            job = QueuedJob(cancellation, self._pool.submit(_run, work, cancellation))
            self._open[job.future] = job
            if key:
                self._latest[key] = job
        job.future.add_done_callback(lambda f: self._forget(f, key))
        return job

    def close(self) -> None:
        """Cancel the waiting jobs and stop the running ones at their next step."""
        with self._lock:
            jobs = list(self._open.values())
        for job in jobs:
            job.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _forget(self, future: Future[object], key: str) -> None:
        with self._lock:
            self._open.pop(future, None)
            latest = self._latest.get(key)
            if latest is not None and latest.future is future:
                del self._latest[key]


def _run(work: Callable[[Cancellation], T], cancellation: Cancellation) -> T:
    cancellation.check()
    return work(cancellation)


class BackgroundJob:
    """Something long that is done once, in the background, when it is first requested.

    ``make`` is given a function of (done, total). A job that failed begins again when requested.
    """

    def __init__(self, make: Callable[[Callable[[int, int], None]], object]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._result: object = None
        self.state: JobState = "idle"
        self.share = 0.0
        self.problem = ""

    def start(self, queue: JobQueue) -> None:
        """Begin, unless it is running or done. Raises BusyError when the queue is full."""
        with self._lock:
            if self.state in ("running", "done"):
                return
            self.state, self.share, self.problem = "running", 0.0, ""
        try:
            queue.submit(self._do).future.add_done_callback(self._finished)
        except BusyError:
            self.state = "idle"
            raise

    @property
    def result(self) -> Any:
        """The result; None until it is done."""
        return self._result if self.state == "done" else None

    def status(self) -> dict[str, object]:
        """``state``, ``share`` done in [0, 1] and ``problem``, for the page."""
        return {"state": self.state, "share": round(self.share, 3), "problem": self.problem}

    def _do(self, cancellation: Cancellation) -> None:
        def progress(done: int, total: int) -> None:
            cancellation.check()
            self.share = done / max(total, 1)

        try:
            self._result = self._make(progress)
            self.share, self.state = 1.0, "done"
        except MultiMAEError as error:
            self.problem, self.state = str(error), "failed"

    def _finished(self, future: Future[object]) -> None:
        try:
            future.result()
        except CancelledError:
            self.state = "idle"
        except Exception as error:
            self.problem, self.state = f"a bug: {type(error).__name__}", "failed"
