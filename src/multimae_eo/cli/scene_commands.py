"""Subcommands of scenes and embeddings: predict, reconstruct, embed, search, compare."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypedDict

from multimae_eo.cli.output import counter, names_in, print_json, scene_counter
from multimae_eo.cli.parser import Subcommand, argument
from multimae_eo.errors import ConfigError
from multimae_eo.runtime import Precision


class InferenceArguments(TypedDict):
    """What ``predict``, ``reconstruct``, ``embed`` and ``compare`` all take."""

    level: str
    scale: float | None
    offset: float | None
    precision: Precision
    batch_size: int | None
    device: str


class SharingArguments(InferenceArguments):
    """What those of them take that share scenes."""

    workers: int
    dask: str
    retries: int


@dataclass(frozen=True, kw_only=True)
class _Inference:
    """Options of running a model over a scene or over chips.

    Args:
        level: processing level of a raster: l1c, l2a
        scale: physical units per digital number of a raster (default: what it declares, or that of
            the model's training data)
        offset: physical = digital number × scale + offset of a raster, beside --scale
        precision: precision of inference; auto: bfloat16 where the device multiplies it natively
        batch_size: windows or chips per batch (default: by the device)
        device: auto, cpu, cuda, cuda:N or mps
    """

    level: str = ""
    scale: float | None = None
    offset: float | None = None
    precision: Precision = "auto"
    batch_size: int | None = None
    device: str = "auto"

    def inference(self) -> InferenceArguments:
        """These options as arguments of the public functions."""
        return {
            "level": self.level,
            "scale": self.scale,
            "offset": self.offset,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "device": self.device,
        }


@dataclass(frozen=True, kw_only=True)
class _SharedScenes(_Inference):
    """Options of scenes that processes or machines share.

    Args:
        workers: number of processes that share a scene
        dask: address of a Dask scheduler, or its scheduler file (.json), whose workers share them
        retries: how often scenes that failed are tried again, after all others
    """

    workers: int = 1
    dask: str = ""
    retries: int = 1

    def sharing(self) -> SharingArguments:
        """These options as arguments of the public functions."""
        return {
            **self.inference(),
            "workers": self.workers,
            "dask": self.dask,
            "retries": self.retries,
        }


@dataclass(frozen=True, kw_only=True)
class Predict(_SharedScenes):
    """Map a scene, or several, with a fine-tuned model.

    Args:
        model: fine-tuned model folder
        scene: scene file (YAML), or a raster or cube that holds all inputs; with {scene} in --out
            several: a,b,c, a pattern, a folder, a .txt list, a STAC file
        inputs: modalities, m1,m2 (default: all)
        out: GeoTIFF to write, MAP.tif; of several scenes MAPS/{scene}.tif
        probabilities: also write a band per class
        confidence: also write the likeliest class's probability
        overlap: share of a window's side, [0, 1) (default: 0.5 for maps, 0 for one prediction per
            chip)
        adapt: steps of test-time training on the scene, by a model with decoders (0: none)
        adapt_lr: learning rate of these steps
        seed: of their masks
    """

    examples: ClassVar[tuple[str, ...]] = (
        "predict --model runs/map/model --scene scene.yaml --out map.tif",
        "predict --model runs/map/model --scene 'scenes/*.yaml' --out 'maps/{scene}.tif'",
    )
    model: str
    scene: str
    inputs: str | None = None
    out: str
    probabilities: bool = False
    confidence: bool = False
    overlap: float | None = None
    adapt: int = 0
    adapt_lr: float = 1e-4
    seed: int = 0

    def run(self) -> None:
        """Print the paths of the rasters, a line each."""
        from multimae_eo.api.maps import predict

        with scene_counter(self.out, "px") as progress:
            paths = predict(
                self.model,
                scene=self.scene,
                out=self.out,
                inputs=names_in(self.inputs),
                probabilities=self.probabilities,
                confidence=self.confidence,
                overlap=self.overlap,
                adapt=self.adapt,
                adapt_lr=self.adapt_lr,
                seed=self.seed,
                **self.sharing(),
                progress=progress,
            )
        for path in paths:
            print(path)


@dataclass(frozen=True, kw_only=True)
class Reconstruct(_Inference):
    """Reconstruct any modality from any others, or dates of series from other dates.

    Args:
        model: model folder
        data: SOURCE
        scene: scene file (YAML), or a raster or cube that holds all inputs
        inputs: visible modalities, m1,m2
        outputs: predicted modalities (default: all)
        out: folder to write
        split: chips of this split only
        limit: number of chips to draw
        arrays: also write arrays (.npz)
        samples: random masks for the predictive std (default: 8 for chips, 0 for
            a scene)
        error: also write a scene's errors where it has the truth
        dates: predict dates of series from the others: cloudy, each (in turn, and scored), or ISO
            dates, acquired or not: 2021-07-15,2021-08-01
        gap: with --dates each, hold out so many consecutive dates together
        clear: a date is cloudy where a smaller share of its pixels is valid
        calibrate: split whose held-out dates set the width of 90 % intervals of dates
        overlap: share of a window's side, [0, 1)
        workers: number of processes that share the scene
        dask: address of a Dask scheduler whose workers share it
    """

    examples: ClassVar[tuple[str, ...]] = (
        "reconstruct --model runs/first/model --scene scene.yaml --inputs rgb --out maps",
        "reconstruct --model runs/first/model --data store --inputs rgb --limit 4 --out pictures",
        "reconstruct --model farm/mae/model --data farm/store --inputs s2 --dates cloudy --out out",
    )
    model: str
    data: str | None = None
    scene: str | None = None
    inputs: str
    outputs: str | None = None
    out: str
    split: str | None = None
    limit: int = 8
    arrays: bool = False
    samples: int | None = argument(default=None, aliases=("--draws",))
    error: bool = False
    dates: str | None = None
    gap: int = 1
    clear: float = 0.5
    calibrate: str | None = None
    overlap: float = 0.5
    workers: int = 1
    dask: str = ""

    def run(self) -> None:
        """Print a scene's rasters, a line each, or the chips' scores as JSON."""
        if (self.data is None) == (self.scene is None):
            raise ConfigError("reconstruct: give either --data or --scene")
        from multimae_eo.api.maps import reconstruct

        unit = "px" if self.scene is not None else "chips"
        with counter(unit, scaled=self.scene is not None) as progress:
            result = reconstruct(
                self.model,
                data=self.data,
                scene=self.scene,
                out=self.out,
                inputs=names_in(self.inputs) or [],
                outputs=names_in(self.outputs),
                split=self.split,
                limit=self.limit,
                arrays=self.arrays,
                samples=self.samples,
                error=self.error,
                dates=self.dates,
                gap=self.gap,
                clear=self.clear,
                calibrate=self.calibrate,
                overlap=self.overlap,
                workers=self.workers,
                dask=self.dask,
                **self.inference(),
                progress=progress,
            )
        if isinstance(result, dict):
            print_json(result)
            return
        for path in result:
            print(path)


@dataclass(frozen=True, kw_only=True)
class Embed(_SharedScenes):
    """Write embeddings of chips or patches as GeoParquet or as a raster.

    Args:
        model: model folder
        data: SOURCE
        scene: scene file (YAML), or a raster or cube that holds all inputs; with {scene} in --out
            several: a,b,c, a pattern, a folder, a .txt list, a STAC file
        inputs: modalities, m1,m2 (default: all)
        out: GeoParquet file to write; of a scene also a GeoTIFF, EMB.tif, with a band per
            dimension, or a Zarr group, EMB.zarr; of several scenes EMB/{scene}.parquet, .tif or
            .zarr; STAC items lie beside it (OUT.stac.json, OUT.collection.json)
        per: a vector per chip, or per patch
        dtype: of the vectors; int8 has a scale and offset of each dimension in the file's metadata
        half: the same as --dtype float16
        overlap: of a raster per patch: share of a window's side, [0, 1)
    """

    examples: ClassVar[tuple[str, ...]] = (
        "embed --model runs/first/model --scene scene.yaml --out scene.parquet",
        "embed --model runs/first/model --scene s.yaml --per patch --dtype int8 --out scene.tif",
        "embed --model runs/first/model --data store --out store.parquet --dtype float16",
    )
    model: str
    data: str | None = None
    scene: str | None = None
    inputs: str | None = None
    out: str
    per: Literal["chip", "patch"] = "chip"
    dtype: Literal["float32", "float16", "int8"] = "float32"
    half: bool = False
    overlap: float = 0.5

    def run(self) -> None:
        """Print the file's path and its number of vectors."""
        if (self.data is None) == (self.scene is None):
            raise ConfigError("embed: give either --data or --scene")
        from multimae_eo.api.maps import embed

        unit = "px" if self.scene is not None else "chips"
        with scene_counter(self.out, unit) as progress:
            count = embed(
                self.model,
                data=self.data,
                scene=self.scene,
                out=self.out,
                inputs=names_in(self.inputs),
                per=self.per,
                dtype=self.dtype,
                half=self.half,
                overlap=self.overlap,
                **self.sharing(),
                progress=progress,
            )
        print(f"{self.out}: {count} vectors")


