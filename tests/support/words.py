"""Checks text and code for words that are not the field's, and suggests the field's word.

    python tests/support/words.py                  # list the hits in src
    python tests/support/words.py src/…  docs/…    # list the hits in these files

``PROSE`` applies to documentation, comments, docstrings and messages; ``NAMES`` to the parts of
identifiers (``wanted_bands`` has the parts ``wanted`` and ``bands``).
"""

from __future__ import annotations

import ast
import io
import json
import keyword
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "multimae_eo"

# Regular expression → the field's word. Of whole words, ignoring case.
PROSE: dict[str, str] = {
    r"told|tells?|telling": "log, report, print, show, declare",
    r"said|says?|saying": "state, report, show",
    r"guess(?:es|ed|ing)?": "prediction",
    r"answers?|answered|answering": "prediction, output",
    r"made[- ]up": "synthetic",
    r"(?:synthetic |simple |quickstart's )?worlds?": "synthetic data set, landscape",
    r"commonest": "majority class, most frequent",
    r"read-?outs?|reads? out|reading out": "linear probe",
    r"turned|turns(?! (?:out|into|on|off))|quarter turns?|turn by turn|in turns": "rot90, rotated",
    r"agreement|draws (?:of one chip|that agree)|that agree": "contrastive loss, augmented views",
    r"(?:of|over|between|random|two|four|ten|several|N|\d+) draws": "random masks, samples",
    r"spread": "std, standard deviation, predictive std",
    r"legends?(?= (?:of ids|ids?)\b)": "class map",
    r"(?:the|its|a|outside the|converted|catalogue|known) legends?(?! or)": "class map",
    r"(?<!from )scratch(?! (?:array|buffer|space|memory))|from scratch": "random initialisation",
    r"recompute": "activation checkpointing",
    r"verbs?": "subcommand",
    r"hidden(?! (?:layers?|units?|folder|files?|aliases|alias|width|size))": "masked",
    r"twins?": "duplicates",
    r"number types?": "dtype",
    r"witness(?:es)?": "criteria, tests",
    r"(?<!in )(?<!take )(?<!takes )(?<!took )(?<!decimal )places?": "location, position",
    r"how (?:sure|wrong)": "uncertainty, error",
    r"wanted|asked(?! for)": "requested",
    r"is paid for|are about|at hand|heed(?:ed)?": "plain words",
    r"looked at": "examined, inspected",
    r"workshops?|lanes?|tickets?": "job queue, job",
    r"sums? up to|beside what|goes before all|bear larger": "plain words",
    r"twice over|anew": "again",
    r"costs nothing": "baseline",
    r"tour(?!\.ipynb)": "quickstart",
    r"complains?|complaints?": "error message",
}

# Parts of identifiers.
NAMES: dict[str, str] = {
    "told": "logged, reported, predictions",
    "tell": "log, report, print",
    "tells": "log, report, print",
    "said": "predictions, output",
    "say": "report, print",
    "says": "report, print",
    "found": "the noun: matches, indices",
    "known": "the noun: names, options",
    "wanted": "requested, or the noun",
    "own": "the noun",
    "about": "description, help",
    "how": "options, mode",
    "place": "location, path, position",
    "places": "locations, positions",
    "guess": "prediction",
    "guesses": "predictions",
    "answer": "prediction, output",
    "answers": "predictions, outputs",
    "answering": "prediction",
    "readout": "linear_probe",
    "commonest": "majority_class",
    "madeup": "synthetic",
    "twins": "duplicates",
    "verb": "subcommand",
    "verbs": "subcommands",
    "recompute": "activation_checkpointing",
    "scratch": "random_init",
    "spread": "std, predictive_std",
    "spreads": "stds, predictive_stds",
    "agreement": "contrastive",
    "draws": "views, samples",
    "turns": "rot90",
    "gain": "brightness_jitter",
    "legend": "class_map",
    "legends": "class_maps",
    "hidden": "masked",
    "whole": "the noun",
    "world": "landscape, dataset",
    "worlds": "landscapes, datasets",
    "workshop": "job_queue",
    "ticket": "job",
    "lane": "queue",
    "behind": "write_queue",
    "sized": "resized",
    "piece": "the noun: block, chunk",
    "pieces": "the noun: blocks, chunks",
    "inert": "the noun",
    "studied": "study_results",
    "tallied": "counts",
    "observing": "the noun",
    "ired": "red_edge",
    "sired": "swir",
    "ebands": "nir",
    "semseg": "landcover",
}
# The paper's names of modalities: where they are defined, read and converted.
PAPER_NAMES = frozenset({"ired", "sired", "ebands", "semseg"})
PAPER_FILES = re.compile(
    r"catalog\.py|sources/(?:mmearth|synthetic)\.py|sources/geobench2?/|convert/|quickstart\.py"
)
# "order", "page", "cut" and "numbers" are left out: band order, an HTML page, to cut a window and
# real numbers are the field's words too, and no pattern separates them from the dialect.

