"""A fine-tuned model: the encoder of a MultiMAE, and a head in place of its decoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from multimae_eo.errors import ConfigError
from multimae_eo.network.config import HeadConfig, RuntimePolicy
from multimae_eo.network.features import Features
from multimae_eo.network.heads import ChipHead, build_head
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.pretrained import Pretrained
from multimae_eo.network.target import Target
from multimae_eo.network.tokens import Patches
from multimae_eo.network.windows import Blend, chip_windows, extent
from multimae_eo.sample import Batch

DENSE_OVERLAP = 0.5
"""Of the windows that a larger chip's map is blended from."""

_MIRRORS: dict[int, tuple[int, ...]] = {0: (), 4: (-1,), 6: (-2,), 2: (-2, -1)}
"""A chip's rotation (see ``Batch.turned``), and the axes along which its map is flipped back."""
_MAP_AXES = 4

Change = Callable[[Patches], Patches]


class Predictor(Pretrained):
    """Predicts labels from any subset of its inputs; every observed token is visible.

    Args:
        encoder: a MultiMAE; where it has decoders that are not kept, a copy without them is taken.
        target: the labels.
        config: the head's.
        decoders: keep those of ``encoder``, by which the model can be adapted at test time.
        runtime: how it computes (default: as the encoder does); see ``set_runtime``.
    """

    def __init__(
        self,
        encoder: MultiMAE,
        target: Target,
        config: HeadConfig,
        *,
        decoders: bool = False,
        runtime: RuntimePolicy | None = None,
    ) -> None:
        super().__init__()
        if config.pool == "global" and not encoder.config.global_tokens and not target.dense:
            raise ConfigError("head.pool: the model has no global tokens; take 'mean'")
        self.encoder = encoder.without_decoders() if encoder.tasks and not decoders else encoder
        self.target = target
        self.config = config
        self.head = build_head(
            config,
            encoder.config,
            encoder.modalities,
            outputs=target.outputs,
            dense=target.dense,
        )
        if runtime is not None:
            self.set_runtime(runtime)

    @property
    def runtime(self) -> RuntimePolicy:
        """How it computes."""
        return self.encoder.runtime

    def without_decoders(self) -> Predictor:
        """The same model without decoders, which predictions do not need; itself if it has none."""
        if not self.encoder.tasks:
            return self
        with torch.random.fork_rng(devices=[]):
            bare = Predictor(self.encoder, self.target, self.config, runtime=self.runtime)
        bare.head.load_state_dict(self.head.state_dict())
        return bare.to(self.encoder.global_tokens.device).train(self.training)

    def set_runtime(self, policy: RuntimePolicy) -> None:
        """Compute by ``policy`` from now on; with flips, ``predict`` averages mirror images."""
        self.encoder.set_runtime(policy)

    def forward(
        self, batch: Batch, inputs: Sequence[str] | None = None, *, change: Change | None = None
    ) -> Tensor:
        """Raw outputs: logits (B, O) or standardised values (B, 1), or maps of them (B, O, H, W).

        Chips are encoded whole, whatever their size; H and W are those of the finest input.
        ``change``: applied to the patches first.
        """
        patches = self.encoder.patchify(batch)
        features = self._encode(patches if change is None else change(patches), batch, inputs)
        out: Tensor = self.head(features)
        return (
            out
            if isinstance(self.head, ChipHead)
            else self.to_pixels(out, features, patches.chip_sizes)
        )

    @torch.no_grad()
    def predict(self, batch: Batch, inputs: Sequence[str] | None = None) -> Tensor:
        """Raw outputs as of ``forward``; larger chips window by window.

        Windows have the size of the chips the model was trained on. Their features are averaged
        where labels are one per chip, and their logits blended where they are maps.
        """
        if inputs is not None:
            batch = batch.select([n for n in batch.pixels if n in inputs])
        if not self.runtime.flips:
            return self._predict(batch, inputs)
        outputs = [
            out.flip(axes) if out.ndim == _MAP_AXES else out
            for turn, axes in _MIRRORS.items()
            for out in [self._predict(batch.rotated(torch.full((len(batch),), turn)), inputs)]
        ]
        return torch.stack(outputs).mean(dim=0)

    @torch.no_grad()
    def summary(self, batch: Batch, inputs: Sequence[str] | None = None) -> Tensor:
        """Chips' tokens as a head of one vector per chip pools them: (B, parts · D).

        Those of larger chips are the mean of their windows'.
        """
        assert isinstance(self.head, ChipHead)
        windows = chip_windows(self.encoder.config.sizes, batch, 0.0)
        total = count = torch.zeros(len(batch), 1, device=batch.present.device)
        for window in windows:
            part = batch.cut(window)
            rows = self.encoder.observed_rows(part, inputs)
            if len(rows):
                seen = part.take(rows)
                pooled = self.head.pooled(self._encode(self.encoder.patchify(seen), seen, inputs))
                total = total.expand(-1, pooled.shape[1]).index_add(0, rows, pooled.float())
                count = count.index_add(0, rows, torch.ones_like(count[rows]))
        if windows and bool(count.all()):
            return total / count
        # Encoding the full chip reports the one in which nothing was observed.
        return self.head.pooled(self._encode(self.encoder.patchify(batch), batch, inputs))

    def _predict(self, batch: Batch, inputs: Sequence[str] | None) -> Tensor:
        if isinstance(self.head, ChipHead):
            return self.head.predict(self.summary(batch, inputs))
        windows = chip_windows(self.encoder.config.sizes, batch, DENSE_OVERLAP)
        if not windows:
            return self(batch, inputs)  # type: ignore[no-any-return]
        finest = max(self.encoder.config.sizes, key=lambda n: self.encoder.config.sizes[n])
        blend = Blend(len(batch), extent(windows, finest))
        for window in windows:
            part = batch.cut(window)
            rows = self.encoder.observed_rows(part, inputs)
            if len(rows):
                blend.add(self(part.take(rows), inputs).float(), rows, window[finest])
        if blend.sum is None:
            return self(batch, inputs)  # type: ignore[no-any-return]
        return blend.mean(None if blend.complete else self(batch, inputs))

    def answers(self, outputs: Tensor) -> Tensor:
        """Deprecated: the name of ``predictions`` before 0.2."""
        return self.predictions(outputs)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Probabilities of the classes, independent ones for multi-hot labels, or predicted values.

        ``outputs``: (B, O, …) as of ``forward``. Returns (B, O, …), or (B, …) for values.
        """
        if self.target.numeric:
            return outputs[:, 0] * self.target.std + self.target.mean
        return outputs.sigmoid() if self.target.kind == "multilabel" else outputs.softmax(dim=1)

    def _encode(self, patches: Patches, batch: Batch, inputs: Sequence[str] | None) -> Features:
        return self.encoder.encode_patches(patches, batch.keys, inputs, stages=self.head.blocks)

    def to_pixels(
        self, maps: Tensor, features: Features, sizes: Mapping[str, tuple[int, int]]
    ) -> Tensor:
        """Interpolate (B, O, …) over the grid of tokens to the finest input's pixels.

        ``sizes``: height and width of the chips by modality.
        """
        config = self.encoder.config.inputs
        finest = max(config, key=lambda n: config[n].size)
        rows, cols = features.layout.grids[finest]
        side = config[finest].token_pixels
        resized = F.interpolate(maps, size=(rows * side, cols * side), mode="bilinear")
        height, width = sizes[finest]
        return resized[..., :height, :width]
