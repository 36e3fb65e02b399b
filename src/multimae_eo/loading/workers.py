"""Loading in worker processes: a reader's error reaches the user as it was raised."""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from torch.utils.data import DataLoader, get_worker_info

from multimae_eo.errors import MultiMAEError
from multimae_eo.processes import end_with_parent, starting_children
from multimae_eo.sample import Batch

logger = logging.getLogger(__name__)

_SHARED_MEMORY = Path("/dev/shm")
_LEAST_SHARED_BYTES = 32 * 2**20
"""A few batches. Workers that run out of it are killed by the kernel without a message."""


def usable_workers(requested: int, shared_memory: Path = _SHARED_MEMORY) -> int:
    """``requested``, or 0 where workers cannot hand batches over for lack of shared memory.

    Batches are the same with any number of workers, so the lack is only logged, once.
    """
    if not requested or not sys.platform.startswith("linux"):
        return requested
    if problem := _shared_memory_problem(shared_memory):
        _log_no_workers(problem)
        return 0
    return requested


def _shared_memory_problem(folder: Path) -> str:
    try:
        state = os.statvfs(folder)
    except OSError as error:
        return f"{folder}: {error.strerror}"
    free = state.f_bavail * state.f_frsize
    if not os.access(folder, os.W_OK):
        return f"{folder} cannot be written to"
    if free < _LEAST_SHARED_BYTES:
        return f"{folder} has {free / 2**20:.1f} MB free"
    return ""


@functools.cache
def _log_no_workers(problem: str) -> None:
    logger.warning(
        "%s: batches are read without worker processes; give it %d MB (docker run --shm-size), or "
        "set workers to 0",
        problem,
        _LEAST_SHARED_BYTES // 2**20,
    )


class Batches(Protocol):
    """Reads the batch of some chips."""

    def __getitems__(self, chips: Sequence[object]) -> Batch:
        """The batch; called by torch's fetcher."""


class HandedOver:
    """Batches, of which a worker hands over a user's error instead of dying of it."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitems__(self, chips: Sequence[object]) -> Batch | MultiMAEError:
        """The batch of these chips, or in a worker the error, with its traceback as a note."""
        try:
            return self.batches.__getitems__(chips)
        except MultiMAEError as error:
            if get_worker_info() is None:
                raise
            error.add_note(traceback.format_exc())
            return error


def start_worker(_: int) -> None:
    """In a new worker process, before it reads anything."""
    end_with_parent()


class ChipLoader(DataLoader[Batch]):
    """Raises the error that a worker handed over; torch would put a traceback into its message."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches of the epoch."""
        with starting_children():
            batches = super().__iter__()
        for batch in batches:
            if isinstance(batch, MultiMAEError):
                raise batch
            yield batch
