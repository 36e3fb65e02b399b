"""GEO-Bench (version 1) data sets as sources of chips. See docs/geobench.md.

A data set is a folder of one HDF5 file per chip. Its metadata, class labels included, is a pickle
inside each file, and is read without running it (``sources/safe_pickle.py``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from urllib.parse import parse_qsl

import h5py
import numpy as np
import numpy.typing as npt

from multimae_eo import catalog
from multimae_eo.errors import ClassMapError, ConfigError, FormatError, SplitError, did_you_mean
from multimae_eo.files import read_json
from multimae_eo.geo import Geometry
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sample import Dates, Pixels, Sample, stack_dates
from multimae_eo.sources.acquisition_dates import days_since_1970
from multimae_eo.sources.base import Source
from multimae_eo.sources.geobench.band_pixels import chip_pixels, class_map
from multimae_eo.sources.geobench.bands import DATASETS, GeoBenchData, find_dataset
from multimae_eo.sources.geobench.safe_pickle import OpaqueObject, StoredArray, load_pickle_text
from multimae_eo.sources.hdf5 import opened_hdf5

PARTITION = "_partition.json"
SUFFIX = ".hdf5"
_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_DATED = re.compile(r"(?P<name>.+)_(?P<date>\d{4}-\d{2}-\d{2})")


def open_geobench(spec: str) -> GeoBenchSource:
    """Open ``ROOT/NAME[?partition=NAME][&modalities=A+B][&dates=all]``.

    ROOT is the benchmark's folder, or the one that holds it. Raises ConfigError for an unknown
    option, and what ``GeoBenchSource`` raises.
    """
    path, _, query = spec.partition("?")
    partition, modalities, all_dates = "default", None, False
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key == "partition":
            partition = value
        elif key == "modalities":
            modalities = value.split()
        elif key == "dates":
            if value not in ("last", "all"):
                raise ConfigError(f"geobench:{spec}: dates: last or all, got {value!r}")
            all_dates = value == "all"
        else:
            valid = ("partition", "modalities", "dates")
            raise ConfigError(f"geobench:{spec}: no option {key!r}; {did_you_mean(key, valid)}")
    return GeoBenchSource(
        Path(path), partition=partition, modalities=modalities, all_dates=all_dates
    )


@dataclass(frozen=True)
class _DatedScene:
    """The HDF5 datasets of one date in a file, by their names without it."""

    date: str
    stored: Mapping[str, str]


class GeoBenchSource(Source):
    """The chips of a GEO-Bench data set that a partition lists.

    ``modalities``: names of the catalogue's, or modalities, that the data set's bands can fill; by
    default those of ``docs/geobench.md``. ``partition``: the label fraction, for example
    ``0.10x_train``. ``label``: a class index (``data.label`` "class"), a multi-hot float32 vector
    ("classes"), or an (H, W) int64 map ("map").

    A modality that is nowhere valid in a chip is absent from its sample. Where a file holds several
    dates, ``read`` gives the last that has all bands asked for, with ``all_dates`` a series of
    them, and ``series`` a sample of each.

    Raises ConfigError where there is no such folder, data set or partition, BandError for bands
    that the data set has not, FormatError for a damaged or missing file, SplitError where the
    splits of the partition contradict each other.
    """

    def __init__(
        self,
        folder: Path,
        *,
        partition: str = "default",
        modalities: Iterable[str | Modality] | None = None,
        all_dates: bool = False,
    ) -> None:
        self.all_dates = all_dates
        self.folder = _locate(Path(folder))
        self.data: GeoBenchData = find_dataset(self.folder.name)
        self.partition = partition
        self.name = self.data.name
        requested = self.data.modalities if modalities is None else tuple(modalities)
        filled = [self.data.fill(_modality(self.data, m)) for m in requested]
        self.modalities = ModalitySet(m for m, _ in filled)
        self._layers = {m.name: layer for m, layer in filled}
        self.keys, self.split_of = _partition(self.folder, partition)
        self.class_names = self.data.classes

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """Read one chip: only the HDF5 datasets that the modalities ``names`` need.

        Raises FormatError for a damaged file or a missing band, ClassMapError for a class that the
        data set has not.
        """
        with self._opened(index, names) as (file, metadata, scenes):
            last = self._sample(index, file, metadata, scenes[-1], names)
            if not self.all_dates or not last.time:
                return last
            earlier = [self._sample(index, file, metadata, s, names) for s in scenes[:-1]]
            dated = {
                name
                for name in self._chosen(names)
                if any(scenes[-1].stored[b] != b for b in self._needed([name]))
            }
            return _with_dates([*earlier, last], dated)

    def series(self, index: int, names: Sequence[str] | None = None) -> tuple[Sample, ...]:
        """One sample per date that has all bands asked for, in order of time."""
        with self._opened(index, names) as (file, metadata, scenes):
            return tuple(self._sample(index, file, metadata, s, names) for s in scenes)

    @contextmanager
    def _opened(
        self, index: int, names: Sequence[str] | None
    ) -> Iterator[tuple[h5py.File, Mapping[str, object], list[_DatedScene]]]:
        path = self._path(index)
        with opened_hdf5(path) as file:
            metadata = load_pickle_text(_attribute(path, file), str(path))
            if not isinstance(metadata, Mapping):
                raise FormatError(f"{path}: the pickle holds no dictionary")
            scenes = _scenes(path, file, self._needed(names))
            yield file, metadata, scenes

    def _path(self, index: int) -> Path:
        return self.folder / f"{self.keys[index]}{SUFFIX}"

    def _chosen(self, names: Sequence[str] | None) -> ModalitySet:
        return self.modalities if names is None else self.modalities.select(names)

    def _needed(self, names: Sequence[str] | None) -> set[str]:
        return {
            self._layers[n].stored_channels[b][0]
            for n, modality in self._chosen(names).items()
            for b in modality.band_names
        }

    def _sample(
        self,
        index: int,
        file: h5py.File,
        metadata: Mapping[str, object],
        scene: _DatedScene,
        names: Sequence[str] | None,
    ) -> Sample:
        chosen = self._chosen(names)
        path = self._path(index)
        arrays = {n: _channels(path, file[scene.stored[n]]) for n in sorted(self._needed(names))}
        chip = chip_pixels(path, arrays, chosen, self._layers)
        attributes = metadata.get(next((scene.stored[n] for n in arrays), ""), {})
        attributes = attributes if isinstance(attributes, Mapping) else {}
        shape = next((a.shape[1:] for a in arrays.values()), None)
        return Sample(
            key=self.keys[index],
            pixels=chip.pixels,
            valid=chip.valid,
            calibration=chip.calibration,
            geometry=_geometry(attributes, shape) if self.data.located and shape else None,
            time=_time(attributes, scene),
            label=self._label(path, file, metadata, scene),
        )

    def _label(
        self, path: Path, file: h5py.File, metadata: Mapping[str, object], scene: _DatedScene
    ) -> object:
        classes = len(self.data.classes)
        if self.data.label == "map":
            name = scene.stored.get("label")
            if name is None:
                raise FormatError(f"{path}: no label map; it holds {', '.join(file)}")
            return class_map(path, file[name][()], classes)
        if metadata.get("label") is None:
            raise FormatError(f"{path}: its metadata holds no label")
        stored = metadata["label"]
        label = np.asarray(stored.values if isinstance(stored, StoredArray) else stored)
        if self.data.label == "classes":
            if label.shape != (classes,) or not np.isin(label, (0, 1)).all():
                raise ClassMapError(
                    f"{path}: label: expected {classes} zeros and ones, got {_shown(label)}"
                )
            return label.astype(np.float32)
        if label.size != 1 or label.dtype.kind not in "iu" or not 0 <= label.item() < classes:
            raise ClassMapError(
                f"{path}: label: expected a class from 0 to {classes - 1}, got {_shown(label)}"
            )
        return int(label.item())


def _with_dates(images: Sequence[Sample], names: Collection[str]) -> Sample:
    """A chip's images of several dates, in order, as one sample in which ``names`` are series; the
    rest is the last image's."""
    pixels, valid = dict(images[-1].pixels), dict(images[-1].valid)
    calibration = {n: c for image in images for n, c in image.calibration.items()}
    dates: dict[str, Dates] = {}
    for name in dict.fromkeys(n for image in images for n in image.pixels if n in names):
        having = [image for image in images if name in image.pixels]
        pixels[name], ok, dates[name] = stack_dates(
            [(image.pixels[name], image.validity(name)) for image in having],
            [days_since_1970(image.time or "") for image in having],
        )
        if not ok.all():
            valid[name] = ok
    return replace(images[-1], pixels=pixels, valid=valid, calibration=calibration, dates=dates)


