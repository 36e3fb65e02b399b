"""Windows of STAC items: odc-stac finds the rasters, ``warped`` reads them.

odc-stac's own reader warps each window for itself, which shifts pixels between windows, and ignores
nodata that only STAC declares. This one gives a pixel the same value in any window.
"""

from __future__ import annotations

import datetime
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import odc.stac
import pystac
from odc.geo.geobox import GeoBox
from odc.loader import RioDriver
from odc.loader.types import LocalLoadContext, RasterSource

from multimae_eo.errors import ConfigError, FormatError, MultiMAEError
from multimae_eo.geo import Window
from multimae_eo.sources.raster.calibration import Linear
from multimae_eo.sources.raster.grid import Grid, overlap
from multimae_eo.sources.raster.header import RasterHeader
from multimae_eo.sources.raster.warped import View, open_header, stamp, view_on
from multimae_eo.sources.stac.calibration import raster_record
from multimae_eo.sources.stac.items import StacItem, asset_of
from multimae_eo.sources.yaml_section import as_number, one_line

Slices = tuple[slice, slice]


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How an item's bands are read. ``nodata``: replaces the nodata of files and STAC, if not None.

    ``class_map_nodata``: raw values of the class map that mean nodata in any case. ``dtype``: a
    float type that holds every raw value; NaN where nothing was observed. ``raw``: the dtype that
    every raster must fit into, "" for any.
    """

    grid: Grid
    nodata: tuple[float, ...] | None
    nearest: bool
    dtype: str
    class_map_nodata: tuple[float, ...] = ()
    raw: str = ""


def read_item(
    item: StacItem,
    keys: Sequence[str],
    window: Window,
    options: ReadOptions,
    tags: Sequence[Linear] = (),
) -> npt.NDArray[np.generic]:
    """Bands of an item in a window of ``options.grid``: raw values (C, H, W), NaN where invalid.

    ``tags``: each band's calibration, which the scale and offset tags of its file must not
    contradict; empty to ignore them. FormatError when a raster cannot be read, ConfigError for
    such a contradiction.
    """
    bands = [asset_of(item, key) for key in keys]
    expected = {
        (str(item.assets[name]["href"]), number): linear
        for (name, number), linear in zip(bands, tags, strict=False)
    }
    grid = options.grid
    origin = grid.part(window).transform
    try:
        loaded = odc.stac.load(
            [_plain(item, keys)],
            bands=list(keys),
            geobox=GeoBox((window.height, window.width), origin, grid.crs),
            groupby="id",
            nodata=math.nan,
            dtype=options.dtype,
            resampling="nearest" if options.nearest else "bilinear",
            driver=_Driver(options, _stac_nodata(item, keys), expected),
        )
    except MultiMAEError:
        raise
    # odc-stac raises nearly anything for documents that are not quite STAC.
    except Exception as error:
        raise FormatError(
            f"item {item.id}: cannot be loaded: {one_line(error)}; leave it out, or mend it"
        ) from error
    if not loaded.sizes.get("time"):
        return np.full((len(keys), window.height, window.width), np.nan, dtype=options.dtype)
    values = np.stack([loaded[key].values[0] for key in keys])
    for value in (*(options.nodata or ()), *options.class_map_nodata):
        values[values == value] = np.nan
    return values


def _plain(item: StacItem, keys: Sequence[str]) -> pystac.Item:
    """The item with what is needed to find its rasters.

    Its other fields would let odc-stac fill gaps with nodata, drop windows beside a rounded
    footprint, or miss bands that nobody described.
    """
    west, south, east, north = item.bbox
    margin = 0.1 * max(east - west, north - south)
    west, east = max(-180.0, west - margin), min(180.0, east + margin)
    south, north = max(-90.0, south - margin), min(90.0, north + margin)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    plain = pystac.Item(
        item.id,
        {"type": "Polygon", "coordinates": [ring]},
        [west, south, east, north],
        datetime.datetime.fromisoformat(item.time),
        {},
    )
    counts: dict[str, int] = {}
    for name, number in (asset_of(item, key) for key in keys):
        counts[name] = max(number, counts.get(name, 0))
    for name, count in counts.items():
        fields: dict[str, object] = {"bands": [{} for _ in range(count)]}
        href = str(item.assets[name]["href"])
        plain.add_asset(
            name, pystac.Asset(href, media_type="image/tiff", roles=["data"], extra_fields=fields)
        )
    return plain


def _stac_nodata(item: StacItem, keys: Sequence[str]) -> dict[tuple[str, int], float]:
    """Nodata of the item's metadata, by link and band."""
    nodata = {}
    for key in keys:
        name, number = asset_of(item, key)
        value = as_number(raster_record(item.assets[name], number).get("nodata"))
        if value is not None:
            nodata[str(item.assets[name]["href"]), number] = value
    return nodata


