"""Where a chip lies: CRS, bounds, GSD; and windows on grids. No raster library is needed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from multimae_eo.errors import ConfigError

_METRES_PER_DEGREE = 111_320.0  # of latitude


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A chip's footprint: ``bounds`` = (left, bottom, right, top) in units of ``crs``.

    ``crs`` is an authority string (``EPSG:32630``) or WKT.
    """

    crs: str
    bounds: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        left, bottom, right, top = self.bounds
        if not (left < right and bottom < top):
            raise ConfigError(f"geometry: bounds must be (left, bottom, right, top): {self.bounds}")

    def pixel_m(self, rows: int) -> float:
        """The height of a pixel in metres, of a chip of ``rows``; degrees are taken for such."""
        _, bottom, _, top = self.bounds
        height = (top - bottom) / rows
        in_degrees = max(map(abs, self.bounds)) <= 360 and height < 0.5
        return height * _METRES_PER_DEGREE if in_degrees else height


@dataclass(frozen=True, kw_only=True)
class Window:
    """A rectangle of pixels: ``row``, ``col`` of its upper left corner, ``height``, ``width``."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices for an array's last two axes."""
        return (
            slice(self.row, self.row + self.height),
            slice(self.col, self.col + self.width),
        )


def window_starts(length: int, size: int, step: int) -> list[int]:
    """Starts of windows of ``size`` that cover ``[0, length)`` at most ``step`` apart.

    The last window is moved back to end at ``length`` rather than shrunk. A length below ``size``
    gives one window at 0 (its reader pads).
    """
    if size < 1 or not 1 <= step <= size:
        raise ConfigError(f"windows: need 1 ≤ step ≤ size, got step {step}, size {size}")
    if length <= size:
        return [0]
    starts = list(range(0, length - size, step))
    return [*starts, length - size]


def windows(height: int, width: int, *, size: int, step: int) -> Iterator[Window]:
    """Square windows covering a grid row by row; see ``window_starts``."""
    for row in window_starts(height, size, step):
        for col in window_starts(width, size, step):
            yield Window(row=row, col=col, height=size, width=size)
