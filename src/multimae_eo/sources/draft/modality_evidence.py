"""Modalities recognised in files of one kind: sensor, bands, processing level, scale, class map.

Only what files, names and values show is written; what they leave open is a blank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from multimae_eo.catalog import CLASS_MAPS, MODALITIES, SENSORS, Sensor
from multimae_eo.modality import canonical
from multimae_eo.sources.dataset.schema import CLASS_MAP_KEY
from multimae_eo.sources.draft.file_groups import words_of
from multimae_eo.sources.draft.pixel_evidence import BandValues, FileEvidence
from multimae_eo.sources.draft.yaml_draft import MERGE, Entry
from multimae_eo.sources.raster.reading import IMAGE_SUFFIXES
from multimae_eo.sources.yaml_section import BLANK

EUROSAT = frozenset(
    {"AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture",
     "PermanentCrop", "Residential", "River", "SeaLake"}
)  # fmt: skip
_EUROSAT_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B11", "B12", "B8A")
# The catalogue's groups of two or three bands.
_S2_GROUPS = tuple(n for n, m in MODALITIES.items() if m.sensor == "sentinel2" and m.channels <= 3)
_S2_COARSE = frozenset({"B1", "B9", "B10"})
_HINTS: Mapping[str, tuple[str, ...]] = {
    "sentinel2": (
        "s2",
        "sentinel2",
        "l1c",
        "l2a",
        "msil1c",
        "msil2a",
        "s2a",
        "s2b",
        "s2l1c",
        "s2l2a",
    ),
    "hls": ("hls", "l30", "s30"),
    "landsat8": ("landsat", "landsat8", "landsat9", "lc08", "lc09", "oli"),
    "sentinel1": ("s1", "sentinel1", "s1a", "s1b", "rtc", "s1rtc", "s1grd", "sar"),
    "dem": ("dem", "srtm", "elevation", "aster", "nasadem", "copdem", "aw3d"),
    "slope": ("slope",),
}
_CLASS_MAP_WORDS = frozenset(
    {"lulc", "landcover", "lc", "worldcover", "cls", "class", "classes", "crops"}
)
_LEVELS = {"l1c": "l1c", "msil1c": "l1c", "s2l1c": "l1c",
           "l2a": "l2a", "msil2a": "l2a", "s2l2a": "l2a"}  # fmt: skip
_USUAL_SCALE = {
    "sentinel2": "reflectance in whole numbers is usually × 10000 (1.0e-4); files of processing "
    "baseline 04.00 and later (since January 2022) also need `offset: -0.1`, unless their "
    "producer has removed it",
    "hls": "HLS stores reflectance × 10000 (1.0e-4)",
    "landsat8": "Collection 2 level 2 has scale 2.75e-5 and `offset: -0.2`; others usually 1.0e-4",
    "sentinel1": "the catalogue's unit is dB: write 1 for dB; convert linear power first "
    "(10 · log10)",
    "dem": "metres per unit of the file",
}


@dataclass(frozen=True, kw_only=True)
class ModalityDraft:
    """A modality, its keys, and what it was recognised from. ``like``: the modality whose other
    keys it has too."""

    name: str
    entries: tuple[Entry, ...]
    evidence: str
    like: str = ""

    def entry(self, others: Sequence[ModalityDraft]) -> Entry:
        """The entry under ``modalities:``, with an anchor where one of ``others`` is like it."""
        anchor = self.name if any(d.like == self.name for d in others) else ""
        merged = (Entry(MERGE, self.like),) if self.like else ()
        return Entry(self.name, (*merged, *self.entries), anchor=anchor)


@dataclass(frozen=True, kw_only=True)
class _Bands:
    """Bands of one sensor in the files: 0-based position → name in the catalogue."""

    sensor: Sensor
    at: Mapping[int, str]
    evidence: str


def modality_drafts(
    files: FileEvidence, hint: str, *, class_folders: frozenset[str] = frozenset()
) -> tuple[list[ModalityDraft], list[str]]:
    """The modalities in files, and a line for each of their bands that no modality takes.

    ``hint``: names of their folder and of some files. ``class_folders``: names of the folders that
    they lie in, where these are classes.
    """
    names = _named_bands(files)
    words = words_of(hint)
    if class_folders and class_folders <= EUROSAT and len(class_folders) > 4:
        return _eurosat(files, names)
    drafts: list[ModalityDraft] = []
    grouped = _by_sensor(files, names, words)
    for bands in grouped:
        drafts += _of_sensor(files, bands, words)
    taken = {i for bands in grouped for i in bands.at}
    for position, name in enumerate(names):
        class_map = _class_map(name)
        if class_map and position not in taken:
            taken.add(position)
            band = (Entry("band", name),) if files.first.count > 1 else ()
            drafts.append(
                ModalityDraft(
                    name="landcover" if class_map == "esa_worldcover" else class_map,
                    entries=(*band, Entry(CLASS_MAP_KEY, class_map)),
                    evidence=f"class map {class_map}: the band's name",
                )
            )
    if not drafts:
        drafts = [_unnamed(files, words)]
        return drafts, []
    left = [names[i] for i in range(len(names)) if i not in taken and names[i]]
    notes = [f"bands that no modality takes: {', '.join(left)}"] if left else []
    return drafts, notes


def _named_bands(files: FileEvidence) -> tuple[str, ...]:
    """Names of all bands; "" where the files do not agree on one, or give none."""
    names = files.first.names
    if any(h.names != names for h in files.headers):
        return ("",) * files.first.count
    return tuple(n if names.count(n) == 1 else "" for n in names)


def _class_map(name: str) -> str:
    return next((g for g in CLASS_MAPS if name and canonical(g) == canonical(name)), "")


def _by_sensor(files: FileEvidence, names: Sequence[str], words: set[str]) -> list[_Bands]:
    """Which bands belong to which sensor; bands of an ambiguous sensor are left out."""
    everything = words | {w for n in names for w in words_of(n)}
    colors = {canonical(n) for n in names} & {"red", "green", "blue"}
    groups: list[_Bands] = []
    taken: set[int] = set()
    for name in _likely_sensors(files, names, everything, len(colors) == 3):
        record = SENSORS[name]
        at = {
            i: band.name
            for i, n in enumerate(names)
            if n and i not in taken
            for band in record.bands
            if band.matches(n)
        }
        if at and len(set(at.values())) == len(at):
            listed = ", ".join(names[i] for i in at)
            taken |= set(at)
            groups.append(_Bands(sensor=record, at=at, evidence=f"band names {listed}"))
    return groups


def _likely_sensors(
    files: FileEvidence, names: Sequence[str], words: set[str], colors: bool
) -> list[str]:
    """Sensors in the order in which bands are given to them."""
    bare = {canonical(n) for n in names if n}
    picture = files.first.dtype == "uint8" and colors
    optical: list[str] = []
    if picture:
        optical.append("rgb")
    elif bare & {"b8a", "b11", "b12"} or words & set(_HINTS["sentinel2"]):
        optical.append("sentinel2")
    elif words & set(_HINTS["hls"]):
        optical.append("hls")
    elif words & set(_HINTS["landsat8"]):
        optical.append("landsat8")
    return [*optical, "sentinel1", "dem", "slope", "canopy_height", "index"]


def _of_sensor(files: FileEvidence, bands: _Bands, words: set[str]) -> list[ModalityDraft]:
    """One modality, or the catalogue's groups of Sentinel-2."""
    name = bands.sensor.name
    if name != "sentinel2":
        listed = tuple(bands.at.values())
        names = {"hls": "optical", "dem": "elevation", "index": listed[0], "landsat8": "optical"}
        return [_measured(files, bands, names.get(name, name), listed, words)]
    present = set(bands.at.values())
    groups: dict[str, Sequence[str]] = {}
    for group in _S2_GROUPS:
        members = MODALITIES[group].band_names
        if set(members) <= present:
            present -= set(members)
            groups[group] = members
    rest = [b for b in bands.at.values() if b in present]
    usable = rest if not groups else [b for b in rest if b not in _S2_COARSE]
    if usable:
        groups["optical"] = usable
    first, *others = groups.items()
    draft = _measured(files, bands, *first, words)
    return [draft] + [
        ModalityDraft(
            name=name, entries=(Entry("bands", list(members)),), evidence=draft.evidence,
            like=draft.name,
        )
        for name, members in others
    ]  # fmt: skip


