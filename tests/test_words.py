"""Documentation, ``--help`` and code use the field's words (`tests/support/words.py`)."""

from __future__ import annotations

import re

import pytest

from tests.support.paths import ROOT
from tests.support.words import (
    ALLOWED,
    SRC,
    hits_of,
    identifier_hits,
    markdown_hits,
    python_hits,
    source_hits,
)

# docs/reference/cli.md holds every --help text; the other pages of the reference are docstrings,
# which are checked where they are written.
PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / ".github/pull_request_template.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs/reference/cli.md",
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted((ROOT / "examples").glob("*.yaml")),
    *sorted((ROOT / "src/multimae_eo/recipes").glob("*.yaml")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_use_the_fields_words(page):
    assert not (hits := hits_of(page)), "\n".join(map(str, hits))


def test_code_uses_the_fields_words():
    """``python tests/support/words.py FILE`` lists the hits of a file, with suggestions."""
    assert not (hits := source_hits()), "\n".join(map(str, hits))


def test_every_allowed_word_is_still_in_use():
    for module, word in ALLOWED:
        assert re.search(rf"\b{re.escape(word)}\b", (SRC / module).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The red edge is told to 0.05.", ["told"]),
        ("A made-up scene\nwith the commonest class", ["made-up", "commonest"]),
        ("`--data.turns` is an option", []),
        ("```\nmultimae-eo told\n```\nsaid", ["said"]),
        ("in place of a head", []),
        ("the place of a chip", ["place"]),
    ],
)
def test_prose_is_checked_outside_of_code(text, words):
    assert [hit.word for hit in markdown_hits(text, "page")] == words


def test_hits_name_the_line():
    hits = python_hits('"""Doc."""\nfound = 1\n# What was said.\nx = "told"\n', "a.py")
    assert [(h.line, h.word) for h in hits] == [(2, "found"), (3, "said"), (4, "told")]


@pytest.mark.parametrize(
    ("name", "count"), [("wanted_bands", 1), ("unknown", 0), ("SceneHow", 1), ("known", 1)]
)
def test_identifiers_are_checked_by_their_parts(name, count):
    assert len(list(identifier_hits(name, "a.py", 1))) == count
