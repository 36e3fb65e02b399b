"""Class maps written in a dataset file: a mapping of ids to names, or a list of records."""

from __future__ import annotations

import re
from collections.abc import Mapping

from multimae_eo.class_colors import Color, class_colors
from multimae_eo.modality import ClassMapEntry
from multimae_eo.sources.yaml_section import Section


def inline_class_map(section: Section, value: object) -> tuple[ClassMapEntry, ...]:
    """Classes from ``{10: trees, …}`` or ``[{id: 10, name: trees, color: "#006400"}, …]``."""
    if isinstance(value, Mapping):
        value = [{"id": raw, "name": name} for raw, name in value.items()]
    if not isinstance(value, list) or not value:
        raise section.error("legend", "expected a catalogue name, {id: name} or a list of records")
    entries = [_class(section, index, record) for index, record in enumerate(value)]
    colors = class_colors([name for _, name, _ in entries])
    return tuple(
        ClassMapEntry(id=raw, name=name, color=given or color)
        for (raw, name, given), color in zip(entries, colors, strict=True)
    )


def _class(section: Section, index: int, record: object) -> tuple[int, str, Color | None]:
    """Id, name, and colour where one is given."""
    entry = Section.of(f"{section.where}: legend[{index}]", record, ("id", "name", "color"))
    raw = entry.get("id")
    if type(raw) is not int:
        raise entry.error("id", "expected a whole number")
    name = entry.text("name")
    if not name:
        raise entry.error("name", "a class needs a name")
    return raw, name, _color(entry, entry.get("color")) if "color" in entry else None


def _color(entry: Section, value: object) -> Color:
    if isinstance(value, str) and re.fullmatch(r"#?[0-9a-fA-F]{6}", value):
        digits = value.removeprefix("#")
        return int(digits[0:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)
    if (
        isinstance(value, list)
        and len(value) == 3
        and all(type(v) is int and 0 <= v <= 255 for v in value)
    ):
        return value[0], value[1], value[2]
    raise entry.error("color", 'expected "#rrggbb" (quoted) or [r, g, b] of 0 to 255')
