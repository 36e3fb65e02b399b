"""Two files of embeddings of one area, matched location by location."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, ContractError, DataError, FormatError
from multimae_eo.files import reading, require_regular
from multimae_eo.geo import Geometry, Window
from multimae_eo.inference.vector_codes import paired_cosine, vector_decoder
from multimae_eo.sources.raster.grid import Grid, overlap
from multimae_eo.sources.raster.header import same_crs
from multimae_eo.sources.raster.reading import open_dataset
from multimae_eo.sources.raster.warped import describe
from multimae_eo.sources.raster.warped import reading as reading_raster

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

Array = npt.NDArray[np.float64]
RASTERS = (".tif", ".tiff")
TABLES = (".parquet", ".geoparquet")
_ROWS = 64
_SNAP = 1e-3  # of a pixel
_COLUMNS = ("key", "crs", "bounds", "time", "model_hash", "vector")


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Cosine distance (n,), 0 to 2, of the embeddings that both files hold.

    ``keys``, ``geometries``: of each. ``grid``: of which ``cells`` (n, 2; row and column) are the
    distances' pixels; None where the footprints make no grid. ``unmatched``: how many embeddings of
    either file have no counterpart. ``model_hash``, ``times``: "" where the file has none.
    """

    distance: Array
    keys: Sequence[str]
    geometries: Sequence[Geometry | None]
    grid: Grid | None
    cells: npt.NDArray[np.int64]
    unmatched: tuple[int, int]
    model_hash: str
    times: tuple[str, str]
    notes: tuple[str, ...] = ()


def distances(before: Path, after: Path) -> Distances:
    """Compare two files that ``embed`` wrote: two tables, or two rasters.

    Raises ConfigError for two kinds, ContractError for embeddings of different models, widths or
    grids, DataError where nothing matches, FormatError for files without embeddings.
    """
    kinds = [p.suffix.lower() for p in (before, after)]
    for path, kind in zip((before, after), kinds, strict=True):
        if kind not in RASTERS + TABLES:
            raise ConfigError(
                f"{path}: is no file of embeddings (.parquet or .tif); of two scenes give --model"
            )
    if (kinds[0] in RASTERS) != (kinds[1] in RASTERS):
        raise ConfigError(
            f"{before} and {after}: one is a raster, the other a table; embed both with --out of "
            "one kind"
        )
    return _of_rasters(before, after) if kinds[0] in RASTERS else _of_tables(before, after)


