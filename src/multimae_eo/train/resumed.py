"""What a resumed run keeps: choices that its recipe leaves open, as they were when it began.

By then a default, a rule or the machine may be another one. ``begun_choices`` is the list of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from multimae_eo.sources.yaml_section import load_yaml
from multimae_eo.train.finetune_recipe import FinetuneRecipe
from multimae_eo.train.options import with_current_names
from multimae_eo.train.recipe import Recipe, names_inputs
from multimae_eo.train.run import with_precision

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RecipeKind = TypeVar("RecipeKind", Recipe, FinetuneRecipe)
Part = TypeVar("Part", bound="DataclassInstance")
_OPEN = "auto"


def recorded(out: Path) -> object:
    """The record of the run in ``out``, of whatever shape; None where there is none."""
    path = out / "recipe.yaml"
    return load_yaml(path) if path.exists() else None


def begun_choices(before: object) -> dict[str, object]:
    """The choices, by option, that the run with the record ``before`` keeps; none without a record.

    What its record lacks is what was done before there was a choice.
    """
    before = with_current_names(before)
    if not isinstance(before, Mapping):
        return {}
    choices: dict[str, object] = {}
    run, optim, masking = (before.get(section) for section in ("run", "optim", "masking"))
    if isinstance(run, Mapping) and isinstance(run.get("precision"), str):
        # The one that auto stood for on the machine where it began.
        choices["run.precision"] = run["precision"]
    if isinstance(optim, Mapping) and isinstance(optim.get("lr"), int | float):
        choices["optim.lr"] = float(optim["lr"])
    if "head_init" not in before:
        choices["head_init"] = "random"
    if isinstance(masking, Mapping) and masking.get("inputs") is None:
        # In version 0.1 the recipes' class maps were inputs as well.
        choices["masking.inputs"] = None
    return choices


def as_begun(recipe: RecipeKind, before: object) -> RecipeKind:
    """``recipe`` with the choices of the run with the record ``before`` for what is on auto."""
    for option, value in begun_choices(before).items():
        section, _, name = option.rpartition(".")
        part = getattr(recipe, section, None) if section else recipe
        if getattr(part, name, None) == _OPEN:
            recipe = _with(recipe, option.split("."), value)
    return recipe


def _with(part: Part, path: Sequence[str], value: object) -> Part:
    """A recipe, or a section of it, with another value of the option at ``path``."""
    name, *rest = path
    changes: dict[str, Any] = {name: _with(getattr(part, name), rest, value) if rest else value}
    return replace(part, **changes)


def resolved(recipe: RecipeKind, out: Path) -> RecipeKind:
    """``recipe`` as the run in ``out`` computes: as it began, and in a precision of its device."""
    recipe = as_begun(recipe, recorded(out))
    return replace(recipe, run=with_precision(recipe.run))


def begun_options(out: Path, overrides: Sequence[str]) -> list[str]:
    """The choices of the run in ``out`` that no recipe leaves open, as options: all inputs.

    Empty for other runs, and where ``overrides`` name the inputs.
    """
    kept = "masking.inputs" in begun_choices(recorded(out)) and not names_inputs(overrides)
    return ["--masking.inputs=null"] if kept else []
