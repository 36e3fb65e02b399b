"""Embeddings of a scene or of a source's chips: a vector per chip, or per patch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, DataError
from multimae_eo.files import single_writer
from multimae_eo.geo import Geometry
from multimae_eo.inference.extraction import encoder_features
from multimae_eo.inference.input_check import check_source
from multimae_eo.inference.reconstruct_chips import chip_batches
from multimae_eo.inference.vector_codes import Dtype
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sample import Batch, Sample, collate
from multimae_eo.scenes.blocks import Blocks, write_vectors
from multimae_eo.scenes.embedding_item import EmbeddingFacts, box_ring, write_items
from multimae_eo.scenes.engine import computing, finished_blocks, predict_windows
from multimae_eo.scenes.geoparquet import EmbeddingWriter
from multimae_eo.scenes.job import SceneJob, SceneOptions
from multimae_eo.scenes.scene_inputs import check_scene, require_inputs, scene_tiling
from multimae_eo.scenes.sharing import finish
from multimae_eo.scenes.threads import until_none
from multimae_eo.scenes.window_model import NetworkWindows, host_array
from multimae_eo.sources.base import Source
from multimae_eo.sources.raster.warped import bounded_cache
from multimae_eo.sources.scene.scene import Scene

Per = Literal["chip", "patch"]


@single_writer(folder=False)
def embed_scene(
    model: MultiMAE,
    scene: Scene,
    out: Path,
    *,
    inputs: Sequence[str] | None = None,
    per: Per = "chip",
    dtype: Dtype = "float32",
    options: SceneOptions | None = None,
) -> int:
    """Write a GeoParquet file of a scene's embeddings; returns how many.

    Chips of the model's size lie side by side; the last of a row or column is moved back, so that
    it overlaps the one before. Chips without any valid input are left out. Keys are the chip's row
    and column on the scene's grid, and a patch's row and column in the chip.

    Raises as ``reconstruct_scene``; DataError where nothing is observed at all.
    """
    options = replace(options or SceneOptions(), overlap=0.0)
    embedder = WindowEmbedder(
        network=model if options.dask else model.to(options.device),
        inputs=require_inputs(model.modalities, scene, inputs),
        per=require_per(per),
    )
    tiling = scene_tiling(embedder.sizes, scene, embedder.inputs, options)
    job = SceneJob(
        scene=scene,
        tiling=tiling,
        model=embedder,
        layers=(),
        settings={"subcommand": "embed", "inputs": list(embedder.inputs), "per": per},
        options=options,
        warning=check_scene(model, scene, embedder.inputs, tiling),
    )
    side = tiling.chip if per == "chip" else max(1, tiling.chip // embedder.grid_side)
    table = _table(embedder, dtype, scene.name, options, side=side)
    with finished_blocks(job, out.parent / f".{out.name}.partial", embed_blocks) as blocks:
        parts = blocks, len(tiling.blocks), out, table
        count = finish(options, blocks.folder, _write_blocks, *parts)
    return _require_some(count, table)


def embed_blocks(
    job: SceneJob,
    blocks: Blocks,
    numbers: Sequence[int],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Encode the windows that begin in each block and write their vectors; see ``BlockWork``."""
    embedder = job.model
    assert isinstance(embedder, WindowEmbedder)
    ranges = [job.tiling.blocks[number] for number in numbers]
    before = 0

    def vectors(block: tuple[int, int]) -> Iterator[tuple[object, npt.NDArray[np.float32]]]:
        for batch in until_none(predicted):
            for item in batch:
                if item.window.window.row < block[0]:
                    continue  # it reaches into this block from the one above
                for e in embedder.embeddings(item.window.sample, item.fields):
                    bounds = None if e.geometry is None else e.geometry.bounds
                    crs = None if e.geometry is None else e.geometry.crs
                    yield (e.key, crs, bounds, e.time), e.vector
            if progress is not None and batch:
                done = min(max(batch[-1].window.floor, block[0]), block[1]) - block[0]
                progress(before + done)

    with (
        bounded_cache(),
        closing(
            predict_windows(embedder, job.scene, job.tiling, ranges, options=job.options)
        ) as predicted,
    ):
        for number, block in zip(numbers, ranges, strict=True):
            with blocks.new(number) as folder:
                write_vectors(folder, vectors(block))
            before += block[1] - block[0]


