"""The chips of a scene that vector labels touch, and the splits of the features on them.

A split is one of features, not of chips: a polygon is in one split alone, and a chip with polygons
of several splits is listed once for each, with the pixels of that split's polygons.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import DataError
from multimae_eo.geo import Window
from multimae_eo.sources.raster.grid import Grid
from multimae_eo.sources.scene.chip_rule import ChipRule, SplitRule
from multimae_eo.sources.vector.feature_splits import deal
from multimae_eo.sources.vector.vector_file import VectorFeatures
from multimae_eo.sources.vector.vector_labels import VectorLabels

_POINT_M2 = 1.0


@dataclass(frozen=True, kw_only=True)
class LabelledWindows:
    """Draws the labels of windows. ``splits``: of each feature (n,), "" for none."""

    labels: VectorLabels
    grid: Grid
    splits: npt.NDArray[np.str_]

    @classmethod
    def of(cls, labels: VectorLabels, grid: Grid, rule: ChipRule, name: str) -> LabelledWindows:
        """Features on a scene's grid, in the splits of its rule.

        Raises DataError where no feature lies in the scene, SplitError for too few of them.
        """
        moved = labels.on(grid.crs, grid.footprint(grid.extent).bounds, "the scene")
        splits = np.array([""] * len(moved), dtype="<U32")
        if rule.split is not None:
            splits = feature_splits(labels, moved, grid, rule, rule.split, name)
        return cls(labels=labels, grid=grid, splits=splits)

    def listed(self, windows: Iterable[Window]) -> Iterator[tuple[Window, str]]:
        """Windows with a labelled pixel, once for each split that has one there."""
        for window in windows:
            rows = self.labels.touching(self.grid.footprint(window))
            for split in sorted(set(self.splits[rows].tolist())):
                label = self.read(window, split)
                if (np.isfinite(label) if label.dtype.kind == "f" else label >= 0).any():
                    yield window, split

    def read(self, window: Window, split: str) -> npt.NDArray[Any]:
        """The label of a window, of the features of a split: see ``VectorLabels.read``."""
        shape = (window.height, window.width)
        return self.labels.read(self.grid.footprint(window), shape, self.splits == split)

    def features(self, window: Window) -> npt.NDArray[np.int64]:
        """The position of the feature at each pixel of a window, (H, W), -1 where there is none."""
        geometry = self.grid.footprint(window)
        return self.labels.features_at(geometry, (window.height, window.width))

    def groups(self, rule: ChipRule, split: SplitRule) -> int:
        """Number of groups of features that a rule keeps together."""
        moved = self.labels.on(self.grid.crs, self.grid.footprint(self.grid.extent).bounds, "")
        return len(set(_groups(moved, self.grid, rule, split)))


def feature_splits(
    labels: VectorLabels,
    moved: VectorFeatures,
    grid: Grid,
    rule: ChipRule,
    split: SplitRule,
    name: str,
) -> npt.NDArray[np.str_]:
    """The split of each feature (n,): by polygon, or by the square block of its middle.

    Groups of features are dealt out so that every split has its share of each class's area.
    ``folds``: the features are divided into so many equal parts, of which ``fold`` is the test
    split. Raises SplitError.
    """
    import shapely

    classes = np.zeros(len(moved), dtype=np.int64) if labels.spec.numeric else labels.indices
    weights = np.maximum(shapely.area(moved.shapes), _POINT_M2)
    groups = _groups(moved, grid, rule, split)
    splits = np.array(["train"] * len(moved), dtype="<U32")
    rest = np.ones(len(moved), dtype=bool)
    if split.folds:
        equal = {f"fold {i}": 1 / split.folds for i in range(split.folds)}
        folds = np.array(deal(groups, classes, weights, equal, where=name))
        splits[folds == f"fold {split.fold}"] = "test"
        rest = splits == "train"
    shares = {"train": 1 - sum(split.shares.values()), **split.shares}
    if len(shares) > 1:
        chosen = [g for g, r in zip(groups, rest, strict=True) if r]
        splits[rest] = deal(chosen, classes[rest], weights[rest], shares, where=name)
    return splits


def _groups(moved: VectorFeatures, grid: Grid, rule: ChipRule, split: SplitRule) -> list[str]:
    import shapely

    if split.polygons:
        return [str(row) for row in moved.rows.tolist()]
    middles = shapely.point_on_surface(moved.shapes)
    cols, rows = ~grid.transform @ (shapely.get_x(middles), shapely.get_y(middles))
    side = split.block * max(rule.size, rule.stride)
    if not (np.isfinite(rows).all() and np.isfinite(cols).all()):
        raise DataError(f"{moved.path}: a feature has no position on the scene")
    blocks = np.stack([np.floor(rows / side), np.floor(cols / side)], axis=1).astype(np.int64)
    return [f"{row},{col}" for row, col in blocks.tolist()]
