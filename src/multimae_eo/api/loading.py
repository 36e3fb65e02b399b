"""Models and sources from what a caller gives: an object, a path, or a name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multimae_eo.network.multimae import MultiMAE
    from multimae_eo.network.predictor import Predictor
    from multimae_eo.sources.base import Source
    from multimae_eo.train.test_time import AdaptOptions


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A pre-trained model, its name and its hash (empty for a model that was given as object)."""

    model: MultiMAE
    name: str = ""
    digest: str = ""


def adaptation(steps: int, lr: float, seed: int) -> AdaptOptions | None:
    """Test-time training of so many steps; None for 0. Raises ConfigError as ``AdaptOptions``."""
    if not steps:
        return None
    from multimae_eo.train.test_time import AdaptOptions

    return AdaptOptions(steps=steps, lr=lr, seed=seed)


def load_source(data: Source | str | Path) -> tuple[Source, str]:
    """The source, and how it was named: a dataset, scene or STAC file, a chip store,
    ``mmearth:DIR``, ``geobench:ROOT/NAME``, ``geobench2:ROOT/NAME``, or several of them separated
    by commas.

    Raises ConfigError where there is no such source.
    """
    from multimae_eo.loading.open_source import open_source

    if isinstance(data, (str, Path)):
        return open_source(data), str(data)
    return data, ""


def load_encoder(model: MultiMAE | Predictor | str | Path) -> LoadedModel:
    """A pre-trained model, or the encoder of a fine-tuned one.

    Raises ConfigError or CheckpointError for a folder that is no model.
    """
    from multimae_eo.model_folder.folder import load_either, model_hash
    from multimae_eo.network.predictor import Predictor

    name = digest = ""
    if isinstance(model, (str, Path)):
        name, model = str(model), load_either(model)
        digest = model_hash(name)
    encoder = model.encoder if isinstance(model, Predictor) else model
    return LoadedModel(model=encoder, name=name, digest=digest)


def load_pretrained(model: MultiMAE | str | Path) -> LoadedModel:
    """A pre-trained model.

    Raises ConfigError or CheckpointError for a folder that is no model.
    """
    from multimae_eo.model_folder.folder import model_hash
    from multimae_eo.network.multimae import MultiMAE

    if not isinstance(model, (str, Path)):
        return LoadedModel(model=model)
    return LoadedModel(
        model=MultiMAE.from_pretrained(model), name=str(model), digest=model_hash(model)
    )


def load_predictor(model: Predictor | str | Path) -> tuple[Predictor, str]:
    """A fine-tuned model and its hash (empty for a model that was given as object).

    Raises ConfigError or CheckpointError for a folder that is no fine-tuned model.
    """
    from multimae_eo.model_folder.folder import model_hash
    from multimae_eo.network.predictor import Predictor

    if not isinstance(model, (str, Path)):
        return model, ""
    return Predictor.from_pretrained(model), model_hash(model)
