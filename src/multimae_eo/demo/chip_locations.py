"""The locations that the demo shows, by number: chips of a source, or squares of a scene."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, ContractError, DataError
from multimae_eo.geo import Window
from multimae_eo.modality import ModalitySet
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sample import Sample, crop
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.scenes.scene_inputs import require_inputs, scene_tiling
from multimae_eo.sources.base import Source
from multimae_eo.sources.scene.scene import Scene

STRIP = 24
_PICTURE = 64  # px: a location shows several of a model's small windows rather than one
_CACHED = 64


class Locations(ABC):
    """Squares of ground, several of the model's windows wide. Reading is safe in threads.

    ``modalities``: those that data and model share. ``count``: how many locations there are;
    ``strip``: the numbers of some, to choose from.
    """

    modalities: ModalitySet
    count: int
    strip: Sequence[int]

    @abstractmethod
    def read(self, number: int) -> Sample:
        """The pixels of a location; DataError for an unknown number or one without valid pixels."""

    @abstractmethod
    def title(self, number: int) -> str:
        """A location's name."""


class _Cache:
    """A cache of the latest results of a function of an int.

    ``serial``: one thread at a time may call the function.
    """

    def __init__(self, make: Callable[[int], Sample], *, serial: bool) -> None:
        self._make, self._lock = make, threading.Lock()
        self._call_lock: AbstractContextManager[object] = (
            threading.Lock() if serial else nullcontext()
        )
        self._samples: OrderedDict[int, Sample] = OrderedDict()

    def __call__(self, number: int) -> Sample:
        with self._lock:
            if number in self._samples:
                self._samples.move_to_end(number)
                return self._samples[number]
        with self._call_lock:
            sample = self._make(number)
        with self._lock:
            self._samples[number] = sample
            while len(self._samples) > _CACHED:
                self._samples.popitem(last=False)
        return sample


class SourceLocations(Locations):
    """A source's chips, cropped to their middle: as many windows of the model as fill a picture."""

    def __init__(self, source: Source, model: MultiMAE) -> None:
        names = [n for n in source.modalities if n in model.modalities]
        if not names:
            raise ConfigError(
                f"{source.name}: has none of the inputs {', '.join(model.modalities)}"
            )
        self.source, self._sizes = source, model.config.sizes
        self.modalities = source.modalities.select(names)
        self.count = len(source)
        # Test chips first, then validation: the model was not trained on them.
        rank = {"test": 0, "val": 1}
        best = min((rank.get(s, 2) for s in source.split_of), default=2)
        indices = [i for i, s in enumerate(source.split_of) if rank.get(s, 2) == best]
        self.strip = [indices[int(i)] for i in _subset(len(indices), STRIP)]
        self._read = _Cache(self._cut, serial=True)

    def read(self, number: int) -> Sample:
        """See ``Locations``."""
        return self._read(_require_number(number, self.count))

    def title(self, number: int) -> str:
        """The chip's key."""
        return str(self.source.keys[_require_number(number, self.count)])

    def _cut(self, number: int) -> Sample:
        sample = self.source.read(number, self.modalities.names)
        if not sample.pixels:
            raise DataError(f"{sample.key}: nothing was observed")
        sides = {n: min(p.shape[-2:]) for n, p in sample.pixels.items()}
        square = all(p.shape[-2] == p.shape[-1] for p in sample.pixels.values())
        times = min(side // self._sizes[n] for n, side in sides.items())
        times = min(times, _windows_wide(max(self._sizes.values())))
        coarse = min(sides, key=lambda n: sides[n])
        side = times * self._sizes[coarse]
        if not square or times < 1 or side == sides[coarse]:
            return sample
        start = (sides[coarse] - side) // 2 / sides[coarse]
        try:
            return crop(sample, top=start, left=start, size=side / sides[coarse])
        except ContractError:
            return sample


@dataclass(frozen=True)
class Lattice:
    """The positions of a scene's squares: ``rows`` × ``cols`` of them, in pixels of its grid."""

    side: int
    step: int
    unit: int
    rows: int
    cols: int


class SceneLocations(Locations):
    """Squares of a scene, every half of their side."""

    def __init__(self, scene: Scene, model: MultiMAE) -> None:
        self.scene = scene
        if scene.dates:
            raise ConfigError(
                f"{scene.path}: {next(iter(scene.dates))} has several dates, and the demo shows "
                "scenes of one; name the raster of a date in `path:`"
            )
        self.modalities = require_inputs(model.modalities, scene, None)
        sizes = {n: model.config.sizes[n] for n in model.modalities}
        self.tiling = scene_tiling(sizes, scene, self.modalities, SceneOptions(overlap=0.0))
        grid, chip = scene.grid, self.tiling.chip
        fits = max(1, min(grid.height, grid.width) // chip)
        side = chip * min(fits, _windows_wide(max(model.config.sizes.values())))
        step = max(self.tiling.unit, side // 2 // self.tiling.unit * self.tiling.unit)
        rows, cols = (
            1 + max(0, -(-(length - side) // step)) for length in (grid.height, grid.width)
        )
        self.lattice = Lattice(side, step, self.tiling.unit, rows, cols)
        self.count = rows * cols
        self.strip = [int(i) for i in _subset(self.count, STRIP)]
        self._read = _Cache(self._cut, serial=False)

    def read(self, number: int) -> Sample:
        """See ``Locations``."""
        return self._read(_require_number(number, self.count))

    def title(self, number: int) -> str:
        """Row and column on the scene's grid."""
        window = self.window(number)
        return f"row {window.row}, column {window.col}"

    def window(self, number: int) -> Window:
        """A square's pixels, which may reach over the right and bottom edges."""
        at = self.lattice
        row, col = divmod(_require_number(number, self.count), at.cols)
        return Window(
            row=self._start(row, self.scene.grid.height),
            col=self._start(col, self.scene.grid.width),
            height=at.side,
            width=at.side,
        )

    def at(self, row: float, col: float) -> int:
        """The number of the square whose middle is nearest to a pixel of the grid."""
        at = self.lattice
        down, across = (round((v - at.side / 2) / at.step) for v in (row, col))
        return min(max(down, 0), at.rows - 1) * at.cols + min(max(across, 0), at.cols - 1)

    def _start(self, index: int, length: int) -> int:
        at = self.lattice
        last = max(0, -(-(length - at.side) // at.unit) * at.unit)
        return min(index * at.step, last)

    def _cut(self, number: int) -> Sample:
        sample = self.scene.read(self.window(number), self.modalities.names)
        if not sample.pixels:
            raise DataError(f"{self.title(number)}: nothing was observed")
        return sample


def _windows_wide(size: int) -> int:
    return max(1, _PICTURE // size)


def _subset(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most ``most`` of ``count`` numbers, sorted, drawn without replacement."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def _require_number(number: int, count: int) -> int:
    if not 0 <= number < count:
        raise DataError(f"no location {number}: there are {count}, from 0")
    return number
