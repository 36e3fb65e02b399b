"""The graph of this package's imports: top-level, inside functions, and for type checkers."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Graph = dict[str, set[str]]
"""Module name → names of the modules of the package that it imports."""

PACKAGE = "multimae_eo"


def modules(root: Path) -> dict[str, Path]:
    """Dotted name → file, for every file under a package's root."""
    names = {}
    for path in sorted(root.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(root).with_suffix("").parts]
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def _targets(node: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE):
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            yield submodule if submodule in known else node.module
    elif isinstance(node, ast.Import):
        yield from (a.name for a in node.names if a.name in known)


def import_graph(root: Path) -> Graph:
    """Every import of every file, wherever in the file it stands."""
    known = modules(root)
    return {
        name: {
            target
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for target in _targets(node, known)
        }
        - {name}
        for name, path in known.items()
    }


def lazy_imports(root: Path) -> Graph:
    """Imports of the package's own modules that stand inside functions."""
    known = modules(root)
    lazy: Graph = {}
    for name, path in known.items():
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    lazy.setdefault(name, set()).update(_targets(node, known))
    return {name: targets for name, targets in lazy.items() if targets}


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph.get(name, ())):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return sorted(groups)


def room(module: str) -> str:
    """The room a module is in: its first name below the package."""
    return module.split(".")[1] if "." in module else module


def rooms_table(graph: Graph, order: Sequence[str]) -> str:
    """The graph of rooms as a Markdown table, the highest first."""
    above: dict[str, set[str]] = {}
    for module, targets in graph.items():
        above.setdefault(room(module), set()).update(room(t) for t in targets)
    lines = ["| room | imports |", "|---|---|"]
    for name in reversed([n for n in order if n in above]):
        others = [f"`{n}`" for n in order if n in above[name] - {name}]
        lines.append(f"| `{name}` | {', '.join(others) or '–'} |")
    return "\n".join(lines)
