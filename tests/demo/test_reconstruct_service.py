"""What is hidden is hidden, what is told is true."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.catalog import MODALITIES
from multimae_eo.demo.chip_locations import ScenePlaces, SourcePlaces
from multimae_eo.demo.drawing import INVALID, packed, safe_colours
from multimae_eo.demo.jobs import SupersededError, Ticket
from multimae_eo.demo.reconstruct_service import Asked, ReconstructService
from multimae_eo.errors import ConfigError, DataError
from multimae_eo.geo import Window
from multimae_eo.network.masking import all_visible
from multimae_eo.network.tokens import TokenState


def unpacked(told):
    steps = np.frombuffer(base64.b64decode(told["data"]), "<u2").reshape(told["shape"])
    low, high = (np.array(told[k])[:, None, None] for k in ("low", "high"))
    return np.where(steps == INVALID, np.nan, low + steps * (high - low) / (INVALID - 1))


@pytest.fixture(scope="module")
def service(model, chips) -> ReconstructService:
    return ReconstructService(model, SourcePlaces(chips, model))


@pytest.fixture(scope="module")
def place(service) -> int:
    return service.places.strip[0]


def masks(service, place, **hidden):
    """All shown, but ``hidden[modality]``: patches."""
    found = {}
    for told in service.look(place)["modalities"]:
        count = told["grid"][0] * told["grid"][1]
        out = hidden.get(told["name"], [])
        found[told["name"]] = "".join("1" if i in out else "0" for i in range(count))
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


def test_the_observed_is_told_in_physical_units(service, place, chips):
    sample = chips.read(place)
    for told in service.look(place)["modalities"]:
        modality, raw = chips.modalities[told["name"]], sample.pixels[told["name"]]
        back = unpacked(told["observed"]["values"])
        if modality.categorical:
            ids = np.array(modality.class_ids)[np.rint(back).astype(int)]
            assert np.array_equal(ids, raw)
        else:
            how = sample.calibration_of(modality)
            true = raw * how.scale + how.offset
            assert np.nanmax(np.abs(back - true)) <= np.ptp(true) / 60000 + 1e-9


def test_what_is_predicted_is_what_the_model_says(service, place, model, chips):
    """A chip of the model's own size needs no windows: the plain forward pass is the answer."""
    asked = Asked(inputs=["rgb"], masks=masks(service, place), draws=1)
    told = service.reconstruct(place, asked)["modalities"]["elevation"]["values"]
    batch = chips.batch([chips.keys[place]], list(model.modalities))
    truth = model.reconstruct(batch, ["rgb"], outputs=["elevation"], draws=0)["elevation"].mean
    assert np.abs(unpacked(told) - truth[0].numpy()).max() < 0.01 * float(truth.std()) + 1e-4


def test_hidden_pixels_cannot_change_the_answer(service, place, monkeypatch):
    from dataclasses import replace

    hidden = masks(service, place, rgb=range(1, 16), elevation=range(16), landcover=range(16))
    asked = Asked(inputs=["rgb", "elevation"], masks=hidden, draws=2)
    before = service.reconstruct(place, asked)
    sample = service.places.read(place)
    changed = {n: p.copy() for n, p in sample.pixels.items()}
    changed["elevation"] += 500
    changed["rgb"][:, -8:] = 9
    monkeypatch.setattr(service.places, "read", lambda n: replace(sample, pixels=changed))
    after = service.reconstruct(place, asked)
    for name in before["modalities"]:
        one, other = (unpacked(r["modalities"][name]["values"]) for r in (before, after))
        assert np.array_equal(one, other), name
    assert before["scores"]["elevation"]["rmse"] < after["scores"]["elevation"]["rmse"]


