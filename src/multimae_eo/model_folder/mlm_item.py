"""STAC items of models, by the Machine Learning Model extension (MLM).

Everything is read from the model: bands with wavelengths, GSD, unit and the statistics that the
model normalises with; shapes, classes and hyperparameters. Values are not to be scaled by the user
of a model (``value_scaling`` is null): normalisation is part of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from multimae_eo.class_colors import Color, class_colors
from multimae_eo.files import sha256_of
from multimae_eo.modality import Modality
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.reconstruction import able_tasks, usual_level
from multimae_eo.network.target import Target

STAC_VERSION = "1.1.0"
MLM_SCHEMA = "https://stac-extensions.github.io/mlm/v1.5.1/schema.json"
FILE_SCHEMA = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
EO_SCHEMA = "https://stac-extensions.github.io/eo/v2.0.0/schema.json"
ITEM_FILE = "stac.json"
"""Of a model folder."""
ITEM_SUFFIX = ".stac.json"
"""Of the item beside any other file, after that file's name."""
ANY_TIME = {
    "datetime": None,
    "start_datetime": "1900-01-01T00:00:00Z",
    "end_datetime": "9999-12-31T23:59:59Z",
}
"""Properties of an item whose time is not recorded; MLM's own examples use these."""

Record = dict[str, object]
Result = tuple[tuple[int, ...], tuple[str, ...]]
"""Shape, -1 where free, and the names of its dimensions."""

IMAGE_DIMENSIONS = ("batch", "channel", "height", "width")


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """The file that holds a model. ``path``: where it lies now; ``name``: in the item's folder."""

    path: Path
    name: str
    title: str
    media_type: str
    artifact_type: str
    roles: tuple[str, ...] = ("mlm:model",)
    framework: Literal["PyTorch", "ONNX"] = "PyTorch"
    framework_version: str = str(torch.__version__)


@dataclass(frozen=True, kw_only=True)
class BandChannel:
    """A band of a tensor, by its modality; ``level``: index of its processing level."""

    modality: str
    band: int
    level: int = 0


@dataclass(frozen=True, kw_only=True)
class ItemInput:
    """A tensor that a model takes. ``description``: the unit, and what stands for no data."""

    name: str
    channels: tuple[BandChannel, ...]
    shape: tuple[int, ...]
    description: str
    value_scaling: tuple[Mapping[str, object], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ItemOutput:
    """A tensor that a model returns. ``classes``: those of its channels."""

    name: str
    tasks: tuple[str, ...]
    result: Result
    description: str
    classes: Sequence[Mapping[str, object]] = ()


def folder_item(module: MultiMAE | Predictor, digest: str, weights: Path, license: str) -> Record:
    """The item of a model folder, whose weights lie at ``weights``; ``digest``: its model hash."""
    model = module.encoder if isinstance(module, Predictor) else module
    artifact = Artifact(
        path=weights,
        name=weights.name,
        title="Weights",
        media_type="application/octet-stream; application=safetensors",
        artifact_type="safetensors.torch.save_file",
        roles=("mlm:model", "mlm:weights"),
    )
    item = mlm_item(
        module,
        digest=digest,
        artifact=artifact,
        inputs=folder_inputs(model),
        outputs=folder_outputs(module),
        license=license,
    )
    assets = item["assets"]
    assert isinstance(assets, dict)
    for name, title in (
        ("config.json", "Configuration of the network"),
        ("modalities.json", "Sensor contract and statistics by processing level"),
    ):
        assets[name.partition(".")[0]] = {
            "href": f"./{name}",
            "title": title,
            "type": "application/json",
            "roles": ["metadata"],
            **_file_fields(weights.with_name(name)),
        }
    assets["readme"] = {
        "href": "./README.md", "title": "Model card", "type": "text/markdown", "roles": ["metadata"]
    }  # fmt: skip
    return item


def mlm_item(
    module: MultiMAE | Predictor,
    *,
    digest: str,
    artifact: Artifact,
    inputs: Sequence[ItemInput],
    outputs: Sequence[ItemOutput],
    license: str = "",
) -> Record:
    """A STAC item of a model as a JSON-ready record. ``license``: SPDX, "" where not declared."""
    model = module.encoder if isinstance(module, Predictor) else module
    channels = [c for i in inputs for c in i.channels]
    labels = band_labels(model, channels)
    bands = [_band(model, channel, labels[channel]) for channel in dict.fromkeys(channels)]
    asset: Record = {
        "href": f"./{artifact.name}",
        "title": artifact.title,
        "type": artifact.media_type,
        "roles": list(artifact.roles),
        "mlm:artifact_type": artifact.artifact_type,
        **_file_fields(artifact.path),
        "bands": bands,
    }
    schemas = [MLM_SCHEMA, FILE_SCHEMA]
    if any("eo:center_wavelength" in band for band in bands):
        schemas.append(EO_SCHEMA)
    properties: Record = {
        "title": f"multimae-eo model {digest}".strip(),
        "description": _purpose(module),
        **ANY_TIME,
        **({"license": license} if license else {}),
        **mlm_properties(module, digest, artifact, inputs, outputs),
    }
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": schemas,
        "id": item_id(digest),
        # Where a model was trained is not recorded.
        "geometry": None,
        "properties": properties,
        "links": [],
        "assets": {"model": asset},
    }


