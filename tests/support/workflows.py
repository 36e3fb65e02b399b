"""Reads the workflows of `.github`, and runs the commands of a job in a fresh clone.

    python -m tests.support.workflows ci.yml core 'os=ubuntu-latest' 'python=3.11' [--dry]

Actions are not run: `uses:` steps are printed. The matrix values choose the Python, which must be
on the PATH as ``pythonX.Y``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".github/workflows"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command (``run``) or an action (``uses``) with its inputs, for one cell of the matrix."""

    run: str = ""
    uses: str = ""
    inputs: Mapping[str, str]
    condition: str = ""


def workflow(name: str) -> dict[Any, Any]:
    """A workflow, by its file's name; ``on`` is read by YAML 1.1 as the key True."""
    document: dict[Any, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return document


def workflows() -> dict[str, dict[Any, Any]]:
    """All workflows by their file's names."""
    return {path.name: workflow(path.name) for path in sorted(FOLDER.glob("*.yml"))}


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(workflow, job, its definition)."""
    for name, document in workflows().items():
        for job, definition in document["jobs"].items():
            yield name, job, definition


def cells(job: Mapping[str, Any]) -> list[dict[str, str]]:
    """Combinations of the values of a job's matrix; one empty where it has none."""
    matrix = job.get("strategy", {}).get("matrix", {})
    return [dict(zip(matrix, values, strict=True)) for values in product(*matrix.values())]


def steps(job: Mapping[str, Any], cell: Mapping[str, str]) -> list[Step]:
    """A job's steps, with the values of a cell of its matrix in place."""

    def filled(text: object) -> str:
        return re.sub(r"\$\{\{ *matrix\.(\w+) *\}\}", lambda m: cell[m[1]], str(text))

    return [
        Step(
            run=filled(step.get("run", "")),
            uses=step.get("uses", ""),
            inputs={key: filled(value) for key, value in step.get("with", {}).items()},
            condition=step.get("if", ""),
        )
        for step in job.get("steps", ())
    ]


def run_job(name: str, job: str, chosen: Mapping[str, str], *, dry: bool = False) -> None:
    """Run a job's commands in a clone of the committed tree, as bash with ``-e`` does."""
    document = workflow(name)
    definition = document["jobs"][job]
    cell = next(c for c in cells(definition) if all(c[k] == v for k, v in chosen.items()))
    with tempfile.TemporaryDirectory(prefix="job-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))},
            **document.get("env", {}),
            "CI": "true",
            "GITHUB_ENV": str(Path(folder) / "env"),
            "GITHUB_REF_NAME": "v0.0.0",
        }
        for step in steps(definition, cell):
            print(f"== {step.uses or step.run.strip()} {dict(step.inputs) or ''}", flush=True)
            if step.uses.startswith("actions/setup-python@"):
                python = f"python{step.inputs['python-version']}"
                path = _environment(Path(folder) / "python", python)
                environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
            if step.run and not dry:
                begun = time.monotonic()
                subprocess.run(
                    ["bash", "-e", "-o", "pipefail", "-c", step.run],
                    cwd=clone, env=environment, check=True,
                )  # fmt: skip
                print(f"== {time.monotonic() - begun:.0f} s", flush=True)


def _environment(folder: Path, python: str) -> Path:
    """An environment that stands for the interpreter that the action installs; its programs."""
    if shutil.which(python) is None:
        raise SystemExit(f"{python}: is not on the PATH")
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    return folder / "bin"


if __name__ == "__main__":
    flags = [a for a in sys.argv[3:] if a.startswith("--")]
    values = dict(a.split("=", maxsplit=1) for a in sys.argv[3:] if not a.startswith("--"))
    run_job(sys.argv[1], sys.argv[2], values, dry="--dry" in flags)
