"""A scene through a model, window by window, in memory that does not grow with its height.

Windows overlap and are blended. At the right and bottom the last window is moved back, never
shrunk; a scene smaller than a chip is padded with invalid pixels. Rows are finished in blocks that
do not depend on one another: an interrupted map goes on with the next, and processes share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from multimae_eo.errors import ConfigError
from multimae_eo.scenes.blend import Canvas, Rows
from multimae_eo.scenes.blocks import Blocks, assemble
from multimae_eo.scenes.layers import Layer
from multimae_eo.scenes.pipeline import Behind, Mapper, mapped, pieces
from multimae_eo.scenes.quick_look import quick_look
from multimae_eo.scenes.sharing import by_dask, by_processes
from multimae_eo.scenes.tiling import Cut
from multimae_eo.sources.raster.warped import bounded_cache
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.version import __version__

Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """How a scene is cut and computed.

    ``chip``: side of a window in pixels of the scene's grid (default: the model's). ``overlap``:
    share of a window's side. ``batch_size``: windows at once (default: by the device). ``draws``:
    random subsets for the spread (0: no spread is written). ``device``: where the model is.
    ``workers``: processes that share the scene. ``dask``: address of a Dask scheduler whose workers
    share it instead; they read the scene and write its blocks under the paths given here.
    ``model_hash``: the model's identity, for the rasters' tags; without it an interrupted map is
    begun again. ``progress`` is told pixels done and pixels in all.
    """

    chip: int | None = None
    overlap: float = 0.5
    batch_size: int | None = None
    draws: int = 0
    seed: int = 0
    precision: Precision = "32-true"
    device: str = "cpu"
    workers: int = 1
    dask: str = ""
    model_hash: str = ""
    progress: Callable[[int, int], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap must be in [0, 1), got {self.overlap}")
        for name, least in (("draws", 0), ("workers", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be ≥ {least}, got {value}")
        if self.dask and self.workers > 1:
            raise ConfigError("workers: give either workers (here) or dask (elsewhere)")
        if self.precision not in ("32-true", "bf16-mixed"):
            raise ConfigError(f"precision must be 32-true or bf16-mixed, got {self.precision!r}")

    @property
    def batch(self) -> int:
        """Windows at once: as asked, else by the device and its memory."""
        if self.batch_size is not None:
            return self.batch_size
        if not self.device.startswith("cuda"):
            return 16
        import torch

        memory = torch.cuda.get_device_properties(self.device).total_memory
        return int(min(512, max(16, 64 * (memory >> 33))))


class SceneMapper(Mapper, Protocol):
    """A mapper that can be put on a device and says what it was asked."""

    def to(self, device: str) -> SceneMapper:
        """The same on another device."""

    def describe(self) -> dict[str, Any]:
        """What decides its answers, JSON-ready."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A scene to be mapped; it travels to worker processes by pickling."""

    scene: Scene
    cut: Cut
    mapper: SceneMapper
    layers: tuple[Layer, ...]
    options: SceneOptions


def map_scene(job: Job, folder: Path, *, keep: str) -> list[Path]:
    """Write a COG and a quick-look PNG for each layer: ``folder/<stem>.tif``.

    ``keep``: name of the hidden folder of finished blocks in ``folder``, which is there while the
    map is made and after it was interrupted. The same job goes on with the next block.

    Raises OutputError where the results cannot be written, or an interrupted map of another job is
    in the way.
    """
    blocks = Blocks(folder / keep, _plan(job) if job.options.model_hash else None)
    try:
        _compute(job, blocks)
        tags = {"software": f"multimae-eo {__version__}"}
        if job.options.model_hash:
            tags["model_hash"] = job.options.model_hash
        paths = [folder / f"{layer.stem}.tif" for layer in job.layers]
        with bounded_cache():
            for layer, path in zip(job.layers, paths, strict=True):
                assemble(blocks, layer, job.cut, path, tags)
                quick_look(path, layer)
    except BaseException:
        blocks.leave()
        raise
    blocks.delete()
    return paths


def _plan(job: Job) -> dict[str, Any]:
    options = job.options
    return {
        "software": __version__,
        "model": options.model_hash,
        "scene": job.scene.stamp(),
        "chip": job.cut.chip,
        "overlap": options.overlap,
        "batch_size": options.batch,
        "precision": options.precision,
        "layers": [layer.stem for layer in job.layers],
        **job.mapper.describe(),
    }


def _compute(job: Job, blocks: Blocks) -> None:
    ranges, width = job.cut.blocks, job.cut.grid.width
    left = [n for n in range(len(ranges)) if not blocks.done(n)]
    height = job.cut.grid.height

    def rows_of(number: int) -> int:
        return min(ranges[number][1], height) - ranges[number][0]

    done = height - sum(rows_of(n) for n in left)

    def told(rows: int) -> None:
        if job.options.progress is not None:
            job.options.progress(rows * width, height * width)

    told(done)
    if left and (job.options.dask or (job.options.workers > 1 and len(left) > 1)):
        share = by_dask if job.options.dask else by_processes
        for number in share(run_block, job, blocks, left):
            done += rows_of(number)
            told(done)
        return
    for number in left:
        before = done
        run_block(job, blocks, number, lambda rows: told(before + rows))  # noqa: B023
        done += rows_of(number)


def run_block(
    job: Job, blocks: Blocks, number: int, progress: Callable[[int], None] | None = None
) -> None:
    """Compute one block of rows and write it; ``progress`` is told how many rows are done."""
    block = job.cut.blocks[number]
    writer = blocks.writer(number, job.layers)

    def write(rows: Rows) -> None:
        for layer in job.layers:
            writer.write(layer.stem, layer.rows(rows, job.scene))
        if progress is not None:
            below = min(rows.top + len(rows.observed), job.cut.grid.height)
            progress(below - block[0])

    canvas = Canvas(job.cut, block, {la.field: la.ratio for la in job.layers}, write)

    def add(batch: list[Any]) -> None:
        for piece, values in batch:
            canvas.add(piece.window, values, piece.observed, piece.floor)

    try:
        with computing(job.options), bounded_cache(), Behind() as behind:
            found = pieces(job.scene, job.mapper, job.cut, block)
            for batch in mapped(found, job.mapper, job.options.batch):
                behind.do(add, batch)
            behind.do(canvas.finish)
        writer.finish()
    except BaseException:
        writer.discard()
        raise


@contextmanager
def computing(options: SceneOptions) -> Iterator[None]:
    """No gradients, in the precision that was asked for."""
    import torch

    kind = options.device.split(":", maxsplit=1)[0]
    mixed = options.precision == "bf16-mixed"
    half = torch.autocast(kind, torch.bfloat16) if mixed else nullcontext()
    with torch.no_grad(), half:
        yield
