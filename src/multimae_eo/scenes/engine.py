"""A model over a whole scene, window by window, in memory that does not grow with its height.

Windows overlap and are blended. At the right and bottom the last window is moved back, never
shrunk; a scene smaller than a chip is padded with invalid pixels. Rows are finished in blocks that
do not depend on one another: an interrupted map goes on with the next, and processes share them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy.typing as npt

from multimae_eo.inference.computing import autocast
from multimae_eo.network.finite import require_finite_output
from multimae_eo.runtime import limit_threads, release_free_memory
from multimae_eo.sample import Batch, collate
from multimae_eo.scenes.blend import BlendedRows, WindowBlender
from multimae_eo.scenes.blocks import Blocks
from multimae_eo.scenes.job import SceneJob, SceneOptions
from multimae_eo.scenes.output_layers import OutputLayer
from multimae_eo.scenes.quick_look import quick_look
from multimae_eo.scenes.raster_output import tagged, write_raster
from multimae_eo.scenes.sharing import BlockWork, by_dask, by_processes, finish
from multimae_eo.scenes.threads import OperationThreads, WriteQueue, prefetch, until_none
from multimae_eo.scenes.tiling import Tiling
from multimae_eo.scenes.window_model import WindowModel, WindowPredictions
from multimae_eo.scenes.window_reader import SceneWindow, read_windows
from multimae_eo.sources.raster.warped import bounded_cache
from multimae_eo.sources.scene.chips import Area
from multimae_eo.version import __version__

_MOST_WRITERS = 4
"""Rasters written at once: each holds some of its rows in memory."""
_MOST_MODEL_THREADS = 8
"""Beyond these, threads share the operations of a batch, which bounds the memory."""


def run(job: SceneJob, folder: Path, *, keep: str) -> list[Path]:
    """Write a COG and a quick-look PNG for each layer: ``folder/<stem>.tif``.

    ``keep``: name of the hidden folder of finished blocks in ``folder``, which is there while the
    map is made and after it was interrupted. The same job goes on with the next block.

    Raises OutputError where the results cannot be written, or an interrupted map of another job is
    in the way.
    """
    # Loading it takes half a second, for which the other cores have something to do now.
    threading.Thread(target=import_module, args=("matplotlib.figure",), daemon=True).start()
    with finished_blocks(job, folder / keep) as blocks:
        parts = blocks, job.tiling, job.layers, job_tags(job), folder
        return finish(job.options, blocks.folder, _write_layers, *parts)


def _write_layers(
    blocks: Blocks,
    tiling: Tiling,
    layers: Sequence[OutputLayer],
    tags: Mapping[str, str],
    folder: Path,
) -> list[Path]:
    """Write the rasters of finished blocks, and their quick-looks while others are written."""
    import torch

    def written(layer: OutputLayer) -> Path:
        grid = tiling.grid.coarser(layer.ratio)
        rows = blocks.rows(layer, grid, len(tiling.blocks))
        path = folder / f"{layer.stem}.tif"
        with bounded_cache():  # a setting of the thread
            return write_raster(path, grid, tagged(layer.profile, tags), rows)

    release_free_memory()  # the pixels and predictions of all windows
    threads = min(_MOST_WRITERS, torch.get_num_threads())
    # Small rasters first: their quick-looks are drawn while large ones are compressed.
    ordered = sorted(layers, key=lambda layer: layer.bytes_per_pixel)
    paths = {}
    results = prefetch(written, ordered, ordered.index, threads=threads)
    for layer, path in zip(ordered, results, strict=True):
        quick_look(path, layer)
        paths[layer.stem] = path
    return [paths[layer.stem] for layer in layers]


@contextmanager
def finished_blocks(job: SceneJob, folder: Path, work: BlockWork | None = None) -> Iterator[Blocks]:
    """All blocks of a job, computed where they are not there yet; removed after the context.

    ``folder``: where they are kept. ``work``: computes blocks (default: ``run_blocks``). An error
    in the context leaves them. Raises as ``run``.
    """
    limit_threads()
    blocks = Blocks(folder, _plan(job) if job.options.model_hash else None)
    try:
        _finish_blocks(job, blocks, work or run_blocks)
        with bounded_cache():
            yield blocks
    except BaseException:
        blocks.leave()
        raise
    blocks.delete()


def job_tags(job: SceneJob) -> dict[str, str]:
    """Tags of every raster of a job: the software, precision, model, and what looks wrong."""
    tags = {"software": f"multimae-eo {__version__}", "precision": job.options.precision}
    if job.options.model_hash:
        tags["model_hash"] = job.options.model_hash
    if job.warning:
        tags["input_warning"] = job.warning
    return {**tags, **job.tags}


def _plan(job: SceneJob) -> dict[str, object]:
    """What has to be equal for an interrupted map to go on."""
    options = job.options
    return {
        "software": __version__,
        "model": options.model_hash,
        "scene": job.scene.stamp(),
        "chip": job.tiling.chip,
        "overlap": options.overlap,
        "batch_size": options.windows_per_batch(job.tiling.chip, job.tiling.dates),
        "precision": options.precision,
        "layers": [layer.stem for layer in job.layers],
        **job.settings,
    }


def _finish_blocks(job: SceneJob, blocks: Blocks, work: BlockWork) -> None:
    """Compute the blocks that are not finished yet: here, by processes, or by Dask's workers."""
    ranges, grid = job.tiling.blocks, job.tiling.grid
    missing = [n for n in range(len(ranges)) if not blocks.done(n)]

    def rows_of(number: int) -> int:
        return min(ranges[number][1], grid.height) - ranges[number][0]

    def report(rows: int) -> None:
        if job.options.progress is not None:
            job.options.progress(rows * grid.width, grid.height * grid.width)

    done = grid.height - sum(rows_of(n) for n in missing)
    report(done)
    if missing and (job.options.dask or (job.options.workers > 1 and len(missing) > 1)):
        share = by_dask if job.options.dask else by_processes
        for number in share(work, job, blocks, missing):
            done += rows_of(number)
            report(done)
        return
    if missing:
        work(job, blocks, missing, lambda rows: report(done + rows))


