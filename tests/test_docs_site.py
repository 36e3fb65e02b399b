"""The site: it builds without a warning, shows every page, and what is generated is up to date."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.paths import ROOT

DOCS = ROOT / "docs"


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(nav: list[object]) -> list[str]:
    """The files of a navigation, in order."""
    found: list[str] = []
    for entry in nav:
        assert isinstance(entry, dict)
        for target in entry.values():
            found += leaves(target) if isinstance(target, list) else [target]
    return found


def test_navigation_leads_to_every_page_once():
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    shown = leaves(config["project"]["nav"])
    assert sorted(shown) == sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md"))


@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path):
    pytest.importorskip("zensical", reason="needs the extra docs")
    (tmp_path / "zensical.toml").write_bytes((ROOT / "zensical.toml").read_bytes())
    shutil.copytree(DOCS, tmp_path / "docs")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    for page in DOCS.rglob("*.md"):
        made = tmp_path / "site" / page.relative_to(DOCS).with_suffix(".html")
        assert "<h1" in made.read_text(encoding="utf-8"), page


def test_reference_is_up_to_date():
    for name, text in script(DOCS / "reference/generate.py").pages().items():
        there = (DOCS / "reference" / name).read_text(encoding="utf-8")
        assert there == text, f"{name} is out of date: make reference"


def test_figures_are_up_to_date_and_show_what_they_say():
    module = script(DOCS / "figures/method.py")
    for name, text in module.figures().items():
        assert (DOCS / "figures" / name).read_text(encoding="utf-8") == text, f"{name}: make docs"
        ET.fromstring(text)
    states = module.draw_states()
    assert ((states == 1).sum(dim=2) == module.VISIBLE).all()
    # The smaller alpha, the fewer modalities share what is visible.
    count = (states == 1).reshape(3, module.CHIPS, 4, -1).sum(dim=3).double()
    most = count.max(dim=2).values.mean(dim=1)
    assert most[0] > most[1] > most[2]
    assert (states[:, 2].reshape(3, 4, -1)[:, 1] == 0).all(), "an absent modality stays absent"
