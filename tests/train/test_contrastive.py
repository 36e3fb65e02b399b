"""Two draws of one chip against other chips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multimae_eo.catalog import make_modality
from multimae_eo.errors import ConfigError
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Batch, Calibration, Sample, collate
from multimae_eo.train.contrastive import ContrastiveLoss, masked_views
from multimae_eo.train.recipe import ContrastiveRecipe, parse_recipe


def agreement(views: int = 2, temperature: float = 0.2) -> ContrastiveLoss:
    torch.manual_seed(0)
    return ContrastiveLoss(8, ContrastiveRecipe(weight=1.0, views=views, temperature=temperature))


@pytest.mark.parametrize("views", [2, 3])
def test_equals_the_formula_written_out(views):
    module, chips = agreement(views), 4
    pooled = torch.randn(views * chips, 8)
    with torch.no_grad():
        z = module.out(module.project(pooled)).double().numpy()
        told = float(module(pooled))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    terms = []
    for i in range(len(z)):
        others = sum(np.exp(z[i] @ z[j] / 0.2) for j in range(len(z)) if j % chips != i % chips)
        for j in range(len(z)):
            if j != i and j % chips == i % chips:
                positive = np.exp(z[i] @ z[j] / 0.2)
                terms.append(-np.log(positive / (positive + others)))
    assert told == pytest.approx(np.mean(terms), rel=1e-5)


def test_equal_draws_of_unlike_chips_agree_and_a_single_chip_says_nothing():
    module = agreement(temperature=0.05)
    chips = torch.randn(6, 8)
    alike, crossed = module(chips.repeat(2, 1)), module(torch.cat([chips, chips.flip(0)]))
    assert 0 <= alike < crossed
    single = module(torch.randn(2, 8))
    single.backward()
    assert single.item() == pytest.approx(0, abs=1e-6)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in module.parameters())


def test_options_out_of_range_are_refused():
    for option in ("weight=-1", "views=1", "temperature=0", "brightness_jitter=-0.1"):
        with pytest.raises(ConfigError, match=option.split("=", maxsplit=1)[0]):
            parse_recipe({}, [f"--agreement.{option}"])


OPTICAL = make_modality("optical", sensor_name="sentinel2", bands=("B4", "B3"))
RELIEF = make_modality("relief", sensor_name="dem", bands=("elevation",))
BOTH = ModalitySet([OPTICAL, RELIEF])


def batch(modalities: ModalitySet = BOTH, chips: int = 24) -> Batch:
    """Chips of pixels that are all different, reflectance with an offset."""
    levels = {n: m.levels[0] if m.levels else "" for n, m in modalities.items()}
    return collate(
        [
            Sample(
                key=str(i),
                pixels={
                    n: (np.arange(m.channels * 64).reshape(-1, 8, 8) + i).astype(np.uint16)
                    for n, m in modalities.items()
                },
                calibration={
                    n: Calibration(scale=2e-4, offset=-0.1, level=levels[n]) for n in modalities
                },
            )
            for i in range(chips)
        ],
        modalities,
    )


def test_further_views_are_turned_alike_in_all_modalities_and_the_first_is_the_chip():
    chips = batch()
    views = masked_views(chips, ContrastiveRecipe(weight=1.0, views=3, rot90=True), 0, 0)
    assert len(set(views.keys)) == len(views) == 3 * len(chips)
    found = set()
    for i, key in enumerate(views.keys):
        was = {n: p[i % len(chips)].numpy() for n, p in chips.pixels.items()}
        now = {n: p[i].numpy() for n, p in views.pixels.items()}
        ways = [w for w in range(8) if all(np.array_equal(turned(was[n], w), now[n]) for n in was)]
        assert len(ways) == 1, key
        assert i >= len(chips) or ways == [0]
        found.update(ways)
    assert found == set(range(8))


def turned(array: np.ndarray, way: int) -> np.ndarray:
    return np.rot90(array[..., ::-1] if way >= 4 else array, way % 4, axes=(-2, -1))


def test_brightness_is_of_reflectance_only_and_within_its_bounds():
    chips = batch()
    views = masked_views(chips, ContrastiveRecipe(weight=1.0, brightness_jitter=0.25), 0, 0)
    factor = (views.scale / chips.scale.repeat(2, 1)).numpy()
    np.testing.assert_allclose(views.offset, chips.offset.repeat(2, 1).numpy() * factor, rtol=1e-6)
    np.testing.assert_array_equal(factor[: len(chips)], 1)
    np.testing.assert_array_equal(factor[:, 1], 1)
    further = factor[len(chips) :, 0]
    assert 0.8 <= further.min() < 0.9
    assert 1.1 < further.max() <= 1.25


def test_views_belong_to_a_chip_whatever_batch_it_comes_in():
    recipe = ContrastiveRecipe(weight=1.0, rot90=True, brightness_jitter=0.1)
    chips = batch()
    few = chips.take(torch.tensor([7, 3]))
    all_views, few_views = masked_views(chips, recipe, 5, 2), masked_views(few, recipe, 5, 2)
    for i, key in enumerate(few_views.keys):
        j = all_views.keys.index(key)
        assert torch.equal(few_views.pixels["optical"][i], all_views.pixels["optical"][j])
        assert torch.equal(few_views.scale[i], all_views.scale[j])
    other = masked_views(chips, recipe, 5, 3)
    assert not torch.equal(other.scale, all_views.scale), "another epoch, other views"
