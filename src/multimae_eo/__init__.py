"""multimae-eo: one multi-modal, multi-task masked autoencoder for all Earth-observation sensors.

Names are imported when first used, so that ``import multimae_eo`` loads neither torch nor a
raster library.
"""

from __future__ import annotations

# isort: off
from multimae_eo import interrupts  # noqa: F401 - before the imports that take time

# isort: on
import importlib
from typing import TYPE_CHECKING, Any

from multimae_eo.network import persistence
from multimae_eo.version import __version__

persistence.implement(by=lambda: importlib.import_module("multimae_eo.model_folder.folder"))

_MODULE_OF = {
    "Band": "modality",
    "Batch": "sample",
    "Modality": "modality",
    "ModalitySet": "modality",
    "MultiMAE": "network.multimae",
    "MultiMAEError": "errors",
    "Predictor": "network.predictor",
    "Sample": "sample",
    "Statistics": "statistics",
    "Task": "modality",
    "assess": "api.accuracy",
    "backbone": "inference.backbone",
    "benchmark": "api.scores",
    "compare": "api.maps",
    "convert_checkpoint": "api.models",
    "describe": "api.models",
    "embed": "api.maps",
    "evaluate": "api.scores",
    "evaluate_early": "api.scores",
    "evaluate_subsets": "api.scores",
    "export_model": "api.models",
    "fetch": "api.public_data",
    "finetune": "api.runs",
    "init": "api.stores",
    "inspect": "api.stores",
    "make_synthetic_data": "quickstart",
    "map_scene": "api.map_making",
    "open_source": "loading.open_source",
    "predict": "api.maps",
    "prepare": "api.stores",
    "prepare_scenes": "api.stores",
    "pretrain": "api.runs",
    "probe": "api.scores",
    "public_data": "api.public_data",
    "reconstruct": "api.maps",
    "search": "api.maps",
    "study": "api.scores",
}

__all__ = [  # noqa: RUF022 - the order of the dictionary above
    "Band", "Batch", "Modality", "ModalitySet", "MultiMAE", "MultiMAEError", "Predictor",
    "Sample", "Statistics", "Task", "assess", "backbone", "benchmark", "compare",
    "convert_checkpoint", "describe", "embed", "evaluate", "evaluate_early", "evaluate_subsets",
    "export_model", "fetch", "finetune", "init", "inspect", "make_synthetic_data", "map_scene",
    "open_source", "predict", "prepare", "prepare_scenes", "pretrain", "probe",
    "public_data", "reconstruct", "search", "study",
    "__version__",
]  # fmt: skip

if TYPE_CHECKING:
    from multimae_eo.api.accuracy import assess
    from multimae_eo.api.map_making import map_scene
    from multimae_eo.api.maps import compare, embed, predict, reconstruct, search
    from multimae_eo.api.models import convert_checkpoint, describe, export_model
    from multimae_eo.api.public_data import fetch, public_data
    from multimae_eo.api.runs import finetune, pretrain
    from multimae_eo.api.scores import (
        benchmark,
        evaluate,
        evaluate_early,
        evaluate_subsets,
        probe,
        study,
    )
    from multimae_eo.api.stores import init, inspect, prepare, prepare_scenes
    from multimae_eo.errors import MultiMAEError
    from multimae_eo.inference.backbone import backbone
    from multimae_eo.loading.open_source import open_source
    from multimae_eo.modality import Band, Modality, ModalitySet, Task
    from multimae_eo.network.multimae import MultiMAE
    from multimae_eo.network.predictor import Predictor
    from multimae_eo.quickstart import make_synthetic_data
    from multimae_eo.sample import Batch, Sample
    from multimae_eo.statistics import Statistics


_FORMER_NAMES = {"make_world": "make_synthetic_data"}


def __getattr__(name: str) -> Any:
    name = _FORMER_NAMES.get(name, name)
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'multimae_eo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"multimae_eo.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
