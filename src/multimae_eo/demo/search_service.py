"""Similar locations, and maps from a few clicks: frozen features, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from multimae_eo.demo.chip_locations import Locations, SceneLocations, SourceLocations
from multimae_eo.demo.drawing import data_uri, ramp
from multimae_eo.demo.few_shot import few_shot
from multimae_eo.demo.jobs import BackgroundJob
from multimae_eo.demo.map_layers import MERCATOR, frame_over, projected, scene_bounds, warp_array
from multimae_eo.errors import ConfigError, DataError
from multimae_eo.inference.reconstruct_chips import chip_batches
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.reports.pictures import ramp_colours, scalar_picture
from multimae_eo.sample import collate
from multimae_eo.scenes.embed import WindowEmbedder
from multimae_eo.scenes.engine import computing, predict_windows
from multimae_eo.scenes.job import SceneOptions

Array = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
Point = tuple[float, float]

MOST_NUMBERS = 1 << 28
"""Feature values kept in memory, at most (1 GiB of float32)."""

MOST_CHIPS = 4000
MOST_PIXELS = 1024
"""Of a side of the maps that the page gets."""
_RAMP, _ENTROPY_RAMP = "cividis", "magma"


@dataclass(frozen=True)
class FeatureIndex:
    """The features of all locations.

    ``vectors`` (locations, D): centred and of unit length, zeros where nothing is observed.
    ``observed``: bool (locations,). ``cells`` (rows, columns, D), less the mean of their position
    in a window, and ``cells_observed``: of a scene's patches, ``cell`` pixels of its grid wide.
    """

    vectors: Array
    observed: npt.NDArray[np.bool_]
    cells: Array | None = None
    cells_observed: npt.NDArray[np.bool_] | None = None
    cell: int = 0


class SearchService:
    """Finds similar locations and fits maps to clicks; ``index`` is the job of the features."""

    def __init__(
        self, model: MultiMAE, locations: Locations, options: SceneOptions | None = None
    ) -> None:
        self._options = options or SceneOptions()
        self.model, self.locations = model.eval(), locations
        self.index = BackgroundJob(
            self._scene if isinstance(locations, SceneLocations) else self._source
        )

    def similar(self, number: int | None, point: Point | None, count: int) -> dict[str, object]:
        """The ``count`` locations most similar to one, itself first; none overlaps another.

        ``similarity``: cosine of the mean features about the mean of all locations. On a scene
        ``bounds`` in Web-Mercator metres. DataError where nothing was observed.
        """
        index = self.ready()
        query = self.at(*point) if point is not None else number
        if query is None:
            raise ConfigError("give either a location or a point")
        if not 0 <= query < len(index.vectors) or not index.observed[query]:
            raise DataError(f"no features of location {query}: nothing was observed there")
        similarity = index.vectors @ index.vectors[query]
        similarity[~index.observed] = -np.inf
        similarity[query] = np.inf
        matches: list[int] = []
        for candidate in np.argsort(-similarity, kind="stable"):
            if len(matches) == count or not index.observed[candidate]:
                break
            if not any(self._overlap(int(candidate), m) for m in matches):
                matches.append(int(candidate))
        return {
            "location": query,
            "similar": [
                {
                    "location": n,
                    "title": self.locations.title(n),
                    "similarity": 1.0 if n == query else float(similarity[n]),
                    "bounds": self.bounds_of(n),
                }
                for n in matches
            ],
        }

    def at(self, x: float, y: float) -> int:
        """The location nearest to a point in Web-Mercator metres; ConfigError off the scene."""
        row, col = self._pixel(x, y)
        locations = self._scene_locations()
        grid = locations.scene.grid
        if not (0 <= row < grid.height and 0 <= col < grid.width):
            raise DataError("this point is outside of the scene")
        return locations.at(row, col)

    def bounds_of(self, number: int) -> list[float] | None:
        """A scene's location in Web-Mercator metres; None for a chip."""
        if not isinstance(self.locations, SceneLocations):
            return None
        from rasterio.warp import transform_bounds

        grid = self.locations.scene.grid
        ground = grid.footprint(self.locations.window(number))
        return list(transform_bounds(grid.crs, MERCATOR, *ground.bounds))

    def few_shot(self, a: list[Point], b: list[Point]) -> dict[str, object]:
        """A map of where it looks like ``a`` rather than ``b``, from points of each.

        ``probability`` and ``entropy`` are PNGs (``data:`` addresses) over ``bounds`` (Web-Mercator
        metres). ``share``: of the scene in which ``a`` is likelier. Raises DataError for points
        without data.
        """
        index = self.ready()
        cells, observed = self.cells_of(index)
        indices = [self._cell(index, *p) for p in (*a, *b)]
        labels = np.array([True] * len(a) + [False] * len(b))
        examples = np.stack([cells[rc] for rc in indices])
        if len({*indices[: len(a)]} & {*indices[len(a) :]}):
            raise ConfigError("a point of A and one of B lie on the same patch; move one")
        prediction = few_shot(examples, labels, cells[observed])
        maps = np.full((2, *observed.shape), np.nan, np.float32)
        maps[0][observed], maps[1][observed] = prediction.probability, prediction.entropy
        scene = self._scene_locations().scene
        frame = frame_over(scene_bounds(scene), MOST_PIXELS)
        warped = warp_array(maps, (scene.grid.crs, scene.grid.coarser(index.cell).transform),
                           frame, nearest=False)  # fmt: skip
        return {
            "bounds": list(frame.bounds),
            "probability": data_uri(_draw(warped[0], _RAMP)),
            "entropy": data_uri(_draw(warped[1], _ENTROPY_RAMP)),
            "ramps": {"probability": ramp(ramp_colours(_RAMP)),
                      "entropy": ramp(ramp_colours(_ENTROPY_RAMP))},
            "share": float((prediction.probability > 0.5).mean()),
            "entropy_mean": float(prediction.entropy.mean()),
            "examples": [len(a), len(b)],
        }  # fmt: skip

    # Features -------------------------------------------------------------------------------------

    def _scene(self, progress: Progress) -> FeatureIndex:
        locations = self._scene_locations()
        embedder = WindowEmbedder(network=self.model, inputs=locations.modalities, per="patch")
        tiling, width = locations.tiling, self.model.config.encoder.width
        config = self.model.config
        per_side = max(
            config.inputs[n].grid(*[config.sizes[n]] * 2)[0] for n in locations.modalities
        )
        cell = max(1, tiling.chip // per_side)
        rows, cols = (-(-length // cell) for length in tiling.shape)
        if rows * cols * width > MOST_NUMBERS:
            raise ConfigError(
                f"{locations.scene.name}: {rows} × {cols} patches of {width} features are more "
                "than the demo keeps in memory; cut a part out of the scene"
            )
        cells = np.zeros((rows, cols, width), np.float32)
        cells_observed = np.zeros((rows, cols), bool)
        options = replace(self._options, overlap=0.0)
        blocks = [(0, tiling.shape[0])]
        for batch in predict_windows(embedder, locations.scene, tiling, blocks, options=options):
            for item in batch or ():
                window, fields = item.window.window, item.fields
                top, left = round(window.row / cell), round(window.col / cell)
                inside = np.s_[top : top + per_side, left : left + per_side]
                height, across = cells[inside].shape[:2]
                cells[inside] = fields["vectors"][:height, :across]
                cells_observed[inside] = fields["seen"][:height, :across]
            progress(batch[-1].window.floor if batch else 0, tiling.shape[0])
        if not cells_observed.any():
            raise DataError(f"{locations.scene.name}: nothing was observed")
        cells = _without_position(cells, cells_observed, per_side)
        vectors, observed = self._means(cells, cells_observed, cell)
        return FeatureIndex(vectors, observed, cells.astype(np.float32), cells_observed, cell)

    def _means(
        self, cells: Array, cells_observed: npt.NDArray[np.bool_], cell: int
    ) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Mean features of each location of a scene."""
        locations = self._scene_locations()
        vectors = np.zeros((locations.count, cells.shape[2]), np.float32)
        observed = np.zeros(locations.count, bool)
        for number in range(locations.count):
            w = locations.window(number)
            inside = np.s_[w.row // cell : (w.row + w.height) // cell,
                           w.col // cell : (w.col + w.width) // cell]  # fmt: skip
            if cells_observed[inside].any():
                vectors[number] = cells[inside][cells_observed[inside]].mean(axis=0)
                observed[number] = True
        return _centred(vectors, observed), observed

    def _source(self, progress: Progress) -> FeatureIndex:
        locations = self.locations
        assert isinstance(locations, SourceLocations)
        embedder = WindowEmbedder(
            network=self.model, inputs=locations.modalities, per="chip", larger_chips=True
        )
        names = list(locations.modalities)
        count = min(locations.count, MOST_CHIPS)
        vectors = np.zeros((locations.count, self.model.config.encoder.width), np.float32)
        observed = np.zeros(locations.count, bool)
        number_of = {key: i for i, key in enumerate(locations.source.keys)}
        done = 0
        with computing(self._options):
            for samples in chip_batches(locations.source, range(count), names, names, 16):
                predictions = embedder(collate(samples, locations.modalities))
                for i, row in enumerate(predictions.rows):
                    number = number_of[samples[row].key]
                    vectors[number], observed[number] = predictions.fields["vector"][i], True
                done += len(samples)
                progress(done, count)
        return FeatureIndex(_centred(vectors, observed), observed)

    # Locations ------------------------------------------------------------------------------------

    def ready(self) -> FeatureIndex:
        """The features; DataError before they are computed."""
        index: FeatureIndex | None = self.index.result
        if index is None:
            raise DataError("the features are not computed yet")
        return index

    def cells_of(self, index: FeatureIndex) -> tuple[Array, npt.NDArray[np.bool_]]:
        """A scene's patches: their features (rows, columns, D), and where they are observed."""
        if index.cells is None or index.cells_observed is None:
            raise ConfigError("few-shot maps need a scene; start the demo with --scene")
        return index.cells, index.cells_observed

    def _scene_locations(self) -> SceneLocations:
        if not isinstance(self.locations, SceneLocations):
            raise ConfigError("points need a scene; start the demo with --scene")
        return self.locations

    def _pixel(self, x: float, y: float) -> tuple[float, float]:
        grid = self._scene_locations().scene.grid
        point = projected(grid.crs, x, y)
        if point is None:
            raise DataError("this point is outside of the scene")
        col, row = ~grid.transform @ point
        return float(row), float(col)

    def _cell(self, index: FeatureIndex, x: float, y: float) -> tuple[int, int]:
        assert index.cells_observed is not None
        row, col = (int(v // index.cell) for v in self._pixel(x, y))
        rows, cols = index.cells_observed.shape
        if not (0 <= row < rows and 0 <= col < cols and index.cells_observed[row, col]):
            raise DataError("an example lies where nothing was observed; move it onto the scene")
        return row, col

    def _overlap(self, one: int, other: int) -> bool:
        if not isinstance(self.locations, SceneLocations):
            return one == other
        a, b = self.locations.window(one), self.locations.window(other)
        return abs(a.row - b.row) < a.height and abs(a.col - b.col) < a.width


def _without_position(cells: Array, observed: npt.NDArray[np.bool_], side: int) -> Array:
    """Features less the mean of their position in a window, scaled to unit variance over all.

    A patch's vector encodes its position in the window, which is unrelated to the ground.
    """
    centred = np.zeros_like(cells)
    for row in range(side):
        for col in range(side):
            position = np.s_[row::side, col::side]
            mask = observed[position]
            if mask.any():
                difference = cells[position] - cells[position][mask].mean(axis=0)
                centred[position] = np.where(mask[..., None], difference, 0)
    # One scale for all: directions in which the ground varies most count most.
    scale = max(float(centred[observed].std()), 1e-9)
    return np.asarray(centred / scale, np.float32)


def _centred(vectors: Array, observed: npt.NDArray[np.bool_]) -> Array:
    """Centred unit vectors; features share a large common part that dominates differences."""
    if not observed.any():
        return vectors
    centred = np.where(observed[:, None], vectors - vectors[observed].mean(axis=0), 0)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(length, 1e-12), np.float32)


def _draw(values: Array, name: str) -> npt.NDArray[np.uint8]:
    ok = np.isfinite(values)
    image = scalar_picture(np.where(ok, values, 0), name, 0.0, 1.0)
    return np.dstack([image, np.where(ok, 255, 0).astype(np.uint8)])
