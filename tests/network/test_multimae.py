"""The model's promises: what may and may not change its outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from multimae_eo.errors import ConfigError, ContractError
from multimae_eo.network.masking import all_visible, sample_states
from multimae_eo.network.tokens import TokenState, unpatchify
from multimae_eo.sample import collate
from multimae_eo.train.objective import Objective


def drawn(patches, visible, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return sample_states(
        patches.layout, patches.observed, batch_size=patches.batch_size, num_visible_tokens=visible,
        generator=generator,
    )  # fmt: skip


def test_masked_pixels_cannot_change_the_encoders_output(make_model, make_sample, modalities):
    model = make_model()
    sample = make_sample(0)
    patches = model.patchify(collate([sample], modalities))
    states = drawn(patches, 12)
    tokens, _ = model.encode_states(patches, states)
    changed = {n: p.copy() for n, p in sample.pixels.items()}
    for name, pixels in changed.items():
        how = model.config.inputs[name]
        side = how.token_pixels
        cols = patches.layout.grids[name][1]
        part = states[0, patches.layout.slices[name]]
        for token in (part == TokenState.MASKED).nonzero()[:, 0].tolist():
            row, col = divmod(token, cols)
            area = pixels[:, row * side : (row + 1) * side, col * side : (col + 1) * side]
            area[...] = 10 if modalities[name].categorical else area[...] // 2 + 7
    other = model.patchify(collate([replace(sample, pixels=changed)], modalities))
    again, _ = model.encode_states(other, states)
    assert torch.equal(tokens, again)


def test_absent_modalities_give_neither_tokens_nor_loss(make_model, make_sample, modalities):
    model = make_model()
    whole, partial = make_sample(0), make_sample(2, names=("rgb",))
    batch = collate([whole, partial], modalities)
    patches = model.patchify(batch)
    states = drawn(patches, 12)
    elevation = patches.layout.slices["elevation"]
    assert (states[1, elevation] == TokenState.ABSENT).all()
    losses = Objective(model.tasks)(model(patches, states))
    assert {n: int(c) for n, c in losses.samples.items()} == {
        "rgb": 2, "elevation": 1, "landcover": 1, "norm_rgb": 2,
    }  # fmt: skip
    alone = model.patchify(collate([whole], modalities))
    by_itself = Objective(model.tasks)(model(alone, states[:1]))
    for name in ("elevation", "landcover"):
        assert float(losses.by_task[name]) == pytest.approx(
            float(by_itself.by_task[name]), rel=1e-5
        )


def test_a_modality_no_sample_has_gives_zero_loss_and_finite_gradients(
    make_model, make_sample, modalities
):
    model = make_model()
    batch = collate([make_sample(i, names=("rgb", "landcover")) for i in range(3)], modalities)
    patches = model.patchify(batch)
    losses = Objective(model.tasks)(model(patches, drawn(patches, 10)))
    losses.total.backward()
    assert float(losses.by_task["elevation"]) == 0.0
    assert int(losses.samples["elevation"]) == 0
    for name, parameter in model.named_parameters():
        if "embeddings.elevation" not in name:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name


def test_invalid_pixels_change_neither_tokens_nor_loss(make_model, make_sample, modalities):
    """Nodata inside a chip: whatever number lies there must not matter."""
    model = make_model()
    sample = make_sample(4)
    valid = np.ones((1, 16, 16), dtype=bool)
    valid[:, 2:9, 3:11] = False
    results = []
    for junk in (0, 60000):
        pixels = {n: p.copy() for n, p in sample.pixels.items()}
        pixels["rgb"][:, ~valid[0]] = junk
        holed = replace(sample, pixels=pixels, valid={"rgb": valid})
        patches = model.patchify(collate([holed], modalities))
        states = drawn(patches, 14)
        losses = Objective(model.tasks)(model(patches, states))
        results.append((model.encode_states(patches, states)[0], losses.by_task))
        whole = patches.observed[0, :16].reshape(4, 4)
        assert whole.tolist() == [
            [True, True, True, True], [True, False, True, True],
            [True, True, True, True], [True, True, True, True],
        ]  # fmt: skip
    assert torch.equal(results[0][0], results[1][0])
    for name in results[0][1]:
        assert torch.equal(results[0][1][name], results[1][1][name])


def slow_loss(model, task, patches, states, predicted):
    """NumPy, pixel by pixel, from the paper's words."""
    modality, how = model.modalities[task.modality], model.config.inputs[task.modality]
    grid = patches.layout.grids[task.modality]
    part = states[:, patches.layout.slices[task.modality]].numpy()
    values = patches.values[task.modality]
    valid = patches.valid.get(task.modality)
    ok = np.ones(values.shape, bool) if valid is None else valid.numpy()
    per_sample = []
    for b in range(len(part)):
        errors = []
        for token in range(grid[0] * grid[1]):
            if part[b, token] != TokenState.MASKED:
                continue
            target = values[b, token].numpy().astype(np.float64)
            guess = predicted[b, token].detach().numpy().astype(np.float64)
            keep = ok[b, token]
            if modality.categorical:
                logits = guess.reshape(len(modality.classes), how.patch**2)
                for p in range(how.patch**2):
                    if target[p] >= 0 and keep[p]:
                        z = logits[:, p] - logits[:, p].max()
                        errors.append(np.log(np.exp(z).sum()) - z[int(target[p])])
                continue
            if task.patch_normalise:
                inside = target[keep]
                target = (target - inside.mean()) / np.sqrt(inside.var(ddof=1) + 1e-6)
            difference = guess - target
            error = np.abs(difference) if task.loss == "l1" else difference**2
            errors += error[keep].tolist()
        if errors:
            per_sample.append(np.mean(errors))
    return np.mean(per_sample)


