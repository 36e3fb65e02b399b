"""Decoders computed together say what each says alone, and learn the same."""

from __future__ import annotations

import pytest
import torch

from multimae_eo.modality import Task
from multimae_eo.network.config import DecoderConfig, RuntimePolicy
from multimae_eo.network.decoder_group import groups
from multimae_eo.network.masking import sample_decoded, sample_states
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.tokens import TokenState
from multimae_eo.sample import collate
from multimae_eo.train.objective import Objective


def outcome(model, batch, *, together: bool, num_visible_tokens: int):
    model.set_runtime(RuntimePolicy(group_decoders=together))
    model.zero_grad()
    patches = model.patchify(batch)
    present = patches.observed
    if present is None:
        present = torch.ones(len(batch), patches.layout.count, dtype=torch.bool)
    generator = torch.Generator().manual_seed(3)
    states = sample_states(
        patches.layout, present, batch_size=len(batch), num_visible_tokens=num_visible_tokens,
        alpha=1.0, generator=generator,
    )  # fmt: skip
    # Counts that differ between samples, too: the context is then partly padding.
    states[0, (states[0] == TokenState.VISIBLE).nonzero()[0]] = int(TokenState.MASKED)
    made = model(patches, states)
    losses = Objective(model.tasks)(made)
    losses.total.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return made.predictions, losses.total.detach(), gradients


