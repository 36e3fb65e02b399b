"""Blocks of a scene shared out: among processes here, or among the workers of a Dask cluster.

Blocks do not depend on one another, so whoever computes them writes the same bytes.
"""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from multimae_eo.errors import ConfigError, OutputError
from multimae_eo.processes import WorkerPool
from multimae_eo.scenes.blocks import Blocks
from multimae_eo.scenes.job import SceneJob

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

Work = Callable[[SceneJob, Blocks, int], None]

_SECONDS_TO_CONNECT = 10


# Processes ------------------------------------------------------------------------------------

_WORKER: dict[str, tuple[Work, SceneJob, Blocks]] = {}


def by_processes(
    work: Work, job: SceneJob, blocks: Blocks, numbers: Sequence[int]
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
    assignment: tuple[Work, SceneJob, Blocks], counter: Synchronized[int], threads: int
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
    work(job, blocks, number)
    return number


# Dask -----------------------------------------------------------------------------------------


def by_dask(work: Work, job: SceneJob, blocks: Blocks, numbers: Sequence[int]) -> Iterator[int]:
    """Blocks as they are finished by the workers of the scheduler at ``job.options.dask``.

    The scheduler gives the blocks of a worker that died to another.

    Raises ConfigError without ``distributed`` or where no scheduler responds, OutputError where a
    worker does not see the folder of blocks, or blocks kill their workers again and again.
    """
    try:
        from distributed import Client, KilledWorker
        from distributed import as_completed as completed
    except ImportError as error:
        raise ConfigError("--dask needs distributed: pip install 'multimae-eo[dask]'") from error
    address = job.options.dask
    try:
        client = Client(address, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--dask {address}: no scheduler responds there; start one with `dask scheduler` and "
            "give the address that it prints"
        ) from error
    with client:
        # A task, so that the scheduler can give the job again where its holder died.
        held = client.submit(_keep, job.packed(), pure=False)
        tasks = [client.submit(_remote_block, work, held, blocks, n, pure=False) for n in numbers]
        try:
            for task in completed(tasks, loop=client.loop):
                yield task.result()
        except KilledWorker as error:
            raise OutputError(
                f"{blocks.folder}: workers at {address} died over one block again and again, "
                "perhaps for want of memory; run again to go on, with more memory per worker"
            ) from error


def _keep(job: SceneJob) -> SceneJob:
    return job.on(job.options.device)


def _remote_block(work: Callable[..., object], job: SceneJob, blocks: Blocks, number: int) -> int:
    if not blocks.folder.is_dir():
        raise OutputError(
            f"{blocks.folder}: the worker on {socket.gethostname()} does not see it; choose an "
            "--out on storage that all workers share"
        )
    if not blocks.done(number):
        work(job, blocks, number)
    return number
