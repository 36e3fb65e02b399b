"""Where chips lie: neighbours in other splits, coordinate systems and pixel sizes that differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from multimae_eo.doctor.finding import Finding
from multimae_eo.doctor.scan import Chip
from multimae_eo.geo import Geometry
from multimae_eo.modality import ModalitySet

_METRES_PER_DEGREE = 111_320.0
_GSD_TOLERANCE = 1.3


@dataclass(frozen=True, kw_only=True)
class _Footprint:
    key: str
    split: str
    geometry: Geometry
    pixel: float


@dataclass
class _Meeting:
    """Pairs of chips of two splits that overlap or touch."""

    pairs: list[tuple[str, str]] = field(default_factory=list)
    largest: float = 0.0


class LocationScan:
    """Collects footprints and pixel sizes."""

    def __init__(self, modalities: ModalitySet) -> None:
        self._modalities = modalities
        self._footprints: list[_Footprint] = []
        self._nowhere: list[str] = []
        self._gsd: dict[str, list[tuple[str, float]]] = {}

    def add(self, chip: Chip) -> None:
        """Take in one chip."""
        geometry = chip.sample.geometry
        if geometry is None:
            self._nowhere.append(chip.key)
            return
        left, _, right, _ = geometry.bounds
        widths = [p.shape[-1] for p in chip.sample.pixels.values()]
        if not widths:
            return
        self._footprints.append(
            _Footprint(
                key=chip.key,
                split=chip.split,
                geometry=geometry,
                pixel=(right - left) / max(widths),
            )
        )
        ground = _metres(geometry)
        for name, pixels in chip.sample.pixels.items():
            self._gsd.setdefault(name, []).append((chip.key, ground / pixels.shape[-1]))

    def findings(self) -> Iterator[Finding]:
        """Coordinate systems, pixel sizes, then chips that lie on one another."""
        yield from self._systems()
        yield from self._resolutions()
        yield from self._meetings()

    def _systems(self) -> Iterator[Finding]:
        kinds = Counter(_is_geographic(p.geometry) for p in self._footprints)
        systems = Counter(p.geometry.crs[:40] for p in self._footprints)
        if len(kinds) > 1:
            rare = kinds.most_common()[-1][0]
            yield Finding(
                check="crs",
                severity="warning",
                what="some chips are in degrees, some in metres",
                evidence=dict(systems.most_common(6)),
                remedy="reproject them to one kind; a degree of longitude shrinks with latitude",
                chips=tuple(f.key for f in self._footprints if _is_geographic(f.geometry) is rare)[
                    :8
                ],
            )
        elif len(systems) > 1:
            yield Finding(
                check="crs",
                severity="note",
                what=f"chips in {len(systems)} coordinate systems",
                evidence=dict(systems.most_common(6)),
                remedy="nothing to do for chips; overlap is judged within each system only",
            )
        if self._footprints and self._nowhere:
            yield Finding(
                check="crs",
                severity="warning",
                what="chips without georeferencing among others that have it",
                evidence={"chips": len(self._nowhere), "with": len(self._footprints)},
                remedy="restore it: spatial leaks cannot be seen without",
                chips=tuple(self._nowhere[:8]),
            )

    def _resolutions(self) -> Iterator[Finding]:
        for name, rows in self._gsd.items():
            sizes = sorted(size for _, size in rows)
            middle = sizes[len(sizes) // 2]
            declared = self._modalities[name].gsd_m
            odd = [k for k, size in rows if not _agree(size, middle)]
            if odd:
                yield Finding(
                    check="gsd",
                    severity="warning",
                    where=name,
                    what="chips of different pixel size on the ground",
                    evidence={
                        "metres, smallest": round(sizes[0], 3),
                        "most": round(middle, 3),
                        "largest": round(sizes[-1], 3),
                        "chips": len(odd),
                    },
                    remedy="resample them to one pixel size, or make a source of each",
                    chips=tuple(odd[:8]),
                )
            if declared and not _agree(middle, declared):
                native = [b.gsd_m for b in self._modalities[name].bands if b.gsd_m]
                # Bands of a coarser sensor on a finer grid are usual; the other way is not.
                usual = declared in native and middle < declared
                yield Finding(
                    check="gsd",
                    severity="note" if usual else "warning",
                    where=name,
                    what=f"bands of {declared:g} m on a grid of {middle:.3g} m"
                    if usual
                    else f"declared {declared:g} m per pixel, the files have {middle:.3g} m",
                    evidence={"declared": declared, "files": round(middle, 3)},
                    remedy=f"`gsd: {middle:.3g}`" + ("" if usual else ", or mend the files"),
                )

    def _meetings(self) -> Iterator[Finding]:
        overlaps: dict[tuple[str, str], _Meeting] = {}
        touches: dict[tuple[str, str], _Meeting] = {}
        for a, b, share in _neighbours(self._footprints):
            splits = (min(a.split, b.split), max(a.split, b.split))
            group = overlaps if share > 0 else touches
            meeting = group.setdefault(splits, _Meeting())
            meeting.pairs.append((a.key, b.key))
            meeting.largest = max(meeting.largest, share)
        for (one, two), meeting in overlaps.items():
            within = one == two
            yield Finding(
                check="spatial-leak" if not within else "overlap",
                severity="note" if within else "error",
                where=f"split {one or '(none)'}" if within else f"splits {one} and {two}",
                what="chips that show the same ground"
                + ("" if within else ": scores on one split are inflated by the other"),
                evidence={
                    "pairs": len(meeting.pairs),
                    "largest overlap": f"{100 * meeting.largest:.3g} %",
                    "example": " ~ ".join(meeting.pairs[0]),
                },
                remedy="fine within a split, if intended"
                if within
                else "move all chips of one location into one split",
                chips=_names(meeting),
            )
        for (one, two), meeting in touches.items():
            if one != two:
                yield Finding(
                    check="spatial-leak",
                    severity="note",
                    where=f"splits {one} and {two}",
                    what="chips of different splits that touch",
                    evidence={
                        "pairs": len(meeting.pairs),
                        "example": " ~ ".join(meeting.pairs[0]),
                    },
                    remedy="leave a gap between splits: what touches looks alike",
                    chips=_names(meeting),
                )


def _names(meeting: _Meeting) -> tuple[str, ...]:
    return tuple(dict.fromkeys(k for pair in meeting.pairs for k in pair))[:8]


def _is_geographic(geometry: Geometry) -> bool:
    """Whether the bounds are degrees. Projected chips near a zero of both axes do not exist."""
    left, bottom, right, top = geometry.bounds
    small = max(right - left, top - bottom) < 10.0
    return small and max(abs(left), abs(right)) <= 360 and max(abs(bottom), abs(top)) <= 90


def _metres(geometry: Geometry) -> float:
    """A footprint's mean of width and height in metres, approximately."""
    left, bottom, right, top = geometry.bounds
    width, height = right - left, top - bottom
    if _is_geographic(geometry):
        shrink = math.cos(math.radians((bottom + top) / 2))
        return (width * shrink + height) / 2 * _METRES_PER_DEGREE
    return (width + height) / 2


