"""From a scene and polygons to a map: ``map_scene``, in steps that are subcommands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from multimae_eo.errors import ConfigError

if TYPE_CHECKING:
    from multimae_eo.evaluation.map_plan import MapPlan

Log = Callable[[str], None]


def map_scene(
    scene: str | Path,
    *,
    labels: str | Path,
    out: str | Path,
    column: str = "",
    layer: str = "",
    model: str | Path | None = None,
    inputs: Sequence[str] | None = None,
    method: Literal["auto", "finetune", "linear"] = "auto",
    head: str = "linear",
    chip: int | None = None,
    block: int | None = None,
    folds: int = 3,
    steps: int = 300,
    polygons: str | Path | None = None,
    least_pixels: int = 4,
    level: str = "",
    scale: float | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str | None = None,
    overrides: Sequence[str] = (),
    progress: Log | None = None,
) -> dict[str, Any]:
    """Map a scene from labelled polygons, and estimate the map's accuracy and areas.

    The scene is cut into chips where polygons are; a model is fine-tuned on them and maps the
    scene. Cross-validation by spatial blocks trains one more model per fold, of which no polygon is
    both trained and tested on. Called again with the same arguments, it goes on where it was; all
    but the map is in the folder ``<out's stem>.run``.

    Args:
        scene: A scene file (YAML), a raster, or a product's folder.
        labels: Polygons, lines or points with a class: GeoPackage, GeoJSON, GeoParquet, Shapefile.
        out: GeoTIFF to write, ``MAP.tif``, beside it ``MAP.confidence.tif`` and quick-looks.
        column: Column of the classes, names or ids (default: the only column).
        layer: Layer of the labels, where the file has several.
        model: A pre-trained model's folder (default: none: a small network from random
            initialisation, which learns from the polygons alone).
        inputs: Modalities to use (default: all that model and scene share).
        method: finetune, or linear: a linear head on frozen features; auto: linear where a model is
            given and fewer than 30 polygons are.
        head: linear, convnext, upernet or dpt.
        chip: Side of a chip in pixels (default: the model's, else 32).
        block: Side of a cross-validation block in chips (default: the largest of 8, 4, 2 and 1 that
            leaves four blocks with polygons per fold).
        folds: Folds of the cross-validation, from 2; 0 for none.
        steps: Optimiser steps of a training run, about.
        polygons: Also write the map as polygons: .gpkg, .geojson or .parquet.
        least_pixels: Patches of fewer pixels are merged into a neighbour in the polygons.
        level: Processing level of a raster: l1c, l2a.
        scale: Physical units per digital number of a raster.
        seed: Seed of the training runs.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, 32-true, bf16-mixed or 16-mixed (default: the recipe's).
        overrides: Options of the fine-tuning recipe, as in ``--optim.lr=3e-4``.
        progress: Called with a line of text per step.

    Returns:
        ``map``, ``report``, ``classes`` with mapped and estimated areas, ``cross_validation``.

    Raises:
        ConfigError: unknown columns, inputs or options; ``out`` belongs to another map. DataError,
        FormatError, ClassMapError, SplitError: labels or scene that cannot be used. TrainingError,
        OutputError: as for ``finetune`` and ``predict``.
    """
    from multimae_eo.evaluation.map_plan import MapOptions, make_plan

    log = progress or (lambda text: None)
    options = MapOptions(
        scene=Path(scene),
        labels=Path(labels),
        out=Path(out),
        column=column,
        layer=layer,
        model=None if model is None else Path(model),
        inputs=None if inputs is None else tuple(inputs),
        method=method,
        head=head,
        chip=chip,
        block=block,
        folds=folds,
        steps=steps,
        polygons=None if polygons is None else Path(polygons),
        least_pixels=least_pixels,
        level=level,
        scale=scale,
        seed=seed,
        overrides=tuple(overrides),
    )
    plan = make_plan(options)
    for note in plan.notes:
        log(note)
    _train_folds(plan, device, precision, log)
    _train_and_map(plan, device, precision, log)
    return _finish(plan, log)


def _train(plan: MapPlan, name: str, device: str, precision: str | None, log: Log) -> Path:
    """Fine-tune on a scene file of the plan, or take the model that a former call left."""
    from multimae_eo.api.runs import finetune
    from multimae_eo.api.stores import prepare

    run = plan.work / name
    if not plan.is_done(name):
        log(f"$ {plan.prepare_command(name)}")
        prepare(plan.work / f"{name}.yaml", out=plan.store(name))
        log(f"$ {plan.finetune_command(name)}")
        finetune(
            plan.options.model,
            data=plan.store(name),
            task="segmentation",
            out=run,
            inputs=plan.options.inputs,
            head=plan.options.head,
            device=None if device == "auto" else device,
            precision=precision,
            overrides=plan.recipe_options(name),
        )
        plan.mark(name)
    return run / "model"


def _train_folds(plan: MapPlan, device: str, precision: str | None, log: Log) -> None:
    """Train and test a model per fold; the counts of each are kept in the work folder."""
    from multimae_eo.api.loading import load_predictor, load_source
    from multimae_eo.evaluation.cross_validation import feature_counts
    from multimae_eo.inference.computing import computing, on_device
    from multimae_eo.sources.scene.chips import SceneChips

    for fold in range(plan.options.folds):
        name = f"fold{fold}"
        if plan.counts_path(fold).is_file():
            continue
        model = _train(plan, name, device, precision, log)
        predictor, _ = load_predictor(model)
        source, _ = load_source(plan.work / f"{name}.yaml")
        if not isinstance(source, SceneChips):
            raise ConfigError(f"{name}.yaml: is no scene file")
        torch_device, chosen = on_device(predictor, device, precision or "auto")
        with computing(torch_device, chosen):
            plan.keep_counts(fold, feature_counts(predictor, source, inputs=plan.options.inputs))


def _train_and_map(plan: MapPlan, device: str, precision: str | None, log: Log) -> None:
    from multimae_eo.api.maps import predict

    model = _train(plan, "final", device, precision, log)
    if plan.is_done("map") and plan.options.out.is_file():
        return
    log(f"$ {plan.predict_command()}")
    predict(
        model,
        scene=plan.work / "final.yaml",
        out=plan.options.out,
        inputs=plan.options.inputs,
        confidence=True,
        device=device,
        precision=precision or "auto",
    )
    plan.mark("map")


def _finish(plan: MapPlan, log: Log) -> dict[str, Any]:
    """Write polygons, the record and the report."""
    from multimae_eo.evaluation.class_map_file import ClassMapRaster
    from multimae_eo.evaluation.map_record import map_record, write_map_record
    from multimae_eo.scenes.polygons import write_polygons

    target = ClassMapRaster.open(plan.options.out)
    record = map_record(plan, target)
    if plan.options.polygons is not None:
        record["polygons"] = write_polygons(
            plan.options.out,
            plan.options.polygons,
            target.classes(sorted(target.names)),
            pixel_m2=target.pixel_m2,
            least_pixels=plan.options.least_pixels,
        )
        log(f"{record['polygons']} polygons: {plan.options.polygons}")
    write_map_record(plan, record)
    return record
