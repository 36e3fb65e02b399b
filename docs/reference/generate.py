"""Writes the reference from the docstrings and the command line's options: ``make reference``."""

from __future__ import annotations

import importlib
import inspect
import re
from functools import cached_property
from pathlib import Path
from textwrap import dedent
from typing import Any

from jsonargparse import ArgumentParser

from multimae_eo.cli.examples import examples
from multimae_eo.cli.main import _VERBS, OVERRIDDEN
from multimae_eo.train.finetune_recipe import FinetuneRecipe
from multimae_eo.train.options import options_help
from multimae_eo.train.recipe import Recipe

HERE = Path(__file__).resolve().parent

# A page, what it is about, and its modules: all that these define in public, or the names given.
PAGES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "data": (
        "Data: modalities, samples, sources, stores",
        {
            "modality": (),
            "catalog": ("sensor", "legend", "make_modality", "class_map", "modality"),
            "sample": (),
            "statistics": ("Statistics",),
            "geo": (),
            "sources": ("open_source",),
            "sources.base": ("Source", "ConcatSource"),
            "sources.scene": ("Scene",),
            "store.writer": ("prepare",),
            "store.append": ("append",),
            "store.reader": ("ChipStore",),
            "store.loader": ("make_loader",),
            "doctor": ("inspect",),
            "errors": (),
        },
    ),
    "model": (
        "Model: encoding, reconstruction, transfer",
        {
            "model.multimae": ("MultiMAE", "Features", "Reconstruction"),
            "model.tokens": ("TokenState", "TokenLayout"),
            "model.masking": ("sample_states",),
            "model.predictor": ("Predictor",),
            "model.backbone": ("backbone", "Backbone", "physical_tensors"),
            "model.reconstruct": ("reconstruct",),
            "export.files": ("export_model", "FileOptions"),
            "convert.reference": ("convert",),
        },
    ),
    "work": (
        "Work: training, evaluation, scenes",
        {
            "train.recipe": ("load_recipe", "Recipe"),
            "train.pretrain": ("pretrain",),
            "train.objective": ("Objective", "Losses"),
            "train.finetune": ("finetune",),
            "evaluate.probes": ("probe",),
            "evaluate.study": ("study", "Plan", "Studied"),
            "evaluate.benchmark": ("benchmark",),
            "reports.score_card": ("card",),
            "evaluate.statistics": (),
            "infer.reconstruct": ("reconstruct_chips", "ReconstructOptions"),
            "infer.scene_maps": ("reconstruct_scene",),
            "infer.scene_predict": ("predict_scene",),
            "infer.embed": ("embed_scene", "embed_source"),
            "infer.search": ("search",),
        },
    ),
}
NOTE = "<!-- Written by docs/reference/generate.py; edit docstrings instead. -->\n"


def pages() -> dict[str, str]:
    """Each file's name and text."""
    found = {f"{name}.md": _api_page(*page) for name, page in PAGES.items()}
    return {"cli.md": _cli_page(), **found}


# The command line ---------------------------------------------------------------------------


def _cli_page() -> str:
    parts = [
        NOTE,
        "# Command line\n",
        "Results go to stdout, progress and complaints to stderr. Exit codes: 0 done, 1 an error "
        "told in one line, 2 wrong usage. `--debug` shows the traceback. `--json`, where a verb "
        "has it, is for programs.\n",
    ]
    for verb, (build, _, about) in _VERBS.items():
        parser = ArgumentParser()
        build(parser)
        parts += [f"## {verb}\n", about[0].upper() + about[1:] + ".\n", _options(parser)]
        if shown := examples(verb):
            parts.append(f"```text\n{dedent(shown.removeprefix('examples:')).strip()}\n```\n")
        if verb in OVERRIDDEN:
            anchor = "pre-training" if verb == "pretrain" else "fine-tuning"
            parts.append(f"Also any option of [the recipe](#options-of-{anchor}).\n")
    for title, kind in (("pre-training", Recipe), ("fine-tuning", FinetuneRecipe)):
        parts += [f"## Options of {title}\n", _recipe_table(kind)]
    return "\n".join(parts)


