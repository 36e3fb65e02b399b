"""The shape of a model. Plain records, no torch: recipes and model folders read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.modality import ModalitySet


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How a modality becomes tokens.

    ``size``: side of a chip at pre-training, in this modality's pixels. ``stride``: class maps may
    be thinned first (every stride-th pixel, nearest, never averaged). ``patch``: side of a patch
    in pixels *after* thinning. ``class_width``: width of a class's embedding.
    """

    size: int = 56
    patch: int = 8
    stride: int = 1
    class_width: int = 64

    def __post_init__(self) -> None:
        for name in ("size", "patch", "stride", "class_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.inputs: {name} must be ≥ 1, got {getattr(self, name)}")

    @property
    def token_pixels(self) -> int:
        """Side of the ground a token covers, in this modality's own pixels."""
        return self.patch * self.stride

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens over a chip of ``height`` × ``width`` px; padded up."""
        side = self.token_pixels
        return -(-height // side), -(-width // side)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A pre-norm ViT without a final norm (paper; Dosovitskiy et al. 2021)."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0


ENCODERS: Mapping[str, EncoderConfig] = {
    "nano": EncoderConfig(width=128, depth=4, heads=4),
    "tiny": EncoderConfig(width=192, depth=12, heads=3),
    "small": EncoderConfig(width=384, depth=12, heads=6),
    "base": EncoderConfig(width=768, depth=12, heads=12),
    "large": EncoderConfig(width=1024, depth=24, heads=16),
}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """One decoder per task: cross-attention, an MLP, then ``depth`` self-attention blocks.

    ``interpolate``: decoders of series see the interpolation in time between the visible dates, and
    predict the difference from it (not of class maps).
    """

    width: int = 128
    depth: int = 2
    heads: int = 8
    mlp_ratio: float = 4.0
    interpolate: bool = False


@dataclass(frozen=True, kw_only=True)
class RuntimePolicy:
    """How a model computes; not saved with it.

    ``group_decoders``: compute decoders with equal grids together (None: where many small launches
    matter, which is not the CPU). ``compiled``: compile the encoder's blocks and the decoders;
    equal up to rounding, the first call takes long. ``activation_checkpointing``: in training, keep
    no block's activations but compute them again in the backward pass. ``drop_path``: probability,
    for each block, of leaving out a branch of a sample in training (Huang et al. 2016); empty:
    none. ``flips``: average a prediction over a chip and its mirror images.
    """

    group_decoders: bool | None = None
    compiled: bool = False
    activation_checkpointing: bool = False
    drop_path: tuple[float, ...] = ()
    flips: bool = False


@dataclass(frozen=True, kw_only=True)
class ModalityRoles:
    """How often a modality of a sample has each role in a step, as relative frequencies.

    By default every modality of every sample may be visible and is predicted where it is masked.

    Args:
        unused: Frequency of neither encoding nor predicting a modality.
        encoded: Frequency of encoding a modality without predicting it.
        decoded: Frequency of predicting an entire modality, of which nothing is visible.
        both: Frequency of encoding a part of a modality and predicting the rest.
    """

    unused: float = 0.0
    encoded: float = 0.0
    decoded: float = 0.0
    both: float = 1.0

    def validate(self) -> None:
        """ConfigError unless frequencies are ≥ 0 and allow encoding as well as decoding."""
        for name, value in asdict(self).items():
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"masking.roles.{name} must be ≥ 0, got {value}")
        for name in ("encoded", "decoded"):
            if not getattr(self, name) + self.both > 0:
                raise ConfigError(f"masking.roles: {name} or both must be > 0")

    @property
    def drawn(self) -> bool:
        """Whether roles differ between modalities and samples."""
        return self.unused + self.encoded + self.decoded > 0

    @property
    def bounds(self) -> tuple[float, float, float]:
        """Upper bounds in [0, 1] of the parts of unused, encoded and decoded."""
        total = self.unused + self.encoded + self.decoded + self.both
        first = self.unused / total
        second = (self.unused + self.encoded) / total
        return first, second, 1 - self.both / total


SeriesMasking = Literal["random", "dates", "tubes", "mixed"]
"""What of a series is masked together, see ``masking.sample_states``."""

HeadName = Literal["linear", "convnext", "upernet", "dpt", "unet"]


PoolKind = Literal["mean", "mean-std", "all-layers-mean", "all-layers-mean-std", "global"]
POOLS: Mapping[PoolKind, str] = {
    "mean": "the mean of the tokens after the last block",
    "mean-std": "their mean and standard deviation",
    "all-layers-mean": "the mean of the tokens after every block",
    "all-layers-mean-std": "mean and standard deviation after every block",
    "global": "the mean of the global tokens after the last block",
}
"""How a chip's tokens are pooled, by name."""
POOLS_OF_ALL_LAYERS: frozenset[PoolKind] = frozenset({"all-layers-mean", "all-layers-mean-std"})
"""Poolings that read the tokens after every block; the others read those after the last."""
POOLS_WITH_STD: frozenset[PoolKind] = frozenset({"mean-std", "all-layers-mean-std"})
"""Poolings that hold a standard deviation beside each mean."""
FORMER_POOLS: Mapping[str, PoolKind] = {
    "spread": "mean-std",
    "layers": "all-layers-mean",
    "layers-spread": "all-layers-mean-std",
}
"""Poolings by the names that they had before 0.2, which model folders and recipes may hold."""


