"""Two draws of one chip against other chips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multimae_eo.errors import ConfigError
from multimae_eo.train.agreement import Agreement
from multimae_eo.train.recipe import AgreementRecipe, parse_recipe


def agreement(views: int = 2, temperature: float = 0.2) -> Agreement:
    torch.manual_seed(0)
    return Agreement(8, AgreementRecipe(weight=1.0, views=views, temperature=temperature))


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
    for option in ("weight=-1", "views=1", "temperature=0"):
        with pytest.raises(ConfigError, match=option.split("=", maxsplit=1)[0]):
            parse_recipe({}, [f"--agreement.{option}"])
