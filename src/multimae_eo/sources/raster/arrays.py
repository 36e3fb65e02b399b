"""Zarr and NetCDF cubes, and xarray objects, as rasters: what GDAL's datasets offer, from arrays.

Conventions are those of CF and rioxarray: spatial dimensions and their coordinates, the CRS in the
grid mapping, ``_FillValue``, ``scale_factor`` and ``add_offset``. Arrays are opened undecoded, so
that headers obey them as they obey a GeoTIFF's tags. Only the windows that are asked for are read.

A cube is named ``cube.zarr``, one of its variables ``cube.zarr::red``, several of one grid
``cube.zarr::red+nir``, one of its dates ``cube.zarr@2021-05-27`` or ``cube.zarr::red@2021-05-27``.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, FormatError, did_you_mean

if TYPE_CHECKING:
    # Of an optional extra.
    from xarray import DataArray, Dataset

CUBE_SUFFIXES = (".zarr", ".nc", ".nc4", ".cdf")
_NAME = re.compile(
    r"(?P<file>.+?(?:\.zarr|\.nc|\.nc4|\.cdf|\.xarray))(?:::(?P<names>[^@]+))?(?:@(?P<time>.+))?",
    re.IGNORECASE,
)
_ZARR_MARKS = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")
_Y_NAMES = ("y", "lat", "latitude", "northing")
_X_NAMES = ("x", "lon", "longitude", "easting")
_TIME_NAMES = ("time", "t", "date", "datetime")
_ANONYMOUS = ("", "__xarray_dataarray_variable__", "band_data")
_MAPPING_ATTRIBUTES = {"crs_wkt", "spatial_ref", "grid_mapping_name"}
_SNAP = 1e-3  # of a pixel

_registered: weakref.WeakValueDictionary[str, ArrayHolder] = weakref.WeakValueDictionary()
_numbers = itertools.count()


class ArrayHolder:
    """An xarray object in memory that scenes and headers find by ``path`` while this lives."""

    def __init__(self, data: Any) -> None:
        self.data = data.to_dataset(name=data.name or "band_data") if is_array(data) else data
        self.path = Path(f"memory-{os.getpid()}-{next(_numbers)}.xarray")
        _registered[str(self.path)] = self

    @property
    def decoded(self) -> bool:
        """Whether xarray has applied a scale: values are physical."""
        variables = self.data.variables.values()
        return any(
            "scale_factor" in v.encoding and "scale_factor" not in v.attrs for v in variables
        )

    def __getstate__(self) -> dict[str, object]:
        return {"data": self.data, "path": self.path}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        _registered[str(self.path)] = self

    def stamp(self) -> str:
        """Changes with what the arrays hold, as far as that can be seen without computing them."""
        digest = hashlib.sha256(repr(self.data).encode())
        for variable in self.data.variables.values():
            data = variable._data
            token = getattr(data, "name", None)
            if isinstance(data, np.ndarray) and data.dtype.kind != "O":
                digest.update(np.ascontiguousarray(data).data)
            elif isinstance(token, str):  # of a Dask graph
                digest.update(token.encode())
        return digest.hexdigest()


def is_array(data: object) -> bool:
    """Whether an object is an ``xarray.DataArray``, without importing xarray."""
    return _is_xarray(data, "DataArray")


def is_xarray(data: object) -> bool:
    """Whether an object is an ``xarray.DataArray`` or ``Dataset``, without importing xarray."""
    return is_array(data) or _is_xarray(data, "Dataset")


def _is_xarray(data: object, name: str) -> bool:
    kinds = type(data).__mro__
    return any(k.__name__ == name and k.__module__.startswith("xarray.") for k in kinds)


@dataclass(frozen=True, kw_only=True)
class CubeName:
    """A cube's name, taken apart. ``names``: of variables, all where empty. ``time``: a date."""

    file: str
    names: tuple[str, ...] = ()
    time: str = ""

    def __str__(self) -> str:
        names = f"::{'+'.join(self.names)}" if self.names else ""
        return f"{self.file}{names}" + (f"@{self.time}" if self.time else "")


