"""An area of co-registered layers, cut into chips: a scene file or a STAC file as a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, DataError, SplitError
from multimae_eo.geo import Window
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Sample
from multimae_eo.sources.base import Source
from multimae_eo.sources.raster.grid import Grid
from multimae_eo.sources.scene.chip_rule import (
    ChipRule,
    CloudRule,
    SplitRule,
    split_by_blocks,
)
from multimae_eo.sources.scene.labelled_windows import LabelledWindows
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.sources.vector.vector_labels import VectorLabels


class Area(Protocol):
    """Layers on one grid, read window by window. ``ratios``: see ``Scene``."""

    name: str
    modalities: ModalitySet
    grid: Grid
    ratios: Mapping[str, int]
    chip_rule: ChipRule | None

    def read(self, window: Window, names: Sequence[str] | None = None) -> Sample:
        """The modalities with any valid pixel in a window, which may reach over the edges."""

    def contains_chip(self, window: Window) -> bool:
        """Whether a chip may lie here."""

    def cloud_ids(self, window: Window, rule: CloudRule) -> npt.NDArray[np.generic]:
        """The valid class ids of the cloud layer in a window, flat."""


class SceneChips(Source):
    """The chips of an area, by the rule of its file. See docs/scenes.md.

    Opening it reads the layers that the rule refers to once, to select the chips.
    ``skipped`` counts the others by reason. Keys are ``r<row>c<col>`` in pixels of the grid.

    Raises ConfigError without a ``chips:`` section or when a modality's ratio does not divide the
    chips, DataError when no chip is kept, SplitError for too few blocks.
    """

    def __init__(self, area: Area, labels: VectorLabels | None = None) -> None:
        if area.chip_rule is None:
            raise ConfigError(
                f"{area.name}: to be cut into chips it needs a section `chips: {{size: 128}}`"
            )
        self.name = area.name
        self._area = area
        self._rule = rule = area.chip_rule
        self.modalities = area.modalities.select([n for n in area.modalities if n != rule.label])
        self._labelled: LabelledWindows | None = None
        if labels is not None:
            if rule.label:
                raise ConfigError(
                    f"{area.name}: chips: label: the labels are those of a vector file"
                )
            self.class_names, self.class_ids = labels.classes, labels.class_ids
            self.notes = labels.notes
            self._labelled = LabelledWindows.of(labels, area.grid, rule, area.name)
        if rule.label:
            self.class_names = area.modalities[rule.label].class_names
            self.class_ids = area.modalities[rule.label].class_ids
        for name, ratio in area.ratios.items():
            if rule.size % ratio or rule.stride % ratio:
                raise ConfigError(
                    f"{self.name}: chips of {rule.size} px every {rule.stride} px are not whole "
                    f"pixels of {name} (ratio {ratio}); choose multiples of {ratio}"
                )
        self.skipped = {"empty": 0, "cloudy": 0, "across splits": 0}
        chosen = self._with_labels() if self._labelled is not None else self._by_blocks()
        self._windows = [w for w, _ in chosen]
        self.split_of = [split for _, split in chosen]
        self.keys = self._names()
        for split in _splits_of(rule.split):
            if split not in self.split_of:
                raise SplitError(
                    f"{self.name}: split {split!r} has no chip ({self._skipped_text()}); a stride "
                    "below the size needs larger blocks"
                )

    def _by_blocks(self) -> list[tuple[Window, str]]:
        """Chips to keep, and their splits."""
        rule, grid = self._rule, self._area.grid
        kept = [w for w in rule.windows(grid.height, grid.width) if self._keep(w)]
        self._require_chips(kept)
        placed = list(zip(kept, split_by_blocks(kept, rule, self.name), strict=True))
        chosen = [(w, split) for w, split in placed if split is not None]
        self.skipped["across splits"] = len(kept) - len(chosen)
        return chosen

    def _with_labels(self) -> list[tuple[Window, str]]:
        """Chips to keep that have a labelled pixel, once for each split of their features."""
        assert self._labelled is not None
        rule, grid = self._rule, self._area.grid
        windows = list(rule.windows(grid.height, grid.width))
        listed = list(self._labelled.listed(windows))
        self.skipped["without labels"] = len(windows) - len({w for w, _ in listed})
        kept = {w for w in dict.fromkeys(w for w, _ in listed) if self._keep(w)}
        self._require_chips(list(kept))
        return [(w, split) for w, split in listed if w in kept]

    def _require_chips(self, kept: Sequence[Window]) -> None:
        if not kept:
            raise DataError(
                f"{self.name}: no chip is left ({self._skipped_text()}); check the rasters' "
                "extents and nodata, `min_valid` and `cloud`"
            )

    def _names(self) -> list[str]:
        """A key per chip; with its split where it is listed for several."""
        keys = [f"r{w.row:05d}c{w.col:05d}" for w in self._windows]
        times = Counter(keys)
        return [
            f"{key}@{split}" if times[key] > 1 else key
            for key, split in zip(keys, self.split_of, strict=True)
        ]

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """Read one chip; see ``Source.read`` and ``Scene.read`` for errors."""
        chosen = self.modalities.names if names is None else self.modalities.select(names).names
        window, label = self._windows[index], self._rule.label
        sample = self._area.read(window, [*chosen, label] if label else chosen)
        if self._labelled is not None:
            drawn = self._labelled.read(window, self.split_of[index])
            return replace(sample, key=self.keys[index], label=drawn)
        if not label:
            return replace(sample, key=self.keys[index])
        classes = self._classes(sample, window)
        return replace(sample.select(chosen), key=self.keys[index], label=classes)

    def features(self, index: int) -> npt.NDArray[np.int64]:
        """The vector feature at each pixel of a chip, (H, W), -1 where there is none."""
        if self._labelled is None:
            raise ConfigError(f"{self.name}: has no vector labels")
        return self._labelled.features(self._windows[index])

    def feature_groups(self, *, block: int = 0) -> int:
        """Number of square blocks of ``block`` chips that hold vector features; 0: of features."""
        if self._labelled is None:
            raise ConfigError(f"{self.name}: has no vector labels")
        rule = SplitRule(block=block, polygons=not block)
        return self._labelled.groups(self._rule, rule)

    def _classes(self, sample: Sample, window: Window) -> npt.NDArray[np.int64]:
        """The label: indices of classes (H, W), -1 where none is valid."""
        name = self._rule.label
        ratio = self._area.ratios[name]
        indices = np.full((window.height // ratio, window.width // ratio), -1, dtype=np.int64)
        if name in sample.pixels:
            ids = sample.pixels[name][0]
            ok = sample.valid[name][0] if name in sample.valid else np.ones(ids.shape, dtype=bool)
            for index, class_id in enumerate(self._area.modalities[name].class_ids):
                indices[ok & (ids == class_id)] = index
        return indices

    def _keep(self, window: Window) -> bool:
        if not self._area.contains_chip(window):
            return False
        asked = self._rule.min_valid
        sample = self._area.read(window, list(asked))
        for name, least in asked.items():
            if name not in sample.pixels or _valid_fraction(sample, name) < least:
                self.skipped["empty"] += 1
                return False
        cloud = self._rule.cloud
        if cloud is not None:
            ids = self._area.cloud_ids(window, cloud)
            if ids.size and np.isin(ids, cloud.classes).mean() > cloud.max_fraction:
                self.skipped["cloudy"] += 1
                return False
        return True

    def _skipped_text(self) -> str:
        return ", ".join(f"{count} {why}" for why, count in self.skipped.items())


def _valid_fraction(sample: Sample, name: str) -> float:
    return float(sample.valid[name].mean()) if name in sample.valid else 1.0


def _splits_of(rule: SplitRule | None) -> list[str]:
    """The splits that a rule makes, "train" first."""
    if rule is None:
        return []
    return ["train", *rule.shares, *(["test"] if rule.folds else [])]


def open_scene(path: Path) -> SceneChips:
    """The chips of a scene file, every modality at its own ratio."""
    scene = Scene(path, native=True)
    return SceneChips(scene, None if scene.labels is None else VectorLabels(scene.labels))
