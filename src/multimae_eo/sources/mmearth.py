"""MMEarth folders (MMEarth, MMEarth64, MMEarth100k) as a source of chips. See docs/mmearth.md."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from multimae_eo import catalog
from multimae_eo.errors import ClassMapError, ConfigError, DataError, FormatError, SplitError
from multimae_eo.files import read_json
from multimae_eo.geo import Geometry
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sample import Calibration, Pixels, Sample, Validity
from multimae_eo.sources.base import Source
from multimae_eo.sources.dataset.chip_files import UNLISTED
from multimae_eo.sources.hdf5 import open_hdf5, opened_hdf5
from multimae_eo.sources.raster.reading import valid_pixels
from multimae_eo.statistics import Moments, Statistics, moments_from

SUFFIXES = (".h5", "_splits.json", "_tile_info.json", "_band_stats.json")
LEVELS = ("l1c", "l2a")
BIOMES = tuple(f"biome {i}" for i in range(1, 15))
_ID_FIELDS = ("tile_id", "meta_id")
GSD_M = 10.0
# ``tile_info`` of 1.2 million tiles is nearly a gigabyte.
_JSON_BYTES = 1 << 33
_METRES_PER_DEGREE = 111_320.0


@dataclass(frozen=True)
class _Array:
    """An image array of the file: channels, dtype, and raw values that mean nodata.

    Infinite and NaN pixels of float arrays are never valid.
    """

    channels: int
    dtype: str
    nodata: tuple[float, ...] = ()
    scale: float = 1.0


_ARRAYS: Mapping[str, _Array] = {
    "sentinel2": _Array(13, "uint16", (0.0,), 1e-4),
    # Documented nodata is -inf, which int16 cannot hold; its least value is what casts make of it.
    "aster": _Array(2, "int16", (-32768.0,)),
    "esa_worldcover": _Array(1, "uint8", (0.0, 255.0)),
    "dynamic_world": _Array(1, "uint8", (0.0,)),
    # Documented nodata is 255, which overflows int8.
    "canopy_height_eth": _Array(2, "int8", (-1.0,)),
    "sentinel1": _Array(8, "float32"),
}

# Sentinel-2 is stored B1 B2 B3 B4 B5 B6 B7 B8A B8 B9 B10 B11 B12: B8A comes before B8.
_STORED_CHANNELS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "rgb": ("sentinel2", (3, 2, 1)),
    "depth": ("aster", (0,)),
    "semseg": ("esa_worldcover", (0,)),
    "ired": ("sentinel2", (4, 5, 6)),
    "sired": ("sentinel2", (11, 12)),
    "ebands": ("sentinel2", (7, 8)),
    "slope": ("aster", (1,)),
    "dynamic_world": ("dynamic_world", (0,)),
    "canopy_height": ("canopy_height_eth", (0,)),
    "sentinel1_asc_desc": ("sentinel1", (0, 1, 2, 3, 4, 5, 6, 7)),
}


class _TileRecord(NamedTuple):
    """The fields kept of a tile's record; complete records would fill gigabytes."""

    level: object
    date: str | None
    lat: float
    lon: float