@pytest.mark.parametrize("visible", [5, 12])
def test_predictions_losses_and_gradients_agree(make_model, make_sample, modalities, visible):
    model = make_model()
    batch = collate(
        [make_sample(0), make_sample(1, names=("rgb", "elevation")), make_sample(2)], modalities
    )
    apart = outcome(model, batch, together=False, num_visible_tokens=visible)
    joined = outcome(model, batch, together=True, num_visible_tokens=visible)
    for name, said in apart[0].items():
        torch.testing.assert_close(joined[0][name], said, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(joined[1], apart[1], rtol=1e-6, atol=1e-6)
    assert joined[2].keys() == apart[2].keys()
    for name, gradient in apart[2].items():
        torch.testing.assert_close(joined[2][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_only_equal_grids_are_joined(make_model, make_sample, modalities):
    model = make_model()
    layout = model.patchify(collate([make_sample(0)], modalities)).layout
    decoders = dict(model.decoders.items())
    assert groups(decoders, layout) == [["rgb", "elevation", "landcover", "norm_rgb"]]
    grids = {**layout.grids, "landcover": (2, 2)}
    assert groups(decoders, type(layout)(grids)) == [
        ["rgb", "elevation", "norm_rgb"],
        ["landcover"],
    ]


def test_some_tasks_only(make_model, make_sample, modalities):
    model = make_model()
    model.set_runtime(RuntimePolicy(group_decoders=True))
    patches = model.patchify(collate([make_sample(0)], modalities))
    states = torch.full((1, patches.layout.count), int(TokenState.MASKED), dtype=torch.int8)
    states[0, :6] = int(TokenState.VISIBLE)
    with torch.no_grad():
        all_tasks = model(patches, states).predictions
        some = model(patches, states, tasks=["landcover", "rgb"]).predictions
    assert list(some) == ["landcover", "rgb"]
    for name, said in some.items():
        torch.testing.assert_close(said, all_tasks[name], rtol=1e-5, atol=1e-6)


def drawn(model, batch, share: float):
    """Patches, states and the tokens to decode."""
    patches = model.patchify(batch)
    generator = torch.Generator().manual_seed(3)
    states = sample_states(
        patches.layout, patches.observed, batch_size=len(batch), num_visible_tokens=9,
        generator=generator,
    )  # fmt: skip
    return patches, *sample_decoded(patches.layout, states, share, generator)


@pytest.mark.parametrize("together", [False, True])
def test_without_self_attention_a_decoded_token_is_as_among_all(
    make_model, make_sample, modalities, together
):
    """Queries attend to visible tokens each by itself; only later blocks join them."""
    model = make_model(decoder=DecoderConfig(width=16, depth=0, heads=2))
    model.set_runtime(RuntimePolicy(group_decoders=together))
    batch = collate([make_sample(0), make_sample(1, names=("rgb", "elevation"))], modalities)
    patches, states, rows = drawn(model, batch, 0.3)
    with torch.no_grad():
        full = model(patches, states).predictions
        part = model(patches, states, decoded=rows).predictions
    for task in model.tasks:
        index = rows[task.modality]
        assert index.shape[1] == 5
        chosen = torch.zeros(full[task.name].shape[:2], dtype=torch.bool).scatter(1, index, True)
        torch.testing.assert_close(part[task.name][chosen], full[task.name][chosen])
        assert (part[task.name][~chosen] == 0).all()


def test_decoders_agree_on_a_share_of_tokens_together_and_one_by_one(
    make_model, make_sample, modalities
):
    model = make_model()
    batch = collate([make_sample(0), make_sample(1, names=("rgb",)), make_sample(2)], modalities)
    patches, states, rows = drawn(model, batch, 0.5)
    outcomes = []
    for together in (False, True):
        model.set_runtime(RuntimePolicy(group_decoders=together))
        model.zero_grad()
        result = model(patches, states, decoded=rows)
        Objective(model.tasks)(result).total.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        outcomes.append((result.predictions, gradients))
    for name, values in outcomes[0][0].items():
        torch.testing.assert_close(outcomes[1][0][name], values, rtol=1e-5, atol=1e-6)
    for name, gradient in outcomes[0][1].items():
        torch.testing.assert_close(outcomes[1][1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_all_tokens_decoded_by_index_are_all_tokens(make_model, make_sample, modalities):
    model = make_model()
    batch = collate([make_sample(0), make_sample(2)], modalities)
    patches, states, rows = drawn(model, batch, 1.0)
    with torch.no_grad():
        full = model(patches, states).predictions
        part = model(patches, states, decoded=rows).predictions
    for name, values in full.items():
        assert torch.equal(part[name], values), name


def test_a_quarter_of_the_tokens_takes_less_than_half_of_the_decoders_products(
    make_model, make_sample, modalities
):
    from torch.utils.flop_counter import FlopCounterMode

    model = make_model()
    patches, states, rows = drawn(model, collate([make_sample(0)] * 2, modalities), 0.25)
    counts = []
    for decoded in (None, rows):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(patches, states, decoded=decoded)
        per_part = counter.get_flop_counts()
        counts.append(sum(sum(per_part[f"MultiMAE.decoders.{n}"].values()) for n in ("rgb",)))
    assert 0 < counts[1] < 0.5 * counts[0]


SHARED = (
    Task(name="rgb", modality="rgb"),
    Task(name="landcover", modality="landcover", loss="cross_entropy"),
    Task(name="rgb_normal", modality="rgb", patch_normalise=True, decoder="rgb"),
    Task(name="rgb_projection", modality="rgb", loss="info_nce", decoder="rgb"),
)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_tasks_with_one_decoder_are_its_outputs_side_by_side(
    make_model, make_sample, modalities, statistics, share
):
    torch.manual_seed(0)
    model = MultiMAE(modalities, SHARED, make_model().config, statistics)
    assert set(model.decoders) == {"rgb", "landcover"}
    batch = collate([make_sample(0), make_sample(1)], modalities)
    patches, states, rows = drawn(model, batch, share)
    outcomes = []
    for together in (False, True):
        model.set_runtime(RuntimePolicy(group_decoders=together))
        made = model(patches, states, decoded=None if share == 1 else rows)
        assert list(made.predictions) == [t.name for t in SHARED]
        assert [made.predictions[t.name].shape[2] for t in SHARED] == [48, 44, 48, 64]
        losses = Objective(model.tasks)(made)
        assert all(float(v) > 0 for v in losses.by_task.values())
        outcomes.append(made.predictions)
        one = model(patches, states, tasks=["rgb_normal"])
        assert list(one.predictions) == ["rgb_normal"]
    for name, values in outcomes[0].items():
        torch.testing.assert_close(outcomes[1][name], values, rtol=1e-5, atol=1e-6)


def test_further_targets_are_no_reconstruction(make_model, make_sample, modalities, statistics):
    model = MultiMAE(modalities, SHARED, make_model().config, statistics).eval()
    images = model.reconstruct(collate([make_sample(0)], modalities), ["landcover"], samples=2)
    assert set(images) == {"rgb", "landcover"}
    assert images["rgb"].mean.shape == (1, 3, 16, 16)
