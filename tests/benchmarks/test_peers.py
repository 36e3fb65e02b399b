"""The comparison with other packages, in small: whatever of them is installed here."""

from __future__ import annotations

import measure
import numpy as np
import pytest
import torch
from peers import __main__ as peers
from peers import landscape, mae_step, mappers, mapping, seams
from peers.mappers import Forward, Setting
from peers.ratios import installed, paired, ratio_text, table

from multimae_eo.network.config import encoder_named

CHIP, PATCH = 16, 4


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A scene of 64 px and a model fitted to it for a few steps."""
    folder = tmp_path_factory.mktemp("scene")
    path = landscape.write_scene(folder, 64, seed=0)
    model = landscape.make_model(path, encoder="nano", chip=CHIP, patch=PATCH)
    landscape.fit(model, folder, steps=2, batch=4)
    return folder, model


@pytest.fixture(scope="module")
def record():
    options = peers.arguments(["--quick", "--threads=1"])
    vars(options).update(size=96, chip=CHIP, patch=PATCH, fit_steps=2)
    return peers.run(options)


@pytest.mark.slow
def test_every_part_is_measured(record):
    names = ["multimae-eo", *(n for n, v in mappers.versions().items() if v), mapping.ALONE]
    for overlap in ("1/2", "1/8"):
        rows = record["mapping"]["rows"][overlap]
        assert list(rows) == names
        assert all(row["median_s"] > 0 for row in rows.values())
        assert rows["multimae-eo"]["ratio"] == 1
        for name in names[:-1]:
            assert 0 <= rows[name]["error_elsewhere"] < 1
            assert rows[name]["jump_ratio"] > 0
    assert record["step"]["rows"]
    assert len(record["loader"]["rows"]) == 3
    lacking = {n for n, v in {**mappers.versions(), "timm": installed("timm")}.items() if not v}
    assert set(record["missing"]) == lacking


@pytest.mark.slow
def test_the_record_is_printed_and_written(record, tmp_path):
    text = peers.report(record)
    assert "| 1/2" in text
    assert "GFLOP" in text
    assert "careful Dataset" in text
    assert measure.write_results("peers_cpu", record, tmp_path).is_file()


@pytest.mark.slow
def test_the_tables_of_a_page_are_replaced(record, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{peers.BEGIN}\nobsolete\n{peers.END}\nafter\n")
    for _ in range(2):
        peers.write_page(page, record)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("careful Dataset") == 1
    assert "obsolete" not in text
    page.write_text("no comments")
    with pytest.raises(SystemExit, match="expected one pair"):
        peers.write_page(page, record)


def test_the_engine_blends_what_windows_predict(scene, tmp_path):
    """A scene of one window: the map is the forward pass that the peers are given."""
    _, model = scene
    small = tmp_path / "small"
    landscape.write_scene(small, CHIP, seed=3)
    setting = Setting(chip=CHIP, stride=CHIP // 2, batch=2)
    engine = mappers.SceneEngine(model)
    ours = engine.probabilities(small, tmp_path / "map.tif", setting)
    import rasterio

    with rasterio.open(small / "scene.tif") as file:
        numbers = torch.from_numpy(file.read().astype(np.float32))[None]
    np.testing.assert_allclose(ours, Forward(model)(numbers)[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["TerraTorch", "TorchGeo"])
def test_peers_map_the_same_scene_alike(scene, tmp_path, name):
    if not mappers.versions()[name]:
        pytest.skip(f"{name} is not here: make plugins")
    folder, model = scene
    setting = Setting(chip=CHIP, stride=CHIP // 2, batch=8)
    ours = mappers.SceneEngine(model).probabilities(folder, tmp_path / "ours.tif", setting)
    mapper = mappers.MAPPERS[name](model)
    theirs = mapper.probabilities(folder, tmp_path / "theirs.tif", setting)
    assert theirs.shape == ours.shape
    np.testing.assert_allclose(theirs.sum(axis=0), 1, atol=1e-4)
    # Other weights where windows overlap, the same windows: the differences are those of blending.
    assert np.abs(theirs - ours).mean() < 0.05
    mapper.write(folder, tmp_path / "theirs.tif", setting)
    assert (tmp_path / "theirs.tif").stat().st_size > 0


def test_seams_are_seen():
    """Probabilities that jump by 0.1 at every window's edge."""
    setting = Setting(chip=16, stride=8, batch=1)
    steps = (np.arange(64) // 8 % 2) * 0.1
    flat = np.full((2, 64, 64), 0.5, np.float32)
    smooth = flat + np.linspace(0, 0.01, 64, dtype=np.float32)
    seamed = smooth + steps.astype(np.float32)
    quiet, loud = (seams.seams(p, flat, setting, 4) for p in (smooth, seamed))
    assert quiet["jump_ratio"] == pytest.approx(1, abs=0.01)
    assert loud["jump_ratio"] > 100


def test_the_reference_takes_every_pixel_from_a_centred_window(scene):
    folder, model = scene
    setting = Setting(chip=CHIP, stride=CHIP // 2, batch=8)
    reference = seams.centred(Forward(model), folder, setting, PATCH)
    margin = (CHIP - PATCH) // 2
    assert np.isnan(reference[:, :margin]).all()
    inside = reference[:, margin:-margin, margin:-margin]
    np.testing.assert_allclose(inside.sum(axis=0), 1, atol=1e-4)


def test_ratios_are_of_times_of_one_round():
    row = paired([2.0, 8.0, 3.0], [1.0, 2.0, 3.0])
    assert row == {"ratio": 2.0, "ratio_low": 1.0, "ratio_high": 4.0}
    assert ratio_text(row) == "2.00 (1.00–4.00)"
    assert ratio_text(paired([3.0], [2.0])) == "1.50"
    assert table(("a", "b"), [("long", "1")]).splitlines()[1] == "| ---- | - |"


def test_the_decoder_with_the_same_flops_is_chosen():
    if not installed("timm"):
        pytest.skip("timm is not here: make plugins")
    encoder = encoder_named("nano")
    target = mae_step.timm_flops(encoder, 128, 2, 49)
    shape = mae_step.matching_decoder(encoder, target, 49)
    assert mae_step.timm_flops(encoder, *shape, 49) == target
    loss = mae_step.timm_step(encoder, (32, 1), 2, 49)()
    assert np.isfinite(loss)


def test_wrong_parts_are_refused(capsys):
    with pytest.raises(SystemExit):
        peers.arguments(["--parts=mapping,steps"])
    assert "steps; valid: mapping, step, loader" in capsys.readouterr().err


def test_a_required_package_must_be_installed():
    if installed("timm"):
        pytest.skip("timm is installed")
    options = peers.arguments(["--quick", "--parts=step", "--require=timm", "--threads=1"])
    with pytest.raises(SystemExit, match="not installed: timm"):
        peers.run(options)
