"""A data set of raster files described by one YAML file. See docs/datasets.md."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from multimae_eo.errors import (
    ClassMapError,
    ConfigError,
    DataError,
    FormatError,
    SplitError,
    did_you_mean,
)
from multimae_eo.geo import Geometry
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sample import Calibration, Dates, Pixels, Sample, Validity, stack_dates
from multimae_eo.sources.band_match import locate_bands
from multimae_eo.sources.base import Source, split_name
from multimae_eo.sources.dataset.band_files import stacked, stacked_header
from multimae_eo.sources.dataset.chip_features import ChipFeatures
from multimae_eo.sources.dataset.chip_files import (
    UNLISTED,
    ChipFiles,
    Pattern,
    read_table,
    require_files,
)
from multimae_eo.sources.dataset.labels import ChipLabels
from multimae_eo.sources.dataset.left_out import left_out, outward_links
from multimae_eo.sources.dataset.schema import (
    DatasetSpec,
    ModalitySpec,
    PerChip,
    Size,
    read_dataset_file,
)
from multimae_eo.sources.dataset.split_draw import draw_splits
from multimae_eo.sources.dataset.squares import squared
from multimae_eo.sources.raster.calibration import (
    Declared,
    Linear,
    band_calibration,
    common,
    physical,
    require_alike,
)
from multimae_eo.sources.raster.header import RasterHeader, require_upright, same_crs
from multimae_eo.sources.raster.reading import Layout, Raster, read_header, read_raster
from multimae_eo.sources.vector.vector_labels import VectorLabels
from multimae_eo.sources.yaml_section import as_number


@dataclass(frozen=True, kw_only=True)
class _ModalityPlan:
    """How one modality is read. ``having``: the chips that have its file. ``first``: the header
    read on opening, whose dtype all chips must have; ``at``: its bands. ``physical``: its
    bands' scales differ, so that pixels of all chips are made physical. ``by_band``: the files of
    each band, where each has its own.
    """

    modality: Modality
    spec: ModalitySpec
    pattern: Pattern
    having: ChipFiles
    first: RasterHeader
    at: tuple[int, ...]
    physical: bool
    calibration: Mapping[str, PerChip]
    by_band: tuple[ChipFiles, ...] = ()

    def declared(self, key: str, where: Path) -> Declared:
        """The calibration of a chip that the dataset file declares."""
        return Declared(
            scale=self.calibration["scale"].of(key),
            offset=self.calibration["offset"].of(key),
            where=str(where),
        )


@dataclass
class _Files:
    """The files of one chip, each read once; they must cover the same ground."""

    root: Path
    read: dict[tuple[str, Layout], Raster] = field(default_factory=dict)
    geometry: Geometry | None = None

    def open(self, path: str, layout: Layout = "chw") -> Raster:
        if (path, layout) not in self.read:
            raster = read_raster(self.root / path, layout=layout)
            self._agree(raster.header)
            self.read[path, layout] = raster
        return self.read[path, layout]

    def _agree(self, header: RasterHeader) -> None:
        for other in (r.header for r in self.read.values()):
            flipped, unflipped = (header, other) if header.flipped else (other, header)
            if flipped.flipped and unflipped.transform is None:
                raise DataError(
                    f"{flipped.path}: stored {'south-up' if flipped.south_up else 'east-west'}, "
                    f"and {unflipped.path} has no georeferencing that gives its orientation; warp "
                    "the first north-up, or georeference the second"
                )
        theirs = header.geometry
        if theirs is None or self.geometry is None:
            self.geometry = self.geometry or theirs
            return
        left, bottom, right, top = theirs.bounds
        pixel = max((right - left) / header.shape[1], (top - bottom) / header.shape[0])
        coarsest = max([pixel, *(_pixel_of(r.header) for r in self.read.values())])
        apart = max(abs(a - b) for a, b in zip(theirs.bounds, self.geometry.bounds, strict=True))
        if apart > coarsest or not same_crs(theirs.crs, self.geometry.crs):
            raise DataError(
                f"{header.path}: covers {theirs.bounds} in {theirs.crs[:40]}, the chip's other "
                f"files {self.geometry.bounds} in {self.geometry.crs[:40]}; reproject it to them"
            )


def _pixel_of(header: RasterHeader) -> float:
    return header.pixel_size[0] if header.geometry and header.pixel_size else 0.0


class DatasetFileSource(Source):
    """Chips described by a dataset file. Opening it lists files and reads one header a modality;
    everything else is checked when a chip is read.

    Chips that the split table does not name have the split ``unlisted``: they can be read, and are
    never trained on. A modality that is nowhere valid in a chip is absent from its sample.
    ``text``: the YAML, instead of the file's; ``path`` is then for messages.

    Raises ConfigError for what the dataset file gets wrong, DataError and its kinds for the files.
    """

    def __init__(self, path: Path, text: str | None = None) -> None:
        spec = read_dataset_file(Path(path), text)
        self.name = spec.name
        self._spec = spec
        files, keys = _discover(spec)
        self._table = read_table(spec.table, _main_pattern(spec), keys) if spec.table else None
        self.keys = sorted(keys - spec.exclude)
        self._plans = {
            s.modality.name: self._plan(
                s, files[_pattern_of(spec, s)], tuple(files[p] for p in s.band_paths)
            )
            for s in spec.modalities
        }
        self.modalities = ModalitySet(p.modality for p in self._plans.values())
        self._time = self._resolved(spec.time, "time", numeric=False)
        self._labels: ChipLabels | None = None
        self._features: ChipFeatures | None = None
        main = files[spec.chips or _pattern_of(spec, spec.modalities[0])]
        if spec.labels and spec.labels.vector:
            labels = VectorLabels(spec.labels.vector)
            self._features = ChipFeatures(labels, spec.root, self._finest_files())
            self.class_names, self.class_ids = labels.classes, labels.class_ids
        elif spec.labels:
            self._labels = ChipLabels.of(spec, main, self.keys, self._table)
            self.class_names, self.class_ids = self._labels.classes, self._labels.class_ids
        self.split_of = self._splits(_main_pattern(spec), keys, main)
        self.notes = tuple(left_out(spec, files, self.keys, self._labels))
        self.notes += self._features.labels.notes if self._features else ()
        self.outward_links = tuple(outward_links(spec, files, self._labels))

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """Read one chip; every file is read once.

        Raises FormatError, BandError or ClassMapError naming the file, and DataError for a chip in
        which no modality has a valid pixel.
        """
        key = self.keys[index]
        chosen = self.modalities.names if names is None else self.modalities.select(names).names
        files = _Files(self._spec.root)
        pixels: dict[str, Pixels] = {}
        valid: dict[str, Validity] = {}
        dates: dict[str, Dates] = {}
        calibration: dict[str, Calibration] = {}
        for name in chosen:
            plan = self._plans[name]
            if key not in plan.having or key in plan.spec.exclude:
                continue
            if plan.pattern.dated:
                values, ok, linear, dates[name] = self._series(plan, key, files)
            else:
                values, ok, linear = self._pixels(plan, key, self._open(plan, key, files))
            if ok is not None and not ok.any():
                dates.pop(name, None)
                continue
            pixels[name] = values
            if not plan.modality.categorical:
                calibration[name] = Calibration(
                    scale=linear.scale,
                    offset=linear.offset,
                    level=plan.calibration["level"].of(key) or "",
                )
            if ok is not None:
                valid[name] = ok
        if names is None and not pixels:
            raise DataError(
                f"{self._spec.file}: chip {key!r} has no valid pixel in any modality; "
                f"list it: `exclude: [{key}]`"
            )
        sample = Sample(
            key=key,
            pixels=pixels,
            valid=valid,
            calibration=calibration,
            geometry=files.geometry,
            time=self._time.of(key),
            label=self._label(key, files),
            dates=dates,
        )
        return squared(sample)

    def _series(
        self, plan: _ModalityPlan, key: str, files: _Files
    ) -> tuple[Pixels, Validity | None, Linear, Dates]:
        """A modality's pixels (T, C, H, W), as ``_pixels`` of each date, and the dates.

        Dates without a valid pixel are left out, unless there is no other.
        """
        name = plan.modality.name
        days: list[float] = []
        images: list[tuple[Pixels, Validity]] = []
        calibrations: list[Linear] = []
        for day, path in plan.having.series[key]:
            values, ok, linear = self._pixels(plan, key, files.open(path, plan.spec.layout))
            first = images[0][0].shape if images else values.shape
            if images and (values.shape, linear) != (first, calibrations[0]):
                raise FormatError(
                    f"{self._spec.root / path}: {name}: {_by(values.shape[-2:])} px, {linear}; "
                    f"the chip's first date has {_by(first[-2:])} px, {calibrations[0]}; "
                    "make the dates of a chip alike"
                )
            days.append(day)
            calibrations.append(linear)
            if ok is None:
                ok = np.ones((1, *values.shape[-2:]), dtype=bool)
            images.append((values, ok))
        pixels, valid, dates = stack_dates(images, days)
        return pixels, None if valid.all() else valid, calibrations[0], dates

    def _open(self, plan: _ModalityPlan, key: str, files: _Files) -> Raster:
        """The raster of one modality of a chip, of one file or of one per band."""
        if not plan.by_band:
            return files.open(plan.having[key], plan.spec.layout)
        rasters = [files.open(of_band[key]) for of_band in plan.by_band]
        return stacked(rasters, plan.spec.modality, plan.spec.rule.file_bands)

    def _header(self, spec: ModalitySpec, paths: Sequence[str]) -> RasterHeader:
        """The header of a modality's file, or of its files of a band each."""
        headers = [read_header(self._spec.root / path, layout=spec.layout) for path in paths]
        if not spec.band_paths:
            return headers[0]
        return stacked_header(headers, spec.modality, spec.rule.file_bands)

    def _label(self, key: str, files: _Files) -> object:
        """The label of a chip, None where it has none."""
        if self._features is not None:
            return self._features.read(key)
        return self._labels.read(key, files.open) if self._labels else None

    def _finest_files(self) -> dict[str, str]:
        """The file of each chip that has the most pixels: of the first modality among equals."""
        plans = sorted(self._plans.values(), key=lambda p: -p.first.shape[0] * p.first.shape[1])
        files: dict[str, str] = {}
        for plan in plans:
            for key in plan.having:
                files.setdefault(key, plan.having[key])
        return {key: files[key] for key in self.keys if key in files}

    def _plan(
        self, spec: ModalitySpec, having: ChipFiles, by_band: tuple[ChipFiles, ...]
    ) -> _ModalityPlan:
        name = spec.modality.name
        where = f"{self._spec.file}: modalities.{name}"
        _require_chips(where, spec.exclude, {*having, *self.keys})
        pattern = _pattern_of(self._spec, spec)
        keys = set(self.keys) - spec.exclude
        if not spec.optional:
            require_files(self._spec.root, pattern, keys, having, where)
        some = keys & set().union(*by_band) if spec.optional else keys
        for of_band, files in zip(spec.band_paths, by_band, strict=True):
            require_files(self._spec.root, of_band, some, files, where)
        first = min(keys & having.keys(), default=None)
        if first is None:
            raise DataError(
                f"{where}: no chip has a file {self._spec.root / pattern.text}; mend `path:`"
            )
        header = self._header(spec, [files[first] for files in by_band or (having,)])
        require_upright(header)
        at = locate_bands(header, spec.modality, spec.rule)
        calibration = {
            "level": self._resolved(spec.level, "level", numeric=False),
            "scale": self._resolved(spec.scale, "scale", numeric=True),
            "offset": self._resolved(spec.offset, "offset", numeric=True),
        }
        if spec.modality.levels:
            for level in {calibration["level"].of(key) or "" for key in keys & having.keys()}:
                try:
                    spec.modality.level_index(level)
                except ConfigError as error:
                    raise ConfigError(f"{self._spec.file}: {error}") from error
        plan = _ModalityPlan(
            modality=spec.modality,
            spec=spec,
            pattern=pattern,
            having=having,
            first=header,
            at=at,
            physical=False,
            calibration=calibration,
            by_band=by_band,
        )
        if spec.modality.categorical:
            return plan
        linear = common(band_calibration(header, at, plan.declared(first, self._spec.file), name))
        if linear is None:
            modality = replace(spec.modality, scale=1.0, offset=0.0)
            return replace(plan, modality=modality, physical=True)
        scale = linear.scale if spec.scale == PerChip() else spec.modality.scale
        offset = linear.offset if spec.offset == PerChip() else spec.modality.offset
        return replace(plan, modality=replace(spec.modality, scale=scale, offset=offset))

    def _resolved(self, value: PerChip, what: str, *, numeric: bool) -> PerChip:
        """The value with its column read and checked."""
        where = self._spec.file
        _require_chips(f"{where}: {what}", value.chips, self.keys, self._spec.exclude)
        if not value.column:
            return value
        if self._table is None:
            raise ConfigError(f"{where}: {what}: a column needs `table:` or a split table")
        cells = {k: v for k, v in self._table.column(value.column).items() if v}
        if not numeric:
            return replace(value, chips=cells)
        numbers = {k: as_number(v) for k, v in cells.items()}
        for key, number in numbers.items():
            if number is None or not np.isfinite(number) or (what == "scale" and number == 0):
                raise ConfigError(
                    f"{self._table.path}: {value.column}: chip {key!r}: {cells[key]!r} is no {what}"
                )
        return replace(value, chips=numbers)

    def _splits(self, pattern: Pattern | None, keys: frozenset[str], files: ChipFiles) -> list[str]:
        spec, labels = self._spec, self._labels
        if spec.split_folders:
            drawn = [_split_folder(files.get(key, key)) for key in self.keys]
            if set(drawn) == {UNLISTED}:
                raise SplitError(
                    f"{spec.file}: splits: no folder of {self.keys[0]!r} is named train, val or "
                    "test; write a split table, or fractions"
                )
        elif spec.draw is not None:
            drawn = draw_splits(
                self.keys,
                spec.draw,
                where=f"{spec.file}: splits",
                classes=labels.class_of_chips() if labels and spec.draw.stratify else None,
                groups=self._groups(spec.draw.group) or self._polygon_groups(),
            )
        elif spec.split_table is None:
            drawn = [""] * len(self.keys)
        else:
            table = self._table
            if table is None or table.path != spec.split_table:
                table = read_table(spec.split_table, pattern, keys)
            listed = table.splits()
            drawn = [listed.get(key, UNLISTED) for key in self.keys]
        dropped = labels.dropped if labels else frozenset()
        return [
            UNLISTED if k in dropped else split for k, split in zip(self.keys, drawn, strict=True)
        ]

    def _polygon_groups(self) -> Mapping[str, str] | None:
        """Chips that share a polygon stay together, so that none is in two splits."""
        return None if self._features is None else self._features.groups(self.keys)

    def _groups(self, column: str) -> Mapping[str, str] | None:
        """The group of each chip: a column of the table, or its folder."""
        if not column:
            return None
        if self._table is not None and column in self._table.columns:
            return {key: text or key for key, text in self._table.column(column).items()}
        if column == "folder":
            return {key: str(PurePosixPath(key).parent) for key in self.keys}
        where = f"{self._spec.file}: splits: group"
        if self._table is None:
            raise ConfigError(f"{where}: {column!r} is a column of `table:`, or write folder")
        self._table.column(column)
        raise ConfigError(f"{where}: no column {column!r}")

    def _pixels(
        self, plan: _ModalityPlan, key: str, raster: Raster
    ) -> tuple[Pixels, Validity | None, Linear]:
        """A modality's pixels (C, H, W), where they are valid, and their calibration."""
        header, spec = raster.header, plan.spec
        at = list(locate_bands(header, plan.modality, spec.rule))
        size: Size | None = spec.size or self._spec.size
        if size is not None and header.shape != size:
            raise FormatError(
                f"{header.path}: {plan.modality.name}: expected {_by(size)} px (`size:`), "
                f"got {_by(header.shape)}"
            )
        if header.dtype != plan.first.dtype:
            raise FormatError(
                f"{header.path}: {plan.modality.name}: dtype {header.dtype}, but "
                f"{plan.first.dtype} in {plan.first.path}; convert the odd one (its units may "
                "differ), or list it under `exclude:`"
            )
        ok = raster.observed(
            at,
            nodata=spec.nodata,
            class_map_nodata=plan.modality.nodata,
            names=spec.rule.file_bands,
        )
        pixels = np.ascontiguousarray(raster.pixels[at])
        linear = Linear()
        if plan.modality.categorical:
            _require_class_ids(plan.modality, pixels, ok, Path(header.path))
        else:
            pixels, linear = self._calibrated(plan, key, header, at, pixels)
        if ok is not None:
            pixels[~np.broadcast_to(ok, pixels.shape)] = 0  # no sentinel travels further
        return pixels, ok, linear

    def _calibrated(
        self, plan: _ModalityPlan, key: str, header: RasterHeader, at: Sequence[int], pixels: Pixels
    ) -> tuple[Pixels, Linear]:
        """The pixels and their calibration, physical where the bands of the first chip differ."""
        name, declared = plan.modality.name, plan.declared(key, self._spec.file)
        require_alike(header, at, plan.first, plan.at, declared, name)
        bands = band_calibration(header, at, declared, name)
        if plan.physical:
            return physical(pixels, bands), Linear()
        linear = common(bands)
        if linear is None:
            raise FormatError(
                f"{header.path}: {name}: its bands have different scales or offsets, those of "
                f"{plan.first.path} one; tag both alike, or list it under `exclude:`"
            )
        return pixels, linear