# Why a word may stand where it does: text of the line (a regular expression) → reason.
EXCEPTIONS: dict[str, str] = {
    r"\[tour\b": "a notebook's file name",
    r"^# Frequently asked questions": "an idiom",
    r"How can I tell": "an idiom",
    r"\.spread\b": "file names of maps",
    r'f"guess\{i\}"': "arrays in the files of finished trials",
    r'^"from scratch"$': "the name of features in the files of finished trials",
    r"Dynamic World": "the name of a data set",
}
# Identifiers that are terms of the field, and where they come from.
TERMS: dict[str, str] = {
    "dynamic_world": "a data set",
    "world_size": "torch.distributed: the number of processes",
}
# Strings that are keys of files or options which users have written, and why they stay.
QUOTED_KEYS: dict[str, str] = {
    "legend": "the key of dataset files that declares a class map",
    "make_world": "the former name of make_synthetic_data",
    "world": "the quickstart's folder of synthetic data",
}
# Words where they name what users or files already have: (path, word) → reason.
ALLOWED: dict[tuple[str, str], str] = {
    ("network/reconstruction.py", "spread"): "deprecated alias of Reconstructed.std",
    ("network/predictor.py", "answers"): "deprecated alias of Predictor.predictions",
    ("network/heads.py", "spread"): "the name of weights in model files",
    ("network/config.py", "spread"): "a former value of --head.pool",
    ("network/config.py", "layers-spread"): "a former value of --head.pool",
    ("train/modules.py", "agreement"): "the name of weights in checkpoints",
    ("train/options.py", "agreement"): "a former option",
    ("train/options.py", "agreement.turns"): "a former option",
    ("train/options.py", "agreement.gain"): "a former option",
    ("train/options.py", "data.turns"): "a former option",
    ("train/options.py", "run.recompute"): "a former option",
    ("evaluation/trials.py", "scratch"): "a former value of --methods",
    ("demo/map_service.py", "legend"): "the legend of a drawn map",
    ("demo/routes.py", "legend"): "the legend of a drawn map",
}
_FENCE = re.compile(r"^```.*?^```[^\n]*$", flags=re.M | re.S)
_SPAN = re.compile(r"`+[^`\n]+`+")
_TARGET = re.compile(r"\]\([^)\n]*\)|<!--.*?-->|https?://\S+", flags=re.S)
_OPTION = re.compile(r"(?<!\w)--[\w.-]+(?:[= ][\w,.;/-]+)?")
_PROSE = [(re.compile(rf"\b(?:{p})\b", flags=re.I), word) for p, word in PROSE.items()]
_EXCEPTIONS = [re.compile(p) for p in EXCEPTIONS]


@dataclass(frozen=True)
class Hit:
    """A word that is not the field's: where it is, and what to write."""

    path: str
    line: int
    word: str
    suggestion: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word} → {self.suggestion}"