def test_losses_equal_a_slow_version_written_from_the_paper(make_model, make_sample, modalities):
    model = make_model()
    samples = [make_sample(0), make_sample(1, names=("rgb", "elevation")), make_sample(2)]
    holes = np.random.default_rng(0).random((3, 16, 16)) > 0.3
    samples[2] = replace(samples[2], valid={"rgb": holes})
    patches = model.patchify(collate(samples, modalities))
    states = drawn(patches, 11)
    found = model(patches, states)
    losses = Objective(model.tasks)(found)
    for task in model.tasks:
        slow = slow_loss(model, task, patches, states, found.predictions[task.name])
        assert float(losses.by_task[task.name]) == pytest.approx(slow, rel=1e-4), task.name
    total = sum(t.weight * losses.by_task[t.name] for t in model.tasks)
    assert float(losses.total.detach()) == pytest.approx(float(total), rel=1e-6)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24), (13, 16), (7, 30), (4, 4)])
def test_other_sizes_and_aspects_run_and_keep_their_size(make_model, modalities, height, width):
    model = make_model()
    rng = np.random.default_rng(0)
    from multimae_eo.sample import Calibration, Sample

    pixels = {
        "rgb": rng.integers(1, 4000, (3, height, width)).astype(np.uint16),
        "elevation": rng.integers(0, 900, (1, height, width)).astype(np.int16),
    }
    sample = Sample(key="a", pixels=pixels, calibration={"rgb": Calibration(level="l2a")})
    batch = collate([sample, sample], modalities)
    found = model.reconstruct(batch, ["rgb"], samples=2)
    assert found["elevation"].mean.shape == (2, 1, height, width)
    assert found["landcover"].mean.shape == (2, 11, height, width)
    assert found["rgb"].std.shape == (2, 3, height, width)
    assert found["rgb"].spread is found["rgb"].std, "the name before 0.2"
    shares = found["landcover"].mean.sum(dim=1)
    assert torch.allclose(shares, torch.ones_like(shares), atol=1e-5)
    features = model.encode(batch, ["rgb"])
    rows, cols = -(-height // 4), -(-width // 4)
    assert features.grid("rgb").shape == (2, 32, rows, cols)
    assert features.pooled.shape == (2, 32)


def test_padding_does_not_reach_the_tokens_of_whole_patches(make_model, make_sample, modalities):
    """A 13 px chip is padded with invalid pixels, not with zeros taken for data."""
    model = make_model()
    sample = make_sample(0)
    cut = replace(sample, pixels={n: p[:, :13, :13] for n, p in sample.pixels.items()})
    patches = model.patchify(collate([cut], modalities))
    whole = model.patchify(collate([sample], modalities))
    assert torch.equal(patches.values["rgb"][0, 0], whole.values["rgb"][0, 0])
    last = unpatchify(patches.values["rgb"], (4, 4), 4)
    assert (last[:, :, 13:] == 0).all()
    assert not unpatchify(patches.valid["rgb"].float(), (4, 4), 4)[:, :, 13:].any()


def test_reconstruction_is_in_physical_units_at_the_samples_own_level(
    make_model, make_sample, modalities, statistics
):
    model = make_model()
    for parameter in model.decoders["rgb"].out.parameters():
        torch.nn.init.zeros_(parameter)
    batch = collate([make_sample(0), make_sample(1)], modalities)
    found = model.reconstruct(batch, ["elevation"], outputs=["rgb"], samples=3)["rgb"]
    mean, _ = statistics.mean_std("rgb")
    for row, level in enumerate((1, 0)):  # chip-0 is l2a, chip-1 is l1c
        got = found.mean[row].mean(dim=(1, 2)).numpy()
        assert got == pytest.approx(mean[level], rel=1e-5)
    assert float(found.std.abs().max()) < 1e-6


def test_features_of_a_sample_do_not_depend_on_its_neighbours(make_model, make_sample, modalities):
    model = make_model()
    samples = [make_sample(0), make_sample(1, names=("rgb",)), make_sample(2)]
    together = model.encode(collate(samples, modalities)).pooled
    for row, sample in enumerate(samples):
        alone = model.encode(collate([sample], modalities)).pooled
        assert torch.allclose(together[row], alone[0], atol=1e-5)


def test_unknown_inputs_and_foreign_modalities_are_refused(make_model, make_sample, modalities):
    model = make_model()
    batch = collate([make_sample(0)], modalities)
    with pytest.raises(ConfigError, match="did you mean 'elevation'"):
        model.encode(batch, ["elevatoin"])
    with pytest.raises(ConfigError, match="cannot predict 'slope'"):
        model.reconstruct(batch, ["rgb"], outputs=["slope"])
    only = collate([make_sample(0, names=("rgb",))], modalities)
    with pytest.raises(ContractError, match="chip-0: nothing observed in the inputs elevation"):
        model.encode(only, ["elevation"])


def test_a_modality_with_other_bands_is_refused_with_the_difference(make_model, make_sample):
    from multimae_eo.catalog import make_modality
    from multimae_eo.modality import ModalitySet

    other = ModalitySet([make_modality("rgb", sensor_name="sentinel2", bands=("B2", "B3", "B4"))])
    batch = collate([make_sample(0, names=("rgb",))], other)
    with pytest.raises(ContractError, match=r"bands: model \['B4', 'B3', 'B2'\], data \['B2'"):
        make_model().patchify(batch)


def test_modality_embeddings_are_an_option(make_model, make_sample, modalities):
    plain, marked = make_model(), make_model(modality_embeddings=True)
    assert not plain.modality
    assert set(marked.modality) == set(modalities)
    batch = collate([make_sample(0)], modalities)
    losses = Objective(marked.tasks)(marked(p := marked.patchify(batch), drawn(p, 12)))
    losses.total.backward()
    assert float(marked.modality["rgb"].grad.abs().sum()) > 0


def test_folder_round_trip_is_exact_and_damage_is_told(
    make_model, make_sample, modalities, tmp_path
):
    from multimae_eo import MultiMAE
    from multimae_eo.errors import CheckpointError, OutputError
    from multimae_eo.model_folder.folder import model_hash

    model = make_model().eval()
    model.save_pretrained(tmp_path / "m", card="## Results")
    model.save_pretrained(tmp_path / "m")
    again = MultiMAE.from_pretrained(tmp_path / "m")
    batch = collate([make_sample(0), make_sample(1)], modalities)
    assert torch.equal(model.encode(batch).pooled, again.encode(batch).pooled)
    assert again.statistics.fingerprint == model.statistics.fingerprint
    before = model_hash(tmp_path / "m")
    with torch.no_grad():
        model.global_tokens += 1
    model.save_pretrained(tmp_path / "m")
    assert model_hash(tmp_path / "m") != before
    weights = tmp_path / "m/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        MultiMAE.from_pretrained(tmp_path / "m")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        MultiMAE.from_pretrained(tmp_path / "m")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="no model folder"):
        model.save_pretrained(tmp_path / "other")
    assert (tmp_path / "other/mine.txt").read_text() == "precious"


def test_a_full_disk_leaves_the_old_model_in_place(make_model, tmp_path, monkeypatch):
    from multimae_eo.errors import OutputError
    from multimae_eo.model_folder import folder

    model = make_model()
    model.save_pretrained(tmp_path / "m")
    before = (tmp_path / "m/model.safetensors").read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "save_file", full)
    with torch.no_grad():
        model.global_tokens += 1
    with pytest.raises(OutputError, match="No space left"):
        model.save_pretrained(tmp_path / "m")
    assert (tmp_path / "m/model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"], "no temporary folder is left"


