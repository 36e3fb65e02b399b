"""Embeddings of a scene or of a source's chips: a vector per chip, or per patch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from multimae_eo.errors import ConfigError, DataError
from multimae_eo.geo import Geometry
from multimae_eo.inference.extraction import encoder_features
from multimae_eo.inference.reconstruct_chips import chip_batches
from multimae_eo.modality import ModalitySet
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sample import Batch, Sample, collate
from multimae_eo.scenes.engine import SceneOptions, computing
from multimae_eo.scenes.geoparquet import EmbeddingWriter
from multimae_eo.scenes.pipeline import mapped, pieces
from multimae_eo.scenes.reconstruct import observed, require_inputs, scene_cut
from multimae_eo.sources.base import Source
from multimae_eo.sources.raster.warped import bounded_cache
from multimae_eo.sources.scene.scene import Scene

Per = Literal["chip", "patch"]


def embed_scene(
    model: MultiMAE,
    scene: Scene,
    out: Path,
    *,
    inputs: Sequence[str] | None = None,
    per: Per = "chip",
    half: bool = False,
    options: SceneOptions | None = None,
) -> int:
    """Write a GeoParquet file of a scene's embeddings; returns how many.

    Chips of the model's size lie side by side; the last of a row or column is moved back, so that
    it overlaps the one before. What has no valid input is left out. Keys are the chip's row and
    column on the scene's grid, and a patch's row and column in the chip.

    Raises as ``reconstruct_scene``; DataError where nothing is observed at all.
    """
    chosen = replace(options or SceneOptions(), overlap=0.0)
    names = require_inputs(model, scene, inputs)
    cut = scene_cut(model, scene, names, chosen)
    embedder = Embedder(model.to(chosen.device), scene.modalities.select(names), _per(per))
    height, width = scene.grid.height, scene.grid.width

    def batches() -> Iterator[list[tuple[Sample, dict[str, Any]]]]:
        whole = (0, cut.shape[0])
        for batch in mapped(pieces(scene, embedder, cut, whole), embedder, chosen.batch):
            yield [(piece.sample, said) for piece, said in batch]
            if chosen.progress is not None:
                rows = min(batch[-1][0].floor, height) if batch else 0
                chosen.progress(rows * width, height * width)
        if chosen.progress is not None:
            chosen.progress(height * width, height * width)

    with computing(chosen), bounded_cache():
        return _write(batches(), embedder, out, (half, chosen.model_hash), scene.name)


def embed_source(
    model: MultiMAE,
    source: Source,
    out: Path,
    *,
    inputs: Sequence[str] | None = None,
    per: Per = "chip",
    half: bool = False,
    options: SceneOptions | None = None,
) -> int:
    """Write a GeoParquet file of the embeddings of a source's chips; returns how many.

    A vector per chip is the mean over windows of the model's size where chips are larger; patches
    of larger chips are encoded with the whole chip. Chips without any valid input are left out.

    Raises ConfigError for unknown inputs, DataError where nothing is observed at all, OutputError.
    """
    chosen = options or SceneOptions()
    shared = [n for n in source.modalities if n in model.modalities]
    for name in inputs or ():
        model.modalities[name]
        source.modalities[name]
    names = [n for n in shared if inputs is None or n in inputs]
    if not names:
        raise ConfigError(f"{source.name}: has none of the inputs {', '.join(model.modalities)}")
    embedder = Embedder(
        model.to(chosen.device), source.modalities.select(names), _per(per), windows=True
    )

    def batches() -> Iterator[list[tuple[Sample, dict[str, Any]]]]:
        done = 0
        everything = range(len(source))
        for samples in chip_batches(source, everything, names, names, chosen.batch):
            rows, said = embedder(collate(samples, embedder.modalities))
            yield [(samples[r], {n: v[i] for n, v in said.items()}) for i, r in enumerate(rows)]
            done += len(samples)
            if chosen.progress is not None:
                chosen.progress(done, len(source))

    with computing(chosen):
        return _write(batches(), embedder, out, (half, chosen.model_hash), source.name)


def _per(per: str) -> Per:
    if per == "chip":
        return "chip"
    if per == "patch":
        return "patch"
    raise ConfigError(f"per must be chip or patch, got {per!r}")


def _write(
    batches: Iterable[list[tuple[Sample, dict[str, Any]]]],
    embedder: Embedder,
    out: Path,
    how: tuple[bool, str],
    name: str,
) -> int:
    writer = EmbeddingWriter(
        out, embedder.model.config.encoder.width, half=how[0], model_hash=how[1]
    )
    try:
        for batch in batches:
            for sample, said in batch:
                for key, geometry, vector in embedder.placed(sample, said):
                    writer.add(key, geometry, sample.time, vector)
        if not writer.rows:
            raise DataError(
                f"{name}: nothing is observed in the inputs {', '.join(embedder.modalities)}"
            )
        writer.finish()
    except BaseException:
        writer.discard()
        raise
    return writer.rows


@dataclass(frozen=True)
class Embedder:
    """Encodes chips: ``vector`` (B, D); or ``vectors`` (B, rows, columns, D) and ``seen``."""

    model: MultiMAE
    modalities: ModalitySet
    per: Per
    windows: bool = False

    def __call__(self, batch: Batch) -> tuple[Sequence[int], Mapping[str, Any]]:
        """The rows in which something was observed, and their vectors."""
        inputs = list(self.modalities)
        batch = batch.to(next(self.model.parameters()).device)
        rows, batch = observed(self.model, batch, inputs)
        if not rows:
            return rows, {}
        if self.per == "chip" and self.windows:
            return rows, {"vector": encoder_features(self.model, inputs, "mean")(batch)}
        features = self.model.encode(batch, inputs)
        if self.per == "chip":
            return rows, {"vector": features.pooled.float().cpu().numpy()}
        return rows, {
            "vectors": features.fused().permute(0, 2, 3, 1).float().cpu().numpy(),
            "seen": features.seen.cpu().numpy(),
        }

    def placed(
        self, sample: Sample, said: Mapping[str, Any]
    ) -> Iterator[tuple[str, Geometry | None, Any]]:
        """Key, place and vector of a chip, or of each of its patches."""
        if self.per == "chip":
            yield sample.key, sample.geometry, said["vector"]
            return
        rows, cols = said["seen"].shape
        # Patches may reach over the chip's right and bottom: their ground ends with it.
        name = max(sample.pixels, key=lambda n: self._grid(sample, n)[0])
        side = self.model.config.inputs[name].token_pixels
        height, width = sample.pixels[name].shape[-2:]
        for row in range(rows):
            for col in range(cols):
                if not said["seen"][row, col]:
                    continue
                spans = (
                    (row * side / height, min(1.0, (row + 1) * side / height)),
                    (col * side / width, min(1.0, (col + 1) * side / width)),
                )
                place = None if sample.geometry is None else _part(sample.geometry, *spans)
                yield f"{sample.key}/{row},{col}", place, said["vectors"][row, col]

    def _grid(self, sample: Sample, name: str) -> tuple[int, int]:
        return self.model.config.inputs[name].grid(*sample.pixels[name].shape[-2:])


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
