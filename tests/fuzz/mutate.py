"""Seeded mutations: of bytes, of lines and scalars of text, of values of JSON."""

from __future__ import annotations

import json
import random
import re
from typing import Any

WORDS = (
    "", "null", "~", "true", "maybe", "-1", "0", "1", "3.5", "1e400", "-1e-400", ".nan", ".inf",
    "NaN", "Infinity", "9" * 5000, "99999999999999999999", "2147483648", "1000000000", "[]", "{}",
    "[[], {}]", "{a: {a: {a: 1}}}", "'", '"', "!!bool maybe", "!!int x", "!!float [1]",
    "!!timestamp 1", "!!binary '*'", "!!python/object/apply:os.system [id]", "&a [*a]", "*a",
    "? [1]: 2", "é\u0000", "\ud7ff", "../../etc/passwd", "/dev/zero", "/proc/self/mem", ".", "..",
    "x" * 300, "a,b,c", "%s%n", "{id}", "{}", "{0}", "http://127.0.0.1:9/x.tif", "/vsicurl/x",
    "EPSG:0", "EPSG:999999", "int", "O", "<f8", "|V8", "float128",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3.5, 10**9, 2**31, 2**63, 10**30, 1e308, float("nan"),
    float("inf"), "", "x", "9" * 50, [], {}, [[]], [None], {"a": 1}, [1, 2, 3], ["a"] * 3,
    "../../etc/passwd", "\u0000", "O", "|O8", "<f8", "float32",
)  # fmt: skip


def mutate(data: bytes, text: str, rng: random.Random) -> bytes:
    """A broken version of a file. ``text``: as of ``Kind``."""
    if rng.random() < 0.02:
        return b""
    if text == "json" and rng.random() < 0.75:
        return mutated_json(data, rng)
    if text and rng.random() < 0.85:
        return mutated_text(data, rng)
    return mutated_bytes(data, rng)


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut, doubled, zeroed or inserted; headers more often than pixels."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        if not changed:
            break
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 512)
        at = rng.randrange(reach)
        if rng.random() < 0.2:
            at = max(0, len(changed) - 1 - rng.randrange(min(len(changed), 512)))
        length = rng.choice([1, 1, 2, 4, 8, 64, 1024])
        way = rng.randrange(7)
        if way == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            changed[at] = rng.choice([0, 1, 127, 128, 255])
        elif way == 2:
            del changed[at : at + length]
        elif way == 3:
            changed[at:at] = changed[at : at + length]
        elif way == 4:
            changed[at : at + length] = bytes(min(length, len(changed) - at))
        elif way == 5:
            changed[at : at + length] = b"\xff" * min(length, len(changed) - at)
        else:
            del changed[at:]
    return bytes(changed)


def mutated_text(data: bytes, rng: random.Random) -> bytes:
    """Scalars replaced, lines removed, doubled, swapped or indented."""
    lines = data.decode("utf-8", "replace").splitlines()
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not lines:
            break
        at = rng.randrange(len(lines))
        way = rng.randrange(8)
        if way <= 3:
            spans = list(re.finditer(r"[^\s,:\[\]{}'\"]+", lines[at])) or [None]
            span = rng.choice(spans)
            word = rng.choice(WORDS)
            lines[at] = (
                word if span is None else lines[at][: span.start()] + word + lines[at][span.end() :]
            )
        elif way == 4:
            del lines[at]
        elif way == 5:
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif way == 6:
            lines[at] = " " * rng.randrange(1, 5) + lines[at]
        else:
            lines.insert(at, rng.choice(WORDS))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """A value of the document replaced, removed, doubled or nested; or the document nested."""
    document = json.loads(data)
    if rng.random() < 0.03:
        return b"[" * 100_000
    for _ in range(rng.choice([1, 1, 2, 4])):
        holders = [h for h in _holders(document) if len(h)]
        if not holders:
            break
        holder = rng.choice(holders)
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        way = rng.randrange(6)
        if way <= 2:
            holder[key] = rng.choice(VALUES)
        elif way == 3:
            del holder[key]
        elif way == 4:
            holder[key] = [holder[key]] * rng.choice([1, 2, 50])
        elif isinstance(holder, dict):
            holder[rng.choice(["x", "", "a/b", "../x", str(key) + "x"])] = holder.pop(key)
        else:
            holder.append(holder[key])
    return json.dumps(document).encode()


def _holders(document: Any) -> list[Any]:
    if isinstance(document, dict):
        return [document, *(h for v in document.values() for h in _holders(v))]
    if isinstance(document, list):
        return [document, *(h for v in document for h in _holders(v))]
    return []
