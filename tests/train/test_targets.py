"""Further targets: patch-normalised values and random projections, beside the values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multimae_eo.catalog import make_class_map, modality
from multimae_eo.errors import ConfigError
from multimae_eo.modality import ModalitySet, Task, validate_tasks
from multimae_eo.train.random_projection import (
    TEMPERATURE,
    patch_discrimination,
    projection_matrix,
)
from multimae_eo.train.recipe import parse_recipe

DATA = ModalitySet(
    [modality("rgb"), modality("elevation"), make_class_map("c", class_map_name="esri_lulc")]
)


def test_the_loss_equals_the_formula_written_out():
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(2, 5, 64, generator=generator)
    target = torch.randn(2, 5, 64, generator=generator)
    observed = torch.ones(2, 5, dtype=torch.bool)
    observed[1, 3] = False
    loss = patch_discrimination(predicted, target, observed).double().numpy()
    p, t = predicted.double().numpy(), target.double().numpy()
    p, t = (x / np.linalg.norm(x, axis=2, keepdims=True) for x in (p, t))
    for b in range(2):
        for i in range(5):
            if not observed[b, i]:
                continue
            terms = [np.exp(p[b, i] @ t[b, j] / TEMPERATURE) for j in range(5) if observed[b, j]]
            expected = np.log(sum(terms)) - p[b, i] @ t[b, i] / TEMPERATURE
            assert loss[b, i] == pytest.approx(expected, rel=1e-4)


def test_a_constant_prediction_has_the_log_of_the_number_of_patches_and_the_target_less():
    target = torch.randn(3, 7, 64, generator=torch.Generator().manual_seed(1))
    observed = torch.ones(3, 7, dtype=torch.bool)
    constant = patch_discrimination(torch.zeros_like(target), target, observed)
    np.testing.assert_allclose(constant.numpy(), np.log(7), rtol=1e-6)
    assert float(patch_discrimination(target, target, observed).max()) < 0.5 * np.log(7)


def test_the_loss_is_float32_and_finite_where_nothing_was_observed():
    target = torch.randn(2, 4, 64)
    observed = torch.zeros(2, 4, dtype=torch.bool)
    predicted = torch.randn(2, 4, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = patch_discrimination(predicted, target, observed)
    assert loss.dtype == torch.float32
    assert bool(loss.isfinite().all())
    (loss * 0).sum().backward()
    assert bool(predicted.grad.isfinite().all())


def test_projections_are_fixed_and_of_each_modality():
    first = projection_matrix("rgb", 192)
    assert first.shape == (192, 64)
    assert torch.equal(first, projection_matrix("rgb", 192))
    assert not torch.equal(first, projection_matrix("ired", 192))
    # Distances are kept: a projection of standard normal values has unit variance.
    projected = torch.randn(4000, 192, generator=torch.Generator().manual_seed(0)) @ first
    assert float(projected.var()) == pytest.approx(1, rel=0.1)


def test_further_targets_are_tasks_of_continuous_modalities_at_their_decoders():
    plain = parse_recipe({}).resolve(DATA)[1]
    assert [t.name for t in plain] == ["rgb", "elevation", "c"]
    options = ["--targets.patch_normalised=0.5", "--targets.random_projection=0.2"]
    tasks = parse_recipe({}, options).resolve(DATA)[1]
    assert tasks[:3] == plain
    further = {t.name: t for t in tasks[3:]}
    assert set(further) == {
        "rgb_patch_normalised", "rgb_projection",
        "elevation_patch_normalised", "elevation_projection",
    }  # fmt: skip
    normalised, projected = further["rgb_patch_normalised"], further["rgb_projection"]
    assert (normalised.decoder, normalised.weight, normalised.loss) == ("rgb", 0.5, "mse")
    assert (projected.decoder, projected.weight, projected.loss) == ("rgb", 0.2, "info_nce")
    assert [t.name for t in tasks if t.reconstructs] == ["rgb", "elevation", "c"]


def test_a_named_tasks_loss_and_decoder_are_those_of_its_further_targets():
    record = {"tasks": {"height": {"modality": "elevation", "loss": "l1"}}}
    tasks = parse_recipe(record, ["--targets.patch_normalised=1"]).resolve(DATA)[1]
    assert tasks[1] == Task(
        name="height_patch_normalised", modality="elevation", loss="l1", patch_normalise=True,
        decoder="height",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task(name="a", modality="rgb", decoder="rbg"), r"no task 'rbg'; did you mean 'rgb'"),
        (Task(name="a", modality="rgb", decoder="elevation"), "must be a task of the modality"),
        (Task(name="a", modality="rgb", decoder="norm"), "must be a task of the modality"),
        (Task(name="a", modality="c", loss="info_nce"), "does not suit the categorical"),
    ],
)
def test_tasks_that_do_not_fit_together_are_refused(task, message):
    tasks = [
        Task(name="rgb", modality="rgb"),
        Task(name="elevation", modality="elevation"),
        Task(name="norm", modality="rgb", patch_normalise=True, decoder="rgb"),
    ]
    with pytest.raises(ConfigError, match=message):
        validate_tasks([*tasks, task], DATA)


def test_a_patch_normalised_projection_is_refused():
    with pytest.raises(ConfigError, match="leave out patch_normalise"):
        Task(name="a", modality="rgb", loss="info_nce", patch_normalise=True)