def _measured(
    files: FileEvidence, bands: _Bands, name: str, members: Sequence[str], words: set[str]
) -> ModalityDraft:
    sensor = bands.sensor
    everything = sensor.name == "sentinel2"
    at = [i for i, band in bands.at.items() if everything or band in members]
    entries = [Entry("sensor", sensor.name), Entry("bands", list(members))]
    if sensor.levels:
        entries.append(_level(bands, words))
    entries += _scale(files, at, sensor)
    return ModalityDraft(
        name=name, entries=tuple(entries), evidence=f"{sensor.name}: {bands.evidence}"
    )


def _level(bands: _Bands, words: set[str]) -> Entry:
    named = {_LEVELS[w] for w in words if w in _LEVELS}
    if len(named) == 1:
        level = named.pop()
        return Entry("level", level, f"processing level {level.upper()}, by the file names")
    if "B10" in bands.at.values():
        return Entry("level", "l1c", "processing level L1C: L2A products have no band B10")
    return Entry(
        "level", BLANK,
        "processing level: l1c (top of atmosphere) or l2a (surface reflectance); the files do "
        "not record it",
    )  # fmt: skip


def _scale(files: FileEvidence, at: Sequence[int], sensor: Sensor) -> list[Entry]:
    """Scale (and offset), where the catalogue's unit is not the file's for certain."""
    first = files.first
    if any(first.bands[i].scale is not None or first.bands[i].offset is not None for i in at):
        return []  # the files' tags
    if sensor.name in ("rgb", "slope", "canopy_height"):
        return []
    values = files.values(at)
    unit = _unit(values, sensor.unit, floating=first.dtype.kind == "f")
    if unit:
        return [Entry("scale", 1, f"{unit}, by their range: {values}")]
    if sensor.name == "hls" and first.dtype == "int16":
        return [Entry("scale", 1.0e-4, f"HLS stores reflectance × 10000 as int16; {values}")]
    usual = _USUAL_SCALE.get(sensor.name, "physical value of one unit of the file")
    return [Entry("scale", BLANK, f"scale: {usual}. Here {first.dtype} {values}")]


