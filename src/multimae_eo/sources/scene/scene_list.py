"""Several scenes from what a user gives: a list, a pattern, a folder, a text file, STAC."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multimae_eo.errors import ConfigError, MultiMAEError
from multimae_eo.files import parse_json, read_text
from multimae_eo.sources.file_names import matching_files
from multimae_eo.sources.products.open_product import product_at
from multimae_eo.sources.raster.arrays import is_xarray
from multimae_eo.sources.raster.remote import is_remote
from multimae_eo.sources.stac.item_scene import collected_scenes, searched_scenes
from multimae_eo.sources.yaml_section import load_yaml

PLACEHOLDER = "{scene}"
"""Of an output of several scenes: replaced by the name of each."""
_LIST_BYTES = 1 << 26
_YAML = (".yaml", ".yml")
_JSON = (".json", ".geojson")
_SUFFIX = re.compile(
    r"\.(?:SAFE|tiff?|vrt|jp2|img|ya?ml|zarr|nc|h5|(?:geo)?parquet|(?:geo)?json)(?=$|[:@])",
    re.IGNORECASE,
)
_UNSAFE = re.compile(r"[^\w.@+-]+")


@dataclass(frozen=True, kw_only=True)
class ListedScene:
    """One of several scenes. ``name``: unique among them. ``spec``: a path, or an object that is
    opened as a scene; a pair of them where two are compared. ``text``: the path, for messages."""

    name: str
    spec: Any
    text: str


def list_scenes(given: object) -> tuple[ListedScene, ...]:
    """The scenes that a list, a pattern, a folder, a file of paths or a STAC file names.

    A list of paths and objects, or paths separated by commas; each may be a pattern
    (``tiles/*.tif``), a folder of scene files and products, a ``.txt`` file with a path a line
    (relative to it), a STAC file (a scene per item of its search), or an ItemCollection (JSON, or
    pystac's object). Anything else is a scene of its own. A scene that is named twice counts once.

    Raises ConfigError where nothing is listed, or two scenes have the same name.
    """
    specs: dict[object, object] = {}
    for spec in _expanded(given):
        specs.setdefault(str(spec) if isinstance(spec, Path) else id(spec), spec)
    if not specs:
        raise ConfigError(f"{given}: lists no scene")
    texts = [_text(s) for s in specs.values()]
    names = _names(texts)
    return tuple(
        ListedScene(name=n, spec=s, text=t)
        for n, s, t in zip(names, specs.values(), texts, strict=True)
    )


def names_several(given: object) -> bool:
    """Whether something may name several scenes, so that it has to be listed to know.

    A folder is one scene unless its scenes have outputs of their own.
    """
    if not isinstance(given, str | Path):
        sequence = isinstance(given, Sequence) and not is_xarray(given)
        return sequence or _is_pystac(given)
    text, path = str(given), Path(str(given))
    if is_remote(text):
        return False
    if not path.exists():
        return any(c in text for c in ",*?[")
    if path.suffix.lower() in (".txt", *_JSON):
        return True
    return path.suffix.lower() in _YAML and path.is_file() and _is_search(path)


def list_pairs(before: object, after: object) -> tuple[ListedScene, ...]:
    """The scenes of two dates, paired: by name where the names are the same, else in order.

    ``spec`` of each is the pair of specs. Raises ConfigError for two numbers of scenes.
    """
    first, second = list_scenes(before), list_scenes(after)
    if len(first) != len(second):
        lacking = sorted({s.name for s in first} ^ {s.name for s in second})
        raise ConfigError(
            f"{len(first)} scenes before and {len(second)} after cannot be paired; without a "
            f"counterpart: {', '.join(lacking[:5])}{', …' if len(lacking) > 5 else ''}"
        )
    by_name = {s.name: s for s in second}
    if {s.name for s in first} == by_name.keys():
        second = tuple(by_name[s.name] for s in first)
    return tuple(
        ListedScene(
            name=a.name if a.name == b.name else f"{a.name}_{b.name}",
            spec=(a.spec, b.spec),
            text=f"{a.text}, {b.text}",
        )
        for a, b in zip(first, second, strict=True)
    )


def _expanded(given: object) -> Iterator[object]:
    if isinstance(given, str | Path):
        yield from _of_path(str(given))
    elif _is_pystac(given):
        yield from collected_scenes(given, "ItemCollection")
    elif isinstance(given, Sequence) and not is_xarray(given):
        for part in given:
            yield from _expanded(part)
    else:
        yield given


def _is_pystac(given: object) -> bool:
    return type(given).__module__.split(".")[0].startswith("pystac")


def _is_search(path: Path) -> bool:
    """Whether a YAML file is a STAC file."""
    try:
        top = load_yaml(path)
    except MultiMAEError:
        return False
    return isinstance(top, Mapping) and "area" in top


def _of_path(text: str) -> Iterator[object]:
    path = Path(text)
    if is_remote(text):
        yield path
    elif "," in text and not path.exists():
        for part in text.split(","):
            if part.strip():
                yield from _of_path(part.strip())
    elif path.is_dir():
        yield from _of_folder(path)
    elif path.suffix.lower() == ".txt":
        yield from _of_text_file(path)
    elif path.suffix.lower() in (*_YAML, *_JSON) and path.is_file():
        yield from _of_document(path)
    elif any(c in text for c in "*?["):
        files, _ = matching_files(Path(), text)
        if not files:
            raise ConfigError(f"no file matches {text!r}")
        for file in files:
            yield from _of_path(str(file)) if file != path else [path]
    else:
        yield path


def _of_folder(folder: Path) -> Iterator[object]:
    """Scene files and products in a folder; the folder itself where it is a scene."""
    inside = sorted(folder.iterdir())
    listed = [p for p in inside if _is_scene_file(p) or (p.is_dir() and _is_product(p))]
    if not listed or _is_product(folder):
        yield folder
        return
    for path in listed:
        yield from _of_path(str(path)) if path.is_file() else [path]


def _is_product(path: Path) -> bool:
    try:
        return product_at(path, radar=False) is not None
    except MultiMAEError:
        return True  # of which opening it reports what is wrong


def _is_scene_file(path: Path) -> bool:
    """Whether a YAML file describes a scene or a STAC search, not chips."""
    if path.suffix.lower() not in _YAML or not path.is_file() or path.name.startswith("."):
        return False
    try:
        top = load_yaml(path)
    except MultiMAEError:
        return True  # of which opening it reports what is wrong
    return isinstance(top, Mapping) and "modalities" in top and "{id}" not in str(top)


def _of_text_file(path: Path) -> Iterator[object]:
    text = read_text(path, ConfigError, limit=_LIST_BYTES, remedy="write a path a line")
    for line in text.splitlines():
        entry = line.strip()
        if entry and not entry.startswith("#"):
            yield from _of_path(entry if is_remote(entry) else str(path.parent / entry))


def _of_document(path: Path) -> Iterator[object]:
    """A YAML or JSON file: a scene, or the items of a STAC search or ItemCollection."""
    if path.suffix.lower() in _JSON:
        text = read_text(path, ConfigError, limit=_LIST_BYTES, remedy="shorten the list")
        top = parse_json(text, path, ConfigError, form="a STAC ItemCollection")
        if not isinstance(top, dict) or top.get("type") != "FeatureCollection":
            raise ConfigError(f"{path}: is no STAC ItemCollection (type FeatureCollection)")
        yield from collected_scenes(path, str(path))
        return
    if _is_search(path):
        yield from searched_scenes(path)
    else:
        yield path


def _text(spec: object) -> str:
    if isinstance(spec, Path):
        return str(spec)
    return str(getattr(spec, "name", None) or "array")


def _names(texts: Sequence[str]) -> list[str]:
    """File names of the scenes, with as many of their folders' names as distinguish them."""
    parts = [[p for p in re.split(r"[/\\]+", t.split("?")[0]) if p] for t in texts]
    for depth in range(1, 1 + max(len(p) for p in parts)):
        names = ["_".join([*p[-depth:-1], _SUFFIX.sub("", p[-1])]) for p in parts]
        names = [_UNSAFE.sub("_", n).strip("._") or "scene" for n in names]
        if len({n.casefold() for n in names}) == len(names):
            return names
    twice = next(n for n in names if [m.casefold() for m in names].count(n.casefold()) > 1)
    raise ConfigError(f"two scenes are called {twice!r}; rename one, or give them in two runs")