DatesKind = Literal["mean", "attention", "change"]
DATES_KINDS: Mapping[DatesKind, str] = {
    "mean": "the mean of the dates",
    "attention": "their mean weighted by a learned score of each token",
    "change": "the features of the first and of the last date, and their difference",
}
"""What a head reads of series, by name."""


@dataclass(kw_only=True)
class HeadConfig:
    """The head, which maps the encoder's tokens to predictions.

    Args:
        name: linear; for maps also convnext, upernet, dpt, or unet, which reads the inputs' pixels
            beside the tokens.
        pool: Pooling of the tokens of a chip: mean, mean-std, all-layers-mean,
            all-layers-mean-std or global.
        dates: Of series: mean of the dates, attention (learned weights), or change (first, last).
        width: Channels of a map head.
        depth: Blocks of the convnext head.
        dropout: Share of features left out in training.
    """

    name: HeadName = "linear"
    pool: PoolKind = "mean"
    width: int = 128
    depth: int = 4
    dropout: float = 0.0
    dates: DatesKind = "mean"

    def __post_init__(self) -> None:
        self.pool = FORMER_POOLS.get(self.pool, self.pool)
        for name in ("width", "depth"):
            if getattr(self, name) < 1:
                raise ConfigError(f"head.{name} must be ≥ 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"head.dropout must be in [0, 1), got {self.dropout}")
        if self.dates not in DATES_KINDS:
            raise ConfigError(f"head.dates: {did_you_mean(self.dates, DATES_KINDS)}")

    def to_dict(self) -> dict[str, object]:
        """A JSON-ready record, whose keys are arguments; one for images is as before series."""
        record = asdict(self)
        if self.dates == "mean":
            del record["dates"]
        return record


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides the network's shape, besides modalities and tasks.

    ``position_grid``: side of the table of positions, interpolated to any grid of tokens.
    ``modality_embeddings``: add a learned vector per modality to the encoder's inputs
    (the paper's model has none). ``spectral``: the projection of an optical band is a function of
    its wavelength, bandwidth and GSD, shared by all optical modalities (not in the paper).
    """

    encoder: EncoderConfig = field(default_factory=lambda: ENCODERS["base"])
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    inputs: Mapping[str, InputConfig] = field(default_factory=dict)
    global_tokens: int = 1
    position_grid: int = 28
    modality_embeddings: bool = False
    spectral: bool = False

    def __post_init__(self) -> None:
        for what, side in (("encoder", self.encoder), ("decoder", self.decoder)):
            if side.width % side.heads:
                raise ConfigError(
                    f"model.{what}: width {side.width} must divide by heads {side.heads}"
                )
            if side.width % 4:
                raise ConfigError(f"model.{what}: width must divide by 4, got {side.width}")
        if self.global_tokens < 0:
            raise ConfigError(f"model.global_tokens must be ≥ 0, got {self.global_tokens}")

    @property
    def sizes(self) -> dict[str, int]:
        """Chip side at pre-training per modality, in its own pixels."""
        return {name: config.size for name, config in self.inputs.items()}

    def validate(self, modalities: ModalitySet) -> None:
        """Check that every modality is configured and no other; ConfigError otherwise."""
        for name in self.inputs:
            if name not in modalities:
                raise ConfigError(
                    f"model.inputs: no modality {name!r}; {did_you_mean(name, modalities)}"
                )
        missing = [n for n in modalities if n not in self.inputs]
        if missing:
            raise ConfigError(f"model.inputs: no entry for {', '.join(missing)}")
        for name, modality in modalities.items():
            if self.inputs[name].stride > 1 and not modality.categorical:
                raise ConfigError(
                    f"model.inputs.{name}: stride thins class maps only; "
                    "a continuous modality would lose pixels"
                )

    def to_dict(self) -> dict[str, object]:
        """A JSON-ready dictionary; ``from_dict`` is its inverse."""
        record = asdict(self)
        if not self.decoder.interpolate:
            # The record of a model without it is as before series.
            del record["decoder"]["interpolate"]
        if not self.spectral:
            del record["spectral"]
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ModelConfig:
        """Rebuild a config written by ``to_dict``."""
        fields = dict(record)
        fields["encoder"] = EncoderConfig(**record["encoder"])
        fields["decoder"] = DecoderConfig(**record["decoder"])
        fields["inputs"] = {n: InputConfig(**c) for n, c in record["inputs"].items()}
        return cls(**fields)


def encoder_named(name: str) -> EncoderConfig:
    """A named encoder size; ConfigError names the nearest."""
    if name in ENCODERS:
        return ENCODERS[name]
    raise ConfigError(f"no encoder size {name!r}; {did_you_mean(name, ENCODERS)}")