def cube_name(path: Path | str) -> CubeName | None:
    """The parts of a path that names a cube, None for any other."""
    text = str(path)
    match = _NAME.fullmatch(text)
    if match is not None and (match["file"] in _registered or not os.path.isfile(text)):
        names = tuple(n.strip() for n in (match["names"] or "").split("+") if n.strip())
        return CubeName(file=match["file"], names=names, time=match["time"] or "")
    if text.lower().endswith(CUBE_SUFFIXES):
        return CubeName(file=text)
    if os.path.isdir(text) and any(os.path.isfile(os.path.join(text, m)) for m in _ZARR_MARKS):
        return CubeName(file=text)
    return None


def cube_stamp(path: Path | str) -> int | None:
    """When a cube was written, 0 for one in memory; None for a path that names no cube."""
    name = cube_name(path)
    if name is None:
        return None
    if name.file in _registered:
        return 0
    marks = [os.path.join(name.file, m) for m in _ZARR_MARKS]
    times = [os.stat(p).st_mtime_ns for p in (name.file, *marks) if os.path.exists(p)]
    return max(times, default=0)


def cube_rasters(path: Path) -> tuple[Path, ...]:
    """The rasters of a cube: variables of one grid and dtype are the bands of one of them.

    Raises as ``open_array``.
    """
    name = cube_name(path)
    assert name is not None
    groups: dict[Hashable, list[str]] = {}
    for variable, data in _variables(name).items():
        spatial = _spatial_dims(data, str(path))
        others = tuple(d for d in data.dims if d not in spatial and not _is_time(data, d))
        group = (spatial, str(data.dtype), variable if others else "")
        groups.setdefault(group, []).append(variable)
    return tuple(
        Path(str(CubeName(file=name.file, names=tuple(names), time=name.time)))
        for names in groups.values()
    )


def cube_time(path: Path) -> str | None:
    """The one date of a cube's rasters in ISO form, None without a time coordinate."""
    name = cube_name(path)
    assert name is not None
    for data in _variables(name).values():
        for time in _TIME_NAMES:
            if time in data.coords and data.coords[time].dtype.kind == "M" and not data[time].ndim:
                return str(np.datetime_as_string(data[time].values, unit="s"))
    return None


def dated_cubes(path: Path) -> list[tuple[str, Path]]:
    """The dates of a cube in ISO form, in order, and its name at each; none of a cube of one date.

    A date in the path, such as ``@2021`` or ``@2021-07``, takes those that begin with it. Raises as
    ``open_array``.
    """
    name = cube_name(path)
    assert name is not None
    rasters = _rasters(_data(name))
    dates: set[str] = set()
    for variable in name.names or tuple(rasters):
        if variable in rasters:
            data = rasters[variable]
            for dim in [d for d in data.dims if _is_time(data, d)][:1]:
                dates |= set(_dates_of(data, dim, f"{name.file}: {variable}"))
    chosen = sorted(d for d in dates if d.startswith(name.time))
    if len(chosen) < 2:
        return []
    return [(d, Path(str(CubeName(file=name.file, names=name.names, time=d)))) for d in chosen]


def open_array(path: Path | str) -> ArrayDataset:
    """A cube's raster. FormatError for arrays that are none: other dimensions, axes that are not
    sorted and even, several dates of which none is chosen, times that are text, swapped axes."""
    name = cube_name(path)
    assert name is not None
    variables = _variables(name)
    spatial = {_spatial_dims(v, str(path)) for v in variables.values()}
    dtypes = {str(v.dtype) for v in variables.values()}
    if len(spatial) > 1 or len(dtypes) > 1:
        listed = ", ".join(f"{n} ({v.dtype})" for n, v in variables.items())
        raise FormatError(
            f"{path}: its variables have several grids or dtypes: {listed}; name those of one, "
            f"such as {name.file}::{next(iter(variables))}"
        )
    return ArrayDataset(str(path), variables, next(iter(spatial)))


# What is in a cube ------------------------------------------------------------------------------


def _variables(name: CubeName) -> dict[str, DataArray]:
    """The named variables of a cube that are rasters, of the named date."""
    data = _data(name)
    rasters = _rasters(data)
    for requested in name.names:
        if requested not in rasters:
            raise FormatError(
                f"{name.file}: no variable {requested!r}; {did_you_mean(requested, rasters)}"
            )
    chosen = {n: rasters[n] for n in name.names} if name.names else rasters
    if not chosen:
        raise FormatError(f"{name.file}: no variable has two dimensions; it holds no raster")
    return {n: _at_time(v, name) for n, v in chosen.items()}


