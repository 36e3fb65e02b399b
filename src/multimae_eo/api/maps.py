"""Models applied to scenes and chips: ``predict``, ``reconstruct``, ``embed``, ``search`` and
``compare``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from multimae_eo.api.loading import adaptation, load_predictor, load_pretrained, load_source
from multimae_eo.errors import ConfigError

if TYPE_CHECKING:
    from multimae_eo.inference.masked_dates import DateRule
    from multimae_eo.inference.reconstruct_chips import ReconstructOptions
    from multimae_eo.inference.vector_codes import Dtype
    from multimae_eo.network.multimae import MultiMAE
    from multimae_eo.network.predictor import Predictor
    from multimae_eo.scenes.job import SceneOptions
    from multimae_eo.scenes.output_layers import LayerKind
    from multimae_eo.sources.base import Source
    from multimae_eo.sources.scene.scene import Scene
    from multimae_eo.sources.scene.scene_list import ListedScene
    from multimae_eo.sources.scene.single_raster import RasterRule

Progress = Callable[[int, int], None]


def predict(
    model: Predictor | str | Path,
    *,
    scene: Any,
    out: str | Path,
    inputs: Sequence[str] | None = None,
    probabilities: bool = False,
    confidence: bool = False,
    level: str = "",
    scale: float | None = None,
    offset: float | None = None,
    overlap: float | None = None,
    workers: int = 1,
    dask: str = "",
    adapt: int = 0,
    adapt_lr: float = 1e-4,
    seed: int = 0,
    retries: int = 1,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
) -> list[Path]:
    """Map a scene, or several, with a fine-tuned model, as cloud-optimised GeoTIFFs; resumable.

    Args:
        model: A fine-tuned model, or its folder.
        scene: A scene, a scene file (YAML), an xarray object, or a raster or Zarr or NetCDF cube
            that holds all inputs. Several: see ``list_scenes``.
        out: GeoTIFF to write, ``MAP.tif``: class ids from 0 (uint8, nodata 255), or float32 values
            in the labels' unit with NaN. Of several scenes with ``{scene}`` for the scene's name.
        inputs: Modalities to use (default: all that model and scene share).
        probabilities: Also write ``MAP.probabilities.tif``, a band per class, 0 to 1.
        confidence: Also write ``MAP.confidence.tif``, the likeliest class's probability.
        level: Processing level of a raster: l1c, l2a.
        scale: Physical units per digital number of a raster (default: what it declares).
        offset: Physical value of the digital number 0 of a raster, beside ``scale``.
        overlap: Share of a window's side, [0, 1) (default: 0.5; 0 for one prediction per chip).
        workers: Number of processes that share the scene.
        dask: Address of a Dask scheduler whose workers share it instead.
        adapt: Steps of test-time training: a copy of the model learns to reconstruct masked patches
            of the scene before it is applied. Needs a model fine-tuned with ``decoders.keep``.
        adapt_lr: Learning rate of these steps.
        seed: Of their masks.
        retries: How often scenes that failed are tried again, after all others.
        batch_size: Windows per batch (default: by the device).
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, 32-true, bf16-mixed or 16-mixed.
        progress: Called with the pixels done and the pixels in all; of several scenes, with the
            scenes.

    Returns:
        The rasters' paths; beside each lies a quick-look PNG.

    Raises:
        ConfigError: an unknown input, a model without a head, a device that this machine does not
        have. ContractError: resolutions of model and scene differ. OutputError: ``out`` cannot be
        written. ScenesError: some of several scenes failed.
    """
    from multimae_eo.scenes.predict import default_overlap, predict_scene
    from multimae_eo.sources.scene.single_raster import RasterRule

    rule = RasterRule(level=level, scale=scale, offset=offset)
    _require_head(model)
    predictor, digest = load_predictor(model)
    predictor.eval()
    running = _Running(workers, dask, batch_size, device, precision, progress, digest)
    extras: list[LayerKind] = []
    extras += ["probabilities"] if probabilities else []
    extras += ["confidence"] if confidence else []
    several = _listed(scene, out)
    options = (running.of_scenes() if several else running).options(
        default_overlap(predictor) if overlap is None else overlap
    )

    def open_scene(spec: Any) -> Scene:
        return _open_scene(predictor.encoder, spec, inputs, rule, shared=bool(dask))

    def write(opened: Scene, path: Path) -> list[str]:
        paths = predict_scene(
            predictor,
            opened,
            out=_absolute(path, shared=bool(dask)),
            inputs=inputs,
            extras=extras,
            options=options,
            adapt=adaptation(adapt, adapt_lr, seed),
        )
        return [str(p) for p in paths]

    if not several:
        return [Path(p) for p in write(open_scene(scene), Path(out))]
    settings = {"subcommand": "predict", "inputs": inputs, "extras": extras, "rule": str(rule),
                "adapt": [adapt, adapt_lr, seed]}  # fmt: skip
    results = running.each(several, out, open_scene, write, settings, options, retries=retries)
    return [Path(p) for paths in results for p in paths]


def reconstruct(
    model: MultiMAE | str | Path,
    *,
    data: Source | str | Path | None = None,
    scene: Any = None,
    out: str | Path,
    inputs: Sequence[str],
    outputs: Sequence[str] | None = None,
    split: str | None = None,
    limit: int = 8,
    arrays: bool = False,
    samples: int | None = None,
    error: bool = False,
    dates: str | Sequence[str] | None = None,
    gap: int = 1,
    clear: float = 0.5,
    calibrate: str | None = None,
    level: str = "",
    scale: float | None = None,
    offset: float | None = None,
    overlap: float = 0.5,
    workers: int = 1,
    dask: str = "",
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any] | list[Path]:
    """Predict modalities from others, or dates of series from other dates.

    Over a scene, or for the chips of a source; dates for chips only.

    Args:
        model: A pre-trained model, or its folder.
        data: A source, or what ``open_source`` opens; give either ``data`` or ``scene``.
        scene: A scene, a scene file (YAML), an xarray object, or a raster or Zarr or NetCDF cube
            that holds all inputs.
        out: Folder to write: GeoTIFFs of a scene; pictures, ``scores.json`` and ``index.html`` of
            chips.
        inputs: Visible modalities.
        outputs: Predicted modalities (default: all that the model can predict).
        split: Chips of this split only.
        limit: Number of chips to draw; all are scored.
        arrays: Also write ``arrays/<key>.<modality>.npz``: mean and std, float32 (C, H, W) in
            physical units, or class probabilities.
        samples: Random masks for the predictive std (default: 8 for chips, 0 for
            a scene).
        error: Also write prediction minus truth where the scene has the modality.
        dates: Of chips with series, predict dates from the others: ``cloudy`` ones, ISO dates,
            acquired or not, or ``each`` date in turn, which is scored. See docs/series.md.
        gap: With ``each``, hold out so many consecutive dates together.
        clear: A date is cloudy where a smaller share of its pixels is valid.
        calibrate: Split whose dates, each held out in turn, set the width of 90 % intervals.
        level, scale, offset, overlap, workers, dask, batch_size, device, precision: As for
            ``predict``.
        progress: Called with the pixels of a scene done and in all.

    Returns:
        Of a scene the rasters' paths; of chips ``chips``, ``skipped``, ``pictures`` and ``scores``;
        of dates also ``dates``, their number, and ``calibration``.

    Raises:
        ConfigError: unknown inputs or outputs, neither or both of ``data`` and ``scene``, dates of
        a scene.
        DataError: no chip has any of the inputs. ContractError, OutputError: as for ``predict``.
    """
    _require_one(data, scene)
    date_rule = _date_rule(dates, gap, clear, calibrate=calibrate, of_scene=scene is not None)
    loaded = load_pretrained(model)
    if scene is not None:
        from multimae_eo.scenes.reconstruct import reconstruct_scene
        from multimae_eo.sources.scene.single_raster import RasterRule

        rule = RasterRule(level=level, scale=scale, offset=offset)
        running = _Running(workers, dask, batch_size, device, precision, progress, loaded.digest)
        return reconstruct_scene(
            loaded.model,
            _open_scene(loaded.model, scene, inputs, rule, shared=bool(dask)),
            inputs=inputs,
            outputs=outputs,
            out=_absolute(out, shared=bool(dask)),
            options=running.options(overlap, samples=samples or 0),
            error=error,
        )
    from multimae_eo.inference.computing import computing, on_device
    from multimae_eo.inference.fill_dates import fill_dates
    from multimae_eo.inference.reconstruct_chips import reconstruct_chips

    assert data is not None
    torch_device, chosen = on_device(loaded.model, device, precision)
    options = _chip_options(outputs, limit, batch_size, samples, arrays=arrays, device=torch_device)
    run = reconstruct_chips
    if date_rule is not None:
        run = partial(fill_dates, rule=date_rule, calibrate=calibrate)
    with computing(torch_device, chosen):
        chips = load_source(data)[0]
        return run(loaded.model, chips, inputs=inputs, out=Path(out), split=split, options=options)


def _chip_options(
    outputs: Sequence[str] | None,
    limit: int,
    batch_size: int | None,
    samples: int | None,
    *,
    arrays: bool,
    device: str,
) -> ReconstructOptions:
    """How chips are reconstructed; None stands for 8 chips a batch, and 8 random masks."""
    from multimae_eo.inference.reconstruct_chips import ReconstructOptions

    return ReconstructOptions(
        limit=limit,
        outputs=None if outputs is None else tuple(outputs),
        arrays=arrays,
        batch_size=8 if batch_size is None else batch_size,
        samples=8 if samples is None else samples,
        device=device,
    )


def embed(
    model: MultiMAE | str | Path,
    *,
    data: Source | str | Path | None = None,
    scene: Any = None,
    out: str | Path,
    inputs: Sequence[str] | None = None,
    per: Literal["chip", "patch"] = "chip",
    dtype: Dtype = "float32",
    half: bool = False,
    overlap: float = 0.5,
    level: str = "",
    scale: float | None = None,
    offset: float | None = None,
    workers: int = 1,
    dask: str = "",
    retries: int = 1,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
) -> int:
    """Write embeddings of a scene or of a source's chips as GeoParquet, or a scene's as a raster.

    Beside the file, ``<out>.stac.json`` and ``<out>.collection.json`` describe it in STAC.

    Args:
        model: A pre-trained model, or its folder.
        data: A source, or what ``open_source`` opens; give either ``data`` or ``scene``.
        scene: A scene, a scene file (YAML), an xarray object, or a raster or Zarr or NetCDF cube
            that holds all inputs. Several: see ``list_scenes``.
        out: GeoParquet file to write: key, time, footprint, and a vector of the encoder's width,
            in Hilbert order of the footprints. Of a scene also ``EMB.tif``: a Cloud-Optimised
            GeoTIFF with a band per dimension and a pixel per patch (or chip); or ``EMB.zarr``: a
            Zarr group of time, embedding, y and x. Of several scenes with ``{scene}`` for the
            scene's name.
        inputs: Modalities to use (default: all that model and data share).
        per: A vector per chip, or per patch.
        dtype: float32, float16 (GeoParquet only), or int8 with a scale and offset of each
            dimension in the file's metadata.
        half: The same as ``dtype="float16"``.
        overlap: Of a raster per patch: share of a window's side, [0, 1); windows are blended.
        level, scale, offset, batch_size, device, precision: As for ``predict``.
        workers, dask, retries: Of scenes, as for ``predict``.
        progress: Called with the pixels (of a scene), chips or scenes done and in all.

    Returns:
        The number of vectors.

    Raises:
        ConfigError: unknown inputs, neither or both of ``data`` and ``scene``. DataError: nothing
        is observed. OutputError: ``out`` cannot be written. ScenesError: some of several scenes
        failed.
    """
    from multimae_eo.inference.vector_codes import require_dtype
    from multimae_eo.scenes.embed import embed_scene, embed_source
    from multimae_eo.scenes.embedding_raster import embed_raster
    from multimae_eo.sources.scene.single_raster import RasterRule

    rule, out = RasterRule(level=level, scale=scale, offset=offset), Path(out)
    dtype = require_dtype(dtype, half=half)
    raster = out.suffix.lower() in (".tif", ".tiff", ".zarr")
    if raster and scene is None:
        raise ConfigError(f"{out}: only a scene's embeddings are a raster; name it EMB.parquet")
    _require_one(data, scene)
    if data is not None and (dask or workers > 1):
        raise ConfigError("workers and dask share a scene; the chips of data are embedded by one")
    several = () if scene is None else _listed(scene, out)
    loaded = load_pretrained(model)
    running = _Running(workers, dask, batch_size, device, precision, progress, loaded.digest)
    options = (running.of_scenes() if several else running).options(overlap if raster else 0.0)
    options = replace(options, model_location=loaded.name, source_location=_location(data))
    if data is not None:
        source, _ = load_source(data)
        return embed_source(
            loaded.model, source, out, inputs=inputs, per=per, dtype=dtype, options=options
        )
    kind = embed_raster if raster else embed_scene
    vectors = partial(kind, inputs=inputs, per=per, dtype=dtype)

    def open_scene(spec: Any) -> Scene:
        return _open_scene(loaded.model, spec, inputs, rule, shared=bool(dask))

    def write(opened: Scene, path: Path) -> int:
        named = replace(options, source_location=_location(getattr(opened, "path", None)))
        return vectors(loaded.model, opened, _absolute(path, shared=bool(dask)), options=named)

    if not several:
        return write(open_scene(scene), out)
    settings = {"subcommand": "embed", "inputs": inputs, "per": per, "dtype": dtype,
                "raster": raster, "rule": str(rule)}  # fmt: skip
    return sum(running.each(several, out, open_scene, write, settings, options, retries=retries))


def search(
    embeddings: str | Path | Sequence[str | Path],
    *,
    at: tuple[float, float] | None = None,
    key: str | None = None,
    k: int = 10,
) -> list[dict[str, Any]]:
    """Find the nearest neighbours of an embedding among those of a file or of several.

    Args:
        embeddings: GeoParquet file that ``embed`` wrote, or several of one model.
        at: Longitude and latitude in degrees; the vector whose footprint holds the point.
        key: Or the key of a vector.
        k: Number of neighbours.

    Returns:
        Rows of ``key``, ``similarity`` (cosine, −1 to 1), ``lon`` and ``lat`` (degrees, or None),
        the most similar first; of several files also ``file``.

    Raises:
        ConfigError: neither or both of ``at`` and ``key``. DataError: no such vector. FormatError:
        a file holds no embeddings. ContractError: embeddings of several models.
    """
    from multimae_eo.inference.search import search as run

    given = [embeddings] if isinstance(embeddings, (str, Path)) else embeddings
    return run([Path(path) for path in given], at=at, key=key, k=k)


def compare(
    before: object,
    after: object,
    *,
    out: str | Path,
    model: MultiMAE | str | Path | None = None,
    inputs: Sequence[str] | None = None,
    per: Literal["chip", "patch"] = "patch",
    level: str = "",
    scale: float | None = None,
    offset: float | None = None,
    workers: int = 1,
    dask: str = "",
    retries: int = 1,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare two dates: the cosine distance of their embeddings at every location.

    Args:
        before: A file that ``embed`` wrote (GeoParquet or GeoTIFF); with ``model`` a scene.
            Several: see ``list_pairs``.
        after: The same of the other date, of the same model and grid.
        out: Folder to write: ``change.tif`` (cosine distance, 0 to 2) with its quick-look,
            ``change.parquet`` (the largest change first) and ``summary.json``; of scenes also their
            embeddings, ``before.tif`` and ``after.tif``. Of several pairs with ``{scene}`` for
            the scene's name.
        model: A pre-trained model, or its folder, that embeds two scenes.
        inputs, per, level, scale, offset, batch_size, device, precision, progress: As for
            ``embed``, of two scenes.
        workers, dask, retries: Of scenes, as for ``predict``.

    Returns:
        The summary: number of locations, statistics and largest distances, and notes on what could
        not be matched. Of several pairs ``scenes``: the summary of each by its name.

    Raises:
        ConfigError: files of two kinds, or scenes without a model. ContractError: two models or
        grids that differ. DataError: nothing matches. OutputError: ``out`` cannot be written.
    """
    from multimae_eo.scenes.compare import compare_embeddings, compare_scenes
    from multimae_eo.sources.scene.single_raster import RasterRule

    several = _listed_pairs(before, after, out)
    loaded = None if model is None else load_pretrained(model)
    digest = "files" if loaded is None else loaded.digest
    running = _Running(workers, dask, batch_size, device, precision, progress, digest)
    options = (running.of_scenes() if several else running).options(0.5)
    options = replace(options, model_location="" if loaded is None else loaded.name)
    rule, shared = RasterRule(level=level, scale=scale, offset=offset), bool(dask)

    def open_pair(pair: Any) -> list[Any]:
        if loaded is None:
            if not all(isinstance(path, (str, Path)) for path in pair):
                raise ConfigError("compare: two scenes need a model")
            return [_absolute(path, shared=shared) for path in pair]
        return [_open_scene(loaded.model, s, inputs, rule, shared=shared) for s in pair]

    def write(opened: list[Any], path: Path) -> dict[str, Any]:
        folder = _absolute(path, shared=shared)
        files = tuple(opened)
        if loaded is not None:
            first, second = opened
            files = compare_scenes(
                loaded.model, first, second, folder, inputs=inputs, per=per, options=options
            )
        return compare_embeddings(files[0], files[1], folder, options=options)

    if not several:
        return write(open_pair((before, after)), Path(out))
    settings = {"subcommand": "compare", "inputs": inputs, "per": per, "rule": str(rule)}
    results = running.each(several, out, open_pair, write, settings, options, retries=retries)
    return {"scenes": {s.name: r for s, r in zip(several, results, strict=True)}}


