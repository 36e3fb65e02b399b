"""Positions along a Hilbert curve: neighbours in a file are neighbours on the ground."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BITS = 16


def hilbert_codes(
    x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], bits: int = _BITS
) -> npt.NDArray[np.int64]:
    """Position of each cell along the curve through 2^bits × 2^bits cells; all arrays (n,)."""
    x, y = x.astype(np.int64), y.astype(np.int64)
    codes = np.zeros(x.shape, np.int64)
    for bit in reversed(range(bits)):
        side = 1 << bit
        right, upper = (x & side) > 0, (y & side) > 0
        codes += side * side * ((3 * right) ^ upper)
        mirrored = ~upper & right
        x = np.where(mirrored, side - 1 - (x & (side - 1)), x & (side - 1))
        y = np.where(mirrored, side - 1 - (y & (side - 1)), y & (side - 1))
        x, y = np.where(upper, x, y), np.where(upper, y, x)
    return codes


def hilbert_order(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Rows of boxes (n, 4: west, south, east, north) along the curve over all of them.

    Rows of NaN come last; rows of one cell keep their order.
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    located = np.isfinite(centres).all(axis=1)
    codes = np.full(len(boxes), np.iinfo(np.int64).max)
    if located.any():
        low, high = centres[located].min(axis=0), centres[located].max(axis=0)
        extent = np.where(high > low, high - low, 1.0)
        cells = np.floor((centres[located] - low) / extent * ((1 << _BITS) - 1))
        codes[located] = hilbert_codes(cells[:, 0], cells[:, 1])
    return np.argsort(codes, kind="stable")
