"""Blocks of a scene shared out: among processes here, or among the workers of a Dask cluster.

Blocks do not depend on one another, so whoever computes them writes the same bytes.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from multimae_eo.dask_cluster import connected
from multimae_eo.errors import OutputError
from multimae_eo.processes import WorkerPool
from multimae_eo.scenes.blocks import Blocks
from multimae_eo.scenes.job import SceneJob, SceneOptions

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

T = TypeVar("T")


class BlockWork(Protocol):
    """Computes blocks of a job and writes them; a function of a module, for it is pickled."""

    def __call__(
        self,
        job: SceneJob,
        blocks: Blocks,
        numbers: Sequence[int],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """``progress``: called with how many of the blocks' rows are done."""


# Processes ------------------------------------------------------------------------------------

_WORKER: dict[str, tuple[BlockWork, SceneJob, Blocks]] = {}


def by_processes(
    work: BlockWork, job: SceneJob, blocks: Blocks, numbers: Sequence[int]
) -> Iterator[int]:
    """Blocks as they are finished by ``job.options.workers`` processes; OutputError if one dies."""
    import torch

    context = multiprocessing.get_context("spawn")
    count = min(job.options.workers, len(numbers))
    threads = max(1, torch.get_num_threads() // count)
    pool = WorkerPool(
        count,
        initializer=_begin,
        initargs=((work, job.packed(), blocks), context.Value("i", 0), threads),
    )
    try:
        with pool:
            for future in as_completed([pool.submit(_one, n) for n in numbers]):
                yield future.result()
    except BrokenProcessPool as error:
        raise OutputError(
            f"{blocks.folder}: a worker process ended unexpectedly, perhaps for want of memory; "
            "run again to go on, with fewer --workers"
        ) from error


def _begin(
    assignment: tuple[BlockWork, SceneJob, Blocks], counter: Synchronized[int], threads: int
) -> None:
    """In a new process: take the job, a share of the cores, and the next device."""
    import torch

    torch.set_num_threads(threads)
    with counter.get_lock():
        rank = counter.value
        counter.value += 1
    work, job, blocks = assignment
    device = job.options.device
    if device == "cuda":
        device = f"cuda:{rank % torch.cuda.device_count()}"
    _WORKER["job"] = work, job.on(device), blocks


def _one(number: int) -> int:
    work, job, blocks = _WORKER["job"]
    work(job, blocks, [number])
    return number


# Dask -----------------------------------------------------------------------------------------


def by_dask(
    work: BlockWork, job: SceneJob, blocks: Blocks, numbers: Sequence[int]
) -> Iterator[int]:
    """Blocks as they are finished by the workers of the scheduler at ``job.options.dask``.

    The scheduler gives the blocks of a worker that died to another. The network travels once to
    each worker, for all scenes that are mapped within one connection.

    Raises ConfigError without ``distributed`` or where no scheduler responds, OutputError where a
    worker does not see the folder of blocks, or blocks kill their workers again and again.
    """
    with connected(job.options.dask) as cluster:
        packed = job.packed()
        network = packed.model.network
        bare = replace(packed, model=packed.model.with_network(None))
        shared = work, cluster.hold(bare), cluster.hold(network), blocks
        try:
            yield from cluster.results(_remote_block, numbers, *shared, folder=blocks.folder)
        finally:
            cluster.release(bare)
            if "adapt" in job.settings:
                cluster.release(network)  # it is of this scene only


def _remote_block(
    number: int, work: BlockWork, job: SceneJob, network: object, blocks: Blocks
) -> int:
    if not blocks.done(number):
        model = job.model.with_network(network)
        work(replace(job, model=model).on(job.options.device), blocks, [number])
    return number


def finish(options: SceneOptions, folder: Path, write: Callable[..., T], *arguments: object) -> T:
    """``write(*arguments)``: here, or by one of Dask's workers. ``folder``: where it reads."""
    if not options.dask:
        return write(*arguments)
    with connected(options.dask) as cluster:
        return cluster.result(write, *arguments, folder=folder)