@dataclass(frozen=True, kw_only=True)
class Search:
    """Find the nearest neighbours among embeddings.

    Args:
        embeddings: GeoParquet file of embed; several of one model with commas: a.parquet,b.parquet
        at: neighbours of the vector at LON,LAT in degrees (--at=-4.1,52.4)
        key: or of the vector with this key
        k: number of neighbours
        json: print as JSON
    """

    examples: ClassVar[tuple[str, ...]] = (
        "search --embeddings store.parquet --at=-4.1,52.4 --k 5",
        "search --embeddings 2021.parquet,2022.parquet --key scene@0,64 --k 5",
    )
    embeddings: str
    at: str | None = None
    key: str | None = None
    k: int = 10
    json: bool = False

    def run(self) -> None:
        """Print key, cosine similarity and location of each neighbour."""
        from multimae_eo.api.maps import search

        paths = file_names(self.embeddings)
        rows = search(paths, at=lon_lat(self.at), key=self.key, k=self.k)
        if self.json:
            print_json(rows)
            return
        width = max(len(row["key"]) for row in rows)
        for row in rows:
            location = "" if row["lon"] is None else f"{row['lon']:11.5f} {row['lat']:10.5f}"
            line = f"{row['key']:{width}}  {row['similarity']:7.4f} {location:22}"
            line += f" {row['file']}" if "file" in row else ""
            sys.stdout.write(line.rstrip() + "\n")


