"""What values can mean: plausible ranges, fill values, scales that fit. One table, one wording.

The readers, the data doctor and the look that a model takes at its inputs all ask here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_FILL_VALUES = (
    -9999.0, -99999.0, -999.0, -9998.0, -32768.0, -32767.0, -2147483648.0, -1e10, -1e20, 1e20, 1e30,
    9999.0, 99999.0, 65535.0, 4294967295.0, 9.969209968386869e36,
)  # fmt: skip
"""Numbers by which programs mark what was never observed."""
_HUGE = 1e37
"""No measurement is as large; the largest floats are fill values."""


def sentinel_message(values: npt.NDArray[Any]) -> str:
    """Says which value of numeric labels is a fill value that nobody declared; "" for none.

    A well-known fill value (-9999, the least float, …) counts where it lies further from all other
    values than they do from one another, or is the only value.
    """
    known = values[np.isfinite(values)].astype(np.float64)
    if not known.size:
        return ""
    ends = (float(known.min()), float(known.max()))
    for value in ends:
        if not is_fill_value(value):
            continue
        others = known[known != value]
        low, high = (float(others.min()), float(others.max())) if others.size else (value, value)
        gap = min(abs(value - low), abs(value - high))
        if others.size and gap <= 2 * (high - low):
            continue
        between = f", the others lie between {low:g} and {high:g}" if others.size else ""
        return (
            f"{int((known == value).sum())} of {known.size} values are {value:g}{between}: a fill "
            f"value? declare `labels: {{nodata: {value:g}}}`, or `nodata: []` if it was measured"
        )
    return ""


def is_fill_value(value: float) -> bool:
    """Whether programs write this number where nothing was observed."""
    return abs(value) > _HUGE or any(abs(value - fill) <= 1e-6 * abs(fill) for fill in _FILL_VALUES)
