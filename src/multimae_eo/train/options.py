"""Options as typed dataclasses: from plain data and ``--a.b=value``, with errors that help.

An unknown key or option is an error that names the nearest valid one.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.network.config import (
    FORMER_POOLS,
    DecoderConfig,
    EncoderConfig,
    encoder_named,
)
from multimae_eo.sources.yaml_section import parse_yaml

T = TypeVar("T")

RENAMED: Mapping[str, str] = {
    "agreement": "contrastive",
    "agreement.turns": "contrastive.rot90",
    "agreement.gain": "contrastive.brightness_jitter",
    "augment.visible": "augment.num_visible_tokens",
    "data.turns": "data.rot90",
    "masking.visible": "masking.num_visible_tokens",
    "run.recompute": "run.activation_checkpointing",
}
"""Options by their former names, which recipes, run folders and commands may still have."""
RENAMED_VALUES: Mapping[str, Mapping[str, str]] = {"head.pool": FORMER_POOLS}
"""Values of options by their former names."""


@dataclass(kw_only=True)
class Recorded:
    """Options that are written down with what they led to."""

    def to_yaml(self) -> str:
        """The options as YAML, which ``build`` reads again."""
        return yaml.safe_dump(asdict(self), sort_keys=False)

    def to_plain(self) -> dict[str, Any]:
        """The options as the plain data that reading their YAML gives."""
        record: dict[str, Any] = yaml.safe_load(self.to_yaml())
        return record


def build(
    kind: type[T], record: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str
) -> T:
    """Build the dataclass ``kind`` from plain data and overrides.

    Raises ConfigError for an unknown option or a value of the wrong type.
    """
    from jsonargparse import ArgumentParser

    record, overrides = with_current_names(record), [_current_option(o) for o in overrides]
    parser = ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_class_arguments(kind)
    for item in overrides:
        if item.startswith("--"):
            _check_override(item, kind)
    try:
        record, rest = _with_encoder(record, overrides)
        if isinstance(encoder := record["model"]["encoder"], Mapping):
            check_keys(encoder, EncoderConfig, where=f"{where}: model.encoder")
        values = parser.parse_object(dict(record))
        if rest:
            values = parser.parse_args(rest, namespace=values)
        built = parser.instantiate(values)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{where}: {one_line(error)}") from error
    recipe = kind(**vars(built))
    _check_filled(recipe, where)
    return recipe


def with_current_names(record: object) -> Any:
    """A recipe's plain data with former names of options replaced by today's."""
    if not isinstance(record, Mapping):
        return record
    renamed = dict(record)
    for old, new in RENAMED.items():
        section, _, key = old.rpartition(".")
        if not section and key in renamed:
            renamed = {new if k == key else k: v for k, v in renamed.items()}
    for old, new in RENAMED.items():
        section, _, key = new.rpartition(".")
        former, part = old.rpartition(".")[2], renamed.get(section)
        if section and isinstance(part, Mapping) and former in part:
            renamed[section] = {key if k == former else k: v for k, v in part.items()}
    for option, values in RENAMED_VALUES.items():
        section, _, key = option.partition(".")
        part = renamed.get(section)
        if isinstance(part, Mapping) and part.get(key) in values:
            renamed[section] = {**part, key: values[part[key]]}
    return renamed


def former_options(path: str) -> list[str]:
    """The former names of an option ``a.b``, which commands may still have."""
    names = []
    for old, new in RENAMED.items():
        if path == new or path.startswith(f"{new}."):
            names.append(old + path.removeprefix(new))
    return names


def _current_option(item: str) -> str:
    """An override ``--a.b=value`` under today's names of the option and of its value."""
    name, equals, value = item.partition("=")
    path = name.removeprefix("--")
    if not name.startswith("--"):
        return item
    if path in RENAMED:
        path = RENAMED[path]
    elif path.split(".")[0] in RENAMED:
        first, _, rest = path.partition(".")
        path = f"{RENAMED[first]}.{rest}"
    value = RENAMED_VALUES.get(path, {}).get(value, value)
    return f"--{path}{equals}{value}"


