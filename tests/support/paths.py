"""Where things lie: the project, and the data beside it that tests use when they are there."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The project's root."""

SHARED = ROOT.parent / "shared"
"""Real data, beside the project; tests that need them skip where they are not."""

DATA = SHARED / "data"
