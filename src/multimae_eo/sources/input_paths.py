"""Outputs never touch inputs: which paths a subcommand reads, and a check that it writes elsewhere.

Everything is compared after links are resolved; hard links count as the file they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from multimae_eo.errors import ConfigError, MultiMAEError, OutputError
from multimae_eo.sources.data_root import expanded_root
from multimae_eo.sources.dataset.chip_files import Pattern
from multimae_eo.sources.file_names import existing_path, matching_files, walk_files
from multimae_eo.sources.raster.remote import is_remote
from multimae_eo.sources.yaml_section import load_yaml

INPUT_OPTIONS = (
    "source", "data", "scene", "model", "init", "recipe", "checkpoint", "statistics", "root",
    "embeddings", "map", "accuracy", "predictor", "runs", "path", "reference", "other", "labels",
    "before", "after",
)  # fmt: skip
"""Options of subcommands that name what is read."""
RUN_RECIPE = "recipe.yaml"
"""The recipe that a run leaves in its folder: a run may be resumed from it."""
OUTPUT_OPTIONS = ("out", "html", "polygons", "convert")
"""Options that name what is written: a file, or a folder."""
_KINDS = ("mmearth:", "geobench:", "scene:", "stac:", "series:")
_BESIDE = (".png", ".json", ".probabilities.tif", ".probabilities.png", ".confidence.tif",
           ".confidence.png", ".aux.xml", ".data")  # fmt: skip
"""What is written beside an output file, after its stem."""
_AFTER = (".png", ".stac.json", ".collection.json")
"""The same, after its name."""


def require_separate_outputs(options: Mapping[str, object]) -> None:
    """OutputError where an output is, contains or overwrites one of the inputs.

    ``options``: of a subcommand, by name; those of INPUT_OPTIONS are read, those of OUTPUT_OPTIONS
    written.
    """
    outputs = {n: v for n in OUTPUT_OPTIONS if isinstance(v := options.get(n), str | Path) and v}
    if not outputs:
        return
    for name in INPUT_OPTIONS:
        given = options.get(name)
        listed: Sequence[object] = given if isinstance(given, list | tuple) else [given]
        for spec in listed:
            if not isinstance(spec, str | Path) or not str(spec) or str(spec) == "none":
                continue
            for path in input_paths(str(spec)):
                for option, output in outputs.items():
                    _require_apart(option, Path(output), name, path)


def require_scene_outputs(inputs: Iterable[str], outputs: Iterable[Path]) -> None:
    """OutputError where an output of several scenes is, contains or overwrites one of them.

    ``inputs``: paths of the scenes; the files that scene files name count as well.
    """
    read = {path.resolve() for spec in inputs for path in input_paths(spec)}
    above = {parent for path in read for parent in path.parents}
    for output in outputs:
        for path in _written(output):
            target = path.resolve()
            relation = ""
            if target in read:
                relation = "is"
            elif target in above:
                relation = "contains"
            elif target.is_file() and not read.isdisjoint(target.parents):
                relation = "lies among the files of"
            if relation:
                raise OutputError(f"--out {path}: {relation} an input; write elsewhere")


def input_paths(spec: str) -> Iterator[Path]:
    """Files and folders that an input names: the path itself, and what a YAML file refers to.

    ``spec``: a path, or a SOURCE as ``open_source`` takes it. What does not exist is left out.
    """
    if "," in spec and not Path(spec).exists():
        for part in spec.split(","):
            yield from input_paths(part.strip())
        return
    text = next(
        (spec.removeprefix(k) for k in (*_KINDS, "geobench2:") if spec.startswith(k)), spec
    ).split("?")[0]
    path = existing_path(Path(), text)
    if not path.exists():
        return
    yield path
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
        yield from _referred(path)


def absolute_spec(spec: str) -> str:
    """A SOURCE with absolute paths, for processes that run in other folders."""
    if "," in spec and not Path(spec).exists():
        return ",".join(absolute_spec(part.strip()) for part in spec.split(","))
    kind = next((k for k in _KINDS if spec.startswith(k)), "")
    path = spec.removeprefix(kind)
    return spec if is_remote(path) else kind + os.path.abspath(os.path.expanduser(path))


def _referred(path: Path) -> Iterator[Path]:
    """The files that a dataset, scene or STAC file names."""
    try:
        top = load_yaml(path)
    except ConfigError:
        return  # opening the source reports the error
    root_text = top.get("root") if isinstance(top, Mapping) else None
    try:
        below = expanded_root(root_text, str(path)) if isinstance(root_text, str) else "."
    except ConfigError:
        return
    root = existing_path(path.parent, below)
    for text in _texts(top):
        if text == root_text or "\n" in text or len(text) > 1000:
            continue
        try:
            if "{id}" in text:
                yield from (root / name for name in Pattern(text).discover(root).all_paths)
            else:
                # A folder of this name is a product.
                yield from (f for f in matching_files(root, text)[0] if f.is_file() or f.suffix)
        except (MultiMAEError, OSError, ValueError):
            continue


def _texts(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)


def _require_apart(option: str, output: Path, name: str, given: Path) -> None:
    source = given.resolve()
    for path in _written(output):
        target = path.resolve()
        relation = ""
        if target == source or (path.exists() and os.path.samefile(path, source)):
            relation = "is"
        elif target in source.parents and source != target / RUN_RECIPE:
            relation = "contains"
        elif source.is_dir() and source in target.parents and _holds_files(target, source):
            relation = "lies among the files of"
        if relation:
            raise OutputError(
                f"--{option} {path}: {relation} an input ({name}: {given}); write elsewhere"
            )


def _written(output: Path) -> Iterator[Path]:
    """The output, and existing files of names that are written beside it."""
    yield output
    if output.suffix and not output.is_dir():
        beside = [output.with_name(output.stem + ending) for ending in _BESIDE]
        beside += [output.with_name(output.name + ending) for ending in _AFTER]
        yield from (path for path in beside if path.exists())


def _holds_files(target: Path, source: Path) -> bool:
    """Whether the output is a file of the input folder, or a folder of some of its files.

    A model's folder is flat: what lies deeper in it is not the model's.
    """
    if target.is_file():
        return True
    flat = (source / "config.json").is_file()
    return target.is_dir() and not flat and next(walk_files(target), None) is not None
