"""Colours that class names ask for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from multimae_eo.catalog import CLASS_MAPS
from multimae_eo.class_colors import class_colors


def test_a_known_legend_keeps_its_producers_colours():
    for class_map in CLASS_MAPS.values():
        whole = class_map.classes
        assert class_colors([c.name.upper() for c in whole]) == tuple(c.color for c in whole)
    water, trees = class_colors(["permanent water", "tree cover"])
    assert (water, trees) == ((0, 100, 200), (0, 100, 0)), "part of WorldCover"


def test_names_that_tell_look_natural():
    names = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture",
             "PermanentCrop", "Residential", "River", "SeaLake"]  # fmt: skip
    found = dict(zip(names, class_colors(names), strict=True))
    assert len(set(found.values())) == len(names)
    for water in ("River", "SeaLake"):
        assert found[water][2] == max(found[water]), "blue"
    for green in ("Forest", "Pasture", "HerbaceousVegetation"):
        assert found[green][1] == max(found[green]), green
    for red in ("Highway", "Residential", "Industrial"):
        assert found[red][0] == max(found[red])


def test_words_are_not_found_inside_others():
    rice, streets, seasons = class_colors(["rice", "streets", "seasonal"])
    assert rice == class_colors(["crops", "x"])[0]
    assert streets == class_colors(["built-up", "x"])[0]
    assert seasons == class_colors(["x", "y"])[0], "neither sea nor snow: a plain hue"
    assert class_colors(["non-water", "no water"])[0] == (154, 154, 154)
    grass = class_colors(["grass", "x"])[0]
    assert class_colors(["low plants", "x"])[0] == grass
    assert class_colors(["power plant", "x"])[0] != grass


@given(st.lists(st.sampled_from(["water", "lake", "forest", "a", "b", "c", "d", "roads", ""])))
def test_there_is_a_colour_per_class_and_few_are_alike(names):
    found = class_colors(names)
    assert len(found) == len(names)
    assert all(0 <= part <= 255 for color in found for part in color)
    if len(names) <= 12:
        assert len(set(found)) == len(found)