def _require_head(model: object) -> None:
    """ConfigError for the folder of a pre-trained model."""
    from multimae_eo.model_folder.folder import is_predictor

    folder = Path(model) if isinstance(model, (str, Path)) else None
    if folder is not None and (folder / "config.json").is_file() and not is_predictor(folder):
        raise ConfigError(f"{folder}: has no head; fine-tune it first, or use `reconstruct`")


def _location(data: object) -> str:
    """How data were named; "" for objects."""
    return str(data) if isinstance(data, (str, Path)) else ""


def _require_one(data: object, scene: object) -> None:
    if (data is None) == (scene is None):
        raise ConfigError("give either data or scene")


def _date_rule(
    dates: str | Sequence[str] | None,
    gap: int,
    clear: float,
    *,
    calibrate: str | None,
    of_scene: bool,
) -> DateRule | None:
    """Which dates to predict; None without ``dates``, when its options are an error."""
    from multimae_eo.inference.masked_dates import DateRule

    if dates is not None and of_scene:
        raise ConfigError("dates are predicted for the chips of data, not for a scene")
    if dates is None and (gap != 1 or calibrate is not None):
        raise ConfigError("gap and calibrate need dates: each, cloudy, or ISO dates")
    return None if dates is None else DateRule.parse(dates, gap=gap, clear=clear)


