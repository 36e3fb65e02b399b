"""From a subcommand's dataclass to its options, and from parsed options back to the dataclass.

A field is an option: its type, default and entry under ``Args:`` in the class's docstring are the
option's. ``argument()`` adds what a type cannot express: a positional argument, old names.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, ClassVar, Literal, NoReturn, Protocol, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from multimae_eo.errors import did_you_mean

PROGRAM = "multimae-eo"
SOURCE = (
    "a dataset, scene or STAC file (YAML), a chip store, a folder of chips (see init), "
    "mmearth:DIR, geobench:ROOT/NAME or geobench2:ROOT/NAME; several separated by commas become one"
)
_OVERRIDES = "overrides"


class Subcommand(Protocol):
    """A frozen dataclass of options that can be run."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    examples: ClassVar[tuple[str, ...]]
    """Command lines without the program's name, shown at the end of ``--help``."""

    def run(self) -> None:
        """Do it; results go to stdout. Raises MultiMAEError for a user's error."""


@dataclass(frozen=True)
class RecipeOptions:
    """Which recipe's options a subcommand takes beside its own: ``--optim.lr 3e-4``.

    ``kind``: module and class of the recipe, imported when the subcommand is parsed.
    ``excluded``: first words of recipe options that are the subcommand's own options instead
    (``--data``).
    """

    kind: str
    excluded: tuple[str, ...]

    def load(self) -> type:
        """The recipe's dataclass."""
        module, _, name = self.kind.partition(":")
        recipe: type = getattr(importlib.import_module(module), name)
        return recipe


def argument(
    *,
    default: Any = MISSING,
    positional: bool = False,
    aliases: Sequence[str] = (),
    recipe: RecipeOptions | None = None,
    choices: Callable[[], Sequence[str]] | None = None,
) -> Any:
    """A dataclass field that is an option.

    ``aliases``: its former names with their dashes, which work but are not shown. ``recipe``: the
    field receives a recipe's options as a tuple of ``--a.b=value``, in the order given.
    ``choices``: gives the valid values, for messages and shells.
    """
    metadata = {
        "positional": positional, "aliases": tuple(aliases), "recipe": recipe, "choices": choices,
    }  # fmt: skip
    if default is MISSING and recipe is not None:
        default = ()
    return dataclasses.field(default=default, metadata=metadata)


class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples."""


class Parser(ArgumentParser):
    """Names the nearest valid option where an unknown one is given; exits with 2."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, default_env=False, formatter_class=Formatter, **options)
        self.option_names: list[str] = []
        self.path_actions: list[argparse.Action] = []
        self.subcommand = ""

    def option(self, name: str, **options: Any) -> None:
        """Add an option or a positional argument, known to error messages."""
        self.option_names += [name] if name.startswith("-") else []
        action = self.add_argument(name, **options)
        if options.get("type") is str and "choices" not in options:
            # Which of them are files is not declared: a shell offers files for all.
            self.path_actions.append(action)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print usage and the message; exit with 2."""
        if " required: " in message:
            message = re.sub(rf"\b{self.subcommand}\.(\w+)", self._flag, message)
        if match := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            message = f"{self.subcommand} has no option {match[1]}; " + did_you_mean(
                match[1], self.option_names
            )
        super().error(message, ex)
        raise AssertionError("error() exits")

    def _flag(self, match: re.Match[str]) -> str:
        """An option's name as it is given; that of a positional argument as it is."""
        option = f"--{match[1]}"
        return option if option in self.option_names else match[1]


def make_parser(
    subcommands: Mapping[str, type[Subcommand]], chosen: str | None, *, version: str
) -> Parser:
    """The program's parser.

    Options are added to the ``chosen`` subcommand only (None: to all), so that ``--help`` is
    fast. Its dataclass is instantiated by ``read_options``.
    """
    parser = Parser(
        prog=PROGRAM,
        description="One multi-modal masked autoencoder for all Earth-observation sensors.",
        epilog=f"{PROGRAM} SUBCOMMAND --help explains a subcommand; --debug shows tracebacks; "
        "--strict makes an error of inputs that look unlike the model's.",
        version=version,
    )
    group = parser.add_subcommands(required=True, dest="subcommand", metavar="SUBCOMMAND")
    for name, kind in subcommands.items():
        subparser = Parser(description=summary(kind))
        if chosen in (None, name):
            add_options(subparser, kind)
            subparser.subcommand = parser.subcommand = name
            parser.option_names = subparser.option_names
            parser.path_actions += subparser.path_actions
            subparser.epilog = examples_text(kind)
            subparser.usage = _usage(name, kind)
        group.add_subcommand(name, subparser, help=summary(kind))
    return parser


