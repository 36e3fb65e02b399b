"""Chips, scenes on the raster's grid and scenes on another one agree with a slow reading."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multimae_eo.geo import Window
from multimae_eo.sample import Sample
from multimae_eo.sources.dataset.dataset_file import DatasetFileSource
from multimae_eo.sources.scene.scene import Scene
from tests.support.slow_raster import (
    LEFT,
    NAMES,
    PIXEL,
    TOP,
    Drawn,
    rasters,
    slow_physical,
    slow_validity,
    slow_window,
    write,
)

rasterio = pytest.importorskip("rasterio")

NUMBERS = itertools.count()
GRIDS = ((0.3, -0.4, 1.0), (-0.7, 0.2, 0.5), (0.1, 0.3, 2.0))
"""Row and column of the other grid's corner in the raster, and its pixels' side."""
SIDE = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a raster on each of the other grids."""
    path = tmp_path_factory.mktemp("rasters")
    for index, (row, col, step) in enumerate(GRIDS):
        left, top = LEFT + col * PIXEL, TOP - row * PIXEL
        with rasterio.open(
            path / f"grid{index}.tif", "w", driver="GTiff", count=1, dtype="uint8", height=SIDE,
            width=SIDE, crs="EPSG:32630",
            transform=rasterio.Affine(step * PIXEL, 0, left, 0, -step * PIXEL, top),
        ) as file:  # fmt: skip
            file.write(np.ones((1, SIDE, SIDE), np.uint8))
            file.descriptions = ("elevation",)
    return path


def modality(drawn: Drawn, path: str) -> dict[str, object]:
    if drawn.classes:
        return {"path": path, "band": "p", "legend": {1: "a", 2: "b", 3: "c"}}
    return {
        "path": path,
        "custom": True,
        "sensor": "own",
        "bands": list(NAMES[: len(drawn.values)]),
    }


def physical(sample: Sample, drawn: Drawn, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Values (C, H, W) in physical units, 0 where not valid, and validity."""
    shape = (len(drawn.values), side, side)
    if "x" not in sample.pixels:
        return np.zeros(shape), np.zeros(shape, bool)
    pixels = sample.pixels["x"].astype(np.float64)
    ok = np.broadcast_to(sample.valid.get("x", np.ones((1, 1, 1), bool)), shape)
    assert not pixels[~ok].any(), "no sentinel travels further"
    if "x" in sample.calibration:
        pixels = pixels * sample.calibration["x"].scale + sample.calibration["x"].offset
    return np.where(ok, pixels, 0), ok


@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn=rasters(), which=st.integers(0, len(GRIDS) - 1))
@pytest.mark.slow
def test_readers_agree_with_a_slow_reading(folder: Path, drawn: Drawn, which: int) -> None:
    for path in folder.glob("x*"):
        path.unlink()
    stem = f"x{next(NUMBERS)}"
    name = write(drawn, folder, stem)
    side = drawn.values.shape[1]
    ok = slow_validity(drawn)
    expected = np.where(ok, slow_physical(drawn, np.where(ok, drawn.values, 0).astype(float)), 0)

    chips = {"modalities": {"x": modality(drawn, name.replace(stem[1:], "{id}"))}}
    (folder / "chips.yaml").write_text(yaml.safe_dump(chips))
    source = DatasetFileSource(folder / "chips.yaml")
    values, valid = physical(source.read(source.index_of(stem[1:]), ["x"]), drawn, side)
    np.testing.assert_array_equal(valid, ok)
    np.testing.assert_allclose(values, expected, rtol=1e-6)

    (folder / "scene.yaml").write_text(yaml.safe_dump({"modalities": {"x": modality(drawn, name)}}))
    scene = Scene(folder / "scene.yaml")
    assert (scene.grid.height, scene.grid.transform.c, scene.grid.transform.f) == (side, LEFT, TOP)
    values, valid = physical(scene.read(scene.grid.extent), drawn, side)
    np.testing.assert_array_equal(valid, ok)
    np.testing.assert_allclose(values, expected, rtol=1e-6)

    row, col, step = GRIDS[which]
    grid = {"path": f"grid{which}.tif", "sensor": "dem", "bands": ["elevation"]}
    record = {"modalities": {"grid": grid, "x": modality(drawn, name)}}
    (folder / "scene.yaml").write_text(yaml.safe_dump(record, sort_keys=False))
    found = Scene(folder / "scene.yaml").read(Window(row=0, col=0, height=SIDE, width=SIDE))
    values, valid = physical(found, drawn, SIDE)
    raw, ok = slow_window(drawn, row=row, col=col, step=step, side=SIDE)
    np.testing.assert_array_equal(valid, ok)
    if drawn.values.dtype.kind != "f":
        # Halves may be rounded either way: both are within half a number of the mean.
        slack = slow_physical(drawn, np.full_like(raw, 0.5 + 1e-6)) - slow_physical(drawn, raw * 0)
        assert (np.abs(values - np.where(ok, slow_physical(drawn, raw), 0)) <= slack).all()
    else:
        np.testing.assert_allclose(
            values, np.where(ok, slow_physical(drawn, raw), 0), rtol=1e-4, atol=1e-4
        )
