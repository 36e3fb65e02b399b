"""Locations: masked pixels stay masked, scores and values are exact."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.catalog import MODALITIES
from multimae_eo.demo.chip_locations import SceneLocations, SourceLocations
from multimae_eo.demo.drawing import INVALID, packed, safe_colours
from multimae_eo.demo.jobs import Cancellation, SupersededError
from multimae_eo.demo.reconstruct_service import MaskOptions, ReconstructService
from multimae_eo.errors import ConfigError, DataError
from multimae_eo.geo import Window
from multimae_eo.network.masking import all_visible
from multimae_eo.network.tokens import TokenState


def unpacked(result):
    steps = np.frombuffer(base64.b64decode(result["data"]), "<u2").reshape(result["shape"])
    low, high = (np.array(result[k])[:, None, None] for k in ("low", "high"))
    return np.where(steps == INVALID, np.nan, low + steps * (high - low) / (INVALID - 1))


@pytest.fixture(scope="module")
def service(model, chips) -> ReconstructService:
    return ReconstructService(model, SourceLocations(chips, model))


@pytest.fixture(scope="module")
def location(service) -> int:
    return service.locations.strip[0]


def masks(service, location, **hidden):
    """All shown, but ``hidden[modality]``: patches."""
    found = {}
    for result in service.look(location)["modalities"]:
        count = result["grid"][0] * result["grid"][1]
        out = hidden.get(result["name"], [])
        found[result["name"]] = "".join("1" if i in out else "0" for i in range(count))
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-4, 1.0, 1e5]), bands=st.integers(1, 3))
def test_packed_values_are_exact_to_a_step(seed, scale, bands):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(bands, 5, 7)) * scale
    valid = rng.random((bands, 5, 7)) < 0.8
    back = unpacked(packed(values, valid))
    assert np.array_equal(np.isfinite(back), valid)
    span = np.ptp(values)
    assert np.abs(back - values)[valid].max(initial=0) <= span / 60000


def test_the_observed_is_told_in_physical_units(service, location, chips):
    sample = chips.read(location)
    for result in service.look(location)["modalities"]:
        modality, raw = chips.modalities[result["name"]], sample.pixels[result["name"]]
        back = unpacked(result["observed"]["values"])
        if modality.categorical:
            ids = np.array(modality.class_ids)[np.rint(back).astype(int)]
            assert np.array_equal(ids, raw)
        else:
            how = sample.calibration_of(modality)
            true = raw * how.scale + how.offset
            assert np.nanmax(np.abs(back - true)) <= np.ptp(true) / 60000 + 1e-9


def test_what_is_predicted_is_what_the_model_says(service, location, model, chips):
    """A chip of the model's own size needs no windows: the plain forward pass is the answer."""
    asked = MaskOptions(inputs=["rgb"], masks=masks(service, location), samples=1)
    result = service.reconstruct(location, asked)["modalities"]["elevation"]["values"]
    batch = chips.batch([chips.keys[location]], list(model.modalities))
    truth = model.reconstruct(batch, ["rgb"], outputs=["elevation"], samples=0)["elevation"].mean
    assert np.abs(unpacked(result) - truth[0].numpy()).max() < 0.01 * float(truth.std()) + 1e-4


def test_hidden_pixels_cannot_change_the_answer(service, location, monkeypatch):
    from dataclasses import replace

    hidden = masks(service, location, rgb=range(1, 16), elevation=range(16), landcover=range(16))
    asked = MaskOptions(inputs=["rgb", "elevation"], masks=hidden, samples=2)
    before = service.reconstruct(location, asked)
    sample = service.locations.read(location)
    changed = {n: p.copy() for n, p in sample.pixels.items()}
    changed["elevation"] += 500
    changed["rgb"][:, -8:] = 9
    monkeypatch.setattr(service.locations, "read", lambda n: replace(sample, pixels=changed))
    after = service.reconstruct(location, asked)
    for name in before["modalities"]:
        one, other = (unpacked(r["modalities"][name]["values"]) for r in (before, after))
        assert np.array_equal(one, other), name
    assert before["scores"]["elevation"]["rmse"] < after["scores"]["elevation"]["rmse"]


def test_scores_are_of_hidden_pixels_only(service, location):
    options = MaskOptions(inputs=["rgb", "elevation"], masks=masks(service, location, rgb=[0, 5]))
    result = service.reconstruct(location, options)
    grid = {m["name"]: m for m in service.look(location)["modalities"]}["rgb"]
    assert result["scores"]["rgb"]["pixels"] == 2 * grid["token"] ** 2
    assert "elevation" not in result["scores"], "nothing of it was hidden"
    assert "landcover" in result["scores"], "it was not given at all"
    truth, output = unpacked(grid["observed"]["values"]), result["modalities"]["rgb"]
    side = grid["token"]
    row, col = divmod(5, grid["grid"][1])
    spots = np.s_[:, :side, :side], np.s_[:, row * side : (row + 1) * side,
                                          col * side : (col + 1) * side]  # fmt: skip
    errors = [(unpacked(output["values"]) - truth)[s] for s in spots]
    rmse = np.sqrt(np.mean(np.square(errors)))
    assert result["scores"]["rgb"]["rmse"] == pytest.approx(rmse, rel=0.01)


