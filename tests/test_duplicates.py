"""No two places in ``src`` share more than 12 lines of logic.

Code is compared statement by statement. Comments, docstrings, imports, layout, signatures and the
names of local variables do not count; attributes, global names and constants do.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"
MAX_LINES = 12
MIN_STATEMENTS = 4  # shorter runs (a long call, a record) are no logic to share
MAX_OWNERS = 12  # a statement that stands in more functions is an idiom (``return found``)

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""Pairs of files that may share more, with the reason."""

_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")


@dataclass(frozen=True)
class Statement:
    """A simple statement, or the head of a compound one: its file, lines and normalised text."""

    file: str
    first: int
    last: int
    text: str


@dataclass(frozen=True)
class Duplicate:
    """Two runs of equal statements and the length of the shorter one in lines."""

    first: Statement
    second: Statement
    lines: int

    def __str__(self) -> str:
        places = " and ".join(f"{s.file}:{s.first}" for s in (self.first, self.second))
        return f"{places} share {self.lines} lines"


def statements_of(file: str, source: str) -> list[Statement]:
    """All statements of a file, in order; the start of a function or class has an empty text."""
    return list(_flatten(file, ast.parse(source).body, frozenset()))


def _flatten(file: str, body: list[ast.stmt], names: frozenset[str]) -> Iterator[Statement]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound = frozenset() if isinstance(node, ast.ClassDef) else _bound(node)
            yield Statement(file, node.lineno, node.lineno, "")
            yield from _flatten(file, node.body, names | bound)
            yield Statement(file, node.lineno, node.lineno, "")
        elif not (isinstance(node, ast.Import | ast.ImportFrom | ast.Pass) or _is_text(node)):
            blocks = [part for name in _BLOCKS for part in getattr(node, name, [])]
            last = node.end_lineno or node.lineno
            if blocks:  # a match case has no line of its own
                starts = [b.lineno for b in blocks if hasattr(b, "lineno")]
                last = max(node.lineno, min(starts, default=node.lineno + 1) - 1)
            yield Statement(file, node.lineno, last, _text(node, names))
            for part in blocks:
                is_clause = isinstance(part, ast.ExceptHandler | ast.match_case)
                yield from _flatten(file, part.body if is_clause else [part], names)


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _bound(function: ast.AST) -> frozenset[str]:
    """Names of a function's parameters and of what it assigns."""
    found = {n.arg for n in ast.walk(function) if isinstance(n, ast.arg)}
    found |= {
        n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    return frozenset(found)


def _text(node: object, names: frozenset[str]) -> str:
    """A node without its blocks and positions, local names replaced."""
    if isinstance(node, list):
        return "[" + ",".join(_text(part, names) for part in node) + "]"
    if isinstance(node, ast.Name):
        return "_" if node.id in names else node.id
    if isinstance(node, ast.arg):
        return "_"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = [
        _text(getattr(node, name, None), names)
        for name in node._fields
        if name not in ("ctx", "type_comment", "kind")
        and not (isinstance(node, ast.stmt) and name in _BLOCKS)
    ]
    return f"{type(node).__name__}({','.join(parts)})"


def duplicates(statements: list[Statement]) -> list[Duplicate]:
    """Runs of equal statements of more than MAX_LINES lines, each once."""
    starts: dict[tuple[str, ...], list[int]] = defaultdict(list)
    texts = [s.text for s in statements]
    for i in range(len(texts) - MIN_STATEMENTS + 1):
        key = tuple(texts[i : i + MIN_STATEMENTS])
        if all(key):
            starts[key].append(i)
    found = []
    for places in starts.values():
        for k, a in enumerate(places):
            for b in places[k + 1 :]:
                if a and texts[a - 1] and texts[a - 1] == texts[b - 1]:
                    continue  # the run began earlier
                length = MIN_STATEMENTS
                while (
                    b + length < len(texts)
                    and a + length < b
                    and texts[a + length]
                    and texts[a + length] == texts[b + length]
                ):
                    length += 1
                lines = min(_lines(statements[s : s + length]) for s in (a, b))
                if lines > MAX_LINES:
                    found.append(Duplicate(statements[a], statements[b], lines))
    return found


def _lines(run: list[Statement]) -> int:
    return sum(s.last - s.first + 1 for s in run)


def shared(statements: list[Statement]) -> list[Duplicate]:
    """Pairs of functions with more than MAX_LINES lines in equal statements, adjoining or not."""
    owners: dict[str, dict[int, Statement]] = defaultdict(dict)
    function = 0
    start: dict[int, Statement] = {}
    for s in statements:
        if not s.text:
            function += 1
            continue
        start.setdefault(function, s)
        owners[s.text].setdefault(function, s)
    lines: dict[tuple[int, int], int] = defaultdict(int)
    for places in owners.values():
        if len(places) <= MAX_OWNERS:
            for (a, one), (b, two) in combinations(places.items(), 2):
                lines[a, b] += min(_lines([one]), _lines([two]))
    return [Duplicate(start[a], start[b], n) for (a, b), n in lines.items() if n > MAX_LINES]


def test_no_two_places_share_more_than_twelve_lines() -> None:
    statements = [
        s
        for path in sorted(SRC.rglob("*.py"))
        for s in statements_of(path.relative_to(SRC).as_posix(), path.read_text("utf-8"))
    ]
    found = [*duplicates(statements), *shared(statements)]
    listed = [d for d in found if (d.first.file, d.second.file) in EXCEPTIONS]
    new = [str(d) for d in found if d not in listed]
    assert not new, "\n".join(["move what they share to one function:", *new])
    unused = set(EXCEPTIONS) - {(d.first.file, d.second.file) for d in listed}
    assert not unused, f"no longer needed: {unused}"


def test_a_copy_with_other_names_is_a_duplicate() -> None:
    body = "\n".join(f"    {{0}} = step_{i}({{0}}, limit={i})" for i in range(14))
    one = f"def first(x):\n{body.format('x')}\n    return x\n"
    two = f'def second(value):\n    """Text."""\n{body.format("value")}\n    return value\n'
    both = statements_of("one.py", one) + statements_of("two.py", two)
    (duplicate,) = duplicates(both)
    assert str(duplicate) == "one.py:2 and two.py:3 share 15 lines"
    other = two.replace("limit=7", "limit=8")
    assert not duplicates(statements_of("one.py", one) + statements_of("two.py", other))
    mixed = two.replace("    value = step_7", "    print(value)\n    value = step_7")
    (scattered,) = shared(statements_of("one.py", one) + statements_of("two.py", mixed))
    assert scattered.lines == 15
