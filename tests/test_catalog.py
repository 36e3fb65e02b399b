"""The catalogue against the producers' documents."""

from __future__ import annotations

from itertools import combinations

import pytest

from multimae_eo.catalog import (
    CLASS_MAPS,
    MODALITIES,
    SENSORS,
    class_map,
    find_band,
    make_class_map,
    make_modality,
    modality,
    sensor,
)
from multimae_eo.errors import BandError, ConfigError
from multimae_eo.modality import canonical

# Sentinel-2's centre wavelengths and bandwidths in nm, and GSD in m: ESA's User Handbook.
SENTINEL2 = {
    "B1": (443, 20, 60), "B2": (490, 65, 10), "B3": (560, 35, 10), "B4": (665, 30, 10),
    "B5": (705, 15, 20), "B6": (740, 15, 20), "B7": (783, 20, 20), "B8": (842, 115, 10),
    "B8A": (865, 20, 20), "B9": (945, 20, 60), "B10": (1375, 30, 60), "B11": (1610, 90, 20),
    "B12": (2190, 180, 20),
}  # fmt: skip
# First and last wavelength of OLI's bands in nm: USGS.
OLI = {
    "B1": (430, 450), "B2": (450, 510), "B3": (530, 590), "B4": (640, 670), "B5": (850, 880),
    "B6": (1570, 1650), "B7": (2110, 2290), "B8": (500, 680), "B9": (1360, 1380),
}  # fmt: skip


def test_sentinel2_has_its_thirteen_bands_in_order():
    bands = SENSORS["sentinel2"].bands
    assert [b.name for b in bands] == list(SENTINEL2)
    for band in bands:
        nm, width, gsd = SENTINEL2[band.name]
        assert band.wavelength_um == pytest.approx(nm / 1000)
        assert band.bandwidth_um == pytest.approx(width / 1000)
        assert band.gsd_m == gsd
    assert SENSORS["sentinel2"].levels == ("l1c", "l2a")


def test_landsats_and_hls_bands_have_the_widths_of_oli():
    widths = {b.name: b.bandwidth_um for b in SENSORS["landsat8"].bands}
    assert widths == {name: pytest.approx((high - low) / 1000) for name, (low, high) in OLI.items()}
    for band in SENSORS["hls"].bands:
        same = [b for b in SENSORS["landsat8"].bands if b.wavelength_um == band.wavelength_um]
        assert [b.bandwidth_um for b in same] == [band.bandwidth_um]


@pytest.mark.parametrize(
    ("name", "bands"),
    [
        ("rgb", ("B4", "B3", "B2")),
        ("ired", ("B5", "B6", "B7")),
        ("sired", ("B11", "B12")),
        ("ebands", ("B8A", "B8")),
        ("sentinel1", ("VV", "VH")),
        ("elevation", ("elevation",)),
    ],
)
def test_the_papers_groups_have_their_bands_in_the_papers_order(name, bands):
    assert modality(name).band_names == bands


def test_sentinel2_l2a_has_no_cirrus_band():
    assert "B10" in modality("sentinel2").band_names
    assert "B10" not in modality("sentinel2_l2a_bands").band_names


def test_optical_bands_are_in_order_of_wavelength_in_each_sensor():
    """A swapped pair of wavelengths would show here (Landsat's panchromatic band stands apart)."""
    for name in ("sentinel2", "hls"):
        waves = [b.wavelength_um for b in SENSORS[name].bands]
        assert waves == sorted(waves)
    landsat = [b for b in SENSORS["landsat8"].bands if b.name != "B8"]
    assert [b.wavelength_um for b in landsat[:7]] == sorted(b.wavelength_um for b in landsat[:7])


@pytest.mark.parametrize("name", SENSORS)
def test_no_two_bands_of_a_sensor_answer_to_one_name(name):
    for one, other in combinations(SENSORS[name].bands, 2):
        ours = {canonical(n) for n in (one.name, *one.aliases)}
        theirs = {canonical(n) for n in (other.name, *other.aliases)}
        assert not ours & theirs


def test_sensor_names_and_aliases_are_of_one_sensor_each():
    names = [n for s in SENSORS.values() for n in (s.name, *s.aliases)]
    assert len(set(names)) == len(names)
    assert sensor("S2") is SENSORS["sentinel2"]


@pytest.mark.parametrize(
    ("wanted", "name"),
    [("B04", "B4"), ("b_8a", "B8A"), ("red", "B4"), ("NIR", "B8"), (0.865, "B8A"), (0.842, "B8"),
     (2.19, "B12"), (0.443, "B1")],
)  # fmt: skip
def test_bands_are_found_by_name_alias_or_wavelength(wanted, name):
    assert SENSORS["sentinel2"].band(wanted).name == name


@pytest.mark.parametrize("wanted", ["B13", "purple", "", 0.3, 1.0, 12.0])
def test_a_band_that_is_not_there_is_told_with_those_that_are(wanted):
    with pytest.raises(BandError, match=r"B8A \(0\.865 µm\)"):
        SENSORS["sentinel2"].band(wanted)


def test_a_band_of_several_sensors_is_ambiguous_not_guessed():
    assert find_band("cop_dem")[0].name == "dem"
    with pytest.raises(BandError, match=r"'red' is ambiguous \(.*add `sensor:`"):
        find_band("red")
    with pytest.raises(BandError, match="no sensor has a band 'xyz'"):
        find_band("xyz")


def test_legends_are_those_of_their_producers():
    cover = {c.id: (c.name, c.color) for c in CLASS_MAPS["esa_worldcover"].classes}
    assert list(cover) == [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]
    assert cover[10] == ("tree cover", (0, 100, 0))
    assert cover[80] == ("permanent water", (0, 100, 200))
    assert CLASS_MAPS["esa_worldcover"].nodata == (0, 255), (
        "MMEarth's files hold 0, the document 255"
    )
    world = {c.id: c.name for c in CLASS_MAPS["dynamic_world"].classes}
    assert list(world) == list(range(1, 10))
    assert (world[1], world[7]) == ("water", "built area")
    assert {c.id for c in CLASS_MAPS["esri_lulc"].classes} == set(range(1, 10))


@pytest.mark.parametrize("name", CLASS_MAPS)
def test_legends_hold_no_nodata_and_no_colour_twice(name):
    found = class_map(name)
    ids = [c.id for c in found.classes]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & set(found.nodata)
    assert len({c.color for c in found.classes}) == len(ids)
    assert all(0 <= v <= 255 for c in found.classes for v in c.color)
    assert make_class_map("m", class_map_name=name).class_ids == tuple(ids)


@pytest.mark.parametrize("name", MODALITIES)
def test_every_modality_is_called_by_its_key_and_has_a_gsd_where_its_bands_do(name):
    found = modality(name)
    assert found.name == name
    stated = [b.gsd_m for b in found.bands if b.gsd_m]
    assert not stated or found.gsd_m == max(stated)


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (lambda: sensor("sentinl2"), "did you mean 'sentinel2'"),
        (lambda: class_map("esa_worldcovr"), "did you mean 'esa_worldcover'"),
        (lambda: modality("elevaton"), "did you mean 'elevation'"),
        (lambda: make_modality("m", sensor_name="x", bands=("a",)), "valid: sentinel2"),
    ],
)
def test_unknown_names_get_the_nearest(look, message):
    with pytest.raises(ConfigError, match=message):
        look()