def _agree(a: float, b: float) -> bool:
    return max(a, b) < _GSD_TOLERANCE * min(a, b)


def _neighbours(locations: Sequence[_Footprint]) -> Iterator[tuple[_Footprint, _Footprint, float]]:
    """Pairs that overlap (share of the smaller one's area) or touch within a pixel (share 0)."""
    by_system: dict[str, list[_Footprint]] = {}
    for footprint in locations:
        by_system.setdefault(footprint.geometry.crs, []).append(footprint)
    for members in by_system.values():
        members.sort(key=lambda p: p.geometry.bounds[0])
        active: list[_Footprint] = []
        for footprint in members:
            left, bottom, right, top = footprint.geometry.bounds
            pixel = footprint.pixel
            active = [p for p in active if p.geometry.bounds[2] > left - pixel]
            for other in active:
                _, low, far, high = other.geometry.bounds
                wide = min(far, right) - left
                tall = min(high, top) - max(low, bottom)
                if wide > pixel and tall > pixel:
                    smaller = min(_area(footprint), _area(other))
                    yield other, footprint, wide * tall / smaller
                elif wide > -pixel and tall > -pixel:
                    yield other, footprint, 0.0
            active.append(footprint)


def _area(footprint: _Footprint) -> float:
    left, bottom, right, top = footprint.geometry.bounds
    return (right - left) * (top - bottom)
