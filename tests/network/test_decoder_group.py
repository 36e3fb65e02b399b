"""Decoders computed together say what each says alone, and learn the same."""

from __future__ import annotations

import pytest
import torch

from multimae_eo.network.config import RuntimePolicy
from multimae_eo.network.decoder_group import groups
from multimae_eo.network.masking import sample_states
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
