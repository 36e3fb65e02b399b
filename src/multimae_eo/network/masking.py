"""Which tokens the encoder sees: Dirichlet sampling over the modalities each sample has.

Paper, section 3 (after Bachmann et al. 2022): a symmetric Dirichlet draw per sample gives each
modality a share of the budget of visible tokens; within a modality they are drawn uniformly; the
total is corrected to exactly the budget.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from multimae_eo.errors import ConfigError
from multimae_eo.network.sample_rng import PerSample
from multimae_eo.network.tokens import Patches, TokenLayout, TokenState


def sample_states(
    layout: TokenLayout,
    observed: Tensor | None,
    *,
    batch_size: int,
    num_visible_tokens: int,
    alpha: float = 1.0,
    inputs: tuple[str, ...] | None = None,
    generator: torch.Generator | PerSample | None = None,
) -> Tensor:
    """Draw states for a batch: int8 (B, L), on the generator's device.

    With ``PerSample`` a sample's states depend on its own seed alone, not on its batch.

    Exactly ``num_visible_tokens`` tokens are VISIBLE in every sample that has so many observed
    tokens among ``inputs`` (all modalities by default), and all of them in a sample that has fewer.
    The other observed tokens are MASKED, unobserved ones ABSENT. ``alpha`` is the Dirichlet
    concentration: small values favour few modalities, large ones an even share.

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
    share = _dirichlet(may, owner, len(layout.grids), alpha, generator)
    quota = (share * num_visible_tokens).round()

    # Rank of each token within its modality in random order, observed ones first: one sort of
    # (modality, noise) keys, then positions minus the modality's start.
    noise = _uniform(generator, batch_size, layout.count)
    order = (owner + torch.where(may, noise * 0.5, 0.75)).argsort(dim=1)
    starts = torch.tensor([s.start for s in layout.slices.values()], device=device)
    positions = torch.arange(layout.count, device=device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, positions) - starts[owner]

    # Tokens within their modality's share come first, then any other that may be seen, then none:
    # taking the first K corrects the rounded total without favouring a modality.
    within = rank < quota.gather(1, owner.expand(batch_size, -1))
    priority = _uniform(generator, batch_size, layout.count)
    priority = priority + torch.where(within, 0.0, 1.0)
    priority = torch.where(may, priority, 3.0)
    budget = min(num_visible_tokens, layout.count)
    chosen = priority.topk(budget, dim=1, largest=False, sorted=False).indices
    visible_BL = torch.zeros_like(may).scatter_(1, chosen, True) & may
    states = torch.where(seen, int(TokenState.MASKED), int(TokenState.ABSENT)).to(torch.int8)
    return torch.where(visible_BL, int(TokenState.VISIBLE), states).to(torch.int8)


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
    available = torch.zeros(len(may), modalities, device=may.device)
    available.index_add_(1, owner, may.float())
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
    available = sum(math.prod(layout.grids[n]) for n in names)
    return min(num_visible_tokens, available)


def all_visible(patches: Patches, inputs: tuple[str, ...]) -> Tensor:
    """States that show every observed token of ``inputs``; the others' are MASKED or ABSENT."""
    shown = patches.layout.columns(inputs).to(patches.device)
    states = torch.where(shown, int(TokenState.VISIBLE), int(TokenState.MASKED)).to(torch.int8)
    states = states.expand(patches.batch_size, -1)
    if patches.observed is None:
        return states.contiguous()
    return torch.where(patches.observed, states, int(TokenState.ABSENT)).to(torch.int8)
