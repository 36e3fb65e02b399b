"""The house's walls: who may import whom, how long things may grow, what starts fast."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import multimae_eo
from tests.support.imports import circles, import_graph, lazy_imports, room, rooms_table
from tests.support.paths import ROOT

PACKAGE = ROOT / "src/multimae_eo"
FILES = sorted(PACKAGE.rglob("*.py"))

# One rank a room, the lowest first. A file imports its own room and those before it.
ROOMS = (
    "interrupts",
    "version",
    "errors",
    "modality",
    "catalog",
    "class_colors",
    "geo",
    "sample",
    "statistics",
    "plausible",
    "files",
    "processes",
    "dask_cluster",
    "runtime",
    "metrics",
    "network",
    "model_folder",
    "sources",
    "download",
    "store",
    "loading",
    "reports",
    "inference",
    "scenes",
    "train",
    "evaluation",
    "doctor",
    "convert",
    "export",
    "info",
    "plugins",
    "quickstart",
    "demo",
    "api",
    "cli",
    "__main__",
)
RANK = {name: rank for rank, name in enumerate(ROOMS)}

# Data and networks meet at sample.py only.
STRANGERS = ({"sources", "store", "loading"}, {"network", "model_folder"})


GRAPH = import_graph(PACKAGE)


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_point_downwards(module: str) -> None:
    """All of them: at the top, inside functions, and those for type checkers only."""
    if module == "multimae_eo":
        return  # the list of public names, imported when they are first used
    own = room(module)
    assert own in RANK, f"{own}: give it a rank here and in docs/architecture.md"
    for other in {room(target) for target in GRAPH[module]} - {own, "multimae_eo"}:
        assert RANK[other] < RANK[own], f"{module} imports {other}, which is above it"
        for one, two in (STRANGERS, STRANGERS[::-1]):
            assert not (own in one and other in two), f"{module} imports {other}"


def test_no_circles_between_files() -> None:
    assert circles(GRAPH) == []


def test_the_map_of_rooms_in_the_docs_is_current() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert rooms_table(GRAPH, ROOMS) in page, "run python docs/figures/rooms.py"


def test_every_class_name_is_defined_once() -> None:
    """Private ones included, and with or without the underscore before them."""
    definitions: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                name = node.name.removeprefix("_")
                definitions.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    assert {n: paths for n, paths in definitions.items() if len(paths) > 1} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_functions_stay_small(path: Path) -> None:
    assert path.name != "utils.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            length -= len((ast.get_docstring(node, clean=False) or "").splitlines())
            assert length <= 60, f"{node.name} has {length} lines"


# Names of this package that are imported inside functions. Only what keeps torch, GDAL and other
# heavy libraries out of start-up: the command line, the list of public names, the openers.
LAZY_ROOMS = {
    "multimae_eo",
    "api",
    "cli",
    "quickstart",
    "loading.open_source",
    "plugins",
    "info.paths",  # torch, which `info STORE` does without
    "sources.stac.source",  # odc-stac, which takes seconds and only reading needs
}


def test_lazy_imports_only_keep_heavy_libraries_out_of_start_up() -> None:
    lazy = lazy_imports(PACKAGE)
    elsewhere = {
        module: targets
        for module, targets in lazy.items()
        if not any(f"{module}.".startswith(f"multimae_eo.{r}.") for r in LAZY_ROOMS)
        and module not in LAZY_ROOMS
    }
    assert elsewhere == {}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_branch_on_a_modality_name(path: Path) -> None:
    """Adding a modality is one record: only the catalogue and readers may know names."""
    if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in ("catalog", "sources"):
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


@pytest.mark.slow
def test_torch_alone_is_enough_for_the_model() -> None:
    """Machines without a raster library must import and train."""
    loaded = run_python(
        "import sys, multimae_eo.train.modules, multimae_eo.sources.synthetic; print(*sys.modules)"
    ).split()
    assert not {"rasterio", "torchvision", "timm"} & set(loaded)


@pytest.mark.slow
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
    resource = pytest.importorskip("resource", reason="processor time is measured on Unix")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_python("import multimae_eo.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert took < 0.6, "0.15 s on an idle machine"


def test_every_exported_name_exists() -> None:
    import multimae_eo

    for name in multimae_eo.__all__:
        assert getattr(multimae_eo, name) is not None


def test_no_public_name_is_that_of_a_module() -> None:
    """``from multimae_eo import evaluate`` is the function, whatever was imported before."""
    assert not [n for n in multimae_eo.__all__ if importlib.util.find_spec(f"multimae_eo.{n}")]