def _unit(values: BandValues, unit: str, *, floating: bool) -> str:
    """What the values are, where their range shows that they have the sensor's unit; else ""."""
    if unit == "reflectance" and floating and values.high <= 2:
        return "reflectance"
    if unit == "dB" and floating and values.negative > 0.5:
        return "decibels"
    if unit == "m" and values.low >= -500 and values.high <= 9000:
        return "metres"
    if unit == "" and values.low >= -1.01 and values.high <= 1.01:
        return "the index itself"
    return ""


def _eurosat(files: FileEvidence, names: Sequence[str]) -> tuple[list[ModalityDraft], list[str]]:
    """The EuroSAT data set (Helber et al. 2019), recognised by its class folders."""
    record = SENSORS["sentinel2"]
    if files.first.count != 13:
        drafts, notes = modality_drafts(files, "")
        return drafts, [*notes, "EuroSAT, by the names of the class folders"]
    order = [next((b.name for b in record.bands if b.matches(n)), "") for n in names]
    bands = order if set(order) == set(_EUROSAT_BANDS) else list(_EUROSAT_BANDS)
    listed = _Bands(sensor=record, at=dict(enumerate(bands)), evidence="EuroSAT's 13 bands")
    first, *others = _of_sensor(files, listed, {"l1c"})
    entries = [e for e in first.entries if e.key not in ("scale", "level")]
    if bands != order:
        comment = "EuroSAT's files do not name their bands; B8A is the last of them"
        entries.append(Entry("file_bands", bands, comment))
    entries += [
        Entry("level", "l1c", "EuroSAT is L1C (Helber et al. 2019)"),
        Entry("scale", 1.0e-4, "EuroSAT stores reflectance × 10000"),
    ]
    drafts = [replace(first, entries=tuple(entries)), *others]
    return drafts, ["EuroSAT, by the names of the class folders and its 13 bands"]


