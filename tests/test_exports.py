"""What ``import multimae_eo`` offers."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import pytest

import multimae_eo
from multimae_eo import errors
from tests.support.paths import ROOT


@pytest.mark.parametrize("name", multimae_eo.__all__)
def test_every_exported_name_resolves_and_is_documented(name):
    thing = getattr(multimae_eo, name)
    assert name in dir(multimae_eo)
    if name == "__version__":
        assert re.fullmatch(r"\d+\.\d+\.\d+\S*", thing)
        version = (ROOT / "src/multimae_eo/version.py").read_text(encoding="utf-8")
        assert f'__version__ = "{thing}"' in version
        return
    said = inspect.getdoc(thing)
    assert said
    first = said.splitlines()[0]
    assert not first.startswith(f"{name}("), "a dataclass's own signature is no documentation"
    assert thing.__module__.startswith("multimae_eo.")


def test_lazy_names_and_all_agree():
    assert {*multimae_eo._MODULE_OF, "__version__"} == set(multimae_eo.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'MultiMEA'"):
        multimae_eo.MultiMEA  # noqa: B018


def test_every_module_imports_and_says_what_it_is():
    for found in pkgutil.walk_packages(multimae_eo.__path__, "multimae_eo."):
        if found.name.startswith("multimae_eo.plugins."):
            continue  # They need other frameworks; tests/plugins imports them on stand-ins.
        assert inspect.getdoc(importlib.import_module(found.name)), found.name


def test_the_drawn_tree_of_errors_is_the_tree():
    drawn = re.findall(r"(\w+Error) ", errors.__doc__ or "")
    made = {n: c for n, c in vars(errors).items() if n.endswith("Error")}
    assert sorted(drawn) == sorted(made)
    for row in (errors.__doc__ or "").splitlines():
        for name in re.findall(r"── (\w+Error)", row):
            parent = errors.DataError if row.strip().startswith("│   ") else errors.MultiMAEError
            assert made[name].__bases__ == (parent,)