def _rasters(data: Dataset) -> dict[str, DataArray]:
    """The variables that have rows and columns."""
    return {
        str(n): v
        for n, v in data.data_vars.items()
        if v.ndim >= 2 and not _MAPPING_ATTRIBUTES & v.attrs.keys()
    }


def _data(name: CubeName) -> Dataset:
    if name.file in _registered:
        return _with_mapping(_registered[name.file].data)
    if name.file.endswith(".xarray"):
        raise FormatError(
            f"{name.file}: the xarray object is gone; keep its scene, or write a Zarr"
        )
    if not os.path.exists(name.file):
        raise FormatError(f"{name.file}: no such file")
    return _with_mapping(_opened(name.file, cube_stamp(name.file) or 0, os.getpid()))


def _with_mapping(data: Dataset) -> Dataset:
    """The grid mapping among the coordinates, also where no variable refers to it."""
    return data.set_coords("spatial_ref") if "spatial_ref" in data.data_vars else data


@functools.lru_cache(maxsize=16)
def _opened(file: str, written: int, process: int) -> Dataset:
    """A cube, undecoded and lazy. ``written``, ``process``: opened again where they differ."""
    try:
        import xarray
    except ImportError as error:
        raise ConfigError(
            f"{file}: Zarr and NetCDF need xarray: pip install 'multimae-eo[xarray]'"
        ) from error
    zarr = os.path.isdir(file)
    try:
        return xarray.open_dataset(
            file,
            engine="zarr" if zarr else None,
            chunks=None,
            cache=False,
            mask_and_scale=False,
            decode_coords="all",
        )
    except ImportError as error:
        raise ConfigError(
            f"{file}: needs a library: {error}; pip install 'multimae-eo[xarray]'"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())
        if "engine" in reason and "installed" in reason:
            reason = "no NetCDF, or pip install 'multimae-eo[xarray]' for its reader"
        raise FormatError(
            f"{file}: cannot be read as {'Zarr' if zarr else 'NetCDF'}: {reason[:200]}; "
            "restore the file"
        ) from error


def _is_time(data: DataArray, dim: Hashable) -> bool:
    coordinate = data.coords.get(dim)
    dated = coordinate is not None and coordinate.dtype.kind == "M"
    return dated or str(dim).lower() in _TIME_NAMES


def _at_time(data: DataArray, name: CubeName) -> DataArray:
    """The variable at the named date; the only one where none is named."""
    dims = [d for d in data.dims if _is_time(data, d)]
    if not dims:
        return data
    dim, where = dims[0], f"{name.file}: {data.name}"
    dates = _dates_of(data, dim, where)
    listed = ", ".join(d[:10] for d in dates[:6]) + (", …" if len(dates) > 6 else "")
    matches = [i for i, d in enumerate(dates) if d.startswith(name.time)]
    if len(matches) != 1:
        problem = f"no date {name.time!r}" if not matches else f"{len(matches)} dates"
        example = CubeName(file=name.file, names=name.names, time=dates[0][:10] if dates else "")
        raise FormatError(
            f"{where}: {problem} (it holds {listed or 'none'}); name one: {example}, or select it "
            f"with .sel({dim}=…)"
        )
    return data.isel({dim: matches[0]})


def _dates_of(data: DataArray, dim: Hashable, where: str) -> list[str]:
    """The dates along a dimension in ISO form, to the second."""
    times = data.coords.get(dim)
    if times is None or times.dtype.kind != "M":
        first = "no values" if times is None or not times.size else repr(times.values[0])
        raise FormatError(
            f"{where}: {dim!r} holds {first}, not dates; convert it: "
            f"ds[{str(dim)!r}] = pandas.to_datetime(ds[{str(dim)!r}])"
        )
    return [str(np.datetime_as_string(t, unit="s")) for t in times.values]


def _spatial_dims(data: DataArray, where: str) -> tuple[str, str]:
    """The names of the dimensions of rows and columns."""
    rows = [str(d) for d in data.dims if _is_axis(data, d, "y", _Y_NAMES)]
    columns = [str(d) for d in data.dims if _is_axis(data, d, "x", _X_NAMES)]
    if len(rows) != 1 or len(columns) != 1:
        raise FormatError(
            f"{where}: {data.name}: which of its dimensions ({', '.join(map(str, data.dims))}) are "
            "rows and columns? rename them to y and x"
        )
    return rows[0], columns[0]


