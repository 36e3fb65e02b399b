"""The encoder for those who bring their own trainer: tensors in, feature maps out.

Inputs are plain tensors (B, C, H, W) in each modality's declared unit, NaN where nothing was
observed; the model's own statistics normalise them. Every observed token is visible. There is no
data-dependent shape, so the same path is what ``export`` draws as a graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimae_eo.errors import ConfigError, ContractError, did_you_mean
from multimae_eo.model_folder.folder import load_either
from multimae_eo.network.embedding import Embedding
from multimae_eo.network.features import Features
from multimae_eo.network.heads import four_blocks
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.tokens import TokenLayout, VisibleSlots
from multimae_eo.sample import Batch

_SCALES = (4.0, 2.0, 1.0, 0.5)


def backbone(
    model: MultiMAE | Predictor | str | Path,
    inputs: Sequence[str] | None = None,
    *,
    out_indices: Sequence[int] | None = None,
    pyramid: bool = False,
    bands: Mapping[str, Sequence[str]] | None = None,
    levels: Mapping[str, str] | None = None,
) -> Backbone:
    """A model's encoder as a plain ``nn.Module``: a dictionary of tensors in, feature maps out.

    Args:
        model: a model, or what ``from_pretrained`` takes. A copy of its encoder is made.
        inputs: modalities that may be given (default: all of the model's).
        out_indices: blocks whose maps are returned, from 0, or from -1 backwards (default: the
            last; four evenly spaced ones for a pyramid).
        pyramid: give the four maps at 4, 2, 1 and ½ times the grid of tokens.
        bands: by input, the bands that its tensor has, in order (default: the model's). Bands of
            the model that are not named count as not observed.
        levels: by input, its product level, where the model knows several.

    Raises ConfigError for unknown names, bands, levels or blocks.
    """
    if isinstance(model, str | Path):
        model = load_either(model)
    network = model if isinstance(model, MultiMAE) else model.encoder
    reader = TensorEncoder(
        network.without_decoders(),
        network.modalities.names if inputs is None else inputs,
        bands,
        levels,
    )
    return Backbone(reader, out_indices, pyramid=pyramid)


class TensorEncoder(nn.Module):
    """Encodes tensors in physical units with the encoder of a MultiMAE.

    Arguments as of ``backbone``.
    """

    def __init__(
        self,
        model: MultiMAE,
        inputs: Sequence[str],
        bands: Mapping[str, Sequence[str]] | None = None,
        levels: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        _require_inputs(inputs, model)
        _require_inputs(bands or {}, model)
        _require_inputs(levels or {}, model)
        if not inputs:
            raise ConfigError(f"no inputs; valid: {', '.join(model.modalities)}")
        if model.statistics is None:
            raise ContractError("this model carries no statistics to normalise inputs with")
        self.model = model
        self.inputs = tuple(n for n in model.modalities if n in inputs)
        self.bands = {n: _bands(model, n, (bands or {}).get(n)) for n in self.inputs}
        self.levels = {n: _level(model, n, (levels or {}).get(n)) for n in self.inputs}

    def encode(
        self, images: Mapping[str, Tensor], stages: Sequence[int] = (), *, full_layout: bool = False
    ) -> Features:
        """Encode ``images``; any subset of the inputs, of (B, C, H, W) each.

        ``stages``: blocks, from 1, whose tokens are kept. ``full_layout``: lay the tokens out among
        those of all the model's modalities, not only of those given. Raises ContractError where
        tensors do not fit the contract or each other.
        """
        sizes = self.sizes(images, self.model.config.inputs if full_layout else images)
        grids = {n: self.model.config.inputs[n].grid(*size) for n, size in sizes.items()}
        layout = TokenLayout(grids)
        vectors, indices, seen = [], [], []
        cut: dict[str, Tensor] = {}
        for name in self.inputs:
            if name not in images:
                continue
            patches, observed = self.model.normalizer.cut(
                name, self._ordered(name, images[name]), self.levels[name]
            )
            vectors.append(self._embedded(name, patches, grids[name]))
            if not self.model.modalities[name].categorical:
                cut[name] = patches
            part = layout.slices[name]
            indices.append(torch.arange(part.start, part.stop, device=patches.device))
            seen.append(observed)
        observed = torch.cat(seen, dim=1)
        token = torch.where(observed, torch.cat(indices), layout.count)
        # Where a chip has nothing at all, attention still needs something to look at.
        attention_mask = observed | ~observed.any(dim=1, keepdim=True)
        x, count = torch.cat(vectors, dim=1), observed.shape[1]
        extra = self.model.global_tokens.expand(x.shape[0], -1, -1)
        x = torch.cat([x, extra.to(x.dtype)], dim=1)
        attention_mask = torch.cat(
            [attention_mask, attention_mask.new_ones(extra.shape[:2])], dim=1
        )
        kept: dict[int, Tensor] = {}
        encoded = x
        for number, encoded in enumerate(self.model.encoder.stages(x, attention_mask), start=1):
            if number in stages:
                kept[number] = encoded[:, :count]
        return Features(
            encoded[:, :count],
            encoded[:, count:],
            VisibleSlots(token, observed),
            layout,
            tuple(kept[n] for n in stages),
            cut,
        )

    def sizes(
        self, images: Mapping[str, Tensor], names: Collection[str] | None = None
    ) -> dict[str, tuple[int, int]]:
        """Height and width of modalities over the ground that ``images`` cover, in the model's
        order. ``names``: of which, with all of ``images`` (default: every one of the model).
        """
        lacking = [n for n in images if n not in self.inputs]
        if lacking:
            raise ContractError(f"no input {lacking[0]!r}; {did_you_mean(lacking[0], self.inputs)}")
        if not images:
            raise ContractError(f"no images; give any of {', '.join(self.inputs)}")
        config = self.model.config.inputs
        reference = next(n for n in self.inputs if n in images)
        height, width = images[reference].shape[-2:]
        sizes = {}
        for name in config:
            if names is None or name in names:
                pair = config[name].size, config[reference].size
                sizes[name] = _scaled(height, *pair), _scaled(width, *pair)
        for name, image in images.items():
            expected = len(self.bands[name]), *sizes[name]
            if image.ndim != 4 or tuple(image.shape[1:]) != expected:
                named = [self.model.modalities[name].band_names[i] for i in self.bands[name]]
                raise ContractError(
                    f"{name}: expected (B, {', '.join(map(str, expected))}) with the bands "
                    f"{', '.join(named)}, on the ground of {reference}; got {tuple(image.shape)}"
                )
        return sizes

    def _ordered(self, name: str, image: Tensor) -> Tensor:
        """The model's bands in its order; NaN for those the tensor lacks."""
        total, given = self.model.modalities[name].channels, self.bands[name]
        if given == tuple(range(total)):
            return image
        blank = torch.full_like(image[:, :1], float("nan"), dtype=torch.float32)
        planes = [image[:, given.index(i), None] if i in given else blank for i in range(total)]
        return torch.cat([p.to(torch.float32) for p in planes], dim=1)

    def _embedded(self, name: str, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        embed = cast(Embedding, self.model.embeddings[name])
        x: Tensor = self.model.embed(name, patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        x = x + self.model.positions(grid, embed.interpolation)
        return x + self.model.modality[name] if name in self.model.modality else x


class Backbone(nn.Module):
    """Feature maps of a ``TensorEncoder``; see ``backbone``.

    ``out_channels``: channels of each map. ``reductions``: pixels of the finest input that a pixel
    of each map covers.
    """

    def __init__(
        self, reader: TensorEncoder, out_indices: Sequence[int] | None, *, pyramid: bool
    ) -> None:
        super().__init__()
        config = reader.model.config
        depth = config.encoder.depth
        if out_indices is None:
            self.blocks = four_blocks(depth) if pyramid else (depth,)
        else:
            self.blocks = tuple(_block(i, depth) for i in out_indices)
        if not self.blocks or (pyramid and len(self.blocks) != len(_SCALES)):
            raise ConfigError(
                f"out_indices: a pyramid has {len(_SCALES)} maps; got {len(self.blocks)} blocks"
            )
        self.reader = reader
        self.pyramid = pyramid
        self.out_channels = [config.encoder.width] * len(self.blocks)
        pixels = min(config.inputs[n].token_pixels for n in reader.inputs)
        scales = _SCALES if pyramid else (1.0,) * len(self.blocks)
        self.reductions = [pixels / scale for scale in scales]

    @property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        """The bands of each input's tensor, in order."""
        modalities = self.reader.model.modalities
        return {
            n: tuple(modalities[n].band_names[i] for i in bands)
            for n, bands in self.reader.bands.items()
        }

    def forward(self, images: Mapping[str, Tensor] | Tensor) -> list[Tensor]:
        """Maps (B, D, rows, columns), one per block, the modalities fused to their mean.

        images: by input (B, C, H, W) in its unit, NaN where nothing was observed; inputs may be
        left out, and one tensor will do where there is one input. The grid is the finest given
        input's; zeros where nothing was observed. Any size: patches at the edges are padded.
        """
        if isinstance(images, Tensor):
            if len(self.reader.inputs) > 1:
                raise ContractError(
                    f"a tensor for several inputs; give a dictionary of "
                    f"{', '.join(self.reader.inputs)}"
                )
            images = {self.reader.inputs[0]: images}
        features = self.reader.encode(images, self.blocks)
        maps = [features.fused(i) for i in range(len(self.blocks))]
        if not self.pyramid:
            return maps
        return [_resized(x, scale) for x, scale in zip(maps, _SCALES, strict=True)]


def physical_tensors(batch: Batch, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """A batch as a backbone takes it: (B, C, H, W) float32 in physical units, NaN where invalid.

    Class maps keep their ids. Raises ContractError for series: tensors carry no dates.
    """
    if batch.dates:
        raise ContractError(
            f"{next(iter(batch.dates))} has several dates; a backbone takes one image of each "
            "modality: give it one date"
        )
    tensors = {}
    for name, raw in batch.pixels.items():
        if names is not None and name not in names:
            continue
        column = batch.modalities.index(name)
        scale, offset = (t[:, column, None, None, None] for t in (batch.scale, batch.offset))
        values = raw.to(torch.float32)
        if not batch.modalities[name].categorical:
            values = values * scale + offset
        ok = batch.present[:, column, None, None, None]
        if name in batch.valid:
            ok = ok & batch.valid[name]
        tensors[name] = torch.where(ok, values, float("nan"))
    return tensors


def _scaled(side: int, size: int, reference: int) -> int:
    """A side in pixels of a modality whose chips have ``size`` px where others have ``reference``.

    In whole numbers where it can be, which hold for the sides of a graph of any chip size, too.
    """
    if size == reference:
        return side
    if side * size % reference == 0:
        return side * size // reference
    return round(side * size / reference)


def _resized(x: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return x
    if scale < 1.0:
        return F.max_pool2d(x, 2, ceil_mode=True)
    return F.interpolate(x, scale_factor=scale, mode="bilinear")


def _require_inputs(names: Mapping[str, object] | Sequence[str], model: MultiMAE) -> None:
    for name in names:
        if name not in model.modalities:
            raise ConfigError(f"no input {name!r}; {did_you_mean(name, model.modalities)}")


def _bands(model: MultiMAE, name: str, band_names: Sequence[str] | None) -> tuple[int, ...]:
    """Index of each band of the tensor among the model's bands."""
    modality = model.modalities[name]
    if band_names is None:
        return tuple(range(modality.channels))
    indices = []
    for requested in band_names:
        hits = [i for i, band in enumerate(modality.bands) if band.matches(requested)]
        if not hits:
            raise ConfigError(
                f"{name}: no band {requested!r}; {did_you_mean(requested, modality.band_names)}"
            )
        indices.append(hits[0])
    if not indices or len(set(indices)) != len(indices):
        raise ConfigError(f"{name}: bands must be named, each once; got {', '.join(band_names)}")
    return tuple(indices)


def _level(model: MultiMAE, name: str, level: str | None) -> int:
    """Index of the product level; without a word the only one that the model has seen."""
    modality = model.modalities[name]
    if level is None and modality.levels and model.statistics is not None:
        moments = model.statistics.moments[name]
        seen = [v for v in modality.levels if float(moments[v].count.sum()) > 0]
        if len(seen) != 1:
            raise ConfigError(
                f"{name}: the model knows the product levels {', '.join(modality.levels)}; name "
                f"the one of the tensors, as in levels={{{name!r}: {modality.levels[-1]!r}}}"
            )
        level = seen[0]
    return modality.level_index(level or "")


def _block(index: int, depth: int) -> int:
    if not -depth <= index < depth:
        raise ConfigError(
            f"out_indices: no block {index}; the encoder has {depth}, 0 to {depth - 1}"
        )
    return index % depth + 1
