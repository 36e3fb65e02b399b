"""Loading in worker processes: a reader's error reaches the user as it was raised."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from typing import Protocol

from torch.utils.data import DataLoader, get_worker_info

from multimae_eo.errors import MultiMAEError
from multimae_eo.processes import end_with_parent, starting_children
from multimae_eo.sample import Batch


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
