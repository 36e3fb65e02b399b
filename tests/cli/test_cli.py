"""The command line: exit code 0 done, 1 a user's error told in one line, 2 usage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import multimae_eo
from multimae_eo import open_source
from multimae_eo.api import models
from multimae_eo.cli.main import SUBCOMMANDS, main
from multimae_eo.cli.parser import make_parser, read_options, summary
from multimae_eo.errors import ConfigError, FormatError
from multimae_eo.loading.loader import make_loader
from multimae_eo.store.reader import ChipStore
from tests.support.marks import mostly_slow
from tests.support.mmearth_files import write_mmearth


def program(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "multimae_eo.cli", *arguments],
        capture_output=True, text=True, check=False, cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip


# usage --------------------------------------------------------------------------------------


def test_help_lists_every_subcommand(run):
    code, out, _ = run("--help")
    assert code == 0
    for name, kind in SUBCOMMANDS.items():
        assert name in out
        assert summary(kind).split(",")[0] in " ".join(out.split())


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_of_every_subcommand_explains_its_options(run, name):
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert summary(SUBCOMMANDS[name]).split(",")[0] in " ".join(out.split())
    assert "--out" in out or name in ("info", "inspect", "search", "completion", "demo")


def test_help_of_pretrain_lists_recipes_and_their_options(run):
    _, out, _ = run("pretrain", "--help")
    for text in (
        "paper-mmearth64",
        "--optim.lr",
        "--masking.num_visible_tokens",
        "default: 49",
        "--run.seed",
    ):
        assert text in out


@pytest.mark.parametrize(
    ("subcommand", "options", "fields"),
    [
        ("quickstart", ["--world_only"], {"data_only": True}),
        ("reconstruct", ["--model=m", "--out=o", "--inputs=a", "--draws=3"], {"samples": 3}),
        (
            "pretrain",
            [
                "--recipe=r",
                "--data=d",
                "--out=o",
                "--masking.visible=8",
                "--agreement.turns",
                "true",
            ],
            {"overrides": ("--masking.visible=8", "--agreement.turns=true")},
        ),
        (
            "pretrain",
            ["--recipe=r", "--data=d", "--out=o", "--masking.roles={unused: 1, both: 1}"],
            {"overrides": ("--masking.roles={unused: 1, both: 1}",)},
        ),
    ],
)
def test_former_names_and_whole_parts_of_options_are_accepted(subcommand, options, fields):
    kind = SUBCOMMANDS[subcommand]
    arguments = [subcommand, *options]
    parser = make_parser(SUBCOMMANDS, subcommand, version="0")
    parsed = parser.parse_args(arguments)[subcommand]
    read = read_options(kind, parsed, arguments)
    assert {name: getattr(read, name) for name in fields} == fields


def test_version(run):
    code, out, _ = run("--version")
    assert code == 0
    assert multimae_eo.__version__ in out


def test_the_package_is_a_command():
    command = [sys.executable, "-m", "multimae_eo", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["multimae-eo", multimae_eo.__version__]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "subcommand"),
        (("prepar",), "did you mean 'prepare'"),
        (("xyzzy",), "no subcommand 'xyzzy'; valid: quickstart, fetch, init, inspect, prepare"),
        (("info",), "path"),
        (("info", "a", "--jsn"), "jsn"),
        (("prepare", "a"), "out"),
        (("prepare", "a", "--out", "b", "--workers", "many"), "workers"),
        (("probe", "--model", "m"), "required: --data"),
        (
            ("pretrain", "--recipe", "r", "--data", "d", "--out", "o", "--optim.lrr", "3"),
            "no option --optim.lrr; did you mean '--optim.lr'",
        ),
        (("pretrain", "--recipe", "r", "--data", "d", "--out", "o", "--optim.lr"), "--optim.lr"),
        (
            ("finetune", "--model", "m", "--data", "d", "--out", "o", "--task", "detection"),
            "invalid choice: 'detection'",
        ),
        (
            (
                "finetune",
                "--model",
                "m",
                "--data",
                "d",
                "--out",
                "o",
                "--task",
                "regression",
                "--head",
                "fcn",
            ),
            "invalid choice: 'fcn'",
        ),
        (
            (
                "finetune",
                "--model",
                "m",
                "--data",
                "d",
                "--out",
                "o",
                "--task",
                "regression",
                "--optim.laier_decay",
                "0.5",
            ),
            "did you mean '--optim.layer_decay'",
        ),
        (
            ("export", "--model", "m", "--out", "o", "--format", "onx"),
            "invalid choice: 'onx' (choose from 'torch', 'onnx', 'deepness')",
        ),
        (("export", "--model", "m", "--out", "o", "--dynamic", "all"), "invalid choice: 'all'"),
        (("embed", "--model", "m", "--out", "o", "--per", "pixel"), "invalid choice: 'pixel'"),
        (
            ("predict", "--model", "m", "--scene", "s", "--out", "o", "--precision", "8"),
            "invalid choice: '8'",
        ),
        (("benchmark", "geobnch", "--model", "m", "--root", "r", "--out", "o"), "geobnch"),
        (("completion", "csh"), "invalid choice: 'csh'"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_why(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


# users' errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("info {0}/nowhere", "nowhere: no such file or folder"),
        ("info {0}/world", "neither a chip store"),
        ("prepare {0}/nowhere.yaml --out {1}", "no such file or folder; a source is"),
        ("prepare {0}/world --out {1}", "dataset.yaml: name that file"),
        ("prepare mmearth:{0}/world --out {1}", "world"),
        ("prepare {0}/world/dataset.yaml --out {1} --workers 0", "workers and shard_chips"),
        ("prepare {0}/world/dataset.yaml --out {0}/run", "exists and is no chip store"),
        ("pretrain --recipe quikstart --data {0}/store --out {1}", "did you mean 'quickstart'"),
        ("pretrain --recipe {0}/no.yaml --data {0}/store --out {1}", "cannot be read: No such"),
        (
            "pretrain --recipe quickstart --data {0}/store --out {1} --run.epochs none",
            "epochs",
        ),
        ("pretrain --recipe hls-water --data {0}/store --out {1}", "no modality 'optical'"),
        ("pretrain --recipe quickstart --data {0}/store --out {0}/run", "holds another run"),
        ("reconstruct --model {0}/run/model --inputs rgb --out {1}", "either --data or --scene"),
        (
            "reconstruct --model {0}/store --data {0}/store --inputs rgb --out {1}",
            "no model folder",
        ),
        (
            "reconstruct --model {0}/run/model --data {0}/store --inputs rbg --out {1}",
            "did you mean 'rgb'",
        ),
        (
            "reconstruct --model {0}/run/model --data {0}/store --inputs rgb --out {1} "
            "--split tset",
            "split 'tset' is empty; splits: train",
        ),
        (
            "reconstruct --model {0}/run/model --scene {0}/none.yaml --inputs rgb --out {1}",
            "none.yaml",
        ),
        (
            "reconstruct --model {0}/run/model --scene {0}/world/scene.yaml --inputs rgb "
            "--outputs sky --out {1}",
            "sky",
        ),
        (
            "probe --model {0}/run/model --data {0}/store --methods svm --out {1}",
            "no method 'svm'; valid: knn, linear",
        ),
        ("probe --model {0}/run/model --data {0}/store --inputs sky --out {1}", "'sky'"),
        ("convert {0}/world/dataset.yaml --out {1}", "no PyTorch checkpoint"),
        ("convert {0}/none.pth --out {1}", "cannot be read"),
    ],
)
def test_a_users_error_is_one_line_and_leaves_nothing(made, refused, tmp_path, arguments, message):
    out = tmp_path / "out"
    assert message in refused(*arguments.format(made.folder, out).split())
    assert not out.exists()


@pytest.mark.slow
def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ConfigError, match="no such file or folder"):
        main(["info", str(tmp_path / "none"), "--debug"])
    told = program("--debug", "info", str(tmp_path / "none"))
    assert told.returncode == 1
    assert "Traceback (most recent call last)" in told.stderr
    assert "ConfigError" in told.stderr
    plain = program("info", str(tmp_path / "none"))
    assert plain.returncode == 1
    assert plain.stderr == f"multimae-eo: error: {tmp_path}/none: no such file or folder\n"


def test_results_go_to_stdout_and_are_json_where_asked(made, run):
    code, out, err = run("info", made / "store", "--json", "--verify")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert (record["what"], record["chips"], record["checksums"]) == (
        "chip store", 20, "all as written",
    )  # fmt: skip
    assert json.loads(run("info", made / "run/model", "--json")[1])["what"] == "model"
    told = json.loads(run("info", made / "run", "--json")[1])
    assert (told["what"], told["epochs"], told["finished"]) == ("run", 1, True)


@pytest.mark.slow
def test_a_pipe_that_closes_is_no_error(made):
    """``multimae-eo info STORE | head -1``, with a reader that is gone before we write."""
    code = (
        "import os, sys; from multimae_eo.cli import main; r, w = os.pipe(); os.close(r); "
        "os.dup2(w, 1); sys.exit(main(sys.argv[1:]))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, "info", made / "store"], capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert (told.returncode, told.stderr) == (0, "")


# stores and files that are not whole ---------------------------------------------------------


@pytest.mark.parametrize("kept", [("plan.json",), ("plan.json", "store.json", "rgb")])
def test_a_store_that_prepare_did_not_finish_says_so(made, run, refused, tmp_path, kept):
    store, out = tmp_path / "store", str(tmp_path / "out")
    store.mkdir()
    for name in kept:
        path = made.folder / "store" / name
        shutil.copytree(path, store / name) if path.is_dir() else shutil.copy(path, store / name)
    for arguments in (
        ("info", str(store)),
        ("pretrain", "--recipe", "quickstart", "--data", str(store), "--out", out),
        ("probe", "--model", made / "run/model", "--data", str(store), "--out", out),
    ):
        assert "`prepare` was interrupted; run it again" in refused(*arguments)
    assert run("prepare", made / "world/dataset.yaml", "--out", str(store))[0] == 0
    assert ChipStore(store).verify() == []


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 0.99])
def test_a_truncated_hdf5_file_is_one_line(refused, tmp_path, share):
    folder = write_mmearth(tmp_path / "mmearth", chips=6, size=32, seed=0)
    path = next(folder.glob("*.h5"))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert str(path) in refused("prepare", f"mmearth:{folder}", "--out", str(tmp_path / "out"))


@pytest.fixture
def world(made, tmp_path) -> Path:
    """A world to be spoilt."""
    return Path(shutil.copytree(made.folder / "world", tmp_path / "world"))


def truncate(world: Path, key: str) -> str:
    """Cut a chip's file short; its name."""
    path = world / f"chips/s2/{key}.tif"
    path.write_bytes(path.read_bytes()[:700])
    return path.name


