"""Chips that occur twice: the same pixels, the same picture, or one location on two dates.

Thumbnails find candidates; the chips themselves decide. Two chips are one picture when their
pixels correlate almost perfectly, and one location when the gradients of both align at no shift,
whatever season or sensor the two were taken in.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from multimae_eo.doctor.finding import Finding, Severity
from multimae_eo.doctor.scan import Array, Chip
from multimae_eo.errors import DataError
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Pixels, Sample
from multimae_eo.sources.base import Source

_CELLS = 8
_CANDIDATE, _MOST_CANDIDATES = 0.9, 200
_SAME_PICTURE, _SAME_LOCATION = 0.999, 0.3


class DuplicateScan:
    """Collects digests and thumbnails."""

    def __init__(self, modalities: ModalitySet) -> None:
        self._modalities = modalities
        self._chips: list[tuple[int, str, str]] = []
        self._digests: dict[bytes, list[int]] = {}
        self._thumbs: dict[tuple[tuple[str, ...], int], list[tuple[int, Array]]] = {}

    def add(self, chip: Chip) -> None:
        """Take in one chip."""
        position = len(self._chips)
        self._chips.append((chip.index, chip.key, chip.split))
        digest = hashlib.blake2b(digest_size=16)
        varied = False
        names: list[str] = []
        cells: list[Array] = []
        for name, pixels in sorted(chip.sample.pixels.items()):
            digest.update(name.encode() + str(pixels.shape).encode() + pixels.tobytes())
            if self._modalities[name].categorical:
                continue
            varied |= bool((pixels != pixels[:, :1, :1]).any())
            if min(pixels.shape[-2:]) >= _CELLS and chip.sample.validity(name).all():
                names.append(name)
                cells.append(_thumbnail(pixels))
        if not varied:
            return
        self._digests.setdefault(digest.digest(), []).append(position)
        if cells:
            bands = np.concatenate(cells)
            self._thumbs.setdefault((tuple(names), len(bands)), []).append((position, bands))

    def findings(self, source: Source) -> Iterator[Finding]:
        """Duplicates within and between splits; candidates are read again to decide."""
        exact = [(group[0], other) for group in self._digests.values() for other in group[1:]]
        leaks = {p for p in exact if self._split(p[0]) != self._split(p[1])}
        # All pairs across splits count, not only those with the first of a group.
        for group in self._digests.values():
            leaks |= {
                (a, b) for a in group for b in group if a < b and self._split(a) != self._split(b)
            }
        yield from self._report(sorted(leaks | set(exact)), "identical")
        pictures, locations = self._judged(source)
        yield from self._report(pictures, "same picture")
        yield from self._report(locations, "same location")

    def _split(self, position: int) -> str:
        return self._chips[position][2]

    def _candidates(self) -> list[tuple[int, int]]:
        """Pairs of similar thumbnails, the most similar first."""
        results: list[tuple[float, int, int]] = []
        for members in self._thumbs.values():
            positions = [p for p, _ in members]
            bands = np.stack([t for _, t in members])
            std = bands.std(axis=(0, 2), keepdims=True)
            flat = (bands / np.where(std > 0, std, 1.0)).reshape(len(bands), -1)
            length = np.linalg.norm(flat, axis=1, keepdims=True)
            unit = (flat / np.where(length > 0, length, 1.0)).astype(np.float32)
            for row in range(len(unit) - 1):
                likeness = unit[row + 1 :] @ unit[row]
                for other in np.flatnonzero(likeness > _CANDIDATE):
                    pair = (positions[row], positions[row + 1 + int(other)])
                    results.append((float(likeness[other]), *pair))
        results.sort(reverse=True)
        return [(a, b) for _, a, b in results]

    def _judged(self, source: Source) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Candidates that are one picture, and those that are one location."""
        pictures: list[tuple[int, int]] = []
        locations: list[tuple[int, int]] = []
        same = {p: group[0] for group in self._digests.values() for p in group}
        fresh = [(a, b) for a, b in self._candidates() if same[a] != same[b]]
        for pair in fresh[:_MOST_CANDIDATES]:
            try:
                a, b = (source.read(self._chips[p][0]) for p in pair)
            except DataError:
                continue
            alike, aligned = _likeness(a, b, self._modalities)
            if alike > _SAME_PICTURE:
                pictures.append(pair)
            elif aligned > _SAME_LOCATION:
                locations.append(pair)
        return pictures, locations

    def _report(self, pairs: list[tuple[int, int]], kind: str) -> Iterator[Finding]:
        across = [p for p in pairs if self._split(p[0]) != self._split(p[1])]
        within = [p for p in pairs if self._split(p[0]) == self._split(p[1])]
        what, remedy = _WORDS[kind]
        for group, leak in ((across, True), (within, False)):
            if not group:
                continue
            splits = Counter(" ~ ".join(sorted({self._split(a), self._split(b)} - {""}) or ["none"])
                             for a, b in group)  # fmt: skip
            chips = list(dict.fromkeys(self._chips[p][1] for pair in group for p in pair))
            first = " ~ ".join(self._chips[p][1] for p in group[0])
            yield Finding(
                check="leak" if leak else "duplicates",
                severity=_severity(kind, leak),
                where="between splits" if leak else "within a split",
                what=what + (" in different splits: scores are inflated" if leak else ""),
                evidence={
                    "pairs": len(group),
                    "splits": dict(splits.most_common(6)),
                    "example": first,
                },
                remedy=remedy if leak else "keep one of each, unless intended",
                chips=tuple(chips[:8]),
            )


