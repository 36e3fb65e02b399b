"""Probes equal scikit-learn on the same features, for every kind of task, and say what they say."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from multimae_eo.errors import ConfigError, DataError
from multimae_eo.evaluation.baselines import image_statistics, pixel_values
from multimae_eo.evaluation.probes import STRENGTHS, ProbeOptions, probe
from multimae_eo.geo import Window
from multimae_eo.inference.extraction import KINDS, encoder_features, encoder_grids, extract
from multimae_eo.inference.linear_probe import linear_probes, neighbour_probes
from multimae_eo.modality import Task
from multimae_eo.network.config import DecoderConfig, EncoderConfig, InputConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sample import Sample, collate
from multimae_eo.sources.synthetic import SyntheticSource

INPUTS = ["rgb", "ired"]


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource(chips=90, size=32, seed=0)


def small_model(source: SyntheticSource, depth: int) -> MultiMAE:
    modalities = source.modalities.select(INPUTS)
    config = ModelConfig(
        encoder=EncoderConfig(width=32, depth=depth, heads=2),
        decoder=DecoderConfig(width=16, depth=1, heads=2),
        inputs={n: InputConfig(size=32, patch=8) for n in INPUTS},
    )
    tasks = [Task(name=n, modality=n) for n in INPUTS]
    return MultiMAE(modalities, tasks, config, source.statistics(range(20)).select(INPUTS)).eval()


@pytest.fixture(scope="module")
def model(source: SyntheticSource) -> MultiMAE:
    import torch

    torch.manual_seed(0)
    return small_model(source, depth=1)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("rows", [30, 200])
def test_linear_readouts_equal_scikit_learns(rows):
    """With fewer rows than features, too."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    features = rng.standard_normal((rows, 50)) * 7 + 3
    hidden = features @ rng.standard_normal((50, 3))
    classes, values = hidden.argmax(axis=1), hidden[:, :1] + rng.standard_normal((rows, 1))
    scaled = StandardScaler().fit_transform(features)
    strengths = (0.01, 1.0)
    for c, fitted in linear_probes(features, np.eye(3)[classes], "softmax", strengths):
        exact = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(scaled, classes)
        assert fitted(features) == pytest.approx(exact.predict_proba(scaled), abs=2e-3)
    hot = (hidden > 0).astype(float)
    for c, fitted in linear_probes(features, hot, "sigmoid", strengths):
        for i in range(3):
            exact = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(scaled, hot[:, i])
            assert fitted(features)[:, i] == pytest.approx(
                exact.predict_proba(scaled)[:, 1], abs=2e-3
            )
    for c, fitted in linear_probes(features, values, "square", strengths):
        exact = Ridge(alpha=1 / c).fit(scaled, values)
        assert fitted(features) == pytest.approx(exact.predict(scaled).reshape(-1, 1), rel=1e-6)