def _unnamed(files: FileEvidence, words: set[str]) -> ModalityDraft:
    """A modality of files that do not name their bands."""
    first = files.first
    colors = [b.color for b in first.bands]
    if first.dtype == "uint8" and colors[:3] == ["red", "green", "blue"] and first.count in (3, 4):
        bands = _Bands(
            sensor=SENSORS["rgb"], at=dict(enumerate(("red", "green", "blue"))),
            evidence="three 8-bit bands with colour interpretation red, green, blue",
        )  # fmt: skip
        made = _measured(files, bands, "image", ("red", "green", "blue"), words)
        named = first.path and str(first.path).lower().endswith(IMAGE_SUFFIXES)
        more = [] if named else [Entry("channels", [1, 2, 3])]
        return replace(made, entries=(*made.entries, *more))
    if first.count == 1:
        sensor = next((s for s in ("dem", "slope") if words & set(_HINTS[s])), "")
        index = next((b.name for b in SENSORS["index"].bands if b.name in words), "")
        if sensor or index:
            record = SENSORS[sensor or "index"]
            band = index or record.bands[0].name
            single = _Bands(sensor=record, at={0: band}, evidence="the file or folder name")
            return _measured(files, single, "elevation" if sensor == "dem" else band, [band], words)
        if class_entry := _class_map_entry(files, words):
            return ModalityDraft(
                name="landcover", entries=(class_entry,), evidence="class map: the file name, and "
                "few whole values",
            )  # fmt: skip
    likely = [s for s in ("sentinel2", "sentinel1", "hls", "landsat8") if words & set(_HINTS[s])]
    return _blank(files, likely[0] if len(likely) == 1 else "", words)


def _class_map_entry(files: FileEvidence, words: set[str]) -> Entry | None:
    """The ``legend:`` of a class map, where name and values show that a file is one."""
    if files.first.dtype.kind == "f" or not words & _CLASS_MAP_WORDS:
        return None
    values = files.values([0])
    ids = [v for v in values.distinct if v >= 0]
    if not 0 < len(ids) <= 64 or len(ids) < len(values.distinct):
        return None
    return Entry(
        CLASS_MAP_KEY, {v: f"class_{v}" for v in ids},
        f"the ids in {values.files} file(s), without names: rename them, or write a class map of "
        f"the catalogue ({', '.join(CLASS_MAPS)})",
    )  # fmt: skip


def _blank(files: FileEvidence, name: str, words: set[str]) -> ModalityDraft:
    """A modality of which bands, and perhaps the sensor, are to be filled in."""
    count, first = files.first.count, files.first
    if name:
        record = SENSORS[name]
        nothing = _Bands(sensor=record, at={}, evidence="")
        entries = [
            Entry("sensor", name, "by the file or folder names"),
            *([_level(nothing, words)] if record.levels else []),
            *_scale(files, range(count), record),
        ]
    else:
        entries = [
            Entry("sensor", BLANK, f"sensor: one of {', '.join(SENSORS)}; for any other sensor, "
                  "`custom: true` beside it"),
            Entry("scale", BLANK, "physical value of one unit of the file: 1 for physical values; "
                  f"here {first.dtype} {files.values(range(count))}"),
        ]  # fmt: skip
    entries.append(Entry("bands", BLANK, "names of the bands to use, such as [B4, B3, B2]"))
    if count > 1:
        comment = (
            f"names of all {count} bands in file order: the files do not give names that the "
            "catalogue has"
        )
        entries.append(Entry("file_bands", BLANK, comment))
    evidence = f"{count} band(s) without usable names"
    return ModalityDraft(name=name or "image", entries=tuple(entries), evidence=evidence)