def test_all_visible_shows_what_was_observed(make_model, make_sample, modalities):
    model = make_model()
    batch = collate([make_sample(0), make_sample(1, names=("elevation",))], modalities)
    patches = model.patchify(batch)
    states = all_visible(patches, ("rgb",))
    rgb, elevation = patches.layout.slices["rgb"], patches.layout.slices["elevation"]
    assert (states[0, rgb] == TokenState.VISIBLE).all()
    assert (states[0, elevation] == TokenState.MASKED).all()
    assert (states[1, rgb] == TokenState.ABSENT).all()
    assert (states[1, elevation] == TokenState.MASKED).all()


@pytest.mark.parametrize("inputs", [None, ["landcover"], ["rgb", "landcover"]])
def test_observed_rows_are_the_chips_with_a_token_to_show(
    make_model, make_sample, modalities, inputs
):
    model = make_model()
    samples = [make_sample(i, names=n) for i, n in enumerate([None, ("rgb",), ("landcover",)])]
    for kept in (0, 1, None):  # landcover is thinned: only its odd pixels are taken
        valid = np.zeros((1, 16, 16), dtype=bool)
        if kept is not None:
            valid[:, kept::2, kept::2] = True
        sample = make_sample(len(samples), names=("landcover",))
        samples.append(replace(sample, valid={"landcover": valid}))
    batch = collate(samples, modalities)
    patches = model.patchify(batch)
    shown = all_visible(patches, model.chosen(inputs, patches.values)) == TokenState.VISIBLE
    expected = shown.any(dim=1).nonzero()[:, 0]
    assert 0 < len(expected) < len(samples)
    torch.testing.assert_close(model.observed_rows(batch, inputs), expected)


def test_draws_hide_every_input_patch_equally_often(make_model, make_sample, modalities):
    from multimae_eo.network.reconstruction import _halves

    batch = collate([make_sample(0), make_sample(1, names=("rgb",))], modalities)
    patches = make_model().patchify(batch)
    names = ("rgb", "elevation")
    shown = all_visible(patches, names)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(list(_halves(patches, shown, names, 6, generator)))
    hidden = ((drawn == TokenState.MASKED) & (shown == TokenState.VISIBLE)).sum(dim=0)
    assert (hidden[shown == TokenState.VISIBLE] == 3).all()
    assert ((drawn == TokenState.VISIBLE).sum(dim=2) > 0).all()
    landcover = patches.layout.slices["landcover"]
    assert (drawn[:, 0, landcover] == TokenState.MASKED).all()
