"""Embeddings of a scene or of a source's chips: a vector per chip, or per patch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from multimae_eo.modality import ModalitySet
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sample import Batch, Sample, collate
from multimae_eo.scenes.engine import computing, predict_windows
from multimae_eo.scenes.geoparquet import EmbeddingWriter
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.scenes.scene_inputs import check_scene, require_inputs, scene_tiling
from multimae_eo.scenes.window_model import (
    WindowPredictions,
    device_of,
    host_array,
    observed_rows,
    take_rows,
)
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
        network=model.to(options.device),
        inputs=require_inputs(model.modalities, scene, inputs),
        per=require_per(per),
    )
    tiling = scene_tiling(embedder.sizes, scene, embedder.inputs, options)
    check_scene(model, scene, embedder.inputs, tiling)
    height, width = scene.grid.height, scene.grid.width

    def embeddings() -> Iterator[Embedding]:
        block = (0, tiling.shape[0])
        for batch in predict_windows(embedder, scene, tiling, block, options=options):
            for item in batch:
                yield from embedder.embeddings(item.window.sample, item.fields)
            if options.progress is not None:
                rows = min(batch[-1].window.floor, height) if batch else 0
                options.progress(rows * width, height * width)
        if options.progress is not None:
            options.progress(height * width, height * width)

    writer = _writer(out, embedder, dtype, options.model_hash, scene.name)
    with bounded_cache():
        return _write(embeddings(), embedder, writer, scene.name)


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
    """Write a GeoParquet file of the embeddings of a source's chips; returns how many.

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
        for samples in chip_batches(source, range(len(source)), names, names, options.batch):
            predictions = embedder(collate(samples, embedder.inputs))
            for i, row in enumerate(predictions.rows):
                fields = {n: v[i] for n, v in predictions.fields.items()}
                yield from embedder.embeddings(samples[row], fields)
            done += len(samples)
            if options.progress is not None:
                options.progress(done, len(source))

    writer = _writer(out, embedder, dtype, options.model_hash, source.name)
    with computing(options):
        return _write(embeddings(), embedder, writer, source.name)


def require_per(per: str) -> Per:
    """What a vector is of: a chip or a patch; ConfigError."""
    if per == "chip":
        return "chip"
    if per == "patch":
        return "patch"
    raise ConfigError(f"per must be chip or patch, got {per!r}")


def _writer(
    out: Path, embedder: WindowEmbedder, dtype: Dtype, model_hash: str, name: str
) -> EmbeddingWriter:
    return EmbeddingWriter(
        out,
        embedder.network.config.encoder.width,
        dtype=dtype,
        model_hash=model_hash,
        details={"inputs": list(embedder.inputs), "per": embedder.per, "name": name},
    )


def _write(
    embeddings: Iterable[Embedding], embedder: WindowEmbedder, writer: EmbeddingWriter, name: str
) -> int:
    try:
        for item in embeddings:
            writer.add(item.key, item.geometry, item.time, item.vector)
        if not writer.rows:
            raise DataError(
                f"{name}: nothing is observed in the inputs {', '.join(embedder.inputs)}"
            )
        writer.finish()
    except BaseException:
        writer.discard()
        raise
    return writer.rows


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The vector (D,) of a chip or patch, and its footprint where it is known."""

    key: str
    geometry: Geometry | None
    time: str | None
    vector: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class WindowEmbedder:
    """Encodes chips: ``vector`` (B, D); or ``vectors`` (B, rows, columns, D) and ``seen``.

    ``per``: of what a vector is. ``larger_chips``: a vector per chip is the mean over windows of
    the model's size.
    """

    network: MultiMAE
    inputs: ModalitySet
    per: Per
    larger_chips: bool = False

    @property
    def sizes(self) -> Mapping[str, int]:
        """See ``WindowModel``."""
        return {n: self.network.config.sizes[n] for n in self.network.modalities}

    def __call__(self, batch: Batch) -> WindowPredictions:
        """See ``WindowModel``."""
        names = list(self.inputs)
        batch = batch.to(device_of(self.network))
        rows = observed_rows(self.network, batch, names)
        if not rows:
            return WindowPredictions()
        batch = take_rows(batch, rows)
        if self.per == "chip" and self.larger_chips:
            fields = {"vector": encoder_features(self.network, names, "mean")(batch)}
            return WindowPredictions(rows=rows, fields=fields)
        features = self.network.encode(batch, names)
        if self.per == "chip":
            return WindowPredictions(rows=rows, fields={"vector": host_array(features.pooled)})
        fused = features.fused().permute(0, 2, 3, 1)
        fields = {"vectors": host_array(fused), "seen": features.seen.cpu().numpy()}
        return WindowPredictions(rows=rows, fields=fields)

    def to(self, device: str) -> WindowEmbedder:
        """See ``WindowModel``."""
        return replace(self, network=self.network.to(device))

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