def _is_axis(data: DataArray, dim: Hashable, axis: str, names: Sequence[str]) -> bool:
    coordinate = data.coords.get(dim)
    attributes = {} if coordinate is None else coordinate.attrs
    declared = str(attributes.get("axis", "")).lower()
    standard = str(attributes.get("standard_name", ""))
    if standard == f"projection_{axis}_coordinate" or declared == axis:
        return True
    return str(dim).lower() in names


# A raster of a cube -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _ArrayBand:
    """A band: its variable, and its index along the variable's third dimension (None without)."""

    variable: str
    index: int | None
    name: str
    scale: float
    offset: float
    nodata: float | None
    unit: str


class ArrayDataset:
    """The part of rasterio's dataset interface that headers and windows read, from arrays."""

    driver = "xarray"

    def __init__(
        self, path: str, variables: Mapping[str, DataArray], spatial: tuple[str, str]
    ) -> None:
        self.name = path
        rows, columns = spatial
        self._dims = spatial
        self._arrays = {n: _ordered(v, spatial, path) for n, v in variables.items()}
        first = next(iter(self._arrays.values()))
        self.height, self.width = first.sizes[rows], first.sizes[columns]
        self._bands = [b for n, v in self._arrays.items() for b in _bands(n, v, spatial, path)]
        self.count = len(self._bands)
        kind = np.dtype("uint8") if first.dtype.kind == "b" else first.dtype.newbyteorder("=")
        self.dtypes = (str(kind),) * self.count
        self.crs = _crs(first, path)
        self.transform = _transform(first, spatial, self.crs, path)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def descriptions(self) -> tuple[str, ...]:
        """Names of the bands."""
        return tuple(b.name for b in self._bands)

    @property
    def scales(self) -> tuple[float, ...]:
        """``scale_factor`` of each band."""
        return tuple(b.scale for b in self._bands)

    @property
    def offsets(self) -> tuple[float, ...]:
        """``add_offset`` of each band."""
        return tuple(b.offset for b in self._bands)

    @property
    def nodatavals(self) -> tuple[float | None, ...]:
        """``_FillValue`` of each band."""
        return tuple(b.nodata for b in self._bands)

    @property
    def units(self) -> tuple[str, ...]:
        """Units of the bands."""
        return tuple(b.unit for b in self._bands)

    @property
    def colorinterp(self) -> list[object]:
        """Nothing is known of colours."""
        return [SimpleNamespace(name="undefined")] * self.count

    @property
    def mask_flag_enums(self) -> list[list[object]]:
        """No mask beside nodata."""
        return [[SimpleNamespace(name="all_valid")]] * self.count

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top, as the axes run."""
        left, top = self.transform @ (0, 0)
        right, bottom = self.transform @ (self.width, self.height)
        return left, bottom, right, top

    def tags(self) -> dict[str, str]:
        """None."""
        return {}

    def read(self, bands: Sequence[int], window: Any = None) -> npt.NDArray[np.generic]:
        """1-based bands of a window ((row, row), (column, column)): (C, H, W)."""
        rows, columns = window or ((0, self.height), (0, self.width))
        part = {self._dims[0]: slice(*rows), self._dims[1]: slice(*columns)}
        pixels = np.empty((len(bands), rows[1] - rows[0], columns[1] - columns[0]), self.dtypes[0])
        chosen = [self._bands[b - 1] for b in bands]
        try:
            for variable in dict.fromkeys(b.variable for b in chosen):
                slots = [i for i, b in enumerate(chosen) if b.variable == variable]
                array = self._arrays[variable].isel(part)
                if array.ndim == 2:
                    pixels[slots] = np.asarray(array.values)[None]
                else:
                    indices = [chosen[i].index for i in slots]
                    pixels[slots] = np.asarray(array.isel({array.dims[0]: indices}).values)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise FormatError(
                f"{self.name}: cannot be read: {' '.join(str(error).split())[:200]}; restore it"
            ) from error
        return pixels

    def close(self) -> None:
        """Nothing is held: cubes stay open for other rasters of them."""

    def __enter__(self) -> ArrayDataset:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _ordered(data: DataArray, spatial: tuple[str, str], path: str) -> DataArray:
    """The variable as (rows, columns) or (bands, rows, columns), still lazy."""
    others = [d for d in data.dims if d not in spatial]
    if len(others) > 1:
        raise FormatError(
            f"{path}: {data.name}: besides rows and columns it has the dimensions "
            f"{', '.join(map(str, others))}; select one of each, so that only bands are left"
        )
    if str(data.attrs.get("_Unsigned", "")).lower() == "true" and data.dtype.kind == "i":
        raise FormatError(f"{path}: {data.name}: is marked _Unsigned; store it as u{data.dtype}")
    return data.transpose(*others, *spatial)


def _bands(name: str, data: DataArray, spatial: tuple[str, str], path: str) -> list[_ArrayBand]:
    others = [d for d in data.dims if d not in spatial]
    count = data.sizes[others[0]] if others else 1
    attributes = data.attrs
    scales = _per_band(attributes, ("scales", "scale_factor"), 1.0, count, path)
    offsets = _per_band(attributes, ("offsets", "add_offset"), 0.0, count, path)
    nodata = _nodata(attributes, f"{path}: {name}")
    units = _texts(attributes.get("units", ""), count)
    return [
        _ArrayBand(
            variable=name,
            index=i if others else None,
            name=label,
            scale=scales[i],
            offset=offsets[i],
            nodata=nodata,
            unit=units[i],
        )
        for i, label in enumerate(_labels(name, data, others, count))
    ]


def _labels(name: str, data: DataArray, others: Sequence[Hashable], count: int) -> list[str]:
    """Names of the bands: the band coordinate's texts, else ``long_name``, else the variable's."""
    if others:
        coordinate = data.coords.get(others[0])
        if coordinate is not None and coordinate.dtype.kind in "OUT":
            return [str(v) for v in coordinate.values]
        texts = _texts(data.attrs.get("long_name", ""), count)
        return texts if count > 1 or texts[0] else [name]
    if name in _ANONYMOUS:
        return _texts(data.attrs.get("long_name", ""), 1)
    return [name]


def _texts(value: object, count: int) -> list[str]:
    if isinstance(value, str):
        return [value if count == 1 else ""] * count
    texts = [str(v) for v in value] if isinstance(value, Sequence | np.ndarray) else []
    return texts if len(texts) == count else [""] * count


def _per_band(
    attributes: Mapping[str, object], names: Sequence[str], default: float, count: int, path: str
) -> list[float]:
    """A number of each band from the first attribute that is there."""
    for name in names:
        if name in attributes:
            values = [float(v) for v in np.atleast_1d(np.asarray(attributes[name], np.float64))]
            if len(values) not in (1, count):
                raise FormatError(f"{path}: {name} has {len(values)} values for {count} bands")
            return values * count if len(values) == 1 else values
    return [default] * count


def _nodata(attributes: Mapping[str, object], where: str) -> float | None:
    for name in ("_FillValue", "missing_value", "nodata"):
        value = attributes.get(name)
        if value is None:
            continue
        try:
            values = np.unique(np.asarray(value, np.float64))
        except (TypeError, ValueError):
            raise FormatError(f"{where}: {name} is {value!r}, not a number") from None
        if len(values) != 1:
            raise FormatError(f"{where}: {name} has {len(values)} values; leave one")
        return float(values[0])
    return None


# Where it lies ----------------------------------------------------------------------------------


def _mapping(data: DataArray) -> Mapping[str, Any]:
    """Attributes of the grid mapping, empty where there is none."""
    name = data.attrs.get("grid_mapping") or data.encoding.get("grid_mapping") or "spatial_ref"
    coordinate = data.coords.get(str(name).split(":")[0].strip())
    return {} if coordinate is None else coordinate.attrs


def _crs(data: DataArray, path: str) -> Any:
    """rasterio's CRS, None where none is declared."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    attributes = _mapping(data)
    text = attributes.get("crs_wkt") or attributes.get("spatial_ref") or data.attrs.get("crs")
    if text is None and "epsg" in data.coords and not data.coords["epsg"].ndim:
        text = int(data.coords["epsg"])
    if text is None or not str(text):
        return None
    try:
        return CRS.from_user_input(text if isinstance(text, int) else str(text))
    except CRSError as error:
        raise FormatError(
            f"{path}: {str(text)[:60]!r} is no CRS; write it again with .rio.write_crs"
        ) from error


