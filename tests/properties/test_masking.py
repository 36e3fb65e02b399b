"""Properties of the sampler of visible tokens, over random layouts and presence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.errors import ConfigError
from multimae_eo.network.config import ModalityRoles
from multimae_eo.network.masking import count_visible_tokens, sample_decoded, sample_states
from multimae_eo.network.sample_rng import PerSample
from multimae_eo.network.tokens import TokenLayout, TokenState, visible_slots

grids = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5)


def layout_of(sizes: list[tuple[int, int]]) -> TokenLayout:
    return TokenLayout({f"m{i}": g for i, g in enumerate(sizes)})


def draw(
    layout, observed, *, num_visible_tokens, seed, batch=3, alpha=1.0, inputs=None, roles=None
):
    generator = torch.Generator().manual_seed(seed)
    return sample_states(
        layout, observed, batch_size=batch, num_visible_tokens=num_visible_tokens,
        alpha=alpha, inputs=inputs, roles=roles, generator=generator,
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


frequencies = st.floats(0.01, 1)


@settings(max_examples=200, deadline=None)
@given(sizes=grids, visible=st.integers(1, 60), seed=st.integers(0, 10**6), data=st.data())
def test_roles_are_of_entire_modalities_and_leave_something_to_see_and_to_predict(
    sizes, visible, seed, data
):
    layout = layout_of(sizes)
    rng = np.random.default_rng(seed)
    observed = torch.from_numpy(rng.random((3, layout.count)) < data.draw(st.floats(0, 1)))
    names = sorted(data.draw(st.sets(st.sampled_from(list(layout.grids)), min_size=1)))
    roles = ModalityRoles(
        unused=data.draw(frequencies), encoded=data.draw(frequencies),
        decoded=data.draw(frequencies), both=data.draw(st.just(0.0) | frequencies),
    )  # fmt: skip
    states = draw(
        layout, observed, num_visible_tokens=visible, seed=seed, inputs=tuple(names), roles=roles,
        alpha=data.draw(st.sampled_from([0.1, 1.0])),
    )  # fmt: skip
    assert torch.equal(states == TokenState.ABSENT, ~observed)
    shown, masked = states == TokenState.VISIBLE, states == TokenState.MASKED
    assert not shown[:, ~layout.columns(names)].any()
    for row in range(3):
        inputs = {n: int(observed[row, layout.slices[n]].sum()) for n in names}
        smallest = min([visible, *(c for c in inputs.values() if c)])
        count = int(shown[row].sum())
        if any(inputs.values()):
            assert smallest <= count <= visible
        withheld = observed[row] & ~shown[row]
        assert bool(masked[row].any()) == bool(withheld.any()), "something to predict"
        kinds = {s: set(states[row, part].tolist()) for s, part in layout.slices.items()}
        for kind in kinds.values():
            assert not {TokenState.MASKED, TokenState.UNUSED} <= kind, "decoded, or not"
        encoded = sum(inputs[n] for n in names if TokenState.VISIBLE in kinds[n])
        assert count in (visible, encoded), "the budget, or all of the encoded modalities"


def test_default_roles_change_no_number():
    layout = layout_of([(3, 3), (4, 4), (2, 5)])
    keys = ["a", "b", "c"]
    for generator in (lambda: torch.Generator().manual_seed(1), lambda: PerSample(keys, 1, 2)):
        without, default = (
            sample_states(
                layout, None, batch_size=3, num_visible_tokens=9, alpha=0.3, roles=roles,
                generator=generator(),
            )
            for roles in (None, ModalityRoles())
        )  # fmt: skip
        assert torch.equal(without, default)


def test_roles_are_as_frequent_as_declared():
    """Of six modalities, so that few samples need a role changed for want of input or target."""
    layout = layout_of([(2, 2)] * 6)
    roles = ModalityRoles(unused=1, encoded=2, decoded=3, both=4)
    states = draw(layout, None, num_visible_tokens=8, seed=0, batch=6000, alpha=30.0, roles=roles)
    by_modality = states.reshape(-1, 6, 4)
    shown = (by_modality == TokenState.VISIBLE).any(dim=2)
    masked = (by_modality == TokenState.MASKED).any(dim=2)
    rates = [(~shown & ~masked), (shown & ~masked), (~shown & masked), (shown & masked)]
    # A modality that is encoded and decoded may be drawn in full, or not at all.
    assert [float(r.double().mean()) for r in rates][:1] == pytest.approx([0.1], abs=0.02)
    assert float((rates[0] | rates[1]).double().mean()) == pytest.approx(0.3, abs=0.04)
    assert float((rates[2] | rates[3]).double().mean()) == pytest.approx(0.7, abs=0.04)


def test_a_sample_alone_has_the_roles_that_it_has_in_a_batch():
    layout = layout_of([(3, 3)] * 4)
    roles = ModalityRoles(unused=1, encoded=1, decoded=1, both=1)

    def states(*keys: str) -> torch.Tensor:
        return sample_states(
            layout, None, batch_size=len(keys), num_visible_tokens=9, roles=roles,
            generator=PerSample(keys, 4),
        )  # fmt: skip

    assert torch.equal(states("a", "b")[1:], states("b"))


@pytest.mark.parametrize(
    "roles",
    [
        {"unused": -1.0},
        {"both": float("nan")},
        {"encoded": 1.0, "both": 0.0},
        {"decoded": 1.0, "both": 0.0},
    ],
)
def test_impossible_roles_are_refused(roles):
    with pytest.raises(ConfigError, match=r"masking\.roles"):
        ModalityRoles(**roles).validate()


@settings(max_examples=150, deadline=None)
@given(
    sizes=grids, share=st.floats(0.01, 1), visible=st.integers(1, 30), seed=st.integers(0, 10**6)
)
def test_decoded_tokens_are_a_share_masked_ones_first(sizes, share, visible, seed):
    layout = layout_of(sizes)
    rng = np.random.default_rng(seed)
    observed = torch.from_numpy(rng.random((3, layout.count)) < 0.8)
    before = draw(layout, observed, num_visible_tokens=visible, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    after, rows = sample_decoded(layout, before, share, generator)
    was, now = before == TokenState.MASKED, after == TokenState.MASKED
    assert torch.equal(after[~was], before[~was]), "only masked tokens change"
    assert (after[was & ~now] == TokenState.UNUSED).all()
    for name, part in layout.slices.items():
        count = part.stop - part.start
        assert rows[name].shape == (3, int(np.ceil(share * count)))
        assert (rows[name].diff(dim=1) > 0).all(), "each once, in ascending order"
        in_rows = torch.zeros(3, count, dtype=torch.bool).scatter(1, rows[name], True)
        assert not (now[:, part] & ~in_rows).any()
        expected = was[:, part].sum(dim=1).clamp(max=rows[name].shape[1])
        assert torch.equal(now[:, part].sum(dim=1), expected)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_impossible_shares_of_decoded_tokens_are_refused(share):
    layout = layout_of([(2, 2)])
    states = draw(layout, None, num_visible_tokens=1, seed=0)
    with pytest.raises(ConfigError, match=r"masking\.decoded"):
        sample_decoded(layout, states, share, None)
