"""The model folder: its card, its versions, its contract, and the hub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from multimae_eo import MultiMAE, Predictor
from multimae_eo.catalog import make_modality
from multimae_eo.errors import CheckpointError, ConfigError, ContractError, OutputError
from multimae_eo.modality import ModalitySet
from multimae_eo.model_folder import migrations
from multimae_eo.model_folder.folder import load_either, model_hash
from multimae_eo.network.config import HeadConfig
from multimae_eo.network.target import Target
from multimae_eo.sample import collate


@pytest.fixture
def saved(make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "m", card="## Results\n\nmIoU 0.5")
    return tmp_path / "m"


def test_the_card_tells_the_contract(saved, modalities, statistics):
    text = (saved / "README.md").read_text(encoding="utf-8")
    assert f"`{model_hash(saved)}`" in text
    assert "| rgb | B4, B3, B2 | continuous | reflectance | 10 m | l1c, l2a |" in text
    moments = statistics.moments["rgb"]["l2a"]
    assert f"| rgb.B3 | 0.56 µm | l2a | {moments.mean[1]:.5g} | {moments.std[1]:.5g} |" in text
    assert "80 permanent water" in text
    assert "## Limits" in text
    assert text.rstrip().endswith("mIoU 0.5")


def test_the_card_of_a_fine_tuned_model_tells_its_classes(make_model, tmp_path):
    target = Target(kind="class", classes=("forest", "water"))
    Predictor(make_model(), target, HeadConfig()).save_pretrained(tmp_path / "p")
    text = (tmp_path / "p/README.md").read_text(encoding="utf-8")
    assert "Head: linear; predicts forest, water." in text
    assert isinstance(load_either(tmp_path / "p"), Predictor)
    with pytest.raises(CheckpointError, match="a fine-tuned model"):
        MultiMAE.from_pretrained(tmp_path / "p")


@pytest.mark.slow
def test_a_fresh_process_with_the_core_alone_loads_it(saved, make_sample, modalities, tmp_path):
    batch = collate([make_sample(0), make_sample(1)], modalities)
    expected = MultiMAE.from_pretrained(saved).encode(batch).pooled
    torch.save([batch.pixels, batch.level, batch.scale], tmp_path / "batch.pt")
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("rasterio", "huggingface_hub", "onnx", "terratorch", "torchgeo",
                                  "torchvision", "timm", "pystac", "odc", "fastapi"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import torch
from multimae_eo import Batch, MultiMAE
from multimae_eo.info.paths import describe
from pathlib import Path
model = MultiMAE.from_pretrained({str(saved)!r})
pixels, level, scale = torch.load({str(tmp_path / "batch.pt")!r})
batch = Batch(modalities=model.modalities, keys=("a", "b"), pixels=pixels, valid={{}},
              present=torch.ones(2, 3, dtype=torch.bool), scale=scale,
              offset=torch.zeros(2, 3), level=level, complete=True)
torch.save(model.encode(batch).pooled.detach(), {str(tmp_path / "out.pt")!r})
print(describe(Path({str(saved)!r}))["hash"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == model_hash(saved)
    assert_close(torch.load(tmp_path / "out.pt"), expected, atol=1e-6, rtol=1e-6)


def test_an_old_version_is_migrated(saved, monkeypatch, make_sample, modalities):
    """A made-up version 0 called the encoder's width ``dim`` and had no position grid."""
    batch = collate([make_sample(0)], modalities)
    expected = MultiMAE.from_pretrained(saved).encode(batch).pooled
    path = saved / "config.json"
    config = json.loads(path.read_text())
    config["format_version"] = 0
    config["model"]["encoder"]["dim"] = config["model"]["encoder"].pop("width")
    del config["model"]["position_grid"]
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="model format 0 is no longer read"):
        MultiMAE.from_pretrained(saved)

    def from_0(config, contract):
        model = dict(config["model"])
        encoder = dict(model["encoder"])
        encoder["width"] = encoder.pop("dim")
        return {**config, "model": {**model, "encoder": encoder, "position_grid": 28}}, contract

    monkeypatch.setitem(migrations.MIGRATIONS, 0, from_0)
    again = MultiMAE.from_pretrained(saved)
    assert torch.equal(again.encode(batch).pooled, expected)


