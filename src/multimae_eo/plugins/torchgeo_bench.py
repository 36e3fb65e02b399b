"""torchgeo-bench: ``MultiMAEBench``, the ``_target_`` of a model's file; see docs/ecosystem.md."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torchgeo_bench.models.interface import (  # type: ignore[import-not-found, unused-ignore]
    BenchModel,
)

from multimae_eo.errors import ConfigError
from multimae_eo.inference.backbone import backbone
from multimae_eo.model_folder.folder import load_either
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.plugins.channels import Channel, assign_channels


class MultiMAEBench(BenchModel):  # type: ignore[misc, unused-ignore]
    """Embeddings (B, D): the mean of a frozen encoder's tokens.

    Args:
        bands: torchgeo-bench's ``BandSpec``, one per channel.
        model: what ``from_pretrained`` takes.
        inputs: modalities (default: all that have any of the bands).
        levels: product level by input.
        scale: from the data's numbers to physical units (reflectance of digital numbers: 1e-4).
        normalization: must be ``identity``; the model normalises with its own statistics.
    """

    def __init__(
        self,
        bands: Sequence[Any],
        *,
        model: str,
        inputs: Sequence[str] | None = None,
        levels: Mapping[str, str] | None = None,
        scale: float = 1.0,
        normalization: str = "identity",
        name: str = "",
    ) -> None:
        if str(getattr(normalization, "value", normalization)) != "identity":
            raise ConfigError(
                f"normalization {normalization!r} would standardise twice; run with "
                "dataset.normalization=identity"
            )
        super().__init__(bands=list(bands), normalization="identity")
        loaded = load_either(model)
        network = loaded if isinstance(loaded, MultiMAE) else loaded.encoder
        channels = [
            Channel(names=(b.name, b.source_name), wavelength_um=b.wavelength_um) for b in bands
        ]
        self.split = assign_channels(network.modalities, channels, inputs)
        if self.split.unused:
            warnings.warn(
                f"bands that the model does not know are left out: {', '.join(self.split.unused)}",
                stacklevel=2,
            )
        self.scale, self.name = scale, name
        self.body = backbone(
            network, tuple(self.split.bands), bands=self.split.bands, levels=levels
        )

    def _forward_patch_features(self, images: Tensor) -> Tensor:
        return self.body.reader.encode(self.split.split(images, self.scale)).pooled