def _one_model(paths: Sequence[Path], hashes: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The model's hash, and what to note where it is not recorded. ContractError for two."""
    if all(hashes) and hashes[0] != hashes[1]:
        raise ContractError(
            f"{paths[0]} and {paths[1]}: embeddings of two models (model_hash {hashes[0]} and "
            f"{hashes[1]}) cannot be compared; embed both with one model"
        )
    lacking = [str(p) for p, h in zip(paths, hashes, strict=True) if not h]
    note = (
        f"{' and '.join(lacking)}: no model_hash is recorded; that one model made both is assumed"
    )
    return next((h for h in hashes if h), ""), (note,) if lacking else ()


def _one_width(paths: Sequence[Path], widths: Sequence[int]) -> None:
    if widths[0] != widths[1]:
        raise ContractError(
            f"{paths[0]} has vectors of {widths[0]} dimensions, {paths[1]} of {widths[1]}; embed "
            "both with one model"
        )


# Rasters ----------------------------------------------------------------------------------------


def _of_rasters(before: Path, after: Path) -> Distances:
    paths = (before, after)
    for path in paths:
        require_regular(path, FormatError)
    grids = [describe(p)[0] for p in paths]
    shift = _shift(paths, grids)
    shared = overlap(grids[0].extent, Window(
        row=shift[0], col=shift[1], height=grids[1].height, width=grids[1].width
    ))  # fmt: skip
    if shared is None:
        raise DataError(f"{before} and {after}: do not overlap")
    with ExitStack() as stack:
        stack.enter_context(reading_raster(f"{before} or {after}"))
        files = [stack.enter_context(open_dataset(p)) for p in paths]
        tags = [f.tags() for f in files]
        for path, tag in zip(paths, tags, strict=True):
            if tag.get("modality") != "embedding":
                raise FormatError(f"{path}: is no raster of embeddings; write one with embed")
        model, notes = _one_model(paths, [t.get("model_hash", "") for t in tags])
        _one_width(paths, [f.count for f in files])
        values = np.concatenate(list(_strips(files, shared, shift)))
        counts = [_observed(f) for f in files]
    if any(g.extent != shared for g in grids):
        notes = (*notes, f"compared on the {shared.height} × {shared.width} pixels of both rasters")
    rows, cols = np.nonzero(np.isfinite(values))
    if not len(rows):
        raise DataError(f"{before} and {after}: no pixel is observed in both")
    grid = grids[0].part(shared)
    return Distances(
        distance=values[rows, cols],
        keys=[f"{r},{c}" for r, c in zip(rows.tolist(), cols.tolist(), strict=True)],
        geometries=_Cells(grid, rows, cols),
        grid=grid,
        cells=np.stack([rows, cols], axis=1),
        unmatched=(counts[0] - len(rows), counts[1] - len(rows)),
        model_hash=model,
        times=(tags[0].get("time", ""), tags[1].get("time", "")),
        notes=notes,
    )


def _shift(paths: Sequence[Path], grids: Sequence[Grid]) -> tuple[int, int]:
    """Row and column of the second grid's corner on the first; ContractError where they differ."""
    first, second = grids
    remedy = "embed both scenes on one grid"
    if not same_crs(first.crs, second.crs):
        raise ContractError(
            f"{paths[0]} is in {first.crs[:60]}, {paths[1]} in {second.crs[:60]}; {remedy}"
        )
    sizes = [(abs(g.transform.a), abs(g.transform.e)) for g in grids]
    if not np.allclose(sizes[0], sizes[1], rtol=1e-9, atol=0.0):
        raise ContractError(
            f"{paths[0]} has pixels of {sizes[0]}, {paths[1]} of {sizes[1]}; {remedy}"
        )
    col, row = ~first.transform @ (second.transform.c, second.transform.f)
    if max(abs(col - round(col)), abs(row - round(row))) > _SNAP:
        raise ContractError(
            f"{paths[0]} and {paths[1]}: shifted by {row:.3f} rows and {col:.3f} columns, "
            f"which are not whole pixels; {remedy}"
        )
    return round(row), round(col)


def _strips(
    files: Sequence[DatasetReader], shared: Window, shift: tuple[int, int]
) -> Iterator[npt.NDArray[np.float64]]:
    """Distances (n, W) of some rows at a time, NaN where either raster is not observed."""
    for start in range(0, shared.height, _ROWS):
        height = min(_ROWS, shared.height - start)
        parts = []
        for file, moved in zip(files, ((0, 0), shift), strict=True):
            row, col = shared.row + start - moved[0], shared.col - moved[1]
            span = (row, row + height), (col, col + shared.width)
            parts.append(_vectors(file, file.read(window=span)))
        distance = 1 - paired_cosine(*parts)
        yield distance.reshape(height, shared.width)


def _vectors(file: DatasetReader, pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Pixels (D, n, W) as vectors (n * W, D), NaN where not observed."""
    flat = pixels.reshape(len(pixels), -1).T.astype(np.float64)
    if pixels.dtype.kind != "f":
        flat[flat[:, 0] == file.nodata] = np.nan
    return np.asarray(flat * np.array(file.scales) + np.array(file.offsets))


def _observed(file: DatasetReader) -> int:
    """How many pixels hold an embedding."""
    band = file.read(1)
    return int((np.isfinite(band) if band.dtype.kind == "f" else band != file.nodata).sum())


class _Cells(Sequence[Geometry | None]):
    """The footprints of pixels, made when they are asked for."""

    def __init__(
        self, grid: Grid, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]
    ) -> None:
        self.grid, self.rows, self.cols = grid, rows, cols

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Cells(self.grid, self.rows[index], self.cols[index])
        window = Window(row=int(self.rows[index]), col=int(self.cols[index]), height=1, width=1)
        return self.grid.footprint(window)


# Tables -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A GeoParquet file of embeddings; ``ids``: footprints, or keys where there are none."""

    path: Path
    keys: list[str]
    geometries: list[Geometry | None]
    ids: list[object]
    times: list[str | None]
    model_hash: str
    vectors: npt.NDArray[np.float32]


def _of_tables(before: Path, after: Path) -> Distances:
    paths = (before, after)
    tables = [_read_table(p) for p in paths]
    model, notes = _one_model(paths, [t.model_hash for t in tables])
    _one_width(paths, [t.vectors.shape[1] for t in tables])
    positions = {name: i for i, name in enumerate(tables[1].ids)}
    pairs = [(i, positions[n]) for i, n in enumerate(tables[0].ids) if n in positions]
    if not pairs:
        raise DataError(
            f"{before} and {after}: no embedding of one has the footprint or key of one of the "
            "other; embed both scenes on one grid"
        )
    ours, theirs = (np.array(side) for side in zip(*pairs, strict=True))
    distance = 1 - paired_cosine(tables[0].vectors[ours], tables[1].vectors[theirs])
    unmatched = len(tables[0].ids) - len(pairs), len(tables[1].ids) - len(pairs)
    if any(unmatched):
        notes = (*notes, f"{unmatched[0]} embeddings of {before.name} and {unmatched[1]} of "
                 f"{after.name} have no counterpart")  # fmt: skip
    geometries = [tables[0].geometries[i] for i in ours]
    grid, cells = _grid_of(geometries)
    if grid is None:
        notes = (*notes, "no raster: the footprints make no grid; embed with --out EMB.tif for one")
    return Distances(
        distance=distance,
        keys=[tables[0].keys[i] for i in ours],
        geometries=geometries,
        grid=grid,
        cells=cells,
        unmatched=unmatched,
        model_hash=model,
        times=(_time_of(tables[0]), _time_of(tables[1])),
        notes=notes,
    )


def _time_of(table: _Table) -> str:
    times = {t for t in table.times if t}
    return times.pop() if len(times) == 1 else ""


def _read_table(path: Path) -> _Table:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    require_regular(path, FormatError)
    with reading(path, FormatError, "write one with multimae-eo embed", form="GeoParquet"):
        with pq.ParquetFile(path) as file:
            lacking = [c for c in _COLUMNS if c not in file.schema_arrow.names]
            if lacking:
                raise FormatError(
                    f"{path}: holds no embeddings, column {lacking[0]!r} is missing; write one "
                    "with multimae-eo embed"
                )
            table = file.read(columns=list(_COLUMNS))
            decode = vector_decoder(file, str(path))
        flat = pc.list_flatten(table["vector"]).to_numpy()
        vectors = decode(flat.reshape(table.num_rows, -1 if table.num_rows else 0))
        columns: dict[str, list[Any]] = table.drop_columns(["vector"]).to_pydict()
    hashes = {h for h in columns["model_hash"] if h}
    if len(hashes) > 1:
        raise ContractError(f"{path}: holds embeddings of {len(hashes)} models; embed again")
    geometries = [
        None if crs is None else Geometry(crs=crs, bounds=tuple(bounds))
        for crs, bounds in zip(columns["crs"], columns["bounds"], strict=True)
    ]
    ids = [_identity(k, g) for k, g in zip(columns["key"], geometries, strict=True)]
    if len(set(ids)) < len(ids):
        raise DataError(
            f"{path}: holds several embeddings of one footprint or key (of several dates?); "
            "compare files of one date each"
        )
    return _Table(
        path=path,
        keys=columns["key"],
        geometries=geometries,
        ids=ids,
        times=columns["time"],
        model_hash=next(iter(hashes), ""),
        vectors=vectors,
    )


def _identity(key: str, geometry: Geometry | None) -> object:
    """What is equal for one location in two files: the footprint to a thousandth of its side."""
    if geometry is None:
        return key
    left, bottom, right, top = geometry.bounds
    step = min(right - left, top - bottom) * _SNAP
    digits = -int(np.floor(np.log10(step)))
    return geometry.crs, *(round(v, digits) + 0.0 for v in geometry.bounds)


def _grid_of(
    geometries: Sequence[Geometry | None],
) -> tuple[Grid | None, npt.NDArray[np.int64]]:
    """The grid whose pixels the footprints are, and each one's row and column; None without."""
    from rasterio.transform import Affine

    none = None, np.zeros((0, 2), np.int64)
    located = [g for g in geometries if g is not None]
    if len(located) < len(geometries) or len({g.crs for g in located}) > 1:
        return none
    bounds = np.array([g.bounds for g in located])
    width, height = bounds[0, 2] - bounds[0, 0], bounds[0, 3] - bounds[0, 1]
    left, top = bounds[:, 0].min(), bounds[:, 3].max()
    corners = np.stack([(top - bounds[:, 3]) / height, (bounds[:, 0] - left) / width], axis=1)
    ends = np.stack([(top - bounds[:, 1]) / height, (bounds[:, 2] - left) / width], axis=1)
    cells = np.rint(corners).astype(np.int64)
    if max(np.abs(corners - cells).max(), np.abs(ends - cells - 1).max()) > _SNAP:
        return none
    if len(np.unique(cells, axis=0)) < len(cells):
        return none
    transform = Affine(width, 0.0, left, 0.0, -height, top)
    rows, cols = (int(v) + 1 for v in cells.max(axis=0))
    return Grid(crs=located[0].crs, transform=transform, height=rows, width=cols), cells
