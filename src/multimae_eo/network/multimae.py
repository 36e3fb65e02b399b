"""The model: one shared encoder, one embedding per modality, one decoder per task.

Sosa et al., "MultiMAE Meets Earth Observation" (arXiv 2505.14951), after Bachmann et al. 2022.
Shape letters as in ``tokens``: B batch, L tokens, K visible slots, G global tokens, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from multimae_eo.errors import ConfigError, ContractError, did_you_mean
from multimae_eo.modality import (
    PROJECTION_WIDTH,
    Modality,
    ModalitySet,
    Task,
    validate_tasks,
)
from multimae_eo.network.config import ModelConfig, RuntimePolicy
from multimae_eo.network.date_codes import date_codes
from multimae_eo.network.decoder import Decoder
from multimae_eo.network.decoder_group import decode_together, groups
from multimae_eo.network.embedding import (
    ClassEmbedding,
    Embedding,
    PatchEmbedding,
    PositionTable,
    SpectralEmbedding,
    SpectralWeights,
    has_wavelengths,
)
from multimae_eo.network.encoder import Encoder, initialise
from multimae_eo.network.features import Features
from multimae_eo.network.masking import all_visible
from multimae_eo.network.normalize import Normalizer
from multimae_eo.network.pretrained import Pretrained
from multimae_eo.network.reconstruction import Reconstructed, reconstruct
from multimae_eo.network.time_interpolation import feature_count, interpolated_tokens
from multimae_eo.network.tokens import (
    Patches,
    TokenLayout,
    TokenState,
    VisibleSlots,
    visible_slots,
)
from multimae_eo.sample import Batch
from multimae_eo.statistics import Statistics


@dataclass(frozen=True)
class Reconstruction:
    """Predictions in patch space, with what they are to be measured against.

    ``predictions[task]``: (B, N, P), normalised values or class logits (P = classes·p·p),
    laid out (channel or class, row, column). ``features``: the encoder's output for the visible
    patches.
    """

    predictions: Mapping[str, Tensor]
    states: Tensor
    patches: Patches
    features: Features

    @property
    def layout(self) -> TokenLayout:
        """The token layout."""
        return self.patches.layout


def _scattered(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Values (B, Q, P) at their ``rows`` of (B, count, P), zeros elsewhere."""
    every = values.new_zeros(len(values), count, values.shape[2])
    return every.scatter(1, rows[:, :, None].expand_as(values), values)


