"""Writes the reference from the docstrings and the command line's options: ``make reference``."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from multimae_eo.cli.main import SUBCOMMANDS
from multimae_eo.cli.parser import Subcommand, field_help, recipe_options, summary
from multimae_eo.train.finetune_recipe import FinetuneRecipe
from multimae_eo.train.recipe import Recipe

HERE = Path(__file__).resolve().parent

# A page, what it is about, and its modules: all that these define in public, or the names given.
PAGES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "api": (
        "Functions: one for each subcommand",
        {
            "api.stores": (),
            "api.runs": ("pretrain", "finetune"),
            "api.scores": ("evaluate", "evaluate_subsets", "probe", "study", "benchmark"),
            "api.maps": ("predict", "reconstruct", "embed", "search"),
            "api.models": (),
        },
    ),
    "data": (
        "Data: modalities, samples, sources, stores",
        {
            "modality": (),
            "catalog": ("sensor", "class_map", "make_modality", "make_class_map", "modality"),
            "sample": (),
            "statistics": ("Statistics",),
            "geo": (),
            "loading.open_source": ("open_source",),
            "sources.base": ("Source", "ConcatSource"),
            "sources.scene.scene": ("Scene",),
            "store.writer": ("prepare",),
            "store.append": ("append",),
            "store.reader": ("ChipStore",),
            "loading.loader": ("make_loader",),
            "doctor": ("inspect",),
            "errors": (),
        },
    ),
    "model": (
        "Model: encoding, reconstruction, transfer",
        {
            "network.multimae": ("MultiMAE", "Features", "Reconstruction"),
            "network.tokens": ("TokenState", "TokenLayout"),
            "network.masking": ("sample_states",),
            "network.predictor": ("Predictor",),
            "inference.backbone": ("backbone", "Backbone", "physical_tensors"),
            "network.reconstruction": ("reconstruct",),
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
            "evaluation.probes": ("probe",),
            "evaluation.study": ("study", "StudyPlan", "Transfer"),
            "evaluation.benchmark": ("benchmark",),
            "reports.score_card": ("card",),
            "metrics.intervals": (),
            "inference.reconstruct_chips": ("reconstruct_chips", "ReconstructOptions"),
            "scenes.reconstruct": ("reconstruct_scene",),
            "scenes.predict": ("predict_scene",),
            "scenes.embed": ("embed_scene", "embed_source"),
            "scenes.embedding_raster": ("embed_raster",),
            "scenes.compare": ("compare_embeddings", "compare_scenes"),
            "scenes.each_scene": ("each_scene", "SceneWork", "SceneRow"),
            "sources.scene.scene_list": ("list_scenes", "list_pairs"),
            "inference.search": ("search",),
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
        "Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 an error "
        "reported in one line, 2 wrong usage, 130 interrupted. `--debug` shows the traceback. "
        "`--json`, where a subcommand has it, is for programs.\n",
    ]
    for name, kind in SUBCOMMANDS.items():
        about = summary(kind)
        parts += [f"## {name}\n", about[0].upper() + about[1:] + ".\n", _options(kind)]
        lines = "\n".join(f"multimae-eo {line}" for line in kind.examples)
        parts.append(f"```text\n{lines}\n```\n")
        if recipe := _recipe_of(kind):
            anchor = "pre-training" if recipe is Recipe else "fine-tuning"
            parts.append(f"Also any option of [the recipe](#options-of-{anchor}).\n")
    for title, recipe in (("pre-training", Recipe), ("fine-tuning", FinetuneRecipe)):
        parts += [f"## Options of {title}\n", _recipe_table(recipe)]
    return "\n".join(parts)


def _recipe_of(kind: type[Subcommand]) -> type | None:
    """The recipe whose options a subcommand takes beside its own."""
    options = [f.metadata["recipe"] for f in dataclasses.fields(kind) if f.metadata.get("recipe")]
    return options[0].load() if options else None


def _options(kind: type[Subcommand]) -> str:
    rows = ["| option | default | |", "|---|---|---|"]
    helps, hints = field_help(kind), get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.metadata.get("recipe"):
            continue
        positional = field.metadata.get("positional")
        name = f"`{field.name.upper()}`" if positional else f"`--{field.name}`"
        text = helps.get(field.name, "")
        choices = [c for h in (hints[field.name], *get_args(hints[field.name]))
                   if get_origin(h) is Literal for c in get_args(h)]  # fmt: skip
        if choices:
            text += f" ({', '.join(choices)})"
        needed = field.default is dataclasses.MISSING
        default = "required" if needed else "off" if field.default is False else field.default
        shown = default if default in ("required", "off") else _default(default)
        rows.append(f"| {name} | {shown} | {_cell(text)} |")
    return "\n".join(rows) + "\n"


def _default(value: Any) -> str:
    return "" if value in (None, "") else f"`{value}`"


def _recipe_table(kind: Any) -> str:
    rows = ["| option | |", "|---|---|"]
    rows += [f"| `--{o.path}` | {_cell(o.help)} |" for o in recipe_options(kind) if o.shown]
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