@pytest.mark.parametrize("workers", mostly_slow(["1", "2"], fast=["1"]))
def test_a_truncated_tiff_is_one_line_from_any_process(world, refused, tmp_path, workers):
    name = truncate(world, "chip-00013")
    assert name in refused(
        "prepare", str(world / "dataset.yaml"), "--out", str(tmp_path / "out"),
        "--workers", workers, "--shard_chips", "10",
    )  # fmt: skip


@pytest.mark.slow
def test_a_readers_error_in_a_loaders_worker_is_the_same_line(made, world, refused, tmp_path):
    """torch would say "Caught FormatError in DataLoader worker process 0.", and a traceback."""
    source = open_source(world / "dataset.yaml")
    train = [k for k, s in zip(source.keys, source.split_of, strict=True) if s == "train"]
    name = truncate(world, train[7])
    told = [
        refused(
            "pretrain", "--recipe", "quickstart", "--data", str(world / "dataset.yaml"),
            *made.small, f"--data.workers={workers}", "--data.statistics_chips=2",
            "--out", str(tmp_path / f"run{workers}"),
        )
        for workers in (0, 1)
    ]  # fmt: skip
    assert told[0] == told[1]
    assert name in told[0]


def test_a_workers_error_keeps_its_traceback_for_debug(world):
    name = truncate(world, "chip-00002")
    source = open_source(world / "dataset.yaml")
    loader = make_loader(source, np.arange(4), batch_size=4, workers=1)
    with pytest.raises(FormatError, match=name) as told:
        next(iter(loader))
    assert "\n" not in str(told.value)
    assert "Traceback" in "".join(told.value.__notes__)


# data at the edge of what is allowed ---------------------------------------------------------


def test_an_empty_split_is_refused(made, world, refused, tmp_path):
    table = (world / "split.csv").read_text().replace(",train,", ",test,")
    (world / "split.csv").write_text(table.replace(",val,", ",test,"))
    data, out = ("--data", str(world / "dataset.yaml")), ("--out", str(tmp_path / "out"))
    told = refused("pretrain", "--recipe", "quickstart", *data, *made.small, *out)
    assert "no chip to train on; splits: ('test',)" in told
    told = refused("probe", "--model", made / "run/model", *data, *out)
    assert "split 'train' is empty; splits: test (20)" in told


def test_an_interrupted_subcommand_is_130_and_quiet(run, monkeypatch, tmp_path):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "describe", interrupted)
    assert run("info", str(tmp_path)) == (130, "", "multimae-eo: error: interrupted\n")
