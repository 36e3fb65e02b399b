"""The plugins in the frameworks themselves: ``make plugins`` builds an environment for them."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from multimae_eo import backbone

LEVEL = {"rgb": "l1c"}

YAML = """
seed_everything: 0
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 2
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  default_root_dir: {root}
data:
  class_path: terratorch.datamodules.GenericNonGeoSegmentationDataModule
  init_args:
    batch_size: 4
    num_workers: 0
    num_classes: 2
    train_data_root: {root}/images
    val_data_root: {root}/images
    test_data_root: {root}/images
    train_label_data_root: {root}/masks
    val_label_data_root: {root}/masks
    test_label_data_root: {root}/masks
    img_grep: "*.tif"
    label_grep: "*.tif"
    means: [0, 0, 0]
    stds: [1, 1, 1]
model:
  class_path: terratorch.tasks.SemanticSegmentationTask
  init_args:
    model_factory: EncoderDecoderFactory
    model_args:
      backbone: multimae_eo
      backbone_model: {model}
      backbone_bands: [BLUE, GREEN, RED]
      backbone_levels: {{rgb: l1c}}
      backbone_scale: 1.0e-4
      decoder: FCNDecoder
      decoder_channels: 16
      num_classes: 2
    loss: ce
    ignore_index: -1
    optimizer: AdamW
    lr: 1.0e-2
"""


@pytest.fixture(autouse=True)
def same_precision():
    """Importing TerraTorch lowers the precision of torch's products, for the whole process."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def model(make_model, tmp_path):
    made = make_model().eval()
    made.save_pretrained(tmp_path / "m")
    return made


@pytest.fixture
def chips(tmp_path):
    """Bright left halves are class 1."""
    rasterio = pytest.importorskip("rasterio")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(8):
        image = rng.integers(200, 800, (3, 16, 16))
        mask = np.zeros((1, 16, 16), np.uint8)
        split = int(rng.integers(4, 13))
        image[:, :, :split] += 2000
        mask[:, :, :split] = 1
        for folder, array in (("images", image.astype(np.float32)), ("masks", mask)):
            with rasterio.open(
                tmp_path / folder / f"{i}.tif", "w", driver="GTiff", width=16, height=16,
                count=len(array), dtype=array.dtype,
            ) as file:  # fmt: skip
                file.write(array)
    return tmp_path


@pytest.mark.slow
def test_terratorch_trains_our_backbone_from_its_yaml(model, chips):
    pytest.importorskip("terratorch", reason="TerraTorch is not here: make plugins")
    modules = chips / "mine"
    modules.mkdir()
    (modules / "__init__.py").write_text("import multimae_eo.plugins.terratorch\n")
    (chips / "run.yaml").write_text(YAML.format(root=chips, model=chips / "m"))
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from terratorch.__main__ import main; main()", "fit",
         "--config", str(chips / "run.yaml"), "--custom_modules_path", str(modules)],
        capture_output=True, text=True, check=False, cwd=chips, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "max_epochs=2" in done.stderr + done.stdout


@pytest.mark.slow
def test_terratorch_features_are_ours(model, tmp_path):
    registry = pytest.importorskip("terratorch.registry", reason="no TerraTorch: make plugins")
    import multimae_eo.plugins.terratorch  # noqa: F401 - registers

    body = registry.BACKBONE_REGISTRY.build(
        "multimae_eo", model=str(tmp_path / "m"), inputs=["rgb"], levels=LEVEL
    ).eval()
    image = torch.rand(3, 3, 16, 16)
    own = backbone(model, ["rgb"], out_indices=[0, 1], levels=LEVEL).eval()
    with torch.no_grad():
        for a, b in zip(body(image), own(image), strict=True):
            assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_torchgeo_bench_runs_our_model(model, tmp_path):
    """It looks for ``data/classification_v1.0/<name>`` where it is run, and downloads otherwise."""
    pytest.importorskip("torchgeo_bench", reason="torchgeo-bench is not here: make plugins")
    from tests.support.geobench_files import write_geobench

    folder = write_geobench(tmp_path / "data", "m-eurosat", chips=(30, 10, 10), size=32)
    assert folder == tmp_path / "data/classification_v1.0/m-eurosat"
    command = shutil.which("torchgeo-bench", path=str(Path(sys.executable).parent))
    assert command
    config = tmp_path / "conf/model"
    config.mkdir(parents=True)
    (config / "ours.yaml").write_text(
        "_target_: multimae_eo.plugins.torchgeo_bench.MultiMAEBench\n"
        f"model: {tmp_path / 'm'}\nlevels: {{rgb: l1c}}\nscale: 1.0e-4\nname: ours\n"
    )
    settings = [
        "model=ours", "dataset.names=[m-eurosat]", "dataset.normalization=identity",
        "dataset.image_size=32", "dataset.num_workers=0", "dataset.batch_size=8",
        "dataset.bands=all", "device=cpu", "eval.bootstrap=5", "eval.c_range=[-2,2,3]",
        "eval.knn_k=1", "output=results.csv",
    ]  # fmt: skip
    done = subprocess.run(
        [command, "run", "--config-dir", str(config.parent), *settings], capture_output=True,
        text=True, check=False, cwd=tmp_path,
        env={**os.environ, "GEOBENCH_V1_NO_HF_DOWNLOAD": "1"},
    )  # fmt: skip
    said = (done.stdout + done.stderr)[-3000:]
    assert done.returncode == 0, said
    assert (tmp_path / "results.csv").is_file(), said
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"knn1", "linear"}
    for row in rows.values():
        assert row["model"] == "multimae_eo.plugins.torchgeo_bench.MultiMAEBench"
        assert (row["dataset"], row["name"], row["bands"]) == ("m-eurosat", "ours", "all")
        assert (row["n_train"], row["n_test"]) == ("30", "10")
        assert (row["feature_dim"], row["normalization"]) == ("32", "identity")
        assert float(row["metric_value"]) > 0.3, "ten classes that the colours tell apart"


@pytest.mark.slow
def test_a_torchgeo_data_set_is_a_source():
    datasets = pytest.importorskip("torchgeo.datasets", reason="TorchGeo is not here: make plugins")
    from multimae_eo.catalog import make_modality
    from multimae_eo.sources.torchgeo import ImageKey, TorchGeoSource

    base: Any = datasets.NonGeoDataset

    class Made(base):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"image": torch.full((3, 8, 8), float(index)), "label": torch.tensor(index % 2)}

    image = ImageKey(
        modality=make_modality("rgb", sensor_name="rgb", bands=("red", "green", "blue"))
    )
    source = TorchGeoSource("made", {"train": Made()}, [image], label="label")
    assert source.batch(source.keys).pixels["rgb"][:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0]