@pytest.mark.parametrize(("visible", "inputs"), [(1, ["rgb"]), (9, ["rgb", "elevation"]),
                                                 (30, ["elevation", "landcover"])])  # fmt: skip
def test_exactly_as_many_tokens_as_asked_are_shown(service, location, visible, inputs):
    result = service.reconstruct(location, MaskOptions(inputs=inputs, visible=visible, samples=1))
    assert result["visible"] == visible
    shown = {n: m.count("0") for n, m in result["masks"].items()}
    assert sum(shown.values()) == visible
    assert not any(shown[n] for n in shown if n not in inputs)


def test_a_seed_draws_the_same_mask_and_another_another(service, location):
    drawn = [
        service.reconstruct(location, MaskOptions(inputs=["rgb"], visible=5, seed=s, samples=1))[
            "masks"
        ]
        for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_scene_is_seen_through_overlapping_windows(model, scene):
    service = ReconstructService(model, SceneLocations(scene, model))
    result = service.reconstruct(4, MaskOptions(inputs=["rgb"], visible=40, samples=1))
    assert result["tokens"] == 3 * 64
    sizes = {n: v["values"]["shape"][1:] for n, v in result["modalities"].items()}
    assert sizes == {"rgb": [64, 64], "elevation": [64, 64], "landcover": [64, 64]}
    view = service._view(service.locations.read(4))
    assert len(view.windows) == 9
    states = service._states(view, MaskOptions(inputs=["rgb"], visible=40))
    part = view.layout.slices["rgb"]
    grid = states[0, part].reshape(8, 8)
    own = service._window_states(view, states, view.windows[4])[0]
    assert torch.equal(own[:16].reshape(4, 4), grid[2:6, 2:6]), "the middle window"


def test_places_of_a_scene_cover_it_and_know_where_they_are(model, scene):
    locations = SceneLocations(scene, model)
    seen = np.zeros((scene.grid.height, scene.grid.width), bool)
    for number in range(locations.count):
        window = locations.window(number)
        seen[window.slices] = True
        middle = window.row + window.height / 2, window.col + window.width / 2
        assert locations.at(*middle) == number
    assert seen.all()
    sample = locations.read(7)
    window = locations.window(7)
    true = scene.read(Window(row=window.row, col=window.col, height=64, width=64), ["rgb"])
    assert np.array_equal(sample.pixels["rgb"], true.pixels["rgb"])


@pytest.mark.parametrize("asked", [
    MaskOptions(inputs=["nothing"]),
    MaskOptions(inputs=["rgb"], masks={"rgb": "01"}),
    MaskOptions(inputs=["rgb"], masks={"rgb": "1" * 16}),
    MaskOptions(inputs=["rgb"], masks={"other": "0"}),
])  # fmt: skip
def test_what_cannot_be_is_refused(service, location, asked):
    with pytest.raises(ConfigError):
        service.reconstruct(location, asked)


def test_unknown_places_are_refused(service):
    for number in (-1, 10**6):
        with pytest.raises(DataError, match="no location"):
            service.look(number)


def test_cancelled_work_stops(service, location):
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(SupersededError):
        service.reconstruct(location, MaskOptions(inputs=["rgb"], visible=5), cancellation)


def test_states_agree_with_the_model(service, location, model):
    view = service._view(service.locations.read(location))
    states = service._states(view, MaskOptions(inputs=list(model.modalities), masks={}))
    assert torch.equal(states, all_visible(model.patchify(view.batch), tuple(model.modalities)))
    assert int((states == TokenState.VISIBLE).sum()) == int(view.observed.sum())


def test_legends_are_distinct_and_keep_their_kind_of_hue():
    """Nearest pairs stay apart in all simulations of dichromacy (Viénot et al. 1999)."""
    for modality in MODALITIES.values():
        if not modality.categorical:
            continue
        safe = safe_colours(modality)
        assert [c.id for c in safe.classes] == [c.id for c in modality.classes]
        colours = np.array([c.color for c in safe.classes], float) / 255
        linear = colours**2.2
        protan = np.array([[0.1124, 0.8876, 0], [0.1124, 0.8876, 0], [0.004, -0.004, 1]])
        deutan = np.array([[0.2928, 0.7072, 0], [0.2928, 0.7072, 0], [-0.0223, 0.0223, 1]])
        for simulate in (np.eye(3), protan, deutan):
            seen = np.clip(linear @ simulate.T, 0, 1) ** (1 / 2.2)
            apart = np.linalg.norm(seen[:, None] - seen[None], axis=2)
            assert apart[~np.eye(len(seen), dtype=bool)].min() > 0.07, modality.name