@pytest.mark.parametrize(
    ("version", "words"), [(99, "update multimae-eo"), (None, "names no format version")]
)
def test_other_versions_are_refused(saved, version, words):
    path = saved / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": version}))
    with pytest.raises(CheckpointError, match=words):
        MultiMAE.from_pretrained(saved)


@pytest.mark.parametrize(
    ("bands", "words"),
    [
        (("B2", "B3", "B4"), "the order differs"),
        (("B4", "B3"), r"the data lack B2"),
        (("B4", "B3", "B2", "B8"), "the model does not know B8"),
    ],
)
def test_a_contract_that_does_not_fit_is_shown(saved, bands, words):
    theirs = ModalitySet([make_modality("rgb", sensor_name="sentinel2", bands=bands)])
    with pytest.raises(ContractError, match=words):
        MultiMAE.from_pretrained(saved, modalities=theirs)


def test_a_contract_that_fits_or_lacks_a_modality_is_told(saved, modalities):
    MultiMAE.from_pretrained(saved, modalities=modalities.select(["rgb", "landcover"]))
    other = ModalitySet([make_modality("elevatoin", sensor_name="dem", bands=("elevation",))])
    with pytest.raises(ContractError, match="did you mean 'elevation'"):
        MultiMAE.from_pretrained(saved, modalities=other)


# the hub ------------------------------------------------------------------------------------


class Hub:
    """A stand-in for ``huggingface_hub``: a folder per model."""

    def __init__(self, root):
        self.root, self.asked = root, []

    def snapshot_download(self, name, revision=None, allow_patterns=None):
        self.asked.append((name, revision, allow_patterns))
        if not (self.root / name).is_dir():
            raise ValueError("404: repository not found")
        return str(self.root / name)

    def HfApi(self):  # noqa: N802 - theirs
        return SimpleNamespace(create_repo=self.create, upload_folder=self.upload)

    def create(self, name, private, exist_ok):
        if name.startswith("else/"):
            raise PermissionError("403")
        return f"hub://{name}"

    def upload(self, repo_id, folder_path):
        import shutil

        shutil.copytree(folder_path, self.root / repo_id)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    found = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", found)
    return found


def test_what_is_pushed_is_what_is_loaded(hub, make_model, tmp_path):
    model = make_model()
    assert model.push_to_hub("me/model", card="ours") == "hub://me/model"
    assert model_hash("me/model") == model_hash(hub.root / "me/model")
    again = MultiMAE.from_pretrained("me/model@v1")
    assert hub.asked[-1][:2] == ("me/model", "v1")
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_hubs_refusals_are_told(hub, make_model, monkeypatch):
    with pytest.raises(CheckpointError, match="neither a folder here nor a model on the hub"):
        MultiMAE.from_pretrained("me/none")
    with pytest.raises(OutputError, match="the hub refused"):
        make_model().push_to_hub("else/model")
    with pytest.raises(ConfigError, match="expected owner/model"):
        make_model().push_to_hub("model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"multimae-eo\[hub\]"):
        MultiMAE.from_pretrained("me/model")


def test_the_hash_is_the_same_everywhere(made, tmp_path, capsys):
    """Card, info, map and embeddings of a model name it alike."""
    from multimae_eo.cli import main

    rasterio = pytest.importorskip("rasterio")
    import pyarrow.parquet as pq

    model = made / "run/model"
    digest = model_hash(model)
    world = made / "world"
    assert main(["embed", "--model", model, "--data", f"{world}/dataset.yaml", "--out",
                 str(tmp_path / "e.parquet")]) == 0  # fmt: skip
    assert main(["reconstruct", "--model", model, "--scene", f"{world}/scene.yaml", "--inputs",
                 "rgb", "--outputs", "elevation", "--out", str(tmp_path / "map")]) == 0  # fmt: skip
    assert set(pq.read_table(tmp_path / "e.parquet")["model_hash"].to_pylist()) == {digest}
    cogs = sorted((tmp_path / "map").glob("*.tif"))
    assert cogs
    for path in cogs:
        with rasterio.open(path) as file:
            assert file.tags()["model_hash"] == digest
    capsys.readouterr()
    for path in (model, str(tmp_path / "e.parquet"), str(cogs[0])):
        assert main(["info", path, "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert digest in (record.get("hash"), record.get("model_hash"))
    readme = (Path(model) / "README.md").read_text(encoding="utf-8")
    assert f"`{digest}`" in readme
