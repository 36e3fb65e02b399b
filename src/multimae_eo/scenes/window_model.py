"""The protocol of models that the scene engine applies to windows, and its shared helpers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Batch

if TYPE_CHECKING:
    import torch

    from multimae_eo.network.multimae import MultiMAE

T = TypeVar("T")
Network = TypeVar("Network")


@dataclass(frozen=True, kw_only=True)
class WindowPredictions:
    """What a model predicts for a batch of windows.

    ``rows``: the windows of the batch in which the model observes anything. ``fields``: arrays in
    the host's memory with those rows first, mostly float32 (len(rows), C, h, w).
    """

    rows: Sequence[int] = ()
    fields: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)


class WindowModel(Protocol):
    """A model that is applied to a scene window by window; it travels to processes by pickling."""

    @property
    def network(self) -> Any:
        """The network that it applies."""

    @property
    def inputs(self) -> ModalitySet:
        """The modalities to read, as the scene has them."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Side of a chip in pixels for each of the model's modalities, as in training."""

    def __call__(self, batch: Batch) -> WindowPredictions:
        """Predict a batch of windows that holds only ``inputs``."""

    def to(self, device: str) -> WindowModel:
        """The same on another device."""

    def with_network(self, network: Any) -> WindowModel:
        """The same with another network, or with None, to be given one elsewhere."""


@dataclass(frozen=True, kw_only=True)
class NetworkWindows(Generic[Network]):
    """A ``WindowModel`` that applies a network to the windows in which it observes anything."""

    network: Network
    inputs: ModalitySet

    @property
    def encoder(self) -> MultiMAE:
        """The encoder: the network, or a part of it."""
        raise NotImplementedError

    def fields(self, batch: Batch) -> dict[str, npt.NDArray[np.generic]]:
        """Predictions for windows that are all observed and on the network's device."""
        raise NotImplementedError

    @property
    def sizes(self) -> Mapping[str, int]:
        """See ``WindowModel``."""
        return {n: self.encoder.config.sizes[n] for n in self.encoder.modalities}

    def __call__(self, batch: Batch) -> WindowPredictions:
        """See ``WindowModel``."""
        batch = batch.to(device_of(self.network))
        rows = _observed_rows(self.encoder, batch, list(self.inputs))
        if not rows:
            return WindowPredictions()
        return WindowPredictions(rows=rows, fields=self.fields(_take_rows(batch, rows)))

    def to(self, device: str) -> Self:
        """See ``WindowModel``."""
        return replace(self, network=moved(self.network, device))

    def with_network(self, network: Any) -> Self:
        """See ``WindowModel``."""
        return replace(self, network=network)


def _observed_rows(encoder: MultiMAE, batch: Batch, inputs: Sequence[str]) -> list[int]:
    """Rows of a batch in which a model has a token to see.

    A thinned class map may be valid only between the pixels that are taken.
    """
    if batch.complete:
        return list(range(len(batch)))
    return [int(row) for row in encoder.observed_rows(batch, inputs)]


def _take_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """The rows of a batch; itself where they are all."""
    import torch

    if len(rows) == len(batch):
        return batch
    return batch.take(torch.tensor(rows, device=batch.present.device))


def host_array(values: torch.Tensor) -> npt.NDArray[np.float32]:
    """A tensor as float32 in the host's memory."""
    return values.detach().float().cpu().numpy().astype(np.float32, copy=False)


def device_of(network: object) -> torch.device:
    """Where a network's weights are; the CPU for one without weights."""
    import torch

    if isinstance(network, torch.nn.Module):
        parameter = next(network.parameters(), None)
        if parameter is not None:
            return parameter.device
    return torch.device("cpu")


def moved(network: T, device: str) -> T:
    """A network on a device; what has no weights stays."""
    import torch

    return network.to(device) if isinstance(network, torch.nn.Module) else network
