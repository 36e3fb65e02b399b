"""Layouts of chips: class folders, image and mask folders, a folder per sensor, plain chips."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from multimae_eo.errors import DataError, MultiMAEError
from multimae_eo.sources.dataset.chip_files import ChipTable, Pattern, read_table
from multimae_eo.sources.dataset.label_texts import number_of
from multimae_eo.sources.draft.area_layouts import (
    band_calibration_entries,
    band_file,
    band_sensor,
)
from multimae_eo.sources.draft.file_groups import (
    FolderFiles,
    common_ending,
    id_pattern,
    split_folders,
    stem,
    words_of,
)
from multimae_eo.sources.draft.modality_evidence import ModalityDraft, modality_drafts
from multimae_eo.sources.draft.pixel_evidence import BandValues, FileEvidence
from multimae_eo.sources.draft.yaml_draft import Draft, Entry
from multimae_eo.sources.file_names import counted, same_suffixes
from multimae_eo.sources.raster.reading import read_header
from multimae_eo.sources.yaml_section import BLANK

_MASK_WORDS = re.compile(
    r"(?i)(mask|label|lbl|annot|ground_?truth|truth|target|segm|(?<![a-z])gt(?![a-z]))"
)
_IMAGE_WORDS = re.compile(
    r"(?i)(image|img|chip|tile|patch|optical|sentinel|(?<![a-z])(?:rgb|s1|s2|dem|hls))"
)
_LABEL_COLUMNS = ("label", "class", "category", "labels", "classes", "target", "y")
_MOST_CLASSES = 64
_MASKS_READ = 200
_SPLITS = Entry(
    "splits", {"val": 0.1, "test": 0.2},
    "no split is given: 10 % of the chips for validation and 20 % for the test are drawn by a "
    "hash of each id, the same at every run. The draw does not take locations into account; "
    "`group: folder` or a column of a table keeps neighbours together",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """Files of one kind in one folder; chips share ids over layers. ``ids``: id → file."""

    folder: str
    ending: str
    ids: Mapping[str, str]
    files: FileEvidence

    @property
    def pattern(self) -> str:
        """The path with ``{id}``."""
        return id_pattern(self.folder, self.files.names, self.ending)

    @property
    def hint(self) -> str:
        """Folder, ending and first name, of which words are taken."""
        return f"{self.folder} {self.ending} {self.files.names[0]}"


def chip_draft(files: FolderFiles) -> Draft | None:
    """The draft of a folder of chips; None where it looks like no data set of chips.

    Raises FormatError for an image that cannot be read, DataError for a layout that a dataset file
    cannot describe.
    """
    folders = [f for f in files.by_folder if f != "."]
    if not files.rasters:
        return None
    if len(files.by_folder) == 1:
        return _paired(files) if _two_endings(files) else _flat(files)
    if draft := _band_folders(files):
        return draft
    layers = _layers(files)
    if _are_parallel(layers):
        return _layered(files, layers)
    return _class_folders(files) if len(folders) > 1 and "." not in files.by_folder else None


def _band_folders(files: FolderFiles) -> Draft | None:
    """A folder per chip with a file per band, as of BigEarthNet: ``{id}/{id}_B04.tif``."""
    first, *others = files.by_folder
    if not others or any("/" in f or f == "." for f in files.by_folder):
        return None
    prefix = "{id}" if all(stem(n).startswith(first) for n in files.by_folder[first]) else ""
    endings = [
        {PurePosixPath(n).name.removeprefix(folder if prefix else "") for n in names}
        for folder, names in files.by_folder.items()
    ]
    common = sorted(set.intersection(*endings))
    rasters = {e: f"{first}/{first if prefix else ''}{e}" for e in common}
    bands = [band_file(n, read_header(files.folder / n)) for n in rasters.values()]
    named = [(e, b) for e, b in zip(rasters, bands, strict=True) if b.bands]
    if len(named) < 2:
        return None
    words = words_of(f"{files.folder.name} {first}")
    sensor = band_sensor([b for _, b in named], words)
    if not sensor:
        return None
    by_size: dict[tuple[int, int], dict[str, str]] = {}
    for ending, band in named:
        if sensor in band.bands:
            paths = by_size.setdefault(band.header.shape, {})
            paths[band.bands[sensor]] = f"{{id}}/{prefix}{ending}"
    everything = {band for group in by_size.values() for band in group}
    drafts = []
    for shape, group in sorted(by_size.items(), reverse=True):
        examples = [p.replace("{id}", f) for p in group.values() for f in list(files.by_folder)[:3]]
        evidence = FileEvidence.of(files.folder, examples)
        calibration = band_calibration_entries(evidence, sensor, everything, words)
        drafts.append(
            ModalityDraft(
                name=f"optical_{shape[0]}px" if len(by_size) > 1 else "optical",
                entries=(Entry("bands", group), Entry("sensor", sensor), *calibration),
                evidence=f"{sensor}: a file per band, {', '.join(group)}",
            )
        )
    lacking = sum(len(set().union(*endings)) - len(e) for e in endings)
    return _dataset(
        files,
        _modalities(drafts),
        _SPLITS,
        evidence=(f"{len(files.by_folder)} chips, a folder each", *_lines(drafts, [])),
        doubts=(f"{lacking} files that other chips have are missing",) if lacking else (),
    )


def _dataset(
    files: FolderFiles, *entries: Entry, evidence: tuple[str, ...], doubts: tuple[str, ...] = ()
) -> Draft:
    """The dataset file of a folder, whose name is the data set's."""
    return Draft(
        kind="dataset",
        folder=files.folder,
        entries=(Entry("name", _name(files.folder)), *entries),
        evidence=evidence,
        doubts=doubts,
    )


