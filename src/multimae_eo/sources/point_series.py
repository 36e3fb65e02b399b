"""Series of points from one table (Parquet): a row per point, lists of values over its dates.

Each point is a chip of 1 × 1 px; a model reads it with patches of one pixel. See docs/series.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, DataError, did_you_mean
from multimae_eo.files import reading, require_regular
from multimae_eo.geo import Geometry
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Calibration, Dates, Sample
from multimae_eo.sources.acquisition_dates import days_since_1970
from multimae_eo.sources.base import Source, split_name
from multimae_eo.sources.data_root import expanded_root, root_remedy
from multimae_eo.sources.dataset.schema import ModalitySpec, modality_spec
from multimae_eo.sources.file_names import existing_path
from multimae_eo.sources.yaml_section import Section, load_yaml

_KEYS = ("name", "series", "columns", "numeric", "classes", "modalities")
_COLUMNS = ("id", "dates", "label", "split", "longitude", "latitude")
_REQUIRED = ("id", "dates")
_HALF_DEGREES = 5e-5
"""Half a side of a point's footprint: about 10 m across."""

Column = Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class _SeriesSpec:
    """The file: where the table is, and what its columns are."""

    file: Path
    name: str
    table: Path
    remedy: str
    columns: Mapping[str, str]
    numeric: bool
    classes: tuple[str, ...]
    modalities: tuple[ModalitySpec, ...]

    def bands_of(self, spec: ModalitySpec) -> tuple[str, ...]:
        """The columns of a modality's bands."""
        return spec.rule.file_bands or spec.rule.band_names

    @classmethod
    def read(cls, path: Path) -> _SeriesSpec:
        """Read and check the YAML; ConfigError names the invalid key."""
        top = Section.of(str(path), load_yaml(path), _KEYS)
        records = top.get("modalities", {})
        if not isinstance(records, Mapping) or not records:
            raise top.error("modalities", "name at least one modality")
        given = top.get("columns", {})
        if not isinstance(given, Mapping):
            raise top.error("columns", f"expected names of columns: {', '.join(_COLUMNS)}")
        section = Section.of(f"{path}: columns", given, _COLUMNS)
        columns = {what: section.text(what) for what in _COLUMNS if what in section}
        columns |= {what: what for what in _REQUIRED if what not in columns}
        if ("longitude" in columns) != ("latitude" in columns):
            raise section.error("longitude", "give both longitude and latitude, or neither")
        specs = tuple(modality_spec(top, name, record) for name, record in records.items())
        for spec in specs:
            if spec.path is not None or spec.modality.categorical:
                raise top.error("modalities", f"{spec.modality.name}: bands are columns of values")
        return cls(
            file=path,
            name=top.text("name", path.stem),
            table=existing_path(
                path.parent, expanded_root(top.text("series"), str(path), "series")
            ),
            remedy=root_remedy(top.text("series")),
            columns=columns,
            numeric=top.flag("numeric"),
            classes=top.names("classes") or (),
            modalities=specs,
        )


