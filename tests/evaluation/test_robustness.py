"""Inputs that are hidden in training, and left out at test time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from multimae_eo.errors import ConfigError
from multimae_eo.evaluation.robustness import MOST, curve, subsets
from multimae_eo.network.config import EncoderConfig, InputConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sources.synthetic import SyntheticSource
from multimae_eo.train.finetune_recipe import AugmentRecipe, parse_finetune
from multimae_eo.train.supervised import Hiding, changes

NAMES = ("rgb", "ired", "elevation")


MODALITIES = SyntheticSource(chips=3, size=16).modalities.select(NAMES)
KEYS = tuple(f"chip-{i}" for i in range(64))


@pytest.fixture(scope="module")
def patches():
    source = SyntheticSource(chips=64, size=16, seed=0)
    inputs = source.modalities.select(NAMES)
    config = ModelConfig(
        encoder=EncoderConfig(width=16, depth=1, heads=2),
        inputs={n: InputConfig(size=16, patch=4) for n in NAMES},
    )
    model = MultiMAE(inputs, (), config, source.statistics().select(NAMES))
    return model.patchify(source.batch(source.keys, NAMES))


def shown(patches) -> torch.Tensor:
    """Which inputs each chip shows: bool (B, M)."""
    parts = patches.layout.slices.values()
    return torch.stack([patches.observed[:, s].any(dim=1) for s in parts], dim=1)


@pytest.mark.parametrize("probability", [0.3, 0.97])
def test_hiding_keeps_one_input_and_hides_the_others_as_often_as_asked(patches, probability):
    kept = torch.cat([shown(Hiding(probability, KEYS, (seed,))(patches)) for seed in range(40)])
    assert bool(kept.any(dim=1).all())
    # All are hidden with p³; then one of three is shown again.
    expected = 1 - (probability - probability**3 / 3)
    np.testing.assert_allclose(kept.float().mean(dim=0).numpy(), expected, atol=0.03)


def test_hiding_never_hides_the_only_input_of_a_chip(patches):
    observed = torch.ones(64, patches.layout.count, dtype=torch.bool)
    observed[:, patches.layout.slices["rgb"]] = False
    observed[:, patches.layout.slices["ired"]] = False
    alone = replace(patches, observed=observed)
    for seed in range(20):
        assert torch.equal(Hiding(0.9, KEYS, (seed,))(alone).observed, observed)


def test_hiding_is_drawn_by_its_seed(patches):
    one, same, other = (Hiding(0.5, KEYS, (s,))(patches).observed for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert changes(AugmentRecipe(), None, KEYS, 0, modalities=MODALITIES) is None


def test_what_is_dropped_of_a_chip_does_not_depend_on_its_batch(patches):
    """Nor on its position in the batch, or on the number of processes that share an epoch."""
    recipe = AugmentRecipe(drop_inputs=0.5, num_visible_tokens=9)
    whole = changes(recipe, None, KEYS, 7, 3, modalities=MODALITIES)(patches).observed
    order = torch.arange(63, 15, -1)
    keys = [KEYS[i] for i in order.tolist()]
    part = replace(
        patches, values={n: v[order] for n, v in patches.values.items()}, batch_size=len(order)
    )
    assert torch.equal(
        changes(recipe, None, keys, 7, 3, modalities=MODALITIES)(part).observed, whole[order]
    )
    assert len({tuple(row) for row in shown(replace(patches, observed=whole)).tolist()}) > 3
    assert not torch.equal(
        changes(recipe, None, KEYS, 7, 4, modalities=MODALITIES)(patches).observed, whole
    )


def test_bands_are_dropped_by_chip_and_one_of_each_input_remains(patches):
    recipe = AugmentRecipe(drop_bands=0.5)
    dropped = changes(recipe, None, KEYS, 7, 3, modalities=MODALITIES)(patches)
    assert torch.equal(dropped.values["elevation"], patches.values["elevation"]), "has one band"
    before, after = (p.values["rgb"].reshape(64, -1, 3, 16) for p in (patches, dropped))
    kept = (before == after).all(dim=3).all(dim=1)
    assert kept.any(dim=1).all()
    others = (before * kept[:, None, :, None]).sum(dim=2) / kept.sum(dim=1)[:, None, None]
    estimate = torch.where(kept[:, None, :, None], before, others[:, :, None])
    assert torch.allclose(after, estimate, atol=1e-6), "a dropped band is the mean of the others"
    assert 0.4 < kept.float().mean() < 0.7
    part = replace(patches, values={n: v[8:] for n, v in patches.values.items()}, batch_size=56)
    alone = changes(recipe, None, KEYS[8:], 7, 3, modalities=MODALITIES)(part)
    assert torch.equal(alone.values["rgb"], dropped.values["rgb"][8:])
    again = changes(recipe, None, KEYS, 7, 4, modalities=MODALITIES)(patches)
    assert not torch.equal(again.values["rgb"], dropped.values["rgb"])


def test_the_share_of_hidden_inputs_is_checked():
    with pytest.raises(ConfigError, match=r"augment.drop_bands: 1.0 is not a share"):
        parse_finetune({}, ["--augment.drop_bands=1.0"])
    assert parse_finetune({"augment": {"drop_inputs": 0.4}}).augment.drop_inputs == 0.4
    with pytest.raises(ConfigError, match=r"augment.drop_inputs: 1.0 is not a share"):
        parse_finetune({}, ["--augment.drop_inputs=1.0"])


def test_subsets_all_or_of_the_named_ones():
    found = list(subsets("abc", None))
    assert found[0] == ("a", "b", "c")
    assert len(found) == len(set(found)) == 7
    assert list(subsets("abc", ["b"])) == [("a", "b", "c"), ("a", "c")]
    assert ("a",) in set(subsets("abc", ["b", "c"]))
    with pytest.raises(ConfigError, match="no input 'd'"):
        list(subsets("abc", ["d"]))


def test_many_inputs_are_sampled_by_size():
    names = [f"m{i}" for i in range(10)]
    found = list(subsets(names, None, seed=1))
    sizes = np.bincount([len(s) for s in found])
    assert sizes.tolist() == [0, 10, *[MOST] * 7, 10, 1]
    assert found == list(subsets(names, None, seed=1))


def test_curve_of_the_subsets():
    rows: list[dict[str, object]] = [
        {"inputs": 2, "mIoU": 0.8},
        {"inputs": 1, "mIoU": 0.4},
        {"inputs": 1, "mIoU": 0.6},
    ]
    assert curve(rows, "mIoU") == {1: (0.5, 0.4, 0.6), 2: (0.8, 0.8, 0.8)}


@pytest.mark.slow
def test_evaluate_drop_on_the_command_line(made, run, refused):
    finetune = ["finetune", "--model", made / "run/model", "--data", made / "store", "--out"]
    finetune += [made / "hidden", "--task", "classification", "--inputs", "rgb,ired,elevation"]
    finetune += ["--augment.drop_inputs", "0.5", "--run.epochs=1", "--run.accelerator=cpu"]
    assert run(*finetune)[0] == 0
    evaluate = ("evaluate", "--model", made / "hidden/model", "--data", made / "store")
    code, out, err = run(*evaluate, "--drop", "all", "--json", "--out", made / "dropped")
    assert code == 0, err
    rows = json.loads(out)
    assert len(rows) == 7
    assert [r["inputs"] for r in rows] == [3, 2, 2, 2, 1, 1, 1]
    assert json.loads(Path(made / "dropped/dropped.json").read_text(encoding="utf-8")) == rows
    # The row of all inputs is what the model scores without --drop.
    whole = json.loads(run(*evaluate, "--json")[1])
    assert rows[0]["accuracy"] == whole["metrics"]["accuracy"]["value"]
    alone = json.loads(run(*evaluate, "--json", "--inputs", "elevation")[1])
    last = next(r for r in rows if r["kept"] == "elevation")
    assert last["accuracy"] == alone["metrics"]["accuracy"]["value"]
    for name in ("dropped.html", "dropped.md", "dropped.csv"):
        assert (Path(made / "dropped") / name).stat().st_size > 0
    code, out, _ = run(*evaluate, "--drop", "rgb")
    assert code == 0
    assert "| 2 | ired, elevation | rgb |" in out
    assert "no input 'rgbb'" in refused(*evaluate, "--drop", "rgbb")
    assert "leave --inputs out" in refused(*evaluate, "--drop", "all", "--inputs", "rgb")
