"""The verb predict: fine-tuned models over scenes, by one process, several, or Dask's workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from multimae_eo.errors import ConfigError, OutputError
from multimae_eo.files import LOCK
from multimae_eo.geo import Window
from multimae_eo.network.config import HeadConfig, HeadName
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import Target
from multimae_eo.sample import collate
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.scenes.predict import predict_scene
from multimae_eo.sources.scene.scene import Scene

rasterio = pytest.importorskip("rasterio")

from tests.support.killed_map import KILLED_AFTER_ONE_BLOCK  # noqa: E402
from tests.support.scene_files import Fake, optical_scene  # noqa: E402

MAP = Target(kind="map", classes=("forest", "grass", "water"))
CLASS = Target(kind="class", classes=("forest", "grass", "water"))
VALUE = Target(kind="value", mean=40.0, std=3.0)


@pytest.fixture
def tuned(make_model) -> Callable[..., Predictor]:
    def make(target: Target, head: HeadName = "linear") -> Predictor:
        torch.manual_seed(1)
        config = HeadConfig(name=head, width=16)
        predictor = Predictor(make_model(), target, config).eval()
        for parameter in predictor.head.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        return predictor

    return make


@pytest.fixture
def folder(tuned, tmp_path) -> Path:
    tuned(MAP).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def tall(tmp_path) -> Path:
    """Three blocks of rows for a model of 16 px, with a hole."""
    (tmp_path / "tall").mkdir()
    return optical_scene(tmp_path / "tall", 500, 24, hole=np.s_[100:180, :])


def command(model: Path, scene: Path, out: Path, *more: str) -> list[str]:
    return ["predict", "--model", str(model), "--scene", str(scene), "--inputs", "rgb",
            "--device", "cpu", "--precision", "32-true", "--out", str(out), *more]  # fmt: skip


def written(out: Path) -> dict[str, bytes]:
    """All rasters and pictures beside ``out``."""
    return {p.name: p.read_bytes() for p in sorted(out.parent.glob(f"{out.stem}*"))}


def require_cog(path: Path) -> None:
    """What makes a GeoTIFF cloud-optimised: tiles, overviews, and directories in order first."""
    with rasterio.open(path) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.block_shapes == [(512, 512)] * file.count
        levels = file.overviews(1)
        assert bool(levels) is (max(file.shape) > 512)
        directories = [int(file.get_tag_item("IFD_OFFSET", "TIFF", bidx=1))]
        first = [int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))]
        for level in range(len(levels)):
            for found, name in ((directories, "IFD_OFFSET"), (first, "BLOCK_OFFSET_0_0")):
                found.append(int(file.get_tag_item(name, "TIFF", bidx=1, ovr=level)))
    assert directories == sorted(directories), "from the largest image to the smallest"
    assert directories[-1] < min(first), "directories before any pixel"
    assert first == sorted(first, reverse=True), "pixels of overviews before those of the image"


def test_a_fine_tuned_model_maps_a_scene(run, folder, tmp_path):
    path = optical_scene(tmp_path, 45, 61, hole=np.s_[30:, :20])
    out = tmp_path / "out/map.tif"
    code, said, _ = run(*command(folder, path, out, "--probabilities", "--confidence"))
    assert code == 0
    stems = ("map", "map.probabilities", "map.confidence")
    assert said.split() == [str(out.parent / f"{s}.tif") for s in stems]
    pairs = [f"{s}.tif{e}" for s in stems for e in ("", ".png")]
    assert sorted(written(out)) == sorted([*pairs, "map.tif.aux.xml"])
    hole = np.load(tmp_path / "red.npy")[0] == 0
    with rasterio.open(out) as file, rasterio.open(tmp_path / "s2.tif") as source:
        assert (file.crs, file.transform, file.shape) == (
            source.crs, source.transform, source.shape,
        )  # fmt: skip
        classes = file.read(1)
        assert (file.dtypes, file.nodata) == (("uint8",), 255)
        assert [file.tags()[f"class_{i}"] for i in range(3)] == list(MAP.classes)
        assert len({file.colormap(1)[i] for i in range(3)}) == 3
        assert len(file.tags()["model_hash"]) == 16
        assert file.tags()["software"].startswith("multimae-eo ")
    with rasterio.open(out.parent / "map.probabilities.tif") as file:
        shares = file.read()
        assert file.descriptions == MAP.classes
    with rasterio.open(out.parent / "map.confidence.tif") as file:
        sure = file.read(1)
        assert np.isnan(file.nodata)
    assert np.array_equal(classes == 255, hole)
    assert np.isnan(shares[:, hole]).all()
    assert np.isnan(sure[hole]).all()
    assert len(np.unique(classes[~hole])) > 1
    assert np.array_equal(classes[~hole], shares.argmax(axis=0)[~hole])
    assert np.abs(shares.sum(axis=0)[~hole] - 1).max() < 1e-5
    assert np.array_equal(sure[~hole], shares.max(axis=0)[~hole])
    require_cog(out)


def test_a_large_map_is_a_valid_cog(tmp_path):
    scene = Scene(optical_scene(tmp_path, 1100, 90))
    paths = predict_scene(
        Fake(64), scene, out=tmp_path / "map.tif", extras=["probabilities"],
        options=SceneOptions(overlap=0.0),
    )  # fmt: skip
    with rasterio.open(paths[0]) as file:
        assert len(file.overviews(1)) == 2
    for path in paths:
        require_cog(path)


@pytest.mark.parametrize("head", ["linear", "unet"])
def test_one_window_is_what_the_model_says_of_the_chip(tuned, tmp_path, head):
    scene, model = Scene(optical_scene(tmp_path, 16, 16)), tuned(MAP, head)
    predict_scene(model, scene, out=tmp_path / "map.tif", extras=["probabilities"])
    sample = scene.read(Window(row=0, col=0, height=16, width=16))
    expected = model.predictions(model.predict(collate([sample], scene.modalities)))[0]
    with rasterio.open(tmp_path / "map.probabilities.tif") as file:
        assert np.abs(file.read() - expected.numpy()).max() < 1e-5


def test_constant_logits_give_a_constant_map(tuned, tmp_path):
    model = tuned(MAP)
    for name, parameter in model.head.named_parameters():
        parameter.data.zero_()
        if name.endswith("bias") and parameter.shape == (3,):
            parameter.data = torch.tensor([0.3, -1.0, 2.0])
    scene = Scene(optical_scene(tmp_path, 53, 71))
    predict_scene(model, scene, out=tmp_path / "map.tif", extras=["probabilities"])
    whole = torch.tensor([0.3, -1.0, 2.0]).softmax(dim=0).numpy()
    with rasterio.open(tmp_path / "map.probabilities.tif") as file:
        assert np.abs(file.read() - whole[:, None, None]).max() < 1e-5


class Patchwise(Fake):
    """Sees 4 × 4 px at a time: the share of water is a function of each patch's mean."""

    def predict(self, batch, inputs=None):
        mean = torch.nn.functional.avg_pool2d(self.red(batch), 4)
        share = torch.sigmoid(20 * (mean - 0.22)).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return torch.cat([1 - share, share], dim=1)


