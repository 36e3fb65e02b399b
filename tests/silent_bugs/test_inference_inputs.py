"""From files to outputs with the command line: warnings about inputs, and the user's class ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")

from multimae_eo.cli.main import main  # noqa: E402
from tests.support.scene_files import write  # noqa: E402

IDS = (7, 20, 300)
NAMES = ("oak", "beech", "water")
RGB = "{sensor: sentinel2, bands: [B4, B3, B2], level: l2a%s"
SCALE = ", scale: 1.0e-4"
SIDE = 32
_RNG = np.random.default_rng(0)


def image(path: Path, level: int, *, side: int = SIDE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = _RNG.integers(300, 900, (3, side, side)) + 900 * level
    write(path, pixels.astype("uint16"), ("B4", "B3", "B2"))


def train(data: Path, out: Path, task: str) -> Path:
    line = ["finetune", "--model", "none", "--model.encoder", "nano", "--optim.layer_decay", "1",
            "--data", data, "--task", task, "--inputs", "rgb", "--data.batch_size", "6",
            "--run.epochs", "1", "--optim.warmup_epochs", "0", "--run.accelerator", "cpu",
            "--out", out]  # fmt: skip
    assert main([str(a) for a in line]) == 0
    return out / "model"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chips whose class decides their brightness, with a table and label maps of its ids."""
    folder = tmp_path_factory.mktemp("ids")
    rows = ["id,kind,split"]
    for i in range(18):
        image(folder / f"i/{i}.tif", i % 3)
        split = ("train", "train", "train", "train", "val", "test")[i // 3]
        rows.append(f"{i},{IDS[i % 3]},{split}")
        (folder / "m").mkdir(exist_ok=True)
        mask = np.full((1, SIDE, SIDE), IDS[i % 3], "uint16")
        write(folder / f"m/{i}.tif", mask, ("label",), nodata=None)
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    head = f'chips: "i/{{id}}.tif"\nmodalities:\n  rgb: {RGB % SCALE}}}\nsplits: t.csv\n'
    named = ", ".join(f"{i}: {n}" for i, n in zip(IDS, NAMES, strict=True))
    classes = f"classes: [{', '.join(NAMES)}], ids: {{{named}}}"
    (folder / "maps.yaml").write_text(head + f'labels: {{mask: "m/{{id}}.tif", {classes}}}\n')
    (folder / "column.yaml").write_text(head + "labels: {column: kind}\n")
    image(folder / "scene.tif", 1, side=2 * SIDE)
    for name, scale in (("clean", SCALE), ("unscaled", "")):
        (folder / f"{name}.yaml").write_text(
            f"modalities:\n  rgb: {RGB % scale}, path: scene.tif}}\n"
        )
    (folder / "unscaled_chips.yaml").write_text(
        (folder / "column.yaml").read_text().replace(SCALE, "")
    )
    return folder


@pytest.fixture(scope="module")
def mapper(data: Path) -> Path:
    return train(data / "maps.yaml", data / "mapper", "segmentation")


@pytest.fixture(scope="module")
def classifier(data: Path) -> Path:
    return train(data / "column.yaml", data / "classifier", "classification")


def predict(model: Path, scene: Path, out: Path, *more: str) -> int:
    line = ["predict", "--model", model, "--scene", scene, "--out", out, "--device", "cpu", *more]
    return main([str(a) for a in line])


def tags(path: Path) -> dict[str, str]:
    with rasterio.open(path) as file:
        return file.tags()


def test_a_map_keeps_the_warning_about_its_inputs(
    data: Path, mapper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(mapper, data / "clean.yaml", tmp_path / "clean.tif") == 0
    assert "warning" not in capsys.readouterr().err
    assert "input_warning" not in tags(tmp_path / "clean.tif")
    assert predict(mapper, data / "unscaled.yaml", tmp_path / "raw.tif") == 0
    (line,) = [a for a in capsys.readouterr().err.splitlines() if "warning: " in a]
    text = tags(tmp_path / "raw.tif")["input_warning"]
    assert line == f"multimae-eo: warning: {text}"
    assert "declare `scale: 0.0001`" in text


def test_strict_makes_an_error_of_a_warning(
    data: Path, mapper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "map.tif"
    assert predict(mapper, data / "unscaled.yaml", out, "--strict") == 1
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("multimae-eo: error: ")
    assert "declare `scale: 0.0001`" in err[-1]
    assert list(tmp_path.iterdir()) == [], "nothing is written"
    assert predict(mapper, data / "clean.yaml", out, "--strict") == 0


def test_metrics_keep_the_warning_about_their_inputs(
    data: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["evaluate", "--model", str(classifier), "--device", "cpu", "--data"]
    unscaled, out = str(data / "unscaled_chips.yaml"), tmp_path / "out"
    assert main([*line, unscaled, "--out", str(out)]) == 0
    assert "warning: " in capsys.readouterr().err
    assert "scale" in json.loads((out / "metrics.json").read_text())["input_warning"]
    assert main([*line, unscaled, "--out", str(tmp_path / "no"), "--strict"]) == 1
    assert not (tmp_path / "no").exists()
    assert main([*line, str(data / "column.yaml"), "--strict"]) == 0


def test_maps_carry_the_ids_and_names_of_the_labels(
    data: Path, mapper: Path, tmp_path: Path
) -> None:
    out = tmp_path / "map.tif"
    assert predict(mapper, data / "clean.yaml", out, "--probabilities") == 0
    with rasterio.open(out) as file:
        values = file.read(1)
        found = {k: v for k, v in file.tags().items() if k.startswith("class_")}
        assert file.nodata not in IDS
    assert found == {f"class_{i}": n for i, n in zip(IDS, NAMES, strict=True)}
    with rasterio.open(tmp_path / "map.probabilities.tif") as file:
        assert file.descriptions == NAMES
        best = file.read().argmax(axis=0)
    np.testing.assert_array_equal(values, np.array(IDS)[best])


def test_predictions_of_chips_carry_the_ids_of_the_labels(
    data: Path, classifier: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    line = ["evaluate", "--model", classifier, "--data", data / "column.yaml", "--out", tmp_path]
    assert main([str(a) for a in (*line, "--device", "cpu")]) == 0
    table = parquet.read_table(tmp_path / "predictions.parquet")
    assert json.loads(table.schema.metadata[b"class_ids"]) == list(IDS)
    columns = table.to_pydict()
    assert columns["label"] == [IDS[int(key) % 3] for key in columns["key"]]
    best = np.asarray(columns["probabilities"]).argmax(axis=1)
    assert columns["prediction"] == np.array(IDS)[best].tolist()
