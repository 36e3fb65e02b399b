"""Dropped bands: what the encoder sees is what it sees of chips that lack them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.network.band_dropout import drop_bands
from multimae_eo.network.masking import all_visible
from multimae_eo.network.sample_rng import PerSample
from multimae_eo.sample import Sample, collate


def dropped_bands(patches, changed, name: str, bands: int) -> np.ndarray:
    """Which bands of a modality have other values than before where they are valid: (B, C)."""
    other = changed.values[name] != patches.values[name]
    if name in patches.valid:
        other &= patches.valid[name]
    return other.reshape(len(other), -1, bands, 16).any(dim=3).any(dim=1).numpy()


def without(sample: Sample, bands: np.ndarray) -> Sample:
    """The chip as of a sensor that lacks ``bands`` of rgb."""
    valid = np.ones(sample.pixels["rgb"].shape, dtype=bool)
    valid[bands] = False
    return replace(sample, valid={**sample.valid, "rgb": valid})


def test_the_encoder_gives_what_it_gives_for_chips_without_the_bands(
    make_model, make_sample, modalities
):
    model = make_model().eval()
    samples = [make_sample(i) for i in range(6)]
    batch = collate(samples, modalities)
    patches = model.patchify(batch)
    changed = drop_bands(patches, modalities, 0.6, PerSample(batch.keys, 1))
    bands = dropped_bands(patches, changed, "rgb", 3)
    assert 0 < bands.sum() < bands.size
    lacking = collate([without(s, b) for s, b in zip(samples, bands, strict=True)], modalities)
    absent = model.patchify(lacking)
    for name in modalities:
        assert torch.equal(changed.values[name], absent.values[name]), name
    states = all_visible(absent, modalities.names)
    with torch.no_grad():
        ours, _ = model.encode_states(changed, states)
        theirs, _ = model.encode_states(absent, states)
    assert torch.equal(ours, theirs)


def test_tokens_without_a_valid_pixel_in_the_remaining_bands_are_not_observed(
    make_model, make_sample, modalities
):
    """As for a chip without the band; targets keep the pixels."""
    model = make_model()
    valid = np.ones((3, 16, 16), dtype=bool)
    valid[1:, :8] = False
    samples = [replace(make_sample(i), valid={"rgb": valid}) for i in range(8)]
    batch = collate(samples, modalities)
    patches = model.patchify(batch)
    changed = drop_bands(patches, modalities, 0.5, PerSample(batch.keys, 0))
    bands = dropped_bands(patches, changed, "rgb", 3)
    assert bands[:, 0].any()
    for row, sample in enumerate(samples):
        left = valid & ~bands[row][:, None, None]
        absent = model.patchify(collate([replace(sample, valid={"rgb": left})], modalities))
        assert torch.equal(changed.observed[row], absent.observed[0])
    assert torch.equal(changed.valid["rgb"], patches.valid["rgb"])


@settings(max_examples=40, deadline=None)
@given(probability=st.floats(0, 1), seed=st.integers(0, 10**6), first=st.booleans())
def test_a_band_always_remains(patches_of, modalities, probability, seed, first):
    """Of those that a chip has: here all three, or the first only."""
    patches = patches_of(first)
    keys = [f"chip-{i}" for i in range(4)]
    changed = drop_bands(patches, modalities, probability, PerSample(keys, seed))
    kept = ~dropped_bands(patches, changed, "rgb", 3)
    assert kept[:, 0].all() if first else kept.any(axis=1).all()
    for name in ("elevation", "landcover"):
        assert torch.equal(changed.values[name], patches.values[name])
    if probability == 0:
        assert torch.equal(changed.values["rgb"], patches.values["rgb"])
    if probability == 1 and not first:
        assert (kept.sum(axis=1) == 1).all()


@pytest.fixture(scope="module")
def patches_of(modalities, statistics, make_sample):
    from multimae_eo.network.config import InputConfig, ModelConfig
    from multimae_eo.network.normalize import Normalizer

    inputs = {n: InputConfig(size=16, patch=4) for n in modalities}
    normalizer = Normalizer(modalities, ModelConfig(inputs=inputs), statistics)
    samples = [make_sample(i) for i in range(4)]
    lacking = [without(s, np.array([False, True, True])) for s in samples]
    made = [normalizer(collate(s, modalities)) for s in (samples, lacking)]
    return lambda first: made[int(first)]


def test_a_chips_bands_do_not_depend_on_its_batch(make_model, make_sample, modalities):
    model = make_model()

    def values(*seeds: int) -> torch.Tensor:
        batch = collate([make_sample(i) for i in seeds], modalities)
        patches = model.patchify(batch)
        return drop_bands(patches, modalities, 0.5, PerSample(batch.keys, 3)).values["rgb"]

    assert torch.equal(values(0, 1, 2)[2:], values(2))
