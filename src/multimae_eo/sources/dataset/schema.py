"""The dataset file: a YAML text becomes a checked, typed ``DatasetSpec``. See docs/datasets.md.

Nothing of the data is read here, only what the user wrote about them.
"""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multimae_eo import catalog
from multimae_eo.errors import ConfigError, MultiMAEError, did_you_mean
from multimae_eo.modality import Band, Modality
from multimae_eo.sources.band_match import BandRule
from multimae_eo.sources.base import split_name
from multimae_eo.sources.data_root import expanded_root, root_remedy
from multimae_eo.sources.dataset.chip_files import Pattern
from multimae_eo.sources.dataset.class_maps import inline_class_map
from multimae_eo.sources.dataset.split_draw import SplitDraw
from multimae_eo.sources.file_names import composed, existing_path
from multimae_eo.sources.raster.reading import Layout
from multimae_eo.sources.raster.remote import is_remote
from multimae_eo.sources.unsupported_files import other_kind
from multimae_eo.sources.vector.vector_labels import VectorSpec, vector_spec
from multimae_eo.sources.yaml_section import Section, as_number, load_yaml, parse_yaml

DATASET_KEYS = (
    "name", "root", "chips", "size", "time", "file_bands", "modalities", "labels", "splits",
    "table", "exclude",
)  # fmt: skip
MODALITY_KEYS = (
    "path", "sensor", "bands", "band", "channels", "file_bands", "scale", "offset", "nodata",
    "unit", "gsd", "level", "legend", "kind", "custom", "wavelengths", "bandwidths",
    "optional", "size", "exclude", "layout",
)  # fmt: skip
LABEL_KEYS = (
    "column", "folder", "mask", "classes", "ignore", "ids", "optional", "numeric", "separator",
    "nodata", "only", "rename", "vector",
)  # fmt: skip

Size = tuple[int, int]
_WAVELENGTHS_UM = (0.2, 20.0)
_BANDWIDTHS_UM = (0.001, 10.0)
CLASS_MAP_KEY = "legend"
"""The key of a modality's class map."""
FOLDER_SPLITS = "folder"
"""The value of ``splits:`` by which folders name the splits."""


@dataclass(frozen=True)
class PerChip:
    """A value of every chip: one ``default``, a table's ``column``, or some ``chips``' own."""

    default: Any = None
    column: str = ""
    chips: Mapping[str, object] = field(default_factory=dict)

    def of(self, key: str) -> Any:
        """The value of one chip."""
        return self.chips.get(key, self.default)