def _transform(data: DataArray, spatial: tuple[str, str], crs: Any, path: str) -> Any:
    """From the coordinates of pixel centres; the grid mapping's ``GeoTransform`` where it is the
    same, which is exact. The identity without either."""
    from rasterio.transform import Affine

    declared = _declared_transform(_mapping(data).get("GeoTransform"))
    if not all(d in data.coords for d in spatial):
        return declared or Affine.identity()
    y, x = (_axis_values(data.coords[d], str(d), path) for d in spatial)
    if crs is not None and crs.is_geographic:
        _require_degrees(data, spatial, (y, x), path)
    steps = []
    for dim, values, step in ((spatial[0], y, declared and declared.e),
                              (spatial[1], x, declared and declared.a)):  # fmt: skip
        if len(values) < 2 and not step:
            raise FormatError(f"{path}: {dim!r} has one value, so that no pixel size is known")
        steps.append((values[-1] - values[0]) / (len(values) - 1) if len(values) > 1 else step)
    down, across = (float(s) for s in steps)
    left, top = float(x[0]) - across / 2, float(y[0]) - down / 2
    made = Affine(across, 0.0, left, 0.0, down, top)
    if declared is not None:
        shift = abs(declared.c - left) / abs(across), abs(declared.f - top) / abs(down)
        sizes = abs(declared.a / across - 1) * len(x), abs(declared.e / down - 1) * len(y)
        if max(*shift, *sizes) < _SNAP:
            return declared
    return made


