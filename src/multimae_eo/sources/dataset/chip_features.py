"""Vector labels of a data set's chips, each on the grid of its finest file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from multimae_eo.errors import DataError
from multimae_eo.geo import Geometry
from multimae_eo.sources.raster.grid import Bounds
from multimae_eo.sources.raster.reading import read_header
from multimae_eo.sources.vector.vector_labels import VectorLabels


class ChipFeatures:
    """Draws features on chips. ``files``: by chip, the file whose grid labels have.

    Opening it reads headers until a chip has a feature. Raises DataError where none does, or where
    a chip's file has no CRS.
    """

    def __init__(self, labels: VectorLabels, root: Path, files: Mapping[str, str]) -> None:
        self.labels, self._root, self._files = labels, root, files
        self._require_overlap()

    def read(self, key: str) -> object:
        """The label of a chip, (H, W): see ``VectorLabels.read``; None where it has no file."""
        if key not in self._files:
            return None
        geometry, shape = self._ground(key)
        return self.labels.read(geometry, shape)

    def groups(self, keys: Sequence[str]) -> Mapping[str, str]:
        """A group of each chip, the same for those that share a feature, directly or by others."""
        first: dict[int, str] = {}
        leader = dict(zip(keys, keys, strict=True))

        def root_of(key: str) -> str:
            while leader[key] != key:
                leader[key] = leader[leader[key]]
                key = leader[key]
            return key

        for key in keys:
            if key not in self._files:
                continue
            for row in self.labels.touching(self._ground(key)[0]).tolist():
                leader[root_of(key)] = root_of(first.setdefault(row, key))
        return {key: root_of(key) for key in keys}

    def _ground(self, key: str) -> tuple[Geometry, tuple[int, int]]:
        header = read_header(self._root / self._files[key])
        if header.geometry is None:
            raise DataError(
                f"{header.path}: has no CRS and position, which vector labels need; georeference "
                "it, or use `mask:`"
            )
        return header.geometry, header.shape

    def _require_overlap(self) -> None:
        seen: list[Geometry] = []
        for key in self._files:
            geometry, _ = self._ground(key)
            if self.labels.touching(geometry).size:
                return
            seen.append(geometry)
        if seen:
            crs = seen[0].crs
            self.labels.on(crs, _union(g.bounds for g in seen if g.crs == crs), "the chips")
        raise DataError(f"{self.labels.spec.path}: none of its features lies on a chip")


def _union(bounds: Iterable[Bounds]) -> Bounds:
    left, bottom, right, top = zip(*bounds, strict=True)
    return min(left), min(bottom), max(right), max(top)