@dataclass(frozen=True, kw_only=True)
class ModalitySpec:
    """A modality, where its files are and how they are to be read.

    ``path``: None where it is in the ``chips`` file. ``nodata``: None means what the file and the
    class map declare. ``exclude``: chips whose pixels of this modality must not be used.
    ``layout``: order of the axes of array files. ``band_paths``: the file of each band, where each
    has its own.
    """

    modality: Modality
    rule: BandRule
    path: Pattern | None
    level: PerChip
    scale: PerChip
    offset: PerChip
    nodata: tuple[float, ...] | None
    size: Size | None
    optional: bool
    exclude: frozenset[str]
    layout: Layout = "chw"
    band_paths: tuple[Pattern, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """Where labels come from: exactly one of ``column``, ``folder``, ``mask``, ``vector``.

    ``ids``: raw mask id → class index, -1 for ignored ones. ``separator``: splits a column's text
    into several classes (multi-label). ``numeric``: the column or mask holds values, not classes.
    ``ignore``: values of a numeric label that are none. ``nodata``: of the label's files, None for
    what they declare. ``rename``: a class's name in the files → the class it counts as. ``only``:
    the classes to keep, after that, () for all; others have no label.
    """

    column: str = ""
    folder: bool = False
    mask: Pattern | None = None
    vector: VectorSpec | None = None
    classes: tuple[str, ...] = ()
    ids: Mapping[int, int] = field(default_factory=dict)
    optional: bool = False
    numeric: bool = False
    separator: str = ""
    ignore: tuple[float, ...] = ()
    nodata: tuple[float, ...] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A whole dataset file. ``draw``, ``split_table`` and ``split_folders`` (the first folder of a
    chip's path that is named after a split) exclude each other."""

    file: Path
    name: str
    root: Path
    chips: Pattern | None
    size: Size | None
    time: PerChip
    modalities: tuple[ModalitySpec, ...]
    labels: LabelSpec | None
    split_table: Path | None
    draw: SplitDraw | None
    table: Path | None
    exclude: frozenset[str]
    split_folders: bool = False


def read_dataset_file(path: Path, text: str | None = None) -> DatasetSpec:
    """Read and check a dataset file; ConfigError names the invalid key and the valid ones.

    ``text``: the YAML, instead of the file's; ``path`` is then for messages.
    """
    content = load_yaml(path) if text is None else parse_yaml(text, str(path))
    top = Section.of(str(path), content, DATASET_KEYS)
    records = top.get("modalities", {})
    if not isinstance(records, Mapping) or not records:
        raise top.error("modalities", "name at least one modality")
    root_text = expanded_root(top.text("root", "."), str(path))
    if is_remote(root_text):
        raise top.error(
            "root",
            "files on a server or in a zip file cannot be listed; copy the chips, or use a scene "
            "file or STAC",
        )
    root = existing_path(path.parent, root_text)
    if not root.is_dir():
        kind = other_kind(root)
        remedy = root_remedy(top.text("root", "."))
        raise top.error("root", f"{root} {kind or 'is not a folder'}{remedy}")
    chips = _pattern(top, "chips")
    specs = tuple(modality_spec(top, name, record) for name, record in records.items())
    lost = [s.modality.name for s in specs if s.path is None and chips is None]
    if lost:
        raise ConfigError(f"{path}: modality {lost[0]!r} has no `path:`, and there is no `chips:`")
    split_table, draw = _splits(top, root)
    table = existing_path(root, top.text("table")) if "table" in top else split_table
    return DatasetSpec(
        file=path,
        name=top.text("name", path.stem),
        root=root,
        chips=chips,
        size=_size(top),
        time=_per_chip(top, "time"),
        modalities=specs,
        labels=_labels(top, root) if "labels" in top else None,
        split_table=split_table,
        draw=draw,
        table=table,
        exclude=frozenset(top.names("exclude") or ()),
        split_folders=top.get("splits") == FOLDER_SPLITS,
    )


def modality_spec(top: Section, name: object, record: object) -> ModalitySpec:
    """Read one entry of ``modalities:``; scene files have the same, but for ``path``."""
    if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
        raise top.error("modalities", f"{name!r} is no name: use letters, digits, _ and -")
    section = Section.of(f"{top.where}: modalities.{name}", record or {}, MODALITY_KEYS)
    section, band_paths = _band_paths(section)
    for key in ("wavelengths", "bandwidths"):
        if key in section and (not section.flag("custom") or CLASS_MAP_KEY in section):
            raise section.error(key, "only bands of `custom: true` need it; leave it out")
    try:
        modality, band_names = _categorical(section, name) or _continuous(section, name)
    except MultiMAEError as error:
        if str(error).startswith(section.where):
            raise
        raise type(error)(f"{section.where}: {error}") from error
    scale, offset, level = (_per_chip(section, k) for k in ("scale", "offset", "level"))
    _check_level(section, modality, level)
    file_bands = section.names("file_bands")
    inherited = top.names("file_bands") if "path" not in section else None
    rule = BandRule(
        band_names=band_names,
        file_bands=file_bands or inherited or (),
        channels=_channels(section, modality.channels),
    )
    nodata = section.numbers("nodata")
    listed = modality.nodata if nodata is None else nodata
    try:
        modality = replace(
            modality,
            scale=1.0 if scale.default is None else scale.default,
            offset=offset.default or 0.0,
            # NaN is always nodata; it is left out as it would never equal itself.
            nodata=tuple(n for n in listed if not math.isnan(n)),
        )
    except ConfigError as error:
        raise ConfigError(f"{section.where}: {error}") from error
    return ModalitySpec(
        modality=modality,
        rule=rule,
        path=_pattern(section, "path"),
        level=level,
        scale=scale,
        offset=offset,
        nodata=nodata,
        size=_size(section),
        optional=section.flag("optional"),
        exclude=frozenset(section.names("exclude") or ()),
        layout=_layout(section, top),
        band_paths=band_paths,
    )


def _band_paths(section: Section) -> tuple[Section, tuple[Pattern, ...]]:
    """``bands: {B4: "{id}/B4.tif", …}`` as bands, their names in file order, and their patterns."""
    paths = section.get("bands")
    if not isinstance(paths, Mapping):
        return section, ()
    for key in ("path", "band", "file_bands", "channels", CLASS_MAP_KEY, "layout"):
        if key in section:
            raise section.error(key, "not beside a file per band (`bands:`)")
    if not paths or not all(isinstance(p, str) and p for p in paths.values()):
        raise section.error("bands", "expected a path with {id} for each band")
    names = [str(band) for band in paths]
    patterns = []
    for band, path in paths.items():
        pattern = _pattern(Section(f"{section.where}: bands", {str(band): path}), str(band))
        assert pattern is not None
        patterns.append(pattern)
    record = {**section.record, "bands": names, "file_bands": names, "path": patterns[0].text}
    return Section(section.where, record), tuple(patterns)


def _layout(section: Section, top: Section) -> Layout:
    """Order of the axes of array files; any but (C, H, W) is declared, and for .npy alone."""
    value = section.text("layout", "chw")
    if value == "chw":
        return "chw"
    if value != "hwc":
        raise section.error("layout", "expected chw (bands, rows, columns) or hwc (bands last)")
    pattern = _pattern(section, "path") or _pattern(top, "chips")
    if pattern is None or not pattern.text.lower().endswith(".npy"):
        raise section.error("layout", "only .npy arrays have one; other formats define it")
    return "hwc"


def _continuous(section: Section, name: str) -> tuple[Modality, tuple[str, ...]]:
    """The modality and the names under which its bands are looked for in files."""
    if section.get("kind", "continuous") != "continuous":
        raise section.error("kind", "a categorical modality needs `legend:`, others are continuous")
    asked = _bands(section)
    if section.flag("custom"):
        made = _custom(section, name, asked)
        names = made.band_names
    elif asked:
        sensor = section.text("sensor") or _sensor_of(section, asked)
        made = catalog.make_modality(name, sensor_name=sensor, bands=asked)
        names = tuple(
            a if isinstance(a, str) else b.name for a, b in zip(asked, made.bands, strict=True)
        )
    elif name in catalog.MODALITIES and "sensor" not in section:
        made = catalog.modality(name)
        names = made.band_names
    else:
        raise section.error("bands", "name the bands, with `sensor:` (or `custom: true`)")
    gsd = _gsd(section)
    made = replace(made, gsd_m=gsd or made.gsd_m, unit=_unit(section, made.unit))
    return made, names


def _gsd(section: Section) -> float | None:
    """Metres per pixel, None where the key is missing."""
    gsd = section.number("gsd")
    if gsd is not None and gsd <= 0:
        raise section.error("gsd", "expected metres per pixel, above 0")
    return gsd


def _unit(section: Section, default: str) -> str:
    """The unit; one of the catalogue as it is written there, whatever the case."""
    unit = section.text("unit", default)
    catalogued = {sensor.unit.lower(): sensor.unit for sensor in catalog.SENSORS.values()}
    return catalogued.get(unit.lower(), unit)


def _custom(section: Section, name: str, asked: tuple[str | float, ...]) -> Modality:
    """A modality of bands that the catalogue lacks."""
    if not asked or not all(isinstance(b, str) for b in asked):
        raise section.error("bands", "a custom modality needs the names of its bands")
    wavelengths = _micrometres(section, "wavelengths", len(asked), _WAVELENGTHS_UM)
    bandwidths = _micrometres(section, "bandwidths", len(asked), _BANDWIDTHS_UM)
    if "bandwidths" in section and "wavelengths" not in section:
        raise section.error("bandwidths", "give `wavelengths` as well")
    bands = tuple(
        Band(name=str(band), wavelength_um=wavelength, bandwidth_um=bandwidth)
        for band, wavelength, bandwidth in zip(asked, wavelengths, bandwidths, strict=True)
    )
    for band in bands:
        if (band.bandwidth_um or 0.0) > (band.wavelength_um or 0.0):
            raise section.error("bandwidths", f"that of {band.name} exceeds its wavelength")
    return Modality(name=name, bands=bands, sensor=section.text("sensor"))


def _micrometres(
    section: Section, key: str, bands: int, span: tuple[float, float]
) -> tuple[float | None, ...]:
    """A length for each band; None for all where the key is missing."""
    given = section.numbers(key)
    if given is None:
        return (None,) * bands
    if len(given) != bands:
        raise section.error(key, f"expected a number in µm for each of {bands} bands")
    if not all(span[0] <= value <= span[1] for value in given):
        raise section.error(key, f"expected {span[0]:g} to {span[1]:g} µm; 30 nm are 0.03")
    return given


def _categorical(section: Section, name: str) -> tuple[Modality, tuple[str, ...]] | None:
    """A class map where ``legend`` is given, or the catalogue has one under this name."""
    catalogued = catalog.MODALITIES.get(name)
    bare = not any(k in section for k in ("legend", "band", "bands", "sensor"))
    value = section.get(CLASS_MAP_KEY)
    if value is None and not (bare and catalogued is not None and catalogued.categorical):
        return None
    if section.get("kind", "categorical") != "categorical":
        raise section.error("kind", "a modality with a class map (`legend:`) is categorical")
    asked = _bands(section)
    if len(asked) > 1:
        raise section.error("bands", "a class map has one band")
    band = str(asked[0]) if asked else ""
    gsd = _gsd(section)
    if value is None and catalogued is not None:
        made = replace(catalogued, gsd_m=gsd or catalogued.gsd_m)
    elif isinstance(value, str):
        made = catalog.make_class_map(name, class_map_name=value, gsd_m=gsd)
    else:
        made = Modality(
            name=name,
            kind="categorical",
            sensor=section.text("sensor"),
            bands=(Band(name=band or name),),
            classes=inline_class_map(section, value),
            gsd_m=gsd,
        )
    return replace(made, unit=section.text("unit")), (band or made.bands[0].name,)


def _bands(section: Section) -> tuple[str | float, ...]:
    if "band" in section and "bands" in section:
        raise section.error("band", "give either `band` or `bands`")
    value = section.get("bands", [section.get("band")] if "band" in section else [])
    ok = isinstance(value, list) and all(
        isinstance(b, str | int | float) and not isinstance(b, bool) and b != "" for b in value
    )
    if not ok or ("bands" in section and not value):
        raise section.error("bands", "expected a list of band names or wavelengths (µm)")
    return tuple(value)


def _sensor_of(section: Section, asked: tuple[str | float, ...]) -> str:
    if not all(isinstance(b, str) for b in asked):
        raise section.error("sensor", "a wavelength needs `sensor:`")
    if str(asked[0]) in catalog.CLASS_MAPS:
        raise section.error(CLASS_MAP_KEY, f"a class map needs `legend: {asked[0]}`")
    return catalog.find_band(str(asked[0]))[0].name


def _check_level(section: Section, modality: Modality, level: PerChip) -> None:
    if not modality.levels:
        if "level" in section:
            raise section.error("level", f"{modality.sensor or 'it'} has no product levels")
        return
    listed = ", ".join(modality.levels)
    if "level" not in section:
        raise ConfigError(
            f"{section.where}: level: required for {modality.sensor}; one of {listed}"
        )
    values = [*level.chips.values(), *([] if level.default is None else [level.default])]
    for value in values:
        if value not in modality.levels:
            raise section.error("level", f"{did_you_mean(str(value), modality.levels)}")


def _channels(section: Section, count: int) -> tuple[int, ...]:
    value = section.get("channels", [])
    if not isinstance(value, list) or not all(type(c) is int and c > 0 for c in value):
        raise section.error("channels", "expected a list of file band numbers from 1")
    if "channels" in section and (len(value) != count or len(set(value)) != count):
        raise section.error("channels", f"expected {count} different number(s), one per band")
    return tuple(value)


def _per_chip(section: Section, key: str) -> PerChip:
    """A plain value, ``{column: NAME}``, or ``{default: VALUE, chips: {ID: VALUE}}``."""
    value = section.get(key)
    if not isinstance(value, Mapping):
        return PerChip(None if value is None else _value(section, key, value))
    inner = Section.of(f"{section.where}: {key}", value, ("column", "default", "chips"))
    chips = inner.get("chips", {})
    if not isinstance(chips, Mapping) or ("column" in inner) == ("chips" in inner):
        raise section.error(key, "expected {column: NAME} or {default: VALUE, chips: {ID: VALUE}}")
    default = _value(section, key, inner.get("default")) if "default" in inner else None
    by_chip = {composed(str(chip)): _value(section, key, v) for chip, v in chips.items()}
    return PerChip(default, inner.text("column"), by_chip)


def _value(section: Section, key: str, value: object) -> float | str:
    if key in ("level", "time"):
        if isinstance(value, datetime.date):
            return value.isoformat()
        if isinstance(value, str) and value:
            return value
        raise section.error(key, "expected text")
    number = as_number(value)
    if number is None or not math.isfinite(number) or (key == "scale" and number == 0):
        raise section.error(key, "expected a finite number" + (" ≠ 0" if key == "scale" else ""))
    return number


def _pattern(section: Section, key: str) -> Pattern | None:
    if key not in section:
        return None
    try:
        text = os.path.expanduser(section.text(key)).replace("\\", "/")
        pattern = Pattern(text.removeprefix("./"))
    except ConfigError as error:
        raise ConfigError(f"{section.where}: {key}: {error}") from error
    if pattern.dated and key not in ("path", "chips"):
        raise section.error(key, "only `path:` and `chips:` have files of several dates ({date})")
    return pattern


def _size(section: Section) -> Size | None:
    value = section.get("size")
    if value is None:
        return None
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(type(s) is int and s > 0 for s in sides):
        raise section.error("size", "expected pixels: a whole number, or [height, width]")
    return sides[0], sides[1]


_DRAW_KEYS = ("stratify", "group", "seed")


def _splits(top: Section, root: Path) -> tuple[Path | None, SplitDraw | None]:
    value = top.get("splits")
    if value == FOLDER_SPLITS:
        return None, None
    if value is None or isinstance(value, str):
        return (existing_path(root, value) if value else None), None
    if not isinstance(value, Mapping) or not value:
        raise top.error("splits", "expected a CSV file, or fractions of all but train: {val: 0.1}")
    options = Section(f"{top.where}: splits", value)
    shares = {split_name(str(n)): as_number(s) for n, s in value.items() if n not in _DRAW_KEYS}
    valid = {n: s for n, s in shares.items() if s is not None and 0 < s < 1}
    if "train" in shares or not shares:
        raise top.error("splits", "expected a CSV file, or fractions of all but train: {val: 0.1}")
    if len(valid) < len(shares) or sum(valid.values()) >= 1:
        raise top.error("splits", "fractions lie between 0 and 1 and leave some chips for train")
    seed = options.get("seed", 0)
    if type(seed) is not int or seed < 0:
        raise options.error("seed", "expected a whole number from 0")
    return None, SplitDraw(
        shares=valid, stratify=options.flag("stratify"), group=options.text("group"), seed=seed
    )


_ONLY_WITH = {"separator": ("column",), "numeric": ("column", "mask"), "ids": ("mask",),
              "optional": ("mask",), "ignore": ("mask", "column"), "nodata": ("mask", "column"),
              }  # fmt: skip


def _labels(top: Section, root: Path) -> LabelSpec:
    record = top.get("labels")
    if isinstance(record, Mapping) and "vector" in record:
        return LabelSpec(vector=vector_spec(f"{top.where}: labels", record, root))
    section = Section.of(f"{top.where}: labels", top.get("labels"), LABEL_KEYS)
    given = [k for k in ("column", "folder", "mask") if k in section]
    if len(given) != 1:
        raise ConfigError(f"{section.where}: give one of column, folder, mask, vector; got {given}")
    classes = section.names("classes") or ()
    mask = _pattern(section, "mask")
    values = section.flag("numeric")
    if mask and bool(classes) == values:
        raise section.error("classes", "a mask needs its classes' names, or numeric: true")
    if "folder" in section and not section.flag("folder"):
        raise section.error("folder", "expected true")
    for key, holders in _ONLY_WITH.items():
        if key in section and given[0] not in holders:
            raise section.error(key, f"only a `{':` or `'.join(holders)}:` label has it")
    for key in ("ids", "only", "rename"):
        if values and key in section:
            raise section.error(key, "only classes have it; values to leave out are `ignore:`")
    for key in ("ignore", "nodata"):
        if not (values or mask) and key in section:
            raise section.error(key, "for classes of a column, name those to keep: `only: [...]`")
    rename = _rename(section)
    return LabelSpec(
        column=section.text("column"),
        folder="folder" in section,
        mask=mask,
        classes=classes,
        ids=_mask_ids(section, classes) if mask and not values else {},
        optional=section.flag("optional"),
        numeric=values,
        separator=section.text("separator"),
        ignore=(section.numbers("ignore") or ()) if values else (),
        nodata=section.numbers("nodata"),
        rename=rename,
        only=section.names("only") or (),
    )


def _rename(section: Section) -> dict[str, str]:
    """``{old: new}``, or ``{new: [old, old]}``: the class that each class counts as."""
    value = section.get("rename", {})
    if not isinstance(value, Mapping):
        raise section.error("rename", "expected {old: new} or {new: [old, old]}")
    renamed: dict[str, str] = {}
    for name, other in value.items():
        if isinstance(other, list):
            pairs = [(str(old), str(name)) for old in other]
        else:
            pairs = [(str(name), str(other))]
        for old, new in pairs:
            if renamed.setdefault(composed(old), composed(new)) != composed(new):
                raise section.error("rename", f"{old!r} is given two names")
    return renamed


def _mask_ids(section: Section, classes: tuple[str, ...]) -> dict[int, int]:
    """Raw id → class index. By default a raw id is the index of the class in ``classes``."""
    given = section.get("ids", dict(enumerate(classes)))
    if not isinstance(given, Mapping):
        raise section.error("ids", "expected a mapping of mask ids to classes")
    index_of: dict[int, int] = {}
    for raw, name in given.items():
        if type(raw) is not int:
            raise section.error("ids", f"the mask id {raw!r} is no whole number")
        if str(name) not in classes:
            raise section.error("ids", f"no class {name!r}; {did_you_mean(str(name), classes)}")
        index_of[raw] = classes.index(str(name))
    for number in section.numbers("ignore") or ():
        if not float(number).is_integer() or int(number) in index_of:
            raise section.error("ignore", "expected whole ids that are not classes")
        index_of[int(number)] = -1
    return index_of
