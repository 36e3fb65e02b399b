"""What the package states of itself is the same everywhere, and complete enough to publish."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

import multimae_eo
from tests.support import release
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
REPOSITORY = PROJECT["urls"]["Source"]


def test_the_version_is_written_once_and_equal_everywhere():
    assert "version" in PROJECT["dynamic"]
    assert multimae_eo.__version__ == release.package_version()
    assert release.cited_version() == multimae_eo.__version__
    assert next(iter(release.changes())) == multimae_eo.__version__


def test_no_two_sections_of_the_changelog_are_in_preparation():
    dates = list(release.changes().values())
    assert dates[1:] == sorted(filter(None, dates[1:]), reverse=True)
    heads = re.findall("^## .*", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert len(heads) == len(dates), "each is a version and its date"


@pytest.fixture
def tree(tmp_path):
    """What a release is read from, of version 1.2.0."""
    (tmp_path / "src/multimae_eo").mkdir(parents=True)
    (tmp_path / "src/multimae_eo/version.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("version: 1.2.0\ndate-released: 2027-01-02\n")
    (tmp_path / "CHANGELOG.md").write_text("## 1.2.0 (2027-01-02)\n\n## 1.1.0 (2026-12-01)\n")
    return tmp_path


def test_a_tree_that_is_ready_has_no_problem(tree):
    assert release.problems("v1.2.0", tree) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("src/multimae_eo/version.py", "1.2.0", "1.3.0", "the tag is v1.2.0"),
        ("CITATION.cff", "1.2.0", "1.1.0", "CITATION.cff has version 1.1.0"),
        ("CITATION.cff", "2027", "2026", "date-released is not 2027-01-02"),
        ("CHANGELOG.md", "(2027-01-02)", "(in preparation)", "1.2.0 is in preparation"),
        ("CHANGELOG.md", "## 1.2.0", "## 1.2.1", "the first section is not 1.2.0"),
    ],
)
def test_a_tree_that_is_not_ready_is_not_published(tree, file, old, new, problem):
    path = tree / file
    path.write_text(path.read_text().replace(old, new))
    assert any(problem in found for found in release.problems("v1.2.0", tree))


def test_addresses_are_those_of_one_repository():
    urls = PROJECT["urls"]
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} <= set(urls)
    assert CITATION["repository-code"] == REPOSITORY
    owner, name = REPOSITORY.removeprefix("https://github.com/").split("/")
    assert urls["Documentation"] == f"https://{owner}.github.io/{name}/"
    for key in ("Homepage", "Issues", "Changelog"):
        assert urls[key].startswith(REPOSITORY)
    files = [ROOT / "SECURITY.md", ROOT / "CODE_OF_CONDUCT.md", ROOT / "pyproject.toml",
             ROOT / ".github/ISSUE_TEMPLATE/config.yml"]  # fmt: skip
    for path in files:
        text = path.read_text(encoding="utf-8")
        addresses = re.findall(r"https://github\.com/[\w.-]+/[\w.-]+", text)
        assert set(addresses) == {REPOSITORY}, path


def test_licence_authors_and_classifiers():
    assert PROJECT["license"] == CITATION["license"] == "Apache-2.0"
    for pattern in PROJECT["license-files"]:
        assert (ROOT / pattern).is_file()
    assert PROJECT["authors"][0]["name"] == CITATION["authors"][0]["name"]
    classifiers = PROJECT["classifiers"]
    assert not [c for c in classifiers if c.startswith("License ::")], "PEP 639: license has it"
    assert len(set(classifiers)) == len(classifiers)
    assert {c.split(" :: ")[0] for c in classifiers} >= {
        "Development Status", "Intended Audience", "Operating System", "Programming Language",
        "Topic", "Typing",
    }  # fmt: skip
    floor = PROJECT["requires-python"].removeprefix(">=")
    pythons = [c.rpartition(" :: ")[2] for c in classifiers if re.search(r":: 3\.\d+$", c)]
    assert pythons[0] == floor
    assert pythons == [f"3.{11 + i}" for i in range(len(pythons))]


def test_the_paper_is_cited():
    assert CITATION["cff-version"] == "1.2.0"
    (paper,) = CITATION["references"]
    assert [a["family-names"] for a in paper["authors"]] == ["Sosa", "Rukhovich", "Kacem", "Aouada"]
    assert "2505.14951" in paper["doi"]
    notice = " ".join((ROOT / "NOTICE").read_text(encoding="utf-8").split())
    assert paper["title"] in notice


def test_every_dependency_has_a_floor_and_no_ceiling():
    """A ceiling stops users from updating; what is too new is found by CI's newest versions."""
    extras = PROJECT["optional-dependencies"]
    stubs = re.compile("types-|.*-stubs$")
    for name in [*PROJECT["dependencies"], *(d for group in extras.values() for d in group)]:
        if not stubs.match(name) and not name.startswith("multimae-eo["):
            assert re.fullmatch(r"[\w-]+>=[\d.]+", name), name


def test_the_readme_of_the_index_links_to_the_repository():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    hook = config["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    assert [t for t in targets if not t.startswith(("https://", "#"))] == []
    pictures = re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text)
    assert pictures
    assert all(p.startswith(f"{REPOSITORY}/raw/") for p in pictures)


@pytest.mark.parametrize("name", ["SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md"])
def test_relative_links_of_community_files_lead_to_files(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_release_needs_the_standard_library_only(tree):
    """The workflow that publishes installs nothing before it."""
    folder = tree / "tests/support"
    folder.mkdir(parents=True)
    shutil.copy(release.__file__, folder / "release.py")
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(folder / "release.py"), "v1.2.1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "the tag is v1.2.1, src/multimae_eo/version.py has 1.2.0\n"
