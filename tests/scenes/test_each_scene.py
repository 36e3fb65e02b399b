"""Several scenes: as one at a time, on a cluster, with failures, and continued."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import multimae_eo
from multimae_eo.errors import ConfigError, FormatError, ScenesError
from multimae_eo.network.config import HeadConfig
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import Target
from multimae_eo.scenes.each_scene import SceneWork, each_scene, record_path
from multimae_eo.sources.scene.scene_list import ListedScene
from tests.support.marks import mostly_slow

pytest.importorskip("rasterio")

from tests.support.scene_files import optical_scene

NAMES = ("north", "middle", "south")


@pytest.fixture
def scenes(tmp_path) -> list[Path]:
    """Three scene files in one folder, of three blocks each for a model of 16 px."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    paths = []
    for seed, name in enumerate(NAMES):
        (folder / name).mkdir()
        scene = optical_scene(folder / name, 400, 24, seed=seed)
        text = scene.read_text().replace("s2.tif", f"{name}/s2.tif")
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(text.replace("made-up", name))
        scene.unlink()
    return paths


@pytest.fixture
def model(make_model, tmp_path) -> Path:
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def fine_tuned(make_model, tmp_path) -> Path:
    torch.manual_seed(1)
    target = Target(kind="map", classes=("forest", "grass", "water"))
    predictor = Predictor(make_model(), target, HeadConfig(name="linear", width=16)).eval()
    predictor.save_pretrained(tmp_path / "fine")
    return tmp_path / "fine"


