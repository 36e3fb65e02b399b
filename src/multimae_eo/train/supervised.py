"""Supervised losses, the mixing of chips that softens their labels, and the hiding of inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimae_eo.errors import ConfigError
from multimae_eo.modality import ModalitySet
from multimae_eo.network.band_dropout import drop_bands
from multimae_eo.network.masking import sample_states
from multimae_eo.network.predictor import Change
from multimae_eo.network.sample_rng import PerSample
from multimae_eo.network.target import Target
from multimae_eo.network.tokens import Patches, TokenLayout, TokenState
from multimae_eo.train.finetune_recipe import AugmentRecipe, LossRecipe

_INPUTS, _TOKENS, _DATES, _BANDS = 1, 2, 3, 4
"""Separate the random numbers of dropped inputs, of visible tokens, of dropped dates and bands."""


@dataclass(frozen=True)
class Mixing:
    """Chip i is mixed with chip ``partner[i]``, of which it keeps the share ``kept``.

    ``box``: top, bottom, left, right as fractions of the chip's side, taken from the partner
    (CutMix, Yun et al. 2019); None: everything is blended (Zhang et al. 2018).
    """

    partner: Tensor
    kept: float
    box: tuple[float, float, float, float] | None = None

    def __call__(self, patches: Patches) -> Patches:
        """Mix normalised patches; what the partner did not observe stays, and the reverse."""
        layout, partner = patches.layout, self.partner.to(patches.device)
        for name, dates in patches.dates.items():
            if not torch.equal(dates.nan_to_num(), dates[partner].nan_to_num()):
                raise ConfigError(
                    f"augment: {name}: chips with different dates cannot be mixed; leave mixup and "
                    "cutmix at 0"
                )
        seen = patches.observed
        if seen is None:
            seen = torch.ones(
                patches.batch_size, layout.count, dtype=torch.bool, device=patches.device
            )
        theirs_seen = seen[partner]
        values, valid = {}, {}
        changed = seen.clone()
        for name, mine in patches.values.items():
            part = layout.slices[name]
            take = self._taken(layout.grids[name], mine.device)[None, :, None]
            take = take.repeat(1, layout.date_count(name), 1)
            theirs, a, b = mine[partner], seen[:, part, None], theirs_seen[:, part, None]
            if self.box is None and mine.is_floating_point():
                mixed = torch.where(a & b, self.kept * mine + (1 - self.kept) * theirs, mine)
                values[name] = torch.where(b & ~a, theirs, mixed)
                take = b & ~a
                changed[:, part] = (a | b)[..., 0]
            else:
                # Classes cannot be blended: a map follows the chip of the larger share.
                values[name] = torch.where(take, theirs, mine)
                changed[:, part] = torch.where(take[..., 0], b[..., 0], a[..., 0])
            if name in patches.valid:
                ok = patches.valid[name]
                valid[name] = torch.where(take, ok[partner], ok)
        observed = changed if patches.observed is not None else None
        return replace(patches, values=values, valid=valid, observed=observed)

    def labels(self, targets: Tensor) -> Tensor:
        """Mix soft labels (B, C) alike."""
        partner = self.partner.to(targets.device)
        return self.kept * targets + (1 - self.kept) * targets[partner]

    def _taken(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Tokens that come from the partner: bool (N,)."""
        rows, cols = grid
        if self.box is None:
            return torch.full((rows * cols,), self.kept < 0.5, device=device)
        top, bottom, left, right = self.box
        # Tokens whose centres lie in the box.
        y = (torch.arange(rows, device=device) + 0.5) / rows
        x = (torch.arange(cols, device=device) + 0.5) / cols
        inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
        return inside.flatten()


def draw_mixing(recipe: AugmentRecipe, size: int, seed: int) -> Mixing | None:
    """Mixup or CutMix of a batch of ``size``; with both on, either by chance. None: neither."""
    kinds = [k for k, alpha in (("mix", recipe.mixup), ("cut", recipe.cutmix)) if alpha > 0]
    if not kinds or size < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    kind = kinds[int(torch.randint(len(kinds), (1,), generator=generator))]
    alpha = recipe.mixup if kind == "mix" else recipe.cutmix
    gamma = torch._standard_gamma(torch.full((2,), alpha), generator=generator).clamp_min(1e-30)
    kept = float(gamma[0] / gamma.sum())
    partner = torch.randperm(size, generator=generator)
    if kind == "mix":
        return Mixing(partner, kept)
    half = (1 - kept) ** 0.5 / 2
    cy, cx = torch.rand(2, generator=generator).tolist()
    top, bottom = max(0.0, cy - half), min(1.0, cy + half)
    left, right = max(0.0, cx - half), min(1.0, cx + half)
    return Mixing(partner, 1 - (bottom - top) * (right - left), (top, bottom, left, right))


