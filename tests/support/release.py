"""Whether this tree is version ``TAG``: ``python tests/support/release.py v0.2.0``.

Uses the standard library only, so that the workflow that publishes needs nothing else.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?"


def package_version(root: Path = ROOT) -> str:
    """The version of the package."""
    return _first(root / "src/multimae_eo/version.py", rf'^__version__ = "({VERSION})"$')


def cited_version(root: Path = ROOT) -> str:
    """The version in ``CITATION.cff``."""
    return _first(root / "CITATION.cff", rf"^version: ({VERSION})$")


def changes(root: Path = ROOT) -> dict[str, str]:
    """Date of each version in the changelog, the latest first; "" of one in preparation."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(rf"^## ({VERSION}) \((in preparation|\d{{4}}-\d\d-\d\d)\)$", text, re.M)
    return {version: "" if date == "in preparation" else date for version, date in heads}


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """Why a tree is not to be published as ``tag``; none where it is."""
    version, dates = package_version(root), changes(root)
    faults = []
    if tag != f"v{version}":
        faults.append(f"the tag is {tag}, src/multimae_eo/version.py has {version}")
    if cited_version(root) != version:
        faults.append(f"CITATION.cff has version {cited_version(root)}, not {version}")
    if next(iter(dates), "") != version:
        faults.append(f"CHANGELOG.md: the first section is not {version}")
    elif not dates[version]:
        faults.append(f"CHANGELOG.md: {version} is in preparation; put its date there")
    text = (root / "CITATION.cff").read_text(encoding="utf-8")
    if dates.get(version) and f"\ndate-released: {dates[version]}\n" not in text:
        faults.append(f"CITATION.cff: date-released is not {dates[version]}, as in CHANGELOG.md")
    return faults


def _first(path: Path, pattern: str) -> str:
    match = re.search(pattern, path.read_text(encoding="utf-8"), re.M)
    if match is None:
        raise SystemExit(f"{path}: has no version")
    return match[1]


if __name__ == "__main__":
    if faults := problems(sys.argv[1]):
        sys.exit("\n".join(faults))