def item_id(digest: str) -> str:
    """The identifier of a model's item."""
    return f"multimae-eo-{digest or 'model'}"


def mlm_properties(
    module: MultiMAE | Predictor,
    digest: str,
    artifact: Artifact,
    inputs: Sequence[ItemInput],
    outputs: Sequence[ItemOutput],
) -> Record:
    """The fields of MLM, with their prefix."""
    model = module.encoder if isinstance(module, Predictor) else module
    labels = band_labels(model, [c for i in inputs for c in i.channels])
    parameters = list(module.parameters())
    tensors = [*parameters, *module.buffers()]
    return {
        "mlm:name": item_id(digest),
        "mlm:architecture": "MultiMAE",
        "mlm:tasks": sorted({task for o in outputs for task in o.tasks}),
        "mlm:framework": artifact.framework,
        "mlm:framework_version": artifact.framework_version,
        "mlm:memory_size": sum(t.numel() * t.element_size() for t in tensors),
        "mlm:total_parameters": sum(p.numel() for p in parameters),
        "mlm:accelerator": None,
        "mlm:accelerator_constrained": False,
        "mlm:input": [
            {
                "name": i.name,
                "description": i.description,
                "bands": [labels[c] for c in i.channels],
                "input": _structure((i.shape, IMAGE_DIMENSIONS)),
                "value_scaling": None if i.value_scaling is None else list(i.value_scaling),
                "resize_type": None,
                "pre_processing_function": None,
            }
            for i in inputs
        ],
        "mlm:output": [
            {
                "name": o.name,
                "description": o.description,
                "tasks": list(o.tasks),
                "result": _structure(o.result),
                **({"classification:classes": list(o.classes)} if o.classes else {}),
                "post_processing_function": None,
            }
            for o in outputs
        ],
        "mlm:hyperparameters": hyperparameters(module),
    }


def hyperparameters(module: MultiMAE | Predictor) -> Record:
    """The network's configuration: numbers and texts by name."""
    model = module.encoder if isinstance(module, Predictor) else module
    config = model.config
    record: Record = {f"encoder.{k}": v for k, v in asdict(config.encoder).items()}
    if model.tasks:
        record |= {f"decoder.{k}": v for k, v in asdict(config.decoder).items()}
    if isinstance(module, Predictor):
        record |= {f"head.{k}": v for k, v in asdict(module.config).items()}
    for name, part in config.inputs.items():
        record |= {f"{_slug(name)}.{k}": getattr(part, k) for k in ("size", "patch", "stride")}
    record["global_tokens"] = config.global_tokens
    record["position_grid"] = config.position_grid
    return record


def folder_inputs(model: MultiMAE) -> list[ItemInput]:
    """Every modality of a model, in chips of the size of pre-training."""
    inputs = []
    for name, modality in model.modalities.items():
        level, size = usual_level(model, name), model.config.inputs[name].size
        channels = (
            BandChannel(modality=name, band=i, level=level) for i in range(modality.channels)
        )
        inputs.append(
            ItemInput(
                name=name,
                channels=tuple(channels),
                shape=(-1, modality.channels, size, size),
                description=f"{input_unit(modality, level)}; any input may be absent",
            )
        )
    return inputs


def input_unit(modality: Modality, level: int) -> str:
    """The unit of a modality's values, and what stands for no data."""
    unit = "class ids" if modality.categorical else modality.unit or "values"
    named = f" (processing level {modality.levels[level]})" if modality.levels else ""
    return f"{modality.name}: {unit}{named}, not normalised; NaN where not observed"


def folder_outputs(module: MultiMAE | Predictor) -> list[ItemOutput]:
    """A fine-tuned model's prediction; features and reconstructions of a pre-trained one."""
    if isinstance(module, Predictor):
        sizes = module.encoder.config.sizes
        return [prediction_output("prediction", module.target, max(sizes.values()))]
    config = module.config
    side = max(part.grid(part.size, part.size)[0] for part in config.inputs.values())
    outputs = [*feature_outputs(config.encoder.width, side)]
    for task in able_tasks(module, None).values():
        size = config.inputs[task.modality].size
        modality = module.modalities[task.modality]
        outputs.append(reconstruction_output(task.modality, modality, size))
    return outputs


def feature_outputs(width: int, side: int) -> tuple[ItemOutput, ItemOutput]:
    """The map of features and their mean; ``side``: tokens along a chip, -1 where free."""
    return (
        ItemOutput(
            name="features",
            tasks=("similarity-search",),
            result=((-1, width, side, side), ("batch", "embedding", "height", "width")),
            description="embedding of each patch, the inputs fused to their mean",
        ),
        ItemOutput(
            name="pooled",
            tasks=("similarity-search",),
            result=((-1, width), ("batch", "embedding")),
            description="embedding of the chip: the mean of its patches",
        ),
    )


