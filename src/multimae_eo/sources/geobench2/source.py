"""GEO-Bench-2 data sets as sources of chips. See docs/geobench.md."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from multimae_eo import catalog
from multimae_eo.errors import ClassMapError, ConfigError, FormatError, SplitError, did_you_mean
from multimae_eo.geo import Geometry
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sample import Pixels, Sample
from multimae_eo.sources.base import Source, split_name
from multimae_eo.sources.geobench.band_pixels import chip_pixels, class_map
from multimae_eo.sources.geobench2.records import GeoBench2Data, find_dataset2
from multimae_eo.sources.geobench2.tortilla import (
    NESTED,
    REMEDY,
    StoredFile,
    read_image,
    require_images,
    stored_files,
)

SUFFIX = ".tortilla"
_FILE = re.compile(r"geobench_(?P<name>\w+?)(?:\.\d+\.part)?\.tortilla")
_SECONDS_OF_A_DAY = 86400


def open_geobench2(spec: str) -> GeoBench2Source:
    """Open ``ROOT/NAME[?modalities=A+B]``, or a tortilla file. Raises as ``GeoBench2Source``."""
    path, _, query = spec.partition("?")
    modalities = None
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key != "modalities":
            near = did_you_mean(key, ("modalities",))
            raise ConfigError(f"geobench2:{spec}: no option {key!r}; {near}")
        modalities = value.split()
    return GeoBench2Source(Path(path), modalities=modalities)


class GeoBench2Source(Source):
    """The chips of a GEO-Bench-2 data set.

    ``path``: its folder, as the benchmark's script downloads it, or its tortilla file.
    ``modalities``: names of the catalogue's, or modalities, that the data set's bands can fill; by
    default those of ``docs/geobench.md``. ``label``: a class index (``data.label`` "class"), a
    multi-hot float32 vector ("classes"), or an (H, W) int64 map ("map"), -1 where there is no
    class.

    A modality that is nowhere valid in a chip is absent from its sample.

    Raises ConfigError where there is no such data set, or it cannot be read; BandError for bands
    that the data set has not; FormatError for a damaged file.
    """

    def __init__(self, path: Path, *, modalities: Iterable[str | Modality] | None = None) -> None:
        self.files, name = tortilla_files(Path(path))
        self.data: GeoBench2Data = find_dataset2(name)
        self.name = self.data.name
        requested = self.data.modalities if modalities is None else tuple(modalities)
        filled = [self.data.fill(_modality(self.data, m)) for m in requested]
        self.modalities = ModalitySet(m for m, _ in filled)
        self._layers = {m.name: layer for m, layer in filled}
        self.class_names = self.data.classes
        chips = [(path, file) for path in self.files for file in stored_files(path, metadata=False)]
        self._chips = [(path, file.offset) for path, file in chips]
        self.keys = [file.name for _, file in chips]
        self.split_of = [split_name(file.split) for _, file in chips]
        self._check(chips)

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """Read one chip: only the images that the modalities ``names`` need.

        Raises FormatError for a damaged file, ClassMapError for a class that the data set has not.
        """
        path, offset = self._chips[index]
        images = stored_files(path, offset)
        require_images(path, images, 1)
        chosen = self.modalities if names is None else self.modalities.select(names)
        arrays = self._arrays(path, images, chosen)
        chip = chip_pixels(path, arrays, chosen, self._layers)
        record = images[0].metadata
        return Sample(
            key=self.keys[index],
            pixels=chip.pixels,
            valid=chip.valid,
            calibration=chip.calibration,
            geometry=_geometry(record) if self.data.located else None,
            time=_date(record) if self.data.dated else None,
            label=self._label(path, images),
        )

    def _check(self, chips: Sequence[tuple[Path, StoredFile]]) -> None:
        if not chips:
            raise SplitError(f"{self.files[0]}: lists no chip")
        for path, file in chips:
            if file.file_format != NESTED:
                raise FormatError(
                    f"{path}: {file.name} is a single file, not a chip of images; {REMEDY}"
                )
        key, times = Counter(self.keys).most_common(1)[0]
        if times > 1:
            raise FormatError(f"{self.files[0]}: {times} chips are called {key!r}; {REMEDY}")

    def _arrays(
        self, path: Path, images: Sequence[StoredFile], chosen: ModalitySet
    ) -> dict[str, Pixels]:
        needed = {
            self._layers[n].stored_channels[b][0]
            for n, modality in chosen.items()
            for b in modality.band_names
        }
        positions = {n: self.data.images[n] for n in sorted(needed)}
        require_images(path, images, max(positions.values(), default=0) + 1)
        return {n: read_image(path, images[i]) for n, i in positions.items()}

    def _label(self, path: Path, images: Sequence[StoredFile]) -> object:
        data = self.data
        if data.label_image is not None:
            require_images(path, images, data.label_image + 1)
            stored = read_image(path, images[data.label_image])
            return class_map(
                path, stored[0], len(data.classes), values=data.label_values, ignored=data.ignored
            )
        value = images[0].metadata.get(data.label_column)
        if data.label == "class":
            return _class_index(path, value, data)
        if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
            raise FormatError(
                f"{path}: {data.label_column}: expected a list of classes, got {value!r:.60}"
            )
        label = np.zeros(len(data.classes), np.float32)
        label[[_class_index(path, name, data) for name in value]] = 1
        return label


def tortilla_files(path: Path) -> tuple[tuple[Path, ...], str]:
    """The files of a data set, in order, and its name.

    ``path``: a folder, or a file ``geobench_NAME.tortilla`` or one of its parts (the others are
    beside it). Raises ConfigError where there are none.
    """
    if path.suffix == SUFFIX:
        match = _FILE.fullmatch(path.name)
        name = match["name"] if match else path.stem
        parts = _named(path.parent, name) if match else []
        if not path.is_file():
            raise ConfigError(f"{path}: no such file")
        return tuple(parts or [path]), name
    for folder in (path, path.parent):
        if files := _named(folder, path.name):
            return tuple(files), path.name
    inside = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else []
    names = {m["name"] for f in inside if (m := _FILE.fullmatch(f.name))}
    if len(names) == 1:
        return tuple(inside), names.pop()
    if len(inside) == 1:
        return tuple(inside), path.name
    find_dataset2(path.name)  # a misspelt or unsupported one is reported as such
    raise ConfigError(f"{path}: holds no geobench_{path.name}{SUFFIX}; give ROOT/NAME")


def _named(folder: Path, name: str) -> list[Path]:
    files = ((_FILE.fullmatch(f.name), f) for f in sorted(folder.glob(f"*{SUFFIX}")))
    return [f for match, f in files if match and match["name"] == name]


def _modality(data: GeoBench2Data, modality: str | Modality) -> Modality:
    if isinstance(modality, Modality):
        return modality
    offered = {m.name: m for m in data.modalities}
    return offered[modality] if modality in offered else catalog.modality(modality)


def _class_index(path: Path, value: object, data: GeoBench2Data) -> int:
    """A class by its index or name."""
    if isinstance(value, str):
        names = [n.lower() for n in data.classes]
        if value.lower() in names:
            return names.index(value.lower())
    elif isinstance(value, int | np.integer) and 0 <= value < len(data.classes):
        return int(value)
    raise ClassMapError(
        f"{path}: {data.label_column}: expected one of {len(data.classes)} classes "
        f"({', '.join(data.classes[:3])} …), got {value!r:.60}"
    )


def _geometry(record: Mapping[str, Any]) -> Geometry | None:
    """The footprint of a north-up image; None where it is not stored."""
    crs, transform = record.get("stac:crs"), record.get("stac:geotransform")
    shape = record.get("stac:raster_shape")
    if not isinstance(crs, str) or transform is None or shape is None:
        return None
    left, width, skew, top, other_skew, height = (float(v) for v in transform)
    right, bottom = left + width * float(shape[1]), top + height * float(shape[0])
    if skew or other_skew or not (left < right and bottom < top):
        return None
    return Geometry(crs=crs, bounds=(left, bottom, right, top))


def _date(record: Mapping[str, Any]) -> str | None:
    """The stored time of the image, in seconds since 1970, as a date."""
    seconds = record.get("stac:time_start")
    if not isinstance(seconds, int | float | np.number) or not np.isfinite(seconds):
        return None
    days = int(float(seconds) // _SECONDS_OF_A_DAY)
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=days)).isoformat()
