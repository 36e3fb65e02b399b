"""Misregistration: by how many pixels one modality is shifted against another.

Edges of fields, shores and roads show in most sensors. The phase correlation of gradient
magnitudes (Kuglin & Hines 1975) is averaged over chips, so that what chips have in common, the
shift, adds up and their contents do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from multimae_eo.doctor.finding import Finding
from multimae_eo.doctor.scan import Array, Chip
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sample import Pixels

_CHIPS = 120
_LEAST_SIDE = 24
_SIGNIFICANT = 11.0
"""Peak height in standard deviations of the surface; chance reaches 6 to 8 on real data."""
_STANDS_OUT = 2.0
"""Relief shades what radar and optical sensors see, to one side: the peak of a true shift leaves
little where none would be."""
Complex = npt.NDArray[np.complex128]


@dataclass
class _Pair:
    spectrum: Complex
    chips: int
    gsd_m: float | None


@dataclass(frozen=True, kw_only=True)
class Shift:
    """``other`` lies (down, right) pixels away from ``anchor``, on the coarser of their grids.

    ``height``: the correlation peak in standard deviations. ``at_rest``: the surface's value there
    for no shift, in the same measure.
    """

    anchor: str
    other: str
    down: int
    right: int
    height: float
    at_rest: float
    chips: int
    gsd_m: float | None

    @property
    def distance(self) -> float:
        """Length in pixels."""
        return float(np.hypot(self.down, self.right))

    @property
    def pair(self) -> tuple[str, str]:
        """The two modalities."""
        return (self.anchor, self.other)

    @property
    def reversed(self) -> Shift:
        """The same shift, of the anchor against the other modality."""
        return replace(
            self, anchor=self.other, other=self.anchor, down=-self.down, right=-self.right
        )

    @property
    def sure(self) -> bool:
        """Whether the peak exceeds the noise and the correlation at no shift."""
        return self.height > _SIGNIFICANT and (
            self.distance == 0 or self.height > _STANDS_OUT * max(self.at_rest, 0.0)
        )


class AlignmentScan:
    """Collects cross spectra of every two modalities."""

    def __init__(self, modalities: ModalitySet, chips: int) -> None:
        self._modalities = modalities
        self._step = max(1, chips // _CHIPS)
        self._seen = 0
        self._pairs: dict[tuple[str, str, int, int], _Pair] = {}

    def add(self, chip: Chip) -> None:
        """Take in one chip; every n-th where there are many."""
        self._seen += 1
        if (self._seen - 1) % self._step:
            return
        edges = {
            name: _edges(chip, self._modalities[name], pixels)
            for name, pixels in chip.sample.pixels.items()
            if min(pixels.shape[-2:]) >= _LEAST_SIDE
        }
        spectra: dict[tuple[str, tuple[int, ...]], Complex] = {}
        for a, b in combinations([n for n, e in edges.items() if e.any()], 2):
            shape = _common(edges[a].shape, edges[b].shape)
            if shape is None:
                continue
            for name in (a, b):
                if (name, shape) not in spectra:
                    spectra[(name, shape)] = _spectrum(_reduced(edges[name], shape))
            cross = spectra[(b, shape)] * np.conj(spectra[(a, shape)])
            cross = cross / np.maximum(np.abs(cross), 1e-30)
            pair = self._pairs.get((a, b, *shape))
            if pair is None:
                coarse = max(self._modalities[n].gsd_m or 0.0 for n in (a, b))
                self._pairs[(a, b, *shape)] = _Pair(cross, 1, coarse or None)
            else:
                pair.spectrum += cross
                pair.chips += 1

    def shifts(self) -> list[Shift]:
        """The estimated shift of every pair of modalities."""
        results = []
        for (a, b, height, width), pair in self._pairs.items():
            surface = np.fft.ifft2(pair.spectrum / pair.chips).real
            surface = surface / surface.std()
            down, right = np.unravel_index(int(surface.argmax()), surface.shape)
            results.append(
                Shift(
                    anchor=a,
                    other=b,
                    down=int((down + height // 2) % height - height // 2),
                    right=int((right + width // 2) % width - width // 2),
                    height=float(surface.max()),
                    at_rest=float(surface[0, 0]),
                    chips=pair.chips,
                    gsd_m=pair.gsd_m,
                )
            )
        return results

    def findings(self) -> Iterator[Finding]:
        """One finding per modality that is certainly shifted, from its most significant pair."""
        sure = sorted((s for s in self.shifts() if s.sure), key=lambda s: -s.height)
        moved = [s for s in sure if s.distance > 0]
        rest = Counter(n for s in sure if s.distance == 0 for n in s.pair)
        while moved:
            blame = Counter(n for s in moved for n in s.pair)
            # The one at odds with most others, and in place with fewest, is the one that moved.
            guilty = max(blame, key=lambda n: (blame[n], -rest[n]))
            mine = [s for s in moved if guilty in s.pair]
            moved = [s for s in moved if guilty not in s.pair]
            yield _finding(guilty, mine, aligned=rest[guilty])


def _finding(guilty: str, pairs: list[Shift], *, aligned: int) -> Finding:
    first = pairs[0] if pairs[0].other == guilty else pairs[0].reversed
    others = [next(n for n in s.pair if n != guilty) for s in pairs]
    metres = None if first.gsd_m is None else round(first.distance * first.gsd_m, 1)
    return Finding(
        check="misregistration",
        severity="warning" if first.distance >= 1.5 and aligned < len(pairs) else "note",
        where=guilty,
        what=f"is shifted {_direction(first)} against {first.anchor}",
        evidence={
            "pixels (down, right)": [first.down, first.right],
            "metres": metres,
            "peak (σ)": round(first.height, 1),
            "at no shift (σ)": round(first.at_rest, 1),
            "chips": first.chips,
            "also against": ", ".join(others[1:]) or "none",
            "pairs in place": aligned,
        },
        remedy="check the georeferencing and the resampling (half-pixel and corner conventions); "
        "compare the mosaics side by side",
    )


def _direction(shift: Shift) -> str:
    parts = []
    if shift.down:
        parts.append(f"{abs(shift.down)} px {'down' if shift.down > 0 else 'up'}")
    if shift.right:
        parts.append(f"{abs(shift.right)} px {'right' if shift.right > 0 else 'left'}")
    return " and ".join(parts)


def _edges(chip: Chip, modality: Modality, pixels: Pixels) -> Array:
    """Gradient magnitude summed over bands, or class borders; (H, W). Nothing at nodata."""
    ok = chip.sample.validity(modality.name).all(axis=0)
    if modality.categorical:
        edges = np.zeros(pixels.shape[-2:])
        down, right = pixels[0, 1:] != pixels[0, :-1], pixels[0, :, 1:] != pixels[0, :, :-1]
        # Half to either side, so that borders are centred like gradients.
        edges[1:] += down
        edges[:-1] += down
        edges[:, 1:] += right
        edges[:, :-1] += right
    else:
        values = pixels.astype(np.float64)
        std = values.std(axis=(1, 2), keepdims=True)
        values /= np.where(std > 0, std, 1.0)
        down, right = np.gradient(values, axis=(1, 2))
        edges = np.hypot(down, right).sum(axis=0)
    if not ok.all():
        blocked = ~ok
        for axis in (0, 1):
            blocked = blocked | np.roll(blocked, 1, axis) | np.roll(blocked, -1, axis)
        edges[blocked] = 0.0
    return edges


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, int] | None:
    """The coarser of two grids, where the finer one divides into it."""
    small, large = sorted((a, b))
    if large[0] % small[0] or large[1] % small[1]:
        return None
    return (small[0], small[1])


def _reduced(edges: Array, shape: tuple[int, int]) -> Array:
    rows, columns = edges.shape[0] // shape[0], edges.shape[1] // shape[1]
    return np.asarray(edges.reshape(shape[0], rows, shape[1], columns).mean(axis=(1, 3)))


def _spectrum(edges: Array) -> Complex:
    window = np.outer(np.hanning(edges.shape[0]), np.hanning(edges.shape[1]))
    return np.asarray(np.fft.fft2((edges - edges.mean()) * window), np.complex128)
