"""Which parameters of a test an edit runs, and which only the whole suite."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest


def mostly_slow(values: Iterable[object], *, fast: Collection[object]) -> list[object]:
    """Parameters of which all but ``fast`` are marked slow: one guards what an edit may break."""
    return [v if v in fast else pytest.param(v, marks=pytest.mark.slow) for v in values]