def _modality(data: GeoBenchData, modality: str | Modality) -> Modality:
    if isinstance(modality, Modality):
        return modality
    offered = {m.name: m for m in data.modalities}
    return offered[modality] if modality in offered else catalog.modality(modality)


def _locate(folder: Path) -> Path:
    """The data set's folder, also where its benchmark's folder is left out."""
    folders = [folder] if folder.is_dir() else sorted(folder.parent.glob(f"*_v*/{folder.name}"))
    if not folders:
        near = did_you_mean(folder.name, DATASETS)
        raise ConfigError(f"{folder}: no such folder; give ROOT/NAME; {near}")
    if len(folders) > 1:
        raise ConfigError(
            f"{folder}: is in {' and '.join(p.parent.name for p in folders)}; name one of them"
        )
    return folders[0]


def _partition(folder: Path, name: str) -> tuple[list[str], list[str]]:
    """Keys and splits that a partition lists."""
    path = folder / f"{name}{PARTITION}"
    if not path.is_file():
        have = sorted(p.name.removesuffix(PARTITION) for p in folder.glob(f"*{PARTITION}"))
        raise ConfigError(f"{folder}: no partition {name!r}; {did_you_mean(name, have)}")
    listed = read_json(path, FormatError, remedy="download it again")
    if not isinstance(listed, Mapping) or set(listed) - set(_SPLITS):
        raise FormatError(f"{path}: expected an object with the lists {', '.join(_SPLITS)}")
    for split, ids in listed.items():
        if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
            raise FormatError(f"{path}: {split}: expected a list of names")
    same = len(listed) > 1 and len({frozenset(ids) for ids in listed.values()}) == 1
    split_of: dict[str, str] = {}
    for split, ids in listed.items():
        for key in ids:
            if key in split_of and not same:
                raise SplitError(
                    f"{path}: {key!r} is listed in {split!r} and again; chips of one split in "
                    "another are training on the test; mend the partition"
                )
            # Splits that are all the same have no meaning: a folder of examples.
            split_of[key] = "" if same else _SPLITS[split]
    present = {p.name for p in folder.glob(f"*{SUFFIX}")}
    missing = [key for key in split_of if f"{key}{SUFFIX}" not in present]
    if missing:
        raise FormatError(
            f"{folder}: {missing[0]}{SUFFIX} of {path.name} is not there ({len(missing)} of "
            f"{len(split_of)}); download the data set again"
        )
    if not split_of:
        raise SplitError(f"{path}: lists no chip")
    return list(split_of), list(split_of.values())


