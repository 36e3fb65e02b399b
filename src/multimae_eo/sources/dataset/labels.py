"""The labels of a data set of files: from a table's column, a folder's name, or mask files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, DataError, FormatError, LegendError, did_you_mean
from multimae_eo.sources.dataset.chip_files import Pattern, Table, require_files
from multimae_eo.sources.dataset.schema import DatasetSpec, LabelSpec
from multimae_eo.sources.raster.reading import Raster, valid_pixels
from multimae_eo.sources.yaml_section import as_number


@dataclass(frozen=True, kw_only=True)
class ChipLabels:
    """Labels by chip. ``values`` are those known on opening; masks are read with their chip."""

    spec: LabelSpec
    classes: tuple[str, ...]
    values: Mapping[str, Any]
    masked: frozenset[str]
    sizes: frozenset[tuple[int, int]]

    @classmethod
    def of(
        cls, spec: DatasetSpec, pattern: Pattern | None, keys: Sequence[str], table: Table | None
    ) -> ChipLabels:
        """Find the labels of a data set's chips; LegendError for one outside ``classes``."""
        labels = spec.labels
        assert labels is not None
        where = f"{spec.file}: labels"
        texts: dict[str, str] = {}
        masked: frozenset[str] = frozenset()
        if labels.mask:
            masked = labels.mask.discover(spec.root)
            if not labels.optional:
                require_files(spec.root, labels.mask, keys, masked, where)
        elif labels.folder:
            texts = {k: _folder(pattern, k) for k in keys}
        elif table is None:
            raise ConfigError(f"{where}: a column needs `table:` or a split table")
        else:
            texts = {k: v for k, v in table.column(labels.column).items() if v}
            if not texts:
                raise DataError(f"{table.path}: column {labels.column!r} is empty")
            where = str(table.path)
        if labels.numeric:
            classes: tuple[str, ...] = ()
            values = _numbers(where, texts)
        else:
            classes = labels.classes or _all_classes(labels, texts)
            values = _indices(where, labels, classes, texts)
        sizes = {m.size or spec.size for m in spec.modalities}
        known = frozenset(s for s in sizes if s is not None)
        return cls(spec=labels, classes=classes, values=values, masked=masked, sizes=known)

    def read(self, key: str, open_file: Callable[[str], Raster]) -> Any:
        """A class index (int), a multi-hot vector or number (float32), an (H, W) map, or None.

        Maps hold classes (int64, -1 where ignored) or values (float32, NaN where there is none).
        """
        if self.spec.mask is None:
            return self.values.get(key)
        if key not in self.masked:
            return None
        return self._map(open_file(self.spec.mask.path(key)))

    def _map(self, raster: Raster) -> npt.NDArray[Any]:
        header = raster.header
        if header.count != 1:
            raise FormatError(f"{header.path}: a label mask has one band, got {header.count}")
        if self.sizes and header.shape not in self.sizes:
            raise FormatError(
                f"{header.path}: the label mask is {header.shape[0]}×{header.shape[1]} px, "
                f"the chips are {' or '.join(f'{h}×{w}' for h, w in sorted(self.sizes))}"
            )
        own = header.nodata[0]
        if self.spec.numeric:
            ok = valid_pixels(raster.pixels, [() if own is None else (own,)], raster.mask)
            values = raster.pixels[0].astype(np.float32)
            return values if ok is None else np.where(ok[0], values, np.float32(np.nan))
        nodata = [()] if own is None or own in self.spec.ids else [(own,)]
        ok = valid_pixels(raster.pixels, nodata, raster.mask)
        ids = raster.pixels[0] if ok is None else np.where(ok[0], raster.pixels[0], 0)
        table, inverse = np.unique(ids, return_inverse=True)
        seen = table if ok is None else np.unique(ids[ok[0]])
        strange = [i for i in seen.tolist() if i not in self.spec.ids]
        if strange:
            raise LegendError(
                f"{header.path}: mask id {strange[0]} is neither a class nor ignored "
                f"({', '.join(map(str, self.spec.ids))}); add it to `ids:` or `ignore:`"
            )
        index = np.array([self.spec.ids.get(i, -1) for i in table.tolist()], dtype=np.int64)
        found: npt.NDArray[np.int64] = index[inverse].reshape(ids.shape)
        return found if ok is None else np.where(ok[0], found, -1)


def _folder(pattern: Pattern | None, key: str) -> str:
    path = Path(pattern.path(key)) if pattern else PurePosixPath(key)
    return path.parent.name


def _split_text(labels: LabelSpec, text: str) -> list[str]:
    if not labels.separator:
        return [text]
    return [part.strip() for part in text.split(labels.separator) if part.strip()]


def _all_classes(labels: LabelSpec, texts: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted({c for text in texts.values() for c in _split_text(labels, text)}))


def _numbers(where: str, texts: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for key, text in texts.items():
        number = as_number(text)
        if number is None or not np.isfinite(number):
            raise LegendError(f"{where}: chip {key!r}: the label {text!r} is not a number")
        found[key] = np.float32(number)
    return found


def _indices(
    where: str, labels: LabelSpec, classes: tuple[str, ...], texts: Mapping[str, str]
) -> dict[str, Any]:
    place = {name: i for i, name in enumerate(classes)}
    found: dict[str, Any] = {}
    for key, text in texts.items():
        parts = _split_text(labels, text)
        for part in parts:
            if part not in place:
                raise LegendError(
                    f"{where}: chip {key!r}: no class {part!r}; {did_you_mean(part, classes)}"
                )
        if labels.separator:
            hot = np.zeros(len(classes), dtype=np.float32)
            hot[[place[p] for p in parts]] = 1.0
            found[key] = hot
        else:
            found[key] = place[text]
    return found
