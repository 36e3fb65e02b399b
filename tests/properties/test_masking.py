"""Properties of the sampler of visible tokens, over random layouts and presence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.errors import ConfigError
from multimae_eo.network.masking import count_visible_tokens, sample_states
from multimae_eo.network.tokens import TokenLayout, TokenState, visible_slots

grids = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5)


def layout_of(sizes: list[tuple[int, int]]) -> TokenLayout:
    return TokenLayout({f"m{i}": g for i, g in enumerate(sizes)})


def draw(layout, observed, *, num_visible_tokens, seed, batch=3, alpha=1.0, inputs=None):
    generator = torch.Generator().manual_seed(seed)
    return sample_states(
        layout, observed, batch_size=batch, num_visible_tokens=num_visible_tokens,
        alpha=alpha, inputs=inputs, generator=generator,
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(sizes=grids, visible=st.integers(1, 60), seed=st.integers(0, 10**6), data=st.data())
def test_states_partition_the_grid_and_exactly_k_are_visible(sizes, visible, seed, data):
    layout = layout_of(sizes)
    share = data.draw(st.floats(0, 1))
    rng = np.random.default_rng(seed)
    observed = torch.from_numpy(rng.random((3, layout.count)) < share)
    alpha = data.draw(st.sampled_from([1e-3, 0.5, 1.0, 50.0]))
    states = draw(layout, observed, num_visible_tokens=visible, seed=seed, alpha=alpha)
    assert states.dtype == torch.int8
    assert torch.equal(states == TokenState.ABSENT, ~observed), "unobserved tokens are ABSENT"
    shown = (states == TokenState.VISIBLE).sum(dim=1)
    assert torch.equal(shown, observed.sum(dim=1).clamp(max=visible))
    slots = visible_slots(states, count_visible_tokens(layout, visible), filled=False)
    for row in range(3):
        attention_mask = slots.attention_mask[row]
        expected = (states[row] == TokenState.VISIBLE).nonzero()[:, 0]
        assert torch.equal(slots.token[row][attention_mask], expected)
        assert (slots.token[row][~attention_mask] == layout.count).all()


@settings(max_examples=60, deadline=None)
@given(
    sizes=grids.filter(lambda g: len(g) > 1), visible=st.integers(1, 40), seed=st.integers(0, 99)
)
def test_targets_only_are_never_visible(sizes, visible, seed):
    layout = layout_of(sizes)
    inputs = ("m0",)
    states = draw(layout, None, num_visible_tokens=visible, seed=seed, inputs=inputs)
    assert (states[:, layout.slices["m0"].stop :] == TokenState.MASKED).all()
    shown = (states == TokenState.VISIBLE).sum(dim=1)
    assert (shown == count_visible_tokens(layout, visible, inputs)).all()


def test_the_same_seed_draws_the_same_states_and_another_does_not():
    layout = layout_of([(7, 7)] * 4)
    first, again = (draw(layout, None, num_visible_tokens=49, seed=5) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, draw(layout, None, num_visible_tokens=49, seed=6))


def shares(alpha: float, n: int = 4000) -> np.ndarray:
    layout = layout_of([(7, 7)] * 3)
    states = draw(layout, None, num_visible_tokens=49, seed=1, batch=n, alpha=alpha)
    counts = [(states[:, s] == TokenState.VISIBLE).sum(dim=1) for s in layout.slices.values()]
    return torch.stack(counts, dim=1).double().numpy() / 49


def test_shares_follow_the_dirichlet_distribution():
    """Mean 1/M each; variance (M−1) / (M² (Mα+1)) of a symmetric Dirichlet (no cap at α = 1,
    because a modality's 49 tokens can take the whole budget)."""
    for alpha in (1.0, 5.0):
        drawn = shares(alpha)
        assert drawn.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.015)
        expected = 2 / (9 * (3 * alpha + 1))
        assert drawn.var(axis=0) == pytest.approx([expected] * 3, rel=0.1)


def test_tokens_within_a_modality_are_drawn_uniformly():
    layout = layout_of([(4, 4), (4, 4)])
    states = draw(layout, None, num_visible_tokens=8, seed=3, batch=8000)
    rate = (states == TokenState.VISIBLE).double().mean(dim=0)
    assert rate.numpy() == pytest.approx(np.full(32, 0.25), abs=0.02)


@pytest.mark.parametrize(("visible", "alpha"), [(0, 1.0), (5, 0.0), (5, -1.0), (5, float("nan"))])
def test_impossible_settings_are_refused(visible, alpha):
    with pytest.raises(ConfigError, match="masking"):
        draw(layout_of([(2, 2)]), None, num_visible_tokens=visible, seed=0, alpha=alpha)
