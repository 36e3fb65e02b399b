"""Interpolation in time: against a pixel-by-pixel reference, and as what decoders start from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo import MultiMAE
from multimae_eo.modality import Task
from multimae_eo.network.config import ModelConfig
from multimae_eo.network.time_interpolation import interpolated_tokens, time_neighbours
from multimae_eo.network.tokens import TokenState
from multimae_eo.sample import collate
from multimae_eo.sources.phenology import SeriesOptions, SyntheticSeries
from tests.support.series_model import series_model

SOURCE = SyntheticSeries(6, 8, options=SeriesOptions(dates=5, clouds=0.6, radar=True))


def model(*, interpolate: bool, patch_normalised: bool = False) -> MultiMAE:
    more = [Task(name="more", modality="s2", patch_normalise=True, decoder="s2")]
    return series_model(SOURCE, *(more if patch_normalised else []), interpolate=interpolate)


def batch():
    return collate([SOURCE.read(i) for i in range(3)], SOURCE.modalities)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_neighbours_are_those_of_a_reference_in_numpy(data):
    count = data.draw(st.integers(1, 6))
    days = np.sort(data.draw(st.lists(st.integers(0, 40), min_size=count, max_size=count)))
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    values = np.random.default_rng(0).normal(size=count).astype(np.float32)
    near = time_neighbours(
        torch.tensor(values)[None], torch.tensor(valid)[None], torch.tensor(days)[None].float()
    )
    if not valid.any():
        assert not near.linear.any()
        assert not near.nearest.any()
        return
    seen = days[valid].astype(np.float64)
    at = np.flatnonzero(valid)
    for step in range(count):
        before, after = at[at <= step], at[at >= step]
        if len(before) and len(after) and days[before[-1]] < days[after[0]]:
            a, b = before[-1], after[0]
            w = (days[step] - days[a]) / (days[b] - days[a])
            expected = (1 - w) * values[a] + w * values[b]
        else:
            expected = values[before[-1]] if len(before) else values[after[0]]
        assert float(near.linear[0, step]) == pytest.approx(expected, abs=1e-5)
        distance = abs(days[at] - days[step]).min()
        assert float(near.nearest[0, step]) in values[at][abs(seen - days[step]) == distance]


def test_dates_that_a_chip_lacks_are_no_neighbours_and_have_none():
    values = torch.tensor([[1.0, 2.0, 9.0]])
    dates = torch.tensor([[18_000.0, 18_010.0, torch.nan]])
    near = time_neighbours(values, torch.ones(1, 3, dtype=torch.bool), dates)
    assert near.linear[0].tolist() == [1.0, 2.0, 0.0]
    assert not near.has_after[0, 2]
    assert near.days_before[0, 2] == near.days_after[0, 2] == 0


def test_chips_of_different_dates_have_finite_predictions_and_features():
    net = model(interpolate=True)
    sample = SOURCE.read(1)
    few = sample.at_dates({"s2": np.arange(5) < 2})
    patches = net.patchify(collate([SOURCE.read(0), few], SOURCE.modalities))
    states = torch.full((2, patches.layout.count), int(TokenState.MASKED), dtype=torch.int8)
    states[:, ::3] = int(TokenState.VISIBLE)
    assert all(t.isfinite().all() for t in interpolated_tokens(patches, states, "s2"))
    with torch.no_grad():
        assert all(p.isfinite().all() for p in net(patches, states).predictions.values())


def test_a_masked_token_is_interpolated_from_valid_pixels_of_visible_ones_only():
    net, chips = model(interpolate=True), batch()
    patches = net.patchify(chips)
    states = torch.full((3, patches.layout.count), int(TokenState.VISIBLE), dtype=torch.int8)
    part = patches.layout.slices["s2"]
    states[:, part.start + 8 : part.start + 12] = int(TokenState.MASKED)  # date 2, 4 tokens each
    linear, features = interpolated_tokens(patches, states, "s2")
    assert features.shape == (*linear.shape[:2], 2 * linear.shape[2] + 4)
    changed = dict(patches.values)
    changed["s2"] = changed["s2"].clone()
    changed["s2"][:, 8:12] = 77.0
    hidden = ~patches.valid["s2"]
    changed["s2"][hidden] = -55.0
    again, _ = interpolated_tokens(replace(patches, values=changed), states, "s2")
    assert torch.equal(linear, again)
    other = interpolated_tokens(patches, torch.full_like(states, int(TokenState.VISIBLE)), "s2")[0]
    assert not torch.equal(linear[:, 8:12], other[:, 8:12])


def test_an_untrained_model_predicts_the_interpolation_itself():
    net, chips = model(interpolate=True, patch_normalised=True), batch()
    patches = net.patchify(chips)
    states = torch.full((3, patches.layout.count), int(TokenState.VISIBLE), dtype=torch.int8)
    states[:, patches.layout.slices["s2"].start :][:, 4:12] = int(TokenState.MASKED)
    with torch.no_grad():
        predicted = net(patches, states).predictions
    linear, _ = interpolated_tokens(patches, states, "s2")
    assert torch.allclose(predicted["s2"], linear, atol=1e-5)
    assert predicted["more"].abs().max() > 1e-2
    assert predicted["elevation"].shape[1] == 4  # images have no dates


def test_without_the_option_a_model_is_as_before_and_so_is_its_record():
    plain, other = model(interpolate=False), model(interpolate=True)
    before, after = (m.config.to_dict()["decoder"] for m in (plain, other))
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert "interpolate" not in before
    assert after["interpolate"]
    assert ModelConfig.from_dict(other.config.to_dict()) == other.config
    assert ModelConfig.from_dict(plain.config.to_dict()) == plain.config
    assert not any("interpolation" in n for n, _ in plain.named_parameters())


def test_every_weight_has_a_gradient_with_and_without_series():
    net = model(interpolate=True).train()
    for chips in (
        batch(),
        collate([SOURCE.read(i).clearest() for i in range(3)], SOURCE.modalities),
    ):
        patches = net.patchify(chips)
        states = torch.full((3, patches.layout.count), int(TokenState.MASKED), dtype=torch.int8)
        states[:, ::2] = int(TokenState.VISIBLE)
        net.zero_grad()
        sum(p.sum() for p in net(patches, states).predictions.values()).backward()
        assert all(p.grad is not None for n, p in net.decoders.named_parameters())
