"""What makes a step fast or small changes no number, and nothing asks the device for one."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multimae_eo.modality import Task
from multimae_eo.network.config import ModalityRoles, RuntimePolicy
from multimae_eo.network.masking import sample_states
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.sample_rng import PerSample
from multimae_eo.sample import collate
from multimae_eo.train.modules import PretrainModule
from multimae_eo.train.optim import build_adamw
from multimae_eo.train.recipe import Recipe


@pytest.fixture
def batch(make_sample, modalities):
    return collate([make_sample(i) for i in range(4)], modalities)


def module_of(model, **run: bool) -> PretrainModule:
    recipe = Recipe()
    recipe.masking.num_visible_tokens = 12
    for name, value in run.items():
        setattr(recipe.run, name, value)
    return PretrainModule(model, recipe, steps=1, warmup=0, lr=1e-3).train()


def gradients(module: PretrainModule, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    module.zero_grad()
    losses, _ = module._losses(batch, 0)
    losses.total.backward()
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    return losses.total.detach(), found


def test_recomputed_activations_give_the_same_gradients(make_model, batch):
    """And fewer of them are kept."""
    kept: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.numel()
        return tensor

    results = []
    for checkpointing in (False, True):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            results.append(
                gradients(module_of(make_model(), activation_checkpointing=checkpointing), batch)
            )
    assert torch.equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        assert torch.equal(gradient, results[1][1][name]), name
    assert kept[1] < 0.8 * kept[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")
@pytest.mark.parametrize(
    "together",
    [
        pytest.param(False, id="one by one"),
        pytest.param(True, id="together", marks=pytest.mark.release),
    ],
)
def test_compiled_is_eager(make_model, batch, together, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = make_model()
    model.set_runtime(RuntimePolicy(group_decoders=together))
    twin = copy.deepcopy(model)
    loss, wanted = gradients(module_of(model), batch)
    compiled_loss, found = gradients(module_of(twin, compile=True), batch)
    assert float(compiled_loss) == pytest.approx(float(loss), rel=1e-5)
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) < 1e-5, name


def test_half_precision_keeps_losses_norms_and_weights_in_float32(make_model, batch):
    module = module_of(make_model())
    seen: list[torch.dtype] = []
    for child in module.modules():
        if isinstance(child, torch.nn.LayerNorm):
            child.register_forward_hook(lambda m, given, out: seen.append(given[0].dtype))
    full, _ = module._losses(batch, 0)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = module._losses(batch, 0)
    losses.total.backward()
    assert set(seen) == {torch.float32}
    assert {v.dtype for v in (losses.total, *losses.by_task.values())} == {torch.float32}
    assert {p.grad.dtype for p in module.parameters() if p.grad is not None} == {torch.float32}
    assert losses.total.item() == pytest.approx(full.total.item(), rel=2e-2)


class Asked(TorchDispatchMode):
    """Counts the numbers that are fetched from tensors."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_asks_the_device_for_no_number(make_model, batch):
    """A fetched number makes the host wait for the device."""
    module = module_of(make_model())
    optimizer = build_adamw(module, module.recipe.optim, lr=1e-3)
    with Asked() as asked:
        losses, _ = module._losses(batch, 0)
        losses.total.backward()
        optimizer.step()
        assert asked.count == 0
        losses.total.item()
        assert asked.count == 1, "it would have been seen"


def test_a_samples_mask_does_not_depend_on_its_batch(make_model, batch, make_sample, modalities):
    module = module_of(make_model())
    patches = module.model.patchify(batch)
    whole, _ = module.draw(patches, batch.keys, 3)
    for i in range(4):
        alone = collate([make_sample(i)], modalities)
        states, _ = module.draw(module.model.patchify(alone), alone.keys, 3)
        assert torch.equal(states[0], whole[i])
    other, _ = module.draw(patches, batch.keys, 4)
    assert not torch.equal(other, whole), "each epoch has its own"


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_per_sample_gammas_have_their_mean_and_variance(alpha):
    """Mean and variance of a Gamma(α, 1) are both α; 60,000 draws."""
    drawn = PerSample([f"chip-{i}" for i in range(6000)], 7).gamma(alpha, 10)
    assert float(drawn.min()) >= 0
    assert float(drawn.mean()) == pytest.approx(alpha, rel=0.03)
    assert float(drawn.var()) == pytest.approx(alpha, rel=0.06)
    neighbours = torch.corrcoef(drawn.T[:2])[0, 1]
    assert abs(float(neighbours)) < 0.05


def test_per_sample_numbers_are_uniform_and_never_repeat():
    draws = PerSample(["a", "b"], 0, 1)
    first, second = draws.rand(4000), draws.rand(4000)
    together = torch.cat([first, second], dim=1)
    assert float(together.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(together.max()) < 1.0
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(PerSample(["b"], 0, 1).rand(4000)[0], first[1])


def test_states_drawn_per_sample_show_exactly_the_budget(make_model, batch):
    layout = make_model().patchify(batch).layout
    generator = PerSample(batch.keys, 0)
    for alpha in (0.01, 1.0, 30.0):
        states = sample_states(
            layout, None, batch_size=4, num_visible_tokens=13, alpha=alpha, generator=generator
        )
        assert (states == 1).sum(dim=1).tolist() == [13] * 4


def all_options(model: MultiMAE) -> PretrainModule:
    """A module with every option of masking and of targets."""
    further = (
        Task(name="rgb_normal", modality="rgb", patch_normalise=True, decoder="rgb", weight=0.5),
        Task(name="rgb_projection", modality="rgb", loss="info_nce", decoder="rgb", weight=0.5),
    )
    torch.manual_seed(0)
    with_targets = MultiMAE(
        model.modalities, (*model.tasks, *further), model.config, model.statistics
    )
    module = module_of(with_targets)
    masking = module.recipe.masking
    masking.roles = ModalityRoles(unused=1, encoded=1, decoded=1, both=1)
    masking.band_dropout, masking.decoded = 0.3, 0.5
    return module


def test_a_step_with_every_option_reaches_every_parameter_and_asks_for_no_number(make_model, batch):
    module = all_options(make_model())
    with Asked() as asked:
        losses, reconstruction = module._losses(batch, 0)
        losses.total.backward()
    assert asked.count == 0
    assert bool(losses.total.isfinite())
    assert {n for n, p in module.named_parameters() if p.grad is None} == set()
    assert reconstruction.patches.values["rgb"].ne(0).all(dim=2).any(), "targets have all bands"


def test_validation_is_of_all_bands_and_tokens(make_model, batch):
    """With one set of roles, its losses are those of a module without the options."""
    from multimae_eo.train.modules import _VALIDATION

    module = module_of(make_model())
    plain, _ = module._losses(batch, _VALIDATION)
    module.recipe.masking.band_dropout, module.recipe.masking.decoded = 0.3, 0.2
    with_options, _ = module._losses(batch, _VALIDATION)
    assert torch.equal(plain.total, with_options.total)
    in_training, _ = module._losses(batch, 0)
    assert not torch.equal(in_training.total, with_options.total)
