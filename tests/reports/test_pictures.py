from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.image import BboxImage
from matplotlib.patches import Rectangle

from multimae_eo import catalog
from multimae_eo.errors import ContractError
from multimae_eo.modality import Band, Modality, ModalitySet, rename
from multimae_eo.reports.panels import short
from multimae_eo.reports.pictures import (
    Look,
    absent_picture,
    class_picture,
    describe,
    display_bands,
    look_of,
    mask_overlay,
    picture,
    relief_ramp,
    scalar_picture,
    stretch_of,
)
from multimae_eo.reports.reconstruction_figures import (
    chip_figure,
    figure_png,
    reconstruction_figure,
)
from multimae_eo.reports.views import ChipView

RNG = np.random.default_rng(0)
S2 = catalog.modality("sentinel2_l2a_bands")
ELEVATION = catalog.modality("elevation")
LANDCOVER = catalog.make_class_map("landcover", class_map_name="esa_worldcover")


@pytest.mark.parametrize(
    ("name", "look"),
    [
        ("rgb", Look.COLOUR),
        ("ired", Look.COLOUR),
        ("sired", Look.PAIR),
        ("sentinel1", Look.PAIR),
        ("sentinel1_asc_desc", Look.PAIR),
        ("elevation", Look.RELIEF),
        ("canopy_height", Look.SCALAR),
        ("ndvi", Look.SCALAR),
        ("semseg", Look.CLASSES),
    ],
)
def test_the_look_follows_from_bands_and_unit_not_from_the_name(name: str, look: Look) -> None:
    modality = catalog.modality(name)
    assert look_of(modality) is look
    renamed = rename(modality, "rgb" if name != "rgb" else "elevation")
    assert look_of(renamed) is look
    assert display_bands(renamed) == display_bands(modality)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("rgb", ("B4", "B3", "B2")),
        ("sentinel2_l2a_bands", ("B4", "B3", "B2")),
        ("hls", ("red", "green", "blue")),
        ("ired", ("B7", "B6", "B5")),
        ("sentinel1_asc_desc", ("VV", "VH")),
    ],
)
def test_displayed_bands(name: str, shown: tuple[str, ...]) -> None:
    modality = catalog.modality(name)
    assert tuple(modality.band_names[i] for i in display_bands(modality)) == shown


def test_bands_without_wavelengths_show_the_first_three() -> None:
    modality = Modality(name="x", bands=tuple(Band(name=n) for n in "abcd"))
    assert display_bands(modality) == (0, 1, 2)
    assert describe(modality) == "a · b · c"


def test_true_colour_puts_red_in_the_red_channel() -> None:
    values = np.zeros((S2.channels, 8, 8))
    values[S2.band_names.index("B4"), :, :4] = 0.3
    image = picture(S2, values)
    assert (image[:, :4, 0] > 200).all()
    assert (image[:, 4:, 0] < 60).all()


def test_a_prediction_drawn_with_the_reference_stretch_has_equal_colours_for_equal_values() -> None:
    reference = RNG.uniform(0.02, 0.4, (S2.channels, 32, 32))
    prediction = reference.copy()
    prediction[:, :16] = 3.0
    stretch = stretch_of(S2, reference)
    first, second = (picture(S2, v, stretch=stretch) for v in (reference, prediction))
    assert np.array_equal(first[16:], second[16:])
    assert (second[:16] == 255).all()
    # Without it, the outlier would have darkened everything else.
    assert picture(S2, prediction)[16:].mean() < first[16:].mean() - 50


def test_a_stretch_ignores_nodata_and_is_the_2nd_to_98th_percentile() -> None:
    values = RNG.uniform(-1, 1, (1, 50, 50))
    valid = RNG.random((1, 50, 50)) > 0.3
    spoiled = np.where(valid, values, -9999.0)
    stretch = stretch_of(catalog.modality("ndvi"), spoiled, valid)
    expected = np.percentile(values[valid], (2, 98))
    assert (stretch.low[0], stretch.high[0]) == pytest.approx(tuple(expected))


def test_a_calm_lake_is_not_stretched_into_noise() -> None:
    water = 0.02 + RNG.normal(0, 0.0005, (S2.channels, 32, 32))
    stretch = stretch_of(S2, water)
    assert min(h - low for h, low in zip(stretch.high, stretch.low, strict=True)) >= 0.0299


def test_images_in_digital_numbers_are_drawn_as_they_are() -> None:
    modality = catalog.make_modality("image", sensor_name="rgb", bands=("red", "green", "blue"))
    values = RNG.integers(0, 256, (3, 16, 16)).astype(np.uint8)
    assert np.array_equal(picture(modality, values), np.moveaxis(values, 0, -1))


def test_class_maps_take_the_legends_colours_and_unknown_is_a_checker() -> None:
    index = np.array([[0, 7], [-1, 10]])
    image = class_picture(LANDCOVER, index)
    assert tuple(image[0, 0]) == LANDCOVER.classes[0].color
    assert tuple(image[0, 1]) == LANDCOVER.classes[7].color
    assert tuple(image[1, 0]) == tuple(absent_picture(2, 2)[1, 0])
    assert np.array_equal(picture(LANDCOVER, index[None]), image)