def _usage(name: str, kind: type[Subcommand]) -> str:
    """The required arguments; the list of options below has the others."""
    words = [PROGRAM, name]
    for field in dataclasses.fields(kind):
        if field.metadata.get("positional"):
            name_shown = field.name.upper()
            words.append(name_shown if field.default is MISSING else f"[{name_shown}]")
        elif field.default is MISSING:
            words.append(f"--{field.name} {field.name.upper()}")
    return " ".join([*words, "[options]"])


def summary(kind: type[Subcommand]) -> str:
    """The first line of a subcommand's docstring, as a phrase."""
    line = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return line[0].lower() + line[1:]


def examples_text(kind: type[Subcommand]) -> str:
    """A subcommand's examples, a line each."""
    return "\n".join(["examples:", *(f"  {PROGRAM} {line}" for line in kind.examples)])


def add_options(parser: Parser, kind: type[Subcommand]) -> None:
    """Add an option for each field of a subcommand."""
    hints, helps = get_type_hints(kind), field_help(kind)
    for field in dataclasses.fields(kind):
        recipe: RecipeOptions | None = field.metadata.get("recipe")
        if recipe is not None:
            _add_recipe_options(parser, recipe)
            continue
        options = _typed(hints[field.name]) | {"help": helps.get(field.name, "")}
        if (choices := field.metadata.get("choices")) is not None:
            options["choices"] = list(choices())
            options.pop("type", None)  # else jsonargparse shows a function of its own as the type
        if field.metadata.get("positional"):
            if options.pop("action", "") == "append":
                options["nargs"] = "+"
            elif field.default is not MISSING:
                options |= {"nargs": "?", "default": field.default}
            parser.option(field.name, **options)
            continue
        required = field.default is MISSING and field.default_factory is MISSING
        if required:
            options["required"] = True
        elif "action" not in options or options["action"] == "append":
            options["default"] = None if field.default is MISSING else field.default
        parser.option(f"--{field.name}", **options)
        alias_options = {k: v for k, v in options.items() if k not in ("required", "default")}
        for alias in field.metadata.get("aliases", ()):
            parser.add_argument(
                alias,
                **(alias_options | {"dest": field.name, "default": SUPPRESS, "help": SUPPRESS}),
            )


def _typed(hint: object) -> dict[str, Any]:
    """What ``add_argument`` needs to know of a type."""
    if type(None) in get_args(hint):
        hint = next(h for h in get_args(hint) if h is not type(None))
    if hint is bool:
        return {"action": "store_true"}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is tuple:
        return {"type": str, "action": "append"}
    return {"type": hint}


def field_help(kind: type) -> dict[str, str]:
    """Meanings of a dataclass's fields: the entries under ``Args:``, those of bases included."""
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, mark, text = (base.__doc__ or "").partition("Args:\n")
        if mark:
            for match in re.finditer(r"^ {8}(\w+): (.+(?:\n {10,}.+)*)", text, flags=re.MULTILINE):
                meanings[match[1]] = _filled(" ".join(match[2].split()))
    return meanings


def _filled(text: str) -> str:
    """Help with its placeholders replaced."""
    for mark, value in _PLACEHOLDERS.items():
        if mark in text:
            text = text.replace(mark, value())
    return text


def _recipe_names() -> str:
    from multimae_eo.train.recipe import recipe_names

    return ", ".join(recipe_names())


def _geobench_names() -> str:
    from multimae_eo.sources.geobench.bands import DATASETS
    from multimae_eo.sources.geobench2.records import DATASETS2

    return f"{', '.join(DATASETS)}; of version 2 {', '.join(DATASETS2)}"


