from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics

from multimae_eo import catalog
from multimae_eo.errors import ContractError
from multimae_eo.metrics.reconstruction_scores import ReconstructionScores, class_index, truth_of
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Batch, Calibration, Sample, collate
from multimae_eo.statistics import Statistics

RADAR = catalog.modality("sentinel1")
S2 = catalog.modality("rgb")
LANDCOVER = catalog.make_class_map("landcover", class_map_name="esa_worldcover")
SET = ModalitySet([RADAR, S2, LANDCOVER])


def chips(count: int = 5, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        level = ("l1c", "l2a")[i % 2]
        found.append(
            Sample(
                key=f"c{i}",
                pixels={
                    "sentinel1": rng.normal(-12, 4, (2, 8, 8)).astype(np.float32),
                    "rgb": rng.integers(0, 4000, (3, 8, 8)).astype(np.uint16),
                    "landcover": rng.choice([0, 10, 20, 80, 33], (1, 8, 8)).astype(np.uint8),
                },
                valid={
                    "sentinel1": rng.random((1, 8, 8)) > 0.2,
                    "rgb": rng.random((3, 8, 8)) > 0.1,
                    "landcover": np.ones((1, 8, 8), bool),
                },
                calibration={"rgb": Calibration(scale=1e-4, offset=-0.1 * (i % 2), level=level)},
            )
        )
    return found


def guess(batch: Batch, seed: int = 1) -> dict[str, SimpleNamespace]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, modality in batch.modalities.items():
        classes = len(modality.classes) if modality.categorical else modality.channels
        mean = torch.randn(len(batch), classes, 8, 8, generator=generator)
        found[name] = SimpleNamespace(mean=mean, std=mean.abs())
    return found


def flat(samples: list[Sample], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Truth in physical units and validity, (C, N), computed without the code under test."""
    values, valid = [], []
    for s in samples:
        c = s.calibration_of(SET[name])
        values.append(s.pixels[name].astype(np.float64) * c.scale + c.offset)
        valid.append(np.broadcast_to(s.valid[name], s.pixels[name].shape))
    return (np.stack(a, 1).reshape(len(a[0]), -1) for a in (values, valid))  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["sentinel1", "rgb"])
def test_continuous_scores_equal_scikit_learn_however_they_are_batched(name: str) -> None:
    samples = chips()
    score = ReconstructionScores(SET)
    whole = collate(samples, SET)
    said = guess(whole)
    for part in (slice(0, 2), slice(2, 3), slice(3, 5)):
        score.update(
            collate(samples[part], SET),
            {n: SimpleNamespace(mean=r.mean[part], std=r.std[part]) for n, r in said.items()},
        )
    got = score.compute()[name]
    truth, valid = flat(samples, name)
    mean = np.moveaxis(said[name].mean.numpy().astype(np.float64), 1, 0).reshape(truth.shape)
    assert got["pixels"] == valid.sum(axis=1).max()
    assert got["mae"] == pytest.approx(metrics.mean_absolute_error(truth[valid], mean[valid]), 1e-5)
    assert got["rmse"] == pytest.approx(
        metrics.root_mean_squared_error(truth[valid], mean[valid]), 1e-5
    )
    r2 = [metrics.r2_score(t[v], m[v]) for t, m, v in zip(truth, mean, valid, strict=True)]
    assert [b["r2"] for b in got["bands"].values()] == pytest.approx(r2, 1e-5)
    assert got["r2"] == pytest.approx(np.mean(r2), 1e-5)
    assert got["unit"] == SET[name].unit


def test_categorical_scores_equal_scikit_learn_and_skip_unknown_ids() -> None:
    samples = chips()
    batch = collate(samples, SET)
    said = guess(batch)
    score = ReconstructionScores(SET)
    score.update(batch, said)
    got = score.compute()["landcover"]
    ids = np.stack([s.pixels["landcover"][0] for s in samples])
    known = np.isin(ids, [10, 20, 80])
    predicted = np.array(LANDCOVER.class_ids)[said["landcover"].mean.numpy().argmax(1)]
    assert got["pixels"] == known.sum()
    assert got["accuracy"] == pytest.approx(metrics.accuracy_score(ids[known], predicted[known]))
    assert got["miou"] == pytest.approx(
        metrics.jaccard_score(ids[known], predicted[known], average="macro", zero_division=0)
    )
    usual = np.bincount(ids[known]).argmax()
    constant = np.full(known.sum(), usual)
    assert got["baseline"]["accuracy"] == pytest.approx((ids[known] == usual).mean())
    assert got["baseline"]["miou"] == pytest.approx(
        metrics.jaccard_score(ids[known], constant, average="macro", zero_division=0)
    )


def test_predicting_the_training_mean_scores_zero_and_equals_the_baseline() -> None:
    train, test = chips(seed=3), chips(seed=4)
    statistics = Statistics(SET)
    for s in train:
        statistics.update(s)
    batch = collate(test, SET)
    said = {}
    for name in ("sentinel1", "rgb"):
        level = batch.level[:, SET.index(name)].numpy()
        mean = torch.from_numpy(statistics.mean_std(name)[0][level])[:, :, None, None]
        said[name] = SimpleNamespace(mean=mean.expand(-1, -1, 8, 8), std=mean)
    score = ReconstructionScores(SET, statistics=statistics)
    score.update(batch, said)
    for got in score.compute().values():
        assert got["r2"] == pytest.approx(0.0, abs=1e-12)
        assert got["baseline"]["rmse"] == pytest.approx(got["rmse"])
        assert got["baseline"]["mae"] == pytest.approx(got["mae"])
        assert got["baseline"]["predicts"] == "the training mean"


def test_the_baseline_class_is_the_training_datas_not_the_scored_pixels() -> None:
    statistics = Statistics(SET)
    statistics.class_counts["landcover"][4] = 100  # built-up, absent from the scored chips
    batch = collate(chips(), SET)
    score = ReconstructionScores(SET, names=["landcover"], statistics=statistics)
    score.update(batch, guess(batch))
    baseline = score.compute()["landcover"]["baseline"]
    assert baseline["accuracy"] == 0.0
    assert "built-up" in baseline["predicts"]


def test_a_perfect_reconstruction_scores_one() -> None:
    batch = collate(chips(), SET)
    truths = {n: truth_of(batch, n) for n in SET}
    said = {
        n: SimpleNamespace(mean=torch.from_numpy(np.asarray(t.values, np.float64)), std=None)
        for n, t in truths.items()
        if t is not None and n != "landcover"
    }
    one_hot = np.moveaxis(np.eye(11)[truths["landcover"].values[:, 0]], -1, 1)
    said["landcover"] = SimpleNamespace(mean=torch.from_numpy(one_hot), std=None)
    score = ReconstructionScores(SET)
    score.update(batch, said)
    got = score.compute()
    assert got["rgb"]["r2"] == 1.0
    assert got["rgb"]["rmse"] == 0.0
    assert got["landcover"]["accuracy"] == got["landcover"]["miou"] == 1.0


def test_absent_chips_and_modalities_are_not_scored() -> None:
    samples = chips()
    lacking = [samples[0], samples[1].select(["rgb", "landcover"])]
    batch = collate(lacking, SET)
    score = ReconstructionScores(SET)
    score.update(batch, {"sentinel1": guess(batch)["sentinel1"]})
    got = score.compute()
    assert list(got) == ["sentinel1"]
    assert got["sentinel1"]["pixels"] == samples[0].valid["sentinel1"].sum()
    assert truth_of(collate([lacking[1]], SET), "sentinel1") is None
    assert ReconstructionScores(SET, names=[]).compute() == {}


def test_legend_indices_follow_the_legends_order() -> None:
    ids = np.array([10, 100, 0, 95, 255, 11])
    assert class_index(ids, LANDCOVER).tolist() == [0, 10, -1, 9, -1, -1]


def test_a_reconstruction_of_another_size_is_refused() -> None:
    batch = collate(chips(2), SET)
    said = {"rgb": SimpleNamespace(mean=torch.zeros(2, 3, 4, 4), std=None)}
    with pytest.raises(ContractError, match="does not fit"):
        ReconstructionScores(SET).update(batch, said)
