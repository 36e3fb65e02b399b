"""Embeddings of a scene as a raster or Zarr group: a pixel per patch or chip.

Windows start at whole patches from the scene's upper left, so that patches form one grid, and are
blended where they overlap. As int8 each band has GDAL's scale and offset.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, DataError
from multimae_eo.files import single_writer
from multimae_eo.geo import window_starts
from multimae_eo.inference.vector_codes import NODATA_CODE, CodeLoss, Dtype, VectorCodes
from multimae_eo.modality import Band, Modality, ModalitySet
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sample import Batch
from multimae_eo.scenes.blocks import Blocks
from multimae_eo.scenes.embed import Per, WindowEmbedder, require_per
from multimae_eo.scenes.embedding_item import EmbeddingFacts, write_items
from multimae_eo.scenes.embedding_zarr import require_zarr, write_zarr
from multimae_eo.scenes.engine import finished_blocks, job_tags
from multimae_eo.scenes.geoparquet import on_the_globe
from multimae_eo.scenes.job import SceneJob, SceneOptions
from multimae_eo.scenes.output_layers import OutputLayer
from multimae_eo.scenes.quick_look import embedding_look
from multimae_eo.scenes.raster_output import tagged, write_raster
from multimae_eo.scenes.scene_inputs import check_scene, require_inputs, scene_tiling
from multimae_eo.scenes.sharing import finish
from multimae_eo.scenes.tiling import Tiling, tiling_in_cells
from multimae_eo.scenes.window_model import WindowPredictions
from multimae_eo.sources.scene.scene import Scene

FIELD = "embedding"
_SMALL_BLOCK = 128
_MANY_BANDS = 32


@single_writer(folder=False)
def embed_raster(
    model: MultiMAE,
    scene: Scene,
    out: Path,
    *,
    inputs: Sequence[str] | None = None,
    per: Per = "patch",
    dtype: Dtype = "float32",
    options: SceneOptions | None = None,
) -> int:
    """Write a scene's embeddings as a Cloud-Optimised GeoTIFF or a Zarr group, and its STAC item;
    returns how many pixels have one.

    ``out``: a ``.tif`` of as many bands as the encoder is wide; float32 with NaN, or int8 with
    scale, offset and nodata -128. ``<out>.png`` shows its first three principal components. Or a
    ``.zarr``, see ``write_zarr``.
    Windows overlap by whole patches and are blended, so that chips leave no edges; without overlap
    vectors are those of ``embed_scene`` where its chips lie on the same grid.

    Raises as ``reconstruct_scene``; ConfigError for float16, which GeoTIFF readers lack; DataError
    where nothing is observed at all.
    """
    if is_zarr(out):
        require_zarr(out)
    if dtype == "float16":
        raise ConfigError(f"{out}: a raster of embeddings is float32 or int8, not float16")
    options = options or SceneOptions()
    if per == "chip":
        options = replace(options, overlap=0.0)
    embedder = WindowEmbedder(
        network=model if options.dask else model.to(options.device),
        inputs=require_inputs(model.modalities, scene, inputs),
        per=require_per(per),
    )
    tiling = _tiling(embedder, scene, options)
    bands = tuple(Band(name=f"e{i:04d}") for i in range(model.config.encoder.width))
    layer = OutputLayer(
        stem=out.stem,
        kind="value",
        field=FIELD,
        ratio=tiling.ratios[FIELD],
        modality=Modality(name=FIELD, bands=bands),
    )
    settings = {"subcommand": "embed", "inputs": list(embedder.inputs), "per": per}
    job = SceneJob(
        scene=scene,
        tiling=tiling,
        model=CellEmbedder(embedder=embedder),
        layers=(layer,),
        settings=settings,
        options=options,
        warning=check_scene(model, scene, embedder.inputs, tiling),
    )
    tags = {"per": per, "inputs": json.dumps(list(embedder.inputs)), "scene": scene.name}
    if scene.time:
        tags["time"] = scene.time
    with finished_blocks(job, out.parent / f".{out.name}.partial") as blocks:
        product = _RasterProduct(
            tiling=tiling,
            layer=layer,
            tags={**job_tags(job), **tags},
            facts=_facts(job, embedder, dtype),
            options=replace(options, progress=None),
        )
        parts = blocks, out, product
        count = finish(options, blocks.folder, _write, *parts)
    if not count:
        raise DataError(f"{scene.name}: nothing is observed in {', '.join(embedder.inputs)}")
    return count


def is_zarr(out: Path) -> bool:
    """Whether an output is a Zarr group, by its name."""
    return out.suffix.lower() == ".zarr"


@dataclass(frozen=True, kw_only=True)
class _RasterProduct:
    """What is written of finished blocks; ``facts``, for the STAC item, lack the vectors yet."""

    tiling: Tiling
    layer: OutputLayer
    tags: Mapping[str, str]
    facts: EmbeddingFacts
    options: SceneOptions


def _facts(job: SceneJob, embedder: WindowEmbedder, dtype: Dtype) -> EmbeddingFacts:
    """What is stated of the raster, but its vectors."""
    side = job.tiling.ratios[FIELD]
    grid = job.tiling.grid.coarser(side)
    polygons, _ = on_the_globe([grid.footprint(grid.extent)])
    return EmbeddingFacts(
        name=job.scene.name,
        kind="pixel" if embedder.per == "patch" else "chip",
        per=embedder.per,
        width=embedder.network.config.encoder.width,
        dtype=dtype,
        count=0,
        inputs=embedder.inputs,
        chip=(side, side),
        gsd=embedder.ground_m,
        ring=np.array(polygons["xy"][0]),
        times=(job.scene.time,) if job.scene.time else (),
        grid=grid,
    )


@dataclass(frozen=True, kw_only=True)
class CellEmbedder:
    """Encodes windows: one field (B, D, rows, columns), zeros where a patch has no token."""

    embedder: WindowEmbedder

    @property
    def network(self) -> MultiMAE:
        """The encoder."""
        return self.embedder.network

    @property
    def inputs(self) -> ModalitySet:
        """See ``WindowModel``."""
        return self.embedder.inputs

    @property
    def sizes(self) -> Mapping[str, int]:
        """See ``WindowModel``."""
        return self.embedder.sizes

    def __call__(self, batch: Batch) -> WindowPredictions:
        """See ``WindowModel``."""
        predictions = self.embedder(batch)
        if not predictions.rows:
            return predictions
        if self.embedder.per == "chip":
            field = predictions.fields["vector"][:, :, None, None]
        else:
            vectors, seen = predictions.fields["vectors"], predictions.fields["seen"]
            field = np.where(seen[..., None], vectors, 0.0).transpose(0, 3, 1, 2)
        fields = {FIELD: np.ascontiguousarray(field, np.float32)}
        return WindowPredictions(rows=predictions.rows, fields=fields)

    def to(self, device: str) -> CellEmbedder:
        """See ``WindowModel``."""
        return replace(self, embedder=self.embedder.to(device))

    def with_network(self, network: Any) -> CellEmbedder:
        """See ``WindowModel``."""
        return replace(self, embedder=self.embedder.with_network(network))


def _tiling(embedder: WindowEmbedder, scene: Scene, options: SceneOptions) -> Tiling:
    """Windows from the upper left, at multiples of the cell of an embedding in grid pixels."""
    tiling = scene_tiling(embedder.sizes, scene, embedder.inputs, options)
    if embedder.per == "chip":
        return tiling_in_cells(tiling, FIELD, 0.0)
    configs = {n: embedder.network.config.inputs[n] for n in embedder.inputs}
    sizes = embedder.sizes
    rows = max(config.grid(sizes[n], sizes[n])[0] for n, config in configs.items())
    if tiling.chip % rows:
        raise ConfigError(
            f"a raster of {rows} patches on {tiling.chip} px of the scene's grid is not whole "
            "pixels; write GeoParquet (--out EMB.parquet)"
        )
    side = tiling.chip // rows
    step = max(1, round(rows * (1 - options.overlap)))
    tops, lefts = (
        tuple(side * s for s in window_starts(-(-size // side), rows, step))
        for size in (scene.grid.height, scene.grid.width)
    )
    return replace(tiling, ratios={**tiling.ratios, FIELD: side}, tops=tops, lefts=lefts)


def _write(blocks: Blocks, out: Path, product: _RasterProduct) -> int:
    """Write the raster of the finished blocks, its picture and its STAC item; how many vectors
    there are. Nothing is written where there is none.
    """
    facts = _write_raster(blocks, out, product)
    if facts.count:
        if not is_zarr(out):
            embedding_look(out)
        write_items(out, facts, product.options)
    return facts.count


def _write_raster(blocks: Blocks, out: Path, product: _RasterProduct) -> EmbeddingFacts:
    layer, facts = product.layer, product.facts
    grid = product.tiling.grid.coarser(layer.ratio)
    profile = tagged(layer.profile, {**product.tags, "dtype": facts.dtype})
    if len(profile.bands) > _MANY_BANDS:
        profile = replace(profile, block=_SMALL_BLOCK)

    def rows() -> Iterator[npt.NDArray[np.generic]]:
        for part in blocks.rows(layer, grid, len(product.tiling.blocks)):
            without_token = (part == 0).all(axis=0)
            yield np.where(without_token, np.float32(np.nan), part)

    low, high, count = _range(rows(), len(profile.bands))
    facts, stored = replace(facts, count=count), rows()
    if not count:
        return facts
    if facts.dtype == "int8":
        codes, loss = VectorCodes.of_range(low, high), CodeLoss()
        for part in rows():
            vectors, observed = _vectors(part)
            loss.add(vectors[observed], codes.decode(codes.encode(vectors[observed])))
        profile = replace(
            tagged(profile, {name: str(value) for name, value in loss.record().items()}),
            dtype="int8",
            nodata=float(NODATA_CODE),
            scales=tuple(codes.scale.tolist()),
            offsets=tuple(codes.offset.tolist()),
        )
        facts, stored = replace(facts, codes=codes), _coded_rows(rows(), codes)
    if is_zarr(out):
        write_zarr(out, facts, product.options, stored)
    else:
        write_raster(out, grid, profile, stored)
    return facts


def _coded_rows(
    rows: Iterator[npt.NDArray[np.generic]], codes: VectorCodes
) -> Iterator[npt.NDArray[np.generic]]:
    for part in rows:
        yield _coded(part, codes)


def _vectors(
    rows: npt.NDArray[np.generic],
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
    """Rows (D, n, W) as vectors (n * W, D), and which of them are observed."""
    vectors = rows.reshape(len(rows), -1).T
    return vectors, np.isfinite(vectors).all(axis=1)


def _range(
    parts: Iterator[npt.NDArray[np.generic]], width: int
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic], int]:
    """Least and greatest value of each dimension, and how many vectors there are."""
    low, high, count = np.full(width, np.inf), np.full(width, -np.inf), 0
    for part in parts:
        vectors, observed = _vectors(part)
        if observed.any():
            count += int(observed.sum())
            low = np.minimum(low, vectors[observed].min(axis=0))
            high = np.maximum(high, vectors[observed].max(axis=0))
    return low, high, count


def _coded(rows: npt.NDArray[np.generic], codes: VectorCodes) -> npt.NDArray[np.int8]:
    """Rows (D, n, W) as int8, -128 where not observed."""
    vectors, observed = _vectors(rows)
    coded = np.full(vectors.shape, NODATA_CODE, np.int8)
    coded[observed] = codes.encode(vectors[observed])
    return coded.T.reshape(rows.shape)
