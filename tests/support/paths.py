"""Where things lie: the project, and the data that tests use.

Real data lie beside the project where its makers work. Elsewhere, or with
``MULTIMAE_EO_TEST_DATA=generated``, synthetic ones of the same shape stand in: see example_data.py.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The project's root."""

SHARED = ROOT.parent / "shared"
"""Real data and fixtures, beside the project."""

REAL_DATA = (SHARED / "data").is_dir() and os.environ.get("MULTIMAE_EO_TEST_DATA") != "generated"
"""Whether the examples' data are real ones."""


def _generated() -> Path:
    """A folder that a change of the generator renames."""
    sources = (ROOT / "tests/support/example_data.py", ROOT / "tests/support/geobench_files.py")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    return ROOT / ".pytest_cache/example_data" / digest


DATA = SHARED / "data" if REAL_DATA else _generated()
"""The examples' data, each in a folder of its name."""