def prose_hits(text: str, path: str, first_line: int = 1) -> Iterator[Hit]:
    """Hits in running text. ``first_line``: the number of its first line."""
    for number, line in enumerate(text.splitlines(), start=first_line):
        if any(pattern.search(line) for pattern in _EXCEPTIONS):
            continue
        for pattern, suggestion in _PROSE:
            for match in pattern.finditer(line):
                yield Hit(path, number, match[0], suggestion)


def _blanked(pattern: re.Pattern[str], text: str) -> str:
    """``text`` with every match replaced by as many newlines as it has."""
    return pattern.sub(lambda m: " " + "\n" * m[0].count("\n"), text)


def markdown_hits(text: str, path: str) -> list[Hit]:
    """Hits in a page. Code spans, code blocks and link targets quote names that ``src`` defines,
    where they are checked."""
    for pattern in (_FENCE, _SPAN, _TARGET):
        text = _blanked(pattern, text)
    return list(prose_hits(text, path))


def comment_hits(text: str, path: str) -> list[Hit]:
    """Hits in the comments of a YAML or shell file."""
    hits: list[Hit] = []
    for number, line in enumerate(text.splitlines(), start=1):
        _, mark, comment = line.partition("#")
        if mark and not re.match(r" *(?:Command:|   .*--)", comment):
            hits += prose_hits(_OPTION.sub(" ", _SPAN.sub(" ", comment)), path, number)
    return hits


def identifier_hits(name: str, path: str, line: int) -> Iterator[Hit]:
    """Hits in the parts of one identifier, of snake_case and CamelCase."""
    module = path.removeprefix("src/multimae_eo/")
    if name in TERMS or (module, name) in ALLOWED:
        return
    for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name):
        if part.lower() in PAPER_NAMES and PAPER_FILES.search(path):
            continue
        if suggestion := NAMES.get(part.lower()):
            yield Hit(path, line, name, suggestion)


def python_hits(text: str, path: str) -> list[Hit]:
    """Hits in a module: identifiers where they are bound, strings, docstrings and comments."""
    hits = list(_bound_names(ast.parse(text), path))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            hits += prose_hits(_SPAN.sub(" ", token.string), path, line)
        elif token.type == tokenize.STRING or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            hits += _string_hits(token.string, path, line)
    return sorted(hits, key=lambda hit: (hit.line, hit.word))


def _string_hits(text: str, path: str, line: int) -> Iterator[Hit]:
    body = text.strip("rbfuRBFU").strip("\"'")
    if body in QUOTED_KEYS:
        return
    if re.fullmatch(r"[A-Za-z][\w.-]*", body):
        # A key, an option or a name rather than a sentence.
        yield from identifier_hits(body, path, line)
        return
    yield from prose_hits(_OPTION.sub(" ", _blanked(_SPAN, text)), path, line)


def _bound_names(tree: ast.AST, path: str) -> Iterator[Hit]:
    """Every name where it is defined: functions, classes, arguments, assigned variables."""
    for node in ast.walk(tree):
        name: str | None = None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.id if isinstance(node, ast.Name) else node.attr
        if name is not None and not keyword.iskeyword(name):
            yield from identifier_hits(name, path, node.lineno)  # type: ignore[attr-defined]


def hits_of(path: Path) -> list[Hit]:
    """Hits in a file, by its kind."""
    name = str(path.relative_to(ROOT))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return python_hits(text, name)
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        prose = ("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        return [hit for page in prose for hit in markdown_hits(page, name)]
    if path.suffix in (".yaml", ".sh"):
        return comment_hits(text, name)
    return markdown_hits(text, name)


def source_hits() -> list[Hit]:
    """Hits of all modules of the package, and of their file names."""
    hits: list[Hit] = []
    for path in sorted(SRC.rglob("*.py")):
        hits += hits_of(path)
        hits += identifier_hits(path.stem, str(path.relative_to(ROOT)), 1)
    return hits


def main(arguments: Iterable[str]) -> None:
    """List the hits of the named files, or of the package."""
    for path in [Path(a).resolve() for a in arguments] or [SRC]:
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        print("\n".join(str(hit) for file in files for hit in hits_of(file)))


if __name__ == "__main__":
    main(sys.argv[1:])