class MMEarthSource(Source):
    """The tiles of an MMEarth folder, or of one ``.h5`` file where a folder holds several.

    Modalities are those of ``_STORED_CHANNELS`` that the file holds. A modality that is nowhere
    valid in a tile is absent from its sample. The product level is each tile's own. The label is
    the index of the tile's biome. Geometry is a box around the tile's centre in EPSG:4326, true to
    a few metres. Tiles that the split file does not list have the split ``unlisted``.

    Raises ConfigError where the folder's files are not all there, FormatError for a damaged file,
    an unexpected type or shape and a tile without a usable record, SplitError for the split lists.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._stem = _locate(Path(folder))
        self.name = self._path.stem
        with opened_hdf5(self._path) as file:
            size = _check_arrays(self._path, file)
            self.keys = _tile_ids(self._path, file, size)
            self._labelled = _has_biome(self._path, file, size)
            present = [n for n, (key, _) in _STORED_CHANNELS.items() if key in file]
        self.modalities = ModalitySet(_modality(n) for n in present)
        self.class_names = BIOMES if self._labelled else ()
        self.split_of = _splits(self._file_of("_splits.json"), size)
        tiles = _tiles(self._file_of("_tile_info.json"), self.keys)
        self._level = np.array([LEVELS.index(str(t.level)) for t in tiles], np.uint8)
        self._date = [t.date for t in tiles]
        self._lat_lon = np.array([(t.lat, t.lon) for t in tiles], np.float64)
        self._file: h5py.File | None = None
        self._arrays: dict[str, h5py.Dataset] = {}
        self._process = -1

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """Read one tile; each array of the file is read once, whatever it is used for.

        Raises FormatError for a damaged chunk, ClassMapError for an id outside the class map.
        """
        chosen = self.modalities if names is None else self.modalities.select(names)
        rows: dict[str, Pixels] = {}
        pixels: dict[str, Pixels] = {}
        valid: dict[str, Validity] = {}
        for name, modality in chosen.items():
            key, channels = _STORED_CHANNELS[name]
            if key not in rows:
                rows[key] = self._row(key, index)
            values = rows[key][list(channels)]
            ok = valid_pixels(values, [modality.nodata] * modality.channels)
            if modality.categorical:
                self._require_class_ids(modality, values, ok, index)
            if ok is None:
                pixels[name] = values
            elif ok.any():
                values[~np.broadcast_to(ok, values.shape)] = 0  # no sentinel travels further
                pixels[name], valid[name] = values, ok
        level = LEVELS[self._level[index]]
        return Sample(
            key=self.keys[index],
            pixels=pixels,
            valid=valid,
            calibration={
                n: Calibration(scale=chosen[n].scale, level=level)
                for n in pixels
                if chosen[n].levels
            },
            geometry=self._geometry(index, rows),
            time=self._date[index],
            label=self._biome(index) if self._labelled else None,
        )

    def published_statistics(self) -> Statistics:
        """The data set's own statistics (``*_band_stats.json``) in physical units.

        Sentinel-2 has its two levels apart. Class maps have none: their counts are 0. Raises
        ConfigError where the file is missing, FormatError where it lacks an array or a band.
        """
        path = self._file_of("_band_stats.json")
        record = _read_json(path)
        statistics = Statistics(self.modalities)
        for name, levels in statistics.moments.items():
            for level in levels:
                levels[level] = _published(path, record, self.modalities[name], level)
        return statistics

    def _file_of(self, suffix: str) -> Path:
        return self._path.with_name(self._stem + suffix)

    def _row(self, key: str, index: int) -> Pixels:
        """One tile of one array. The file is opened on first use in each process."""
        if self._process != os.getpid():
            if self._file is not None:
                # After a fork, HDF5 would go on using the parent's file descriptor.
                self._file.close()
            self._file, self._arrays = open_hdf5(self._path), {}
            self._process = os.getpid()
        try:
            if key not in self._arrays:
                assert self._file is not None
                self._arrays[key] = self._file[key]
            row: Pixels = self._arrays[key][index]
        except (OSError, RuntimeError, KeyError) as error:
            raise FormatError(
                f"{self._path}: {key}: tile {self.keys[index]!r} (row {index}) cannot be read: "
                f"{error}; the file is damaged, download it again"
            ) from error
        return row

    def _biome(self, index: int) -> int | None:
        hot = np.flatnonzero(self._row("biome", index))
        return int(hot[0]) if len(hot) == 1 else None

    def _geometry(self, index: int, rows: Mapping[str, Pixels]) -> Geometry | None:
        lat, lon = (float(v) for v in self._lat_lon[index])
        if not rows or not (abs(lat) < 89 and abs(lon) <= 180):
            return None
        half = next(iter(rows.values())).shape[-1] * GSD_M / 2 / _METRES_PER_DEGREE
        wide = half / math.cos(math.radians(lat))
        return Geometry(crs="EPSG:4326", bounds=(lon - wide, lat - half, lon + wide, lat + half))

    def _require_class_ids(
        self, modality: Modality, ids: Pixels, ok: Validity | None, index: int
    ) -> None:
        seen = np.bincount(ids.ravel() if ok is None else ids[ok], minlength=256) > 0
        seen[list(modality.class_ids)] = False
        if seen.any():
            raise ClassMapError(
                f"{self._path}: {modality.name}: tile {self.keys[index]!r} holds the class id "
                f"{int(np.flatnonzero(seen)[0])}; the class map has "
                f"{', '.join(map(str, modality.class_ids))}"
            )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None, "_arrays": {}, "_process": -1}


def _modality(name: str) -> Modality:
    array = _ARRAYS[_STORED_CHANNELS[name][0]]
    return replace(catalog.modality(name), scale=array.scale, nodata=array.nodata)


def _locate(folder: Path) -> tuple[Path, str]:
    """The HDF5 file and the stem of all four names."""
    if folder.is_file() and folder.suffix == ".h5":
        path = folder
    elif not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give an MMEarth folder or its .h5 file")
    else:
        names = [p.name for p in folder.iterdir()]
        stems = sorted({n.removesuffix(s) for n in names for s in SUFFIXES if n.endswith(s)})
        if len(stems) != 1:
            raise ConfigError(
                f"{folder}: holds {len(stems)} MMEarth data sets ({', '.join(stems) or 'no .h5'}); "
                "give the folder of one, or the path of its .h5 file"
            )
        path = folder / f"{stems[0]}.h5"
    missing = [path.stem + s for s in SUFFIXES if not path.with_name(path.stem + s).is_file()]
    if missing:
        raise ConfigError(
            f"{path.parent}: {', '.join(missing)} is missing; an MMEarth data set is "
            + ", ".join(path.stem + s for s in SUFFIXES)
        )
    return path, path.stem


def _check_arrays(path: Path, file: h5py.File) -> int:
    """Check type and shape of every image array; returns the number of tiles."""
    # A group where an array is expected has no shape.
    shapes = {key: getattr(file[key], "shape", ()) for key in _ARRAYS if key in file}
    if not shapes:
        raise FormatError(f"{path}: holds none of the arrays {', '.join(_ARRAYS)}")
    first, shape = next(iter(shapes.items()))
    size, side = (shape[0], shape[-1]) if shape else (0, 0)
    for key, got in shapes.items():
        expected = (size, _ARRAYS[key].channels, side, side)
        if got != expected:
            raise FormatError(
                f"{path}: {key}: expected shape (tiles, C, H, W) = {expected}, tiles and sides as "
                f"{first} has them; got {got}"
            )
        if file[key].dtype != np.dtype(_ARRAYS[key].dtype):
            raise FormatError(
                f"{path}: {key}: expected {_ARRAYS[key].dtype}, got {file[key].dtype}; store the "
                "published raw values"
            )
    return int(size)


def _tile_ids(path: Path, file: h5py.File, size: int) -> list[str]:
    """Ids of the tiles from ``metadata``, which may lack S2_type; row numbers without it."""
    if "metadata" not in file:
        return [str(i) for i in range(size)]
    data = file["metadata"]
    field = _id_field(data.dtype)
    if field is None or len(data) != size:
        raise FormatError(
            f"{path}: metadata: expected {size} records with a tile_id (or meta_id), got "
            f"{len(data)} of {data.dtype}"
        )
    try:
        ids = [_id_text(i) for i in data.fields(field)[()].ravel().tolist()]
    except (OSError, RuntimeError, UnicodeDecodeError, AttributeError) as error:
        raise FormatError(f"{path}: metadata: {field} cannot be read: {error}") from error
    if len(set(ids)) != size:
        raise FormatError(f"{path}: metadata: {size} tiles have {len(set(ids))} different ids")
    return ids


def _id_field(dtype: np.dtype[np.generic]) -> str | None:
    """The field that holds the tiles' ids: ``tile_id``, else ``meta_id``, else the first of bytes.

    Writers disagree on its name, and not all put it first. None where no field may hold ids.
    """
    fields = {} if dtype.fields is None else dict(dtype.fields)
    texts = [n for n in dtype.names or () if fields[n][0].kind in "SO" and n != "S2_type"]
    return next((n for n in (*_ID_FIELDS, *texts) if n in fields), None)


def _id_text(value: bytes | int) -> str:
    return str(value) if isinstance(value, int) else value.decode("ascii")


def _has_biome(path: Path, file: h5py.File, size: int) -> bool:
    if "biome" not in file:
        return False
    expected = (size, len(BIOMES))
    if file["biome"].shape != expected:
        raise FormatError(f"{path}: biome: expected {expected}, got {file['biome'].shape}")
    return True


def _read_json(
    path: Path, hook: Callable[[dict[str, object]], object] | None = None
) -> Mapping[str, object]:
    if not path.exists():
        raise ConfigError(f"{path}: no such file")
    record = read_json(
        path, FormatError, limit=_JSON_BYTES, remedy="download it again", object_hook=hook
    )
    if not isinstance(record, Mapping):
        raise FormatError(f"{path}: expected a JSON object that is not empty")
    return record


def _splits(path: Path, size: int) -> list[str]:
    split_of = np.full(size, "", dtype=object)
    for name, indices in _read_json(path).items():
        if not isinstance(indices, list) or not all(type(i) is int for i in indices):
            raise FormatError(f"{path}: {name}: expected a list of row numbers")
        outside = next((i for i in indices if not 0 <= i < size), None)
        if outside is not None:
            raise SplitError(
                f"{path}: {name}: row {str(outside)[:20]} is out of range; the file has {size} "
                "tiles"
            )
        rows = np.array(indices, dtype=np.int64)
        again = rows[split_of[rows] != ""]
        if len(again) or len(np.unique(rows)) != len(rows):
            raise SplitError(f"{path}: {name}: a row is listed twice, in it or in another split")
        split_of[rows] = name
    if (split_of != "").any():
        split_of[split_of == ""] = UNLISTED
    listed: list[str] = split_of.tolist()
    return listed


def _tiles(path: Path, keys: Sequence[str]) -> list[_TileRecord]:
    """The records of the tiles, in the order of ``keys``."""
    records = _read_json(path, _compact)
    tiles = []
    for key in keys:
        tile = records.get(key)
        if not isinstance(tile, _TileRecord):
            raise FormatError(f"{path}: tile {key!r} of the HDF5 file has no record here")
        if tile.level not in LEVELS:
            raise FormatError(
                f"{path}: tile {key!r}: S2_type: expected {' or '.join(LEVELS)}, got {tile.level!r}"
            )
        tiles.append(tile)
    return tiles


def _compact(record: dict[str, object]) -> object:
    """Called for every JSON object from the inside out: keeps little of a tile's record."""
    if "S2_type" in record or "BANDS" in record:
        date = record.get("S2_DATE")
        position = (record.get(k) for k in ("lat", "lon"))
        lat, lon = (float(v) if isinstance(v, int | float) else math.nan for v in position)
        return _TileRecord(record.get("S2_type"), date if isinstance(date, str) else None, lat, lon)
    return record if any(isinstance(v, _TileRecord) for v in record.values()) else None


def _published(path: Path, record: Mapping[str, object], modality: Modality, level: str) -> Moments:
    key, channels = _STORED_CHANNELS[modality.name]
    entry = record.get(f"{key}_{level}" if level else key)
    columns = []
    for what in ("mean", "std", "min", "max"):
        values = entry.get(what) if isinstance(entry, Mapping) else None
        if not isinstance(values, list) or len(values) != _ARRAYS[key].channels:
            raise FormatError(
                f"{path}: {key} {level}: {what}: expected a list of {_ARRAYS[key].channels} numbers"
            )
        columns.append(np.array([_number(values[c]) for c in channels]) * modality.scale)
    mean, std, low, high = columns
    finite = np.isfinite(mean) & np.isfinite(std)
    if not finite.any():
        raise DataError(f"{path}: {key} {level}: no finite mean and std")
    moments = moments_from(np.where(finite, mean, 0.0), np.where(finite, std, 0.0))
    moments.count = finite.astype(np.float64)
    moments.minimum = np.where(np.isfinite(low), low, moments.mean)
    moments.maximum = np.where(np.isfinite(high), high, moments.mean)
    return moments


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