def _declared_transform(text: object) -> Any:
    from rasterio.transform import Affine

    try:
        values = [float(v) for v in str(text).split()]
    except ValueError:
        return None
    if len(values) != 6 or not values[1] or not values[5] or values[2] or values[4]:
        return None
    return Affine.from_gdal(*values)


def _axis_values(coordinate: DataArray, dim: str, path: str) -> npt.NDArray[np.float64]:
    """Coordinates of pixel centres; FormatError unless sorted and even."""
    where = f"{path}: {dim!r}"
    if coordinate.ndim != 1 or coordinate.dtype.kind not in "iuf":
        raise FormatError(
            f"{where}: expected numbers along one dimension, got {coordinate.dtype} of shape "
            f"{coordinate.shape}"
        )
    values: npt.NDArray[np.float64] = coordinate.values.astype(np.float64)
    if not np.isfinite(values).all():
        raise FormatError(f"{where}: holds values that are not finite")
    steps = np.diff(values)
    if not len(steps):
        return values
    mean = float(steps.mean())
    if not ((steps > 0).all() or (steps < 0).all()):
        first = int(np.flatnonzero(np.sign(steps) != np.sign(steps[0]))[:1].sum())
        raise FormatError(
            f"{where}: is not sorted ({values[first]:g} is followed by {values[first + 1]:g}); "
            f"sort it: .sortby({dim!r})"
        )
    rounding = 4 * np.spacing(np.abs(coordinate.values).max().astype(coordinate.dtype))
    tolerance = _SNAP * abs(mean) + (float(rounding) if coordinate.dtype.kind == "f" else 0.0)
    if np.abs(steps - mean).max() > tolerance:
        raise FormatError(
            f"{where}: is not evenly spaced (steps of {steps.min():g} to {steps.max():g}); "
            "resample it to a regular grid"
        )
    return values


def _require_degrees(
    data: DataArray, spatial: tuple[str, str], axes: Sequence[npt.NDArray[np.float64]], path: str
) -> None:
    """FormatError where rows are longitudes, or degrees lie outside their range."""
    y, x = (data.coords[d].attrs for d in spatial)
    swapped = "degrees_east" in str(y.get("units", "")) or y.get("standard_name") == "longitude"
    swapped = swapped or "degrees_north" in str(x.get("units", ""))
    swapped = swapped or x.get("standard_name") == "latitude"
    beyond = np.abs(axes[0]).max() > 90.0
    if swapped or (beyond and np.abs(axes[1]).max() <= 90.0):
        raise FormatError(
            f"{path}: {spatial[0]!r} ({axes[0][0]:g} to {axes[0][-1]:g}) holds longitudes: "
            "longitude and latitude are swapped; rename them: "
            f".rename({spatial[0]}={spatial[1]!r}, {spatial[1]}={spatial[0]!r})"
        )
    if beyond or np.abs(axes[1]).max() > 360.0:
        raise FormatError(
            f"{path}: coordinates up to {max(np.abs(a).max() for a in axes):g} are no degrees, but "
            "its CRS is geographic; write the CRS that they are in"
        )