@pytest.fixture
def scheduler() -> Iterator[str]:
    """The address of a Dask scheduler with two workers, in threads of this process."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def files(folder: Path) -> dict[str, bytes]:
    """The results in a folder and those below, without records of runs and times of processing."""
    return {
        str(p.relative_to(folder)): re.sub(rb'"processing:datetime": "[^"]*"', b"", p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith("scenes")
    }


def no_leftovers(folder: Path) -> bool:
    return not [p for p in folder.rglob(".*") if not p.name.endswith(".lock")]


# Outputs ---------------------------------------------------------------------------------------


def test_a_list_of_scenes_is_mapped_as_each_alone(run, fine_tuned, scenes, tmp_path):
    common = ("predict", "--model", str(fine_tuned), "--device", "cpu", "--confidence")
    code, out, _ = run(
        *common, "--scene", ",".join(map(str, scenes)), "--out", f"{tmp_path}/many/{{scene}}.tif"
    )
    assert code == 0
    assert out.split() == [
        f"{tmp_path}/many/{name}{more}.tif" for name in NAMES for more in ("", ".confidence")
    ]
    for path, name in zip(scenes, NAMES, strict=True):
        arguments = ("--scene", str(path), "--out", f"{tmp_path}/alone/{name}.tif")
        assert run(*common, *arguments)[0] == 0
    assert files(tmp_path / "many") == files(tmp_path / "alone")
    assert no_leftovers(tmp_path / "many")


@pytest.mark.parametrize("suffix", mostly_slow(["tif", "parquet"], fast=["parquet"]))
def test_a_cluster_writes_the_same_embeddings(run, scheduler, model, scenes, tmp_path, suffix):
    common = ("embed", "--model", str(model), "--per", "patch", "--device", "cpu")
    folder = str(tmp_path / "scenes")
    for name, more in (("one", ()), ("dask", ("--dask", scheduler))):
        out = f"{tmp_path}/{name}/{{scene}}.{suffix}"
        code, _, err = run(*common, "--scene", folder, "--out", out, *more)
        assert code == 0, err
    assert files(tmp_path / "one") == files(tmp_path / "dask")
    assert len(list((tmp_path / "one").glob(f"*.{suffix}"))) == 3
    assert no_leftovers(tmp_path / "dask")


@pytest.mark.slow
def test_a_cluster_writes_the_same_maps_and_changes(
    run, scheduler, fine_tuned, model, scenes, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, more in (("one", ()), ("dask", ("--dask", scheduler))):
        predict = ("predict", "--model", str(fine_tuned), "--scene", "scenes/*.yaml")
        assert run(*predict, "--out", f"{name}/maps/{{scene}}.tif", *more)[0] == 0
        compare = ("compare", "scenes/north.yaml,scenes/south.yaml",
                   "scenes/middle.yaml,scenes/north.yaml", "--model", str(model))  # fmt: skip
        code, printed, _ = run(*compare, "--out", f"{name}/change/{{scene}}", *more)
        assert code == 0
        summaries = json.loads(printed)["scenes"]
        assert list(summaries) == ["north_middle", "south_north"]
    one, dask = files(tmp_path / "one"), files(tmp_path / "dask")
    assert one.keys() == dask.keys()
    different = {name for name in one if one[name] != dask[name]}
    assert {Path(n).name for n in different} <= {"summary.json"}, "it has the files' paths"


def test_a_cluster_prepares_the_same_stores(run, scheduler, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in scenes:
        path.write_text(path.read_text() + "chips: {size: 24, split: {block: 2, val: 0.2}}\n")
    for name, more in (("one", ()), ("dask", ("--dask", scheduler))):
        out = ("--out", f"{name}/{{scene}}", "--shard_chips", "4")
        assert run("prepare", "scenes", *out, *more)[0] == 0
    assert files(tmp_path / "one") == files(tmp_path / "dask")
    together = multimae_eo.open_source(tmp_path / "one")
    assert len(together) == 3 * 17
    assert together.keys[0].startswith("middle/")
    together.read(len(together) - 1)


def test_one_scene_is_shared_by_processes_too(run, model, scenes, tmp_path):
    common = ("embed", "--model", str(model), "--scene", str(scenes[0]), "--device", "cpu")
    assert run(*common, "--out", f"{tmp_path}/one/a.parquet")[0] == 0
    assert run(*common, "--out", f"{tmp_path}/two/a.parquet", "--workers", "2")[0] == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")


# Failures --------------------------------------------------------------------------------------


def test_a_failed_scene_is_reported_and_the_rest_is_done(run, model, scenes, tmp_path):
    raster = tmp_path / "scenes/middle/s2.tif"
    whole = raster.read_bytes()
    raster.write_bytes(whole[:200])
    words = ("embed", "--model", str(model), "--scene", str(tmp_path / "scenes"), "--out",
             f"{tmp_path}/out/{{scene}}.parquet")  # fmt: skip
    code, out, err = run(*words)
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("multimae-eo: error: 1 of 3 scenes failed (middle)")
    assert "attempt 2 of 2" in err
    tables = tmp_path.glob("out/*.parquet")
    assert {p.name for p in tables} == {"north.parquet", "south.parquet"}
    rows = {r["scene"]: r for r in json.loads((tmp_path / "out/scenes.parquet.json").read_text())
            ["scenes"]}  # fmt: skip
    assert {n: r["state"] for n, r in rows.items()} == {
        "north": "done", "middle": "failed", "south": "done",
    }  # fmt: skip
    assert str(raster) in rows["middle"]["error"]
    assert rows["middle"]["attempts"] == 2

    raster.write_bytes(whole)
    before = (tmp_path / "out/north.parquet").stat().st_mtime_ns
    assert run(*words)[0] == 0
    assert (tmp_path / "out/north.parquet").stat().st_mtime_ns == before, "it was done"
    assert len(list(tmp_path.glob("out/*.parquet"))) == 3


def listed(*names: str) -> tuple[ListedScene, ...]:
    return tuple(ListedScene(name=n, spec=n, text=n) for n in names)


def test_what_fails_once_is_tried_again_after_the_others(tmp_path, caplog):
    calls: list[str] = []

    def write(opened: str, out: Path) -> str:
        calls.append(opened)
        if opened == "b" and calls.count("b") < 3:
            raise OSError(5, "Input/output error")
        out.write_text(opened)
        return opened

    work = SceneWork(opener=str, stamp=str, write=write, settings={"a": 1})
    with caplog.at_level(logging.INFO, logger="multimae_eo"):
        rows = each_scene(listed("a", "b", "c"), work, out=tmp_path / "{scene}.x", retries=2)
    assert calls == ["a", "b", "c", "b", "b"]
    assert [(r.scene, r.state, r.attempts) for r in rows] == [
        ("a", "done", 1), ("b", "done", 3), ("c", "done", 1)
    ]  # fmt: skip
    assert "scene b failed, attempt 1 of 3: OSError: Input/output error" in caplog.text

    # Done scenes are not written again, unless settings, the scene or the output have changed.
    each_scene(listed("a", "b"), work, out=tmp_path / "{scene}.x")
    assert len(calls) == 5
    (tmp_path / "b.x").unlink()
    each_scene(listed("a", "b"), work, out=tmp_path / "{scene}.x")
    other = SceneWork(opener=str, stamp=lambda s: s * 2, write=write, settings={"a": 1})
    each_scene(listed("c"), other, out=tmp_path / "{scene}.x")
    nameless = SceneWork(opener=str, stamp=str, write=write, settings=None)
    each_scene(listed("a"), nameless, out=tmp_path / "{scene}.x")
    assert calls[5:] == ["b", "c", "a"]


def test_all_of_a_kind_of_errors_leave_the_others_alone(tmp_path):
    def write(opened: str, out: Path) -> None:
        raise {"a": FormatError("a: damaged"), "b": MemoryError(), "c": ZeroDivisionError()}[opened]

    work = SceneWork(opener=str, stamp=str, write=write, settings={})
    with pytest.raises(ScenesError, match=r"3 of 3 scenes failed \(a, b, c\)"):
        each_scene(listed("a", "b", "c"), work, out=tmp_path / "{scene}", retries=0)
    record = json.loads((tmp_path / "scenes.json").read_text())
    errors = [row["error"] for row in record["scenes"]]
    assert errors[0] == "a: damaged"
    assert "MemoryError" in errors[1]
    assert "ZeroDivisionError" in errors[2]


def test_an_interrupt_ends_the_run(tmp_path):
    def write(opened: str, out: Path) -> None:
        if opened == "b":
            raise KeyboardInterrupt
        out.write_text(opened)

    work = SceneWork(opener=str, stamp=str, write=write, settings={})
    with pytest.raises(KeyboardInterrupt):
        each_scene(listed("a", "b", "c"), work, out=tmp_path / "{scene}.x")
    assert (tmp_path / "a.x").is_file()
    assert not (tmp_path / "c.x").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"a.x", "scenes.x.json"}


def test_outputs_are_neither_inputs_nor_another_scenes(run, refused, model, scenes, tmp_path):
    common = ("embed", "--model", str(model), "--scene")
    assert "2 scenes (north, south, …) need an output each" in refused(
        *common, f"{scenes[0]},{scenes[2]}", "--out", f"{tmp_path}/a.parquet"
    )
    raster = tmp_path / "scenes/north/s2.tif"
    before = raster.read_bytes()
    message = refused(*common, str(scenes[0]), "--out", f"{tmp_path}/scenes/{{scene}}/s2.tif")
    assert "is an input" in message
    assert raster.read_bytes() == before
    assert "no file matches" in refused(
        *common, f"{tmp_path}/none*.tif", "--out", f"{tmp_path}/{{scene}}.tif"
    )
    out = f"{tmp_path}/out/{{scene}}.parquet"
    assert run(*common, str(scenes[0]), "--out", out)[0] == 0
    (tmp_path / "other").mkdir()
    other = optical_scene(tmp_path / "other", 24, 24).rename(tmp_path / "other/north.yaml")
    assert "is the output of another scene" in refused(*common, str(other), "--out", out)
    (tmp_path / "out/scenes.parquet.json").write_text("{}")
    assert run(*common, str(scenes[0]), "--out", out)[0] == 0
    (tmp_path / "out/scenes.parquet.json").write_text('{"scenes": [1]}')
    assert "is no record of scenes" in refused(*common, str(scenes[0]), "--out", out)


def test_options_that_cannot_be_are_refused(refused, model, scenes, tmp_path):
    out = ("--out", f"{tmp_path}/{{scene}}.parquet")
    common = ("embed", "--model", str(model), *out)
    assert "retries must be" in refused(*common, "--scene", str(scenes[0]), "--retries", "-1")
    assert "workers and dask share a scene" in refused(*common, "--data", "x", "--workers", "2")
    message = refused(*common, "--scene", str(scenes[0]), "--dask", str(tmp_path / "no.json"))
    assert "no such file" in message
    assert "append" in refused(
        "prepare", str(scenes[0]), "--out", f"{tmp_path}/{{scene}}", "--append"
    )


def test_where_the_record_is():
    assert record_path("maps/{scene}.tif") == Path("maps/scenes.tif.json")
    assert record_path("stores/{scene}") == Path("stores/scenes.json")
    assert record_path("a/{scene}/map.tif") == Path("a/scenes.json")
    with pytest.raises(ConfigError, match="holds no"):
        record_path("map.tif")


# Killed ----------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from multimae_eo.scenes import embed, engine
calls = []
def count(limit):
    calls.append(1)
    if len(calls) > limit:
        os.kill(os.getpid(), signal.SIGKILL)
{change}
from multimae_eo.cli import main
main(sys.argv[1:])
"""
BLOCK = """
whole = {module}.{function}
def dying(*arguments):
    count({limit})
    whole(*arguments)
{module}.{function} = dying
"""
"""Killed at the call of a function after so many others of it."""
CLIENT = """
whole = engine.by_dask
def dying(*arguments):
    for number in whole(*arguments):
        count(0)
engine.by_dask = dying
"""
"""Killed when the first block has come back from a cluster."""


