"""Whatever a source holds, its chip store gives back: pixels, validity, calibration, labels."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from multimae_eo.catalog import make_class_map, make_modality
from multimae_eo.geo import Geometry
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Calibration, Sample
from multimae_eo.sources.base import Source
from multimae_eo.store.reader import ChipStore
from multimae_eo.store.writer import prepare

MODALITIES = ModalitySet(
    [
        make_modality("optical", sensor_name="sentinel2", bands=("B4", "B3", "B2")),
        make_modality("elevation", sensor_name="dem", bands=("elevation",)),
        make_class_map("landcover", class_map_name="esa_worldcover"),
    ]
)
TYPES = ("u1", "<u2", "<i2", "<i4", "<f4", "<f8")
FINITE = st.floats(-1e6, 1e6)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@dataclass
class Listed(Source):
    """Chips from a list."""

    samples: list[Sample]
    split_of: Sequence[str]
    name: str = "listed"
    modalities: ModalitySet = MODALITIES

    def __post_init__(self) -> None:
        self.keys = [s.key for s in self.samples]

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        sample = self.samples[index]
        return sample if names is None else sample.select(names)


@st.composite
def labels(draw: st.DrawFn) -> st.SearchStrategy[Any]:
    """A strategy for the labels of one source: of one kind, some of them missing."""
    kinds: list[st.SearchStrategy[Any]] = [
        st.integers(-(2**62), 2**62),
        # Parquet keeps that a label is not a number, but not the sign of it.
        st.floats(width=64).map(lambda x: math.nan if math.isnan(x) else x),
        st.booleans().map(np.bool_),
        st.floats(width=32, allow_infinity=True).map(np.float32),
        hnp.arrays(np.float32, 4, elements=st.sampled_from([0.0, 1.0])),
        hnp.arrays(np.uint8, 3),
        hnp.arrays(np.int64, (5, 3), elements=st.integers(-1, 9)),
        hnp.arrays(np.int16, (4, 4)),
    ]
    kind = draw(st.sampled_from(kinds))
    return draw(st.sampled_from([st.none(), kind, st.none() | kind]))


@st.composite
def validity(draw: st.DrawFn, shape: tuple[int, int, int]) -> npt.NDArray[np.bool_] | None:
    bands = draw(st.sampled_from([0, 1, shape[0]]))
    if not bands:
        return None
    fill = st.just(True) if draw(st.booleans()) else st.booleans()
    return draw(hnp.arrays(np.bool_, (bands, *shape[1:]), elements=st.booleans(), fill=fill))


@st.composite
def sources(draw: st.DrawFn) -> Listed:
    shapes = {
        n: (m.channels, draw(st.integers(1, 10)), draw(st.integers(1, 10)))
        for n, m in MODALITIES.items()
    }
    types = {n: draw(st.sampled_from(TYPES)) for n in ("optical", "elevation")}
    arrays = {n: hnp.arrays(np.dtype(t), shapes[n]) for n, t in types.items()}
    ids = st.sampled_from(MODALITIES["landcover"].class_ids)
    arrays["landcover"] = hnp.arrays(np.uint8, shapes["landcover"], elements=ids)
    if types["elevation"][-2] == "f" or types["optical"][-2] == "f":
        number = {n: st.floats(-1e4, 1e4, width=32) for n, t in types.items() if t[-2] == "f"}
        for name, elements in number.items():
            arrays[name] = hnp.arrays(np.dtype(types[name]), shapes[name], elements=elements)
    label = draw(labels())
    samples = []
    for i in range(draw(st.integers(1, 7))):
        present = draw(st.sets(st.sampled_from(MODALITIES.names), min_size=1))
        masks = {n: draw(validity(shapes[n])) for n in present}
        levels = {"optical": st.sampled_from(MODALITIES["optical"].levels)}
        calibration = {
            n: Calibration(
                scale=draw(FINITE.filter(bool)),
                offset=draw(FINITE),
                level=draw(levels.get(n, st.just(""))),
            )
            for n in sorted(present - {"landcover"})
            if n == "optical" or draw(st.booleans())
        }
        left, bottom = draw(FINITE), draw(FINITE)
        geometry = Geometry(crs=draw(TEXT), bounds=(left, bottom, left + 10, bottom + 0.5))
        samples.append(
            Sample(
                key=f"{i}-{draw(TEXT)}",
                pixels={n: draw(arrays[n]) for n in MODALITIES if n in present},
                valid={n: m for n, m in masks.items() if m is not None},
                calibration=calibration,
                geometry=draw(st.sampled_from([None, geometry])),
                time=draw(st.none() | TEXT),
                label=draw(label),
            )
        )
    splits = st.sampled_from(["train", "val", "test", ""])
    return Listed(samples, [draw(splits) for _ in samples])


def bits(array: Any) -> tuple[Any, ...]:
    """Everything that tells two arrays apart; NaN equals itself."""
    array = np.asarray(array)
    return array.dtype, array.shape, array.tobytes()


def assert_same(source: Listed, ours: Sample, theirs: Sample) -> None:
    assert (ours.key, ours.time, ours.geometry) == (theirs.key, theirs.time, theirs.geometry)
    assert list(ours.pixels) == list(theirs.pixels)
    for name, pixels in theirs.pixels.items():
        assert bits(ours.pixels[name]) == bits(pixels)
        modality = source.modalities[name]
        assert ours.calibration_of(modality) == theirs.calibration_of(modality)
        mask = theirs.valid.get(name)
        if mask is None or mask.all():
            assert name not in ours.valid
        else:
            assert bits(ours.valid[name]) == bits(mask)
    assert (ours.label is None) == (theirs.label is None)
    if theirs.label is not None:
        assert bits(ours.label) == bits(theirs.label)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(source=sources(), shard_chips=st.integers(1, 4))
def test_every_chip_of_any_source_comes_back_to_the_bit(source, shard_chips):
    with tempfile.TemporaryDirectory() as folder:
        prepare(source, Path(folder) / "store", shard_chips=shard_chips)
        store = ChipStore(Path(folder) / "store")
        assert (store.keys, store.split_of) == (source.keys, list(source.split_of))
        for i, sample in enumerate(source.samples):
            assert_same(source, store.read(i), sample)
            assert_same(source, store.read(i, ["elevation"]), sample.select(["elevation"]))
        assert store.verify() == []
        for split in source.splits:
            chosen = source.split(split)
            kept, slow = store.statistics(chosen), source.statistics(chosen)
            for name, levels in slow.moments.items():
                for level, theirs in levels.items():
                    mine = kept.moments[name][level]
                    np.testing.assert_array_equal(mine.count, theirs.count)
                    np.testing.assert_array_equal(mine.minimum, theirs.minimum)
                    np.testing.assert_array_equal(mine.maximum, theirs.maximum)
            for name, counts in slow.class_counts.items():
                np.testing.assert_array_equal(kept.class_counts[name], counts)
