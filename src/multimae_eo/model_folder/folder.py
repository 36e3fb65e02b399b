"""The model folder: ``config.json``, ``modalities.json``, ``model.safetensors``, ``README.md``,
``stac.json``.

With a head (``Predictor``), ``config.json`` also describes the labels. ``modalities.json`` is
the sensor contract: bands, units, classes, product levels, and the
statistics that inputs are normalised with. Nothing in the folder is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from multimae_eo.errors import CheckpointError, OutputError
from multimae_eo.files import exchange_folder, read_json, remove, single_writer, temporary_path
from multimae_eo.modality import ModalitySet, Task
from multimae_eo.model_folder.checks import require_finite, require_sizes
from multimae_eo.model_folder.hub import located, push
from multimae_eo.model_folder.migrations import FORMAT_VERSION, Record, migrated
from multimae_eo.model_folder.mlm_item import ITEM_FILE, folder_item
from multimae_eo.model_folder.model_card import model_card
from multimae_eo.network.card_facts import CardFacts
from multimae_eo.network.config import HeadConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.normalize import require_contract
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import Target
from multimae_eo.statistics import Statistics
from multimae_eo.version import __version__

Kind = TypeVar("Kind", bound=nn.Module)
FILES = ("config.json", "modalities.json", "model.safetensors")


@single_writer(folder=False, argument="folder")
def save(model: nn.Module, folder: Path, *, card: str = "", facts: CardFacts | None = None) -> None:
    """Write a MultiMAE, or a Predictor, under a temporary name, then rename it.

    An existing model folder at that path is replaced; anything else there is refused. ``card``:
    text appended to the generated README. ``facts``: licence, data and scores of the model, for
    the card's metadata and the STAC item. Raises CheckpointError for weights that are NaN or
    infinite, OutputError when it cannot be written.
    """
    with _damage(folder):
        require_finite(model)
    if isinstance(model, Predictor):
        record = {
            **config_record(model.encoder),
            "head": model.config.to_dict(),
            "target": model.target.to_dict(),
        }
    else:
        assert isinstance(model, MultiMAE)
        record = config_record(model)
    _write(folder, model, record, card, facts or CardFacts())


def _write(
    folder: Path,
    module: MultiMAE | Predictor,
    config: Mapping[str, object],
    text: str,
    facts: CardFacts,
) -> None:
    model = module.encoder if isinstance(module, Predictor) else module
    is_model = (folder / "config.json").is_file()
    if folder.exists() and not is_model and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError(f"{folder}: exists and is no model folder; choose another path")
    temporary = temporary_path(folder)
    try:
        temporary.mkdir(parents=True)
        weights = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        _write_json(temporary / "config.json", config)
        _write_json(temporary / "modalities.json", _contract_record(model))
        digest = model_hash(temporary)
        readme = model_card(module, digest, text, facts)
        (temporary / "README.md").write_text(readme, encoding="utf-8")
        item = folder_item(module, digest, temporary / "model.safetensors", facts.license)
        _write_json(temporary / ITEM_FILE, item)
        exchange_folder(temporary, folder)
    except (OSError, SafetensorError) as error:
        remove(temporary)
        raise OutputError(f"{folder}: cannot write the model: {error}") from error


def load_model(folder: Path) -> MultiMAE:
    """Load a model folder on the CPU, in evaluation mode.

    Raises CheckpointError naming the file that is missing, damaged or does not fit.
    """
    config, contract = _records(folder)
    if "head" in config:
        raise CheckpointError(
            f"{folder}: a fine-tuned model, without decoders; give it to `evaluate`, or load it "
            "with Predictor.from_pretrained"
        )
    with _damage(folder):
        require_sizes(config, folder / "model.safetensors")
        model = _model(config, contract)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        require_finite(model)
    return model.eval()


def load_predictor(folder: Path) -> Predictor:
    """As ``load_model``, of an encoder with its head."""
    config, contract = _records(folder)
    if "head" not in config:
        raise CheckpointError(
            f"{folder}: a pre-trained model, without a head; fine-tune it with "
            "`multimae-eo finetune`"
        )
    with _damage(folder):
        require_sizes(config, folder / "model.safetensors")
        target = Target.from_dict(config["target"])
        head = HeadConfig(**config["head"])
        predictor = Predictor(_model(config, contract), target, head, decoders=True)
        predictor.load_state_dict(load_file(folder / "model.safetensors"))
        require_finite(predictor)
    return predictor.eval()


def load_either(location: str | Path) -> MultiMAE | Predictor:
    """Load a model folder, whatever it holds. ``location``: as of ``located``."""
    folder = located(location)
    config, _ = _records(folder)
    return load_predictor(folder) if "head" in config else load_model(folder)


def load(location: str | Path, kind: type[Kind], modalities: ModalitySet | None = None) -> Kind:
    """Load a model of one kind and compare its contract with ``modalities``."""
    folder = located(location)
    model = load_predictor(folder) if issubclass(kind, Predictor) else load_model(folder)
    encoder = model.encoder if isinstance(model, Predictor) else model
    require_contract(encoder.modalities, modalities)
    assert isinstance(model, kind)
    return model


def upload(
    model: nn.Module,
    name: str,
    *,
    private: bool = False,
    card: str = "",
    facts: CardFacts | None = None,
) -> str:
    """Upload a model's folder to the hub as ``owner/model``; returns its address."""
    return push(lambda folder: save(model, folder, card=card, facts=facts), name, private=private)