def _absolute(path: str | Path, *, shared: bool) -> Path:
    """A path; absolute where other machines have to open it, too."""
    from multimae_eo.sources.raster.remote import is_remote

    return Path(path).resolve() if shared and not is_remote(path) else Path(path)


def _open_scene(
    model: MultiMAE,
    scene: Any,
    inputs: Sequence[str] | None,
    rule: RasterRule,
    *,
    shared: bool = False,
) -> Scene:
    from multimae_eo.scenes.scene_inputs import open_arrays, open_for, open_item
    from multimae_eo.sources.raster.arrays import is_xarray
    from multimae_eo.sources.stac.item_scene import ItemScene

    if is_xarray(scene):
        return open_arrays(model, scene, inputs=inputs, rule=rule)
    if isinstance(scene, ItemScene):
        return open_item(model, scene, inputs=inputs, rule=rule)
    if not isinstance(scene, (str, Path)):
        opened: Scene = scene
        return opened
    return open_for(model, _absolute(scene, shared=shared), inputs=inputs, rule=rule)


def _listed(scene: Any, out: str | Path) -> tuple[ListedScene, ...]:
    """Several scenes, each with an output of its own; none where ``out`` is that of one scene.

    ConfigError for several scenes and one output.
    """
    from multimae_eo.scenes.each_scene import is_pattern, require_pattern
    from multimae_eo.sources.scene.scene_list import list_scenes, names_several

    if not is_pattern(out) and not names_several(scene):
        return ()
    scenes = list_scenes(scene)
    require_pattern(scenes, out)
    return scenes