@dataclass(frozen=True, kw_only=True)
class Compare(_SharedScenes):
    """Compare two dates by their embeddings: change as a raster, a table and a summary.

    Args:
        before: file of embed (.parquet or .tif); with --model a scene; with {scene} in --out
            several: a,b,c, a pattern, a folder, a .txt list, a STAC file
        after: the same of another date
        out: folder to write; of several pairs CHANGE/{scene}
        model: model folder, which embeds two scenes
        inputs: modalities of two scenes, m1,m2 (default: all)
        per: a distance per patch, or per chip, of two scenes
    """

    examples: ClassVar[tuple[str, ...]] = (
        "compare 2021.tif 2022.tif --out change",
        "compare 2021.yaml 2022.yaml --model runs/first/model --out change",
    )
    before: str = argument(positional=True)
    after: str = argument(positional=True)
    out: str
    model: str | None = None
    inputs: str | None = None
    per: Literal["chip", "patch"] = "patch"

    def run(self) -> None:
        """Print the summary as JSON."""
        from multimae_eo.api.maps import compare

        with scene_counter(self.out, "px") as progress:
            summary = compare(
                self.before,
                self.after,
                out=self.out,
                model=self.model,
                inputs=names_in(self.inputs),
                per=self.per,
                **self.sharing(),
                progress=progress,
            )
        print_json(summary)


def file_names(text: str) -> list[str]:
    """Files separated by commas; a file whose name has one is itself."""
    return [text] if Path(text).exists() else [part.strip() for part in text.split(",")]


def lon_lat(text: str | None) -> tuple[float, float] | None:
    """``-4.1,52.4`` as numbers. Raises ConfigError for anything else."""
    if text is None:
        return None
    try:
        lon, lat = (float(v) for v in text.split(","))
    except ValueError:
        raise ConfigError(f"--at: expected LON,LAT in degrees, got {text!r}") from None
    return lon, lat


SCENE_COMMANDS: dict[str, type[Subcommand]] = {
    "predict": Predict,
    "reconstruct": Reconstruct,
    "embed": Embed,
    "search": Search,
    "compare": Compare,
}