def test_tiled_equals_whole_where_the_receptive_field_permits(tmp_path):
    scene = Scene(optical_scene(tmp_path, 60, 84))
    predict_scene(Patchwise(), scene, out=tmp_path / "map.tif", extras=["probabilities"])
    sample = scene.read(scene.grid.extent)
    whole = Patchwise().predict(collate([sample], scene.modalities))[0].numpy()
    with rasterio.open(tmp_path / "map.probabilities.tif") as file:
        assert np.abs(file.read() - whole).max() < 1e-5


def steps_at_borders(path: Path) -> float:
    """How much faster probabilities change across windows' borders than within patches."""
    with rasterio.open(path) as file:
        values = file.read()
    steps = np.abs(np.diff(values, axis=2)).mean(axis=(0, 1))[16:-17]
    at = np.arange(16, 16 + len(steps)) + 1
    return float(steps[at % 8 == 0].mean() / steps[at % 8 != 0].mean())


def test_a_real_models_map_has_no_seams(tuned, tmp_path):
    scene, found = Scene(optical_scene(tmp_path, 64, 128)), {}
    for overlap in (0.5, 0.0):
        out = tmp_path / f"{overlap}.tif"
        options = SceneOptions(overlap=overlap)
        predict_scene(tuned(MAP), scene, out=out, extras=["probabilities"], options=options)
        found[overlap] = steps_at_borders(tmp_path / f"{overlap}.probabilities.tif")
    assert found[0.5] < 1.3
    assert found[0.0] > 1.5, "without overlap the seams are there to be seen"


