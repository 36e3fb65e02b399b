"""Model folders on the Hugging Face hub (extra ``hub``): the same files, as owner/model."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from multimae_eo.errors import CheckpointError, ConfigError, OutputError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_FILES = ["config.json", "modalities.json", "model.safetensors", "README.md", "stac.json"]


def located(location: str | Path) -> Path:
    """The folder of a model: a path, or ``owner/model`` or ``owner/model@revision`` of the hub.

    What exists on the disk is a path. Raises CheckpointError where there is neither, ConfigError
    where the hub is needed and its extra is not installed.
    """
    path = Path(location)
    text = str(location)
    if path.exists() or not _HUB_ID.fullmatch(text):
        return path
    hub = _hub(f"{text}: no such folder; to take it from the hub")
    name, _, revision = text.partition("@")
    try:
        folder: str = hub.snapshot_download(name, revision=revision or None, allow_patterns=_FILES)
    except Exception as error:
        raise CheckpointError(
            f"{text}: neither a folder here nor a model on the hub: {_one_line(error)}"
        ) from error
    return Path(folder)


def hub_address(name: str, file: str) -> str:
    """The address of a file of the hub's model ``owner/model@revision``; "" where it is none."""
    if not _HUB_ID.fullmatch(name):
        return ""
    owner_model, _, revision = name.partition("@")
    hub = _hub(f"{name}: the address of {file} on the hub")
    return str(hub.hf_hub_url(owner_model, file, revision=revision or None))


def push(save: Callable[[Path], None], name: str, *, private: bool) -> str:
    """Upload what ``save`` writes as the model ``owner/model``; returns its address.

    Raises ConfigError for a name that cannot be, OutputError where the hub refuses.
    """
    if not _HUB_ID.fullmatch(name) or "@" in name:
        raise ConfigError(f"hub name {name!r}: expected owner/model")
    hub = _hub(f"{name}: to push to the hub")
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "model")
        try:
            api = hub.HfApi()
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=Path(folder) / "model")
        except Exception as error:
            raise OutputError(f"{name}: the hub refused: {_one_line(error)}") from error
    return str(address)


def _hub(why: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(f"{why}: pip install 'multimae-eo[hub]'") from error
    return huggingface_hub


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