class PointSeries(Source):
    """The points of a table as chips of 1 × 1 px.

    Values that are null or NaN, or nodata, are not observed. Labels are class names, or numbers
    where the file declares ``numeric: true``. Raises ConfigError for the file or for columns that
    the table lacks, DataError for rows that do not fit.
    """

    def __init__(self, path: Path) -> None:
        spec = self._spec = _SeriesSpec.read(Path(path))
        self.name = spec.name
        self.modalities = ModalitySet(m.modality for m in spec.modalities)
        bands = [b for m in spec.modalities for b in spec.bands_of(m)]
        self._table = _read_columns(spec, [*spec.columns.values(), *bands])
        self.keys = [str(v) for v in self._column("id")]
        seen: set[str] = set()
        for key in self.keys:
            if key in seen:
                raise DataError(f"{spec.table}: point {key!r} is listed twice")
            seen.add(key)
        self.split_of = ["" if v is None else split_name(str(v)) for v in self._column("split")]
        self._labels = self._column("label")
        if not spec.numeric:
            names = spec.classes or tuple(sorted({str(v) for v in self._labels if v is not None}))
            self.class_names = names
            for key, label in zip(self.keys, self._labels, strict=True):
                if label is not None and str(label) not in names:
                    raise DataError(
                        f"{spec.table}: point {key!r}: {did_you_mean(str(label), names)}"
                    )

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """One point; a modality that it nowhere has is absent."""
        chosen = self.modalities if names is None else self.modalities.select(names)
        days, order = self._dates(index)
        pixels, valid, calibration = {}, {}, {}
        for spec in self._spec.modalities:
            name = spec.modality.name
            if name not in chosen:
                continue
            values = np.stack([self._values(index, b, order) for b in self._spec.bands_of(spec)], 1)
            ok = np.isfinite(values) & ~np.isin(values, spec.modality.nodata)
            if not ok.any():
                continue
            pixels[name] = np.where(ok, values, 0)[:, :, None, None]
            if not ok.all():
                valid[name] = ok[:, :, None, None]
            calibration[name] = Calibration(
                scale=spec.modality.scale,
                offset=spec.modality.offset,
                level=spec.level.of(self.keys[index]) or "",
            )
        return Sample(
            key=self.keys[index],
            pixels=pixels,
            valid=valid,
            calibration=calibration,
            geometry=self._geometry(index),
            label=self._label(index),
            dates=dict.fromkeys(pixels, days),
        )

    def _column(self, what: str) -> Column:
        """Values of a column by what it means; nulls where the file names none."""
        name = self._spec.columns.get(what)
        count = len(next(iter(self._table.values())))
        return [None] * count if name is None else self._table[name]

    def _dates(self, index: int) -> tuple[Dates, npt.NDArray[np.intp]]:
        """A point's dates in ascending order, and the position of each in its lists."""
        key, texts = self.keys[index], self._column("dates")[index]
        try:
            days = np.array([_days(d) for d in texts or ()], dtype=np.float64)
        except ValueError as error:
            raise DataError(f"{self._spec.table}: point {key!r}: dates: {error}") from error
        if not len(days):
            raise DataError(f"{self._spec.table}: point {key!r} has no date; leave it out")
        order = days.argsort(kind="stable")
        return days[order], order

    def _values(
        self, index: int, band: str, order: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.float64]:
        values = self._table[band][index]
        if values is None:
            return np.full(len(order), np.nan)
        if len(values) != len(order):
            raise DataError(
                f"{self._spec.table}: point {self.keys[index]!r}: {band} has {len(values)} values, "
                f"{len(order)} dates"
            )
        return np.array(values, dtype=np.float64)[order]

    def _label(self, index: int) -> float | int | None:
        value = self._labels[index]
        if value is None:
            return None
        return float(value) if self._spec.numeric else self.class_names.index(str(value))

    def _geometry(self, index: int) -> Geometry | None:
        x, y = self._column("longitude")[index], self._column("latitude")[index]
        if x is None or y is None:
            return None
        half = _HALF_DEGREES
        return Geometry(crs="EPSG:4326", bounds=(x - half, y - half, x + half, y + half))


def _read_columns(spec: _SeriesSpec, names: Sequence[str]) -> dict[str, Column]:
    """Columns of the table as lists; ConfigError for one that it lacks."""
    import pyarrow.parquet as pq

    if not spec.table.exists():
        raise ConfigError(f"{spec.file}: series: {spec.table}: no such file{spec.remedy}")
    require_regular(spec.table, ConfigError)
    with reading(spec.table, ConfigError, "write it as Parquet", form="Parquet"):
        table = pq.read_table(spec.table)
    for name in names:
        if name not in table.column_names:
            raise ConfigError(
                f"{spec.table}: no column {name!r}; {did_you_mean(name, table.column_names)}"
            )
    if not len(table):
        raise DataError(f"{spec.table}: has no row")
    return {name: table[name].to_pylist() for name in dict.fromkeys(names)}


def _days(value: object) -> float:
    """Days since 1970 of a date as a text, or as Parquet's date or time stamp."""
    isoformat = getattr(value, "isoformat", None)
    return _days_of_text(isoformat() if callable(isoformat) else str(value))


@lru_cache(maxsize=1 << 14)
def _days_of_text(text: str) -> float:
    """Points share dates, and every epoch reads them: parsing cost most of it."""
    return days_since_1970(text)