def hide(patches: Patches, recipe: AugmentRecipe, keys: Sequence[str], *parts: int) -> Patches:
    """Leave ``recipe.num_visible_tokens`` tokens of each chip, drawn as in pre-training; all where
    it is None.

    Fewer tokens cost less, no chip looks the same twice, and a small ``alpha`` hides whole
    modalities (patch dropout, Liu et al. 2022, with the paper's Dirichlet draw).
    """
    if recipe.num_visible_tokens is None:
        return patches
    states = sample_states(
        patches.layout,
        None if patches.observed is None else patches.observed.cpu(),
        batch_size=patches.batch_size,
        num_visible_tokens=recipe.num_visible_tokens,
        alpha=recipe.alpha,
        generator=PerSample(keys, *parts, _TOKENS),
    )
    seen = states == TokenState.VISIBLE
    return replace(patches, observed=seen.to(patches.device, non_blocking=True))


@dataclass(frozen=True)
class Hiding:
    """Hides each input, or each date of an input, of each chip with a ``probability``.

    Never all that a chip has. Inputs that are no series are kept where ``dates`` are dropped.
    ``keys``: the chips'; ``parts``: the numbers, such as seed and epoch, that it is drawn by.
    """

    probability: float
    keys: Sequence[str]
    parts: tuple[int, ...]
    dates: bool = False

    def __call__(self, patches: Patches) -> Patches:
        """Tokens of what is dropped count as not observed."""
        layout = patches.layout
        if self.dates and not patches.dates:
            return patches
        seen = patches.observed
        if seen is None:
            size = (patches.batch_size, layout.count)
            seen = torch.ones(size, dtype=torch.bool, device=patches.device)
        of = (layout.acquisition_of if self.dates else layout.modality_of).to(seen.device)
        drawn = self._drawn(layout).to(seen.device)
        has = torch.zeros_like(drawn).index_add_(1, of, seen.float()) > 0
        dropped = drawn < self.probability
        if self.dates:
            counts = [layout.date_count(n) for n in layout.grids]
            series = torch.tensor([n in patches.dates for n in layout.grids])
            dropped &= series.repeat_interleave(torch.tensor(counts)).to(seen.device)
        # What of a chip has the greatest random number is always kept.
        last = torch.where(has, drawn, -1.0).argmax(dim=1, keepdim=True)
        dropped = dropped.scatter(1, last, False)
        return replace(patches, observed=seen & ~dropped[:, of])

    def _drawn(self, layout: TokenLayout) -> Tensor:
        """Random numbers of each input (B, M), or of each of its dates."""
        if not self.dates:
            return PerSample(self.keys, *self.parts, _INPUTS).rand(len(layout.slices))
        # A stream for each series: the numbers of a chip do not depend on the batch's other dates.
        streams = [PerSample(self.keys, *self.parts, _DATES, i) for i in range(len(layout.grids))]
        counts = [layout.date_count(name) for name in layout.grids]
        return torch.cat([s.rand(n) for s, n in zip(streams, counts, strict=True)], dim=1)


def changes(
    recipe: AugmentRecipe,
    mixing: Mixing | None,
    keys: Sequence[str],
    *parts: int,
    modalities: ModalitySet,
) -> Change | None:
    """Mixing, then dropping of bands, inputs, dates and tokens; None where nothing is changed.

    What is dropped of a chip follows from its key and ``parts`` (seed, epoch) alone: not from the
    batch that it is in.
    """
    steps: list[Change] = [] if mixing is None else [mixing]
    # First: it derives which tokens are observed.
    if recipe.drop_bands > 0:

        def without_bands(patches: Patches) -> Patches:
            generator = PerSample(keys, *parts, _BANDS)
            return drop_bands(patches, modalities, recipe.drop_bands, generator)

        steps.append(without_bands)
    if recipe.drop_inputs > 0:
        steps.append(Hiding(recipe.drop_inputs, keys, parts))
    if recipe.drop_dates > 0:
        steps.append(Hiding(recipe.drop_dates, keys, parts, dates=True))
    if recipe.num_visible_tokens is not None:
        steps.append(lambda patches: hide(patches, recipe, keys, *parts))
    if not steps:
        return None
    return lambda patches: reduce(lambda made, step: step(made), steps, patches)


