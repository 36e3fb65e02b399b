"""Strict reading of YAML: duplicate and unknown keys are errors; every error names its location."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.files import read_text, reason_of
from multimae_eo.sources.file_names import composed
from multimae_eo.sources.unsupported_files import other_kind

YAML_BYTES, YAML_NODES = 1 << 23, 1_000_000
"""Most bytes of a YAML file, and most values that it may stand for."""
BLANK = "???"
"""A value that the user has to fill in, as a drafted file has it where the data leave it open."""


def one_line(text: object, limit: int = 160) -> str:
    """``text`` on a single line, cut at ``limit`` characters, for messages."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (YAML itself keeps the last, silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        # Only keys as written: merged ones (<<) may be overridden.
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key_node, yaml.ScalarNode) and not key_node.tag.endswith(":merge"):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | str:
        """A whole number as people mean it: ``007`` and ``2019_05`` are names, ``12:30`` a time
        (YAML 1.1 reads 7, 201905 and 750)."""
        text = self.construct_scalar(node)
        if re.fullmatch(r"[-+]?0\d+|.*[_:].*", str(text)):
            return str(text)
        return self.construct_yaml_int(node)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_number)


def load_yaml(path: Path) -> Any:
    """Read one YAML document; ConfigError names the file and the line."""
    try:
        text = read_text(path, ConfigError, limit=YAML_BYTES, remedy="write it as UTF-8 text")
    except ConfigError as error:
        kind = other_kind(path) if path.is_file() else ""
        if kind:
            raise ConfigError(f"{path}: {kind}") from error
        raise
    return parse_yaml(text.removeprefix("\ufeff"), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The plain data of one YAML document; ConfigError names ``where`` and the line.

    No type but YAML's own is made, no key may be given twice, and aliases may not make much of
    little.
    """
    loader = None
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > YAML_NODES:
            raise ConfigError(f"{where}: YAML: aliases make more than {YAML_NODES} values of it")
        _require_filled(node, text, where)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: YAML: {one_line(error.problem)}") from error
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError(f"{where}: YAML: nested too deeply") from error
    except Exception as error:
        # A scalar whose tag does not fit it makes the library raise anything.
        raise ConfigError(f"{where}: YAML: {one_line(reason_of(error))}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node stands for once aliases are followed; more than allowed for a loop."""
    size = sizes.get(id(node))
    if size is None:
        sizes[id(node)] = YAML_NODES + 1  # what holds itself never ends
        below: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            below = node.value
        elif isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        size = sizes[id(node)] = 1 + sum(_expanded(part, sizes) for part in below)
    return size


def _require_filled(top: yaml.Node, text: str, where: str) -> None:
    """ConfigError naming the first line with a blank, and the comment above it."""
    blanks: list[tuple[int, str]] = []
    seen: set[int] = set()
    nodes = [("", top)]
    for key, node in nodes:  # breadth first, so that a merged value is named where it is written
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            nodes += [(f"{key}.{k.value}".strip("."), v) for k, v in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += [(key, v) for v in node.value]
        elif isinstance(node, yaml.ScalarNode) and node.style is None and node.value == BLANK:
            blanks.append((node.start_mark.line, key))
    if not blanks:
        return
    line, key = min(blanks)
    above: list[str] = []
    lines = text.splitlines()
    for comment in reversed(lines[:line]):
        if not comment.lstrip().startswith("#"):
            break
        above.insert(0, comment.strip().lstrip("#").strip())
    more = f" ({len(blanks)} blanks in all)" if len(blanks) > 1 else ""
    remedy = one_line(" ".join(above), 300) or "write its value"
    raise ConfigError(f"{where}, line {line + 1}: {key}: replace {BLANK}{more}: {remedy}")


@dataclass(frozen=True)
class Section:
    """A mapping of a YAML file with typed access; ``where`` leads every error message."""

    where: str
    record: Mapping[str, object]

    @classmethod
    def of(cls, where: str, record: object, keys: Sequence[str]) -> Section:
        """Check that ``record`` is a mapping with no other than the valid ``keys``."""
        if not isinstance(record, Mapping):
            raise ConfigError(
                f"{where}: expected a mapping with keys among {', '.join(keys)}; "
                f"got {one_line(repr(record), 60)}"
            )
        for key in record:
            if key not in keys:
                raise ConfigError(f"{where}: unknown key {key!r}; {did_you_mean(str(key), keys)}")
        return cls(where, record)

    def __contains__(self, key: str) -> bool:
        return self.record.get(key) is not None

    def error(self, key: str, message: str) -> ConfigError:
        """A ConfigError about one key, showing its value."""
        got = one_line(repr(self.record.get(key)), 80)
        return ConfigError(f"{self.where}: {key}: {message}; got {got}")

    def get(self, key: str, default: Any = None) -> Any:
        """The value as parsed; ``default`` where it is missing or null."""
        value = self.record.get(key)
        return default if value is None else value

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, "expected text (quote it)")
        if any(ord(ch) < 32 for ch in value):
            raise self.error(key, "no line breaks or control characters here")
        return value

    def flag(self, key: str) -> bool:
        """A boolean, false by default."""
        value = self.get(key, False)
        if not isinstance(value, bool):
            raise self.error(key, "expected true or false")
        return value

    def number(self, key: str) -> float | None:
        """A finite number, or None where it is missing."""
        if key not in self:
            return None
        number = as_number(self.get(key))
        if number is None or not math.isfinite(number):
            raise self.error(key, "expected a finite number")
        return number

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """A number (``nan`` allowed) or a list of them, or None where it is missing."""
        if key not in self:
            return None
        value = self.get(key)
        numbers = [as_number(v) for v in (value if isinstance(value, list) else [value])]
        if any(n is None for n in numbers):
            raise self.error(key, "expected a number, nan, or a list of numbers")
        return tuple(n for n in numbers if n is not None)

    def names(self, key: str) -> tuple[str, ...] | None:
        """A list of distinct names (whole numbers become text), or None where it is missing."""
        if key not in self:
            return None
        value = self.get(key)
        if not isinstance(value, list) or not all(
            isinstance(v, str | int | datetime.date) and not isinstance(v, bool) and str(v)
            for v in value
        ):
            raise self.error(key, "expected a list of names (quote yes, no, on and off)")
        names = tuple(composed(str(v)) for v in value)
        if len(set(names)) != len(names):
            raise self.error(key, "a name is given twice")
        return names


def as_number(value: object) -> float | None:
    """A float from a number or its text (YAML reads ``1e-4`` as text), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
