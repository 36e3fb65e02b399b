"""Recipes: typed, from YAML and back, overridden from outside, honest in their head."""

from __future__ import annotations

import dataclasses
import re
from importlib import resources
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.catalog import make_class_map, modality
from multimae_eo.cli.main import SUBCOMMANDS
from multimae_eo.errors import ConfigError
from multimae_eo.modality import ModalitySet
from multimae_eo.network.config import DecoderConfig, EncoderConfig, HeadConfig, ModalityRoles
from multimae_eo.train.finetune_recipe import parse_finetune
from multimae_eo.train.options import options_help
from multimae_eo.train.recipe import (
    ContrastiveRecipe,
    Recipe,
    TaskRecipe,
    load_recipe,
    parse_recipe,
    recipe_names,
)


def head_of(name: str) -> str:
    """The comment that a recipe opens with, as one line."""
    text = (resources.files("multimae_eo") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    lines = re.match(r"(?:#.*\n)+", text)
    assert lines is not None, f"{name} opens with a comment"
    return " ".join(re.sub(r"^# ?", "", line) for line in lines[0].splitlines())


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_loads_and_says_what_it_is_its_cost_and_its_command(name):
    recipe = load_recipe(name)
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    head = head_of(name)
    about = head.split("Command:")[0]
    assert len(about.split()) >= 8, "what it reproduces"
    command = re.search(r"Command:\s+multimae-eo (\S+)(.*)", head)
    assert command is not None
    assert command[1] in SUBCOMMANDS
    assert command[1] == "quickstart" or f"--recipe {name}" in command[2]
    assert re.search(r"(minute|hour|second|GFLOP|epochs of)", head), "its cost"


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_consistent_with_itself(name):
    recipe = load_recipe(name)
    assert recipe.data.chip is not None
    assert recipe.data.chip % recipe.model.patch == 0
    known = set(recipe.modalities)
    assert len(known) == len(recipe.modalities)
    assert set(recipe.model.stride) <= known
    assert {t.modality for t in recipe.tasks.values()} <= known
    tokens = len(known) * (recipe.data.chip // recipe.model.patch) ** 2
    assert recipe.masking.num_visible_tokens < tokens, "something is left to predict"


@pytest.mark.parametrize("name", recipe_names())
def test_class_maps_and_indices_are_targets_only_but_in_the_papers_recipe(name):
    recipe = load_recipe(name)
    derived = {"landcover", "semseg", "ndvi"} & set(recipe.modalities)
    inputs = set(recipe.modalities if recipe.masking.inputs is None else recipe.masking.inputs)
    assert bool(derived & inputs) == (name == "paper-mmearth64")


def test_the_papers_recipe_is_the_papers():
    recipe = load_recipe("paper-mmearth64")
    assert recipe.modalities == ["rgb", "depth", "semseg", "ired", "sired", "ebands"]
    assert recipe.tasks["norm_rgb"] == TaskRecipe(modality="rgb", loss="mse", patch_normalise=True)
    assert recipe.tasks["depth"].loss == "l1"
    assert len(recipe.tasks) == 7
    assert (recipe.model.encoder, recipe.model.patch, recipe.masking.num_visible_tokens) == (
        "base",
        8,
        49,
    )
    assert (recipe.data.chip, recipe.run.epochs, recipe.optim.lr) == (56, 1000, 1e-4)


def test_an_encoder_is_a_name_or_its_measures():
    assert load_recipe("paper-mmearth64").model.encoder == "base"
    measured = load_recipe("quickstart").model
    assert measured.encoder == EncoderConfig(width=96, depth=4, heads=4)
    assert measured.decoder == DecoderConfig(width=48, depth=1, heads=4)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"optim": {"lrr": 1}}, r"optim: unknown key 'lrr'; did you mean 'lr'"),
        ({"modalites": []}, r"unknown key 'modalites'; did you mean 'modalities'"),
        ({"model": {"decoder": {"widht": 3}}}, r"decoder: unknown key 'widht'.* 'width'"),
        (
            {"tasks": {"a": {"modality": "rgb", "los": "l1"}}},
            r"tasks\.a: unknown key 'los'.*'loss'",
        ),
        ({"model": {"encoder": {"widht": 3}}}, r"encoder: unknown key 'widht'.* 'width'"),
        ({"tasks": ["rgb"]}, "tasks: expected named entries"),
        ({"optim": [1]}, "optim: expected keys and values, got list"),
        ({"optim": {"lr": "fast"}}, "lr"),
        ({"run": {"epochs": 1.5}}, "epochs"),
        ({"run": {"epochs": 0}}, r"run\.epochs must be ≥ 1, got 0"),
        ({"run": {"precision": "64"}}, "precision"),
        ({"masking": {"alpha": 0}}, r"masking\.alpha must be > 0, got 0"),
        ({"data": {"val_fraction": 1.0}}, r"val_fraction must be in \[0, 1\), got 1"),
        ({"optim": {"ema": 1.0}}, r"optim\.ema must be in \(0, 1\), got 1"),
        ({"masking": {"decoded": 0}}, r"masking\.decoded must be in \(0, 1\], got 0"),
        ({"masking": {"band_dropout": 0.5}}, r"band_dropout must be in \[0, 0\.3\], got 0\.5"),
        ({"masking": {"roles": {"unused": -1}}}, r"masking\.roles\.unused must be ≥ 0, got -1"),
        (
            {"masking": {"roles": {"both": 0, "encoded": 1}}},
            r"masking\.roles: decoded or both must be > 0",
        ),
        ({"masking": {"roles": {"bth": 1}}}, r"masking: roles: unknown key 'bth'.*'both'"),
        ({"targets": {"patch_normalised": -1}}, r"targets\.patch_normalised must be ≥ 0"),
        ({"targets": {"random_projection": -1}}, r"targets\.random_projection must be ≥ 0"),
        ({"data": {"batch_size": 0}}, r"data\.batch_size must be ≥ 1"),
        ({"data": {"workers": -1}}, r"data\.workers must be ≥ 0"),
    ],
)
def test_a_wrong_recipe_file_is_refused_in_one_line_with_its_name(tmp_path, record, message):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(record))
    with pytest.raises(ConfigError, match=message) as told:
        load_recipe(path)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "just words", "{a: 1}: 2", "\t"])
