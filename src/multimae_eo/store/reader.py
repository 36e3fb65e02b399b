"""Reading a chip store: columns of the index when they are asked for; pixels memory-mapped."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import DataError, FormatError, MultiMAEError
from multimae_eo.files import reason_of, require_regular
from multimae_eo.geo import Geometry
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Calibration, Dates, Pixels, Sample, Validity
from multimae_eo.sources.base import Source
from multimae_eo.statistics import Statistics
from multimae_eo.store import layout
from multimae_eo.store.layout import LABELS

# A map holds a file descriptor, of which a process commonly has 1024.
_OPEN_MAPS = 256


class ChipStore(Source):
    """A prepared data set. ``read`` gives the very pixels, validity and labels of its source.

    Arrays are read-only views of memory maps. A store is pickled as its path.
    Raises FormatError for a folder that is no finished store, or of another format version, and
    for a damaged one: at once, or when the damaged part is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not (self.path / layout.INDEX).is_file():
            begun = (self.path / layout.PLAN).is_file()
            raise FormatError(
                f"{self.path}: no {layout.INDEX}: "
                + ("`prepare` was interrupted; run it again" if begun else "is no chip store")
            )
        self.header = layout.read_json(self.path / layout.HEADER)
        version = self.header.get("format_version")
        if version not in (layout.IMAGES_VERSION, layout.FORMAT_VERSION):
            raise FormatError(
                f"{self.path}: store format {version}, this version reads up to "
                f"{layout.FORMAT_VERSION}; prepare it again, or update multimae-eo"
            )
        try:
            self.name = str(self.header["name"])
            self.modalities = ModalitySet.from_list(self.header["modalities"])
            self.class_names = tuple(self.header["class_names"])
            self.class_ids = tuple(self.header.get("class_ids", ()))
            self.arrays = {
                n: (tuple(a["shape"]), np.dtype(a["dtype"]))
                for n, a in self.header["arrays"].items()
            }
            self.series = frozenset(n for n, a in self.header["arrays"].items() if a.get("series"))
            labels = self.header["labels"]
            self._label_type = None if labels is None else np.dtype(labels["dtype"])
            self.label_shape = None if labels is None else tuple(labels["shape"])
            self._count, self.shard_chips = self.header["count"], self.header["shard_chips"]
            starts = self.header.get("shard_starts") or range(0, self._count, self.shard_chips)
            self.shard_starts = np.array(starts, dtype=np.int64).tolist()
            self._require_counts()
        except MultiMAEError as error:
            raise FormatError(f"{self.path / layout.HEADER}: {error}") from error
        except Exception as error:
            raise FormatError(
                f"{self.path / layout.HEADER}: damaged, or of a development version "
                f"({reason_of(error)}); delete the store and prepare it again"
            ) from error
        rows = self._index_file.metadata.num_rows
        # While chips are appended the index is ahead of the header, which is the last to change.
        if rows < self._count:
            raise FormatError(
                f"{self.path}: {layout.INDEX} has {rows} chips, {layout.HEADER} has "
                f"{self._count}; delete the store and prepare it again"
            )
        self._maps: OrderedDict[str, npt.NDArray[np.generic]] = OrderedDict()
        self._columns: dict[str, Any] = {}

    def _require_counts(self) -> None:
        """ValueError for counts, splits or statistics that no ``prepare`` writes."""
        starts, splits = self.shard_starts, self.header["splits"]
        if not (type(self._count) is int and 0 < self._count < 1 << 40 and self.shard_chips > 0):
            raise ValueError(f"count {self._count!r}, shard_chips {self.shard_chips!r}")
        if starts[0] != 0 or any(a >= b for a, b in pairwise([*starts, self._count])):
            raise ValueError("shard_starts do not ascend from 0 to the count")
        if sum(splits.values()) != self._count or set(self.header["statistics"]) - set(splits):
            raise ValueError("splits do not sum to the count")
        if set(self.arrays) - set(self.modalities):
            raise ValueError("arrays of an unknown modality")
        types = [dtype for _, dtype in self.arrays.values()]
        types += [] if self._label_type is None else [self._label_type]
        if any(dtype.kind not in "biuf" for dtype in types):
            raise ValueError("arrays or labels that are no real numbers")

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def __len__(self) -> int:
        return int(self._count)

    @cached_property
    def keys(self) -> Sequence[str]:  # type: ignore[override]  # as good as an attribute
        """One unique name per chip."""
        keys: list[str] = self._column("key").to_pylist()
        return keys

    @cached_property
    def split_of(self) -> Sequence[str]:  # type: ignore[override]
        """The split of each key."""
        codes, words = self._words("split")
        return [words[c] for c in codes.tolist()]

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """A chip; its arrays are views of memory maps, not copies."""
        index = range(len(self))[index]
        chosen = self.modalities if names is None else self.modalities.select(names)
        having = [n for n in chosen if self.rows(n)[index] >= 0]
        masks = {n: self.valid(index, n) for n in having}
        dates = {n: self.dates(index, n) for n in having}
        geometry = None
        crs, words = self._words("crs")
        if crs[index] >= 0:
            left, bottom, right, top = (
                float(self._numbers(side)[index]) for side in ("left", "bottom", "right", "top")
            )
            geometry = Geometry(crs=words[crs[index]], bounds=(left, bottom, right, top))
        return Sample(
            key=self.keys[index],
            pixels={n: self.pixels(index, n) for n in having},
            valid={n: m for n, m in masks.items() if m is not None},
            calibration={n: self.calibration(index, n) for n in having},
            geometry=geometry,
            time=self._column("time")[index].as_py(),
            label=self.label(index),
            dates={n: d for n, d in dates.items() if d is not None},
        )

    def dates(self, index: int, name: str) -> Dates | None:
        """Days since 1970 of a chip's series, float64 (T,); None where it is an image."""
        if name not in self.series:
            return None
        days = self._column(layout.column(name, layout.DATES))[index].as_py()
        if days is None:
            return None
        dates = np.array(days, dtype=np.float64)
        if not len(dates) or not np.isfinite(dates).all() or (np.diff(dates) < 0).any():
            path = self.path / layout.INDEX
            raise self._damaged(path, f"the dates of {name} in chip {index} do not ascend")
        return dates

    def rows(self, name: str) -> npt.NDArray[np.int32]:
        """Each chip's row, or first row, within its shard of a modality; -1 where it lacks it."""
        rows = self._numbers(layout.column(name, "row"))
        if name not in self.arrays and (rows >= 0).any():
            raise self._damaged(self.path / layout.HEADER, f"does not describe {name}'s arrays")
        return rows

    def pixels(self, index: int, name: str) -> Pixels:
        """(C, H, W) of a chip that has the modality, (T, C, H, W) of a series."""
        row, dates = int(self.rows(name)[index]), self.dates(index, name)
        if dates is None:
            return self._taken(index, name, row)
        self._taken(index, name, row + len(dates) - 1)  # the last row is there
        number = bisect_right(self.shard_starts, index) - 1
        return self.shard(name, number)[row : row + len(dates)]

    def valid(self, index: int, name: str) -> Validity | None:
        """Bool (1 or C, H, W) of a chip that has the modality, with T before it of a series.

        None where every pixel is valid.
        """
        bands = int(self._valid_bands(name)[index])
        if not bands:
            return None
        dates = self.dates(index, name)
        count = 1 if dates is None else len(dates)
        masks = self._masks(np.full(count, index), name, np.arange(count))[:, :bands]
        return masks[0] if dates is None else masks

    def masks(self, indices: npt.NDArray[np.int64], name: str) -> Validity:
        """Bool (n, 1 or C, H, W) of some chips that are ``partly_valid``; no series."""
        return self._masks(indices, name, 0)

    def _masks(
        self, indices: npt.NDArray[np.int64], name: str, dates: npt.NDArray[np.int64] | int
    ) -> Validity:
        """The masks (n, 1 or C, H, W) of the n-th date of each chip; 0 for images."""
        bands, rows = self._valid_bands(name)[indices], self.rows(name)[indices] + dates
        _, height, width = self.arrays[name][0]
        packed = np.empty((len(indices), bands.max(), height, -(-width // 8)), np.uint8)
        numbers = self.shard_of(indices)
        for number in set(numbers.tolist()):
            mine = numbers == number
            shard = self.shard(name, number, valid=True)
            if rows[mine].max() >= len(shard):
                raise self.lacks_row(name, number, int(rows[mine].max()), valid=True)
            # A chip whose bands share one mask stores it once, as the first band.
            packed[mine] = shard[rows[mine], : packed.shape[1]]
        alike = np.flatnonzero(bands < packed.shape[1])
        packed[alike] = packed[alike, :1]
        return np.unpackbits(packed, axis=-1, count=width).view(bool)

    def _valid_bands(self, name: str) -> npt.NDArray[np.int32]:
        return self._numbers(layout.column(name, "valid_bands"))

    def calibration(self, index: int, name: str) -> Calibration:
        """Scale, offset and product level of a chip that has the modality."""
        scale, offset, level, words = self.calibrations(name)
        return Calibration(
            scale=float(scale[index]), offset=float(offset[index]), level=words[level[index]]
        )

    def calibrations(
        self, name: str
    ) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic], npt.NDArray[np.int32], list[str]]:
        """Scale, offset and product level of all chips; the level as an index of the last."""
        return (
            self._numbers(layout.column(name, "scale")),
            self._numbers(layout.column(name, "offset")),
            *self._words(layout.column(name, "level")),
        )

    def partly_valid(self, name: str) -> npt.NDArray[np.bool_]:
        """Chips with pixels of a modality that are not valid."""
        partly: npt.NDArray[np.bool_] = self._valid_bands(name) > 0
        return partly

    def label(self, index: int) -> Any:
        """A chip's label, in its source's type; None where it has none."""
        if self._label_type is None or self.label_shape is None:
            return None
        if len(self.label_shape) == 2:
            row = int(self._numbers("label_row")[index])
            return None if row < 0 else self._taken(index, LABELS, row)
        value = self._column("label")[index].as_py()
        if value is None or (self._label_type in (np.int64, np.float64) and not self.label_shape):
            return value
        return np.array(value, dtype=self._label_type)[()]

    def statistics(self, indices: Iterable[int] | None = None) -> Statistics:
        """Statistics stored by ``prepare`` where ``indices`` are complete splits, else one pass."""
        requested = range(len(self)) if indices is None else [int(i) for i in indices]
        counts: dict[str, int] = {}
        for i in set(requested):
            counts[self.split_of[i]] = counts.get(self.split_of[i], 0) + 1
        complete = all(n == self.header["splits"][s] for s, n in counts.items())
        if not complete or sum(counts.values()) != len(requested):
            return super().statistics(requested)
        statistics = Statistics(self.modalities)
        for split in sorted(counts):
            record = self.header["statistics"][split]
            try:
                statistics = statistics.merge(Statistics.from_dict(self.modalities, record))
            except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
                raise self._damaged(self.path / layout.HEADER, error) from error
        return statistics

    def verify(self) -> list[str]:
        """Names of files that are missing or differ from what was written."""
        sums = layout.read_json(self.path / layout.CHECKSUMS)
        return [
            name
            for name, expected in sums.items()
            if not (self.path / name).is_file()
            or layout.checksum_file(self.path / name) != expected
        ]

    def info(self) -> dict[str, object]:
        """Facts for ``multimae-eo info``, ready for JSON."""
        return {
            "name": self.name,
            "chips": len(self),
            "splits": self.header["splits"],
            "modalities": {
                n: {
                    "bands": ", ".join(m.band_names),
                    "chips": int((self.rows(n) >= 0).sum()),
                    **self.header["arrays"].get(n, {}),
                }
                for n, m in self.modalities.items()
            },
            "labels": self.header["labels"],
            "classes": list(self.class_names),
            "fingerprint": self.header["fingerprint"],
            "provenance": self.header["provenance"],
        }

    @cached_property
    def _index_file(self) -> Any:
        import pyarrow.parquet as pq

        require_regular(self.path / layout.INDEX, FormatError)
        try:
            return pq.ParquetFile(self.path / layout.INDEX, memory_map=True)
        except Exception as error:
            raise self._damaged(self.path / layout.INDEX, error) from error

    def _column(self, name: str) -> Any:
        if name not in self._columns:
            try:
                column = self._index_file.read(columns=[name])[name]
                if len(column) < self._count:
                    raise ValueError(f"has {len(column)} rows, {self._count} chips are declared")
                column = column.slice(0, self._count).combine_chunks()
                _require_type(name, column)
                self._columns[name] = column
            except Exception as error:
                raise self._damaged(self.path / layout.INDEX, error) from error
        return self._columns[name]

    def _numbers(self, name: str) -> npt.NDArray[Any]:
        column = self._column(name)
        if not isinstance(column, np.ndarray):
            self._columns[name] = column = column.to_numpy(zero_copy_only=False)
        numbers: npt.NDArray[np.generic] = column
        return numbers

    def _words(self, name: str) -> tuple[npt.NDArray[np.int32], list[str]]:
        """A column of few different strings: a code per chip (-1 for null), and the strings."""
        column = self._column(name)
        if not isinstance(column, tuple):
            coded = column.dictionary_encode()
            codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            self._columns[name] = column = (codes, coded.dictionary.to_pylist())
        coded_words: tuple[npt.NDArray[np.int32], list[str]] = column
        return coded_words

    def shard_of(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Number of the shard that holds each chip."""
        numbers: npt.NDArray[np.int64] = np.searchsorted(self.shard_starts, indices, "right") - 1
        return numbers

    def shard(self, group: str, number: int, *, valid: bool = False) -> npt.NDArray[np.generic]:
        """A shard's array: of a modality, of its validity, or of labels."""
        name = layout.array_path(group, number, valid=valid)
        array = self._maps.get(name)
        if array is None:
            array = self._maps[name] = self._opened(name, group, valid)
            if len(self._maps) > _OPEN_MAPS:
                self._maps.popitem(last=False)
        return array

    def _taken(self, index: int, group: str, row: int) -> npt.NDArray[np.generic]:
        number = bisect_right(self.shard_starts, index) - 1
        array = self.shard(group, number)
        if not 0 <= row < len(array):
            raise self.lacks_row(group, number, row)
        chip_array: npt.NDArray[np.generic] = array[row]
        return chip_array

    def lacks_row(self, group: str, number: int, row: int, *, valid: bool = False) -> FormatError:
        """The error for a shard that is shorter than the index requires."""
        path = self.path / layout.array_path(group, number, valid=valid)
        return self._damaged(path, f"there is no row {row}")

    def _opened(self, name: str, group: str, valid: bool) -> npt.NDArray[np.generic]:
        path = self.path / name
        require_regular(path, FormatError)
        try:
            # A plain view: slicing numpy's memmap class costs more than reading a small chip.
            array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except Exception as error:  # NumPy evaluates the header, which raises anything
            raise self._damaged(path, error) from error
        if group == LABELS:
            expected: object = (self.label_shape, self._label_type)
        elif valid:
            (_, height, width), _ = self.arrays[group]
            expected = ((*array.shape[1:2], height, -(-width // 8)), np.dtype(np.uint8))
        else:
            expected = self.arrays[group]
        if (array.shape[1:], array.dtype) != expected:
            raise self._damaged(path, f"holds {array.dtype} {array.shape[1:]}, not {expected}")
        return array

    def _damaged(self, path: Path, reason: object) -> FormatError:
        text = reason_of(reason) if isinstance(reason, Exception) else reason
        return FormatError(
            f"{path}: damaged or missing ({text}); delete the store and prepare it again"
        )


def _require_type(name: str, column: Any) -> None:
    """ValueError for a column of the index of another type than ``prepare`` writes."""
    import pyarrow as pa

    what = name.rpartition("/")[2]
    kind = column.type
    if what in ("key", "split", "crs", "time", "level"):
        fits = pa.types.is_string(kind) or pa.types.is_null(kind)
        nulls = what in ("crs", "time")
    elif what in ("label", layout.DATES):
        fits, nulls = what == "label" or pa.types.is_list(kind), True
    else:
        fits = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        fits, nulls = fits or what == "geometry", what in ("left", "bottom", "right", "top")
    if what in ("scale", "offset") and not np.isfinite(column.to_numpy()).all():
        raise ValueError(f"column {name} holds numbers that are NaN or infinite")
    if not fits or (column.null_count and not nulls and what != "geometry"):
        raise ValueError(f"column {name} is {kind} with {column.null_count} nulls")
