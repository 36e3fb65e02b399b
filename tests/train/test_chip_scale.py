"""Windows of several sizes become chips of one size, on the same ground in every modality."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from multimae_eo.catalog import make_class_map, make_modality
from multimae_eo.errors import ConfigError
from multimae_eo.modality import ModalitySet
from multimae_eo.network.config import InputConfig
from multimae_eo.sample import Batch, Calibration, Sample, collate
from multimae_eo.sources.synthetic import SyntheticSource
from multimae_eo.train.chip_scale import ChipScale
from multimae_eo.train.pretrain import pretrain
from multimae_eo.train.recipe import parse_recipe
from tests.support.tiny_source import TinySource

SET = ModalitySet(
    [
        make_modality("rgb", sensor_name="sentinel2", bands=("B4", "B3", "B2")),
        make_modality("elevation", sensor_name="dem", bands=("elevation",)),
        make_class_map("landcover", class_map_name="esa_worldcover"),
    ]
)
# Chips of 32 px of which the elevation has half the pixels; the model's have 16.
INPUTS = {
    "rgb": InputConfig(size=16, patch=4),
    "elevation": InputConfig(size=8, patch=2),
    "landcover": InputConfig(size=16, patch=4),
}
SIDE = 32


def ramp(side: int) -> np.ndarray:
    """Ground coordinates of pixel centres, in pixels of the finest modality: (2, side, side)."""
    at = (np.arange(side) + 0.5) * SIDE / side
    return np.stack(np.meshgrid(at, at, indexing="ij")).astype(np.float32)


def chips(invalid: bool = False) -> Batch:
    rows, cols = ramp(SIDE)
    classes = np.where(np.indices((SIDE, SIDE)).sum(axis=0) % 2, 10, 80).astype(np.uint8)
    valid = np.ones((1, SIDE, SIDE), bool)
    valid[:, 10, 10] = False
    sample = Sample(
        key="chip",
        pixels={
            "rgb": np.stack([rows, cols, rows]).astype(np.uint16),
            "elevation": ramp(SIDE // 2)[:1],
            "landcover": classes[None],
        },
        valid={"rgb": valid} if invalid else {},
        calibration={"rgb": Calibration(scale=1e-4, level="l2a")},
    )
    return collate([sample, sample], SET)


@given(window=st.sampled_from([4, 8, 12, 16, 24, 32]), step=st.integers(0, 50))
def test_all_modalities_show_the_same_ground(window, step):
    """Of a ramp, the mean of a window is where its middle lies; its slope is the scale."""
    scaled = ChipScale([window, SIDE], SET, INPUTS, seed=1)(chips(), step)
    assert {n: p.shape[-1] for n, p in scaled.pixels.items()} == {
        "rgb": 16, "elevation": 8, "landcover": 16,
    }  # fmt: skip
    # Pixels hold their rows rounded down.
    rows = scaled.pixels["rgb"][0, 0].float() + 0.5
    heights = scaled.pixels["elevation"][0, 0]
    assert abs(float(rows.mean()) - float(heights.mean())) < 0.51
    slopes = {float(rows[4:12].diff(dim=0).mean()), 2 * float(heights[2:6].diff(dim=0).mean()) / 4}
    sides = (window / 16, SIDE / 16)
    assert any(all(abs(s - side) < 0.26 * side for s in slopes) for side in sides)
    assert set(scaled.pixels["landcover"].unique().tolist()) <= {10, 80}


def test_windows_of_the_chip_are_not_changed():
    batch = chips()
    scale = ChipScale([16], SET, INPUTS, seed=0)
    part = batch.cut({n: _corner(INPUTS[n].size) for n in SET})
    scaled = scale(part, 3)
    for name in SET:
        assert torch.equal(scaled.pixels[name], part.pixels[name])


def _corner(side: int):
    from multimae_eo.geo import Window

    return Window(row=0, col=0, height=side, width=side)


def test_enlarged_pixels_are_torchs_bilinear_ones():
    batch = chips().cut({n: _corner(INPUTS[n].size // 2) for n in SET})
    scaled = ChipScale([8], SET, INPUTS, seed=0)(batch, 0)
    expected = torch.nn.functional.interpolate(
        batch.pixels["rgb"].to(torch.float32), (16, 16), mode="bilinear"
    )
    assert_close(scaled.pixels["rgb"], expected)
    classes = batch.pixels["landcover"].repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.equal(scaled.pixels["landcover"], classes.to(torch.int32))


def test_a_pixel_is_valid_only_if_all_it_is_made_of_is():
    scale = ChipScale([32], SET, INPUTS, seed=0)
    scaled = scale(chips(invalid=True), 0)
    ok = scaled.valid["rgb"]
    assert not ok[0, 0, 5, 5], "made of rows and columns 10 and 11"
    assert int((~ok[0]).sum()) <= 9
    # Whatever the invalid pixel holds, valid ones do not depend on it.
    other = chips(invalid=True)
    values = other.pixels["rgb"].to(torch.int32)
    values[:, :, 10, 10] = 30_000
    other.pixels["rgb"].copy_(values.to(torch.uint16))
    again = scale(other, 0)
    mask = ok.expand_as(scaled.pixels["rgb"])
    assert torch.equal(scaled.pixels["rgb"][mask], again.pixels["rgb"][mask])


def test_nan_below_a_mask_does_not_spread():
    """Elevation with NaN for nodata, whatever the weight of its pixel in a resampled one."""
    batch = chips()
    heights = batch.pixels["elevation"].clone()
    heights[:, :, 3, 3] = float("nan")
    ok = heights.isfinite()
    batch = replace(
        batch,
        pixels={**batch.pixels, "elevation": heights},
        valid={"elevation": ok},
        complete=False,
    )
    for step in range(10):
        scaled = ChipScale([12, 16, 28, 32], SET, INPUTS, seed=2)(batch, step)
        assert scaled.pixels["elevation"].isfinite().all()


def test_a_step_decides_and_nothing_else():
    scale = ChipScale([8, 16, 32], SET, INPUTS, seed=4)
    first, again = scale(chips(), 7), scale(chips(), 7)
    assert all(torch.equal(first.pixels[n], again.pixels[n]) for n in SET)
    seen = {float(scale(chips(), step).pixels["rgb"].float().std()) for step in range(20)}
    assert len(seen) > 3


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="take multiples of 2"):
        ChipScale([15], SET, INPUTS, seed=0)
    with pytest.raises(ConfigError, match=r"data\.windows are resampled to data\.chip"):
        parse_recipe({}, ["--data.windows=[32]", "--data.chip=null"])
    with pytest.raises(ConfigError, match=r"data\.windows must be ≥ 1"):
        parse_recipe({}, ["--data.windows=[0]"])
    source = SyntheticSource(chips=8, size=32, seed=3)
    with pytest.raises(ConfigError, match=r"64 px is larger than the chips \(32 px\)"):
        pretrain(
            parse_recipe({}, ["--data.windows=[64]", "--data.chip=16", "--model.patch=4"]),
            source,
            tmp_path / "run",
        )
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_window_that_does_not_fit_claims_no_folder(tmp_path):
    """The corrected command may take the same ``--out``."""
    options = ["--data.windows=[15]", "--data.chip=8", "--model.patch=4", "--run.epochs=1"]
    with pytest.raises(ConfigError, match=r"data\.windows: 15 px .* take multiples of 2"):
        pretrain(parse_recipe({}, options), TinySource(8), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()