class SupervisedLoss(nn.Module):
    """The loss of outputs against labels; labels of -1 are ignored.

    Classes and maps: cross-entropy, averaged over labels (by class weight). Multi-hot labels:
    binary cross-entropy. Values: of standardised values that are known.
    """

    weight: Tensor

    def __init__(self, target: Target, recipe: LossRecipe) -> None:
        super().__init__()
        self.target, self.recipe = target, recipe
        self.register_buffer("weight", class_weights(target, recipe), persistent=False)

    def forward(self, outputs: Tensor, labels: Tensor, mixing: Mixing | None = None) -> Tensor:
        """A scalar; 0 where every label is ignored.

        ``outputs``: (B, O) or (B, O, H, W); ``labels``: (B,), (B, O) or (B, H, W). Label smoothing
        applies in training only.
        """
        outputs = outputs.float()
        kind = self.target.kind
        if self.target.numeric:
            targets = (labels.to(outputs) - self.target.mean) / self.target.std
            finite = targets.isfinite()
            # Where no label is finite, 0 with a gradient: not the mean of nothing.
            predictions = torch.where(finite, outputs[:, 0], 0.0)
            each = _REGRESSION[self.recipe.regression](
                predictions, torch.where(finite, targets, 0.0), reduction="sum"
            )
            return each / finite.sum().clamp_min(1)
        smooth = self.recipe.label_smoothing if self.training else 0.0
        if kind == "map":
            nll = F.cross_entropy(
                outputs,
                labels,
                weight=self.weight,
                ignore_index=-1,
                label_smoothing=smooth,
                reduction="sum",
            )
            counted = torch.where(labels >= 0, self.weight[labels.clamp_min(0)], 0.0)
            return nll / counted.sum().clamp_min(1e-12)
        if kind == "multilabel":
            soft = labels.to(outputs) * (1 - smooth) + smooth / 2
            soft = soft if mixing is None else mixing.labels(soft)
            return F.binary_cross_entropy_with_logits(outputs, soft, pos_weight=self.weight)
        hard = F.one_hot(labels.clamp_min(0), outputs.shape[1]) * (labels >= 0)[:, None]
        soft = hard if mixing is None else mixing.labels(hard.to(outputs))
        smoothed = soft * (1 - smooth) + soft.sum(dim=1, keepdim=True) * smooth / soft.shape[1]
        weighted = -(smoothed * self.weight * outputs.log_softmax(dim=1)).sum()
        return weighted / (soft * self.weight).sum().clamp_min(1e-12)

    def constant(self, labels: Tensor) -> Tensor:
        """The loss of the best prediction that looks at no chip: the labels' (weighted) shares."""
        target = self.target
        counts = torch.tensor(target.counts, device=labels.device)
        if target.numeric:
            outputs = torch.zeros(len(labels), 1, *labels.shape[1:], device=labels.device)
        elif target.kind == "multilabel":
            there, not_there = (counts + 0.5) * self.weight, target.total - counts + 0.5
            outputs = (there / not_there).log().expand(len(labels), -1)
        else:
            shares = ((counts + 0.5) * self.weight).log()
            shape = (len(labels), len(shares), *labels.shape[1:])
            outputs = shares.reshape(1, -1, *([1] * (labels.ndim - 1))).expand(shape)
        loss: Tensor = self(outputs, labels)
        return loss


_REGRESSION: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
}


def class_weights(target: Target, recipe: LossRecipe) -> Tensor:
    """Weights per class, float32 (C,), with mean 1; for multi-hot labels, of the positives.

    ``balanced``: inverse to the class's share of the training labels. Raises ConfigError where
    the list does not fit the classes.
    """
    chosen = recipe.class_weights
    size = target.outputs
    if chosen == "none" or target.numeric:
        return torch.ones(size)
    counts = torch.tensor(target.counts)
    if chosen == "balanced":
        if target.kind == "multilabel":
            return (target.total - counts).clamp_min(1) / counts.clamp_min(1)
        inverse = torch.where(counts > 0, counts.sum() / counts.clamp_min(1), 0.0)
        inverse = torch.where(counts > 0, inverse, inverse.max())
        return inverse / inverse.mean()
    assert isinstance(chosen, Sequence)
    if len(chosen) != size:
        raise ConfigError(
            f"loss.class_weights: {len(chosen)} weights for {size} classes "
            f"({', '.join(target.classes)}); give one per class"
        )
    return torch.tensor([float(w) for w in chosen])
