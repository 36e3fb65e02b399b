"""What some of the files of one kind show: their headers, and the range of their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multimae_eo.geo import Window
from multimae_eo.sample import Pixels, Validity
from multimae_eo.sources.draft.file_groups import sampled
from multimae_eo.sources.raster.header import RasterHeader
from multimae_eo.sources.raster.reading import (
    IMAGE_SUFFIXES,
    open_dataset,
    read_header,
    read_raster,
    read_window,
    valid_pixels,
)
from multimae_eo.sources.raster.warped import reading

_HEADERS, _VALUES, _SIDE = 12, 8, 512


@dataclass(frozen=True, kw_only=True)
class BandValues:
    """Valid values of some bands: range, median and the share that is negative.

    ``distinct``: the different values where there are at most 256 whole ones, else empty.
    """

    low: float
    high: float
    median: float
    negative: float
    distinct: tuple[int, ...]
    files: int

    def __str__(self) -> str:
        more = "s" if self.files > 1 else ""
        return (
            f"values {self.low:g} to {self.high:g}, median {self.median:g}, in {self.files} "
            f"file{more}"
        )


@dataclass(frozen=True, kw_only=True)
class FileEvidence:
    """Headers of some files of one kind. ``names``: of all of them, relative to ``folder``."""

    folder: Path
    names: tuple[str, ...]
    headers: tuple[RasterHeader, ...]

    @classmethod
    def of(cls, folder: Path, names: Sequence[str]) -> FileEvidence:
        """Read some headers; FormatError for a file that cannot be read."""
        headers = tuple(read_header(folder / name) for name in sampled(names, _HEADERS))
        return cls(folder=folder, names=tuple(names), headers=headers)

    @property
    def first(self) -> RasterHeader:
        """The header of the first file."""
        return self.headers[0]

    @property
    def alike(self) -> bool:
        """Whether the files have one number of bands and one dtype."""
        return len({(h.count, h.dtype) for h in self.headers}) == 1

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The different sizes (H, W)."""
        return tuple(sorted({h.shape for h in self.headers}))

    def values(self, at: Sequence[int], *, files: int = _VALUES) -> BandValues:
        """Values of the 0-based bands ``at`` in some files, the middle of large ones."""
        parts = [_valid_values(self.folder / name, at) for name in sampled(self.names, files)]
        pixels = np.concatenate(parts) if parts else np.zeros(0)
        if not pixels.size:
            return BandValues(
                low=0.0, high=0.0, median=0.0, negative=0.0, distinct=(), files=len(parts)
            )
        distinct = np.unique(pixels)
        integral = distinct.size <= 256 and bool((distinct == np.round(distinct)).all())
        return BandValues(
            low=float(distinct[0]),
            high=float(distinct[-1]),
            median=float(np.median(pixels)),
            negative=float((pixels < 0).mean()),
            distinct=tuple(int(v) for v in distinct) if integral else (),
            files=len(parts),
        )


def _valid_values(path: Path, at: Sequence[int]) -> npt.NDArray[np.float64]:
    header, pixels, mask = _middle(path, at)
    ok = valid_pixels(pixels, header.unobserved(at, None), mask)
    kept = pixels.ravel() if ok is None else pixels[np.broadcast_to(ok, pixels.shape)]
    return kept.astype(np.float64)


def _middle(path: Path, at: Sequence[int]) -> tuple[RasterHeader, Pixels, Validity | None]:
    """Bands of a small file, or of the middle of a large one."""
    if path.suffix.lower() in (*IMAGE_SUFFIXES, ".npy"):
        raster = read_raster(path)
        mask = raster.mask if raster.mask is None or len(raster.mask) == 1 else None
        return raster.header, raster.pixels[list(at)], mask
    header = read_header(path)
    height, width = header.shape
    window = Window(
        row=max(0, (height - _SIDE) // 2),
        col=max(0, (width - _SIDE) // 2),
        height=min(height, _SIDE),
        width=min(width, _SIDE),
    )
    with reading(path), open_dataset(path) as dataset:
        pixels, mask = read_window(dataset, header, at, window)
    return header, pixels, mask