def test_what_is_no_recipe_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as told:
        load_recipe(path)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


def test_a_recipe_that_is_not_text_or_not_there_is_refused(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xff\xfe\x00 not text")
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_recipe(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        load_recipe("quikstart")


def test_an_empty_recipe_is_all_defaults(tmp_path):
    (tmp_path / "own.yaml").write_text("# nothing\n")
    assert load_recipe(tmp_path / "own.yaml") == Recipe()


@pytest.mark.parametrize(
    ("overrides", "path", "value"),
    [
        (["--model.encoder={width: 48, depth: 2, heads: 3}"], "model.encoder.width", 48),
        (["--optim.lr=3e-4"], "optim.lr", 3e-4),
        (["--optim.lr", "3e-4"], "optim.lr", 3e-4),
        (["--modalities=[rgb, elevation]"], "modalities", ["rgb", "elevation"]),
        (["--masking.inputs=[rgb]"], "masking.inputs", ["rgb"]),
        (["--masking.roles.unused=0.5"], "masking.roles.unused", 0.5),
        (["--masking.decoded=0.25"], "masking.decoded", 0.25),
        (["--model.stride={landcover: 4}"], "model.stride", {"landcover": 4}),
        (["--model.encoder=tiny"], "model.encoder", "tiny"),
        (["--model.encoder.depth=7"], "model.encoder.depth", 7),
        (["--model.encoder", "tiny", "--model.encoder.depth", "7"], "model.encoder.depth", 7),
        (["--model.decoder.width=24"], "model.decoder.width", 24),
        (["--data.chip=null"], "data.chip", None),
        (["--run.devices=2"], "run.devices", 2),
        (["--optim.ema=0.9", "--run.seed=5"], "run.seed", 5),
    ],
)
def test_an_override_changes_what_it_names_and_nothing_else(overrides, path, value):
    before, after = load_recipe("quickstart"), load_recipe("quickstart", overrides)
    found: Any = after
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value
    roots = {o.removeprefix("--").split(".")[0].split("=")[0] for o in overrides}
    if "modalities" in roots:
        roots.add("masking")  # its inputs are among the modalities
    for name in {f.name for f in dataclasses.fields(Recipe)} - roots:
        assert getattr(after, name) == getattr(before, name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--optim.lrr=1", r"unknown option --optim\.lrr; did you mean 'optim\.lr'"),
        ("--optm.lr=1", "did you mean 'optim'"),
        ("--run.epoch=1", r"did you mean 'run\.epochs'"),
        ("--model.encoder.dpeth=3", r"unknown key 'dpeth'; did you mean 'depth'"),
        ("--model.encoder=[", "expected the node content"),
        ("--model.encoder=3", "encoder"),
        ("--optim.lr=fast", "lr"),
        ("--data.flips=perhaps", "flips"),
        ("--tasks={a: {modality: rgb, los: l1}}", "los"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(override, message):
    with pytest.raises(ConfigError, match=message) as told:
        load_recipe("quickstart", [override])
    assert "\n" not in str(told.value)


@settings(max_examples=25, deadline=None)
@given(
    lr=st.floats(1e-6, 10),
    inputs=st.none() | st.lists(st.sampled_from(["rgb", "ired"]), min_size=1, unique=True),
    chip=st.none() | st.integers(1, 512),
    clip=st.none() | st.floats(1e-3, 100),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.999)),
    encoder=st.sampled_from(["base", EncoderConfig(width=24, depth=1, heads=2)]),
    weight=st.floats(0, 5),
)
def test_yaml_gives_back_every_recipe(lr, inputs, chip, clip, betas, encoder, weight):
    recipe = Recipe(tasks={"t": TaskRecipe(modality="rgb", weight=weight)})
    recipe.optim.lr, recipe.optim.clip, recipe.optim.betas = lr, clip, betas
    recipe.masking.inputs, recipe.data.chip, recipe.model.encoder = inputs, chip, encoder
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


def test_help_lists_every_option_with_a_meaning():
    lines = options_help(Recipe).splitlines()
    said = dict(zip(lines[::2], lines[1::2], strict=True))
    for root, kind in get_type_hints(Recipe).items():
        names = [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
        if "roles" in names:
            roles = [f"roles.{f.name}" for f in dataclasses.fields(ModalityRoles)]
            names = [n for n in names if n != "roles"] + roles
        for option in [f"{root}.{n}" for n in names] or [root]:
            meaning = said[f"  --{option}"].split("(default")[0].strip()
            assert len(meaning) > 8, option


@pytest.mark.parametrize(
    ("overrides", "inputs"),
    [
        (["--modalities=[rgb, elevation, landcover]"], ["rgb", "elevation"]),
        (["--modalities=[rgb, landcover, thermal]"], ["rgb", "thermal"]),
        (["--modalities=[rgb, elevation]"], None),
        (["--modalities=[landcover]"], None),
        (["--modalities=[rgb, landcover]", "--masking.inputs=[landcover]"], ["landcover"]),
        (["--modalities=[rgb, landcover]", "--masking.inputs=null"], None),
    ],
)
def test_other_modalities_keep_what_the_recipe_has_as_targets_only(overrides, inputs):
    assert load_recipe("quickstart", overrides).masking.inputs == inputs


def test_a_recipe_resolves_on_the_data_it_gets():
    data = ModalitySet(
        [modality("rgb"), modality("elevation"), make_class_map("c", class_map_name="esri_lulc")]
    )
    modalities, tasks = Recipe().resolve(data)
    assert modalities == data
    assert [(t.name, t.loss) for t in tasks] == [
        ("rgb", "mse"), ("elevation", "mse"), ("c", "cross_entropy"),
    ]  # fmt: skip
    fewer, _ = Recipe(modalities=["c", "rgb"]).resolve(data)
    assert fewer.names == ("c", "rgb")
    with pytest.raises(ConfigError, match="did you mean 'rgb'"):
        Recipe(modalities=["rbg"]).resolve(data)
    with pytest.raises(ConfigError, match=r"no modality 'elevation'"):
        Recipe(modalities=["rgb"], tasks={"e": TaskRecipe(modality="elevation")}).resolve(data)


def test_former_values_of_options_are_read():
    options = ["--head.pool=layers-spread", "--augment.visible=9"]
    recipe = parse_finetune({}, options)
    assert (recipe.head.pool, recipe.augment.num_visible_tokens) == ("all-layers-mean-std", 9)
    record = {"head": {"pool": "spread"}, "augment": {"visible": 4}}
    recipe = parse_finetune(record, [])
    assert (recipe.head.pool, recipe.augment.num_visible_tokens) == ("mean-std", 4)
    assert HeadConfig(pool="layers").pool == "all-layers-mean"  # type: ignore[arg-type]


def test_former_names_of_options_are_read():
    old = {"agreement": {"turns": True, "gain": 0.1}, "data": {"turns": True}}
    recipe = parse_recipe(old, ["--agreement.weight=0.5", "--run.recompute", "true"])
    assert recipe.contrastive == ContrastiveRecipe(weight=0.5, rot90=True, brightness_jitter=0.1)
    assert recipe.data.rot90
    assert recipe.run.activation_checkpointing
    assert parse_recipe(old, ["--agreement.gain=0.3"]).contrastive.brightness_jitter == 0.3
