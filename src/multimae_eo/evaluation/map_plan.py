"""The steps from a scene and polygons to a map: scene files, options and a folder to resume from.

``final.yaml`` is the scene with all polygons, ``fold0.yaml`` … the same with a fold's polygons as
the test split. ``prepare``, ``evaluate`` and ``predict`` take them as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import yaml

from multimae_eo.errors import ConfigError, FormatError
from multimae_eo.files import read_json, remove, write_file
from multimae_eo.model_folder.folder import load_either, model_hash
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.scenes.scene_inputs import folder_text
from multimae_eo.scenes.vector_output import require_vector_output
from multimae_eo.sources.data_root import expanded_root
from multimae_eo.sources.raster.header import RasterHeader
from multimae_eo.sources.raster.reading import read_header
from multimae_eo.sources.scene.chips import SceneChips, open_scene
from multimae_eo.sources.scene.scene import SCENE_KEYS
from multimae_eo.sources.scene.single_raster import RASTER_SUFFIXES
from multimae_eo.sources.unsupported_files import other_kind
from multimae_eo.sources.vector.vector_file import VectorFeatures, is_vector, read_features
from multimae_eo.sources.yaml_section import Section, load_yaml, parse_yaml

Method = Literal["auto", "finetune", "linear"]
_FEW = 30
_CHIP, _PATCH, _BATCH, _VALIDATIONS = 32, 4, 16, 20
_ENCODER = "{width: 96, depth: 4, heads: 4}"
_BLOCKS = (8, 4, 2, 1)
_VAL_SHARE = 0.15


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """What a map is made from, as ``map_scene`` describes."""

    scene: Path
    labels: Path
    out: Path
    column: str = ""
    layer: str = ""
    model: Path | None = None
    inputs: tuple[str, ...] | None = None
    method: Method = "auto"
    head: str = "linear"
    chip: int | None = None
    block: int | None = None
    folds: int = 3
    steps: int = 300
    polygons: Path | None = None
    least_pixels: int = 4
    level: str = ""
    scale: float | None = None
    seed: int = 0
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MapPlan:
    """What is done, and where.

    ``work``: the folder of all steps. ``column``: of the classes. ``linear``: a linear head on
    frozen features. ``validated``: polygons are left for validation. ``chips``: training chips of
    each run. ``notes``: lines for the user.
    """

    options: MapOptions
    work: Path
    column: str
    linear: bool
    validated: bool
    chips: Mapping[str, int]
    notes: tuple[str, ...]

    def recipe_options(self, name: str) -> list[str]:
        """Options of the fine-tuning recipe of a run; those of the caller come last."""
        per_epoch = max(1, math.ceil(self.chips[name] / _BATCH))
        epochs = max(1, math.ceil(self.options.steps / per_epoch))
        options: dict[str, object] = {
            "data.batch_size": _BATCH,
            "head_init": "random",
            "optim.lr": 0.016,
            "optim.warmup_epochs": round(epochs / 10, 2),
            "run.epochs": epochs,
            "run.val_every": max(1, epochs // _VALIDATIONS),
            "run.seed": self.options.seed,
        }
        if not self.validated:
            options["data.val_fraction"] = 0
        if self.linear:
            options["freeze"] = "encoder"
        if self.options.model is None:
            options |= {"model.encoder": _ENCODER, "model.patch": _PATCH, "optim.layer_decay": 1}
            options["optim.drop_path"] = 0
        return [*(f"--{key}={value}" for key, value in options.items()), *self.options.overrides]

    def store(self, name: str) -> Path:
        """The chip store of a run."""
        return self.work / f"{name}.store"

    def prepare_command(self, name: str) -> str:
        """The subcommand that cuts a run's chips from the scene."""
        data, store = str(self.work / f"{name}.yaml"), str(self.store(name))
        return shlex.join(["multimae-eo", "prepare", data, "--out", store])

    def finetune_command(self, name: str) -> str:
        """The subcommand that makes a run's model."""
        words = ["finetune", "--model", str(self.options.model or "none")]
        words += ["--data", str(self.store(name)), "--task", "segmentation"]
        words += ["--head", self.options.head, *self._inputs(), *self.recipe_options(name)]
        return shlex.join(["multimae-eo", *words, "--out", str(self.work / name)])

    def predict_command(self) -> str:
        """The subcommand that makes the map."""
        words = ["predict", "--model", str(self.work / "final/model")]
        words += ["--scene", str(self.work / "final.yaml"), "--confidence", *self._inputs()]
        return shlex.join(["multimae-eo", *words, "--out", str(self.options.out)])

    def _inputs(self) -> list[str]:
        inputs = self.options.inputs
        return ["--inputs", ",".join(inputs)] if inputs else []

    def is_done(self, step: str) -> bool:
        """Whether a former call has finished a step."""
        return (self.work / f"{step}.done").is_file()

    def mark(self, step: str) -> None:
        """Keep that a step is finished."""
        write_file(self.work / f"{step}.done", b"")

    def counts_path(self, fold: int) -> Path:
        """The file of a fold's counts."""
        return self.work / f"fold{fold}.counts.json"

    def keep_counts(self, fold: int, counts: Mapping[int, npt.NDArray[np.int64]]) -> None:
        """Write a fold's counts, by feature: predicted class x labelled class."""
        record = {str(feature): matrix.tolist() for feature, matrix in counts.items()}
        write_file(self.counts_path(fold), json.dumps(record).encode())

    def counts(self) -> npt.NDArray[np.int64]:
        """The counts of all folds, (features, C, C)."""
        records = [read_json(self.counts_path(f), FormatError) for f in range(self.options.folds)]
        return np.array([matrix for record in records for matrix in record.values()])