def _attribute(path: Path, file: h5py.File) -> str | bytes:
    text = file.attrs.get("pickle")
    if not isinstance(text, str | bytes):
        raise FormatError(f"{path}: no `pickle` attribute; this is no file of GEO-Bench")
    return text


def _scenes(path: Path, file: h5py.File, needed: set[str]) -> list[_DatedScene]:
    """The dates at which all needed datasets exist, in order of time; never a mixture of dates."""
    by_date: dict[str, dict[str, str]] = {}
    for stored in file:
        dated = _DATED.fullmatch(stored)
        name, when = (dated["name"], dated["date"]) if dated else (stored, "")
        by_date.setdefault(when, {})[name] = stored
    timeless = by_date.pop("", {})
    scenes = [_DatedScene(when, {**timeless, **stored}) for when, stored in sorted(by_date.items())]
    complete = [s for s in scenes or [_DatedScene("", timeless)] if needed <= set(s.stored)]
    if not complete and needed <= set(timeless):  # only the label has a date
        complete = [_DatedScene("", {**(scenes[-1].stored if scenes else {}), **timeless})]
    if not complete:
        lacking = sorted(needed - set().union(*(s.stored for s in scenes), timeless))
        raise FormatError(
            f"{path}: lacks {', '.join(lacking) or 'a date with all bands'}; it holds "
            f"{', '.join(file)}"
        )
    return complete


def _channels(path: Path, dataset: h5py.Dataset) -> Pixels:
    """An HDF5 dataset as (C, H, W); FormatError unless it holds real numbers."""
    values: Pixels = dataset[()] if isinstance(dataset, h5py.Dataset) else np.zeros(0)
    if values.ndim not in (2, 3) or not values.size or values.dtype.kind not in "iuf":
        raise FormatError(
            f"{path}: {dataset.name}: expected numbers (H, W) or (H, W, C), got {values.dtype} "
            f"{values.shape}"
        )
    if values.dtype == np.float64:
        values = values.astype(np.float32)  # halves of digital numbers: nothing is lost
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)


def _shown(label: npt.NDArray[np.generic]) -> str:
    return " ".join(str(label).split())[:60]


def _geometry(attributes: Mapping[str, object], shape: tuple[int, ...]) -> Geometry | None:
    """The footprint of a north-up transform; None where there is none."""
    transform, crs = attributes.get("transform"), attributes.get("crs")
    crs = crs.state if isinstance(crs, OpaqueObject) else crs
    values = transform.arguments if isinstance(transform, OpaqueObject) else ()
    if not isinstance(crs, str) or not crs or len(values) < 6:
        return None
    a, b, left, d, e, top = (float(v) for v in values[:6])
    right, bottom = left + a * shape[1], top + e * shape[0]
    if b or d or not (left < right and bottom < top):
        return None
    return Geometry(crs=crs, bounds=(left, bottom, right, top))


def _time(attributes: Mapping[str, object], scene: _DatedScene) -> str | None:
    """The date; None for a composite of years, whose date in the data set is arbitrary."""
    extra = attributes.get("meta_info")
    if isinstance(extra, Mapping) and extra.get("is_composite"):
        return None
    stored = attributes.get("date")
    if isinstance(stored, datetime | date):
        return stored.isoformat()[:10]
    return scene.date or None