def test_one_answer_per_chip_is_a_map_of_windows(tuned, tmp_path):
    """A pixel per window; the last ones reach over the edges, and none is moved."""
    scene, model = Scene(optical_scene(tmp_path, 40, 61, hole=np.s_[:16, 16:32])), tuned(CLASS)
    predict_scene(model, scene, out=tmp_path / "map.tif", extras=["probabilities"])
    with rasterio.open(tmp_path / "map.probabilities.tif") as file:
        assert file.shape == (3, 4)
        assert file.transform.a == 160
        assert (file.bounds.left, file.bounds.top) == (500000, 5800000)
        shares = file.read()
    with rasterio.open(tmp_path / "map.tif") as file:
        classes = file.read(1)
    assert np.argwhere(classes == 255).tolist() == [[0, 1]]
    for row, col in ((0, 0), (1, 2), (2, 3)):
        sample = scene.read(Window(row=16 * row, col=16 * col, height=16, width=16))
        said = model.predictions(model.predict(collate([sample], scene.modalities)))[0]
        assert np.abs(shares[:, row, col] - said.detach().numpy()).max() < 1e-5
        assert classes[row, col] == int(said.argmax())
    options = SceneOptions(overlap=0.5)
    (path,) = predict_scene(model, scene, out=tmp_path / "finer.tif", options=options)
    with rasterio.open(path) as file:
        assert (file.shape, file.transform.a) == ((5, 8), 80)


def test_a_model_is_adapted_to_the_scene_before_it_maps_it(run, make_model, refused, tmp_path):
    """Test-time training: recorded in the tags, repeatable, shared by processes, off by default."""
    torch.manual_seed(1)
    config = HeadConfig(name="linear", width=16)
    predictor = Predictor(make_model(), MAP, config, decoders=True).eval()
    torch.nn.init.normal_(predictor.head.project.weight, std=0.5)
    predictor.save_pretrained(tmp_path / "model")
    scene = optical_scene(tmp_path, 40, 24)

    def mapped(name: str, *more: str) -> tuple[bytes, dict[str, str]]:
        out = tmp_path / name / "map.tif"
        out.parent.mkdir()
        code, _, err = run(*command(tmp_path / "model", scene, out, "--probabilities", *more))
        assert code == 0, err
        assert ("test-time training: " in err) == bool(more)
        with rasterio.open(out.with_name("map.probabilities.tif")) as file:
            return file.read().tobytes(), file.tags()

    steps = ("--adapt", "3", "--adapt_lr", "1e-3")
    plain, adapted, again = mapped("plain"), mapped("a", *steps), mapped("b", *steps)
    assert adapted == again
    assert adapted[0] != plain[0]
    assert adapted[1]["adapted"].startswith("3 steps at 0.001 on ")
    assert "adapted" not in plain[1]
    assert mapped("c", *steps, "--workers", "2")[0] == adapted[0]
    assert mapped("d", *steps, "--seed", "1")[0] != adapted[0]
    predictor.without_decoders().save_pretrained(tmp_path / "bare")
    message = refused(*command(tmp_path / "bare", scene, tmp_path / "x.tif", *steps))
    assert "the model has no decoders" in message


def test_values_are_in_the_labels_unit(run, tuned, tmp_path):
    model = tuned(VALUE)
    model.save_pretrained(tmp_path / "values")
    path = optical_scene(tmp_path, 16, 32)
    assert run(*command(tmp_path / "values", path, tmp_path / "map.tif"))[0] == 0
    scene = Scene(path)
    chips = [scene.read(Window(row=0, col=c, height=16, width=16)) for c in (0, 16)]
    said = model.predictions(model.predict(collate(chips, scene.modalities)))
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.dtypes == ("float32",)
        assert np.abs(file.read(1)[0] - said.detach().numpy()).max() < 1e-4


