"""Threads that read windows, apply the model to batches, and write.

Queues are bounded, and so is memory; an error in a thread is raised where its result is taken.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

_QUEUED_WRITES = 4


def prefetch(
    work: Callable[[A], B],
    items: Iterable[A],
    thread_of: Callable[[A], int],
    *,
    threads: int,
    ahead: int = 1,
    start: Callable[[], None] | None = None,
) -> Iterator[B]:
    """``work`` of each item, in order, done by threads; ``threads`` + ``ahead`` results may wait.

    Items of equal ``thread_of`` (modulo the number of threads) are done by the same thread, which
    first calls ``start``.
    """
    remaining = iter(items)
    pools = [ThreadPoolExecutor(1, initializer=start) for _ in range(threads)]

    def submit(count: int) -> list[Future[B]]:
        return [
            pools[thread_of(item) % threads].submit(work, item) for item in islice(remaining, count)
        ]

    try:
        waiting = deque(submit(threads + ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(submit(1))
            yield result
    finally:
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)


def until_none(items: Iterator[A | None]) -> Iterator[A]:
    """The items before the next None, which is taken; RuntimeError where none comes."""
    for item in items:
        if item is None:
            return
        yield item
    raise RuntimeError("items ended without the None that marks their end")


class OperationThreads:
    """How many threads share an operation of torch, which is a setting of the process.

    Maps that are made at the same time change it once: the first to begin, and back the last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = self._before = 0

    @contextmanager
    def divided(self, most: int) -> Iterator[int]:
        """Share the process's threads among batches that are predicted side by side: how many
        batches, at most ``most``."""
        import torch

        with self._lock:
            if not self._users:
                self._before = torch.get_num_threads()
            self._users += 1
            batches = min(self._before, most)
            torch.set_num_threads(max(1, self._before // batches))
        try:
            yield batches
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    torch.set_num_threads(self._before)


class WriteQueue:
    """One thread that does the submitted work in order while the caller goes on.

    ``submit`` waits while the queue is full; it and the end of the ``with`` raise what went wrong.
    What was submitted is done even if the caller fails meanwhile, but nothing after work that
    failed: what follows would be built on it.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def __enter__(self) -> WriteQueue:
        return self

    def submit(self, work: Callable[..., None], *arguments: object) -> None:
        """Queue ``work(*arguments)``."""
        while len(self._waiting) >= _QUEUED_WRITES:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._do, work, arguments))

    def _do(self, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if self._failed:
            return
        try:
            work(*arguments)
        except BaseException:
            self._failed = True
            raise

    def __exit__(self, kind: object, *rest: object) -> None:
        self._pool.shutdown(wait=True)
        for future in () if kind is not None else self._waiting:
            future.result()
