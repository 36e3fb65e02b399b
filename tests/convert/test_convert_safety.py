"""A checkpoint is a stranger's file: nothing in it is executed, and damage is told in one line."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from multimae_eo.convert.reference import convert, read_checkpoint
from multimae_eo.errors import CheckpointError
from multimae_eo.model_folder.folder import load_model
from tests.support.reference_model import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint in the reference's format."""
    path: Path = tmp_path_factory.mktemp("reference") / "checkpoint-999.pth"
    write_checkpoint(path)
    return path


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as told:
        convert(path)
    message = str(told.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("place", ["model", "args", "optimizer", "top"])
def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path, place):
    mark = tmp_path / "exploded"
    record = {"model": {"global_tokens": torch.zeros(1, 1, 4)}, "args": argparse.Namespace()}
    path = tmp_path / "checkpoint.pth"
    torch.save(Bomb(mark) if place == "top" else {**record, place: Bomb(mark)}, path)
    assert "nothing in it was executed" in refused(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the file was dangerous indeed"


def test_code_inside_the_arguments_is_refused(tmp_path):
    mark, path = tmp_path / "exploded", tmp_path / "checkpoint.pth"
    torch.save({"model": {}, "args": argparse.Namespace(lr=Bomb(mark))}, path)
    assert "executed" in refused(path)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_plain_pickle_is_refused_and_never_runs(tmp_path, protocol):
    mark, path = tmp_path / "exploded", tmp_path / "checkpoint.pth"
    path.write_bytes(pickle.dumps({"model": Bomb(mark)}, protocol=protocol))
    refused(path)
    assert not mark.exists()


def test_other_harmless_looking_classes_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {}, "args": Path("x")}, path)
    refused(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a checkpoint", b"\x80\x02", b"\n"])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    refused(path)


def test_what_is_not_there_or_a_folder_is_refused(tmp_path):
    assert "No such file" in refused(tmp_path / "none.pth")
    (tmp_path / "folder.pth").mkdir()
    assert "directory" in refused(tmp_path / "folder.pth")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path, share):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {"w": torch.ones(500)}, "args": argparse.Namespace(a=1)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"state_dict": {}},
        {"model": 3},
        [1, 2],
        torch.zeros(3),
        {"model": {}},
        {"model": {}, "args": 5},
        {"model": {}, "args": None},
        {"model": {"weight": torch.zeros(2)}},
        {"model": {"global_tokens": torch.zeros(1, 1, 4)}, "args": argparse.Namespace()},
        {"model": {"input_adapters.rgb.proj.weight": torch.zeros(4, 3, 8, 8)}},
        {"model": {"input_adapters.nowhere.proj.weight": torch.zeros(4, 3, 8, 8)}},
        {"model": {"global_tokens": torch.zeros(1, 1, 4), "output_adapters.xyz.w": torch.ones(1)}},
    ],
    ids=range(13),
)
def test_other_keys_than_the_references_are_refused(tmp_path, record):
    path = tmp_path / "checkpoint.pth"
    torch.save(record, path)
    refused(path)


def test_missing_surplus_and_misshapen_parameters_are_named(tmp_path, checkpoint):
    whole = torch.load(checkpoint, weights_only=False)
    path = tmp_path / "checkpoint.pth"

    def with_weights(weights: dict[str, torch.Tensor]) -> str:
        torch.save({**whole, "model": weights}, path)
        return refused(path)

    weights = whole["model"]
    less = {k: v for k, v in weights.items() if k != "encoder.0.norm1.weight"}
    assert "norm1.weight" in with_weights(less)
    assert "encoder.0.extra" in with_weights(
        {**weights, "encoder.0.extra": torch.zeros(1)}
    ).replace("blocks.", "")
    bent = {**weights, "encoder.0.norm1.weight": torch.zeros(3)}
    assert "expected" in with_weights(bent)
    table = next(k for k in weights if k.endswith("pos_emb"))
    assert "sin-cos" in with_weights({**weights, table: weights[table].roll(1, -1)})


def test_without_statistics_the_model_refuses_data(tmp_path, make_sample, checkpoint):
    from multimae_eo.errors import ContractError
    from multimae_eo.sample import collate

    model = convert(checkpoint)
    model.save_pretrained(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.statistics is None
    batch = collate([make_sample(0, names=("rgb",))], again.modalities.select(["rgb"]))
    with pytest.raises(ContractError, match=r"no statistics to normalise with.*--statistics"):
        again.encode(batch)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"sentinel2_l1c": {}}', '{"sentinel2_l1c": {"mean": [1], "std": 2}}',
             '{"sentinel2_l1c": 5}', "null"]
)  # fmt: skip
def test_damaged_statistics_are_refused(tmp_path, text, checkpoint):
    path = tmp_path / "band_stats.json"
    path.write_text(text)
    with pytest.raises(CheckpointError) as told:
        convert(checkpoint, statistics=path)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


def test_statistics_are_taken_per_level_and_in_reflectance(tmp_path, checkpoint):
    bands = 13
    entries = {
        f"sentinel2_{level}": {"mean": [1000.0 * (i + 1) for i in range(bands)], "std": [s] * bands}
        for level, s in (("l1c", 500.0), ("l2a", 700.0))
    }
    path = tmp_path / "band_stats.json"
    path.write_text(json.dumps({**entries, "aster": {"mean": [600.0], "std": [50.0]}}))
    model = convert(checkpoint, statistics=path)
    assert model.statistics is not None
    mean, std = model.statistics.mean_std("rgb")
    assert mean[0].tolist() == pytest.approx([0.4, 0.3, 0.2]), "B4, B3, B2 are channels 3, 2, 1"
    assert std.ravel().tolist() == pytest.approx([0.05] * 3 + [0.07] * 3)
    assert model.statistics.mean_std("depth")[0].tolist() == [[600.0]]


def test_a_checkpoint_is_closed_again(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {"w": torch.ones(3)}, "args": argparse.Namespace(a=1)}, path)
    weights, arguments = read_checkpoint(path)
    assert zipfile.is_zipfile(path)
    path.unlink()
    assert weights["w"].tolist() == [1, 1, 1]
    assert arguments["a"] == 1
