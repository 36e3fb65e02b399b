"""Windows of many chips of a store at once, copied in long runs from the memory maps.

A window of a chip is copied as one run of rows per band, from its first pixel on, into a buffer
whose rows are as long as the chip's; the window is then a view of it. Flips and transposes
are done for all chips that share them together, by torch's vectorised kernels. See docs/store.md.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from multimae_eo.store.reader import ChipStore

if TYPE_CHECKING:
    import torch

Integers = npt.NDArray[np.int64]
# Batches alive at once: one in use, one being made, a few on their way to the device.
_KEPT = 6
_BITS = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}


class _Recycled:
    """Arrays to write batches into, used again as soon as nobody holds the batch any more.

    Fresh memory costs a page fault every 4 kB, several times what copying into it does. What is
    held is known by a weak reference: counts of references differ between versions of Python.
    """

    def __init__(self) -> None:
        self._lent: list[tuple[torch.Tensor, weakref.ref[npt.NDArray[np.generic]]]] = []

    def take(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
        """An array that nobody else refers to, with anything in it."""
        import torch

        # Arrays over tensors, because views hold the lowest array below them.
        for position, (memory, holder) in enumerate(self._lent):
            array: npt.NDArray[np.generic] = memory.numpy()
            if holder() is None and array.shape == shape and array.dtype == dtype:
                del self._lent[position]
                break
        else:
            memory = torch.from_numpy(np.empty(shape, dtype))
            array = memory.numpy()
        self._lent = [(memory, weakref.ref(array)), *self._lent[: _KEPT - 1]]
        return array


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The windows of a batch of chips, in pixels of one modality.

    ``indices``: chips of the store (B,). ``corners``: row and column (B, 2) of each window.
    ``size``: their height and width before rotation. ``codes``: how each is flipped and
    transposed (B,), see ``Orientation.code``; equal ones lie together.
    """

    indices: Integers
    corners: Integers
    size: tuple[int, int]
    codes: Integers

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width after rotation; only squares may be transposed for some chips."""
        return self.size[::-1] if (self.codes >= 4).any() else self.size


class Gatherer:
    """Copies windows out of a store; keeps its buffers from batch to batch."""

    def __init__(self, store: ChipStore) -> None:
        self.store = store
        self._buffers: dict[tuple[int, ...], npt.NDArray[np.generic]] = {}
        self._outputs = {n: _Recycled() for n in store.arrays}

    def __reduce__(self) -> tuple[object, ...]:
        return Gatherer, (self.store,)

    def pixels(self, name: str, windows: Windows) -> torch.Tensor:
        """Windows (B, C, h, w) of a modality, zeros where a chip lacks it."""
        import torch

        (bands, height, width), dtype = self.store.arrays[name]
        size, chip_pixels = windows.size, height * width
        run = size[0] * width
        rows = self.store.rows(name)[windows.indices]
        has = rows >= 0
        wide = self._buffer(len(rows), bands, run, dtype)
        shards: dict[int, npt.NDArray[np.generic]] = {}
        for position, number, row, first in self._stored_rows(windows, rows, width):
            if number not in shards:
                shards[number] = self.store.shard(name, number).reshape(-1, bands, chip_pixels)
            if row >= len(shards[number]):
                raise self.store.lacks_row(name, number, row)
            # The last rows of a chip end before the run does; what is left is outside the window.
            wide[position, :, : chip_pixels - first] = shards[number][row, :, first : first + run]
        bits = _BITS[dtype.itemsize]
        views = wide.view(bits).reshape(-1, bands, size[0], width)[..., : size[1]]
        out = self._outputs[name].take((len(rows), bands, *windows.sides), np.dtype(bits))
        _reorient(views, windows.codes, out)
        if not has.all():
            out[~has] = 0
        return torch.from_numpy(out.view(dtype))

    def validity(self, name: str, windows: Windows) -> torch.Tensor | None:
        """Bool (B, 1 or C, h, w) where any pixel of the windows is not valid, else None."""
        import torch

        partly = np.flatnonzero(self.store.partly_valid(name)[windows.indices])
        if not len(partly):
            return None
        masks = self.store.masks(windows.indices[partly], name).view(np.uint8)
        rows, columns = windows.corners[partly].T
        all_windows = sliding_window_view(masks, windows.size, axis=(2, 3))
        views = all_windows[np.arange(len(partly)), :, rows, columns]
        reoriented = np.empty((*views.shape[:2], *windows.sides), np.uint8)
        _reorient(views, windows.codes[partly], reoriented)
        if reoriented.all():
            return None
        out = np.ones((len(windows.indices), *reoriented.shape[1:]), np.uint8)
        out[partly] = reoriented
        return torch.from_numpy(out.view(bool))

    def _stored_rows(
        self, windows: Windows, rows: npt.NDArray[np.int32], width: int
    ) -> Iterator[tuple[int, int, int, int]]:
        """Position in the batch, shard, row in the shard and first pixel of chips that have it."""
        positions = np.flatnonzero(rows >= 0)
        columns = (
            positions,
            self.store.shard_of(windows.indices[positions]),
            rows[positions],
            windows.corners[positions] @ np.array([width, 1]),
        )
        return zip(*(c.tolist() for c in columns), strict=True)

    def _buffer(
        self, count: int, bands: int, run: int, dtype: np.dtype[np.generic]
    ) -> npt.NDArray[np.generic]:
        key = (bands, run, dtype.num)
        if key not in self._buffers or len(self._buffers[key]) < count:
            self._buffers[key] = np.zeros((count, bands, run), dtype)
        return self._buffers[key][:count]


def _reorient(
    views: npt.NDArray[np.generic], codes: Integers, out: npt.NDArray[np.generic]
) -> None:
    """Flip and transpose (B, C, h, w) into ``out``, all chips of one code at once."""
    import torch

    source, target = torch.from_numpy(views), torch.from_numpy(out)
    starts = np.flatnonzero(np.diff(codes, prepend=-1)).tolist()
    for start, stop in zip(starts, [*starts[1:], len(codes)], strict=True):
        code = int(codes[start])
        part = source[start:stop]
        dims = [dim for bit, dim in ((1, -1), (2, -2)) if code & bit]
        if dims:
            part = torch.flip(part, dims)
        if code & 4:
            part = part.transpose(-1, -2)
        target[start:stop].copy_(part)