def _options(parser: ArgumentParser) -> str:
    rows = ["| option | default | |", "|---|---|---|"]
    for action in parser._actions:
        if action.dest in ("help", "print_shtab", "config"):
            continue
        name = ", ".join(f"`{o}`" for o in action.option_strings) or f"`{action.dest.upper()}`"
        flag = action.option_strings and action.nargs == 0
        needed = getattr(action, "required", False) or not action.option_strings
        default = "required" if needed else "off" if flag else _default(action.default)
        rows.append(f"| {name} | {default} | {_cell(action.help or '')} |")
    return "\n".join(rows) + "\n"


def _default(value: Any) -> str:
    return "" if value is None else f"`{value}`"


def _recipe_table(kind: Any) -> str:
    rows = ["| option | |", "|---|---|"]
    for option, meaning in re.findall(r"^  (--\S+)\n      (.*)$", options_help(kind), flags=re.M):
        rows.append(f"| `{option}` | {_cell(meaning)} |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# Python -------------------------------------------------------------------------------------


def _api_page(title: str, modules: dict[str, tuple[str, ...]]) -> str:
    parts = [NOTE, f"# {title}\n"]
    for name, only in modules.items():
        module = importlib.import_module(f"multimae_eo.{name}")
        parts += [f"## multimae_eo.{name}\n", _text(inspect.getdoc(module) or "")]
        names = only or [
            n
            for n, o in vars(module).items()
            if not n.startswith("_")
            and (inspect.isclass(o) or inspect.isfunction(o))
            and o.__module__ == module.__name__
        ]
        for item in names:
            parts.append(_entry(item, getattr(module, item)))
    return "\n".join(parts)


def _entry(name: str, found: Any) -> str:
    parts = [f"### {name}\n"]
    if not isinstance(found, type) or _has_signature(found):
        parts.append(f"```py\n{name}{_signature(found)}\n```\n")
    parts.append(_text(_own_doc(found)))
    if inspect.isclass(found):
        parts += [_member(n, v) for n, v in vars(found).items() if not n.startswith("_")]
    return "\n".join(filter(None, parts))


def _member(name: str, value: Any) -> str:
    """A method's or property's paragraph; empty for what is neither or says nothing."""
    found = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    is_property = isinstance(found, property | cached_property)
    if not (is_property or inspect.isfunction(found)) or not (told := _own_doc(found)):
        return ""
    shown = name if is_property else f"{name}{_signature(found, bound=True)}"
    return f"```py\n{shown}\n```\n\n{_text(told)}"


def _has_signature(kind: type) -> bool:
    return "__init__" in vars(kind) and not issubclass(kind, BaseException)


def _own_doc(found: Any) -> str:
    """The docstring, unless it was made by ``dataclass`` or inherited."""
    doc = getattr(found, "__doc__", None) or ""
    return "" if doc.startswith(f"{getattr(found, '__name__', '')}(") else inspect.cleandoc(doc)


def _signature(found: Any, *, bound: bool = False) -> str:
    signature = inspect.signature(found)
    parameters = list(signature.parameters.values())
    if bound and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    if isinstance(found, type):
        parameters = [p for p in parameters if p.name != "self"]
    kept = [p.replace(default=_Shown(p.default)) for p in parameters]
    text = str(inspect.Signature(kept, return_annotation=signature.return_annotation))
    if len(text) <= 88:
        return text.replace("'", "")
    inner, _, after = text.rpartition(")")
    parts = re.split(r", (?![^\[(]*[\])])", inner.removeprefix("("))
    return ("(\n    " + ",\n    ".join(parts) + ",\n)" + after).replace("'", "")


class _Shown:
    """A default as it is shown: without addresses."""

    def __new__(cls, value: Any) -> Any:
        if value is inspect.Parameter.empty or isinstance(value, (int, float, str, tuple, bool)):
            return value
        return value if value is None else super().__new__(cls)

    def __repr__(self) -> str:
        return "…"


def _text(doc: str) -> str:
    """Markdown of a docstring: its list of arguments as a list, double backticks single."""
    doc = re.sub(r"``(.+?)``", r"`\1`", doc, flags=re.S)
    before, mark, after = doc.partition("\nArgs:\n")
    if not mark:
        return doc + "\n"
    rows = re.sub(r"\n {6,}", " ", "\n" + after)
    rows = re.sub(r"\n {4}(\w+): ?", r"\n- `\1`: ", rows)
    return f"{before.rstrip()}\n\n{rows.strip()}\n"


if __name__ == "__main__":
    for file, text in pages().items():
        (HERE / file).write_text(text, encoding="utf-8")