def run_blocks(
    job: SceneJob,
    blocks: Blocks,
    numbers: Sequence[int],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Compute blocks of rows one after another and write them; see ``BlockWork``.

    The windows of the next block are read and predicted while the last is finished.
    """
    ranges = [job.tiling.blocks[number] for number in numbers]
    unfinished: list[_BlockRows] = []
    before = 0
    try:
        with (
            bounded_cache(),
            closing(
                predict_windows(job.model, job.scene, job.tiling, ranges, options=job.options)
            ) as predicted,
            WriteQueue() as queue,
        ):
            for number, block in zip(numbers, ranges, strict=True):
                rows = _BlockRows(job, blocks, number, before, progress)
                unfinished.append(rows)
                for batch in until_none(predicted):
                    queue.submit(rows.add, batch)
                queue.submit(rows.finish)
                queue.submit(unfinished.remove, rows)
                before += min(block[1], job.tiling.grid.height) - block[0]
    except BaseException:
        for rows in unfinished:
            rows.discard()
        raise


class _BlockRows:
    """Blends the predicted windows of one block, and writes its rows as they become final.

    ``progress`` is called with how many there are, and ``before`` in the blocks before it.
    """

    def __init__(
        self,
        job: SceneJob,
        blocks: Blocks,
        number: int,
        before: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        block, height = job.tiling.blocks[number], job.tiling.grid.height
        self._writer = writer = blocks.writer(number, job.layers, job.scene)

        # Does not know this object: a cycle would keep the blender's rows until it is collected.
        def emit(rows: BlendedRows) -> None:
            writer.write(rows)
            if progress is not None:
                bottom = min(rows.top + len(rows.observed), height)
                progress(before + bottom - block[0])

        ratios = {layer.field: layer.ratio for layer in job.layers}
        self._blender = WindowBlender(job.tiling, block, ratios, emit)

    def add(self, batch: Sequence[PredictedWindow]) -> None:
        """Blend windows, in the order of their rows."""
        for item in batch:
            at = item.window
            self._blender.add(at.window, item.fields, at.observed, at.floor)

    def finish(self) -> None:
        """Write what is left, and give the block its name."""
        self._blender.finish()
        self._writer.finish()
        release_free_memory()  # it grows with every block otherwise: arenas of threads fragment

    def discard(self) -> None:
        """Leave nothing of the block."""
        self._writer.discard()


_operation_threads = OperationThreads()

# A model on windows ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PredictedWindow:
    """A window and the model's predictions for it, by field, without the batch axis."""

    window: SceneWindow
    fields: Mapping[str, npt.NDArray[Any]]


def predict_windows(
    model: WindowModel,
    area: Area,
    tiling: Tiling,
    blocks: Sequence[tuple[int, int]],
    *,
    options: SceneOptions,
) -> Generator[list[PredictedWindow] | None]:
    """Read the windows of blocks and apply a model to them, batch by batch, in order.

    None ends each block; no batch has windows of two.
    On the CPU, batches are predicted side by side, each by a thread of its own: operations of a
    batch of windows are too small to be shared out. Windows of which the model observes nothing are
    left out. A batch for which the device has no memory is halved.
    """
    import torch

    windows = read_windows(area, model.inputs, tiling, blocks)
    size = options.windows_per_batch(tiling.chip, tiling.dates)
    most = _MOST_MODEL_THREADS if options.device == "cpu" else 1

    def batches() -> Iterator[list[SceneWindow] | None]:
        for _ in blocks:
            of_block = until_none(windows)
            yield from iter(lambda: list(islice(of_block, size)), [])  # noqa: B023
            yield None

    def predicted(part: tuple[int, list[SceneWindow] | None]) -> list[PredictedWindow] | None:
        if part[1] is None:
            return None
        batch = collate([window.sample for window in part[1]], model.inputs)
        return _predict_batch(model, part[1], batch)

    start = partial(_start, options)
    with _operation_threads.divided(most) as threads:
        try:
            yield from prefetch(
                predicted,
                enumerate(batches()),
                itemgetter(0),
                threads=threads,
                ahead=threads,
                start=start,
            )
        finally:
            torch.clear_autocast_cache()


def _start(options: SceneOptions) -> None:
    """In a new thread that predicts: gradients and autocast are settings of a thread.

    Autocast is never left, so that weights are converted once.
    """
    import torch

    torch.set_grad_enabled(False)
    autocast(options.device, options.precision).__enter__()


def _predict_batch(
    model: WindowModel, windows: list[SceneWindow], batch: Batch
) -> list[PredictedWindow]:
    import torch

    try:
        predictions = model(batch)
    except torch.OutOfMemoryError:
        if len(windows) == 1:
            raise
    else:
        _require_finite(model, windows, batch, predictions)
        return [
            PredictedWindow(
                window=windows[row], fields={n: v[i] for n, v in predictions.fields.items()}
            )
            for i, row in enumerate(predictions.rows)
        ]
    # Outside of the handler, which would keep the failed batch's tensors alive.
    half = len(windows) // 2
    first, second = torch.arange(half), torch.arange(half, len(windows))
    return _predict_batch(model, windows[:half], batch.take(first)) + _predict_batch(
        model, windows[half:], batch.take(second)
    )


def _require_finite(
    model: WindowModel, windows: list[SceneWindow], batch: Batch, predictions: WindowPredictions
) -> None:
    """ContractError where a field of the predictions is not finite."""
    import torch

    network = getattr(model, "network", None)
    if not isinstance(network, torch.nn.Module):
        network = torch.nn.Module()
    for name, values in predictions.fields.items():
        if values.dtype.kind == "f":
            where = windows[predictions.rows[0]].sample.key
            tensor = torch.from_numpy(values)
            require_finite_output(network, name, tensor, where, lambda: model(batch))


@contextmanager
def computing(options: SceneOptions) -> Iterator[None]:
    """No gradients, in the precision of the options."""
    import torch

    with torch.no_grad(), autocast(options.device, options.precision):
        yield
