"""The converted reference checkpoint computes what the reference computed.

Fixtures hold normalised inputs, masks, encoder tokens, predictions, losses and gradient norms. The
small one was computed by ``tests/support/reference_model.py``, a plain second implementation, from
random parameters; where it lies beside the project, one recorded from the reference itself is used
as well, by which the plain implementation is checked, too. Feeding them needs identity statistics
and class ids as indices.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from multimae_eo.convert.reference import _rename, convert, read_checkpoint
from multimae_eo.modality import ModalitySet
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.normalize import Normalizer
from multimae_eo.network.tokens import TokenState, unpatchify
from multimae_eo.sample import Batch, Sample, collate
from multimae_eo.statistics import Statistics, moments_from
from multimae_eo.train.objective import Objective
from tests.support import reference_model
from tests.support.paths import SHARED

RECORDED = SHARED / "fixtures/reference_checkpoint/six_modalities"
FIXTURES = ["computed", *(["recorded"] if RECORDED.is_dir() else [])]
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Fixture:
    """A checkpoint and what was computed with it."""

    checkpoint: Path
    arrays: dict[str, np.ndarray[Any, Any]]
    shape: reference_model.Shape

    @property
    def rows(self) -> list[int]:
        return list(range(self.shape.samples))


@pytest.fixture(scope="module", params=FIXTURES)
def fixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    path, shape = tmp_path_factory.mktemp("parity") / "checkpoint-999.pth", reference_model.Shape()
    file = reference_model.FILE
    if request.param == "computed":
        reference_model.write_checkpoint(path)
    else:
        path, file = RECORDED / "checkpoint-999.pth", RECORDED / "activations.npz"
        shape = reference_model.Shape(size=56, width=192, depth=2, decoder_width=32, samples=4)
    with np.load(file, allow_pickle=False) as stored:
        arrays = {k: stored[k] for k in stored.files if not k.startswith("parameter/")}
    return Fixture(path, {k: as_float32(v) for k, v in arrays.items()}, shape)


def as_float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) if values.dtype == np.float16 else values


@pytest.fixture(scope="module")
def recorded(fixture) -> dict[str, np.ndarray]:
    return fixture.arrays


@pytest.fixture(scope="module")
def model(fixture) -> MultiMAE:
    """The converted model, made to take the fixture's already normalised numbers."""
    model = convert(fixture.checkpoint)
    config = replace(
        model.config,
        # The fixture's class map is already thinned to a quarter.
        inputs={
            n: replace(c, stride=1, size=c.size // c.stride) for n, c in model.config.inputs.items()
        },
    )
    identity = Statistics(model.modalities)
    for name, levels in identity.moments.items():
        ones = np.ones(model.modalities[name].channels)
        for level in levels:
            levels[level] = moments_from(ones * 0, ones)
    model.config = config
    model.normalizer = Normalizer(model.modalities, config, identity)
    return model


def batch_of(recorded: dict[str, np.ndarray], modalities: ModalitySet, rows: list[int]) -> Batch:
    samples = []
    for row in rows:
        pixels = {}
        for name, modality in modalities.items():
            values = recorded[f"input/{name}"][row]
            if modality.categorical:
                values = np.array(modality.class_ids)[values][None].astype(np.uint8)
            pixels[name] = values
        levels = {
            n: replace(Sample(key="", pixels={}).calibration_of(m), level="l2a")
            for n, m in modalities.items()
            if m.levels
        }
        samples.append(Sample(key=str(row), pixels=pixels, calibration=levels))
    return collate(samples, modalities)


def states_of(recorded: dict[str, np.ndarray], modalities: ModalitySet, rows: list[int]) -> Tensor:
    """The reference marks 0 = visible, 1 = masked."""
    masks = np.concatenate([recorded[f"mask/{n}"][rows] for n in modalities], axis=1)
    return torch.from_numpy(np.where(masks == 0, TokenState.VISIBLE, TokenState.MASKED)).to(
        torch.int8
    )


def relative_error(ours: Tensor, theirs: np.ndarray) -> float:
    expected = torch.from_numpy(np.asarray(theirs))
    return float((ours - expected).abs().max() / expected.abs().max())


def test_the_committed_fixture_is_what_its_script_computes():
    """From the parameters, inputs and masks in the file; and these are those of the seed."""
    made = reference_model.make_fixture(reference_model.Shape())
    with np.load(reference_model.FILE, allow_pickle=False) as stored:
        assert set(stored.files) == set(made)
        for name, values in made.items():
            given = stored[name].astype(values.dtype)
            if values.dtype.kind in "iu" or name.startswith(("parameter/", "input/")):
                np.testing.assert_array_equal(given, values, err_msg=name)
            else:
                np.testing.assert_allclose(given, values, rtol=2e-5, atol=2e-6, err_msg=name)
    assert os.path.getsize(reference_model.FILE) < 1_000_000


def test_the_plain_implementation_equals_the_fixture(fixture):
    """Of the recording this checks the second implementation, which computed the other fixture."""
    weights, _ = read_checkpoint(fixture.checkpoint)
    inputs = {n: torch.from_numpy(fixture.arrays[f"input/{n}"]) for n in reference_model.CHANNELS}
    masks = {n: torch.from_numpy(fixture.arrays[f"mask/{n}"]) for n in reference_model.CHANNELS}
    got = reference_model.computed(weights, inputs, masks, fixture.shape)
    for name, values in got.items():
        expected = fixture.arrays[name]
        if name == "encoder_tokens":
            order = fixture.arrays["ids_keep"].argsort(axis=1)[:, :, None]
            visible = np.take_along_axis(expected[:, :-1], order, axis=1)
            expected = np.concatenate([visible, expected[:, -1:]], axis=1)
        assert relative_error(torch.from_numpy(values), expected) < TOLERANCE, name


def test_encoder_tokens_and_every_prediction_equal_the_recorded(model, recorded, fixture):
    rows = fixture.rows
    grid = (fixture.shape.grid, fixture.shape.grid)
    patches = model.patchify(batch_of(recorded, model.modalities, rows))
    states = states_of(recorded, model.modalities, rows)
    with torch.no_grad():
        tokens, slots = model.encode_states(patches, states)
        found = model(patches, states)
    # The reference keeps its visible tokens in random order; ours are ascending.
    order = torch.from_numpy(recorded["ids_keep"]).argsort(dim=1)
    expected = recorded["encoder_tokens"][:, :-1]
    expected = np.take_along_axis(expected, order.numpy()[:, :, None], axis=1)
    assert slots.token.tolist() == np.sort(recorded["ids_keep"], axis=1).tolist()
    assert relative_error(tokens[:, :-1], expected) < TOLERANCE
    assert relative_error(tokens[:, -1:], recorded["encoder_tokens"][:, -1:]) < TOLERANCE
    for task in model.tasks:
        patch = model.config.inputs[task.modality].patch
        image = unpatchify(found.predictions[task.name], grid, patch)
        assert relative_error(image, recorded[f"prediction/{task.name}"]) < TOLERANCE, task.name


def test_every_loss_and_every_gradient_norm_equal_the_recorded(model, recorded, fixture):
    rows = fixture.rows
    patches = model.patchify(batch_of(recorded, model.modalities, rows))
    model.zero_grad()
    losses = Objective(model.tasks)(model(patches, states_of(recorded, model.modalities, rows)))
    losses.total.backward()
    for name, loss in losses.by_task.items():
        assert float(loss) == pytest.approx(float(recorded[f"loss/{name}"]), rel=TOLERANCE), name
    assert float(losses.total.detach()) == pytest.approx(
        float(recorded["loss/total"]), rel=TOLERANCE
    )
    gradients = dict(model.named_parameters())
    norms = {k.removeprefix("grad_norm/"): v for k, v in recorded.items() if "grad_norm/" in k}
    assert len(norms) == len(gradients)
    for theirs, norm in norms.items():
        gradient = gradients[_rename(theirs)].grad
        assert gradient is not None, theirs
        assert float(gradient.norm()) == pytest.approx(float(norm), rel=TOLERANCE), theirs


@pytest.mark.parametrize("rows", [[2], [2, 0], [1, 1, 2, 0, 1]])
def test_a_sample_does_not_depend_on_its_batch(model, recorded, rows, fixture):
    patches = model.patchify(batch_of(recorded, model.modalities, rows))
    with torch.no_grad():
        found = model(patches, states_of(recorded, model.modalities, rows))
    for task in model.tasks:
        patch = model.config.inputs[task.modality].patch
        grid = (fixture.shape.grid, fixture.shape.grid)
        image = unpatchify(found.predictions[task.name], grid, patch)
        expected = recorded[f"prediction/{task.name}"][rows]
        assert relative_error(image, expected) < TOLERANCE, task.name


def test_explicit_masks_may_differ_in_count_between_samples(model, recorded, fixture):
    """Defect 6: the reference keeps the sum over the batch; each sample must keep its own."""
    rows = [0, 1, 2]
    states = states_of(recorded, model.modalities, rows)
    visible = states == TokenState.VISIBLE
    most = fixture.shape.grid**2
    counts = (most, most // 2, 1)
    for row, keep in enumerate(counts):
        surplus = visible[row].nonzero()[:, 0][keep:]
        states[row, surplus] = TokenState.MASKED
    patches = model.patchify(batch_of(recorded, model.modalities, rows))
    with torch.no_grad():
        together = model(patches, states)
        tokens, slots = model.encode_states(patches, states)
        assert slots.attention_mask is not None
        assert slots.attention_mask.sum(dim=1).tolist() == list(counts)
        for row in rows:
            alone_patches = model.patchify(batch_of(recorded, model.modalities, [row]))
            alone = model(alone_patches, states[row : row + 1])
            tokens_alone, slots_alone = model.encode_states(alone_patches, states[row : row + 1])
            count = slots_alone.count
            assert torch.allclose(tokens[row, :count], tokens_alone[0, :count], atol=2e-5)
            for task in model.tasks:
                assert torch.allclose(
                    together.predictions[task.name][row], alone.predictions[task.name][0], atol=2e-5
                ), task.name
