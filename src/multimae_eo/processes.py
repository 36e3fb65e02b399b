"""Child processes: they end with the process that started them, and leave Ctrl-C to it.

Whatever ends a parent (a signal that cannot be caught, lack of memory, a closed terminal), the
pipe between it and each child closes, which a thread of the child waits for.
"""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from multimae_eo import interrupts
from multimae_eo.errors import OutputError
from multimae_eo.files import is_running

P = ParamSpec("P")
R = TypeVar("R")
_POLL_SECONDS = 1.0
_LAUNCHER = "MULTIMAE_EO_LAUNCHER"
"""Environment variable: the process that started the others of a training run."""
_following: list[int] = []
_WINDOWS = os.name == "nt"


def end_with_parent() -> None:
    """To be called in a child when it starts: it ends, at once, when its parent has ended.

    For children of ``multiprocessing``, and for programs that a launcher started.
    """
    with_signals = threading.current_thread() is threading.main_thread()
    if with_signals and multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, name="parent-watch", daemon=True).start()


def launching_followers(launch: Callable[[], R]) -> R:
    """Call ``launch``, which starts this program again for the other processes of a training run.

    They leave Ctrl-C to this process, and ``follow_launcher`` ends them with it.
    """
    os.environ[_LAUNCHER] = str(os.getpid())
    with starting_children():
        return launch()


def follow_launcher() -> None:
    """In a process that ``launching_followers`` started: it ends when its launcher has ended."""
    launcher, rank = os.environ.get(_LAUNCHER, ""), os.environ.get("LOCAL_RANK", "0")
    if not launcher.isdigit() or rank == "0" or _following:
        return
    if not _has_launcher(int(launcher)):
        if multiprocessing.parent_process() is not None:
            return  # a worker of a follower, which ends with that one
        os._exit(1)
    _following.append(int(launcher))
    end_with_parent()


def _has_launcher(pid: int) -> bool:
    """Whether the process that started this one, number ``pid``, still runs."""
    if _WINDOWS:
        # A virtual environment's interpreter is a child of its own there, and orphans keep the
        # number of their parent.
        return is_running(pid)
    return os.getppid() == pid


def _watch() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    else:
        launcher = _following[-1] if _following else os.getppid()
        while _has_launcher(launcher):
            time.sleep(_POLL_SECONDS)
    os._exit(1)


@contextmanager
def starting_children() -> Iterator[None]:
    """Processes started inside never receive Ctrl-C, not even while they import.

    The signal goes to every process of a terminal; only the parent handles it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield  # Windows: they ignore it once they run
        return
    from multiprocessing import resource_tracker

    # It unblocks the signal when it starts its own process: so that one first.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _deferred_interrupts():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _deferred_interrupts() -> Iterator[None]:
    """Raise a Ctrl-C that another thread receives only at the end.

    A partly started child has nothing to read and prints a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)
    if received:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """A list that holds the number of every Ctrl-C received inside, each also raised.

    One that arrives where Python can only ignore it, as in a destructor, is raised again.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def ignored(problem: sys.UnraisableHookArgs) -> None:
        if issubclass(problem.exc_type, KeyboardInterrupt):
            _thread.interrupt_main()
        else:
            hook(problem)

    hook, before = sys.unraisablehook, signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield received  # as a shell starts what runs in the background
        return
    sys.unraisablehook = ignored
    signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook


class WorkerPool(ProcessPoolExecutor):
    """Processes started afresh, after ``initializer(*initargs)`` in each.

    As a context manager it waits for the work that was begun; interrupted, it ends the workers.
    """

    def __init__(
        self, workers: int, *, initializer: Callable[..., None], initargs: tuple[object, ...] = ()
    ) -> None:
        super().__init__(
            workers,
            # Readers and their libraries may hold threads and locks, which forking would break.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(initializer, initargs),
        )

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have a function called by a worker, of which one more may be started."""
        os.environ[interrupts.PARENT] = str(os.getpid())
        with starting_children():
            try:
                return super().submit(fn, *args, **kwargs)
            except OSError as error:
                raise OutputError(
                    f"worker processes cannot be started: {error.strerror or error}; use one worker"
                ) from error
            finally:
                os.environ.pop(interrupts.PARENT, None)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self.end()
        self.shutdown(wait=True, cancel_futures=True)

    def end(self) -> None:
        """End the workers without waiting for their work."""
        # A copy: the pool's own thread takes ended workers out.
        for process in list((getattr(self, "_processes", None) or {}).values()):
            process.terminate()


def _begin(initializer: Callable[..., None], initargs: tuple[object, ...]) -> None:
    end_with_parent()
    initializer(*initargs)
