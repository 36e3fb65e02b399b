"""TorchGeo's sample dictionaries as a source; the data sets here are lists of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from multimae_eo.catalog import make_modality
from multimae_eo.errors import BandError, ConfigError, FormatError
from multimae_eo.sample import Calibration
from multimae_eo.sources.torchgeo import ImageKey, TorchGeoSource

RGB = make_modality("rgb", sensor_name="sentinel2", bands=("B4", "B3", "B2"))
DEM = make_modality("elevation", sensor_name="dem", bands=("elevation",))
OPTICAL = ImageKey(
    modality=RGB, channels=(3, 2, 1), calibration=Calibration(scale=1e-4, level="l1c")
)


def samples(count, seed):
    rng = np.random.default_rng(seed)
    for i in range(count):
        image = rng.integers(1, 4000, (5, 8, 8)).astype(np.float32)
        image[3, 0, 0] = np.nan
        yield {
            "image": torch.from_numpy(image),
            "dem": torch.from_numpy(rng.random((8, 8), dtype=np.float32)),
            "label": torch.tensor(i % 2),
            "mask": torch.from_numpy(rng.integers(0, 3, (1, 8, 8))),
        }


@pytest.fixture
def datasets():
    return {"train": list(samples(4, 0)), "test": list(samples(2, 1))}


def test_samples_become_chips(datasets):
    source = TorchGeoSource(
        "eurosat", datasets, [OPTICAL, ImageKey(modality=DEM, key="dem")],
        label="label", class_names=("a", "b"),
    )  # fmt: skip
    assert (len(source), source.splits) == (6, ("train", "test"))
    assert list(source.keys[3:5]) == ["train/3", "test/0"]
    sample = source.read(5)
    image = datasets["test"][1]["image"].numpy()
    assert np.array_equal(sample.pixels["rgb"][1:], image[[2, 1]])
    assert not sample.valid["rgb"][0, 0, 0]
    assert sample.valid["rgb"].sum() == 3 * 64 - 1
    assert sample.pixels["elevation"].shape == (1, 8, 8)
    assert (sample.label, sample.calibration["rgb"].scale) == (1, 1e-4)
    batch = source.batch(source.keys[:4])
    assert batch.labels.tolist() == [0, 1, 0, 1]


def test_masks_are_maps_with_ignored_ids(datasets):
    source = TorchGeoSource("x", datasets, [OPTICAL], label="mask", ignore=(2,))
    label = source.read(0).label
    mask = datasets["train"][0]["mask"][0].numpy()
    assert np.array_equal(label, np.where(mask == 2, -1, mask))


def test_a_datamodule_will_do(datasets):
    module = SimpleNamespace(train_dataset=datasets["train"], val_dataset=None, test_dataset=None)
    source = TorchGeoSource.from_datamodule("x", module, [OPTICAL], label="label")
    assert source.splits == ("train",)
    with pytest.raises(ConfigError, match="setup"):
        TorchGeoSource.from_datamodule("x", SimpleNamespace(), [OPTICAL])


def test_what_does_not_fit_is_refused(datasets):
    with pytest.raises(BandError, match="B4, B3, B2"):
        TorchGeoSource("x", datasets, [replace(OPTICAL, channels=(1, 2))])
    with pytest.raises(ConfigError, match="product level"):
        TorchGeoSource("x", datasets, [ImageKey(modality=RGB)])
    whole = replace(OPTICAL, channels=None)
    with pytest.raises(FormatError, match=r"\(5, 8, 8\); rgb needs"):
        TorchGeoSource("x", datasets, [whole]).read(0)
    with pytest.raises(FormatError, match="did you mean 'image'"):
        TorchGeoSource("x", datasets, [replace(OPTICAL, key="imge")]).read(0)


def test_it_prepares_into_a_store(datasets, tmp_path):
    from multimae_eo.store.writer import prepare

    source = TorchGeoSource("x", datasets, [OPTICAL], label="label", class_names=("a", "b"))
    store = prepare(source, tmp_path / "store")
    assert len(store) == 6
    assert np.array_equal(store.read(2).pixels["rgb"], source.read(2).pixels["rgb"])
