"""What looks alike, and maps from a few clicks: frozen features of all places, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.demo.chip_locations import Places, ScenePlaces, SourcePlaces
from multimae_eo.demo.drawing import data_uri, ramp
from multimae_eo.demo.few_shot import few_shot
from multimae_eo.demo.jobs import Job
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
"""Features kept in memory, at most (1 GiB of float32)."""

MOST_CHIPS = 4000
_MOST_PIXELS = 1024
_RAMP, _UNSURE = "cividis", "magma"


@dataclass(frozen=True)
class Index:
    """``vectors`` (places, D) of unit length about their mean, zeros where nothing was seen.

    ``cells`` (rows, columns, D), without what tells their position, and ``seen``: of a scene's
    patches, ``cell`` pixels of its grid wide.
    """

    vectors: Array
    known: npt.NDArray[np.bool_]
    cells: Array | None = None
    seen: npt.NDArray[np.bool_] | None = None
    cell: int = 0


class SearchService:
    """Finds alike places and learns from clicks. ``index``: the job that encodes everything."""

    def __init__(self, model: MultiMAE, places: Places) -> None:
        self.model, self.places = model.eval(), places
        self.index = Job(self._scene if isinstance(places, ScenePlaces) else self._source)

    def similar(self, number: int | None, point: Point | None, count: int) -> dict[str, Any]:
        """The ``count`` places most like one, itself first; none overlaps another.

        ``similarity``: cosine of the mean features about the mean of all places. On a scene
        ``bounds`` in Web-Mercator metres. DataError where nothing was observed.
        """
        index = self._ready()
        own = self.at(*point) if point is not None else number
        if own is None:
            raise ConfigError("give either a place or a point")
        if not 0 <= own < len(index.vectors) or not index.known[own]:
            raise DataError(f"no features of place {own}: nothing was observed there")
        alike = index.vectors @ index.vectors[own]
        alike[~index.known] = -np.inf
        alike[own] = np.inf
        found: list[int] = []
        for candidate in np.argsort(-alike, kind="stable"):
            if len(found) == count or not index.known[candidate]:
                break
            if not any(self._overlap(int(candidate), f) for f in found):
                found.append(int(candidate))
        return {
            "place": own,
            "similar": [
                {
                    "place": n,
                    "title": self.places.title(n),
                    "similarity": 1.0 if n == own else float(alike[n]),
                    "bounds": self.bounds_of(n),
                }
                for n in found
            ],
        }

    def at(self, x: float, y: float) -> int:
        """The place nearest to a point in Web-Mercator metres; ConfigError off the scene."""
        row, col = self._pixel(x, y)
        places = self._scene_places()
        grid = places.scene.grid
        if not (0 <= row < grid.height and 0 <= col < grid.width):
            raise DataError("this point is outside of the scene")
        return places.at(row, col)

    def bounds_of(self, number: int) -> list[float] | None:
        """A scene's place in Web-Mercator metres; None for a chip."""
        if not isinstance(self.places, ScenePlaces):
            return None
        from rasterio.warp import transform_bounds

        grid = self.places.scene.grid
        ground = grid.footprint(self.places.window(number))
        return list(transform_bounds(grid.crs, MERCATOR, *ground.bounds))

    def few_shot(self, a: list[Point], b: list[Point]) -> dict[str, Any]:
        """A map of where it looks like ``a`` rather than ``b``, from points of each.

        ``probability`` and ``entropy`` are PNG addresses over ``bounds`` (Web-Mercator metres).
        ``share``: of the scene that is likelier ``a``. Raises DataError for points without data.
        """
        index = self._ready()
        if index.cells is None or index.seen is None:
            raise ConfigError("few-shot maps need a scene; start the demo with --scene")
        at = [self._cell(index, *p) for p in (*a, *b)]
        labels = np.array([True] * len(a) + [False] * len(b))
        examples = np.stack([index.cells[rc] for rc in at])
        if len({*at[: len(a)]} & {*at[len(a) :]}):
            raise ConfigError("a point of A and one of B lie on the same patch; move one")
        said = few_shot(examples, labels, index.cells[index.seen])
        maps = np.full((2, *index.seen.shape), np.nan, np.float32)
        maps[0][index.seen], maps[1][index.seen] = said.probability, said.entropy
        scene = self._scene_places().scene
        frame = frame_over(scene_bounds(scene), _MOST_PIXELS)
        whole = warp_array(maps, (scene.grid.crs, scene.grid.coarser(index.cell).transform),
                           frame, nearest=False)  # fmt: skip
        return {
            "bounds": list(frame.bounds),
            "probability": data_uri(_drawn(whole[0], _RAMP)),
            "entropy": data_uri(_drawn(whole[1], _UNSURE)),
            "ramps": {"probability": ramp(ramp_colours(_RAMP)),
                      "entropy": ramp(ramp_colours(_UNSURE))},
            "share": float((said.probability > 0.5).mean()),
            "entropy_mean": float(said.entropy.mean()),
            "examples": [len(a), len(b)],
        }  # fmt: skip

    # Features ------------------------------------------------------------------------------------

    def _scene(self, progress: Progress) -> Index:
        places = self._scene_places()
        embedder = WindowEmbedder(network=self.model, inputs=places.modalities, per="patch")
        tiling, width = places.tiling, self.model.config.encoder.width
        config = self.model.config
        per_side = max(config.inputs[n].grid(*[config.sizes[n]] * 2)[0] for n in places.modalities)
        cell = max(1, tiling.chip // per_side)
        rows, cols = (-(-length // cell) for length in tiling.shape)
        if rows * cols * width > MOST_NUMBERS:
            raise ConfigError(
                f"{places.scene.name}: {rows} × {cols} patches of {width} features are more than "
                "the demo keeps in memory; cut a part out of the scene"
            )
        cells, seen = np.zeros((rows, cols, width), np.float32), np.zeros((rows, cols), bool)
        options = SceneOptions(overlap=0.0)
        with computing(options):
            block = (0, tiling.shape[0])
            for batch in predict_windows(
                embedder, places.scene, tiling, block, batch_size=options.batch
            ):
                for item in batch:
                    window, fields = item.window.window, item.fields
                    top, left = round(window.row / cell), round(window.col / cell)
                    here = np.s_[top : top + per_side, left : left + per_side]
                    fits = cells[here].shape[:2]
                    cells[here] = fields["vectors"][: fits[0], : fits[1]]
                    seen[here] = fields["seen"][: fits[0], : fits[1]]
                progress(batch[-1].window.floor if batch else 0, tiling.shape[0])
        if not seen.any():
            raise DataError(f"{places.scene.name}: nothing was observed")
        cells = _without_position(cells, seen, per_side)
        vectors, known = self._means(cells, seen, cell)
        return Index(vectors, known, cells.astype(np.float32), seen, cell)

    def _means(
        self, cells: Array, seen: npt.NDArray[np.bool_], cell: int
    ) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Mean features of each place of a scene."""
        places = self._scene_places()
        vectors = np.zeros((places.count, cells.shape[2]), np.float32)
        known = np.zeros(places.count, bool)
        for number in range(places.count):
            w = places.window(number)
            here = np.s_[w.row // cell : (w.row + w.height) // cell,
                         w.col // cell : (w.col + w.width) // cell]  # fmt: skip
            if seen[here].any():
                vectors[number] = cells[here][seen[here]].mean(axis=0)
                known[number] = True
        return _centred(vectors, known), known

    def _source(self, progress: Progress) -> Index:
        places = self.places
        assert isinstance(places, SourcePlaces)
        embedder = WindowEmbedder(
            network=self.model, inputs=places.modalities, per="chip", larger_chips=True
        )
        names = list(places.modalities)
        count = min(places.count, MOST_CHIPS)
        vectors = np.zeros((places.count, self.model.config.encoder.width), np.float32)
        known = np.zeros(places.count, bool)
        number_of = {key: i for i, key in enumerate(places.source.keys)}
        done = 0
        with computing(SceneOptions()):
            for samples in chip_batches(places.source, range(count), names, names, 16):
                predictions = embedder(collate(samples, places.modalities))
                for i, row in enumerate(predictions.rows):
                    number = number_of[samples[row].key]
                    vectors[number], known[number] = predictions.fields["vector"][i], True
                done += len(samples)
                progress(done, count)
        return Index(_centred(vectors, known), known)

    # Places --------------------------------------------------------------------------------------

    def _ready(self) -> Index:
        index: Index | None = self.index.result
        if index is None:
            raise DataError("the features are not computed yet")
        return index

    def _scene_places(self) -> ScenePlaces:
        if not isinstance(self.places, ScenePlaces):
            raise ConfigError("points need a scene; start the demo with --scene")
        return self.places

    def _pixel(self, x: float, y: float) -> tuple[float, float]:
        grid = self._scene_places().scene.grid
        found = projected(grid.crs, x, y)
        if found is None:
            raise DataError("this point is outside of the scene")
        col, row = ~grid.transform @ found
        return float(row), float(col)

    def _cell(self, index: Index, x: float, y: float) -> tuple[int, int]:
        assert index.seen is not None
        row, col = (int(v // index.cell) for v in self._pixel(x, y))
        rows, cols = index.seen.shape
        if not (0 <= row < rows and 0 <= col < cols and index.seen[row, col]):
            raise DataError("an example lies where nothing was observed; move it onto the scene")
        return row, col

    def _overlap(self, one: int, other: int) -> bool:
        if not isinstance(self.places, ScenePlaces):
            return one == other
        a, b = self.places.window(one), self.places.window(other)
        return abs(a.row - b.row) < a.height and abs(a.col - b.col) < a.width


def _without_position(cells: Array, seen: npt.NDArray[np.bool_], side: int) -> Array:
    """Features about the mean of their position in a window, of unit variance over all.

    A patch's vector tells where in the window it lies, which says nothing about the ground.
    """
    found = np.zeros_like(cells)
    for row in range(side):
        for col in range(side):
            own = np.s_[row::side, col::side]
            if seen[own].any():
                about = cells[own] - cells[own][seen[own]].mean(axis=0)
                found[own] = np.where(seen[own][..., None], about, 0)
    # One scale for all: directions in which the ground varies most count most.
    scale = max(float(found[seen].std()), 1e-9)
    return np.asarray(found / scale, np.float32)


def _centred(vectors: Array, known: npt.NDArray[np.bool_]) -> Array:
    """Unit vectors about the mean; features share a large common part that hides differences."""
    if not known.any():
        return vectors
    about = np.where(known[:, None], vectors - vectors[known].mean(axis=0), 0)
    length = np.linalg.norm(about, axis=1, keepdims=True)
    return np.asarray(about / np.maximum(length, 1e-12), np.float32)


def _drawn(values: Array, name: str) -> npt.NDArray[np.uint8]:
    ok = np.isfinite(values)
    image = scalar_picture(np.where(ok, values, 0), name, 0.0, 1.0)
    return np.dstack([image, np.where(ok, 255, 0).astype(np.uint8)])