def prediction_output(name: str, target: Target, side: int) -> ItemOutput:
    """A fine-tuned model's prediction; ``side``: of its map in pixels, -1 where free."""
    if target.numeric:
        shape: Result = ((-1, side, side), ("batch", "height", "width"))
        return ItemOutput(
            name=name,
            tasks=("regression",),
            result=shape if target.dense else ((-1,), ("batch",)),
            description="value in the unit of the labels",
        )
    tasks = "semantic-segmentation" if target.dense else "scene-classification"
    count = len(target.classes)
    dimensions = ("batch", "class", "height", "width")
    return ItemOutput(
        name=name,
        tasks=(tasks,),
        result=((-1, count, side, side), dimensions)
        if target.dense
        else ((-1, count), dimensions[:2]),
        description="probability of each class"
        + (", independent of the others" if target.kind == "multilabel" else ""),
        classes=class_records(target.classes, target.output_ids, class_colors(target.classes)),
    )


def reconstruction_output(name: str, modality: Modality, side: int) -> ItemOutput:
    """A modality reconstructed from others; ``side``: of its image in pixels, -1 where free."""
    if not modality.categorical:
        return ItemOutput(
            name=f"{name}_reconstructed",
            tasks=("regression", "generative"),
            result=((-1, modality.channels, side, side), IMAGE_DIMENSIONS),
            description=f"{', '.join(modality.band_names)} in {modality.unit or 'its unit'}",
        )
    return ItemOutput(
        name=f"{name}_reconstructed",
        tasks=("semantic-segmentation", "generative"),
        result=((-1, len(modality.classes), side, side), ("batch", "class", "height", "width")),
        description="probability of each class",
        classes=class_records(
            [c.name for c in modality.classes],
            modality.class_ids,
            [c.color for c in modality.classes],
        ),
    )


def class_records(
    names: Sequence[str], ids: Sequence[int], colors: Sequence[Color]
) -> list[Mapping[str, object]]:
    """Classes as the classification extension has them, in the order of the channels."""
    records: list[Mapping[str, object]] = []
    taken: set[str] = set()
    for name, value, color in zip(names, ids, colors, strict=True):
        slug = _slug(name) or f"class_{value}"
        slug = slug if slug not in taken else f"{slug}_{value}"
        taken.add(slug)
        hint = "".join(f"{part:02X}" for part in color)
        records.append({"value": value, "name": slug, "description": name, "color_hint": hint})
    return records


def band_labels(model: MultiMAE, channels: Sequence[BandChannel]) -> dict[BandChannel, str]:
    """Names of bands: the band's, with its modality's in front where several have one."""
    names = {c: model.modalities[c.modality].band_names[c.band] for c in channels}
    return {
        c: name if list(names.values()).count(name) == 1 else f"{c.modality}.{name}"
        for c, name in names.items()
    }


def _band(model: MultiMAE, channel: BandChannel, label: str) -> Record:
    modality = model.modalities[channel.modality]
    band = modality.bands[channel.band]
    level = modality.levels[channel.level] if modality.levels else ""
    record: Record = {"name": label, "description": f"{modality.name}, {band.name}"}
    if level:
        record["description"] = f"{modality.name}, {band.name}, {level}"
    gsd = band.gsd_m or modality.gsd_m
    if gsd:
        record["gsd"] = gsd
    record["data_type"] = "float32"
    if modality.unit:
        record["unit"] = modality.unit
    if band.wavelength_um is not None:
        record["eo:center_wavelength"] = band.wavelength_um
        if band.bandwidth_um is not None:
            record["eo:full_width_half_max"] = band.bandwidth_um
    if model.statistics is not None and not modality.categorical:
        moments = model.statistics.moments[channel.modality][level]
        mean, std = float(moments.mean[channel.band]), float(moments.std[channel.band])
        if math.isfinite(mean) and math.isfinite(std):
            record["statistics"] = {"mean": mean, "stddev": std}
    return record


def _structure(result: Result) -> Record:
    return {"shape": list(result[0]), "dim_order": list(result[1]), "data_type": "float32"}


def _file_fields(path: Path) -> Record:
    """Size and checksum; the latter a multihash: 0x12 0x20 for SHA-256, then the digest."""
    return {"file:size": path.stat().st_size, "file:checksum": f"1220{sha256_of(path)}"}


def _purpose(module: MultiMAE | Predictor) -> str:
    if not isinstance(module, Predictor):
        return (
            "A multi-modal masked autoencoder for Earth-observation data: embeddings of any subset "
            f"of {', '.join(module.modalities)}, and reconstructions of the others"
        )
    inputs = ", ".join(module.encoder.modalities)
    return f"A model fine-tuned for {module.target.task}, from any subset of {inputs}"


def _slug(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z_-]+", "_", name).strip("_")
