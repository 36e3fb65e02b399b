"""What a resumed run keeps of the run that began."""

from __future__ import annotations

import pytest
import yaml

from multimae_eo.train.finetune_recipe import parse_finetune
from multimae_eo.train.recipe import load_recipe
from multimae_eo.train.resumed import as_begun, begun_choices, begun_options, recorded


@pytest.mark.parametrize("record", [None, [], "text", 3])
def test_without_a_record_nothing_is_kept(record, tmp_path):
    recipe = parse_finetune({})
    assert begun_choices(record) == {}
    assert as_begun(recipe, record) == recipe
    assert recorded(tmp_path) is None
    assert begun_options(tmp_path, ()) == []


def test_what_is_on_auto_takes_the_value_that_it_began_with():
    before = parse_finetune({}, ["--optim.lr=5e-4", "--run.precision=32-true"]).to_plain()
    kept = as_begun(parse_finetune({}), before)
    assert (kept.optim.lr, kept.run.precision, kept.head_init) == (5e-4, "32-true", "auto")
    given = parse_finetune({}, ["--optim.lr=1e-3", "--run.precision=bf16-mixed"])
    assert as_begun(given, before) == given
    pretraining = as_begun(load_recipe("quickstart", ["--run.precision=auto"]), before)
    assert pretraining.run.precision == "32-true"


def test_a_choice_that_did_not_exist_was_made_by_the_earlier_version():
    before = parse_finetune({}).to_plain()
    del before["head_init"]
    assert as_begun(parse_finetune({}), before).head_init == "random"
    given = parse_finetune({}, ["--head_init=linear-probe"])
    assert as_begun(given, before).head_init == "linear-probe"


def test_inputs_are_those_that_the_run_began_with(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"masking": {"num_visible_tokens": 8}}), encoding="utf-8")
    assert begun_options(tmp_path, ["--run.epochs=1"]) == ["--masking.inputs=null"]
    assert begun_options(tmp_path, ["--masking.inputs=[rgb]"]) == []
    path.write_text(yaml.safe_dump({"masking": {"inputs": ["rgb"]}}), encoding="utf-8")
    assert begun_options(tmp_path, ()) == []