@pytest.mark.parametrize("modality", [S2, ELEVATION, catalog.modality("sentinel1")])
def test_invalid_and_nan_pixels_become_the_checker(modality: Modality) -> None:
    values = RNG.normal(100, 20, (modality.channels, 24, 24))
    valid = np.ones((1, 24, 24), bool)
    valid[:, :6] = False
    values[0, 20:] = np.nan
    if modality is S2:
        values[S2.band_names.index("B4"), 20:] = np.nan
    image, checker = picture(modality, values, valid=valid), absent_picture(24, 24)
    assert np.array_equal(image[:6], checker[:6])
    assert np.array_equal(image[20:], checker[20:])
    assert not np.array_equal(image[6:20], checker[6:20])


def test_relief_is_lit_from_the_north_west_and_its_tints_grow_lighter() -> None:
    grey = relief_ramp().astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) >= -0.5).all()
    assert grey[-1] - grey[0] > 150
    rows, cols = np.mgrid[:64, :64]
    ridge = -np.abs(rows + cols - 63.0) * 4  # a ridge from south-west to north-east
    image = picture(ELEVATION, ridge[None]).astype(float).sum(-1)
    assert image[20, 20] > image[43, 43] + 60  # equally high, opposite sides


def test_flat_ground_is_drawn_without_a_warning() -> None:
    image = picture(ELEVATION, np.full((1, 9, 9), 12, np.int16))
    assert len(np.unique(image.reshape(-1, 3), axis=0)) == 1


def test_mask_overlay_covers_exactly_the_masked_patches() -> None:
    image = RNG.integers(0, 100, (20, 20, 3)).astype(np.uint8)
    masked = np.array([[True, False, False], [False, False, True], [False, False, False]])
    drawn = mask_overlay(image, masked, 8)  # the third row and column reach over the edge
    assert (drawn[:8, :8] >= 206).all()
    assert (drawn[8:16, 16:] >= 206).all()
    untouched = np.ones((20, 20), bool)
    untouched[:8, :8] = untouched[8:16, 16:] = False
    assert np.array_equal(drawn[untouched], image[untouched])
    with pytest.raises(ContractError, match="do not cover"):
        mask_overlay(image, masked, 4)


def test_a_picture_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ContractError, match="expected \\(12, H, W\\)"):
        picture(S2, np.zeros((3, 4, 4)))


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(
        np.float64,
        (2, 5, 7),
        elements=st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf),
    )
)
def test_any_numbers_make_a_picture(values: np.ndarray) -> None:
    image = picture(catalog.modality("sentinel1"), values)
    assert image.shape == (5, 7, 3)
    assert image.dtype == np.uint8
    assert scalar_picture(values[0], "viridis", 0.0, 0.0).shape == (5, 7, 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1218.4, "1218"),
        (-0.0512, "−0.0512"),
        (12.34, "12"),
        (3.456, "3.46"),
        (2e-5, "2.0e−05"),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def _view(**more: object) -> ChipView:
    modalities = ModalitySet([S2, ELEVATION, LANDCOVER])
    truth = {
        S2.name: RNG.uniform(0, 0.4, (12, 32, 32)),
        "elevation": RNG.normal(200, 20, (1, 32, 32)),
        "landcover": RNG.integers(0, 11, (1, 32, 32)),
    }
    mean = {"elevation": truth["elevation"] + 3.0, "landcover": RNG.random((11, 32, 32))}
    fields: dict[str, object] = {
        "key": "chip $1 <b>",
        "modalities": modalities,
        "inputs": (S2.name,),
        "truth": truth,
        "valid": {n: np.ones(t.shape, bool) for n, t in truth.items()},
        "mean": mean,
        "predictive_std": {"elevation": np.ones((1, 32, 32)), "landcover": np.ones((1, 32, 32))},
    }
    return ChipView(**{**fields, **more})  # type: ignore[arg-type]


def test_errors_are_what_they_say() -> None:
    view = _view()
    assert view.error("elevation") == pytest.approx(np.full((32, 32), 3.0))
    wrong = view.mean["landcover"].argmax(0) != view.truth["landcover"][0]
    assert np.array_equal(view.error("landcover"), wrong.astype(float))
    optical = _view(truth=view.truth, mean={S2.name: view.truth[S2.name] - 0.5}, predictive_std={})
    assert optical.error(S2.name) == pytest.approx(np.full((32, 32), 0.5))
    assert _view(truth={}, valid={}).error("elevation") is None


def test_figures_are_drawn_for_hidden_partly_hidden_and_absent_modalities() -> None:
    masked = {"elevation": RNG.random((4, 4)) < 0.5}
    views = [
        _view(),
        _view(
            truth={S2.name: _view().truth[S2.name]}, valid={S2.name: np.ones((12, 32, 32), bool)}
        ),
        _view(inputs=(S2.name, "elevation"), masked=masked, token_pixels={"elevation": 8}),
    ]
    for figure in (reconstruction_figure(views, title="t"), *(chip_figure(v) for v in views)):
        data = figure_png(figure)
        assert data.startswith(b"\x89PNG")
        words = [t.get_text() for t in figure.texts]
        assert "elevation" in words
        assert {"prediction − truth", "error"} & set(words)
        width = figure.get_figwidth()
        frames = [a for a in figure.artists if isinstance(a, Rectangle)]
        images = [a for a in figure.artists if isinstance(a, BboxImage)]
        assert len(frames) == len(images) > 4
        assert 0 < max(frame.get_x() + frame.get_width() for frame in frames) * width <= width


def test_a_chip_of_inputs_only_can_be_drawn() -> None:
    view = _view(mean={}, predictive_std={})
    assert "given to the model" in [t.get_text() for t in chip_figure(view).texts]
