"""Polygons drawn on the page: labels to download, and a map of the scene from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from multimae_eo.class_colors import class_colors
from multimae_eo.demo.drawing import Palette, data_uri, hex_colour, in_palette, ramp
from multimae_eo.demo.few_shot import few_shot_classes
from multimae_eo.demo.map_layers import MERCATOR, frame_over, scene_bounds, warp_array
from multimae_eo.demo.search_service import MOST_PIXELS, FeatureIndex, SearchService
from multimae_eo.errors import ConfigError, DataError
from multimae_eo.modality import Band, ClassMapEntry, Modality
from multimae_eo.reports.pictures import class_picture, ramp_colours, scalar_picture
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.sources.vector.rasterize import rasterize_indices

LabelCrs = Literal["wgs84", "scene"]

COLUMN = "class"
"""The property of the class's name in the labels that are downloaded."""

MOST_EXAMPLES = 600
"""Patches that a map is fitted to; of more, every n-th of each class."""

_WGS84 = "EPSG:4326"
_ENTROPY_RAMP = "magma"
# Digits after the point: a millimetre, in metres and in degrees.
_DIGITS = {"wgs84": 8, "scene": 3}


@dataclass(frozen=True)
class DrawnPolygon:
    """A polygon's class, and its ring of points (x, y) in Web-Mercator metres, not closed."""

    label: str
    ring: Sequence[tuple[float, float]]


