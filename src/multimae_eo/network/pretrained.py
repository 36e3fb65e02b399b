"""What a model and a fine-tuned model share: they are saved to and loaded from a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Self, cast

from torch import nn

from multimae_eo.modality import ModalitySet
from multimae_eo.network.card_facts import CardFacts
from multimae_eo.network.persistence import model_folders


class Pretrained(nn.Module):
    """A module that has a model folder."""

    def save_pretrained(
        self, folder: str | Path, *, card: str = "", facts: CardFacts | None = None
    ) -> None:
        """Write a self-describing model folder. ``card``: Markdown appended to its README.

        ``facts``: licence, training data and scores, for the card's metadata and the STAC item.
        """
        model_folders().save(self, Path(folder), card=card, facts=facts)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool = False,
        card: str = "",
        facts: CardFacts | None = None,
    ) -> str:
        """Upload the model folder as ``owner/model`` (extra ``hub``); returns its address.

        ``card``, ``facts``: as of ``save_pretrained``.
        """
        return model_folders().upload(self, name, private=private, card=card, facts=facts)

    @classmethod
    def from_pretrained(
        cls, location: str | Path, *, modalities: ModalitySet | None = None
    ) -> Self:
        """Load a model folder, or ``owner/model`` of the hub (extra ``hub``).

        ``modalities``: what the caller's data are; a model that takes them for something else is
        refused. Raises CheckpointError where the folder is incomplete or damaged, or holds another
        kind of model, and ContractError where the contract does not fit.
        """
        return cast(Self, model_folders().load(location, cls, modalities))
