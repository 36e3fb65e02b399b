"""The options of the verb ``probe``, and what is made of them. Light: heavy imports wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multimae_eo.errors import ConfigError


def add_options(parser: Any, source: str) -> None:
    """Add the verb's options to a parser; ``source`` explains what a source is."""
    add = parser.add_argument
    add("--model", type=str, required=True, help="model folder")
    add("--data", type=str, required=True, help=source)
    add(
        "--inputs",
        type=str,
        default=None,
        help="modalities, m1,m2 (default: all); several sets as 'm1;m1,m2;all'",
    )
    add("--methods", type=str, default=None, help="knn, linear (default: both; maps: linear)")
    add(
        "--features",
        type=str,
        default="layers-spread",
        help="of tokens: mean, spread (and deviation), layers (every block's), layers-spread",
    )
    add("--fractions", type=str, default="100", help="label fractions in percent, a,b,c")
    add("--seeds", type=int, default=1, help="draws of each label fraction")
    add("--out", type=str, required=True, help="folder to write")
    add("--seed", type=int, default=0, help="of the bootstrap, the draws and the baselines")


def run(options: Any) -> list[dict[str, Any]]:
    """Probe as the parsed options say; errors as for ``probes.probe``."""
    from multimae_eo.evaluate.probes import ProbeOptions, probe
    from multimae_eo.loading.open_source import open_source
    from multimae_eo.network.multimae import MultiMAE

    how = ProbeOptions(
        features=options.features, fractions=percents(options.fractions), seeds=options.seeds
    )
    return probe(
        MultiMAE.from_pretrained(options.model),
        open_source(options.data),
        inputs=input_sets(options.inputs),
        methods=None if options.methods is None else _names(options.methods),
        out=Path(options.out),
        seed=options.seed,
        options=how,
    )


def input_sets(text: str | None) -> dict[str, list[str] | None] | list[str] | None:
    """``m1;m1,m2;all`` by name, or one list; None for all modalities."""
    if text is None or text == "all":
        return None
    if ";" not in text:
        return _names(text)
    parts = [part.strip() for part in text.split(";") if part.strip()]
    return {part: None if part == "all" else _names(part) for part in parts}


def percents(text: str) -> tuple[float, ...]:
    """``5,10,100`` as numbers; ConfigError for what is none."""
    try:
        return tuple(float(part) for part in _names(text))
    except ValueError as error:
        raise ConfigError(f"fractions: expected percentages a,b,c, got {text!r}") from error


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
