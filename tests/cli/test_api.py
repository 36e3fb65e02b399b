"""The public functions and the subcommands are the same things."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import multimae_eo
from multimae_eo.cli.main import SUBCOMMANDS


def test_make_world_is_the_former_name_of_make_synthetic_data():
    assert multimae_eo.make_world is multimae_eo.make_synthetic_data


FUNCTIONS = {
    "inspect": "inspect",
    "prepare": "prepare",
    "pretrain": "pretrain",
    "finetune": "finetune",
    "evaluate": "evaluate",
    "probe": "probe",
    "study": "study",
    "benchmark": "benchmark",
    "predict": "predict",
    "reconstruct": "reconstruct",
    "embed": "embed",
    "search": "search",
    "convert": "convert_checkpoint",
    "export": "export_model",
    "info": "describe",
    "assess": "assess",
    "map": "map_scene",
}
# Options of printing; --drop, --days and several scenes to prepare are other functions; the suite
# is required.
OPTIONS_ONLY = {"json", "drop", "days", "suite"}
OTHER_FUNCTION = {"prepare": {"retries"}}


@pytest.mark.parametrize(("name", "function"), FUNCTIONS.items())
def test_a_function_takes_its_subcommands_options_with_their_defaults(name, function):
    parameters = inspect.signature(getattr(multimae_eo, function)).parameters
    fields = {f.name: f for f in dataclasses.fields(SUBCOMMANDS[name])}
    for key in OTHER_FUNCTION.get(name, ()):
        several = inspect.signature(getattr(multimae_eo, f"{function}_scenes")).parameters
        assert several[key].default == fields.pop(key).default
    assert set(fields) - OPTIONS_ONLY == set(parameters) - OPTIONS_ONLY - {"progress"}
    for key in set(fields) - OPTIONS_ONLY:
        given = parameters[key].default
        if given is inspect.Parameter.empty:
            assert fields[key].default is dataclasses.MISSING, key
        elif isinstance(given, tuple):  # a list of names or numbers, written with commas
            text = fields[key].default
            assert text == () == given or text == ",".join(
                f"{v:g}" if isinstance(v, float) else v for v in given
            ), key
        else:
            assert fields[key].default == given, key


@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_a_function_documents_every_parameter_what_it_returns_and_raises(function):
    found = getattr(multimae_eo, function)
    text = inspect.getdoc(found) or ""
    if "As for ``" not in text and "As ``" not in text:
        for name in inspect.signature(found).parameters:
            assert name in text, name
    assert "Returns:" in text
    assert "Raises:" in text
    first, *others = inspect.signature(found).parameters.values()
    assert first.kind is first.POSITIONAL_OR_KEYWORD
    assert all(p.kind is p.KEYWORD_ONLY for p in others)