_WORDS = {
    "identical": ("identical chips", "remove one of each pair from its split"),
    "same picture": ("chips that are one picture", "remove one of each pair from its split"),
    "same location": (
        "chips that show one location on two dates",
        "put all chips of a location into one split",
    ),
}


def _severity(kind: str, leak: bool) -> Severity:
    if not leak:
        return "note" if kind == "same location" else "warning"
    return "warning" if kind == "same location" else "error"


def _thumbnail(pixels: Pixels) -> Array:
    """(C, 64) cell means, each band's mean removed: what is where, not how bright."""
    count, height, width = pixels.shape
    rows, columns = height // _CELLS, width // _CELLS
    cut = pixels[:, : rows * _CELLS, : columns * _CELLS].astype(np.float32)
    cells = cut.reshape(count, _CELLS, rows, _CELLS, columns).mean(axis=(2, 4))
    flat = cells.reshape(count, -1).astype(np.float64)
    return np.asarray(flat - flat.mean(axis=1, keepdims=True))


def _likeness(a: Sample, b: Sample, modalities: ModalitySet) -> tuple[float, float]:
    """Correlation of all pixels, and the phase correlation at no shift, least over modalities.

    The first counts every modality, so that equal terrain under different pictures stays low; the
    second takes the modality that shows most structure.
    """
    alike, aligned = 1.0, 0.0
    for name, pixels in a.pixels.items():
        other = b.pixels.get(name)
        if modalities[name].categorical or other is None or other.shape != pixels.shape:
            continue
        one, two = pixels.astype(np.float64), other.astype(np.float64)
        if one.std() == 0 or two.std() == 0:
            continue
        alike = min(alike, float(np.corrcoef(one.ravel(), two.ravel())[0, 1]))
        for p, q in zip(one, two, strict=True):
            aligned = max(aligned, _phase(p, q))
    return alike, aligned


def _phase(a: Array, b: Array) -> float:
    window = np.outer(np.hanning(a.shape[0]), np.hanning(a.shape[1]))
    one, two = (np.fft.fft2((v - v.mean()) * window) for v in (a, b))
    cross = one * np.conj(two)
    return float(np.fft.ifft2(cross / np.maximum(np.abs(cross), 1e-30)).real[0, 0])