class LabelService:
    """Makes GeoJSON of drawn polygons, and a map by the features of ``search``."""

    def __init__(self, scene: Scene, search: SearchService) -> None:
        self.scene, self._search = scene, search

    def geojson(self, polygons: Sequence[DrawnPolygon], crs: LabelCrs) -> dict[str, object]:
        """A GeoJSON FeatureCollection, with the class's name in ``class``.

        ``wgs84``: longitude and latitude, as RFC 7946 wants. ``scene``: the scene's CRS, which
        ``crs`` declares as in GeoJSON of 2008. ConfigError for a ring that crosses itself or has no
        area, and for a scene's CRS without a code.
        """
        target = _WGS84 if crs == "wgs84" else self.scene.grid.crs
        features = [
            {
                "type": "Feature",
                "properties": {"id": number, COLUMN: polygon.label},
                "geometry": _rounded(shape, _DIGITS[crs]),
            }
            for number, (polygon, shape) in enumerate(
                zip(polygons, _shapes(polygons, target), strict=True), start=1
            )
        ]
        declared: dict[str, object] = {}
        if crs == "scene":
            declared = {"crs": {"type": "name", "properties": {"name": _urn(self.scene)}}}
        return {"type": "FeatureCollection", **declared, "features": features}

    def colors(self, names: Sequence[str], palette: Palette) -> list[str]:
        """``#rrggbb`` of each class, by its name: a class map's own where it has all of them."""
        distinct = list(dict.fromkeys(names))
        colors = [hex_colour(c.color) for c in _classes(distinct, palette).classes]
        return [colors[distinct.index(n)] for n in names]

    def map(self, polygons: Sequence[DrawnPolygon], palette: Palette) -> dict[str, object]:
        """A map of the scene from the polygons: the likeliest class of each patch.

        ``map`` and ``entropy`` are PNGs (``data:`` addresses) over ``bounds`` (Web-Mercator
        metres). ``classes``: ``name``, ``color``, ``patches`` of examples, and ``share`` of the
        observed scene. Raises ConfigError for fewer than two classes, and for a class without a
        patch of its own.
        """
        index = self._search.ready()
        names = list(dict.fromkeys(p.label for p in polygons))
        if len(names) < 2:
            raise ConfigError("a map needs polygons of at least two classes")
        cells, observed = self._search.cells_of(index)
        where, labels = self._examples(index, polygons, names)
        fitted = few_shot_classes(cells[where], labels, len(names), cells[observed])
        best = fitted.probability.argmax(axis=1)
        layers = np.full((2, *observed.shape), np.nan, np.float32)
        layers[0][observed] = best
        layers[1][observed] = fitted.entropy / math.log2(len(names))
        frame = frame_over(scene_bounds(self.scene), MOST_PIXELS)
        placed = (self.scene.grid.crs, self.scene.grid.coarser(index.cell).transform)
        drawn = _classes(names, palette)
        nearest = warp_array(layers[:1], placed, frame, nearest=True)[0]
        smooth = warp_array(layers[1:], placed, frame, nearest=False)[0]
        seen = np.isfinite(nearest), np.isfinite(smooth)
        counts, patches = (np.bincount(a, minlength=len(names)) for a in (best, labels))
        return {
            "bounds": list(frame.bounds),
            "map": _uri(class_picture(drawn, np.where(seen[0], nearest, -1)), seen[0]),
            "entropy": _uri(
                scalar_picture(np.where(seen[1], smooth, 0), _ENTROPY_RAMP, 0.0, 1.0), seen[1]
            ),
            "ramp": ramp(ramp_colours(_ENTROPY_RAMP)),
            "entropy_mean": float(fitted.entropy.mean()),
            "classes": [
                {"name": c.name, "color": hex_colour(c.color), "patches": int(n), "share": float(s)}
                for c, n, s in zip(drawn.classes, patches, counts / len(best), strict=True)
            ],
        }

    def _examples(
        self, index: FeatureIndex, polygons: Sequence[DrawnPolygon], names: list[str]
    ) -> tuple[tuple[npt.NDArray[np.intp], ...], npt.NDArray[np.int64]]:
        """Rows and columns of the patches that the polygons label, and their classes.

        A polygon has the patches whose centre it covers, and the one of a point inside it.
        """
        import shapely

        grid = self.scene.grid.coarser(index.cell)
        _, observed = self._search.cells_of(index)
        shapes = _shapes(polygons, grid.crs)
        indices = np.array([names.index(p.label) for p in polygons])
        both = np.concatenate([shapes, shapely.point_on_surface(shapes)])
        high, low = rasterize_indices(both, np.tile(indices, 2), grid.transform, observed.shape)
        usable = observed & (high >= 0) & (high == low)
        rows, cols = np.nonzero(usable)
        labels = high[rows, cols]
        kept = []
        for number, name in enumerate(names):
            of_class = np.flatnonzero(labels == number)
            if not len(of_class):
                raise ConfigError(
                    f"{name}: no patch is of this class alone; draw a polygon of it where "
                    "something is observed and no other class lies"
                )
            kept.append(of_class[:: -(-len(of_class) * len(names) // MOST_EXAMPLES)])
        chosen = np.concatenate(kept)
        return (rows[chosen], cols[chosen]), labels[chosen]


def _shapes(polygons: Sequence[DrawnPolygon], crs: str) -> npt.NDArray[np.object_]:
    """Valid shapely polygons in a CRS; ConfigError."""
    import shapely
    from rasterio._err import CPLE_BaseError
    from rasterio.warp import transform

    shapes = np.empty(len(polygons), object)
    for i, polygon in enumerate(polygons):
        who = f"polygon {i + 1} ({polygon.label})"
        drawn = shapely.Polygon(polygon.ring)
        if not drawn.is_valid or drawn.area <= 0:
            raise ConfigError(f"{who}: its outline crosses itself or has no area; draw it again")
        try:
            xs, ys = transform(MERCATOR, crs, *np.array(polygon.ring, float).T)
        except CPLE_BaseError:
            xs = ys = [math.inf]
        if not np.isfinite([xs, ys]).all():
            raise DataError(f"{who}: lies where {crs[:40]} does not reach; draw it on the scene")
        # Counter-clockwise outside, as RFC 7946 wants.
        shapes[i] = shapely.geometry.polygon.orient(shapely.Polygon(np.c_[xs, ys]))
    return shapes


def _rounded(shape: Any, digits: int) -> dict[str, object]:
    """A polygon without holes as GeoJSON."""
    import shapely

    ring = shapely.get_coordinates(shape).round(digits).tolist()
    return {"type": "Polygon", "coordinates": [ring]}


def _urn(scene: Scene) -> str:
    from rasterio.crs import CRS

    authority = CRS.from_user_input(scene.grid.crs).to_authority()
    if authority is None:
        raise ConfigError(
            f"{scene.name}: its CRS has no code, so GeoJSON cannot declare it; download the labels "
            "in longitude and latitude"
        )
    return "urn:ogc:def:crs:{}::{}".format(*authority)


def _classes(names: Sequence[str], palette: Palette) -> Modality:
    entries = tuple(
        ClassMapEntry(id=i, name=n, color=c)
        for i, (n, c) in enumerate(zip(names, class_colors(names), strict=True))
    )
    labels = Modality(
        name="labels", kind="categorical", bands=(Band(name=COLUMN),), classes=entries
    )
    return in_palette(labels, palette)


def _uri(image: npt.NDArray[np.uint8], seen: npt.NDArray[np.bool_]) -> str:
    return data_uri(np.dstack([image, np.where(seen, 255, 0).astype(np.uint8)]))