def check_least(where: str, least: Mapping[str, tuple[float, float]]) -> None:
    """ConfigError for an option below its least value; ``least``: (value, least) by name."""
    for name, (value, bound) in least.items():
        if value < bound:
            raise ConfigError(f"{where}: {name} must be ≥ {bound}, got {value}")


def _with_encoder(
    record: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Take ``--model.encoder …`` into the record; the parser cannot change one of a union's parts.

    Returns the record and the other overrides.
    """
    option = "--model.encoder"
    model = dict(record.get("model") or {})
    encoder, rest = model.get("encoder", "base"), []
    items = iter(overrides)
    for item in items:
        name, given, text = item.partition("=")
        if name != option and not name.startswith(f"{option}."):
            rest.append(item)
            continue
        value = parse_yaml(text if given else next(items, ""), option)
        if name == option:
            encoder = value
            continue
        settings = asdict(encoder_named(encoder)) if isinstance(encoder, str) else encoder
        encoder = {**settings, name.removeprefix(f"{option}."): value}
    return {**record, "model": {**model, "encoder": encoder}}, rest


def options_help(kind: Any, prefix: str = "--") -> str:
    """Every option with its default and meaning, from the dataclasses' docstrings."""
    docs = [base.__doc__ or "" for base in reversed(kind.__mro__)]
    meanings = dict(re.findall(r"^\s+(\w+): (.+)$", "\n".join(docs), flags=re.MULTILINE))
    lines = []
    for f in dataclasses.fields(kind):
        inner = get_type_hints(kind)[f.name]
        if dataclasses.is_dataclass(inner) and inner is not DecoderConfig:
            lines.append(options_help(inner, f"{prefix}{f.name}."))
            continue
        made = f.default_factory() if callable(f.default_factory) else f.default
        default = f" (default {made})" if made not in (None, [], {}) and f.name != "decoder" else ""
        lines.append(f"  {prefix}{f.name}\n      {meanings.get(f.name, '')}{default}")
    return "\n".join(lines)


def check_keys(record: Any, kind: Any, *, where: str) -> None:
    """Walk plain data beside a dataclass; ConfigError names the nearest valid key."""
    if not isinstance(record, Mapping):
        raise ConfigError(f"{where}: expected keys and values, got {type(record).__name__}")
    record = with_current_names(record)
    hints = get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for key, value in record.items():
        if key not in names:
            raise ConfigError(f"{where}: unknown key {key!r}; {did_you_mean(str(key), names)}")
        inner = hints[key]
        if dataclasses.is_dataclass(inner):
            check_keys({} if value is None else value, inner, where=f"{where}: {key}")
        elif get_origin(inner) is dict and dataclasses.is_dataclass(get_args(inner)[1]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {key}: expected named entries")
            for name, entry in value.items():
                check_keys(entry, get_args(inner)[1], where=f"{where}: {key}.{name}")


def _check_override(item: str, kind: type) -> None:
    """Turn an unknown ``--a.b=value`` into an error that names the nearest option."""
    option = item.split("=", maxsplit=1)[0].removeprefix("--")
    for depth, part in enumerate(parts := option.split(".")):
        if not dataclasses.is_dataclass(kind):
            return
        names = [f.name for f in dataclasses.fields(kind)]
        if part not in names:
            prefix = ".".join(parts[:depth])
            valid = [f"{prefix}.{n}" if prefix else n for n in names]
            raise ConfigError(
                f"unknown option --{option}; "
                + did_you_mean(f"{prefix}.{part}" if prefix else part, valid)
            )
        kind = get_type_hints(kind)[part]


def _check_filled(part: Any, where: str, prefix: str = "") -> None:
    """ConfigError for null where an option has no such value, and for numbers that are not finite.

    The parser lets both pass.
    """
    hints = get_type_hints(type(part))
    for f in dataclasses.fields(part):
        value, path = getattr(part, f.name), f"{prefix}{f.name}"
        if dataclasses.is_dataclass(value):
            _check_filled(value, where, f"{path}.")
        elif value is None and type(None) not in get_args(hints[f.name]):
            raise ConfigError(f"{where}: {path} is null; leave it out for its default")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}: {path} must be a finite number, got {value}")


def one_line(error: Exception) -> str:
    """An error's text without line breaks."""
    return " ".join(str(error).split())
