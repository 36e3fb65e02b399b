"""Any key and any value of a recipe: taken, or refused in one line that names the valid ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from multimae_eo.errors import ConfigError
from multimae_eo.train.options import check_keys
from multimae_eo.train.recipe import Recipe, load_recipe, parse_recipe

JUNK = st.one_of(st.text(max_size=5), st.booleans(), st.none(), st.lists(st.integers(), max_size=2),
                 st.floats(), st.integers(-5, 5), st.dictionaries(st.text(max_size=3), st.none(),
                 max_size=1))  # fmt: skip


fast = settings(max_examples=25, deadline=None)


def refusal(act: Callable[[], object]) -> str | None:
    """The message of a ConfigError, or None; any other error is a failure."""
    try:
        act()
    except ConfigError as error:
        message = str(error)
    else:
        return None
    assert "\n" not in message
    return message


SECTIONS = ("model", "masking", "optim", "data", "run")


@fast
@given(
    section=st.sampled_from([None, *SECTIONS]),
    key=st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12),
    as_option=st.booleans(),
)
def test_an_unknown_key_is_named_beside_the_valid_ones(section, key, as_option):
    known = vars(Recipe() if section is None else getattr(Recipe(), section))
    assume(key not in known)
    path = key if section is None else f"{section}.{key}"
    record = {key: 1} if section is None else {section: {key: 1}}
    message = refusal(
        (lambda: load_recipe("quickstart", [f"--{path}=1"]))
        if as_option
        else (lambda: check_keys(record, Recipe, where="own.yaml"))
    )
    assert message is not None
    assert key in message
    assert all(name in message for name in known)


@fast
@given(
    section=st.sampled_from(SECTIONS), data=st.data(), value=JUNK,
)  # fmt: skip
def test_any_value_of_any_option_is_taken_typed_or_refused_in_one_line(section, data, value):
    default = getattr(Recipe(), section)
    field = data.draw(st.sampled_from(sorted(vars(default))))
    found: list[Recipe] = []
    record = {section: {field: value}}
    message = refusal(lambda: found.append(parse_recipe(record, where="own.yaml")))
    if message is not None:
        assert "own.yaml" in message
        return
    taken = getattr(getattr(found[0], section), field)
    if value is None:
        assert taken is None or taken == getattr(default, field)
    if isinstance(taken, float):
        assert math.isfinite(taken)
    if isinstance(taken, bool):
        assert value in (True, False, "true", "false", "yes", "no", "on", "off")
    assert parse_recipe(yaml.safe_load(found[0].to_yaml())) == found[0]
