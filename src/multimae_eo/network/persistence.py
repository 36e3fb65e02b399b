"""Where models are saved and loaded, as the network sees it: an interface, and who implements it.

The network knows no files. ``multimae_eo`` names the implementation when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from multimae_eo.modality import ModalitySet
from multimae_eo.network.card_facts import CardFacts


class ModelFolders(Protocol):
    """Reads and writes models as folders, on disk or on a hub."""

    def save(
        self, model: object, folder: Path, *, card: str = "", facts: CardFacts | None = None
    ) -> None:
        """Write a model folder; ``card``: Markdown appended to its README."""

    def load(self, location: str | Path, kind: type, modalities: ModalitySet | None) -> object:
        """A model of the class ``kind``, from a folder or ``owner/model`` of the hub."""

    def upload(
        self, model: object, name: str, *, private: bool, card: str, facts: CardFacts | None
    ) -> str:
        """Upload a model folder as ``owner/model``; returns its address."""


_implementation: Callable[[], ModelFolders] | None = None


def implement(by: Callable[[], ModelFolders]) -> None:
    """Make what ``by`` returns the implementation; it is called when a model is saved or loaded."""
    global _implementation  # noqa: PLW0603 - set once, when the package is imported
    _implementation = by


def model_folders() -> ModelFolders:
    """The implementation of this process."""
    assert _implementation is not None, "multimae_eo names it when it is imported"
    return _implementation()
