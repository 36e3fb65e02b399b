"""A full disk: one line, exit code 1, and nothing half-written under its final name.

No file may grow beyond a limit here, so that writing fails midway in every library, GDAL's and
torch's own included.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from multimae_eo.errors import OutputError
from multimae_eo.scenes.raster_output import Profile, RowWriter
from multimae_eo.sources.scene.scene import Grid
from multimae_eo.sources.synthetic import write_synthetic_data
from tests.support.marks import mostly_slow
from tests.support.reference_model import write_checkpoint

resource = pytest.importorskip("resource", reason="limits of file sizes are a Unix matter")

Refused = Callable[..., str]


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond ``limit`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files(out: Path) -> dict[str, bytes]:
    """Everything in a folder but TensorBoard's log, which grows as a run goes on."""
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and "tensorboard" not in p.parts
    }


def fails(refused: Refused, arguments: list[str], out: Path, clean: Path, limit: int) -> set[str]:
    """Run without room: what is left is of ``clean``, and whole. The names of what is left."""
    with full_disk(limit):
        message = refused(*arguments, "--out", str(out))
    assert "cannot" in message
    assert str(out) in message
    left, expected = files(out), files(clean)
    assert [n for n in left if left[n] != expected.get(n)] == []
    return set(left)


@pytest.mark.parametrize("limit", mostly_slow([0, 600, 9_000, 50_000], fast=[600]))
def test_prepare_can_be_continued(made, run, refused, tmp_path, limit):
    out, arguments = tmp_path / "out", ["prepare", made / "world/dataset.yaml"]
    left = fails(refused, arguments, out, made.folder / "store", limit)
    assert "index.parquet" not in left
    assert run(*arguments, "--out", str(out))[0] == 0
    assert files(out) == files(made.folder / "store")


@pytest.mark.parametrize("limit", mostly_slow([0, 1_000, 2_500, 20_000], fast=[1_000]))
def test_pretrain_leaves_no_part_of_a_checkpoint_and_can_be_continued(
    made, run, refused, tmp_path, limit
):
    out, expected = tmp_path / "out", files(made.folder / "run")
    arguments = ["pretrain", "--recipe", "quickstart", "--data", made / "store", *made.small]
    with full_disk(limit):
        refused(*arguments, "--out", str(out))
    left = files(out)
    assert set(left) <= set(expected), "no temporary file is left"
    assert not {"model/model.safetensors", "checkpoints/last.ckpt"} & set(left)
    assert run(*arguments, "--out", str(out))[0] == 0
    name = "model/model.safetensors"
    assert files(out)[name] == expected[name]


@pytest.mark.parametrize("limit", mostly_slow([0, 700, 12_000], fast=[700]))
def test_reconstructing_chips(made, run, refused, tmp_path, limit):
    arguments = ["reconstruct", "--model", made / "run/model", "--data", made / "store",
                 "--inputs", "rgb", "--split", "test", "--limit", "1", "--draws", "1"]  # fmt: skip
    clean = tmp_path / "clean"
    assert run(*arguments, "--out", str(clean))[0] == 0
    left = fails(refused, arguments, tmp_path / "out", clean, limit)
    assert "index.html" not in left, "it is written last"


@pytest.mark.parametrize("limit", mostly_slow([0, 2_000], fast=[2_000]))
def test_reconstructing_a_scene(made, run, refused, tmp_path, limit):
    scene = made / "world/scene.yaml"
    arguments = ["reconstruct", "--model", made / "run/model", "--scene", scene,
                 "--inputs", "rgb", "--outputs", "elevation"]  # fmt: skip
    clean = tmp_path / "clean"
    assert run(*arguments, "--out", str(clean))[0] == 0
    assert (clean / "elevation.tif").stat().st_size > limit
    assert not fails(refused, arguments, tmp_path / "out", clean, limit)


def test_probing(made, refused, tmp_path):
    arguments = ["probe", "--model", made / "run/model", "--data", made / "store",
                 "--inputs", "rgb", "--methods", "knn"]  # fmt: skip
    assert not fails(refused, arguments, tmp_path / "out", tmp_path / "clean", 100)


@pytest.mark.parametrize("limit", mostly_slow([0, 3_000, 100_000], fast=[3_000]))
def test_converting(refused, tmp_path, limit):
    out = tmp_path / "made" / "model"
    checkpoint = tmp_path / "checkpoint-999.pth"
    write_checkpoint(checkpoint)
    assert not fails(refused, ["convert", str(checkpoint)], out, tmp_path / "clean", limit)
    assert not list((tmp_path / "made").iterdir()), "not even a hidden folder"


def test_the_systems_own_words_are_passed_on(made, refused, tmp_path, monkeypatch):
    """ENOSPC, as only a device that is really full gives it."""

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    told = refused("prepare", made / "world/dataset.yaml", "--out", str(tmp_path / "out"))
    assert "No space left on device; free space" in told
    assert files(tmp_path / "out") == {}


def write_raster(path: Path, pixels: np.ndarray, limit: int) -> None:
    """Rows are written with room enough; the COG is not."""
    import rasterio

    grid = Grid(
        crs="EPSG:32630",
        transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
        height=pixels.shape[1],
        width=pixels.shape[2],
    )
    writer = RowWriter(path, grid, Profile(bands=("a",), dtype="float32", nodata=float("nan")))
    try:
        writer.write(pixels)
        writer._file.close()
        with full_disk(limit):
            writer.finish()
    finally:
        writer.discard()


@pytest.mark.parametrize("missing", mostly_slow([1, 20, 700, 40_000, 200_000], fast=[1]))
def test_a_raster_that_lacks_its_last_bytes_is_not_renamed_into_place(tmp_path, missing):
    """GDAL keeps silent about what it cannot flush when it closes a file."""
    rasterio = pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).random((1, 700, 700)).astype(np.float32)
    path = tmp_path / "map.tif"
    write_raster(path, pixels, 1 << 30)
    with rasterio.open(path) as dataset:
        assert np.array_equal(dataset.read(), pixels)
    size = path.stat().st_size
    path.unlink()
    with pytest.raises(OutputError, match="free space") as told:
        write_raster(path, pixels, size - missing)
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [4_900, 20_900, 21_000])
def test_a_world_holds_only_whole_chips(tmp_path, limit):
    rasterio = pytest.importorskip("rasterio")
    with full_disk(limit), pytest.raises(OutputError, match="cannot be written: File too large"):
        write_synthetic_data(tmp_path, chips=4, size=32, scene=192)
    for path in tmp_path.rglob("*.*"):
        assert path.suffix == ".tif"
        with rasterio.open(path) as dataset:
            dataset.read()
