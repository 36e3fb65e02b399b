"""Footprints and windows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimae_eo.errors import ConfigError
from multimae_eo.geo import Geometry, Window, window_starts, windows


@given(height=st.integers(1, 40), width=st.integers(1, 40), size=st.integers(1, 12), data=st.data())
def test_windows_cover_every_pixel_and_none_is_shrunk(height, width, size, data):
    step = data.draw(st.integers(1, size))
    seen = np.zeros((max(height, size), max(width, size)), int)
    found = list(windows(height, width, size=size, step=step))
    assert len(set(found)) == len(found)
    for window in found:
        assert (window.height, window.width) == (size, size)
        seen[window.slices] += 1
    assert seen[:height, :width].min() >= 1
    for length in (height, width):
        starts = window_starts(length, size, step)
        assert starts == sorted(starts)
        assert all(b - a <= step for a, b in pairwise(starts))
        assert length <= size or starts[-1] + size == length


def test_windows_by_hand():
    assert window_starts(10, 4, 3) == [0, 3, 6]
    assert window_starts(11, 4, 3) == [0, 3, 6, 7], "the last is moved back"
    assert window_starts(4, 4, 2) == [0]
    assert window_starts(3, 4, 2) == [0], "its reader pads"
    assert Window(row=1, col=2, height=3, width=4).slices == (slice(1, 4), slice(2, 6))


@pytest.mark.parametrize(("size", "step"), [(0, 1), (4, 0), (4, 5), (-1, -1)])
def test_steps_that_would_leave_gaps_are_refused(size, step):
    with pytest.raises(ConfigError, match=f"got step {step}, size {size}"):
        window_starts(10, size, step)


@pytest.mark.parametrize("bounds", [(1, 0, 0, 1), (0, 1, 1, 0), (0, 0, 0, 1), (0, 0, np.nan, 1)])
def test_bounds_in_another_order_are_refused(bounds):
    with pytest.raises(ConfigError, match="left, bottom, right, top"):
        Geometry(crs="EPSG:4326", bounds=bounds)
