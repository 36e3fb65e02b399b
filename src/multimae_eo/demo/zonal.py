"""Statistics of a layer's pixels whose centres lie in a rectangle of the web map."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.demo.map_layers import HALF, MERCATOR, Array, Bounds, MapLayer, observed
from multimae_eo.geo import Window
from multimae_eo.sources.raster.grid import Grid
from multimae_eo.statistics import Moments

EXACT = 1 << 24
"""Most pixels in a rectangle that are read one by one; of more, a coarse copy is counted."""
_STRIP = 1 << 20
# Points on each side of the rectangle, which is curved in other projections.
_SIDE = 256
_RADIUS, _ECCENTRICITY2 = 6378137.0, 0.00669437999014


@dataclass(frozen=True, kw_only=True)
class ZonalStatistics:
    """``pixels`` of the layer that are observed, and their ``area`` in m². Per class ``counts`` and
    ``areas``, (classes,), or ``moments`` of the bands. ``estimated``: of a coarse copy."""

    pixels: int
    area: float
    counts: npt.NDArray[np.int64]
    areas: npt.NDArray[np.float64]
    moments: Moments
    estimated: bool


def zonal_statistics(
    layer: MapLayer, bounds: Bounds, check: Callable[[], None] = lambda: None
) -> ZonalStatistics:
    """Statistics in a rectangle, in Web-Mercator metres. ``check``: called between strips."""
    classes = len(layer.modality.classes)
    counts, areas = np.zeros(classes, np.int64), np.zeros(classes)
    moments = Moments.empty(layer.modality.channels)
    pixels, area = 0, 0.0
    zone = _zone_of(layer.grid, bounds)
    estimated = zone is not None and zone.window.height * zone.window.width > EXACT
    for values, pixel_areas in _strips(layer, bounds, zone, coarse=estimated):
        check()
        ok = observed(values) & (pixel_areas > 0)
        pixels, area = pixels + int(ok.sum()), area + float(pixel_areas[ok].sum())
        if layer.modality.categorical:
            ids = values[0][ok].astype(np.int64)
            counts += np.bincount(ids, minlength=classes)
            areas += np.bincount(ids, pixel_areas[ok], classes)
        else:
            moments = moments.merge(Moments.of(values, ok[None]))
    return ZonalStatistics(
        pixels=pixels, area=area, counts=counts, areas=areas, moments=moments, estimated=estimated
    )


def rectangle_area(bounds: Bounds) -> float:
    """Square metres on the WGS 84 ellipsoid of a rectangle in Web-Mercator metres."""
    west, south, east, north = bounds
    e = math.sqrt(_ECCENTRICITY2)

    def zone(y: float) -> float:
        sine = math.tanh(y / _RADIUS)  # of the latitude
        ratio = math.log((1 + e * sine) / (1 - e * sine)) / (2 * e)
        return sine / (1 - _ECCENTRICITY2 * sine**2) + ratio

    squared = _RADIUS**2 * (1 - _ECCENTRICITY2)
    return squared / 2 * (east - west) / _RADIUS * (zone(north) - zone(south))


def pixel_areas(grid: Grid, window: Window) -> npt.NDArray[np.float64]:
    """Square metres of a pixel in each row of a window, (height, 1).

    On the ellipsoid for degrees and Web Mercator, whose scale changes with latitude; otherwise in
    the units of the projection, as for UTM.
    """
    from rasterio.crs import CRS

    crs, t = CRS.from_user_input(grid.crs), grid.transform
    rows = window.row + np.arange(window.height) + 0.5
    y = t.d * (window.col + window.width / 2) + t.e * rows + t.f
    size = np.full(len(rows), abs(t.a * t.e - t.b * t.d))
    if crs.is_geographic:
        lat = np.radians(y)
        on_sphere = size * (math.pi / 180 * _RADIUS) ** 2 * np.cos(lat)
    elif crs == CRS.from_user_input(MERCATOR):
        lat = np.arctan(np.sinh(y / _RADIUS))
        on_sphere = size * np.cos(lat) ** 2
    else:
        return np.asarray((size * crs.linear_units_factor[1] ** 2)[:, None], np.float64)
    flattened = (1 - _ECCENTRICITY2) / (1 - _ECCENTRICITY2 * np.sin(lat) ** 2) ** 2
    return np.asarray((on_sphere * flattened)[:, None], np.float64)


@dataclass(frozen=True)
class _Zone:
    """The pixels of a grid that a rectangle touches; ``ring``: its outline in the grid's CRS, None
    where it contains the grid."""

    window: Window
    ring: list[tuple[float, float]] | None

    def inside(self, grid: Grid, window: Window) -> npt.NDArray[np.bool_]:
        """Whether the centres of a window's pixels lie in the rectangle: bool (height, width)."""
        from rasterio.features import geometry_mask

        shape = (window.height, window.width)
        if self.ring is None:
            return np.ones(shape, np.bool_)
        polygon = {"type": "Polygon", "coordinates": [self.ring]}
        mask = geometry_mask([polygon], shape, grid.part(window).transform, invert=True)
        return np.asarray(mask, np.bool_)


