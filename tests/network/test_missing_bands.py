"""A missing band counts as the mean of the others, however it comes to be missing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from multimae_eo.catalog import make_modality
from multimae_eo.inference.backbone import backbone, physical_tensors
from multimae_eo.modality import ModalitySet
from multimae_eo.network.adapt import adapt
from multimae_eo.network.missing_bands import filled
from multimae_eo.sample import collate

RGB = make_modality("rgb", sensor_name="sentinel2", bands=("B4", "B3", "B2"))
RADAR = make_modality("radar", sensor_name="sentinel1", bands=("VV", "VH"))


@given(
    missing=st.sets(st.integers(0, 2)),
    values=st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3),
)
def test_the_mean_of_the_bands_that_are_there(missing, values):
    x = torch.tensor(values)[None, :, None, None]
    valid = torch.tensor([i not in missing for i in range(3)])[None, :, None, None]
    got = filled(x, valid, RGB)[0, :, 0, 0]
    there = [v for i, v in enumerate(values) if i not in missing]
    for i in range(3):
        expected = values[i] if i not in missing else (np.mean(there) if there else 0.0)
        assert abs(float(got[i]) - expected) < 1e-5


def test_garbage_below_a_mask_is_never_read():
    x = torch.tensor([1.0, float("nan"), float("inf")])[None, :, None, None]
    valid = torch.tensor([True, False, False])[None, :, None, None]
    assert filled(x, valid, RGB).flatten().tolist() == [1.0, 1.0, 1.0]


def test_bands_of_other_units_keep_the_mean():
    x = torch.full((1, 2, 1, 1), 2.0)
    valid = torch.tensor([True, False])[None, :, None, None]
    assert filled(x, valid, RADAR).flatten().tolist() == [2.0, 0.0]


@pytest.fixture
def lacking(make_sample, modalities):
    """Chips without their green band, by validity."""
    valid = np.ones((3, 16, 16), dtype=bool)
    valid[1] = False
    # Seeds of one product level.
    samples = [make_sample(i, names=("rgb",)) for i in (0, 2, 4)]
    return collate([replace(s, valid={"rgb": valid}) for s in samples], modalities)


def test_validity_tensors_and_adapted_weights_agree(make_model, lacking, modalities):
    """A mask, a tensor without the band, and a model adapted to two bands give the same tokens."""
    model = make_model().eval()
    with torch.no_grad():
        expected = model.encode(lacking, ["rgb"]).tokens
        encoder = backbone(model, ["rgb"], bands={"rgb": ("B4", "B2")}, levels={"rgb": "l2a"})
        level = lacking.level[:, 0]
        assert len(set(level.tolist())) == 1
        name = modalities["rgb"].levels[int(level[0])]
        encoder.reader.levels["rgb"] = modalities["rgb"].level_index(name)
        tensors = physical_tensors(lacking, ["rgb"])["rgb"][:, [0, 2]]
        tokens = encoder.reader.encode({"rgb": tensors}).tokens
    assert_close(tokens, expected, atol=1e-4, rtol=0)

    two = make_modality("rgb", sensor_name="sentinel2", bands=("B4", "B2"))
    statistics = model.statistics
    assert statistics is not None

    def measured(wanted: ModalitySet):
        """The model's own statistics of the two bands."""
        from multimae_eo.statistics import Statistics

        found = Statistics(wanted)
        for level, moments in statistics.moments["rgb"].items():
            found.moments["rgb"][level] = type(moments)(
                **{k: v[[0, 2]] for k, v in vars(moments).items()}
            )
        return found

    adapted = adapt(model, ModalitySet([two]), {"rgb": 16}, measured)
    chips = replace(
        lacking.select(["rgb"]),
        modalities=ModalitySet([two]),
        pixels={"rgb": lacking.pixels["rgb"].to(torch.int32)[:, [0, 2]]},
        valid={},
        complete=True,
    )
    with torch.no_grad():
        ours = adapted.encoder.eval().encode(chips).tokens
    assert_close(ours, expected, atol=1e-3, rtol=0)
    assert adapted.notes == (
        "rgb: weights of bands: B4 from rgb.B4, B2 from rgb.B2; B3 missing: weights shared by "
        "the others",
    )
