"""Tortilla files of the format's own writer, read here and with the format's own reader."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from multimae_eo.sources.geobench2.source import GeoBench2Source
from multimae_eo.sources.geobench2.tortilla import read_image, stored_files
from tests.support.tortilla_files import geotiff

STAC = {
    "crs": "EPSG:32634",
    "geotransform": (500000.0, 10.0, 0.0, 5200000.0, 0.0, -10.0),
    "raster_shape": (16, 16),
    "time_start": 1.5e9,
}


@pytest.fixture
def written(tmp_path):
    """cloudsen12 with three chips, made as the benchmark makes it; their images and masks."""
    writer = pytest.importorskip("pytortilla", reason="pytortilla is not here: make plugins")
    rng = np.random.default_rng(0)
    chips, samples = [], []
    for number, split in enumerate(("train", "validation", "test")):
        image = rng.integers(1, 9000, (12, 16, 16)).astype(np.uint16)
        mask = rng.integers(0, 4, (1, 16, 16)).astype(np.uint8)
        parts = []
        for name, pixels in (("s2l2a", image), ("target", mask)):
            file = tmp_path / f"{number}-{name}.tif"
            file.write_bytes(geotiff(pixels))
            parts.append(
                writer.datamodel.Sample(
                    id=name, path=file, file_format="GTiff", data_split=split, stac_data=STAC
                )
            )
        inner = tmp_path / f"chip-{number}.tortilla"
        writer.create(writer.datamodel.Samples(samples=parts), inner, nworkers=1, quiet=True)
        samples.append(
            writer.datamodel.Sample(
                id=f"chip-{number}", path=inner, file_format="TORTILLA", data_split=split,
                stac_data=STAC,
            )
        )  # fmt: skip
        chips.append((image, mask))
    path = tmp_path / "cloudsen12" / "geobench_cloudsen12.tortilla"
    writer.create(writer.datamodel.Samples(samples=samples), path, nworkers=1, quiet=True)
    return path, chips


@pytest.mark.slow
def test_a_data_set_of_the_formats_writer_is_read(written):
    path, chips = written
    source = GeoBench2Source(path)
    assert source.keys == ["chip-0", "chip-1", "chip-2"]
    assert list(source.split_of) == ["train", "val", "test"]
    for index, (image, mask) in enumerate(chips):
        sample = source.read(index)
        np.testing.assert_array_equal(sample.pixels["rgb"], image[[3, 2, 1]])
        np.testing.assert_array_equal(sample.label, mask[0])
    assert source.read(0).time == "2017-07-14"
    assert source.read(0).geometry.bounds == (500000.0, 5199840.0, 500160.0, 5200000.0)


@pytest.mark.slow
def test_the_formats_former_reader_sees_the_same(written):
    import rasterio

    path, _ = written
    reader = pytest.importorskip("tacoreader", reason="tacoreader is not here: make plugins")
    if not reader.__version__.startswith("0."):  # which torchgeo-bench asks for
        reader = importlib.import_module("tacoreader.v1")
    table = reader.load(str(path))
    for row, chip in enumerate(stored_files(path)):
        assert chip.name == table.iloc[row]["tortilla:id"]
        theirs = table.read(row)
        for position, file in enumerate(stored_files(path, chip.offset)):
            with rasterio.open(theirs.read(position)) as opened:
                np.testing.assert_array_equal(read_image(path, file), opened.read())
