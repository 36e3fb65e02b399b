"""README and docs are true: their commands and Python run, in order, on a small quickstart.

``SUBSTITUTED`` says what stands in for names that a page leaves to the reader, and ``ADDED`` what
makes a run of hours one of seconds. All else is run as it is written.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from multimae_eo.cli.main import SUBCOMMANDS, main
from multimae_eo.cli.parser import Parser, add_options
from multimae_eo.sources.data_root import expanded_root
from tests.support import cluster_stand_ins, torchgeo_stand_in
from tests.support.made_once import made_once
from tests.support.paths import DATA, ROOT
from tests.support.reference_model import write_checkpoint

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/reference").glob("*.md")),
]
SHELL = ("", "sh", "bash", "console", "shell")

SUBSTITUTED = {
    "MODEL": "quickstart/model",
    "STORE": "quickstart/store",
    "SOURCE": "quickstart/world/dataset.yaml",
    "DIR": "made/out",
    "RUN": "made/run",
    "scene.yaml": "quickstart/world/scene.yaml",
    "S2_L2A.tif": "quickstart/world/scene/s2.tif",
    "KEY": "synthetic@0,0",
    "data_1M_v001_64_band_stats.json": "data_1M_v001_64/data_1M_v001_64_band_stats.json",
}
# Checked, but not run, because they need a network: these files run the same subcommand against a
# server or a catalogue on this machine.
NOT_RUN = {
    ("fetch", "eurosat-100"): "tests/download/test_fetch.py",
    ("fetch", "sen1floods11"): "tests/download/test_fetch.py",
    ("fetch", "reference-checkpoint"): "tests/download/test_fetch.py",
    ("prepare", "stac.yaml"): "tests/sources/stac/test_stac.py",
}
# What the fixture ``tour`` has done.
WHOLE_TOURS = (["quickstart"], ["quickstart", "--out", "quickstart"])
# Toy size: what a page runs for minutes or hours takes seconds here. Appended after the page's own
# options, so that these win; the page's options are still parsed and checked.
ONE_EPOCH = "--run.epochs 1 --run.precision 32-true --run.accelerator cpu"
# By the subcommand; in place of the page's values wherever they are not toy size already.
TOY = {
    "pretrain": ONE_EPOCH,
    "finetune": ONE_EPOCH,
    "study": f"{ONE_EPOCH} --features mean --steps 0 --seeds 1",
    "benchmark": f"{ONE_EPOCH} --features mean --seeds 1",
    "inspect": "--chips 60",
    "probe": "--features mean",
    "reconstruct": "--limit 1 --samples 1",
    "map": "--folds 2 --steps 6 --chip 16 --run.precision 32-true --run.accelerator cpu",
}
# Of the reader's own data, where the real ones are only larger.
QUICK = "--data quickstart/store"
# Beside ``TOY``: by the subcommand and a word after it.
ADDED = {
    ("quickstart", "--data_only"): "--chips 40",
    ("pretrain", "ddp"): "--run.devices 1 --run.strategy auto",
    ("pretrain", "paper-mmearth64"): "--model.encoder nano --data.batch_size 4 "
    "--data.workers 0 --data.val_fraction 0.3",
    ("pretrain", "made/eurosat"): "--model.encoder nano --data.batch_size 8",
    ("finetune", "runs/full"): QUICK,
    ("evaluate", "runs/adaptable/model"): "--adapt 1",
    ("predict", "runs/adaptable/model"): "--adapt 1",
    ("evaluate", "results/dropped"): "--drop rgb,ired",
    ("evaluate", "runs/full/model"): "--data quickstart/store --drop rgb",
    ("study", "studies/classes"): "--methods finetune,knn "
    "--grid optim.lr=1e-3 --fractions 50 --inputs rgb",
    ("study", "studies/eurosat5"): f"{QUICK} --methods knn --inputs rgb",
    ("study", "studies/eurosat"): f"{QUICK} --methods finetune,knn --fractions 50 --inputs rgb",
    ("study", "studies/water"): "--methods finetune --inputs optical --data.batch_size 64",
    ("benchmark", "geobench"): "--methods knn,finetune --data.batch_size 4",
    ("benchmark", "geobench2"): "--methods linear --data.batch_size 4",
    ("probe", "rgb;rgb,ired;all"): "--methods knn",
}
# Chips of each split (or of all, where the data declare none) that are kept of the examples' data.
KEPT = 12


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line it begins on."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(m[1].strip(), m[2], text[: m.start()].count("\n") + 1)
        for m in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, flags=re.M | re.S)
    ]


def commands(block: Block) -> list[list[str]]:
    """The words of each command; none where a block draws something."""
    if block.language not in SHELL:
        return []
    lines = block.text.replace("\\\n", " ").splitlines()
    lines = [line.removeprefix("$ ") for line in lines if line.strip()]
    if not block.language and not lines[0].startswith(("multimae-eo ", "make ", "pip ", "git ")):
        return []
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def option_names(subcommand: str) -> set[str]:
    parser = Parser()
    add_options(parser, SUBCOMMANDS[subcommand])
    return {*parser.option_names, "--help", "--debug"}


def check_options(words: list[str], where: str) -> None:
    """Words after ``multimae-eo``: a subcommand that exists, and options that it has."""
    assert words[0] in SUBCOMMANDS, f"{where}: there is no subcommand {words[0]!r}"
    names = option_names(words[0])
    for word in words:
        option = word.split("=", maxsplit=1)[0]
        assert not option.startswith("--") or option in names, f"{where}: {option}"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_mentioned_subcommand_and_option_exists(page):
    """In code spans and blocks. Prose may call the program by its name."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    spans = re.findall(r"`(multimae-eo [^`\n]+)`", text)
    spans += re.findall(r"^(?:\$ )?(multimae-eo .+)$", text, flags=re.M)
    for span in spans:
        words = shlex.split(span, comments=True)[1:]
        if words != ["SUBCOMMAND", "--help"] and not words[0].startswith("--"):
            check_options(words, f"{name(page)}: {span}")


@pytest.mark.parametrize("folder", ["examples", "src/multimae_eo/recipes"])
def test_commands_in_heads_of_yaml_files_exist(folder):
    for path in sorted((ROOT / folder).glob("*.yaml")):
        text = re.sub(r"\\\n#", " ", path.read_text(encoding="utf-8"))
        for found in re.findall(r"^#.*?multimae-eo ([a-z][^(\n]*)", text, flags=re.M):
            check_options(found.split(), str(path))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        path = (page.parent / target.split("#")[0]).resolve()
        assert path.exists(), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_mentioned_path_of_the_project_exists(page):
    """Code spans that begin with a folder of the checkout."""
    text = page.read_text(encoding="utf-8")
    for span in re.findall(r"`((?:src|tests|docs|examples|benchmarks|\.ci)/[\w./-]*)`", text):
        assert (ROOT / span).exists(), f"{name(page)}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_dataset_files_that_are_shown_are_well_formed(page, tmp_path):
    from multimae_eo.sources.dataset.schema import read_dataset_file

    for block in blocks(page):
        if block.language != "yaml":
            continue
        record = yaml.safe_load(block.text)
        assert isinstance(record, dict), f"{name(page)}:{block.line}"
        if {"name", "chips", "modalities"} <= record.keys() and isinstance(record["chips"], str):
            path = tmp_path / "shown.yaml"
            (tmp_path / record.get("root", ".")).mkdir(exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            read_dataset_file(path)


def substituted(words: list[str]) -> list[str]:
    """A command's words with this test's names in place of the reader's."""
    of_scene = words[0] == "reconstruct" and "--scene" in words
    more = [] if of_scene else [TOY.get(words[0], "").split()]
    more += [m.split() for (name, word), m in ADDED.items() if name == words[0] and word in words]
    names = dict(SUBSTITUTED)
    if "scene.yaml" in words:
        # The quickstart's world has no modality "optical": its bands are in groups.
        names["optical"] = "rgb,ired"
    return [names.get(w, w) for w in words] + [w for m in more for w in m]


def run_elsewhere(words: list[str], where: str) -> None:
    """What is not ours to run: its target has to exist."""
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{re.escape(words[1])}:", makefile, flags=re.M), f"{where}: {words}"
    elif words[:2] == ["pip", "install"]:
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
            assert re.search(rf"^{extra} = \[", project, flags=re.M), f"{where}: {words}"
    else:
        assert words[:2] == ["git", "clone"], f"{where}: what is {words[0]}?"


def few_chips(example: Path, folder: Path) -> None:
    """Copy an example into ``folder/examples``, with ``KEPT`` chips of each split of its data.

    Rasters are linked to; data sets of a few chips are used as they are.
    """
    text = example.read_text(encoding="utf-8")
    root = re.search(r"^root: (\S+)$", text, flags=re.M)
    below = expanded_root(root[1], example.name) if root else ""
    below = re.sub(r"eurosat(-100)?$", "eurosat_ms", below)  # to be fetched: here its 800 chips
    if example.suffix == ".yaml" and root and (data := ROOT / "examples" / below).is_dir():
        few = folder / "data" / example.stem
        few.mkdir(parents=True)
        if (table := data.resolve() / "split.csv").is_file():
            head, *rows = table.read_text(encoding="utf-8").splitlines()
            splits = {row.rpartition(",")[2] for row in rows}
            rows = [r for s in splits for r in [r for r in rows if r.endswith(f",{s}")][:KEPT]]
            (few / "split.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
            names = {Path(row.split(",")[0]).stem for row in rows}
        else:
            names = {p.stem for p in sorted((data / "chips").glob("*.tif"))[: 2 * KEPT]}
        for path in data.resolve().glob("**/*"):
            if path.is_file() and (not names or path.stem in names):
                link = few / path.relative_to(data.resolve())
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
        text = text.replace(root[0], f"root: {few}")
    (folder / "examples").mkdir(exist_ok=True)
    (folder / "examples" / example.name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def tour(tmp_path_factory) -> Path:
    """A quickstart of toy size: what is learnt in it is tested in test_quickstart.py.

    Made once, and copied: pages write into it.
    """
    from multimae_eo.quickstart import quickstart

    made = made_once(
        tmp_path_factory, "tour_of_docs", lambda out: quickstart(out, chips=64, epochs=1)
    )
    out: Path = tmp_path_factory.mktemp("tour") / "quickstart"
    shutil.copytree(made, out)
    return out


@pytest.fixture(scope="module")
def data(tour, tmp_path_factory) -> Path:
    """What pages take as given: a quickstart, the examples' data, a GEO-Bench and an MMEarth."""
    from multimae_eo.sources.geobench2.records import DATASETS2
    from tests.support.geobench_files import write_geobench
    from tests.support.mmearth_files import write_mmearth
    from tests.support.tortilla_files import write_geobench2

    here = tmp_path_factory.mktemp("data")
    for example in (ROOT / "examples").glob("*.*"):
        few_chips(example, here)
    for name in ("m-eurosat", "m-so2sat"):
        write_geobench(here / "ROOT", name, size=32)
    for name in ("benv2", "burn_scars"):
        write_geobench2(here / "ROOT2", name, names=DATASETS2[name].classes)
    write_mmearth(here / "data_1M_v001_64", chips=16, size=64, seed=0, stem="data_1M_v001_64")
    (here / "STORE").symlink_to(tour / "store")
    class_folders(here / "EuroSAT_MS")
    write_checkpoint(here / "checkpoint-999.pth")
    safe_folder(here)
    write_drawn_labels(tour / "world/scene/landcover.tif", here / "labels.geojson")
    return here


def write_drawn_labels(cover: Path, path: Path) -> None:
    """Squares of one class, as the demo page writes polygons that a user has drawn."""
    import rasterio
    from rasterio.warp import transform

    with rasterio.open(cover) as file:
        classes, affine, crs = file.read(1), file.transform, file.crs
    features: list[dict[str, object]] = []
    for row in range(8, classes.shape[0] - 8, 24):
        for col in range(8, classes.shape[1] - 8, 24):
            if len(set(classes[row - 3 : row + 3, col - 3 : col + 3].flat)) > 1:
                continue
            corners = [(-3, -3), (-3, 3), (3, 3), (3, -3), (-3, -3)]
            xs, ys = zip(*(affine @ (col + x, row + y) for x, y in corners), strict=True)
            ring = [list(p) for p in zip(*transform(crs, "EPSG:4326", xs, ys), strict=True)]
            features.append({
                "type": "Feature",
                "properties": {"id": len(features) + 1, "class": f"class {classes[row, col]}"},
                "geometry": {"type": "Polygon", "coordinates": [ring]},
            })  # fmt: skip
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def safe_folder(here: Path) -> None:
    """A SAFE folder of 120 × 120 px of a scene."""
    from tests.support.product_files import real_numbers, write_safe

    numbers = real_numbers(DATA / "scene_aberystwyth/sen2_20210527_aber_tile0.tif")
    write_safe(here, numbers).rename(here / "S2B_MSIL2A.SAFE")


def class_folders(folder: Path) -> None:
    """EuroSAT's class folders without their table."""
    for kind in sorted(p for p in (DATA / "eurosat_ms").iterdir() if p.is_dir()):
        (folder / kind.name).mkdir(parents=True)
        for chip in sorted(kind.iterdir())[:KEPT]:
            (folder / kind.name / chip.name).symlink_to(chip)


@pytest.fixture
def reader(tour, data, tmp_path, monkeypatch) -> Path:
    """The folder of a reader who ran the quickstart and has a (small) MMEarth."""
    here = tmp_path / "reader"
    (here / "quickstart").mkdir(parents=True)
    for made in tour.iterdir():
        (here / "quickstart" / made.name).symlink_to(made)
    for made in data.iterdir():
        (here / made.name).symlink_to(made)
    monkeypatch.chdir(here)
    stand_ins = {**torchgeo_stand_in.modules(), **cluster_stand_ins.modules()}
    for module, stand_in in stand_ins.items():
        monkeypatch.setitem(sys.modules, module, stand_in)
    return here


def test_what_is_not_run_is_on_a_page_and_tried_elsewhere():
    shown = {
        tuple(words[1:3])
        for page in PAGES
        for block in blocks(page)
        for words in commands(block)
        if words[0] == "multimae-eo"
    }
    for subcommand, file in NOT_RUN.items():
        assert subcommand in shown, f"no page has {' '.join(subcommand)}: run what is left"
        assert f'"{subcommand[0]}"' in (ROOT / file).read_text(encoding="utf-8"), file


RUN = [p for p in PAGES if any(commands(b) or b.language == "python" for b in blocks(p))]


@pytest.mark.parametrize("page", RUN, ids=name)
def test_commands_and_python_run_as_written(page, reader, capsys):
    variables: dict[str, object] = {"folder": reader / "made"}
    for block in blocks(page):
        where = f"{name(page)}:{block.line}"
        if block.language == "yaml" and (file := re.match(r"# (\S+\.yaml)\n", block.text)):
            # The reader is told to write it.
            (reader / file[1]).write_text(block.text, encoding="utf-8")
        if block.language == "python":
            exec(compile(block.text, where, "exec"), variables)
        for words in commands(block):
            if words[0] != "multimae-eo":
                run_elsewhere(words, where)
            elif words[1:] not in WHOLE_TOURS and tuple(words[1:3]) not in NOT_RUN:
                code = main(substituted(words[1:]))
                assert code == 0, f"{where}: {' '.join(words)}: {capsys.readouterr().err}"