_PLACEHOLDERS: dict[str, Callable[[], str]] = {
    "SOURCE": lambda: SOURCE,
    "RECIPES": _recipe_names,
    "DATASETS": _geobench_names,
}


# Options of a recipe --------------------------------------------------------------------------


class _Override(argparse.Action):
    """Collects ``--a.b=value``, to be checked and typed when the recipe is loaded."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: Any,
        values: object,
        option_string: str | None = None,
    ) -> None:
        given = namespace.get(_OVERRIDES) or []
        namespace[_OVERRIDES] = [*given, f"{option_string}={values}"]


def _add_recipe_options(parser: Parser, recipe: RecipeOptions) -> None:
    from multimae_eo.train.options import former_options

    group = parser.add_argument_group(
        "options of the recipe", "each overrides the recipe, as in --optim.lr 3e-4"
    )
    for option in recipe_options(recipe.load()):
        if option.path in recipe.excluded:
            continue
        name = f"--{option.path}"
        parser.option_names.append(name)
        if option.is_mapping:
            # Its keys are free: jsonargparse accepts --model.stride.landcover 4.
            group.add_argument(
                name, dest=f"mappings.{option.path}", type=dict[str, Any], default=SUPPRESS,
                help=option.help,
            )  # fmt: skip
            continue
        group.add_argument(
            name, dest=_OVERRIDES, action=_Override, default=SUPPRESS, metavar="VALUE",
            help=option.help if option.shown else SUPPRESS,
        )  # fmt: skip
        for former in former_options(option.path):
            group.add_argument(
                f"--{former}", dest=_OVERRIDES, action=_Override, default=SUPPRESS,
                metavar="VALUE", help=SUPPRESS,
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RecipeOption:
    """An option of a recipe: ``optim.lr``. ``shown``: whether ``--help`` lists it."""

    path: str
    help: str
    is_mapping: bool = False
    shown: bool = True


def recipe_options(kind: Any, prefix: str = "", *, shown: bool = True) -> Iterator[RecipeOption]:
    """Every option of a recipe, those of its parts included."""
    hints, helps = get_type_hints(kind), field_help(kind)
    for field in dataclasses.fields(kind):
        hint, path = hints[field.name], f"{prefix}{field.name}"
        parts = [h for h in (hint, *get_args(hint)) if dataclasses.is_dataclass(h)]
        default = field.default_factory() if callable(field.default_factory) else field.default
        is_part = parts == [hint]
        # A part with a meaning of its own, as --model.decoder, is one option with a mapping.
        single_option = not is_part or field.name == "decoder"
        if single_option:
            text = helps.get(field.name, "")
            if default not in (None, [], {}, MISSING) and not is_part:
                text += f" (default: {default})"
            mapping = get_origin(hint) is dict
            yield RecipeOption(path=path, help=text, is_mapping=mapping, shown=shown)
        elif prefix:
            # A whole part as a mapping: --masking.roles="{unused: 1, both: 1}".
            yield RecipeOption(path=path, help="", shown=False)
        if parts and get_origin(hint) is not dict:
            yield from recipe_options(parts[0], f"{path}.", shown=shown and not single_option)


# Back to the dataclass ------------------------------------------------------------------------


def read_options(
    kind: type[Subcommand], parsed: Namespace, arguments: Sequence[str] = ()
) -> Subcommand:
    """The subcommand with its parsed options; ``arguments``: the command line they were in."""
    values: dict[str, object] = {}
    for field in dataclasses.fields(kind):
        if field.metadata.get("recipe") is not None:
            values[field.name] = tuple(_overrides(parsed, arguments))
        else:
            value = parsed[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _overrides(parsed: Namespace, arguments: Sequence[str]) -> Iterator[str]:
    import yaml

    yield from parsed.get(_OVERRIDES) or ()
    if "mappings" not in parsed:
        return
    given = {a.split("=", maxsplit=1)[0] for a in arguments}
    for path, value in parsed["mappings"].items():
        if f"--{path}" in given:
            yield f"--{path}={yaml.safe_dump(value, default_flow_style=True).strip()}"
        else:
            yield from (f"--{path}.{key}={_flow(v)}" for key, v in value.items())


def _flow(value: object) -> str:
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True)
    return text.removesuffix("...\n").strip()
