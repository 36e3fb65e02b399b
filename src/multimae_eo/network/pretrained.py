"""What a model and a fine-tuned model share: their folder, on the disk or on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from torch import nn

if TYPE_CHECKING:
    from multimae_eo.modality import ModalitySet


class Pretrained(nn.Module):
    """A module with a model folder; see ``model.folder``."""

    def save_pretrained(self, folder: str | Path, *, card: str = "") -> None:
        """Write a self-describing model folder. ``card``: Markdown appended to its README."""
        from multimae_eo.model_folder.folder import save

        save(self, Path(folder), card=card)

    def push_to_hub(self, name: str, *, private: bool = False, card: str = "") -> str:
        """Upload the model folder as ``owner/model`` (extra ``hub``); returns its address."""
        from multimae_eo.model_folder.hub import push

        return push(lambda folder: self.save_pretrained(folder, card=card), name, private=private)

    @classmethod
    def from_pretrained(cls, place: str | Path, *, modalities: ModalitySet | None = None) -> Self:
        """Load a model folder, or ``owner/model`` of the hub (extra ``hub``).

        ``modalities``: what the caller's data are; a model that takes them for something else is
        refused. Raises CheckpointError where the folder is incomplete or damaged, or holds another
        kind of model, and ContractError where the contract does not fit.
        """
        from multimae_eo.model_folder.folder import load

        return load(place, cls, modalities)