def test_scores_are_of_hidden_pixels_only(service, place):
    told = service.reconstruct(place, Asked(inputs=["rgb", "elevation"],
                                            masks=masks(service, place, rgb=[0, 5])))  # fmt: skip
    grid = {m["name"]: m for m in service.look(place)["modalities"]}["rgb"]
    assert told["scores"]["rgb"]["pixels"] == 2 * grid["token"] ** 2
    assert "elevation" not in told["scores"], "nothing of it was hidden"
    assert "landcover" in told["scores"], "it was not given at all"
    truth, said = unpacked(grid["observed"]["values"]), told["modalities"]["rgb"]
    side = grid["token"]
    row, col = divmod(5, grid["grid"][1])
    spots = np.s_[:, :side, :side], np.s_[:, row * side : (row + 1) * side,
                                          col * side : (col + 1) * side]  # fmt: skip
    errors = [(unpacked(said["values"]) - truth)[s] for s in spots]
    rmse = np.sqrt(np.mean(np.square(errors)))
    assert told["scores"]["rgb"]["rmse"] == pytest.approx(rmse, rel=0.01)


@pytest.mark.parametrize(("visible", "inputs"), [(1, ["rgb"]), (9, ["rgb", "elevation"]),
                                                 (30, ["elevation", "landcover"])])  # fmt: skip
def test_exactly_as_many_tokens_as_asked_are_shown(service, place, visible, inputs):
    told = service.reconstruct(place, Asked(inputs=inputs, visible=visible, draws=1))
    assert told["visible"] == visible
    shown = {n: m.count("0") for n, m in told["masks"].items()}
    assert sum(shown.values()) == visible
    assert not any(shown[n] for n in shown if n not in inputs)


def test_a_seed_draws_the_same_mask_and_another_another(service, place):
    drawn = [
        service.reconstruct(place, Asked(inputs=["rgb"], visible=5, seed=s, draws=1))["masks"]
        for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_scene_is_seen_through_overlapping_windows(model, scene):
    service = ReconstructService(model, ScenePlaces(scene, model))
    told = service.reconstruct(4, Asked(inputs=["rgb"], visible=40, draws=1))
    assert told["tokens"] == 3 * 64
    sizes = {n: v["values"]["shape"][1:] for n, v in told["modalities"].items()}
    assert sizes == {"rgb": [64, 64], "elevation": [64, 64], "landcover": [64, 64]}
    view = service._view(service.places.read(4))
    assert len(view.windows) == 9
    states = service._states(view, Asked(inputs=["rgb"], visible=40))
    part = view.layout.slices["rgb"]
    grid = states[0, part].reshape(8, 8)
    own = service._window_states(view, states, view.windows[4])[0]
    assert torch.equal(own[:16].reshape(4, 4), grid[2:6, 2:6]), "the middle window"


def test_places_of_a_scene_cover_it_and_know_where_they_are(model, scene):
    places = ScenePlaces(scene, model)
    seen = np.zeros((scene.grid.height, scene.grid.width), bool)
    for number in range(places.count):
        window = places.window(number)
        seen[window.slices] = True
        middle = window.row + window.height / 2, window.col + window.width / 2
        assert places.at(*middle) == number
    assert seen.all()
    sample = places.read(7)
    window = places.window(7)
    true = scene.read(Window(row=window.row, col=window.col, height=64, width=64), ["rgb"])
    assert np.array_equal(sample.pixels["rgb"], true.pixels["rgb"])


@pytest.mark.parametrize("asked", [
    Asked(inputs=["nothing"]),
    Asked(inputs=["rgb"], masks={"rgb": "01"}),
    Asked(inputs=["rgb"], masks={"rgb": "1" * 16}),
    Asked(inputs=["rgb"], masks={"other": "0"}),
])  # fmt: skip
def test_what_cannot_be_is_refused(service, place, asked):
    with pytest.raises(ConfigError):
        service.reconstruct(place, asked)


def test_unknown_places_are_refused(service):
    for number in (-1, 10**6):
        with pytest.raises(DataError, match="no place"):
            service.look(number)


def test_cancelled_work_stops(service, place):
    ticket = Ticket()
    ticket.cancel()
    with pytest.raises(SupersededError):
        service.reconstruct(place, Asked(inputs=["rgb"], visible=5), ticket)


def test_states_agree_with_the_model(service, place, model):
    view = service._view(service.places.read(place))
    states = service._states(view, Asked(inputs=list(model.modalities), masks={}))
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
