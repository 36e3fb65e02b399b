"""One model of six modalities takes 1, 4 and 13 bands of a dataset file, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from multimae_eo import MultiMAE, Predictor
from multimae_eo.network.config import EncoderConfig, InputConfig, ModelConfig
from multimae_eo.sources.synthetic import SyntheticSource

BANDS = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"]
SIX = ("rgb", "ired", "sired", "ebands", "elevation", "landcover")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pre-trained model's folder, and chips of 13 bands whose near infrared tells their class."""
    folder = tmp_path_factory.mktemp("inputs")
    source = SyntheticSource(chips=20, size=16, seed=0)
    config = ModelConfig(
        encoder=EncoderConfig(width=32, depth=2, heads=2),
        inputs={n: InputConfig(size=16, patch=4) for n in SIX},
    )
    torch.manual_seed(0)
    statistics = source.statistics().select(SIX)
    modalities = source.modalities.select(SIX)
    MultiMAE(modalities, (), config, statistics).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    rows = ["id,split,label"]
    (folder / "chips").mkdir()
    for i in range(48):
        pixels = rng.integers(500, 1500, (13, 16, 16))
        if i % 2:
            pixels[7] += 2500
        np.save(folder / f"chips/c{i}.npy", pixels.astype(np.uint16))
        rows.append(
            f"c{i},{('train', 'val', 'test')[max(0, i // 8 - 3)]},{('bare', 'green')[i % 2]}"
        )
    (folder / "chips.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def dataset(folder: Path, name: str, bands: list[str]) -> Path:
    record = {
        "name": name,
        "chips": "chips/{id}.npy",
        "file_bands": BANDS,
        "modalities": {name: {"sensor": "sentinel2", "bands": bands, "level": "l1c",
                              "scale": 1e-4, "unit": "reflectance", "gsd": 10}},
        "labels": {"column": "label"},
        "splits": "chips.csv",
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(record), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "bands", "said"),
    [
        pytest.param("near_infrared", ["B8"], "B8 from ebands.B8", marks=pytest.mark.slow),
        ("rgbn", ["B4", "B3", "B2", "B8"], "B4 from rgb.B4, B3 from rgb.B3, B2 from rgb.B2, B8"),
        pytest.param("sentinel2_all", BANDS, "B12 from sired.B12", marks=pytest.mark.slow),
    ],
    ids=["1 band", "4 bands", "13 bands"],
)
def test_bands_of_a_file_find_their_weights_and_learn(folder, run, name, bands, said):
    data, out = dataset(folder, name, bands), folder / f"run-{name}"
    code, _, err = run(
        "finetune", "--model", str(folder / "model"), "--data", str(data),
        "--task", "classification", "--out", str(out),
        "--run.epochs", "12", "--data.batch_size", "8", "--optim.lr", "0.05",
        "--optim.warmup_epochs", "1", "--optim.drop_path", "0", "--run.accelerator", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert f"{name}: weights of bands: " in err
    assert said in err
    encoder = Predictor.from_pretrained(out / "model").encoder
    assert list(encoder.modalities) == [name]
    assert encoder.modalities[name].channels == len(bands)
    code, out_text, err = run(
        "evaluate", "--model", str(out / "model"), "--data", str(data), "--json"
    )
    assert code == 0, err
    assert json.loads(out_text)["metrics"]["accuracy"]["value"] >= 0.9


@pytest.mark.slow
def test_a_study_of_a_modality_that_the_model_does_not_know(folder, run, tmp_path):
    data = dataset(folder, "rgbn", ["B4", "B3", "B2", "B8"])
    code, out, err = run(
        "study", "--model", str(folder / "model"), "--data", str(data),
        "--task", "classification", "--methods", "finetune,knn", "--features", "mean",
        "--out", str(tmp_path / "study"),
        "--run.epochs", "1", "--run.accelerator", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert "| all | pre-trained | fine-tuning | 100 | 32 |" in out
    assert "| all | pre-trained | knn | 100 | 32 |" in out