def _class_folders(files: FolderFiles) -> Draft | None:
    """A folder per class, perhaps below a folder per split."""
    folders = list(files.by_folder)
    splits = split_folders(folders)
    depth = {len(PurePosixPath(f).parts) for f in folders}
    if depth != ({2} if splits else {1}):
        return None
    classes = sorted({PurePosixPath(f).name for f in folders})
    evidence = FileEvidence.of(files.folder, _of_one_kind(files.rasters))
    if not evidence.alike:
        return None
    drafts, notes = modality_drafts(evidence, files.folder.name, class_folders=frozenset(classes))
    pattern = id_pattern(".", evidence.names)
    table = _table(files, pattern)
    shown = ", ".join(classes[:6]) + (", …" if len(classes) > 6 else "")
    recognised = f"{len(evidence.names)} images in {len(classes)} class folders ({shown})"
    if splits:
        drawn = Entry("splits", "folder", "the first folder of each path names the split")
    elif table is not None and "split" in table.columns:
        drawn = Entry("splits", table.path.name, "the split column of this table")
    else:
        assert isinstance(_SPLITS.value, dict)
        drawn = Entry("splits", {**_SPLITS.value, "stratify": True}, _SPLITS.comment)
    return _dataset(
        files,
        Entry("chips", pattern),
        *_size(evidence),
        _modalities(drafts),
        Entry("labels", {"folder": True}, "the class of a chip is the name of its folder"),
        drawn,
        evidence=(recognised, *_lines(drafts, notes), *_others(files, evidence.names)),
    )


def _layered(files: FolderFiles, layers: Sequence[_Layer]) -> Draft:
    """Folders whose files share names: images, masks, a folder per sensor."""
    if split_folders([layer.folder for layer in layers]):
        raise DataError(
            f"{files.folder}: the splits lie above the folders of images and masks "
            f"({layers[0].folder}); put the images of all splits below one folder (images/train, "
            "labels/train), which a pattern `images/{id}` can name"
        )
    masks = [layer for layer in layers if _MASK_WORDS.search(f"{layer.folder} {layer.ending}")]
    evidence = []
    if not masks and len(layers) == 2:
        masks = [layer for layer in layers if _looks_like_mask(layer)]
        if len(masks) == 1:
            evidence.append(f"{masks[0].folder}: one band of few whole values, so the mask")
    masks = masks if len(masks) < len(layers) else []
    images = [layer for layer in layers if layer not in masks]
    drafts: list[ModalityDraft] = []
    notes: list[str] = []
    ids = set().union(*(layer.ids for layer in images))
    for layer in images:
        made, more = modality_drafts(layer.files, layer.hint)
        lacking = len(ids - layer.ids.keys())
        missing = f"{lacking} of {len(ids)} chips have no such file" if lacking else ""
        drafts += _of_layer(layer, made, [d.name for d in drafts], missing)
        notes += more
    shown = ", ".join(f"{layer.pattern} ({len(layer.ids)})" for layer in layers)
    labels = [_mask_labels(masks[0], ids)] if masks else []
    doubts = [f"which of {', '.join(m.folder for m in masks)} is the label"] if masks[1:] else []
    return _dataset(
        files,
        _modalities(drafts),
        *labels,
        _splits_of(files, images[0].pattern),
        evidence=(
            f"{len(ids)} chips with files of one name in several folders: {shown}",
            *evidence,
            *_lines(drafts, notes),
        ),
        doubts=tuple(doubts),
    )