def test_mistakes_are_told(refused, folder, make_model, tmp_path):
    path = optical_scene(tmp_path, 16, 32)
    make_model().save_pretrained(tmp_path / "plain")
    out = tmp_path / "map.tif"
    assert "has no head; fine-tune it" in refused(*command(tmp_path / "plain", path, out))
    assert "name end in .tif" in refused(*command(folder, path, tmp_path / "map.png"))
    assert "no model folder" in refused(*command(tmp_path / "nowhere", path, out))
    assert "give either workers" in refused(*command(folder, path, out, "--workers", "2",
                                                     "--dask", "tcp://127.0.0.1:1"))  # fmt: skip
    assert not list(tmp_path.glob("map*"))


# Killed, shared, and shared by machines -------------------------------------------------------


@pytest.fixture
def alone(run, folder, tall, tmp_path) -> dict[str, bytes]:
    """What one process writes."""
    out = tmp_path / "alone/map.tif"
    assert run(*command(folder, tall, out, "--probabilities"))[0] == 0
    return written(out)


@pytest.mark.slow
def test_a_killed_map_goes_on_and_processes_share_it(run, folder, tall, alone, tmp_path):
    out = tmp_path / "out/map.tif"
    words = command(folder, tall, out, "--probabilities")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_ONE_BLOCK, *words], env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert {p.name for p in out.parent.iterdir()} == {".map.tif.partial", f".map.tif{LOCK}"}
    done = sorted(p.name for p in (out.parent / ".map.tif.partial").glob("block-?????"))
    assert done == ["block-00000"]
    assert run(*words, "--workers", "2")[0] == 0
    assert written(out) == alone
    assert [p.name for p in out.parent.iterdir() if p.name.startswith(".")] == []


@pytest.fixture
def cluster(monkeypatch) -> Iterator[object]:
    """Two workers on this machine, each a process with one thread."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,
        memory_limit=None,
    ) as made:  # fmt: skip
        yield made


@pytest.mark.slow
def test_two_dask_workers_write_the_same_bytes(run, cluster, folder, tall, alone, monkeypatch):
    # What is given relative to here is found by workers that are elsewhere.
    tmp_path = tall.parents[1]
    monkeypatch.chdir(tmp_path)
    address = cluster.scheduler_address
    out = tmp_path / "dask/map.tif"
    words = command(folder, tall, Path("dask/map.tif"), "--probabilities", "--dask", address)
    words[words.index(str(tall))] = "tall/scene.yaml"
    assert run(*words)[0] == 0
    assert written(out) == alone

    # A worker is killed while it works on a block.
    victim = next(iter(cluster.workers.values())).pid
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if not killed:
            killed.append(victim)
            os.kill(victim, signal.SIGKILL)

    again = tmp_path / "again/map.tif"
    predict_scene(
        Predictor.from_pretrained(folder).eval(), Scene(tall), out=again, inputs=["rgb"],
        extras=["probabilities"],
        options=SceneOptions(dask=address, model_hash=_hash(folder), progress=kill),
    )  # fmt: skip
    assert killed
    assert written(again) == alone


def _hash(folder: Path) -> str:
    from multimae_eo.model_folder.folder import model_hash

    return model_hash(folder)


class Deadly(Fake):
    """Kills whoever asks it."""

    def predict(self, batch, inputs=None):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_without_a_cluster_or_with_workers_that_always_die_it_is_told(
    cluster, tall, tmp_path, monkeypatch
):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    monkeypatch.setattr("multimae_eo.dask_cluster._SECONDS_TO_CONNECT", 1)
    options = SceneOptions(dask=cluster.scheduler_address)
    with pytest.raises(OutputError, match="died over one block again and again"):
        predict_scene(Deadly(), Scene(tall), out=tmp_path / "map.tif", options=options)
    assert not list(tmp_path.glob("*map*"))
    cluster.close()
    with pytest.raises(ConfigError, match="no scheduler responds there"):
        predict_scene(Fake(), Scene(tall), out=tmp_path / "map.tif", options=options)
