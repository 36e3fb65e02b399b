"""A model's parts of fixed shapes, compiled."""

from __future__ import annotations

import torch

from multimae_eo.network.decoder_group import decode_together
from multimae_eo.network.multimae import MultiMAE


def compile_parts(model: MultiMAE) -> None:
    """Compile the encoder's blocks and the decoders in place; the first call takes long.

    The same function up to rounding, and the same names of weights. What is before the encoder has
    as many rows as tokens are visible of each modality, another number in every step.
    """
    for block in model.encoder.blocks:
        block.compile()
    for decoder in model.decoders.values():
        decoder.compile()
    model.group_decoder = torch.compile(decode_together)