def killed(words: list[str], change: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ended = subprocess.run(
        [sys.executable, "-c", KILLED.format(change=change), *words], env=environment,
        check=False, capture_output=True,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]


@pytest.mark.slow
def test_a_killed_embedding_goes_on_with_the_next_block(run, model, scenes, tmp_path):
    out = tmp_path / "out/a.parquet"
    words = ["embed", "--model", str(model), "--scene", str(scenes[0]), "--device", "cpu",
             "--precision", "32-true"]  # fmt: skip
    killed(
        [*words, "--out", str(out)],
        BLOCK.format(module="embed", function="write_vectors", limit=1),
    )
    partial = out.parent / ".a.parquet.partial"
    assert sorted(p.name for p in partial.glob("block-?????")) == ["block-00000"]
    assert not out.exists()
    assert run(*words, "--out", str(out))[0] == 0
    assert run(*words, "--out", str(tmp_path / "whole/a.parquet"))[0] == 0
    assert files(out.parent) == files(tmp_path / "whole")
    assert no_leftovers(out.parent)


@pytest.mark.slow
def test_a_killed_run_of_several_scenes_goes_on(run, fine_tuned, scenes, tmp_path):
    words = ["predict", "--model", str(fine_tuned), "--scene", str(tmp_path / "scenes"),
             "--device", "cpu", "--precision", "32-true", "--out"]  # fmt: skip
    killed(
        [*words, f"{tmp_path}/out/{{scene}}.tif"],
        BLOCK.format(module="engine", function="_BlockRows.finish", limit=4),
    )
    assert [p.name for p in (tmp_path / "out").glob("*.tif")] == ["middle.tif"]
    assert (tmp_path / "out/.north.tif.partial/block-00000").is_dir()
    before = (tmp_path / "out/middle.tif").stat().st_mtime_ns
    code, _, err = run(*words, f"{tmp_path}/out/{{scene}}.tif")
    assert code == 0, err
    assert (tmp_path / "out/middle.tif").stat().st_mtime_ns == before
    assert run(*words, f"{tmp_path}/whole/{{scene}}.tif")[0] == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert no_leftovers(tmp_path / "out")


@pytest.mark.slow
def test_a_killed_client_of_a_cluster_goes_on(run, scheduler, fine_tuned, scenes, tmp_path):
    words = ["predict", "--model", str(fine_tuned), "--scene", str(scenes[0]), "--device", "cpu",
             "--precision", "32-true", "--dask", scheduler, "--out"]  # fmt: skip
    out = tmp_path / "out/a.tif"
    killed([*words, str(out)], CLIENT)
    assert list((out.parent / ".a.tif.partial").glob("block-?????"))
    assert run(*words, str(out))[0] == 0
    assert run(*words, str(tmp_path / "whole/a.tif"))[0] == 0
    assert files(out.parent) == files(tmp_path / "whole")


def test_at_most_so_many_scenes_are_in_progress(scheduler, tmp_path):
    """Threads of the client: as many as keep the workers busy, none after an interrupt."""
    import threading

    running: list[int] = []
    most: list[int] = []
    guard = threading.Lock()

    def write(opened: str, out: Path) -> None:
        with guard:
            running.append(1)
            most.append(len(running))
        threading.Event().wait(0.02)
        with guard:
            running.pop()
        out.write_text(opened)

    work = SceneWork(opener=str, stamp=str, write=write, settings={})
    names = [f"s{i}" for i in range(8)]
    rows = each_scene(listed(*names), work, out=tmp_path / "{scene}.x", dask=scheduler)
    assert [r.scene for r in rows] == names
    assert max(most) <= 2 + 2 // 4
    assert not [t for t in threading.enumerate() if t.name.startswith("scene")]