def test_shares_as_targets_equal_weighted_rows():
    """Cells of maps: a row of 70 % water is 0.7 rows of water and 0.3 of land."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    features, share = rng.standard_normal((80, 5)), rng.random(80)
    scaled = StandardScaler().fit_transform(features)
    ((_, fitted),) = linear_probes(features, np.stack([share, 1 - share], axis=1), "softmax", [1.0])
    twice = LogisticRegression(C=2.0, max_iter=5000, tol=1e-8).fit(
        np.concatenate([scaled, scaled]), np.repeat([0, 1], 80), np.concatenate([share, 1 - share])
    )
    # Two weight vectors of a softmax are penalised as one of half the size, twice.
    assert fitted(features) == pytest.approx(twice.predict_proba(scaled), abs=2e-3)


def test_neighbours_equal_scikit_learns_classifier():
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    features, classes = rng.standard_normal((60, 8)), rng.integers(0, 4, 60)
    new = rng.standard_normal((30, 8))
    scaler = StandardScaler().fit(features)
    found = dict(neighbour_probes(features, np.eye(4)[classes], (1, 5, 100)))
    assert set(found) == {1, 5}, "no more neighbours than chips"
    for k, fitted in found.items():
        exact = KNeighborsClassifier(k, metric="cosine", weights="distance")
        exact.fit(scaler.transform(features), classes)
        assert fitted(new) == pytest.approx(exact.predict_proba(scaler.transform(new)))


def test_a_class_without_a_training_chip_is_never_guessed():
    rng = np.random.default_rng(0)
    features, classes = rng.standard_normal((20, 3)), rng.integers(0, 2, 20)
    for _, fitted in linear_probes(features, np.eye(3)[classes], "softmax", STRENGTHS):
        told = fitted(features)
        assert told[:, 2].max() < 1e-6
        assert told.sum(axis=1) == pytest.approx(np.ones(20))


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_features_by_hand(model, source, kind):
    import torch

    batch = source.batch(source.keys[:3], INPUTS)
    layers = []
    hook = model.encoder.blocks[0].register_forward_hook(lambda m, i, o: layers.append(o))
    with torch.inference_mode():
        tokens = model.encode(batch, INPUTS).tokens
    hook.remove()
    assert torch.equal(layers[0][:, : tokens.shape[1]], tokens), "one block here"
    expected = [tokens.mean(dim=1)]
    if kind.endswith("std"):
        expected.append(tokens.std(dim=1, correction=0))
    found = encoder_features(model, INPUTS, kind)(batch)
    assert found == pytest.approx(torch.cat(expected, dim=1).numpy(), abs=1e-5)


def test_layers_hold_every_block(source):
    import torch

    torch.manual_seed(0)
    deep = small_model(source, depth=3)
    batch = source.batch(source.keys[:2], INPUTS)
    last = encoder_features(deep, INPUTS, "mean")(batch)
    layers = encoder_features(deep, INPUTS, "all-layers-mean")(batch)
    assert layers.shape == (2, 96)
    assert layers[:, 64:] == pytest.approx(last, abs=1e-6)
    assert not np.allclose(layers[:, :32], last, atol=0.01)
    assert not deep.encoder.blocks[0]._forward_hooks, "nothing is left behind"


def test_grids_of_larger_chips_are_their_windows_side_by_side(model):
    large = SyntheticSource(chips=12, size=64, seed=0)
    batch = large.batch(large.keys[:2], INPUTS)
    found = encoder_grids(model, INPUTS, "mean")(batch)
    assert found.shape == (2, 64, 8, 8)
    for top, left in ((0, 0), (0, 1), (1, 0), (1, 1)):
        window = {n: Window(row=32 * top, col=32 * left, height=32, width=32) for n in INPUTS}
        part = encoder_grids(model, INPUTS, "mean")(batch.cut(window))
        rows, columns = slice(4 * top, 4 * top + 4), slice(4 * left, 4 * left + 4)
        assert found[:, :, rows, columns] == pytest.approx(part, abs=1e-5)


def test_grids_are_zero_where_nothing_was_observed(model):
    large = SyntheticSource(chips=12, size=64, seed=0)
    sample = large.read(0, INPUTS)
    ok = np.ones((1, 64, 64), bool)
    ok[:, :32, :32] = False
    batch = collate([replace(sample, valid=dict.fromkeys(INPUTS, ok))], model.modalities)
    found = encoder_grids(model, INPUTS, "all-layers-mean")(batch)[0]
    assert not found[:, :4, :4].any()
    assert found[:, 4:].any(axis=0).all()
    one = collate([sample.select(["rgb"])], model.modalities)
    found = encoder_grids(model, INPUTS, "all-layers-mean")(one)[0]
    assert found[:32].any()
    assert not found[32:].any(), "absent, and yet of the same width"


class Relabelled(SyntheticSource):
    """The same chips with other kinds of labels, made of what lies in them."""

    def __init__(self, kind: str, size: int = 32) -> None:
        super().__init__(chips=90, size=size, seed=0)
        self.kind = kind
        self.class_names = () if kind == "value" else ("dark", "bright")

    def read(self, index, names=None) -> Sample:
        sample = super().read(index)
        red = sample.pixels["rgb"][0].astype(np.float32) * 1e-4
        if self.kind == "value":
            label: object = np.float32(red.mean())
        elif self.kind == "labels":
            label = np.array([(red < 0.03).any(), (red > 0.1).any()], np.float32)
        else:
            label = np.where(np.arange(32) < 2, -1, red > 0.06).astype(np.int64)
        chosen = sample if names is None else sample.select(names)
        return replace(chosen, label=label)


@pytest.mark.slow
def test_maps_are_probed_pixel_by_pixel(model, tmp_path):
    rows = probe(model, Relabelled("map"), inputs=INPUTS, out=tmp_path)
    by_name = {r["features"]: r for r in rows}
    assert set(by_name) == {"pre-trained", "random encoder", "pixel values"}
    assert {r["method"] for r in rows} == {"linear"}
    # The label is a threshold on one of the pixel's own bands.
    assert by_name["pixel values"]["mIoU"] > 0.95
    assert 0.4 < by_name["random encoder"]["mIoU"] < by_name["pixel values"]["mIoU"]
    for row in rows:
        assert row["mIoU"] == pytest.approx((row["IoU dark"] + row["IoU bright"]) / 2)
        assert row["IoU dark low"] <= row["IoU dark"] <= row["IoU dark high"]
    assert "IoU" in (tmp_path / "card/card.md").read_text(encoding="utf-8")
    table = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| mIoU | accuracy | IoU dark | IoU bright |" in table


def test_values_are_probed_by_ridge_regression(model, tmp_path):
    rows = probe(model, Relabelled("value"), inputs=INPUTS, methods=["linear"], out=tmp_path)
    by_name = {r["features"]: r for r in rows}
    assert by_name["image statistics"]["R2"] > 0.999, "the label is one of the statistics"
    assert by_name["pre-trained"]["R2"] > 0.8
    assert by_name["image statistics"]["RMSE"] < by_name["pre-trained"]["RMSE"]


@pytest.mark.slow
def test_several_labels_per_chip_are_probed(model, tmp_path):
    rows = probe(model, Relabelled("labels"), inputs=INPUTS, out=tmp_path)
    assert {r["method"] for r in rows} == {"knn", "linear"}
    for row in rows:
        assert row["mAP low"] <= row["mAP"] <= row["mAP high"] <= 1


@pytest.mark.slow
def test_fractions_seeds_and_input_sets_in_one_command(model, source, tmp_path):
    import pyarrow.parquet as pq

    rows = probe(
        model,
        source,
        inputs={"rgb": ["rgb"], "all": None},
        methods=["linear"],
        out=tmp_path,
        options=ProbeOptions(features="mean", fractions=(10, 50, 100), seeds=2),
    )
    assert len(rows) == 2 * 3 * 3
    train = len(source.split("train"))
    for row in rows:
        share = row["labels %"] / 100
        assert row["train chips"] == pytest.approx(share * train, abs=4)
        assert row["seeds"] == (1 if share == 1 else 2), "all labels can be drawn only once"
    table = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [r["accuracy"] for r in table] == [r["accuracy"] for r in rows]
    with (tmp_path / "comparisons.csv").open(newline="") as file:
        compared = list(csv.DictReader(file))
    # Per fraction: two baselines for each of two sets, and one set against the other.
    assert len(compared) == 3 * (2 * 2 + 1)
    for row in compared:
        assert float(row["p"]) <= float(row["p (Holm)"]) <= 1
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert report.count("<svg") + report.count("<img") == 2, "a chart per input set"
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"results.csv", "results.parquet", "results.md", "comparisons.csv",
                     "report.html", "card"}  # fmt: skip


def test_absent_inputs_leave_features_of_one_width(modalities, make_sample):
    lacking = collate([make_sample(0, names=("rgb",))], modalities)
    whole = collate([make_sample(1)], modalities)
    for compute in (image_statistics(list(modalities)), pixel_values(list(modalities))):
        assert compute(lacking).shape == compute(whole).shape
    planes = pixel_values(["rgb", "elevation"])(whole)
    assert planes[0, 3] == pytest.approx(make_sample(1).pixels["elevation"][0])
    assert planes[0, 0] == pytest.approx(make_sample(1).pixels["rgb"][0] * 1e-4, rel=1e-5)


def test_options_out_of_range_are_told(model, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'all-layers-mean'"):
        ProbeOptions(features="all-layer-mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="above 0 and up to 100, got 0"):
        ProbeOptions(fractions=(0,))
    with pytest.raises(ConfigError, match="seeds: expected ≥ 1"):
        ProbeOptions(seeds=0)
    with pytest.raises(ConfigError, match="'knn' is not offered for maps"):
        probe(model, Relabelled("map"), methods=["knn"], out=tmp_path)


@pytest.mark.slow
def test_the_command_line_takes_sets_and_fractions(made, run, refused, tmp_path):
    import json

    data = ("--model", made / "run/model", "--data", made / "store", "--methods", "knn")
    sets = ("--inputs", "rgb;all", "--features", "mean", "--fractions", "50,100", "--seeds", "2")
    code, out, _ = run("probe", *data, *sets, "--out", str(tmp_path / "out"))
    assert code == 0
    rows = json.loads(out)
    assert {(r["inputs"], r["labels %"], r["seeds"]) for r in rows} == {
        (name, percent, seeds) for name in ("rgb", "all") for percent, seeds in ((50, 2), (100, 1))
    }
    none = ("--out", str(tmp_path / "none"))
    assert "got '5,ten'" in refused("probe", *data, *none, "--fractions", "5,ten")
    assert "did you mean 'mean-std'" in refused("probe", *data, *none, "--features", "mean-sdt")
    assert "no 'sky'" in refused("probe", *data, *none, "--inputs", "rgb;sky")
    assert not (tmp_path / "none").exists()
