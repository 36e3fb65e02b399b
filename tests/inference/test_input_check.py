"""A model looks at its inputs: real data with each way to be wrong, and as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from multimae_eo.errors import InputWarning
from multimae_eo.inference.input_check import best_order, check_samples, check_source
from multimae_eo.loading.open_source import open_source
from multimae_eo.sample import Sample
from multimae_eo.sources.base import Source
from multimae_eo.statistics import Statistics
from tests.support.paths import DATA, ROOT

pytest.importorskip("rasterio")
_INPUTS = {
    "eurosat_ms": ("rgb", "ired", "sired", "ebands"),
    "hls_water": ("optical",),
    "scene_aberystwyth": ("optical",),
}


@pytest.fixture(params=_INPUTS)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _opened(request.param, tmp_path_factory.getbasetemp())


@cache
def _opened(name: str, folder: Path) -> tuple[Source, Statistics]:
    """The example's optical inputs, and a model's statistics of every eighth chip."""
    record = yaml.safe_load((ROOT / f"examples/{name}.yaml").read_text(encoding="utf-8"))
    record["root"] = str(DATA / name)
    record["modalities"] = {n: record["modalities"][n] for n in _INPUTS[name]}
    record.pop("labels", None)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(record, sort_keys=False), encoding="utf-8")
    source = open_source(path)
    return source, source.statistics(range(0, len(source), 8))


def _chips(source: Source, seed: int = 0) -> list[Sample]:
    chosen = np.random.default_rng(seed).choice(len(source), 12, replace=False)
    return [source.read(int(i)) for i in chosen]


def _recalibrated(source: Source, chips: Sequence[Sample], **change: Any) -> list[Sample]:
    return [
        replace(
            chip,
            calibration={
                n: replace(chip.calibration_of(source.modalities[n]), **change) for n in chip.pixels
            },
        )
        for chip in chips
    ]


def _warning(source: Source, statistics: Statistics, chips: Sequence[Sample]) -> str:
    with pytest.warns(InputWarning) as caught:
        text = check_samples(source.modalities, statistics, chips, where="scene")
    assert len(caught) == 1, "one warning"
    return text


def test_clean_data_give_no_warning(example: Any, recwarn: pytest.WarningsRecorder) -> None:
    source, statistics = example
    for seed in range(2):
        assert not check_samples(
            source.modalities, statistics, _chips(source, seed), where=source.name
        )
    names = list(source.modalities)
    assert not check_source(source.modalities, statistics, source, range(30), inputs=names)
    assert not [w for w in recwarn if issubclass(w.category, InputWarning)]


@pytest.mark.parametrize("factor", [10, 1e3, 1e4, 1e-3])
def test_a_wrong_scale_is_reported_with_the_right_one(example: Any, factor: float) -> None:
    source, statistics = example
    scale = next(iter(source.modalities.values())).scale
    chips = _recalibrated(source, _chips(source), scale=scale * factor)
    assert f"declare `scale: {scale:.4g}`" in _warning(source, statistics, chips)


def test_the_offset_of_1000_is_reported(example: Any) -> None:
    source, statistics = example
    for seed in range(2):
        chips = _recalibrated(source, _chips(source, seed), offset=0.1)
        assert "offset: -0.1" in _warning(source, statistics, chips)


@pytest.mark.parametrize("example", ["eurosat_ms", "scene_aberystwyth"], indirect=True)
def test_pixels_ten_times_as_large_are_reported(example: Any) -> None:
    """HLS chips have no footprint."""
    source, statistics = example
    chips = _chips(source)
    assert chips[0].geometry is not None
    left, bottom, right, top = chips[0].geometry.bounds
    wide = (left, bottom, left + 10 * (right - left), bottom + 10 * (top - bottom))
    wide_chips = [replace(c, geometry=replace(chips[0].geometry, bounds=wide)) for c in chips]
    assert "pixels of 100 m" in _warning(source, statistics, wide_chips)


@pytest.mark.parametrize("example", ["eurosat_ms", "scene_aberystwyth"], indirect=True)
def test_another_level_is_reported(example: Any) -> None:
    """HLS has one level only."""
    source, statistics = example
    first = next(iter(source.modalities.values()))
    now = _chips(source)[0].calibration_of(first).level
    other = next(level for level in first.levels if level != now)
    chips = _recalibrated(source, _chips(source), level=other)
    assert f"learnt from {now} only" in _warning(source, statistics, chips)


def test_top_of_atmosphere_declared_as_surface_is_reported(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    surface, statistics = _opened("scene_aberystwyth", tmp_path_factory.getbasetemp())
    record = yaml.safe_load((ROOT / "examples/eurosat_ms.yaml").read_text(encoding="utf-8"))
    record["root"] = str(DATA / "eurosat_ms")
    bands = list(surface.modalities["optical"].band_names)
    record["modalities"] = {
        "optical": {"sensor": "sentinel2", "bands": bands, "level": "l2a", "scale": 1e-4, "gsd": 10}
    }
    path = tmp_path_factory.mktemp("l1c") / "d.yaml"
    path.write_text(yaml.safe_dump(record), encoding="utf-8")
    text = _warning(surface, statistics, _chips(open_source(path)))
    assert "declared l2a, but the data look like l1c" in text


def test_shuffled_bands_are_reported(example: Any) -> None:
    source, statistics = example
    chips = []
    for chip in _chips(source):
        pixels = {n: p[::-1] for n, p in chip.pixels.items()}
        valid = {n: v[::-1] for n, v in chip.valid.items()}
        chips.append(replace(chip, pixels=pixels, valid=valid))
    assert "the bands look shuffled" in _warning(source, statistics, chips)


def test_the_order_is_found_again() -> None:
    rng = np.random.default_rng(0)
    mean, std = np.array([0.05, 0.1, 0.3, 0.2]), np.array([0.01, 0.02, 0.1, 0.05])
    values = rng.normal(mean[:, None], std[:, None], (4, 2000))
    assert best_order(values, mean, std) is None
    assert best_order(values[[2, 0, 1, 3]], mean, std) == [1, 2, 0, 3]