def _split_folder(path: str) -> str:
    """The split that the first such folder of a chip's path is named after."""
    names = (split_name(part) for part in PurePosixPath(path).parts[:-1])
    return next((n for n in names if n in ("train", "val", "test")), UNLISTED)


def _pattern_of(spec: DatasetSpec, modality: ModalitySpec) -> Pattern:
    pattern = modality.path or spec.chips
    if pattern is None:
        raise ConfigError(f"{spec.file}: modality {modality.modality.name!r} has no `path:`")
    return pattern


def _main_pattern(spec: DatasetSpec) -> Pattern | None:
    """The files that a table's ``file`` column names."""
    return spec.chips or spec.modalities[0].path


def _discover(spec: DatasetSpec) -> tuple[dict[Pattern, ChipFiles], frozenset[str]]:
    """Ids per pattern, and the ids of the data set: those of ``chips``, else of all paths."""
    patterns = {_pattern_of(spec, m) for m in spec.modalities}
    patterns.update(p for m in spec.modalities for p in m.band_paths)
    if spec.chips:
        patterns.add(spec.chips)
    files = {p: p.discover(spec.root) for p in patterns}
    keys = frozenset(files[spec.chips] if spec.chips else frozenset().union(*files.values()))
    if not keys:
        tried = ", ".join(sorted(p.text for p in patterns))
        raise DataError(f"{spec.file}: no file under {spec.root} matches {tried}")
    _require_chips(str(spec.file), spec.exclude, keys)
    if keys == spec.exclude:
        raise DataError(f"{spec.file}: `exclude:` leaves no chip")
    return files, keys


def _require_chips(
    where: str, named: Iterable[str], keys: Collection[str], also: Collection[str] = ()
) -> None:
    for key in sorted(named):
        if key not in keys and key not in also:
            near = did_you_mean(key, sorted(keys)[:2000]).split("; valid")[0][:120]
            raise ConfigError(f"{where}: no chip {key!r}; {near}")


def _require_class_ids(modality: Modality, pixels: Pixels, ok: Validity | None, path: Path) -> None:
    ids = np.unique(pixels if ok is None else pixels[ok])
    strange = [i for i in ids.tolist() if i not in modality.class_ids]
    if strange:
        raise ClassMapError(
            f"{path}: {modality.name}: class id {strange[0]} is not in the class map "
            f"({', '.join(map(str, modality.class_ids))}); add it there, or to `nodata:`"
        )


def _by(shape: Size) -> str:
    return f"{shape[0]}×{shape[1]}"