def _write_blocks(blocks: Blocks, count: int, out: Path, table: _EmbeddingTable) -> int:
    """Write the vectors of finished blocks; how many there are."""

    def embeddings() -> Iterator[Embedding]:
        for number in range(count):
            for (key, crs, bounds, time), vector in blocks.vectors(number, table.width):
                geometry = None if crs is None else Geometry(crs=crs, bounds=tuple(bounds))
                yield Embedding(key=key, geometry=geometry, time=time, vector=vector)

    return _write(embeddings(), out, table)


@single_writer(folder=False)
def embed_source(
    model: MultiMAE,
    source: Source,
    out: Path,
    *,
    inputs: Sequence[str] | None = None,
    per: Per = "chip",
    dtype: Dtype = "float32",
    options: SceneOptions | None = None,
) -> int:
    """Write a GeoParquet file of the embeddings of a source's chips, and its STAC item; returns how
    many.

    A vector per chip is the mean over windows of the model's size where chips are larger; patches
    of larger chips are encoded with the whole chip. Chips without any valid input are left out.

    Raises ConfigError for unknown inputs, DataError where nothing is observed at all, OutputError.
    """
    options = options or SceneOptions()
    shared = [n for n in source.modalities if n in model.modalities]
    for name in inputs or ():
        model.modalities[name]
        source.modalities[name]
    names = [n for n in shared if inputs is None or n in inputs]
    if not names:
        raise ConfigError(f"{source.name}: has none of the inputs {', '.join(model.modalities)}")
    embedder = WindowEmbedder(
        network=model.to(options.device),
        inputs=source.modalities.select(names),
        per=require_per(per),
        larger_chips=True,
    )
    check_source(model.modalities, model.statistics, source, range(len(source)), inputs=names)

    def embeddings() -> Iterator[Embedding]:
        done = 0
        batch_size = options.windows_per_batch(max(embedder.sizes.values()))
        for samples in chip_batches(source, range(len(source)), names, names, batch_size):
            predictions = embedder(collate(samples, embedder.inputs))
            for i, row in enumerate(predictions.rows):
                fields = {n: v[i] for n, v in predictions.fields.items()}
                yield from embedder.embeddings(samples[row], fields)
            done += len(samples)
            if options.progress is not None:
                options.progress(done, len(source))

    table = _table(embedder, dtype, source.name, options)
    with computing(options):
        return _require_some(_write(embeddings(), out, table), table)


def require_per(per: str) -> Per:
    """What a vector is of: a chip or a patch; ConfigError."""
    if per == "chip":
        return "chip"
    if per == "patch":
        return "patch"
    raise ConfigError(f"per must be chip or patch, got {per!r}")


@dataclass(frozen=True, kw_only=True)
class _EmbeddingTable:
    """What a file of embeddings records, and its STAC item, whose ``facts`` lack the rows yet."""

    facts: EmbeddingFacts
    options: SceneOptions

    @property
    def width(self) -> int:
        """Of a vector."""
        return self.facts.width


def _table(
    embedder: WindowEmbedder,
    dtype: Dtype,
    name: str,
    options: SceneOptions,
    *,
    side: int | None = None,
) -> _EmbeddingTable:
    """``side``: of the ground of a vector in the scene's pixels, where it is a cell of a grid."""
    facts = EmbeddingFacts(
        name=name,
        kind="chip",
        per=embedder.per,
        width=embedder.network.config.encoder.width,
        dtype=dtype,
        count=0,
        inputs=embedder.inputs,
        chip=None if side is None else (side, side),
        gsd=embedder.ground_m,
    )
    return _EmbeddingTable(facts=facts, options=replace(options, progress=None))


def _write(embeddings: Iterable[Embedding], out: Path, table: _EmbeddingTable) -> int:
    """Write embeddings and their STAC item, no file where there is none; how many there are."""
    facts = table.facts
    writer = EmbeddingWriter(
        out,
        facts.width,
        dtype=facts.dtype,
        model_hash=table.options.model_hash,
        details={"inputs": list(facts.inputs), "per": facts.per, "name": facts.name},
    )
    try:
        for item in embeddings:
            writer.add(item.key, item.geometry, item.time, item.vector)
        if writer.rows:
            writer.finish()
        else:
            writer.discard()
    except BaseException:
        writer.discard()
        raise
    if writer.rows:
        facts = replace(
            facts,
            count=writer.rows,
            ring=None if writer.box is None else box_ring(writer.box),
            times=writer.times,
            codes=writer.codes,
            crs=next(iter(writer.crs)) if len(writer.crs) == 1 else "",
        )
        write_items(out, facts, table.options)
    return writer.rows


