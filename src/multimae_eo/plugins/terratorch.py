"""TerraTorch: importing this module registers the backbone ``multimae_eo``.

    custom_modules_path: a folder whose __init__.py has `import multimae_eo.plugins.terratorch`
    model_args: {backbone: multimae_eo, backbone_model: runs/first/model, backbone_bands: [B4, …]}

Data reach the backbone as TerraTorch's data modules give them: set `means` to 0 and `stds` to 1
there, because the model normalises with its own statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from terratorch.registry import (  # type: ignore[import-not-found, unused-ignore]
    TERRATORCH_BACKBONE_REGISTRY,
)
from torch import Tensor, nn

from multimae_eo.errors import ConfigError, ContractError
from multimae_eo.inference.backbone import Backbone, backbone
from multimae_eo.model_folder.folder import load_either
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.plugins.channels import Channel, ChannelSplit, assign_channels


class TerraTorchBackbone(nn.Module):
    """Maps of the chosen blocks from one tensor, a dictionary, or keywords by input.

    ``out_channels``: channels of each map, which TerraTorch's decoders read.
    """

    def __init__(self, body: Backbone, split: ChannelSplit | None, scale: float) -> None:
        super().__init__()
        self.body, self.split, self.scale = body, split, scale
        self.out_channels = body.out_channels

    def forward(
        self, x: Tensor | Mapping[str, Tensor] | None = None, **images: Tensor
    ) -> list[Tensor]:
        """Maps (B, D, rows, columns). x: (B, C, H, W), or such by input; or keywords by input."""
        if isinstance(x, Tensor):
            if self.split is not None:
                return self._maps(self.split.split(x, self.scale))
            if len(self.body.inputs) > 1:
                raise ContractError(
                    f"one tensor for the inputs {', '.join(self.body.inputs)}: name its channels "
                    "in order with `bands`"
                )
            return self._maps({next(iter(self.body.inputs)): x * self.scale})
        named = dict(x or {}) | images
        given = {n: image * self.scale for n, image in named.items() if n in self.body.inputs}
        return self._maps(given or named)

    def _maps(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        maps: list[Tensor] = self.body(images)
        return maps


@TERRATORCH_BACKBONE_REGISTRY.register  # type: ignore[untyped-decorator, unused-ignore]
def multimae_eo(
    model: str,
    inputs: Sequence[str] | None = None,
    bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    levels: Mapping[str, str] | None = None,
    out_indices: Sequence[int] | None = None,
    pyramid: bool = False,
    scale: float = 1.0,
) -> TerraTorchBackbone:
    """The backbone of a model folder or ``owner/model``.

    Args:
        model: what ``from_pretrained`` takes.
        inputs: modalities (default: all, or those that have any of ``bands``).
        bands: names of a tensor's channels in order, which are split among the inputs; or by input
            the names of its tensor's channels. Bands that the model does not know are refused.
        levels: product level by input.
        out_indices: blocks, from 0 or -1 (default: all, as TerraTorch's ViTs give them).
        pyramid: four maps at 4, 2, 1 and ½ times the grid of tokens.
        scale: from the data's numbers to physical units (reflectance of digital numbers: 1e-4).
    """
    loaded = load_either(model)
    network = loaded if isinstance(loaded, MultiMAE) else loaded.encoder
    split = None
    named: Mapping[str, Sequence[str]] | None
    if bands is None or isinstance(bands, Mapping):
        named = bands
    else:
        split = assign_channels(network.modalities, [Channel(names=(b,)) for b in bands], inputs)
        if split.unused:
            raise ConfigError(
                f"bands {', '.join(split.unused)}: none of the model's; leave them out of `bands` "
                "and of the data module's output_bands"
            )
        named, inputs = split.bands, tuple(split.bands)
    if out_indices is None and not pyramid:
        out_indices = range(network.config.encoder.depth)
    body = backbone(
        network, inputs, out_indices=out_indices, pyramid=pyramid, bands=named, levels=levels
    )
    return TerraTorchBackbone(body, split, scale)
