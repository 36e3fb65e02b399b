"""Which tokens the encoder sees: Dirichlet sampling over the modalities each sample has.

Paper, section 3 (after Bachmann et al. 2022): a symmetric Dirichlet draw per sample gives each
modality a share of the budget of visible tokens; within a modality they are drawn uniformly; the
total is corrected to exactly the budget.

Not in the paper: roles of entire modalities, drawn per sample before the tokens, and a drawn share
of masked tokens that is predicted (CrossMAE, Fu et al. 2024).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from multimae_eo.errors import ConfigError
from multimae_eo.network.config import ModalityRoles, SeriesMasking
from multimae_eo.network.sample_rng import PerSample
from multimae_eo.network.tokens import Patches, TokenLayout, TokenState

_APART = 1e-3
"""How far random numbers of a group may differ: the order within it is random, too."""


def sample_states(  # noqa: PLR0913
    layout: TokenLayout,
    observed: Tensor | None,
    *,
    batch_size: int,
    num_visible_tokens: int,
    alpha: float = 1.0,
    inputs: tuple[str, ...] | None = None,
    roles: ModalityRoles | None = None,
    series: SeriesMasking = "random",
    generator: torch.Generator | PerSample | None = None,
) -> Tensor:
    """Draw states for a batch: int8 (B, L), on the generator's device.

    With ``PerSample`` a sample's states depend on its own seed alone, not on its batch.

    Exactly ``num_visible_tokens`` tokens are VISIBLE in every sample that has so many observed
    tokens among ``inputs`` (all modalities by default), and all of them in a sample that has fewer.
    The other observed tokens are MASKED, unobserved ones ABSENT. ``alpha`` is the Dirichlet
    concentration: small values favour few modalities, large ones an even share.

    ``roles``: draw for each modality of each sample whether it is unused, encoded, decoded or both.
    Visible tokens are then drawn from encoded modalities only (fewer where these have fewer), and
    the other tokens of modalities that are not decoded are UNUSED. At least one observed input of a
    sample is encoded, and at least one modality with tokens that are not visible is decoded.

    ``series``: within a modality's share tokens are drawn at ``random``, or entire ``dates``, or
    ``tubes`` (a position at all dates), as far as the share goes; ``mixed`` draws one of the three
    for each sample.

    Two sorts for all modalities together, whatever their number.
    """
    if num_visible_tokens < 1:
        raise ConfigError(f"masking.num_visible_tokens must be ≥ 1, got {num_visible_tokens}")
    if not alpha > 0:
        raise ConfigError(f"masking.alpha must be > 0, got {alpha}")
    device = generator.device if generator is not None else torch.device("cpu")
    owner = layout.modality_of.to(device)
    seen = (
        torch.ones(batch_size, layout.count, dtype=torch.bool, device=device)
        if observed is None
        else observed.to(device)
    )
    may = seen if inputs is None else seen & layout.columns(inputs).to(device)
    decoded = None
    if roles is not None and roles.drawn:
        roles.validate()
        present = _counts(may, owner, len(layout.grids)) > 0
        encoded, decoded = _draw_roles(present, roles, generator)
        may = may & encoded[:, owner]
    share = _dirichlet(may, owner, len(layout.grids), alpha, generator)
    quota = (share * num_visible_tokens).round()
    visible_BL = _visible(layout, may, quota, num_visible_tokens, series, generator)
    states = torch.where(seen, int(TokenState.MASKED), int(TokenState.ABSENT)).to(torch.int8)
    if decoded is not None:
        withheld = _counts(seen & ~visible_BL, owner, len(layout.grids)) > 0
        nothing = ~(decoded & withheld).any(dim=1, keepdim=True)
        decoded |= _first(withheld, _uniform(generator, *withheld.shape)) & nothing
        states = states.masked_fill(seen & ~decoded[:, owner], int(TokenState.UNUSED))
    return torch.where(visible_BL, int(TokenState.VISIBLE), states).to(torch.int8)


def _visible(
    layout: TokenLayout,
    may: Tensor,
    quota: Tensor,
    num_visible_tokens: int,
    series: SeriesMasking,
    generator: torch.Generator | PerSample | None,
) -> Tensor:
    """Draw the visible ones of the tokens that ``may`` be: bool (B, L).

    quota: (B, M), tokens of each modality's share, which may not sum to ``num_visible_tokens``.
    """
    owner = layout.modality_of.to(may.device)
    # Rank of each token within its modality in random order, observed ones first: one sort of
    # (modality, noise) keys, then positions minus the modality's start.
    noise = _uniform(generator, *may.shape)
    groups = _groups(layout, series, len(may), generator)
    noise = _joint(noise, groups)
    order = (owner + torch.where(may, noise * 0.5, 0.75)).argsort(dim=1)
    starts = torch.tensor([s.start for s in layout.slices.values()], device=may.device)
    positions = torch.arange(layout.count, device=may.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, positions) - starts[owner]

    # Tokens within their modality's share come first, then any other that may be seen, then none:
    # taking the first K corrects the rounded total without favouring a modality.
    within = rank < quota.gather(1, owner.expand(len(may), -1))
    priority = _joint(_uniform(generator, *may.shape), groups)
    priority = priority + torch.where(within, 0.0, 1.0)
    priority = torch.where(may, priority, 3.0)
    budget = min(num_visible_tokens, layout.count)
    chosen = priority.topk(budget, dim=1, largest=False, sorted=False).indices
    return torch.zeros_like(may).scatter_(1, chosen, True) & may


def sample_decoded(
    layout: TokenLayout, states: Tensor, share: float, generator: torch.Generator | PerSample | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw which tokens to decode: a ``share`` of each image or date, MASKED ones first.

    states: int8 (B, L). Returns the states, in which MASKED tokens that were not drawn are UNUSED,
    and for each modality the tokens to decode, in ascending order: int64 (B, Q) in [0, N), where Q
    is ``share`` · N, rounded up for each date. A sample with fewer MASKED tokens decodes others
    beside them, which have no loss. Raises ConfigError for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"masking.decoded must be in (0, 1], got {share}")
    masked = states == TokenState.MASKED
    noise = _uniform(generator, *states.shape).to(states.device)
    priority = torch.where(masked, noise, noise + 1)
    drawn = torch.zeros_like(masked)
    rows = {}
    for name, part in layout.slices.items():
        dates = layout.date_count(name)
        by_date = priority[:, part].reshape(len(states), dates, -1)
        count = math.ceil(share * by_date.shape[2])
        first = by_date.topk(count, dim=2, largest=False, sorted=False).indices
        start = torch.arange(dates, device=first.device)[:, None] * by_date.shape[2]
        rows[name] = (first.sort(dim=2).values + start).flatten(1)
        drawn[:, part] = drawn[:, part].scatter(1, rows[name], True)
    return states.masked_fill(masked & ~drawn, int(TokenState.UNUSED)), rows


def _draw_roles(
    inputs: Tensor, roles: ModalityRoles, generator: torch.Generator | PerSample | None
) -> tuple[Tensor, Tensor]:
    """Which modalities are encoded, and which are decoded: bool (B, M) each.

    inputs: bool (B, M), the modalities with any token that may be visible; the first result is
    true for at least one of them. The others are decoded unless they are unused.
    """
    drawn = _uniform(generator, *inputs.shape)
    unused, encoded_only, decoded_only = roles.bounds
    decoded = (drawn >= encoded_only) | (~inputs & (drawn >= unused))
    encoded = ((drawn >= unused) & (drawn < encoded_only)) | (drawn >= decoded_only)
    encoded &= inputs
    none = ~encoded.any(dim=1, keepdim=True)
    encoded |= _first(inputs, _uniform(generator, *inputs.shape)) & none
    return encoded, decoded


def _first(candidates: Tensor, order: Tensor) -> Tensor:
    """The candidate of each row with the greatest ``order``: bool (B, M), nothing without any."""
    best = torch.where(candidates, order, -1.0).argmax(dim=1, keepdim=True)
    return torch.zeros_like(candidates).scatter_(1, best, True) & candidates


def _counts(tokens: Tensor, owner: Tensor, modalities: int) -> Tensor:
    """Tokens of each modality: float (B, M)."""
    counts = torch.zeros(len(tokens), modalities, device=tokens.device)
    return counts.index_add_(1, owner, tokens.float())


def _groups(
    layout: TokenLayout,
    series: SeriesMasking,
    size: int,
    generator: torch.Generator | PerSample | None,
) -> Tensor | None:
    """For each token of each sample, which tokens are drawn with it: int64 (B, L); None: none."""
    if series == "random" or not layout.dates:
        return None
    of = torch.stack(
        [torch.arange(layout.count), layout.acquisition_of, layout.location_of],
    )
    if series == "mixed":
        kind = (_uniform(generator, size, 1)[:, 0] * len(of)).long()
    else:
        kind = torch.full((size,), 1 if series == "dates" else 2)
    return of.to(kind.device)[kind]


def _joint(noise: Tensor, groups: Tensor | None) -> Tensor:
    """Random numbers of which those of a group are neighbours: (B, L) in [0, 1)."""
    if groups is None:
        return noise
    return (1 - _APART) * noise.gather(1, groups) + _APART * noise


def _uniform(generator: torch.Generator | PerSample | None, size: int, count: int) -> Tensor:
    """Uniform numbers in [0, 1): (size, count)."""
    if isinstance(generator, PerSample):
        return generator.rand(count)
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.rand(size, count, generator=generator, device=device)


def _dirichlet(
    may: Tensor,
    owner: Tensor,
    modalities: int,
    alpha: float,
    generator: torch.Generator | PerSample | None,
) -> Tensor:
    """Shares (B, M) that sum to one over the modalities with any token that may be seen."""
    available = _counts(may, owner, modalities)
    if isinstance(generator, PerSample):
        gamma = generator.gamma(alpha, modalities)
    else:
        gamma = torch._standard_gamma(torch.full_like(available, alpha), generator=generator)
    # A tiny floor keeps a draw of all zeros (very small alpha) from dividing by zero.
    gamma = gamma.clamp_min(1e-30)
    gamma = torch.where(available > 0, gamma, 0.0)
    return gamma / gamma.sum(dim=1, keepdim=True).clamp_min(1e-30)


def count_visible_tokens(
    layout: TokenLayout, num_visible_tokens: int, inputs: tuple[str, ...] | None = None
) -> int:
    """The largest number of tokens ``sample_states`` shows in any sample."""
    names = tuple(layout.grids) if inputs is None else inputs
    slices = [layout.slices[n] for n in names]
    available = sum(s.stop - s.start for s in slices)
    return int(min(num_visible_tokens, available))


def all_visible(patches: Patches, inputs: tuple[str, ...]) -> Tensor:
    """States that show every observed token of ``inputs``; the others' are MASKED or ABSENT."""
    shown = patches.layout.columns(inputs).to(patches.device)
    states = torch.where(shown, int(TokenState.VISIBLE), int(TokenState.MASKED)).to(torch.int8)
    states = states.expand(patches.batch_size, -1)
    if patches.observed is None:
        return states.contiguous()
    return torch.where(patches.observed, states, int(TokenState.ABSENT)).to(torch.int8)
