"""multimae-eo: one multi-modal, multi-task masked autoencoder for all Earth-observation sensors.

Names are imported when first used, so that ``import multimae_eo`` loads neither torch nor a
raster library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from multimae_eo.network import persistence
from multimae_eo.version import __version__

persistence.implement(by=lambda: importlib.import_module("multimae_eo.model_folder.folder"))  # type: ignore[arg-type, return-value]

_WHERE = {
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
    "backbone": "inference.backbone",
    "open_source": "loading.open_source",
}

__all__ = [  # noqa: RUF022 - the order of the dictionary above
    "Band", "Batch", "Modality", "ModalitySet", "MultiMAE", "MultiMAEError", "Predictor",
    "Sample", "Statistics", "Task", "backbone", "open_source", "__version__",
]  # fmt: skip

if TYPE_CHECKING:
    from multimae_eo.errors import MultiMAEError
    from multimae_eo.inference.backbone import backbone
    from multimae_eo.loading.open_source import open_source
    from multimae_eo.modality import Band, Modality, ModalitySet, Task
    from multimae_eo.network.multimae import MultiMAE
    from multimae_eo.network.predictor import Predictor
    from multimae_eo.sample import Batch, Sample
    from multimae_eo.statistics import Statistics


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'multimae_eo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"multimae_eo.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