class _Driver(RioDriver):
    """odc-stac's driver, with a reader of our own."""

    def __init__(
        self,
        options: ReadOptions,
        nodata: Mapping[tuple[str, int], float],
        expected: Mapping[tuple[str, int], Linear],
    ) -> None:
        super().__init__()
        self._options, self._nodata, self._expected = options, nodata, expected

    def open(  # type: ignore[override]  # RioDriver names its own class, the protocol none
        self, src: RasterSource, ctx: LocalLoadContext
    ) -> _Reader:
        """A reader of one band of one asset."""
        nodata = self._nodata.get((src.uri, src.band))
        nodata_values = (
            self._options.class_map_nodata
            if nodata is None
            else (nodata, *self._options.class_map_nodata)
        )
        return _Reader(
            src.uri, src.band, self._options, nodata_values, self._expected.get((src.uri, src.band))
        )


class _Reader:
    """Reads a band of an asset into a part of a chip."""

    def __init__(
        self,
        uri: str,
        band: int,
        options: ReadOptions,
        nodata_values: tuple[float, ...],
        expected: Linear | None,
    ) -> None:
        self._uri, self._band, self._options, self._nodata_values = (
            uri,
            band,
            options,
            nodata_values,
        )
        self._expected = expected

    def read(
        self, cfg: object, dst_geobox: GeoBox, *, dst: object = None, selection: object = None
    ) -> tuple[Slices, npt.NDArray[np.generic]]:
        """The part of ``dst_geobox`` that the raster covers, and its pixels."""
        options = self._options
        header, view = _view(self._uri, stamp(self._uri), options, self._nodata_values)
        self._check(header)
        col, row = ~options.grid.transform @ (dst_geobox.transform.c, dst_geobox.transform.f)
        height, width = dst_geobox.shape
        asked = Window(row=round(row), col=round(col), height=height, width=width)
        part = None if view is None else overlap(asked, view.covers)
        if view is None or part is None:
            return (slice(0, 0), slice(0, 0)), np.zeros((0, 0), dtype=options.dtype)
        pixels, seen = view.read((self._band,), part)
        values = np.where(seen[0], pixels[0], math.nan).astype(options.dtype)
        rows = slice(part.row - asked.row, part.row - asked.row + part.height)
        cols = slice(part.col - asked.col, part.col - asked.col + part.width)
        return (rows, cols), values

    def _check(self, header: RasterHeader) -> None:
        """Check dtype and tags of this file, which may differ from those of the first item."""
        raw = self._options.raw
        if raw and not np.can_cast(header.dtype, np.dtype(raw)):
            raise FormatError(
                f"{self._uri}: dtype {header.dtype}, but {raw} in the first item; narrow "
                "the dates or collections to one product"
            )
        expected = self._expected
        if expected is None or not 0 < self._band <= header.count:
            return
        band = header.bands[self._band - 1]
        for what, tag, used in (
            ("scale", band.scale, expected.scale),
            ("offset", band.offset, expected.offset),
        ):
            if tag is not None and not math.isclose(tag, used, rel_tol=1e-6):
                raise ConfigError(
                    f"{self._uri}: the file's tag has {what} {tag:g}, the STAC item or file "
                    f"{used:g}; mend it, or add `check_calibration: false`"
                )


@functools.lru_cache(maxsize=4096)
def _view(
    uri: str, written: int, options: ReadOptions, nodata_values: tuple[float, ...]
) -> tuple[RasterHeader, View | None]:
    """A file's header, and its view on the grid.

    ``written``: the file's ``stamp``, so that a replaced file is read again.
    """
    header = open_header(uri)
    return header, view_on(
        uri,
        options.grid,
        nodata=options.nodata,
        class_map_nodata=nodata_values,
        nearest=options.nearest,
    )
