"""Modalities, their sets and tasks: what they refuse, and what makes two of them the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimae_eo.catalog import MODALITIES, make_class_map, modality
from multimae_eo.errors import ConfigError
from multimae_eo.modality import (
    Band,
    ClassMapEntry,
    Modality,
    ModalitySet,
    Task,
    canonical,
    rename,
    validate_tasks,
)

A, B = (ClassMapEntry(id=i, name=n, color=(0, 0, 0)) for i, n in ((1, "a"), (2, "b")))
X, Y = Band(name="x"), Band(name="y")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "", "bands": (X,)}, "needs a name"),
        ({"name": "m", "bands": ()}, "at least one band"),
        ({"name": "m", "bands": (X, X)}, "duplicate bands"),
        ({"name": "m", "bands": (X,), "scale": 0.0}, "scale must not be 0"),
        ({"name": "m", "bands": (X,), "classes": (A, B)}, "only a categorical"),
        ({"name": "m", "bands": (X,), "kind": "categorical"}, "at least two classes"),
        ({"name": "m", "bands": (X, Y), "kind": "categorical", "classes": (A, B)}, "has one band"),
        ({"name": "m", "bands": (X,), "kind": "categorical", "classes": (A, A)}, "duplicate class"),
        (
            {"name": "m", "bands": (X,), "kind": "categorical", "classes": (A, B), "offset": 1.0},
            "no scale or offset",
        ),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Modality(**arguments)


@pytest.mark.parametrize("name", MODALITIES)
def test_every_catalogued_modality_survives_json(name):
    record = modality(name)
    assert Modality.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_sets_are_ordered_duplicate_free_and_name_the_nearest():
    both = ModalitySet([modality("rgb"), modality("elevation")])
    assert both.names == ("rgb", "elevation")
    assert both.index("elevation") == 1
    assert both.select(["elevation", "rgb"]).names == ("elevation", "rgb")
    assert "depth" not in both
    with pytest.raises(ConfigError, match="did you mean 'elevation'"):
        both["elevaton"]
    with pytest.raises(ConfigError, match="declared twice"):
        ModalitySet([modality("rgb"), modality("rgb")])
    with pytest.raises(ConfigError, match="at least one"):
        ModalitySet([])


@given(st.permutations(["rgb", "ired", "elevation", "semseg"]))
def test_fingerprints_follow_meaning_and_order_but_not_how_a_source_stores_it(names):
    found = ModalitySet(modality(n) for n in names)
    assert ModalitySet.from_list(json.loads(json.dumps(found.to_list()))) == found
    rescaled = ModalitySet(
        m if m.categorical else replace(m, scale=0.5, offset=1.0) for m in found.values()
    )
    assert rescaled.fingerprint == found.fingerprint
    assert ModalitySet(list(found.values())[::-1]).fingerprint != found.fingerprint
    swapped = [replace(m, bands=m.bands[::-1]) if n == "rgb" else m for n, m in found.items()]
    assert ModalitySet(swapped).fingerprint != found.fingerprint, "band order is meaning"


def test_union_refuses_one_name_of_two_meanings():
    s2 = ModalitySet([modality("rgb")])
    photo = ModalitySet([replace(modality("rgb"), unit="digital number", levels=())])
    with pytest.raises(
        ConfigError, match=r"'rgb' means two things \(unit: reflectance and digital"
    ):
        s2.union(photo)
    assert s2.union(ModalitySet([modality("slope")])).names == ("rgb", "slope")


def test_levels_and_losses():
    rgb = modality("rgb")
    assert [rgb.level_index(level) for level in rgb.levels] == [0, 1]
    with pytest.raises(ConfigError, match="got 'l3'; declare one of l1c, l2a"):
        rgb.level_index("l3")
    assert modality("elevation").level_index("anything") == 0
    assert rgb.default_loss == "mse"
    assert modality("semseg").default_loss == "cross_entropy"
    assert rename(rgb, "optical").bands == rgb.bands


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task(name="t", modality="cover", loss="mse"), "use 'cross_entropy'"),
        (Task(name="t", modality="rgb", loss="cross_entropy"), "use 'mse'"),
        (Task(name="t", modality="rbg"), "did you mean 'rgb'"),
    ],
)
def test_tasks_that_do_not_suit_their_modality_are_refused(task, message):
    known = ModalitySet([modality("rgb"), make_class_map("cover", class_map_name="esri_lulc")])
    with pytest.raises(ConfigError, match=message):
        validate_tasks([task], known)
    two = [Task(name="a", modality="rgb"), Task(name="a", modality="rgb", loss="l1")]
    with pytest.raises(ConfigError, match="duplicate tasks"):
        validate_tasks(two, known)


def test_tasks_refuse_what_no_modality_could_suit():
    with pytest.raises(ConfigError, match="weight must be ≥ 0, got -1"):
        Task(name="t", modality="rgb", weight=-1)
    with pytest.raises(ConfigError, match="cannot be patch-normalised"):
        Task(name="t", modality="c", loss="cross_entropy", patch_normalise=True)


@pytest.mark.parametrize(
    ("one", "other"), [("B02", "b2"), ("B_02", "B2"), ("B8A", "b08a"), ("Red Edge-1", "red_edge1")]
)
def test_spellings_of_one_band(one, other):
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"), [("B1", "B11"), ("B10", "B1"), ("B0", "B"), ("B8", "B8A")]
)
def test_names_of_two_bands(one, other):
    assert canonical(one) != canonical(other)
