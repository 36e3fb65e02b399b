"""Speed changed nothing: the naive implementation gives the same numbers."""

from __future__ import annotations

import made
import naive
import pytest
import torch

from multimae_eo.network.config import RuntimePolicy
from multimae_eo.network.masking import sample_states
from multimae_eo.train.objective import Objective


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "together"])
def test_outputs_losses_and_gradients_agree(together):
    source = made.MadeSource(made.six_modalities(), chips=4, size=56)
    model = made.make_model(source, encoder="nano", tasks=made.seven_tasks())
    model.set_runtime(RuntimePolicy(group_decoders=together))
    patches = model.patchify(source.batch(source.keys))
    states = sample_states(patches.layout, None, batch_size=4, num_visible_tokens=49)
    fast = model(patches, states, num_visible_tokens=49)
    plain = naive.predict(model, patches, states)
    for name, said in plain.items():
        assert relative(fast.predictions[name], said) < 1e-5, name
    ours = Objective(model.tasks)(fast)
    theirs = naive.losses(model, patches, states, plain)
    for name, value in theirs.items():
        assert relative(ours.by_task[name], value.detach()) < 1e-5, name
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(ours.total, list(parameters.values()))
    wanted = torch.autograd.grad(naive.total(model, theirs), list(parameters.values()))
    for name, a, b in zip(parameters, found, wanted, strict=True):
        # Of the attention's scores, keys' biases change nothing: their gradient is rounding.
        if not name.endswith(("qkv.bias", "kv.bias")):
            assert relative(a, b) < 1e-5 or float((a - b).abs().max()) < 1e-7, name


def test_naive_masks_show_exactly_the_budget():
    source = made.MadeSource(made.six_modalities(), chips=3, size=56)
    model = made.make_model(source, encoder="nano")
    layout = model.patchify(source.batch(source.keys)).layout
    states = naive.draw_states(layout, batch=3, num_visible_tokens=49, seed=0)
    assert (states == 1).sum(dim=1).tolist() == [49, 49, 49]
    assert (states == 2).sum(dim=1).tolist() == [layout.count - 49] * 3
