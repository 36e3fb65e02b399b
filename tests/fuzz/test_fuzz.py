"""Broken input of every kind: exit code 0, or 1 with one line; within 10 s and 2 GB.

``FUZZ_CASES`` cases in all (300; ``make fuzz``: 5,000), ``FUZZ_SEED`` the first seed. What fell
once is in ``corpus/``: one JSON file per finding, which ``python -m tests.fuzz.keep`` writes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.marks import mostly_slow

pytest.importorskip("resource", reason="limits of memory are a Unix matter")
if not Path("/proc/self/statm").exists():
    pytest.skip("the memory in use is read from /proc", allow_module_level=True)
pytest.importorskip("rasterio")

from tests.fuzz.harness import Bench, run_case
from tests.fuzz.inputs import KINDS
from tests.fuzz.keep import content_of

CASES = int(os.environ.get("FUZZ_CASES", "300"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
QUICK = ("dataset-yaml", "scene-yaml", "recipe-yaml", "store-json")
"""Kinds that users write or that others hand over, tried after every edit."""
CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    """No waiting for the disk, and no training: reading is what is tested."""
    from multimae_eo.errors import TrainingError
    from multimae_eo.train import pretrain

    def stop(*_: object, **__: object) -> None:
        raise TrainingError("the recipe was read")

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(pretrain, "fit", stop)


@pytest.mark.parametrize("name", mostly_slow(KINDS, fast=QUICK))
def test_broken_input(name, tmp_path):
    bench = Bench(name, tmp_path / "input")
    clean = name not in ("recipe-yaml", "resumed-run", "checkpoint-pth")  # they stop after reading
    assert not (problem := run_case(bench.folder, bench.kind.command, clean=clean)), problem
    findings = []
    for seed in range(SEED, SEED + -(-CASES // len(KINDS))):
        path, content = bench.case(seed)
        problem = bench.problem(path, content)
        if problem:
            findings.append(f"{name} seed {seed} {path.name}: {problem}")
    assert not findings, "\n\n".join([f"{len(findings)} findings", *findings[:20]])


@pytest.mark.parametrize(
    "case",
    mostly_slow(CORPUS, fast=[p for p in CORPUS if p.stem != "stac-yaml-slow"]),
    ids=lambda p: p.stem,
)
def test_past_finding(case, tmp_path):
    record = json.loads(case.read_text())
    bench = Bench(record["kind"], tmp_path / "input")
    path = next(p for p in bench.files if p.match(record["file"]))
    content = content_of(record, path, bench.folder)
    assert not (problem := bench.problem(path, content)), problem
