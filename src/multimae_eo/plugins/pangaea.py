"""PANGAEA: ``MultiMAEEncoder``, given to it as the encoder's ``_target_``.

Its data sets give a dictionary of (B, C, T, H, W) by kind (``optical``, ``sar``, …). Leave its
normalisation out of the preprocessing: the model normalises with its own statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import Logger

import torch
from pangaea.encoders.base import Encoder  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from multimae_eo.errors import ContractError
from multimae_eo.inference.backbone import backbone
from multimae_eo.model_folder.folder import load_either
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.plugins.channels import Channel, assign_channels


class MultiMAEEncoder(Encoder):  # type: ignore[misc, unused-ignore]
    """Feature maps (B, D, rows, columns) of the chosen blocks, of one date.

    Args:
        encoder_weights: what ``from_pretrained`` takes.
        input_bands: names of the channels by kind of data, as in PANGAEA's data set files.
        input_size: side of a chip in pixels.
        output_layers: blocks, from 0 or -1.
        levels: product level by input.
        scale: by kind, from the data's numbers to physical units (default: 1).
    """

    def __init__(
        self,
        encoder_weights: str,
        input_bands: Mapping[str, Sequence[str]],
        input_size: int,
        output_layers: Sequence[int] = (-1,),
        levels: Mapping[str, str] | None = None,
        scale: Mapping[str, float] | None = None,
    ) -> None:
        loaded = load_either(encoder_weights)
        network = loaded if isinstance(loaded, MultiMAE) else loaded.encoder
        width = network.config.encoder.width
        super().__init__(
            model_name="multimae_eo",
            encoder_weights=encoder_weights,
            input_bands=input_bands,
            input_size=input_size,
            embed_dim=width,
            output_layers=list(output_layers),
            output_dim=[width] * len(output_layers),
            multi_temporal=False,
            multi_temporal_output=False,
            pyramid_output=False,
            download_url=None,
        )
        self.kinds, self.scale = tuple(input_bands), dict(scale or {})
        names = [b for bands in input_bands.values() for b in bands]
        self.split = assign_channels(network.modalities, [Channel(names=(n,)) for n in names])
        self.body = backbone(
            network,
            tuple(self.split.bands),
            out_indices=output_layers,
            bands=self.split.bands,
            levels=levels,
        )

    def load_encoder_weights(self, logger: Logger) -> None:
        """Log bands that the model does not know; its weights are loaded already."""
        if self.split.unused:
            logger.warning("bands without use: %s", ", ".join(self.split.unused))

    def forward(self, image: Mapping[str, Tensor]) -> list[Tensor]:
        """Maps of (B, C, T, H, W) by kind, T being 1."""
        planes = []
        for kind in self.kinds:
            stack = image[kind]
            if stack.ndim == 5:
                if stack.shape[2] != 1:
                    raise ContractError(f"{kind}: {stack.shape[2]} dates; the model takes one")
                stack = stack[:, :, 0]
            planes.append(stack.to(torch.float32) * self.scale.get(kind, 1.0))
        maps: list[Tensor] = self.body(self.split.split(torch.cat(planes, dim=1)))
        return maps
