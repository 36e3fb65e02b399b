"""A drafted dataset or scene file: its keys, each with its evidence as a comment, as YAML."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from multimae_eo.sources.yaml_section import BLANK

MERGE = "<<"
"""YAML's key that takes over the entries of an anchor."""
_WIDTH = 98


@dataclass(frozen=True)
class Entry:
    """A key, its value (a scalar, a list, a flow mapping, or further entries) and its comment.

    ``anchor``: YAML's name for the entries of this key. The key ``<<`` takes over those of the
    anchor that its value names.
    """

    key: str
    value: object
    comment: str = ""
    anchor: str = ""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What was recognised in some files, as the entries of a dataset or scene file.

    ``folder``: base of all paths in ``entries``. ``evidence``: what was recognised and from what,
    a line each. ``doubts``: what a person has to decide, beside the blanks.
    """

    kind: Literal["dataset", "scene"]
    folder: Path
    entries: tuple[Entry, ...]
    evidence: tuple[str, ...]
    doubts: tuple[str, ...] = ()

    @property
    def blanks(self) -> tuple[str, ...]:
        """The keys whose value is blank, with dots between levels."""
        return tuple(_blanks(self.entries, ""))

    def text(self, location: Path | None = None) -> str:
        """The YAML of the draft. ``location``: folder in which the file is to lie; None writes
        absolute paths."""
        lines = [f"# {line}" for text in self.evidence for line in _wrapped(text)]
        lines += [f"# Decide: {line}" for text in self.doubts for line in _wrapped(text)]
        root = self.folder.resolve()
        if location is not None and location.resolve().anchor == root.anchor:
            relative = os.path.relpath(root, location.resolve())
            root = root if relative.startswith(os.path.join("..", "..", "..")) else Path(relative)
        for entry in self.entries:
            lines += _lines(entry, 0)
            if entry.key == "name" and root != Path():
                lines += _lines(Entry("root", root.as_posix()), 0)
        return "\n".join(lines) + "\n"


def _blanks(entries: Sequence[Entry], above: str) -> Iterator[str]:
    for entry in entries:
        path = f"{above}{entry.key}"
        if isinstance(entry.value, tuple):
            yield from _blanks(entry.value, f"{path}.")
        elif entry.value == BLANK:
            yield path


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _lines(entry: Entry, level: int) -> Iterator[str]:
    indent = "  " * level
    for line in _wrapped(entry.comment):
        yield f"{indent}# {line}"
    key = _flow(entry.key)
    if entry.key == MERGE:
        yield f"{indent}{MERGE}: *{entry.value}"
    elif isinstance(entry.value, tuple):
        yield f"{indent}{key}:" + (f" &{entry.anchor}" if entry.anchor else "")
        for part in entry.value:
            yield from _lines(part, level + 1)
    elif entry.value == BLANK:
        yield f"{indent}{key}: {BLANK}"
    else:
        yield f"{indent}{key}: {_flow(entry.value)}"


def _flow(value: object) -> str:
    text: str = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("...").strip()
