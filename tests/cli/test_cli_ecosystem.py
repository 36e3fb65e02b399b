"""export, info of files, completion; help that helps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from multimae_eo.cli.main import SUBCOMMANDS, main
from multimae_eo.cli.parser import Parser, add_options
from multimae_eo.model_folder.folder import model_hash


@pytest.mark.slow
def test_export_tells_the_difference_and_info_reads_it(made, run, tmp_path):
    out = str(tmp_path / "g.pt2")
    code, said, err = run(
        "export", "--model", made / "run/model", "--format", "torch", "--inputs", "elevation",
        "--quantize", "int8", "--data", made / "store", "--out", out,
    )  # fmt: skip
    assert code == 0, err
    assert "differs from the model by at most" in said
    assert "features: changed by the int8 weights by" in said
    code, said, _ = run("info", out, "--json")
    record = json.loads(said)
    assert record["model_hash"] == model_hash(made / "run/model")
    assert (record["is"], record["batch"]) == ("exported graph", "any")
    assert record["checked_on"] == "16 chips"
    assert record["max_difference"] <= 1e-4


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--what", "predict"), "has no head"),
        (("--levels", "l2a"), "expected m1=level"),
        (("--inputs", "elevatoin"), "did you mean 'elevation'"),
    ],
)
def test_what_cannot_be_exported_is_told(made, refused, tmp_path, option, words):
    told = refused("export", "--model", made / "run/model", "--format", "torch", "--out",
                   str(tmp_path / "g.pt2"), *option)  # fmt: skip
    assert words in told
    assert list(tmp_path.iterdir()) == []


def test_info_tells_of_a_dataset_file_and_refuses_others(made, run, refused, tmp_path):
    _, said, _ = run("info", made / "world/dataset.yaml", "--json")
    assert json.loads(said)["chips"] == 20
    (tmp_path / "a.tif").write_bytes(b"no raster")
    assert "not a readable raster" in refused("info", str(tmp_path / "a.tif"))
    (tmp_path / "a.parquet").write_bytes(b"no table")
    assert "cannot be read as Parquet" in refused("info", str(tmp_path / "a.parquet"))
    (tmp_path / "a.doc").write_bytes(b"")
    assert "info knows" in refused("info", str(tmp_path / "a.doc"))


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_ends_its_help_with_examples_of_its_own_options(name, run):
    kind = SUBCOMMANDS[name]
    _, out, _ = run(name, "--help")
    assert kind.examples
    parser = Parser()
    add_options(parser, kind)
    for example in kind.examples:
        assert f"  multimae-eo {example}\n" in out, "each on a line"
        words = example.split()
        assert words[0] == name
        for word in words:
            option = word.split("=")[0]
            assert not option.startswith("--") or option in parser.option_names, example


def test_a_mistyped_option_is_named(run):
    code, out, err = run("export", "--modle", "x", "--out", "y")
    assert (code, out) == (2, "")
    assert "export has no option --modle; did you mean '--model'" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh", "fish"])
def test_completion_scripts_hold_every_option(run, shell):
    code, script, _ = run("completion", shell)
    assert code == 0
    assert "quantize" in script


@pytest.mark.parametrize("shell", [s for s in ("bash", "zsh", "fish") if shutil.which(s)])
def test_completion_scripts_are_well_formed(run, shell, tmp_path):
    """By the shells that are installed."""
    code, said, _ = run("completion", shell)
    assert code == 0
    path = tmp_path / "script"
    path.write_text(said)
    subprocess.run([shell, "-n", str(path)], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_subcommands_and_options(run, tmp_path):
    path = tmp_path / "script"
    path.write_text(run("completion", "bash")[1])
    code = f"source {path}; COMP_WORDS=(multimae-eo {{}}); COMP_CWORD={{}}; _shtab_multimae_eo; "
    code += 'echo "${{COMPREPLY[@]}}"'

    def complete(words, at):
        text = code.replace("{}", words, 1).replace("{}", str(at), 1).replace("{{", "{")
        text = text.replace("}}", "}")
        return subprocess.run(
            ["bash", "-c", text], capture_output=True, text=True, check=True
        ).stdout.split()

    assert sorted(complete("pre", 1)) == ["predict", "prepare", "pretrain"]
    assert complete("export --qu", 2) == ["--quantize"]


@pytest.mark.slow
def test_no_colour_when_piped_and_a_closed_pipe_is_no_error(made):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m multimae_eo.cli completion fish | head -n 1"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert done.stdout.startswith("# AUTOMATICALLY GENERATED")
    assert done.stderr == ""
    assert main(["inspect", made / "store"]) == 0


def test_inspect_prints_no_escapes_into_a_pipe(made, run):
    assert "\x1b" not in run("inspect", made / "store")[1]