def make_plan(options: MapOptions) -> MapPlan:
    """Check everything that a map needs, and write its scene files.

    Raises ConfigError for options, or a work folder of another map; errors of scene and labels.
    """
    _check(options)
    features = read_features(options.labels, layer=options.layer)
    column = options.column or _only_column(features)
    encoder = None if options.model is None else _encoder(options.model)
    record = _scene_record(options, encoder)
    side = options.chip or (max(encoder.config.sizes.values()) if encoder else _CHIP)
    record["labels"] = {"vector": str(options.labels.resolve()), "column": column}
    record["labels"] |= {"layer": options.layer} if options.layer else {}
    few = encoder is not None and len(features) < _FEW
    linear = options.method == "linear" or (options.method == "auto" and few)
    work = options.out.with_name(f"{options.out.stem}.run")
    _claim(work, options, record, linear=linear)
    undivided = _write_scene(work / "final.yaml", record, side, None)
    split = _split_of(undivided, options.block, options.folds)
    validated = "val" in split
    final = dict(split) if validated else None
    sources = {"final": _write_scene(work / "final.yaml", record, side, final)}
    for fold in range(options.folds):
        name, rule = f"fold{fold}", {**split, "folds": options.folds, "fold": fold}
        sources[name] = _write_scene(work / f"{name}.yaml", record, side, rule)
    return MapPlan(
        options=options,
        work=work,
        column=column,
        linear=linear,
        validated=validated,
        chips={name: _training_chips(source) for name, source in sources.items()},
        notes=_notes(undivided, options.model, linear, len(features), split),
    )


def _check(options: MapOptions) -> None:
    if options.out.suffix != ".tif":
        raise ConfigError(f"{options.out}: the map is a GeoTIFF; let its name end in .tif")
    if options.folds == 1 or options.folds < 0:
        raise ConfigError(f"folds: two or more, or 0 for no cross-validation; got {options.folds}")
    if options.polygons is not None:
        require_vector_output(options.polygons)
    if not is_vector(options.labels):
        raise ConfigError(
            f"{options.labels}: labels are a GeoPackage, GeoJSON, GeoParquet or Shapefile"
        )


def _only_column(features: VectorFeatures) -> str:
    columns = [n for n in features.columns if n.lower() not in ("id", "fid", "ogc_fid")]
    if len(columns) != 1:
        raise ConfigError(
            f"{features.path}: which column holds the classes? name it with --column: "
            f"{', '.join(features.columns) or 'it has none'}"
        )
    return columns[0]


def _encoder(model: Path) -> MultiMAE:
    loaded = load_either(model)
    return loaded.encoder if isinstance(loaded, Predictor) else loaded


def _scene_record(options: MapOptions, encoder: MultiMAE | None) -> dict[str, Any]:
    """The scene file's content with absolute paths; of a raster, one that is written for it."""
    scene = options.scene
    if not scene.exists():
        raise ConfigError(f"{scene}: no such file; name a scene file (YAML) or a raster")
    if scene.suffix.lower() in RASTER_SUFFIXES:
        modalities = _raster_modalities(read_header(scene), options, encoder)
        root = str(scene.parent.resolve())
        return {"name": scene.stem, "root": root, "modalities": modalities}
    if scene.is_dir():
        offered = (
            None
            if encoder is None
            else encoder.modalities.select(options.inputs or [*encoder.modalities])
        )
        content = parse_yaml(folder_text(scene, offered), str(scene))
    elif scene.suffix.lower() in (".yaml", ".yml"):
        content = load_yaml(scene)
    else:
        raise ConfigError(f"{scene}: {other_kind(scene) or 'is neither a scene file nor a raster'}")
    if options.level or options.scale is not None:
        raise ConfigError(f"{scene}: level and scale of its rasters stand in the scene file")
    top = Section.of(str(scene), content, SCENE_KEYS)
    record = {k: v for k, v in top.record.items() if k not in ("labels", "chips")}
    root = expanded_root(top.text("root", "."), str(scene))
    record["root"] = str((scene.parent / root).resolve())
    record["name"] = top.text("name", scene.stem)
    return record


