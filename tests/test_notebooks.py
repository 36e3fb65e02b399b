"""The notebooks run from the first cell to the last, in a folder of their own, on little data."""

from __future__ import annotations

import pytest

from tests.support.paths import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = ROOT / "notebooks"
QUICK = ("chips, epochs = 200, 20", "chips, epochs = 40, 1")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tour", "transfer"])
def test_notebook_runs(name, tmp_path):
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    settings = next(c for c in book.cells if c.cell_type == "code")
    assert QUICK[0] in settings.source
    settings.source = settings.source.replace(*QUICK)
    client = nbclient.NotebookClient(
        book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    last = book.cells[-1].outputs
    assert last, "the last cell shows a result"


@pytest.mark.parametrize("name", ["tour", "transfer"])
def test_notebook_is_kept_without_outputs(name):
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code)


@pytest.mark.parametrize("name", ["tour", "transfer"])
def test_notebook_uses_public_names_only(name):
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    code = "\n".join(c.source for c in book.cells if c.cell_type == "code")
    assert "from multimae_eo import" in code
    assert "multimae_eo." not in code