def is_predictor(folder: Path) -> bool:
    """Whether a model folder holds a head."""
    return "head" in _read_json(folder / "config.json")


def _records(folder: Path) -> tuple[Record, Record]:
    """``config.json`` and ``modalities.json``, of a format that this version reads."""
    for name in FILES:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: no model folder, {name} is missing")
    config = _read_json(folder / "config.json")
    contract = _read_json(folder / "modalities.json")
    return migrated(config, contract, where=str(folder))


def _model(config: Record, contract: Record) -> MultiMAE:
    modalities = ModalitySet.from_list(contract["modalities"])
    if contract.get("fingerprint") != modalities.fingerprint:
        raise CheckpointError(
            "modalities.json was changed: its fingerprint differs from the one written with it; "
            "restore the file, or adapt the model with `multimae-eo finetune`"
        )
    record = contract["statistics"]
    statistics = None if record is None else Statistics.from_dict(modalities, record)
    tasks = [Task(**t) for t in config["tasks"]]
    return MultiMAE(modalities, tasks, ModelConfig.from_dict(config["model"]), statistics)


@contextmanager
def _damage(folder: Path) -> Iterator[None]:
    """Whatever a file that someone edited may lead to, as a CheckpointError."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"{folder}: damaged model folder: {reason}") from error


def model_hash(folder: str | Path) -> str:
    """16 hex digits that change with weights, contract or configuration."""
    digest = hashlib.sha256()
    folder = located(folder)
    for name in FILES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def config_record(model: MultiMAE) -> dict[str, object]:
    """The record of a model in ``config.json``."""
    return {
        "format_version": FORMAT_VERSION,
        "written_by": f"multimae-eo {__version__}",
        "model": model.config.to_dict(),
        "tasks": [
            {
                "name": t.name,
                "modality": t.modality,
                "loss": t.loss,
                "weight": t.weight,
                "patch_normalise": t.patch_normalise,
                # Left out by default: earlier versions read the folders of models without it.
                **({"decoder": t.decoder} if t.decoder else {}),
            }
            for t in model.tasks
        ],
    }


def _contract_record(model: MultiMAE) -> dict[str, object]:
    statistics = model.statistics
    return {
        "modalities": model.modalities.to_list(),
        "fingerprint": model.modalities.fingerprint,
        "statistics": None if statistics is None else statistics.to_dict(),
    }


def _write_json(path: Path, record: Mapping[str, object]) -> None:
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Record:
    record = read_json(path, CheckpointError)
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return record
