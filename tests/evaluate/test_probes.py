"""Probes equal scikit-learn on the same features; intervals and baselines are what they say."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from multimae_eo.errors import ConfigError, DataError
from multimae_eo.evaluate.baselines import image_statistics
from multimae_eo.evaluate.features import encoder_features, extract
from multimae_eo.evaluate.probes import STRENGTHS, probe
from multimae_eo.evaluate.statistics import bootstrap_interval
from multimae_eo.modality import Task
from multimae_eo.model.config import DecoderConfig, EncoderConfig, InputConfig, ModelConfig
from multimae_eo.model.multimae import MultiMAE
from multimae_eo.sample import Sample, collate
from multimae_eo.sources.synthetic import SyntheticSource

INPUTS = ["rgb", "ired"]


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource(chips=90, size=32, seed=0)


@pytest.fixture(scope="module")
def model(source: SyntheticSource) -> MultiMAE:
    import torch

    torch.manual_seed(0)
    modalities = source.modalities.select(INPUTS)
    config = ModelConfig(
        encoder=EncoderConfig(width=32, depth=1, heads=2),
        decoder=DecoderConfig(width=16, depth=1, heads=2),
        inputs={n: InputConfig(size=32, patch=8) for n in INPUTS},
    )
    tasks = [Task(name=n, modality=n) for n in INPUTS]
    return MultiMAE(modalities, tasks, config, source.statistics(range(20)).select(INPUTS)).eval()


def test_the_linear_probe_equals_scikit_learn_called_directly(model, source, tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rows = probe(model, source, inputs=INPUTS, methods=["linear"], out=tmp_path, seed=1)
    row = next(r for r in rows if r["features"] == "pre-trained")
    compute = encoder_features(model, INPUTS)
    train, val, test = (
        extract(source, source.split(s), compute, modalities=INPUTS)
        for s in ("train", "val", "test")
    )
    scaler = StandardScaler().fit(train.features)

    def accuracy(strength: float, table) -> float:
        fitted = LogisticRegression(C=strength, max_iter=2000).fit(
            scaler.transform(train.features), train.labels
        )
        return float((fitted.predict(scaler.transform(table.features)) == table.labels).mean())

    best = max(STRENGTHS, key=lambda c: accuracy(c, val))
    assert row["chosen"] == best
    assert row["accuracy"] == pytest.approx(accuracy(best, test), abs=1e-12)


def test_results_hold_baselines_and_intervals_and_repeat(model, source, tmp_path):
    rows = probe(model, source, inputs=INPUTS, out=tmp_path, seed=3)
    assert {(r["features"], r["method"]) for r in rows} == {
        (f, m)
        for f in ("pre-trained", "random encoder", "image statistics")
        for m in ("knn", "linear")
    }
    for row in rows:
        assert row["accuracy low"] <= row["accuracy"] <= row["accuracy high"]
    with (tmp_path / "results.csv").open(newline="") as file:
        assert [float(r["accuracy"]) for r in csv.DictReader(file)] == [r["accuracy"] for r in rows]
    assert "95 % bootstrap" in (tmp_path / "results.md").read_text()
    assert probe(model, source, inputs=INPUTS, out=tmp_path, seed=3) == rows


def test_bootstrap_interval_covers_the_binomial_one():
    rng = np.random.default_rng(0)
    truth = np.zeros(400, int)
    guess = (rng.random(400) < 0.2).astype(int)
    accuracy = float((truth == guess).mean())
    low, high = bootstrap_interval(
        lambda t, g: float((t == g).mean()), truth, guess, seed=0, resamples=4000
    )
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / 400)
    assert (low, high) == pytest.approx((accuracy - half, accuracy + half), abs=0.006)


def test_image_statistics_are_those_of_valid_pixels_in_physical_units(modalities, make_sample):
    sample = make_sample(0, names=("rgb", "landcover"))
    ok = np.random.default_rng(0).random((1, 16, 16)) > 0.4
    batch = collate([replace(sample, valid={"rgb": ok}), make_sample(2)], modalities)
    found = image_statistics(["rgb", "elevation", "landcover"])(batch)
    band = sample.pixels["rgb"][1][ok[0]] * 1e-4
    assert found[0, 1] == pytest.approx(band.mean(), rel=1e-5)
    assert found[0, 4] == pytest.approx(band.std(), rel=1e-5)
    assert found[0, 6] == 0.0, "elevation is absent there"
    assert found[1, 6] == pytest.approx(make_sample(2).pixels["elevation"].mean(), rel=1e-5)
    assert found[0, 8:].sum() == pytest.approx(1.0)


class Unlabelled(SyntheticSource):
    def read(self, index, names=None) -> Sample:
        return replace(super().read(index, names), label=None)


def test_what_cannot_be_probed_is_told(model, source, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'knn'"):
        probe(model, source, methods=["kn"], out=tmp_path)
    with pytest.raises(ConfigError, match="inputs: no 'radr'"):
        probe(model, source, inputs=["radr"], out=tmp_path)
    with pytest.raises(DataError, match="no class labels"):
        probe(model, Unlabelled(chips=90, size=32), out=tmp_path)