def _require_some(count: int, table: _EmbeddingTable) -> int:
    if not count:
        raise DataError(
            f"{table.facts.name}: nothing is observed in the inputs {', '.join(table.facts.inputs)}"
        )
    return count


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The vector (D,) of a chip or patch, and its footprint where it is known."""

    key: str
    geometry: Geometry | None
    time: str | None
    vector: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class WindowEmbedder(NetworkWindows[MultiMAE]):
    """Encodes chips: ``vector`` (B, D); or ``vectors`` (B, rows, columns, D) and ``seen``.

    ``per``: of what a vector is. ``larger_chips``: a vector per chip is the mean over windows of
    the model's size.
    """

    per: Per
    larger_chips: bool = False

    @property
    def encoder(self) -> MultiMAE:
        """See ``NetworkWindows``."""
        return self.network

    @property
    def grid_side(self) -> int:
        """Patches along a chip of the model's size, of the finest grid of the inputs."""
        configs = (self.network.config.inputs[n] for n in self.inputs)
        return max(config.grid(config.size, config.size)[0] for config in configs)

    @property
    def ground_m(self) -> float | None:
        """Metres along the ground of a vector; None where no input declares its GSD."""
        sides = {n: m.gsd_m * self.sizes[n] for n, m in self.inputs.items() if m.gsd_m is not None}
        if not sides:
            return None
        chip = next(iter(sides.values()))
        return chip / (self.grid_side if self.per == "patch" else 1)

    def fields(self, batch: Batch) -> dict[str, npt.NDArray[np.generic]]:
        """See ``NetworkWindows``."""
        names = list(self.inputs)
        if self.per == "chip" and self.larger_chips:
            return {"vector": encoder_features(self.network, names, "mean")(batch)}
        features = self.network.encode(batch, names)
        if self.per == "chip":
            return {"vector": host_array(features.pooled)}
        fused = features.fused().permute(0, 2, 3, 1)
        return {"vectors": host_array(fused), "seen": features.seen.cpu().numpy()}

    def embeddings(self, sample: Sample, fields: Mapping[str, Any]) -> Iterator[Embedding]:
        """The embedding of a chip, or of each of its patches, from its fields."""
        if self.per == "chip":
            yield Embedding(
                key=sample.key, geometry=sample.geometry, time=sample.time, vector=fields["vector"]
            )
            return
        rows, cols = fields["seen"].shape
        # Patches may reach over the chip's right and bottom: their ground ends with it.
        name = max(sample.pixels, key=lambda n: self._grid(sample, n)[0])
        side = self.network.config.inputs[name].token_pixels
        height, width = sample.pixels[name].shape[-2:]
        for row in range(rows):
            for col in range(cols):
                if not fields["seen"][row, col]:
                    continue
                down = (row * side / height, min(1.0, (row + 1) * side / height))
                across = (col * side / width, min(1.0, (col + 1) * side / width))
                yield Embedding(
                    key=f"{sample.key}/{row},{col}",
                    geometry=None
                    if sample.geometry is None
                    else _part(sample.geometry, down, across),
                    time=sample.time,
                    vector=fields["vectors"][row, col],
                )

    def _grid(self, sample: Sample, name: str) -> tuple[int, int]:
        return self.network.config.inputs[name].grid(*sample.pixels[name].shape[-2:])


def _part(geometry: Geometry, down: tuple[float, float], across: tuple[float, float]) -> Geometry:
    """A part of a footprint, in shares of its height from the top and of its width."""
    left, bottom, right, top = geometry.bounds
    width, height = right - left, top - bottom
    return Geometry(
        crs=geometry.crs,
        bounds=(
            left + across[0] * width,
            top - down[1] * height,
            left + across[1] * width,
            top - down[0] * height,
        ),
    )