def _zone_of(grid: Grid, bounds: Bounds) -> _Zone | None:
    """None where the rectangle and the grid do not meet."""
    extent, pixel = _extent(grid)
    west, south, east, north = bounds
    if west <= extent[0] and south <= extent[1] and east >= extent[2] and north >= extent[3]:
        return _Zone(grid.extent, None)
    # Beyond the grid a projection need not reach.
    west, south = max(west, extent[0] - pixel), max(south, extent[1] - pixel)
    east, north = min(east, extent[2] + pixel), min(north, extent[3] + pixel)
    if west >= east or south >= north:
        return None
    ring = _outline((west, south, east, north), grid.crs)
    xs, ys = [x for x, _ in ring], [y for _, y in ring]
    if not ring or not all(map(math.isfinite, [*xs, *ys])):
        return None
    window = grid.window_of((min(xs), min(ys), max(xs), max(ys)), margin=1)
    return None if window is None else _Zone(window, ring)


def _extent(grid: Grid) -> tuple[Bounds, float]:
    """A grid's bounds in Web Mercator, as far as it reaches, and the side of a pixel there."""
    from rasterio.warp import transform_bounds

    bounds = transform_bounds(grid.crs, MERCATOR, *grid.footprint(grid.extent).bounds)
    left, bottom, right, top = (
        min(max(v, -HALF), HALF) if not math.isnan(v) else 0.0 for v in bounds
    )
    return (left, bottom, right, top), (right - left) / grid.width


def _outline(bounds: Bounds, crs: str) -> list[tuple[float, float]]:
    """The outline of a rectangle, with points between its corners, in another CRS."""
    from rasterio._err import CPLE_BaseError
    from rasterio.warp import transform

    west, south, east, north = bounds
    along, up = np.linspace(west, east, _SIDE), np.linspace(south, north, _SIDE)
    xs = [*along, *np.full(_SIDE, east), *along[::-1], *np.full(_SIDE, west)]
    ys = [*np.full(_SIDE, south), *up, *np.full(_SIDE, north), *up[::-1]]
    try:
        easting, northing = transform(MERCATOR, crs, xs, ys)
    except CPLE_BaseError:
        return []
    return list(zip(easting, northing, strict=True))


def _strips(
    layer: MapLayer, bounds: Bounds, zone: _Zone | None, *, coarse: bool
) -> Iterator[tuple[Array, npt.NDArray[np.float64]]]:
    """Values (C, h, W) and areas (h, W), 0 outside the rectangle, from north to south."""
    if zone is None:
        return
    if coarse:
        values, grid = layer.thinned()
        window = Window(row=0, col=0, height=values.shape[1], width=values.shape[2])
        thinned = _zone_of(grid, bounds) or zone
        yield values, pixel_areas(grid, window) * thinned.inside(grid, window)
        return
    step = max(1, _STRIP // zone.window.width)
    bottom = zone.window.row + zone.window.height
    for row in range(zone.window.row, bottom, step):
        height = min(step, bottom - row)
        window = Window(row=row, col=zone.window.col, height=height, width=zone.window.width)
        inside = zone.inside(layer.grid, window)
        if inside.any():
            yield layer.read(window), pixel_areas(layer.grid, window) * inside


def plain(statistics: ZonalStatistics, layer: MapLayer, bounds: Bounds) -> dict[str, Any]:
    """Statistics ready for JSON. ``share``: of the rectangle; of a class: of observed pixels."""
    modality, total = layer.modality, max(statistics.area, 1e-9)
    bands = []
    if not modality.categorical and statistics.pixels:
        m = statistics.moments
        bands = [
            {"name": n, "mean": float(m.mean[i]), "std": float(m.std[i]),
             "least": float(m.minimum[i]), "greatest": float(m.maximum[i])}
            for i, n in enumerate(modality.band_names)
        ]  # fmt: skip
    return {
        "hectares": statistics.area / 1e4,
        # The area of a projection's pixels differs a little from that on the ellipsoid.
        "share": min(1.0, statistics.area / max(rectangle_area(bounds), 1e-9)),
        "pixels": statistics.pixels,
        "estimated": statistics.estimated,
        "unit": modality.unit,
        "classes": [
            {"index": i, "pixels": int(n), "hectares": float(a) / 1e4, "share": float(a) / total}
            for i, (n, a) in enumerate(zip(statistics.counts, statistics.areas, strict=True))
            if n > 0
        ],
        "bands": bands,
    }
