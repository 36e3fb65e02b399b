"""``benchmark geobench`` end to end on made-up copies of all twelve data sets."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from multimae_eo.cli import main
from multimae_eo.evaluation.geobench_score import aggregate, load_normaliser
from multimae_eo.loading.open_source import open_source
from multimae_eo.network.config import EncoderConfig, InputConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sources.geobench.bands import DATASETS
from tests.support.geobench_files import write_geobench

QUICK = ("--features", "mean", "--run.epochs", "1", "--run.accelerator", "cpu", "--optim.lr", "0.1")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All twelve data sets, and a tiny model of Sentinel-2's groups, at random."""
    root = tmp_path_factory.mktemp("geobench")
    for name in DATASETS:
        write_geobench(root, name, chips=(10, 4, 5), size=20 if "Neon" in name else 16)
    source = open_source(f"geobench:{root}/m-eurosat")
    config = ModelConfig(
        encoder=EncoderConfig(width=16, depth=1, heads=2),
        inputs={n: InputConfig(size=16, patch=4) for n in source.modalities},
    )
    torch.manual_seed(0)
    MultiMAE(source.modalities, (), config, source.statistics()).save_pretrained(root / "model")
    return root


def run(root: Path, out: Path, *more: str) -> int:
    arguments = ("benchmark", "geobench", "--root", root, "--model", root / "model", "--out", out)
    return main([str(a) for a in (*arguments, *QUICK, *more)])


def rows_of(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / "results.parquet").to_pylist()
    return found


@pytest.mark.slow
def test_all_twelve_data_sets(root, tmp_path, capsys):
    assert run(root, tmp_path / "out", "--data.batch_size", "16") == 0, capsys.readouterr().err
    rows = rows_of(tmp_path / "out")
    assert {r["data set"] for r in rows} == set(DATASETS)
    for row in rows:
        assert row["score low"] <= row["score"] <= row["score high"]
        assert row["test chips"] == 5
    by_kind = {(r["data set"], r["features"], r["method"]) for r in rows}
    for name, data in DATASETS.items():
        assert (name, "pre-trained", "fine-tuning") in by_kind
        still = "pixel values" if data.label == "map" else "image statistics"
        for features in ("pre-trained", "random encoder", still):
            assert (name, features, "linear") in by_kind
    for name in ("results.md", "report.html", "aggregate.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 100
    # The aggregate is that of the table's scores: one seed each.
    chosen = {
        r["data set"]: [r["score"]]
        for r in rows
        if DATASETS[r["data set"]].label != "map"
        and (r["features"], r["method"]) == ("pre-trained", "fine-tuning")
    }
    spans = load_normaliser(root / "classification_v1.0/normalizer.json")
    expected = aggregate(chosen, spans).score
    text = (tmp_path / "out/aggregate.csv").read_text(encoding="utf-8")
    line = next(
        x for x in text.splitlines() if x.startswith("classification") and "fine-tuning" in x
    )
    assert float(line.split('",6,')[1].split(",")[0]) == pytest.approx(expected)


@pytest.mark.slow
def test_finished_cells_are_not_run_again(root, tmp_path, monkeypatch):
    more = ("--datasets", "m-eurosat", "--partitions", "0.50x_train,default", "--methods")
    assert run(root, tmp_path, *more, "linear,finetune", "--seeds", "2") == 0
    before = rows_of(tmp_path)
    chips = {(r["partition"], r["train chips"]) for r in before}
    assert chips == {("0.50x_train", 5), ("default", 10)}
    seeds = {r["seeds"] for r in before if r["method"] == "fine-tuning"}
    assert seeds == {2}
    assert not list(tmp_path.rglob("*.ckpt"))  # what a run left behind is gone
    cells = sorted(tmp_path.rglob("*.npz"))
    times = [p.stat().st_mtime_ns for p in cells]
    cells[0].unlink()
    assert run(root, tmp_path, *more, "linear,finetune", "--seeds", "2") == 0
    assert rows_of(tmp_path) == before  # the same numbers, what was lost computed again
    assert [p.stat().st_mtime_ns for p in cells[1:]] == times[1:]
    monkeypatch.setattr(import_module("multimae_eo.evaluation.study"), "finetune", None)
    assert run(root, tmp_path, *more, "linear,finetune", "--seeds", "2") == 0
    assert run(root, tmp_path, *more, "finetune", "--optim.lr", "0.2") == 1  # another run


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused(root, tmp_path, capsys):
    import pickle

    import h5py

    folder = write_geobench(tmp_path, "m-eurosat", chips=(4, 2, 2), size=16)
    (tmp_path / "model").symlink_to(root / "model")
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    (folder / "task_specs.pkl").write_bytes(bomb)
    assert run(tmp_path, tmp_path / "fine", "--methods", "knn") == 0
    with h5py.File(sorted(folder.glob("*.hdf5"))[0], "r+") as file:
        file.attrs["pickle"] = str(bomb)
    capsys.readouterr()
    assert run(tmp_path, tmp_path / "bad", "--methods", "knn,finetune") == 1
    assert "multimae-eo: error: " in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "bad" / "results.parquet").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--datasets", "m-eurosta"), "m-eurosat"),
        (("--datasets", "m-eurosat", "--partitions", "0.3x_train"), "no partition '0.3x_train'"),
        (("--methods", "svm"), "no 'svm'"),
        (("--grid", "optim.lr"), "grid: expected OPTION=a,b"),
    ],
)
def test_mistakes_are_told(root, tmp_path, capsys, more, message):
    assert run(root, tmp_path, *more) == 1
    assert message in capsys.readouterr().err