class MultiMAE(Pretrained):
    """A multi-modal, multi-task masked autoencoder.

    Args:
        modalities: the inputs, in the order of their tokens.
        tasks: the outputs; each names a modality.
        config: sizes; ``config.inputs`` has an entry per modality.
        statistics: what inputs are normalised with (None: the model refuses data until given).
        runtime: how it computes; see ``set_runtime``.
    """

    def __init__(
        self,
        modalities: ModalitySet,
        tasks: Iterable[Task],
        config: ModelConfig,
        statistics: Statistics | None = None,
        *,
        runtime: RuntimePolicy | None = None,
    ) -> None:
        super().__init__()
        config.validate(modalities)
        self.modalities = modalities
        self.tasks = validate_tasks(tasks, modalities)
        self.config = config
        self.normalizer = Normalizer(modalities, config, statistics)
        width = config.encoder.width
        self.embeddings = nn.ModuleDict()
        for name, modality in modalities.items():
            self.embeddings[name] = self._make_embedding(name, modality)
        # By the side of a patch: modalities of one size share the function of wavelength.
        self.spectral = nn.ModuleDict(
            {
                str(side): SpectralWeights(side, width)
                for side in sorted(
                    config.inputs[name].patch
                    for name, embedding in self.embeddings.items()
                    if isinstance(embedding, SpectralEmbedding)
                )
            }
        )
        self.modality = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(width) * 0.02) for name in modalities}
            if config.modality_embeddings
            else {}
        )
        self.global_tokens = nn.Parameter(torch.randn(config.global_tokens, width) * 0.02)
        self.encoder = Encoder(config.encoder)
        decoders = {
            task.name: Decoder(
                modalities.names,
                task.modality,
                (width, sum(self._parts(task.name).values())),
                config.decoder,
                features=self._feature_count(task),
            )
            for task in self.tasks
            if not task.decoder
        }
        self.decoders = nn.ModuleDict(decoders)
        self.positions = PositionTable(width, config.position_grid)
        self.decoder_positions = PositionTable(config.decoder.width, config.position_grid)
        initialise(self.encoder)
        initialise(self.decoders)
        for name, decoder in decoders.items():
            decoder.look_nearby()
            if decoder.interpolation is not None:
                self._start_at_interpolation(name, decoder)
        self.set_runtime(runtime or RuntimePolicy())

    def _make_embedding(self, name: str, modality: Modality) -> nn.Module:
        config = self.config.inputs[name]
        if modality.categorical:
            return ClassEmbedding(modality, config, self.config.encoder.width)
        if self.config.spectral and has_wavelengths(modality):
            return SpectralEmbedding(modality, config)
        return PatchEmbedding(modality, config, self.config.encoder.width)

    def embed(self, name: str, patches: Tensor) -> Tensor:
        """Embed normalised patches (n, P) of a modality, without position: (n, D)."""
        embedding = self.embeddings[name]
        if isinstance(embedding, SpectralEmbedding):
            vectors = embedding(patches, self.spectral[str(self.config.inputs[name].patch)])
        else:
            vectors = embedding(patches)
        return cast(Tensor, vectors)

    def set_runtime(self, policy: RuntimePolicy) -> None:
        """Compute by ``policy`` from now on; weights, their names and outputs stay.

        Compiled are the parts of fixed shapes: what is before the encoder has as many rows as
        tokens are visible of each modality, another number in every step.
        """
        self.runtime = policy
        self.encoder.set_runtime(policy)
        self._group_decoder = decode_together
        if policy.compiled:
            for decoder in self.decoders.values():
                decoder.compile()
            self._group_decoder = torch.compile(decode_together)

    @property
    def statistics(self) -> Statistics | None:
        """The statistics inputs are normalised with."""
        return self.normalizer.statistics

    def patch_values(self, task: Task) -> int:
        """Values a task predicts per patch."""
        if task.loss == "info_nce":
            return PROJECTION_WIDTH
        modality = self.modalities[task.modality]
        channels = len(modality.classes) if modality.categorical else modality.channels
        return channels * self.config.inputs[task.modality].patch ** 2

    def _feature_count(self, task: Task) -> int:
        """Features per token of a task's interpolation in time; 0 without interpolation."""
        modality = self.modalities[task.modality]
        if not self.config.decoder.interpolate or modality.categorical:
            return 0
        return feature_count(modality.channels * self.config.inputs[task.modality].patch ** 2)

    @torch.no_grad()
    def _start_at_interpolation(self, name: str, decoder: Decoder) -> None:
        """Begin with values that differ from the interpolation by nothing."""
        start = 0
        tasks = {t.name: t for t in self.tasks}
        for part, count in self._parts(name).items():
            if tasks[part].reconstructs:
                decoder.out.weight[start : start + count] = 0.0
            start += count

    def _parts(self, decoder: str) -> dict[str, int]:
        """The tasks that the decoder of a task predicts, side by side, and their values."""
        return {t.name: self.patch_values(t) for t in self.tasks if t.decoded_by == decoder}

    def patchify(self, batch: Batch) -> Patches:
        """Normalise a batch and cut it into patches."""
        patches: Patches = self.normalizer(batch)
        return patches

    def forward(
        self,
        patches: Patches,
        states: Tensor,
        *,
        num_visible_tokens: int | None = None,
        tasks: Sequence[str] | None = None,
        decoded: Mapping[str, Tensor] | None = None,
    ) -> Reconstruction:
        """Encode the VISIBLE tokens and predict every task.

        Args:
            patches: from ``patchify``.
            states: int8 (B, L) of TokenState; counts of visible tokens may differ per sample.
                Kept on the CPU, they cost the device no synchronisation.
            num_visible_tokens: slots for visible tokens, where the caller knows the largest count
            of any
                sample (otherwise counted, which synchronises the device).
            tasks: which tasks to predict (default: all).
            decoded: of each modality the tokens to predict, int64 (B, Q) (default: all);
                predictions of the others are 0, or the interpolation in time.
        """
        tokens, slots = self.encode_states(patches, states, num_visible_tokens=num_visible_tokens)
        layout = patches.layout
        positions = self._query_positions(patches)
        names = [t.name for t in self.tasks] if tasks is None else list(tasks)
        states = states.to(patches.device, non_blocking=True)
        series = self._interpolated(patches, states)
        predictions = self.decode(
            names, tokens, slots, layout, positions, decoded=decoded, series=series
        )
        features = Features(tokens[:, : slots.count], tokens[:, slots.count :], slots, layout)
        return Reconstruction(predictions, states, patches, features)

    def _interpolated(self, patches: Patches, states: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Of each series the interpolation in time and its features, for ``interpolate``."""
        if not self.config.decoder.interpolate:
            return {}
        return {
            name: interpolated_tokens(patches, states, name)
            for name in patches.dates
            if not self.modalities[name].categorical
        }

    def _query_positions(self, patches: Patches) -> Tensor:
        """Positions of every token for the decoders: (L, W), with dates (B, L, W)."""
        layout = patches.layout
        grids = layout.grids.items()
        positions = {name: self.decoder_positions(grid, "bilinear") for name, grid in grids}
        codes = date_codes(patches, self.config.decoder.width)
        if not codes:
            return torch.cat(list(positions.values()))
        size = patches.batch_size
        for name, code in codes.items():
            positions[name] = (positions[name] + code[:, :, None]).flatten(1, 2)
        return torch.cat([p.expand(size, -1, -1) for p in positions.values()], dim=1)

    def decode(
        self,
        names: Sequence[str],
        tokens: Tensor,
        slots: VisibleSlots,
        layout: TokenLayout,
        positions: Tensor,
        *,
        decoded: Mapping[str, Tensor] | None = None,
        series: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Predictions of the named tasks; decoders of one shape together, where that pays.

        ``positions``: (L, width) of every token, or (B, L, width) where chips differ in dates.
        decoded: as in ``forward``. series: of each interpolated series the interpolation (B, N, P)
        and its features (B, N, F).
        """
        series = series or {}
        together = self.runtime.group_decoders
        if together is None:
            together = tokens.device.type != "cpu"
        # Features of tokens differ in width between tasks.
        together = together and not self.config.decoder.interpolate
        used = dict.fromkeys(t.decoded_by for n in names for t in self.tasks if t.name == n)
        chosen = {n: cast(Decoder, self.decoders[n]) for n in used}
        predictions: dict[str, Tensor] = {}
        for group in groups(chosen, layout) if together else [[n] for n in used]:
            members = [chosen[n] for n in group]
            rows = None if decoded is None else [decoded[m.target] for m in members]
            if len(members) == 1:
                part = () if rows is None else (rows[0],)
                more = (
                    {"features": series[members[0].target][1]}
                    if members[0].target in series
                    else {}
                )
                outputs = [members[0](tokens, slots, layout, positions, *part, **more)]
            else:
                part = () if rows is None else (torch.stack(rows),)
                outputs = self._group_decoder(members, tokens, slots, layout, positions, *part)
            for i, (name, output) in enumerate(zip(group, outputs, strict=True)):
                values = output
                if rows is not None:
                    target = layout.slices[members[i].target]
                    values = _scattered(output, rows[i], target.stop - target.start)
                parts = self._parts(name)
                split = values.split(list(parts.values()), dim=2) if len(parts) > 1 else [values]
                predictions |= zip(parts, split, strict=True)
        for task in self.tasks:
            if task.name in predictions and task.modality in series and task.reconstructs:
                predictions[task.name] = predictions[task.name] + series[task.modality][0]
        return {n: predictions[n] for n in names}

    def encode_states(
        self, patches: Patches, states: Tensor, *, num_visible_tokens: int | None = None
    ) -> tuple[Tensor, VisibleSlots]:
        """Encode the VISIBLE tokens: (B, K + G, D) with the global tokens last, and their slots."""
        x, attention_mask, slots = self._gathered(patches, states, num_visible_tokens)
        encoded: Tensor = self.encoder(x, attention_mask)
        return encoded, slots

    def _gathered(
        self, patches: Patches, states: Tensor, num_visible_tokens: int | None
    ) -> tuple[Tensor, Tensor | None, VisibleSlots]:
        """The encoder's input (B, K + G, D), its attention mask, and the slots."""
        layout = patches.layout
        if tuple(states.shape) != (patches.batch_size, layout.count):
            raise ContractError(
                f"states: expected shape (B, L) = {(patches.batch_size, layout.count)}, "
                f"got {tuple(states.shape)}"
            )
        filled = num_visible_tokens is not None and patches.observed is None
        if num_visible_tokens is None:
            counts = (states == TokenState.VISIBLE).sum(dim=1)
            num_visible_tokens = int(counts.max())
            filled = bool((counts == num_visible_tokens).all())
        cpu_slots = visible_slots(states, num_visible_tokens, filled=filled)
        x = self._embed(patches, states, num_visible_tokens)
        slots = cpu_slots.to(patches.device)
        attention_mask = slots.attention_mask
        if self.config.global_tokens:
            extra = self.global_tokens.to(x.dtype).expand(len(x), -1, -1)
            x = torch.cat([x, extra], dim=1)
            if attention_mask is not None:
                attention_mask = torch.cat(
                    [attention_mask, attention_mask.new_ones(len(attention_mask), extra.shape[1])],
                    dim=1,
                )
        return x, attention_mask, slots

    def _embed(self, patches: Patches, states: Tensor, count: int) -> Tensor:
        """Embed the visible patches only, each into its slot: (B, count, D)."""
        layout, size, device = patches.layout, patches.batch_size, patches.device
        seen = states == TokenState.VISIBLE
        slot = seen.cumsum(dim=1) - 1 + torch.arange(size, device=seen.device)[:, None] * count
        vectors, targets = [], []
        codes = date_codes(patches, self.config.encoder.width)
        for name, part in layout.slices.items():
            row, token = seen[:, part].nonzero(as_tuple=True)
            targets.append(slot[:, part][row, token])
            row, token = (i.to(device, non_blocking=True) for i in (row, token))
            embed = cast(Embedding, self.embeddings[name])
            # Where the batch lacks a modality its weights get a gradient, too, of zero: processes
            # that sum theirs must all have one.
            values = patches.values[name] if name in patches.values else embed.no_patches()
            position = self.positions(layout.grids[name], embed.interpolation)
            vector = self.embed(name, values[row, token])
            if name in codes:
                date = token // len(position)
                vector = vector + codes[name][row, date]
                token = token - date * len(position)
            vector = vector + position[token]
            if name in self.modality:
                vector = vector + self.modality[name]
            vectors.append(vector)
        flat = torch.cat(vectors)
        target = torch.cat(targets).to(device, non_blocking=True)
        x = flat.new_zeros(size * count, flat.shape[1]).index_copy(0, target, flat)
        return x.reshape(size, count, flat.shape[1])

    def encode(
        self, batch: Batch, inputs: Sequence[str] | None = None, *, stages: Sequence[int] = ()
    ) -> Features:
        """Encode every observed token of ``inputs`` (default: all the batch has).

        ``stages``: blocks, from 1, whose tokens ``Features.stages`` shall hold, too.
        Raises ConfigError for an unknown input, ContractError where a sample has none of them.
        """
        return self.encode_patches(self.patchify(batch), batch.keys, inputs, stages=stages)

    def encode_patches(
        self,
        patches: Patches,
        keys: Sequence[str],
        inputs: Sequence[str] | None = None,
        *,
        stages: Sequence[int] = (),
    ) -> Features:
        """As ``encode``, from patches of the samples called ``keys``."""
        states = all_visible(patches, self.chosen(inputs, patches.values))
        shown = (states == TokenState.VISIBLE).any(dim=1)
        if not bool(shown.all()):
            lacking = keys[int((~shown).nonzero()[0])]
            raise ContractError(
                f"{lacking}: nothing observed in the inputs {', '.join(inputs or patches.values)}"
            )
        x, attention_mask, slots = self._gathered(patches, states, None)
        kept: dict[int, Tensor] = {}
        encoded = x
        for number, encoded in enumerate(self.encoder.stages(x, attention_mask), start=1):
            if number in stages:
                kept[number] = encoded[:, : slots.count]
        return Features(
            encoded[:, : slots.count],
            encoded[:, slots.count :],
            slots,
            patches.layout,
            tuple(kept[n] for n in stages),
            {n: v for n, v in patches.values.items() if not self.modalities[n].categorical},
        )

    def observed_rows(self, batch: Batch, inputs: Sequence[str] | None = None) -> Tensor:
        """Chips with anything observed in ``inputs``: indices int64 (n,)."""
        return self.normalizer.observed_rows(batch, self.chosen(inputs, batch.pixels))

    def chosen(self, inputs: Sequence[str] | None, given: Collection[str]) -> tuple[str, ...]:
        """Check and order ``inputs``; all that are ``given`` by default."""
        for name in inputs or ():
            if name not in self.modalities:
                raise ConfigError(f"no input {name!r}; {did_you_mean(name, self.modalities)}")
        return tuple(n for n in self.modalities if n in given and (inputs is None or n in inputs))

    def without_decoders(self) -> MultiMAE:
        """A copy of the encoder and its inputs, without tasks."""
        with torch.random.fork_rng(devices=[]):
            bare = MultiMAE(self.modalities, (), self.config, self.statistics)
        kept = {k: v for k, v in self.state_dict().items() if not k.startswith("decoders.")}
        bare.load_state_dict(kept)
        return bare.to(self.global_tokens.device).train(self.training)

    def reinitialised(self, seed: int = 0) -> MultiMAE:
        """The same model with fresh random weights: the baseline for probes."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MultiMAE(self.modalities, self.tasks, self.config, self.statistics)

    def reconstruct(
        self,
        batch: Batch,
        inputs: Sequence[str] | None = None,
        *,
        outputs: Sequence[str] | None = None,
        samples: int = 8,
        seed: int = 0,
        uncertainty: bool = True,
    ) -> dict[str, Reconstructed]:
        """Predict any modality from any others; see ``network.reconstruction.reconstruct``."""
        return reconstruct(
            self,
            batch,
            inputs,
            outputs=outputs,
            samples=samples,
            seed=seed,
            uncertainty=uncertainty,
        )
