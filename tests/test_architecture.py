"""The house's walls: who may import whom, how long things may grow, what starts fast."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "src/multimae_eo"
FILES = sorted(PACKAGE.rglob("*.py"))

# A file may import its own layer and those below. The lowest comes first.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("modality",),
    ("catalog",),
    ("class_colors",),
    ("geo",),
    ("sample",),
    ("statistics",),
    ("sources", "store", "model"),
    (
        "report",
        "plots",
        "run_page",
        "infer",
        "evaluate",
        "train",
        "convert",
        "doctor",
        "info",
        "info_files",
        "export",
    ),
    ("plugins",),
    ("quickstart", "demo"),
    (
        "cli_parts",
        "cli_demo",
        "cli_scenes",
        "cli_predict",
        "cli_study",
        "cli_transfer",
        "cli_ecosystem",
        "cli_completion",
        "cli_examples",
        "cli",
    ),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def room(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms of this package that a file imports, at the top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "multimae_eo":
                names = [f"multimae_eo.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("multimae_eo.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    own = room(path)
    assert own in RANK, f"{own}: give it a layer here and in docs/architecture.md"
    for other in imported(path):
        # sources/__init__ opens chip stores: the one door between two rooms of a layer.
        assert RANK[other] <= RANK[own], f"{path.name} ({own}) imports {other}, which is above it"
    if own in ("sources", "store"):
        assert "model" not in imported(path), "sources and store never import the model"
    if own == "model":
        assert not imported(path) & {"sources", "store"}, "the model never imports sources or store"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_functions_and_signatures_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400, "split the file"
    assert path.name != "utils.py"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            length -= len((ast.get_docstring(node, clean=False) or "").splitlines())
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_branch_on_a_modality_name(path: Path) -> None:
    """Adding a modality is one record: only the catalogue and readers may know names."""
    if room(path) in ("catalog", "sources"):
        return
    names = {"rgb", "ired", "sired", "ebands", "depth", "semseg", "elevation", "sentinel1",
             "sentinel2", "landcover", "esa_worldcover", "dynamic_world"}  # fmt: skip
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            constants = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
            assert not constants & names, f"line {node.lineno} compares with a modality's name"


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_loads_neither_torch_nor_raster_libraries() -> None:
    loaded = run_python(
        "import sys, multimae_eo, multimae_eo.cli, multimae_eo.sources; print(*sys.modules)"
    ).split()
    heavy = {"torch", "rasterio", "h5py", "lightning", "matplotlib", "pyarrow", "sklearn"}
    assert not heavy & set(loaded)


def test_torch_alone_is_enough_for_the_model() -> None:
    """Machines without a raster library must import and train."""
    loaded = run_python(
        "import sys, multimae_eo.train.modules, multimae_eo.sources.synthetic; print(*sys.modules)"
    ).split()
    assert not {"rasterio", "torchvision", "timm"} & set(loaded)


def test_chips_without_a_place_are_embedded_without_a_raster_library(tmp_path: Path) -> None:
    made = run_python(
        f"""
import sys; sys.modules["rasterio"] = None
from dataclasses import replace
from pathlib import Path
from multimae_eo.scenes.embed import embed_source
from multimae_eo.network.config import EncoderConfig, InputConfig, ModelConfig
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sources.synthetic import SyntheticSource
from multimae_eo.statistics import Statistics
class Placeless(SyntheticSource):
    def read(self, index, names=None):
        return replace(super().read(index, names), geometry=None)
source = Placeless(chips=4, size=32)
names = ["rgb", "ired"]
modalities = source.modalities.select(names)
found = Statistics(modalities)
for i in range(4): found.update(source.read(i, names))
inputs = {{n: InputConfig(size=32, patch=8) for n in names}}
config = ModelConfig(inputs=inputs, encoder=EncoderConfig(width=32, depth=1, heads=2))
model = MultiMAE(modalities, (), config, found)
print(embed_source(model, source, Path({str(tmp_path)!r}) / "chips.parquet"))
"""
    )
    assert made.split()[-1] == "4"
    assert (tmp_path / "chips.parquet").exists()


def test_help_answers_at_once() -> None:
    """Processor time, which other processes do not lengthen: torch alone would take seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_python("import multimae_eo.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert took < 0.6, "0.15 s on an idle machine"


def test_every_exported_name_exists() -> None:
    import multimae_eo

    for name in multimae_eo.__all__:
        assert getattr(multimae_eo, name) is not None
