"""The labels of a data set of files: from a table's column, a folder's name, or mask files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ClassMapError, ConfigError, DataError, FormatError, did_you_mean
from multimae_eo.modality import class_ids
from multimae_eo.plausible import sentinel_message
from multimae_eo.sources.dataset.chip_files import ChipFiles, ChipTable, require_files
from multimae_eo.sources.dataset.label_texts import (
    class_texts,
    number_of,
    require_classes,
    sorted_classes,
)
from multimae_eo.sources.dataset.schema import DatasetSpec, LabelSpec
from multimae_eo.sources.raster.calibration import Declared, band_calibration, physical
from multimae_eo.sources.raster.reading import Raster, valid_pixels


@dataclass(frozen=True, kw_only=True)
class ChipLabels:
    """Labels by chip. ``values`` are those read on opening; masks are read with their chip.

    ``classes``: their names. ``class_ids``: their ids in the user's files. ``masks``: the mask
    file of each chip. ``dropped``: chips whose class is not among those to keep.
    """

    spec: LabelSpec
    classes: tuple[str, ...]
    class_ids: tuple[int, ...]
    values: Mapping[str, Any]
    masks: ChipFiles
    sizes: frozenset[tuple[int, int]]
    dropped: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        spec: DatasetSpec,
        files: Mapping[str, str],
        keys: Sequence[str],
        table: ChipTable | None,
    ) -> ChipLabels:
        """Find the labels of a data set's chips. ``files``: the main file of each chip.

        ClassMapError for a label outside ``classes``, or for files beside class folders.
        """
        labels = spec.labels
        assert labels is not None
        where = f"{spec.file}: labels"
        sizes = frozenset(s for m in spec.modalities if (s := m.size or spec.size) is not None)
        texts: dict[str, str] = {}
        if labels.mask:
            masks = labels.mask.discover(spec.root)
            if not labels.optional:
                require_files(spec.root, labels.mask, keys, masks, where)
            return _mask_labels(labels, masks, sizes, where)
        if labels.folder:
            texts = _folders(files, keys, where)
        elif table is None:
            raise ConfigError(f"{where}: a column needs `table:` or a split table")
        else:
            texts = {k: v for k, v in table.column(labels.column).items() if v}
            where = str(table.path)
            if not texts:
                raise DataError(f"{where}: column {labels.column!r} is empty")
        nothing = cls(
            spec=labels, classes=(), class_ids=(), values={}, masks=ChipFiles({}), sizes=sizes
        )
        if labels.numeric:
            return replace(nothing, values=_numbers(where, labels, texts))
        return _class_labels(nothing, texts, where)

    def read(self, key: str, open_file: Callable[[str], Raster]) -> object:
        """A class index (int), a multi-hot vector or number (float32), an (H, W) map, or None.

        Maps hold classes (int64, -1 where ignored) or values (float32, NaN where there is none).
        """
        if self.spec.mask is None:
            return self.values.get(key)
        if key not in self.masks:
            return None
        return self._map(open_file(self.masks[key]))

    def class_of_chips(self) -> dict[str, str]:
        """The class of each chip that has one; of several classes their combination."""
        return {
            key: "+".join(self.classes[i] for i in np.flatnonzero(value))
            if isinstance(value, np.ndarray)
            else self.classes[value]
            for key, value in (self.values if self.classes else {}).items()
        }

    def _map(self, raster: Raster) -> npt.NDArray[np.generic]:
        header = raster.header
        if header.count != 1 and not (header.count == 2 and header.alpha == 1):
            raise FormatError(f"{header.path}: a label mask has one band, got {header.count}")
        if self.sizes and header.shape not in self.sizes:
            raise FormatError(
                f"{header.path}: the label mask is {header.shape[0]}×{header.shape[1]} px, "
                f"the chips are {' or '.join(f'{h}×{w}' for h, w in sorted(self.sizes))}"
            )
        tagged = header.nodata[0]
        if self.spec.nodata is not None:
            nodata = self.spec.nodata
        elif tagged is None or (not self.spec.numeric and tagged in self.spec.ids):
            nodata = ()
        else:
            nodata = (tagged,)
        clear = tuple(v for v in header.bands[0].transparent if v not in self.spec.ids)
        mask, pixels = raster.mask, raster.pixels[:1]
        if header.count == 2:  # value and alpha
            mask = raster.pixels[1:] > 0 if mask is None else mask[:1] & (raster.pixels[1:] > 0)
        ok = valid_pixels(pixels, [(*nodata, *self.spec.ignore, *clear)], mask)
        if self.spec.numeric:
            tags = band_calibration(header, [0], Declared(), "label")
            values = physical(pixels, tags)[0].astype(np.float32)
            if self.spec.nodata is None:
                raw = pixels[0].astype(np.float32)
                observed = raw if ok is None else raw[ok[0]]
                if message := sentinel_message(observed, header.dtype):
                    raise DataError(f"{header.path}: {message}")
            return values if ok is None else np.where(ok[0], values, np.float32(np.nan))
        ids = pixels[0] if ok is None else np.where(ok[0], pixels[0], 0)
        table, inverse = np.unique(ids, return_inverse=True)
        seen = table if ok is None else np.unique(ids[ok[0]])
        strange = [i for i in seen.tolist() if i not in self.spec.ids]
        if strange:
            raise ClassMapError(
                f"{header.path}: mask id {strange[0]} is neither a class nor ignored "
                f"({', '.join(map(str, self.spec.ids))}); add it to `ids:` or `ignore:`"
            )
        index = np.array([self.spec.ids.get(i, -1) for i in table.tolist()], dtype=np.int64)
        indices: npt.NDArray[np.int64] = index[inverse].reshape(ids.shape)
        return indices if ok is None else np.where(ok[0], indices, -1)


def _mask_labels(
    labels: LabelSpec, masks: ChipFiles, sizes: frozenset[tuple[int, int]], where: str
) -> ChipLabels:
    """Labels that are maps: raw ids become indices of the classes that are kept."""
    named = {raw: labels.classes[i] for raw, i in labels.ids.items() if i >= 0}
    classes = _kept(labels, labels.classes, where)
    index_of = {name: i for i, name in enumerate(classes)}
    renamed = {raw: labels.rename.get(name, name) for raw, name in named.items()}
    ids = {raw: index_of.get(renamed.get(raw, ""), -1) for raw in labels.ids}
    least = [min((r for r, i in ids.items() if i == k), default=-1) for k in range(len(classes))]
    return ChipLabels(
        spec=replace(labels, ids=ids),
        classes=classes,
        class_ids=tuple(least) if least and min(least) >= 0 else (),
        values={},
        masks=masks,
        sizes=sizes,
    )


def _class_labels(labels: ChipLabels, texts: Mapping[str, str], where: str) -> ChipLabels:
    """Labels that are class names, one or several of a chip."""
    spec = labels.spec
    names, several = class_texts(texts, spec.separator)
    every = spec.classes or sorted_classes((n for ns in names.values() for n in ns), where)
    for key, listed in names.items():
        require_classes(where, key, listed, every)
    kept = _kept(spec, every, where)
    index_of = {name: i for i, name in enumerate(kept)}
    values: dict[str, Any] = {}
    dropped = []
    for key, listed in names.items():
        indices = [index_of[n] for n in (spec.rename.get(n, n) for n in listed) if n in index_of]
        if several:
            hot = np.zeros(len(kept), dtype=np.float32)
            hot[indices] = 1.0
            values[key] = hot
        elif indices:
            values[key] = indices[0]
        else:
            dropped.append(key)
    return replace(
        labels,
        classes=kept,
        class_ids=class_ids(kept),
        values=values,
        dropped=frozenset(dropped),
    )


def _kept(labels: LabelSpec, every: Sequence[str], where: str) -> tuple[str, ...]:
    """The classes after ``rename:`` and ``only:``."""
    for old in labels.rename:
        if old not in every:
            raise ClassMapError(f"{where}: rename: no class {old!r}; {did_you_mean(old, every)}")
    renamed = tuple(dict.fromkeys(labels.rename.get(name, name) for name in every))
    for name in labels.only:
        if name not in renamed:
            raise ClassMapError(f"{where}: only: no class {name!r}; {did_you_mean(name, renamed)}")
    return labels.only or renamed


def _folders(files: Mapping[str, str], keys: Sequence[str], where: str) -> dict[str, str]:
    """The name of the folder of each chip's file.

    ClassMapError where a folder holds both chips and folders of chips: some lie astray.
    """
    folder_of = {k: PurePosixPath(files.get(k, k)).parent for k in keys}
    holders = set(folder_of.values())
    outer = {parent for folder in holders for parent in folder.parents} & holders
    stray = [k for k in keys if folder_of[k] in outer]
    if stray:
        shown = ", ".join(files.get(k, k) for k in stray[:3]) + (", …" if len(stray) > 3 else "")
        raise ClassMapError(
            f"{where}: {len(stray)} file(s) lie beside class folders, not in one: {shown}; move "
            "them, or list them under `exclude:`"
        )
    return {k: folder.name for k, folder in folder_of.items()}


def _numbers(where: str, labels: LabelSpec, texts: Mapping[str, str]) -> dict[str, np.float32]:
    """Numbers by chip; those that are declared to be none are left out."""
    none = {*labels.ignore, *(labels.nodata or ())}
    numbers = {}
    for key, text in texts.items():
        number = number_of(text)
        if number is None and text.lower() in ("nan", "na", "n/a", "null", "none"):
            continue
        if number is None:
            raise ClassMapError(f"{where}: chip {key!r}: the label {text!r} is not a number")
        if number not in none:
            numbers[key] = np.float32(number)
    message = sentinel_message(np.array(list(numbers.values()), dtype=np.float64))
    if message and labels.nodata is None:
        raise DataError(f"{where}: column {labels.column!r}: {message}")
    return numbers
