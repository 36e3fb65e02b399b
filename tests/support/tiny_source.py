"""A small made-up source whose chips follow from their index alone, and ways to compare samples.

As a program, ``python tiny_source.py OUT CHIPS DELAY WORKERS``, it prepares such a source slowly.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from multimae_eo.catalog import make_class_map, make_modality
from multimae_eo.geo import Geometry
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Batch, Calibration, Sample
from multimae_eo.sources.base import Source

SPLITS = ("train", "train", "val", "train", "test", "")
SIDES = {"rgb": 16, "elevation": 8, "landcover": 16}


def modalities() -> ModalitySet:
    """Optical with product levels (16 px), elevation at half its resolution, a class map."""
    return ModalitySet(
        [
            make_modality("rgb", sensor_name="sentinel2", bands=("B4", "B3", "B2")),
            make_modality("elevation", sensor_name="dem", bands=("elevation",)),
            make_class_map("landcover", class_map_name="esa_worldcover"),
        ]
    )


class TinySource(Source):
    """``whole``: every chip has every modality. ``labels``: index, value, vector, map or none."""

    def __init__(
        self, chips: int = 12, *, whole: bool = False, labels: str = "index", delay: float = 0.0
    ) -> None:
        self.name = "tiny"
        self.modalities = modalities()
        self.keys = [f"chip-{i}" for i in range(chips)]
        self.split_of = [SPLITS[i % len(SPLITS)] for i in range(chips)]
        self.class_names = ("a", "b", "c")
        self.whole, self.labels, self.delay = whole, labels, delay

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        time.sleep(self.delay)
        rng = np.random.default_rng((17, index))
        pixels: dict[str, np.ndarray] = {
            "rgb": rng.integers(1, 4000, (3, 16, 16)).astype(np.uint16),
            "elevation": rng.normal(300, 50, (1, 8, 8)).astype(np.float32),
            "landcover": rng.choice([10, 30, 50, 80], (1, 16, 16)).astype(np.uint8),
        }
        lacking = () if self.whole else (("elevation",), (), ("rgb",), ())[index % 4]
        chosen = self.modalities if names is None else names
        pixels = {n: p for n, p in pixels.items() if n in chosen and n not in lacking}
        valid = {}
        if index % 3 == 0 and "rgb" in pixels:
            valid["rgb"] = rng.random((3 if index % 2 else 1, 16, 16)) > 0.2
        level = "l1c" if index % 2 else "l2a"
        how = Calibration(scale=1e-4, offset=-0.1 * (index % 2), level=level)
        geometry = Geometry(crs=f"EPSG:{32630 + index % 2}", bounds=(index, 0, index + 0.5, 2.25))
        return Sample(
            key=self.keys[index],
            pixels=pixels,
            valid=valid,
            calibration={"rgb": how} if "rgb" in pixels else {},
            geometry=None if index % 5 == 4 else geometry,
            time=None if index % 3 == 1 else f"2020-06-{index % 28 + 1:02d}T10:00:00Z",
            label=self._label(index, rng),
        )

    def _label(self, index: int, rng: np.random.Generator) -> Any:
        kinds = {
            "none": None,
            "index": index % 3,
            "value": np.float32(index / 7),
            "vector": (rng.random(3) > 0.5).astype(np.float32),
            "map": rng.integers(-1, 3, (16, 16)),
        }
        return kinds[self.labels]


class BrokenSource(TinySource):
    """Cannot read one chip."""

    def __init__(self, chips: int, broken: int) -> None:
        super().__init__(chips)
        self.broken = broken

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        if index == self.broken:
            raise OSError("the disk hums")
        return super().read(index, names)


class UnevenSource(TinySource):
    """Some chips have a smaller class map."""

    def __init__(self, chips: int, odd: tuple[int, ...]) -> None:
        super().__init__(chips)
        self.odd = odd

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        sample = super().read(index, names)
        if index in self.odd:
            smaller = {**sample.pixels, "landcover": np.full((1, 8, 8), 10, np.uint8)}
            return replace(sample, pixels=smaller)
        return sample


def assert_same_array(a: Any, b: Any) -> None:
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()


def assert_same_sample(source: Source, a: Sample, b: Sample) -> None:
    """Equal to the bit; an entry of validity that is true everywhere may be left out."""
    assert (a.key, a.time, a.geometry) == (b.key, b.time, b.geometry)
    assert list(a.pixels) == list(b.pixels)
    for name, modality in source.modalities.items():
        if name in a.pixels:
            assert_same_array(a.pixels[name], b.pixels[name])
            assert a.calibration_of(modality) == b.calibration_of(modality)
            masks = [s.valid.get(name) for s in (a, b)]
            masks = [None if m is None or m.all() else m for m in masks]
            assert (masks[0] is None) == (masks[1] is None)
            if masks[0] is not None:
                assert_same_array(*masks)
        else:
            assert name not in b.valid
    assert (a.label is None) == (b.label is None)
    if a.label is not None:
        assert_same_array(a.label, b.label)


def assert_same_batch(a: Batch, b: Batch) -> None:
    assert a.keys == b.keys
    assert a.complete == b.complete
    assert a.modalities == b.modalities
    for ours, theirs in ((a.pixels, b.pixels), (a.valid, b.valid)):
        assert list(ours) == list(theirs)
        for name in ours:
            assert_same_array(ours[name].numpy(), theirs[name].numpy())
    for name in ("present", "scale", "offset", "level"):
        assert_same_array(getattr(a, name).numpy(), getattr(b, name).numpy())
    assert (a.labels is None) == (b.labels is None)
    if a.labels is not None and b.labels is not None:
        assert_same_array(a.labels.numpy(), b.labels.numpy())


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and its bytes."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def main() -> None:
    from multimae_eo.store.writer import prepare

    out, chips, delay, workers = sys.argv[1:]
    source = TinySource(int(chips), labels="map", delay=float(delay))
    prepare(source, Path(out), shard_chips=4, workers=int(workers))


if __name__ == "__main__":
    main()
