"""The grid of a scene: CRS, transform and shape; its windows, and the extent of rasters on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from multimae_eo.geo import Geometry, Window

Bounds = tuple[float, float, float, float]
"""(left, bottom, right, top)."""

_SNAP = 1e-3  # of a pixel: transforms carry rounding errors


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid of a scene's output: CRS (authority or WKT), affine transform, shape in pixels."""

    crs: str
    transform: Any
    height: int
    width: int

    def footprint(self, window: Window) -> Geometry:
        """The ground of a window, which may reach over the edges."""
        left, top = self.transform @ (window.col, window.row)
        right, bottom = self.transform @ (window.col + window.width, window.row + window.height)
        return Geometry(crs=self.crs, bounds=(left, bottom, right, top))

    def coarser(self, ratio: int) -> Grid:
        """The grid of the same origin whose pixels are ``ratio`` × ``ratio`` of this one's.

        It covers everything: its last row and column may reach over this grid's edge.
        """
        if ratio == 1:
            return self
        scale = type(self.transform).scale(ratio)
        return replace(
            self,
            transform=self.transform @ scale,
            height=-(-self.height // ratio),
            width=-(-self.width // ratio),
        )

    def covering(self, bounds: Sequence[Bounds]) -> Grid:
        """This grid extended (or cut) to whole pixels that cover all ``bounds`` in its CRS."""
        placed = [self._span(b) for b in bounds]
        top, left = min(p[0] for p in placed), min(p[1] for p in placed)
        bottom, right = max(p[2] for p in placed), max(p[3] for p in placed)
        return self.part(Window(row=top, col=left, height=bottom - top, width=right - left))

    def part(self, window: Window) -> Grid:
        """The grid of a window's pixels, which may lie over the edges."""
        shift = type(self.transform).translation(window.col, window.row)
        return replace(
            self,
            transform=self.transform @ shift,
            height=window.height,
            width=window.width,
        )

    def window_of(self, bounds: Bounds, *, margin: int = 2) -> Window | None:
        """The pixels that ``bounds`` may touch, with a margin for the kernel; None if none."""
        top, left, bottom, right = self._span(bounds)
        touched = Window(
            row=top - margin,
            col=left - margin,
            height=bottom - top + 2 * margin,
            width=right - left + 2 * margin,
        )
        return overlap(touched, self.extent)

    @property
    def extent(self) -> Window:
        """The window of all of it."""
        return Window(row=0, col=0, height=self.height, width=self.width)

    def _span(self, bounds: Bounds) -> tuple[int, int, int, int]:
        """First row, first column, last row + 1, last column + 1 that ``bounds`` touch."""
        corners = [~self.transform @ (x, y) for x in bounds[0::2] for y in bounds[1::2]]
        cols, rows = [c for c, _ in corners], [r for _, r in corners]
        return (
            math.floor(min(rows) + _SNAP),
            math.floor(min(cols) + _SNAP),
            math.ceil(max(rows) - _SNAP),
            math.ceil(max(cols) - _SNAP),
        )


def overlap(a: Window, b: Window) -> Window | None:
    """The pixels in both windows, None if there are none."""
    top, left = max(a.row, b.row), max(a.col, b.col)
    bottom = min(a.row + a.height, b.row + b.height)
    right = min(a.col + a.width, b.col + b.width)
    if bottom <= top or right <= left:
        return None
    return Window(row=top, col=left, height=bottom - top, width=right - left)