def _flat(files: FolderFiles) -> Draft | None:
    """Chips of one size in one folder; None where the files differ or are large."""
    names = _of_one_kind(files.rasters)
    folder = next(iter(files.by_folder))
    if len(names) < 4:
        return None
    evidence = FileEvidence.of(files.folder, names)
    if not evidence.alike or len(evidence.shapes) > 1 or max(evidence.first.shape) > 1024:
        return None
    pattern = id_pattern(folder, names)
    table = _table(files, pattern)
    drafts, notes = modality_drafts(evidence, f"{files.folder.name} {names[0]}")
    labels = _column_label(table) if table is not None else []
    return _dataset(
        files,
        Entry("chips", pattern),
        *_size(evidence),
        _modalities(drafts),
        *labels,
        _splits_of(files, pattern),
        evidence=(
            f"{len(names)} chips of {evidence.shapes[0][0]} × {evidence.shapes[0][1]} px",
            *_lines(drafts, notes),
            *_others(files, names),
        ),
    )


def _two_endings(files: FolderFiles) -> bool:
    """Whether one folder holds pairs such as ``a_image.tif`` and ``a_mask.png``."""
    masks = {n for n in files.rasters if _MASK_WORDS.search(stem(n))}
    return 0 < len(masks) < len(files.rasters)


def _paired(files: FolderFiles) -> Draft | None:
    """One folder of pairs such as ``a_image.tif`` and ``a_mask.png``."""
    masks = [n for n in files.rasters if _MASK_WORDS.search(stem(n))]
    images = [n for n in files.rasters if n not in masks]
    layers = [_layer(files.folder, next(iter(files.by_folder)), names) for names in (images, masks)]
    if any(len(layer.ids) < 2 for layer in layers) or not _are_parallel(layers):
        return None
    return _layered(files, layers)


def _layers(files: FolderFiles) -> list[_Layer]:
    """The folders just below, whose files are named alike whatever folders lie deeper."""
    tops: dict[str, list[str]] = {}
    for name in files.rasters:
        parts = PurePosixPath(name).parts
        splits = split_folders([parts[0]]) if len(parts) > 2 else {}
        top = "/".join(parts[:2]) if splits else parts[0]
        tops.setdefault(top if len(parts) > 1 else ".", []).append(name)
    return [
        _layer(files.folder, top, names)
        for top, names in tops.items()
        if top != "." or len(tops) == 1
    ]


def _layer(folder: Path, top: str, names: Sequence[str]) -> _Layer:
    kept = _of_one_kind(names)
    ending = common_ending([stem(n) for n in kept])
    above = "" if top == "." else f"{top}/"
    ids = {
        str(PurePosixPath(n.removeprefix(above)).with_suffix("")).removesuffix(ending): n
        for n in kept
    }
    return _Layer(folder=top, ending=ending, ids=ids, files=FileEvidence.of(folder, kept))


def _are_parallel(layers: Sequence[_Layer]) -> bool:
    """Whether the folders hold files of the same chips: ids are shared, and the folders are named
    after images, masks or sensors, or their files differ in kind."""
    if len(layers) < 2:
        return False
    largest = max(layers, key=lambda layer: len(layer.ids))
    shared = [
        len(layer.ids.keys() & largest.ids.keys()) / len(layer.ids)
        for layer in layers
        if layer is not largest
    ]
    if min(shared) < 0.5:
        return False
    kinds = {(layer.files.first.count, layer.files.first.dtype) for layer in layers}
    roles = [
        bool(_MASK_WORDS.search(name) or _IMAGE_WORDS.search(name))
        for name in (f"{layer.folder} {layer.ending}" for layer in layers)
    ]
    return len(kinds) > 1 or all(roles)


def _looks_like_mask(layer: _Layer) -> bool:
    first = layer.files.first
    if first.count != 1 or first.dtype.kind == "f":
        return False
    values = layer.files.values([0], files=16)
    return 0 < len(values.distinct) <= _MOST_CLASSES


def _mask_labels(layer: _Layer, ids: Collection[str]) -> Entry:
    """The ``labels:`` of a folder of masks."""
    values = layer.files.values([0], files=_MASKS_READ)
    missing = len(set(ids) - set(layer.ids))
    optional = [Entry("optional", True, f"{missing} chips have no mask")] if missing else []
    path = Entry("mask", layer.pattern)
    if layer.files.first.count != 1:
        return Entry("labels", (path, Entry("classes", BLANK, "a label mask has one band; "
                     f"{layer.pattern} has {layer.files.first.count}: convert colours to ids"))
                     )  # fmt: skip
    if layer.files.first.dtype.kind == "f" and not values.distinct:
        numeric = Entry("numeric", True, f"values, as they are floating-point: {values}")
        return Entry("labels", (path, numeric, *optional))
    return Entry("labels", (path, *_class_entries(values), *optional))


