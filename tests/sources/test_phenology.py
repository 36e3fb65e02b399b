"""The synthetic farmland: no single date separates the crops, and no late date the clearings."""

from __future__ import annotations

import numpy as np
import pytest

from multimae_eo.errors import ConfigError
from multimae_eo.sources.phenology import CROPS, SeriesOptions, SyntheticSeries


def values(source: SyntheticSeries, index: int) -> np.ndarray:
    """Reflectance of the first pixel on every date: (T, 4)."""
    return source.read(index).pixels["s2"][:, :, 0, 0].astype(np.float64)


def test_equal_arguments_give_equal_chips():
    options = SeriesOptions(radar=True, missing=0.3)
    a, b = (SyntheticSeries(12, 6, seed=4, options=options) for _ in range(2))
    for i in range(12):
        for name in a.read(i).pixels:
            assert np.array_equal(a.read(i).pixels[name], b.read(i).pixels[name])
    other = SyntheticSeries(12, 6, seed=5, options=options)
    assert not np.array_equal(a.read(0).pixels["elevation"], other.read(0).pixels["elevation"])
    one = a.read(3, ["s1"])
    assert np.array_equal(one.pixels["s1"], a.read(3).pixels["s1"])
    assert list(one.dates) == ["s1"]


def test_dates_differ_and_those_of_the_test_chips_are_new():
    source = SyntheticSeries(60, 4, options=SeriesOptions(dates=9, radar=True))
    blocks: dict[str, set[int]] = {"train": set(), "val": set(), "test": set()}
    for i, split in enumerate(source.split_of):
        sample = source.read(i)
        assert not set(sample.dates["s1"]) & set(sample.dates["s2"])
        start = np.datetime64("2021-01-01" if split == "test" else "2019-01-01")
        days = sample.dates["s2"] - (start - np.datetime64("1970-01-01")).astype(int)
        blocks[split] |= set((days // 10).astype(int).tolist())
    assert len(blocks["test"]) > 12
    assert not blocks["test"] & (blocks["train"] | blocks["val"])


def test_missing_dates_and_clouds():
    options = SeriesOptions(dates=12, missing=0.33, clouds=0.5)
    source, complete = (
        SyntheticSeries(60, 6, options=o) for o in (options, SeriesOptions(dates=12, clouds=0.5))
    )
    counts = [len(source.read(i).dates["s2"]) for i in range(60)]
    assert 0.25 < 1 - np.mean(counts) / 12 < 0.42
    assert min(counts) >= 1
    for i in range(5):
        assert set(source.read(i).dates["s2"]) <= set(complete.read(i).dates["s2"])
    seen = np.mean([complete.read(i).validity("s2").mean() for i in range(60)])
    assert 0.65 < seen < 0.85
    with pytest.raises(ConfigError, match="dates"):
        SeriesOptions(dates=19)
    with pytest.raises(ConfigError, match="clouds"):
        SeriesOptions(clouds=1.0)


@pytest.mark.slow
def test_the_crop_follows_from_the_series_and_not_from_one_date():
    from sklearn.ensemble import RandomForestClassifier

    source = SyntheticSeries(1500, 1, options=SeriesOptions(dates=18, clouds=0.0))
    train = source.split("train").tolist()
    x = np.stack([values(source, i) for i in train])
    y = np.array([source.read(i).label for i in train])
    assert set(y) == set(range(len(CROPS)))

    def accuracy(features: np.ndarray) -> float:
        forest = RandomForestClassifier(40, random_state=0, n_jobs=1)
        forest.fit(features[:500], y[:500])
        return float(forest.score(features[500:], y[500:]))

    assert max(accuracy(x[:, t]) for t in range(0, 18, 2)) < 0.6
    assert accuracy(x.reshape(len(x), -1)) > 0.9


def test_cleared_land_looks_like_land_that_was_always_bare():
    source = SyntheticSeries(80, 8, options=SeriesOptions(dates=2, clouds=0.0, label="change map"))
    before, after, bare = [], [], []
    for i in range(80):
        sample = source.read(i)
        cleared, pixels = sample.label == 1, sample.pixels["s2"].astype(np.float64)
        if cleared.any():
            before.append(pixels[0][:, cleared].mean(axis=1))
            after.append(pixels[-1][:, cleared].mean(axis=1))
        quiet = ~cleared & (pixels[:, 3].max(axis=0) < 3000) & (pixels[:, 2].min(axis=0) > 900)
        if quiet.any():
            bare.append(pixels[-1][:, quiet].mean(axis=1))
    before, after, bare = (np.mean(x, axis=0) for x in (before, after, bare))
    assert np.allclose(after, bare, rtol=0.1)
    assert before[2] < 0.5 * after[2]
