"""A store, a run, a model, a map and embeddings of release 0.1.0 open, resume and are equal."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from multimae_eo.cli import main
from multimae_eo.loading.open_source import open_source
from tests.support.paths import ROOT

FIXTURE = ROOT / "tests/fixtures/release_0_1"

SMALL = (
    "--modalities=[rgb, elevation, landcover]",
    "--model.encoder={width: 16, depth: 1, heads: 2}",
    "--model.decoder={width: 8, depth: 1, heads: 2}",
    "--data.chip=16",
    "--data.batch_size=2",
    "--masking.visible=6",
    "--run.epochs=3",
)


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "release"
    shutil.copytree(FIXTURE, copy)
    monkeypatch.chdir(copy)
    return copy


def test_a_store_opens_with_equal_pixels(release: Path) -> None:
    source = open_source(release / "store")
    assert len(source) == 10
    stored = np.load(release / "store/rgb/00000.npy")
    for index in range(len(source)):
        sample = source.read(index)
        assert {"rgb", "elevation", "landcover"} <= sample.pixels.keys()
    np.testing.assert_array_equal(source.read(0).pixels["rgb"], stored[0])


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_equal_weights(release: Path) -> None:
    """Killed after two of three epochs by 0.1.0; the third is trained here."""
    run = ["pretrain", "--recipe", "quickstart", "--data", "store", "--out", "run"]
    assert main([*run, *SMALL]) == 0
    ours = load_file(release / "run/model/model.safetensors")
    theirs = load_file(release / "model/model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        # Other processors sum in another order.
        np.testing.assert_allclose(ours[name], expected, atol=2e-5, rtol=1e-4, err_msg=name)


def test_a_map_is_equal(release: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    scene = ["reconstruct", "--model", "model", "--scene", "scene.yaml", "--inputs", "rgb"]
    assert main([*scene, "--outputs", "elevation,landcover", "--out", "new"]) == 0
    for name, tolerance in (("elevation", 1e-3), ("landcover", 0)):
        with rasterio.open(release / "map" / f"{name}.tif") as file:
            expected, profile = (
                file.read(),
                (file.crs, file.transform, str(file.nodata), file.dtypes),
            )
        with rasterio.open(release / "new" / f"{name}.tif") as file:
            assert (file.crs, file.transform, str(file.nodata), file.dtypes) == profile
            np.testing.assert_allclose(file.read(), expected, atol=tolerance)


def test_embeddings_are_equal(release: Path) -> None:
    import pyarrow.parquet as pq

    embed = ["embed", "--model", "model", "--data", "store", "--inputs", "rgb"]
    assert main([*embed, "--out", "new.parquet"]) == 0
    # Rows are in another order since 0.2.
    ours, theirs = (
        pq.read_table(release / n).sort_by("key") for n in ("new.parquet", "chips.parquet")
    )
    assert ours["key"].to_pylist() == theirs["key"].to_pylist()
    a, b = (np.array(t["vector"].to_pylist()) for t in (ours, theirs))
    np.testing.assert_allclose(a, b, atol=1e-5)