def _class_entries(values: BandValues) -> list[Entry]:
    """Classes and ignored ids of a mask, with neutral names."""
    ignored = [v for v in values.distinct if v < 0 or (v == 255 and len(values.distinct) < 200)]
    ids = [v for v in values.distinct if v not in ignored]
    if not 0 < len(ids) <= _MOST_CLASSES:
        what = f"a mask of classes, or values (`numeric: true` instead)? {values}"
        return [Entry("classes", BLANK, what)]
    names = {v: f"class_{v}" for v in ids}
    entries = [
        Entry("classes", list(names.values()), "the masks do not name their classes: rename them "
              "here and under `ids`"),
        Entry("ids", names, f"the ids in {values.files} masks; an id that appears elsewhere is an "
              "error when it is read"),
    ]  # fmt: skip
    if ignored:
        entries.append(Entry("ignore", ignored, "by convention, these ids mean no label"))
    return entries


def _column_label(table: ChipTable) -> list[Entry]:
    """The ``labels:`` of a table's column, where one is named so."""
    column = next((c for c in table.columns if c.lower() in _LABEL_COLUMNS), "")
    if not column:
        return []
    texts = [t for t in table.column(column).values() if t]
    numbers = [number_of(t) for t in texts]
    numeric = all(n is not None for n in numbers) and any(
        n is not None and not n.is_integer() for n in numbers
    )
    value: dict[str, object] = {"column": column}
    value |= {"numeric": True} if numeric else {}
    what = "values" if numeric else f"{len(set(texts))} classes"
    return [Entry("labels", value, f"column {column!r} of {table.path.name}: {what}")]


def _splits_of(files: FolderFiles, pattern: str) -> Entry:
    table = _table(files, pattern)
    if table is not None and "split" in table.columns:
        return Entry("splits", table.path.name, "the split column of this table")
    if table is not None:
        return Entry("table", table.path.name, "attributes of the chips; it has no column split")
    keys = Pattern(pattern).discover(files.folder)
    if split_folders(list(keys)):
        return Entry("splits", "folder", "the first folder of each id names the split")
    return _SPLITS


def _table(files: FolderFiles, pattern: str) -> ChipTable | None:
    """The first table that lists chips of the pattern by id or file."""
    matches = Pattern(pattern)
    ids = matches.discover(files.folder).keys()
    for name in sorted(files.tables, key=lambda n: ("split" not in n, n)):
        if "/" in name:
            continue
        try:
            return read_table(files.folder / name, matches, ids)
        except MultiMAEError:
            continue  # another table
    return None


def _of_one_kind(names: Sequence[str]) -> list[str]:
    """The files of the most frequent extension."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        kinds.setdefault(same_suffixes(PurePosixPath(name).suffix), []).append(name)
    return max(kinds.values(), key=len)


def _others(files: FolderFiles, taken: Sequence[str]) -> list[str]:
    left = sorted(set(files.rasters) - set(taken))
    return [f"left out: {counted(left)}, first {left[0]}"] if left else []


def _size(evidence: FileEvidence) -> list[Entry]:
    shapes = evidence.shapes
    return [Entry("size", shapes[0][0])] if len(shapes) == 1 and len(set(shapes[0])) == 1 else []


def _modalities(drafts: Sequence[ModalityDraft]) -> Entry:
    return Entry("modalities", tuple(d.entry(drafts) for d in drafts))


def _lines(drafts: Sequence[ModalityDraft], notes: Sequence[str]) -> list[str]:
    return [*(f"{d.name}: {d.evidence}" for d in drafts), *notes]


def _of_layer(
    layer: _Layer, made: Sequence[ModalityDraft], taken: Collection[str], missing: str
) -> list[ModalityDraft]:
    """The layer's modalities under names that are free, with their path."""
    folder = re.sub(r"[^0-9A-Za-z]+", "_", PurePosixPath(layer.folder).name).strip("_").lower()
    path = Entry("path", layer.pattern)
    optional = (Entry("optional", True, missing),) if missing else ()
    names = {
        d.name: next(
            n for n in (d.name, f"{folder}_{d.name}", f"{folder}_{d.name}_{len(taken)}")
            if n not in taken
        )
        for d in made
    }  # fmt: skip
    return [
        replace(d, name=names[d.name], like=names.get(d.like, ""))
        if d.like
        else replace(d, name=names[d.name], entries=(path, *d.entries, *optional))
        for d in made
    ]


def _name(folder: Path) -> str:
    return folder.resolve().name or "data"
