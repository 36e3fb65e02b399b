"""The reference's released weights (``.pth``) as a MultiMAE of ours.

The file holds a pickled ``argparse.Namespace`` beside the tensors. It is read with
``weights_only=True`` and that one class allowed; anything else in it is refused, unexecuted.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multimae_eo import catalog
from multimae_eo.errors import CheckpointError, ConfigError, did_you_mean
from multimae_eo.files import read_json, require_regular
from multimae_eo.modality import ClassMapEntry, Modality, ModalitySet, Task
from multimae_eo.network.config import DecoderConfig, EncoderConfig, InputConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.statistics import Moments, Statistics, moments_from

HEAD_WIDTH = 64
UNOBSERVED = 254
"""Id of the reference's twelfth land-cover class: nodata it was trained on. No data hold it."""

# Where a modality's statistics lie in MMEarth's band_stats.json: HDF5 key and channels.
_STATISTICS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "rgb": ("sentinel2", (3, 2, 1)),
    "ired": ("sentinel2", (4, 5, 6)),
    "sired": ("sentinel2", (11, 12)),
    "ebands": ("sentinel2", (7, 8)),
    "depth": ("aster", (0,)),
}
_DN = 1e-4
"""MMEarth's Sentinel-2 digital number in reflectance."""


def convert(checkpoint: Path, *, statistics: Path | None = None) -> MultiMAE:
    """Build a MultiMAE with the weights of a reference checkpoint.

    ``statistics``: MMEarth's ``*_band_stats.json``. Without it the model carries none, and
    refuses data until it is converted with them. Raises CheckpointError for a file that is not
    such a checkpoint, holds anything unsafe, or names unknown modalities.
    """
    weights, args = read_checkpoint(checkpoint)
    try:
        modalities = _modalities(weights)
        tasks, config = _tasks(weights, modalities), _config(weights, args, modalities)
        training_statistics = (
            None if statistics is None else _read_statistics(statistics, modalities)
        )
        model = MultiMAE(modalities, tasks, config, training_statistics)
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    except (KeyError, IndexError, StopIteration, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"{checkpoint}: no reference checkpoint: its parameters do not make a model "
            f"({type(error).__name__}: {error})"
        ) from error
    renamed = {_rename(k): _reshape(k, v) for k, v in weights.items() if not _is_position(k)}
    expected = model.state_dict()
    differing = set(renamed) ^ set(expected)
    if differing:
        raise CheckpointError(f"{checkpoint}: parameters do not match: {sorted(differing)[:5]}")
    for name, value in renamed.items():
        if value.shape != expected[name].shape:
            raise CheckpointError(
                f"{checkpoint}: {name} is {tuple(value.shape)}, expected "
                f"{tuple(expected[name].shape)}"
            )
    model.load_state_dict(renamed)
    _check_positions(checkpoint, weights, model)
    return model.eval()


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Read tensors and arguments without executing anything the file holds."""
    require_regular(path, CheckpointError)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # About pickle protocols; a file that cannot be read raises an error anyway.
            warnings.simplefilter("ignore", UserWarning)
            record = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch's unpickler raises whatever a damaged stream leads to
        raise CheckpointError(
            f"{path}: is no PyTorch checkpoint, is damaged, or holds something other than tensors, "
            "plain values and argparse.Namespace; it is refused, and nothing in it was executed"
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("model"), Mapping):
        raise CheckpointError(f"{path}: no reference checkpoint: the key 'model' is missing")
    weights = {str(k): v for k, v in record["model"].items() if isinstance(v, Tensor)}
    args = record.get("args")
    return weights, vars(args) if isinstance(args, argparse.Namespace) else {}


def _modalities(weights: Mapping[str, Tensor]) -> ModalitySet:
    names = list(dict.fromkeys(_part(k, 1) for k in weights if k.startswith("input_adapters.")))
    modalities = []
    for name in names:
        if name not in catalog.MODALITIES:
            raise ConfigError(f"unknown input {name!r}; {did_you_mean(name, catalog.MODALITIES)}")
        modality = catalog.modality(name)
        table = weights.get(f"input_adapters.{name}.class_emb.weight")
        modalities.append(modality if table is None else _with_unobserved(modality, len(table)))
    return ModalitySet(modalities)


def _with_unobserved(modality: Modality, classes: int) -> Modality:
    """The modality with the class of nodata that the reference was trained on, where it has one."""
    extra = ClassMapEntry(id=UNOBSERVED, name="unobserved (reference only)", color=(0, 0, 0))
    if classes == len(modality.classes):
        return modality
    if classes == len(modality.classes) + 1:
        return replace(modality, classes=(*modality.classes, extra))
    raise ConfigError(
        f"{modality.name}: {classes} classes given, the catalogue has {len(modality.classes)}"
    )


def _tasks(weights: Mapping[str, Tensor], modalities: ModalitySet) -> list[Task]:
    names = dict.fromkeys(_part(k, 1) for k in weights if k.startswith("output_adapters."))
    tasks = []
    for name in names:
        normalised = name not in modalities
        modality = modalities[name.removeprefix("norm_")]
        loss = "l1" if modality.unit == "m" else modality.default_loss
        tasks.append(Task(name=name, modality=modality.name, loss=loss, patch_normalise=normalised))
    return tasks


def _config(
    weights: Mapping[str, Tensor], args: Mapping[str, Any], modalities: ModalitySet
) -> ModelConfig:
    width = weights["global_tokens"].shape[-1]
    size = int(args.get("input_size", 56))
    patch = int(args.get("patch_size", 8))
    inputs = {}
    for name in modalities:
        kernel = weights[f"input_adapters.{name}.proj.weight"].shape[-1]
        table = weights.get(f"input_adapters.{name}.class_emb.weight")
        inputs[name] = InputConfig(
            size=size,
            patch=kernel,
            stride=patch // kernel,
            class_width=64 if table is None else table.shape[1],
        )
    first = next(_part(k, 1) for k in weights if k.startswith("output_adapters."))
    decoder = f"output_adapters.{first}"
    return ModelConfig(
        encoder=EncoderConfig(
            width=width, depth=_blocks(weights, "encoder"), heads=width // HEAD_WIDTH
        ),
        decoder=DecoderConfig(
            width=weights[f"{decoder}.mask_token"].shape[-1],
            depth=_blocks(weights, f"{decoder}.decoder_transformer"),
            heads=int(args.get("decoder_num_heads", 8)),
        ),
        inputs=inputs,
        global_tokens=weights["global_tokens"].shape[1],
        position_grid=next(v for k, v in weights.items() if _is_position(k)).shape[-1],
    )


_RENAMES = (
    (r"^input_adapters\.(\w+)\.proj\.", r"embeddings.\1.projection."),
    (r"^input_adapters\.(\w+)\.class_emb\.weight", r"embeddings.\1.classes"),
    (r"^encoder\.(\d+)\.", r"encoder.blocks.\1."),
    (r"^output_adapters\.", "decoders."),
    (r"\.task_embeddings\.", ".modality."),
    (r"\.decoder_transformer\.", ".blocks."),
    (r"\.decoder\.", ".cross."),
    (r"\.out_proj\.", ".out."),
    (r"\.proj_context\.", ".context."),
)


def _rename(key: str) -> str:
    for pattern, to in _RENAMES:
        key = re.sub(pattern, to, key)
    return key


def _reshape(key: str, value: Tensor) -> Tensor:
    """Convolutions become linear layers; learned vectors lose their axes of one."""
    if value.ndim == 4:
        return value.flatten(1)
    if value.ndim == 3:
        return value[0] if key == "global_tokens" else value.reshape(-1)
    return value


def _check_positions(path: Path, weights: Mapping[str, Tensor], model: MultiMAE) -> None:
    """The stored tables must be the fixed sin-cos ones that we compute."""
    for key, table in weights.items():
        if _is_position(key):
            computed = model.positions if key.startswith("input_") else model.decoder_positions
            if not torch.allclose(computed.get_buffer("table"), table, atol=1e-5):
                raise CheckpointError(f"{path}: {key} is not the fixed sin-cos table")


def _read_statistics(path: Path, modalities: ModalitySet) -> Statistics:
    stats = read_json(path, CheckpointError, remedy="give MMEarth's band_stats.json")
    statistics = Statistics(modalities)
    for name, modality in modalities.items():
        if modality.categorical:
            continue
        if name not in _STATISTICS:
            raise CheckpointError(f"{path}: holds no statistics of {name!r}")
        key, channels = _STATISTICS[name]
        scale = _DN if modality.levels else 1.0
        levels = {level: f"{key}_{level}" for level in modality.levels} or {"": key}
        for level, entry in levels.items():
            statistics.moments[name][level] = _moments(path, stats, entry, channels, scale)
    return statistics


def _moments(
    path: Path, stats: Mapping[str, Any], entry: str, channels: tuple[int, ...], scale: float
) -> Moments:
    try:
        mean, std = (
            [float(stats[entry][what][c]) * scale for c in channels] for what in ("mean", "std")
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: no mean and std of {entry!r} for {channels}") from error
    return moments_from(mean, std)


def _blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    pattern = re.compile(rf"^{re.escape(prefix)}\.(\d+)\.")
    return 1 + max((int(m[1]) for k in weights if (m := pattern.match(k))), default=-1)


def _is_position(key: str) -> bool:
    return key.endswith(".pos_emb")


def _part(key: str, index: int) -> str:
    return key.split(".")[index]