def _listed_pairs(before: Any, after: Any, out: str | Path) -> tuple[ListedScene, ...]:
    """As ``_listed``, of the scenes of two dates."""
    from multimae_eo.scenes.each_scene import is_pattern, require_pattern
    from multimae_eo.sources.scene.scene_list import list_pairs, names_several

    if not is_pattern(out) and not any(names_several(s) for s in (before, after)):
        return ()
    pairs = list_pairs(before, after)
    require_pattern(pairs, out)
    return pairs


def _stamp(opened: Any) -> str:
    """What changes with a scene, a file of embeddings, or two of them."""
    from multimae_eo.sources.raster.warped import stamp

    if isinstance(opened, list):
        return " ".join(_stamp(part) for part in opened)
    return f"{opened} {stamp(str(opened))}" if isinstance(opened, Path) else str(opened.stamp())


@dataclass(frozen=True)
class _Running:
    """How a scene or a source is run through a model."""

    workers: int
    dask: str
    batch_size: int | None
    device: str
    precision: str
    progress: Progress | None
    model_hash: str

    def of_scenes(self) -> _Running:
        """The same for one of several scenes, whose pixels are not counted."""
        return replace(self, progress=None)

    def each(
        self,
        scenes: Sequence[ListedScene],
        out: str | Path,
        open_scene: Callable[[Any], Any],
        write: Callable[[Any, Path], Any],
        settings: Mapping[str, object],
        options: SceneOptions,
        *,
        retries: int,
    ) -> list[Any]:
        """What ``write`` returns for each of several scenes; see ``each_scene``."""
        from multimae_eo.scenes.each_scene import SceneWork, each_scene

        values = {
            n: getattr(options, n) for n in ("overlap", "batch_size", "precision", "model_hash")
        }
        work = SceneWork(
            opener=open_scene,
            stamp=_stamp,
            write=write,
            settings={**settings, **values} if self.model_hash else None,
        )
        rows = each_scene(
            scenes, work, out=out, retries=retries, dask=self.dask, progress=self.progress
        )
        return [row.result for row in rows]

    def options(self, overlap: float, *, samples: int = 0) -> SceneOptions:
        """The scene engine's options. Raises ConfigError for a device that is not there."""
        from multimae_eo.runtime import resolve_device, resolve_precision
        from multimae_eo.scenes.job import SceneOptions

        # Dask's workers have devices of their own.
        device = "cpu" if self.dask and self.device == "auto" else self.device
        torch_device = device if self.dask else resolve_device(device)
        return SceneOptions(
            overlap=overlap,
            workers=self.workers,
            dask=self.dask,
            precision=resolve_precision(self.precision, torch_device),  # type: ignore[arg-type]
            batch_size=self.batch_size,
            device=torch_device,
            samples=samples,
            model_hash=self.model_hash,
            progress=self.progress,
        )