def _raster_modalities(
    header: RasterHeader, options: MapOptions, encoder: MultiMAE | None
) -> dict[str, Any]:
    """Modalities of a raster: the model's, or all of its bands as one."""
    common: dict[str, object] = {"path": str(options.scene.resolve())}
    common |= {"scale": options.scale} if options.scale is not None else {}
    if encoder is None:
        names = [name or f"band_{i}" for i, name in enumerate(header.names, 1)]
        if len(set(names)) < len(names):
            names = [f"band_{i}" for i in range(1, len(names) + 1)]
        channels = list(range(1, len(names) + 1))
        return {"image": {**common, "custom": True, "bands": names, "channels": channels}}
    records = {}
    for name, modality in encoder.modalities.select(
        options.inputs or [*encoder.modalities]
    ).items():
        entry = {**common, "sensor": modality.sensor, "bands": list(modality.band_names)}
        entry |= {"level": options.level} if modality.levels else {}
        if options.scale is None and modality.scale != 1.0:
            entry |= {"scale": modality.scale, "offset": modality.offset}
        records[name] = entry
    return records


def _claim(work: Path, options: MapOptions, record: Mapping[str, object], *, linear: bool) -> None:
    """Make ``work`` the folder of these settings; ConfigError where it is another map's."""
    settings = {
        "scene": record,
        "labels": hashlib.sha256(options.labels.read_bytes()).hexdigest(),
        "model": "none" if options.model is None else model_hash(options.model),
        "linear": linear,
        **{n: getattr(options, n) for n in ("head", "chip", "block", "folds", "steps", "seed")},
        "inputs": list(options.inputs or ()),
        "overrides": list(options.overrides),
    }
    path = work / "settings.json"
    text = json.dumps(settings, sort_keys=True, default=str, indent=1)
    if path.is_file():
        before = read_json(path, FormatError)
        differing = [k for k, v in json.loads(text).items() if before.get(k) != v]
        if differing and any(work.glob("*.done")):
            raise ConfigError(
                f"{work}: holds the steps of another map ({', '.join(differing)} differ); choose "
                "another --out, or remove the folder"
            )
        if differing:
            remove(work)  # of a call that ended before its first step
    write_file(path, text.encode())


def _split_of(source: SceneChips, block: int | None, folds: int) -> dict[str, object]:
    """How polygons are divided: by the largest blocks that leave enough of them, or singly."""
    least = max(folds, 2)
    for chips in (block,) if block else _BLOCKS:
        groups = source.feature_groups(block=chips)
        if groups >= (least if block else 4 * least):
            return {"block": chips, **_validation(groups, folds)}
    groups = source.feature_groups()
    return {"polygons": True, **_validation(groups, folds)}


def _validation(groups: int, folds: int) -> dict[str, float]:
    """A validation split where groups are left for one."""
    return {"val": _VAL_SHARE} if groups >= 3 * max(folds, 2) else {}


def _write_scene(
    path: Path, record: Mapping[str, object], side: int, split: Mapping[str, object] | None
) -> SceneChips:
    chips: dict[str, object] = {"size": side} | ({"split": dict(split)} if split else {})
    text = yaml.safe_dump({**record, "chips": chips}, sort_keys=False, allow_unicode=True)
    write_file(path, text.encode())
    return open_scene(path)


def _training_chips(source: SceneChips) -> int:
    return sum(split in ("", "train") for split in source.split_of)


def _notes(
    source: SceneChips, model: Path | None, linear: bool, features: int, split: Mapping[str, object]
) -> tuple[str, ...]:
    unit = "polygons" if "polygons" in split else f"blocks of {split['block']} chips"
    notes = [
        f"{features} features of {len(source.class_names)} classes on {len(source)} chips; "
        f"cross-validation by {unit}",
        *source.notes,
    ]
    if model is None:
        notes.append(
            "no --model: a small network learns from the polygons alone, from random "
            "initialisation; a pre-trained model needs fewer polygons"
        )
    elif linear:
        notes.append("a linear head is trained on frozen features")
    return tuple(notes)
