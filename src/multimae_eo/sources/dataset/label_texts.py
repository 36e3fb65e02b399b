"""Labels as people write them in tables: numbers, lists of classes, names to merge or leave out."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from multimae_eo.errors import ClassMapError, did_you_mean

_LISTED = re.compile(r"^\s*[\[({](.*)[\])}]\s*$", re.DOTALL)
_BETWEEN = re.compile(r"(?<=['\"])\s+(?=['\"])")
_INTEGER = re.compile(r"^[-+]?\d+(?:\.0+)?$")


def class_texts(texts: Mapping[str, str], separator: str) -> tuple[dict[str, list[str]], bool]:
    """The classes that each chip's text names, and whether chips may have several.

    Several are written with ``separator`` between them, or as a list: ``["a", "b"]``, ``[a, b]``,
    ``{a, b}``, ``('a', 'b')``, or as NumPy prints them: ``['a' 'b']``. A whole number is one class
    however it is written (``3``, ``3.0``).
    """
    several = bool(separator) or (
        bool(texts)
        and all(_LISTED.match(text) for text in texts.values())
        and any(sign in text for text in texts.values() for sign in "[{,;")
    )
    if not several:
        return {key: [integer_text(text)] for key, text in texts.items()}, False
    return {key: _several(text, separator) for key, text in texts.items()}, True


def _several(text: str, separator: str) -> list[str]:
    # Without a comma Python would join the two texts.
    text = _BETWEEN.sub(", ", text)
    listed = _LISTED.match(text)
    parts: Sequence[object]
    if listed:
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(value, list | tuple | set | frozenset):
                parts = sorted(map(str, value)) if isinstance(value, set) else list(value)
                break
        else:
            parts = re.split(r"[,;|]|" + re.escape(separator or ","), listed[1])
            numbers = listed[1].split()
            if len(parts) == 1 and all(_INTEGER.match(n.rstrip(".")) for n in numbers):
                parts = [n.rstrip(".") for n in numbers]
    else:
        parts = text.split(separator)
    names = [integer_text(str(part).strip().strip("\"'").strip()) for part in parts]
    return list(dict.fromkeys(name for name in names if name))


def integer_text(text: str) -> str:
    """``3.0`` as ``3`` (columns of numbers with gaps are written so); other texts as they are."""
    return text.split(".", maxsplit=1)[0] if _INTEGER.match(text) and "." in text else text


def sorted_classes(names: Iterable[str], where: str) -> tuple[str, ...]:
    """Class names in order: as numbers where all are, else as text.

    ClassMapError where two of them are the same number.
    """
    distinct = sorted(set(names))
    if not distinct or not all(_INTEGER.match(name) for name in distinct):
        return tuple(distinct)
    by_number: dict[int, str] = {}
    for name in distinct:
        if by_number.setdefault(int(name), name) != name:
            raise ClassMapError(
                f"{where}: classes {by_number[int(name)]!r} and {name!r} are one number; write one"
            )
    return tuple(by_number[number] for number in sorted(by_number))


def number_of(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def require_classes(where: str, key: str, names: Iterable[str], classes: Sequence[str]) -> None:
    """ClassMapError where a chip's label names a class that is not among ``classes``."""
    for name in names:
        if name not in classes:
            raise ClassMapError(
                f"{where}: chip {key!r}: no class {name!r}; {did_you_mean(name, classes)}"
            )
