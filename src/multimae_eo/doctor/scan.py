"""One pass over a source's chips. What cannot be read becomes a finding, never an abort."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from multimae_eo.doctor.finding import Finding
from multimae_eo.errors import ClassMapError, DataError
from multimae_eo.sample import Dates, Sample
from multimae_eo.sources.base import Source

Array = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A chip that was read, of each series its clearest date. ``index``: its position in the
    source. ``dates[m]``: all dates of the series."""

    index: int
    split: str
    sample: Sample
    dates: Mapping[str, Dates] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The chip's name in its source."""
        return self.sample.key


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A chip, or one modality of it, that the reader refused."""

    key: str
    modality: str
    unknown_id: bool
    message: str


@dataclass
class ChipReader:
    """Reads chosen chips; ``refusals`` fills up on the way."""

    source: Source
    indices: Sequence[int]
    refusals: list[Refusal] = field(default_factory=list)

    def chips(self) -> Iterator[Chip | None]:
        """Each chosen chip; None for one of which nothing could be read."""
        for index in self.indices:
            try:
                sample: Sample | None = self.source.read(index)
            except DataError as error:
                sample = self._salvage(index, error)
            if sample is None:
                yield None
            else:
                yield Chip(
                    index=index,
                    split=self.source.split_of[index],
                    sample=sample.clearest(),
                    dates=sample.dates,
                )

    def _salvage(self, index: int, first: DataError) -> Sample | None:
        """What of a chip can be read, modality by modality."""
        key = self.source.keys[index]
        parts: list[Sample] = []
        errors: dict[str, DataError] = {}
        for name in self.source.modalities:
            try:
                parts.append(self.source.read(index, [name]))
            except DataError as error:
                errors[name] = error
        # One and the same message for all: the label or the whole chip, not a modality.
        if len(self.source.modalities) > 1 and not parts and len(_texts(errors)) == 1:
            errors = {"": first}
        for name, refused in (errors or {"": first}).items():
            unknown_id = isinstance(refused, ClassMapError)
            self.refusals.append(
                Refusal(key=key, modality=name, unknown_id=unknown_id, message=str(refused))
            )
        if not any(part.pixels for part in parts):
            return None
        return replace(
            parts[0],
            pixels={n: p for part in parts for n, p in part.pixels.items()},
            valid={n: v for part in parts for n, v in part.valid.items()},
            calibration={n: c for part in parts for n, c in part.calibration.items()},
            dates={n: d for part in parts for n, d in part.dates.items()},
        )

    def findings(self) -> Iterator[Finding]:
        """One finding per modality and kind of refusal."""
        groups: dict[tuple[str, bool], list[Refusal]] = {}
        for refusal in self.refusals:
            groups.setdefault((refusal.modality, refusal.unknown_id), []).append(refusal)
        for (modality, unknown_id), members in groups.items():
            messages = list(dict.fromkeys(r.message for r in members))
            chips = list(dict.fromkeys(r.key for r in members))
            yield Finding(
                check="class-ids" if unknown_id else "unreadable",
                severity="error",
                where=modality,
                what="class ids outside the class map"
                if unknown_id
                else "chips that cannot be read",
                evidence={
                    "chips refused": len(chips),
                    "of": len(self.indices),
                    "error": " | ".join(messages[:3]),
                },
                remedy=_UNKNOWN_ID_REMEDY
                if unknown_id
                else "mend or restore the files, or list the chips under `exclude:`",
                chips=tuple(chips[:8]),
            )


_UNKNOWN_ID_REMEDY = (
    "add the ids to `legend:`, or to `nodata:` or `ignore:`; where ids differ from chip to chip "
    "or are fractions, the map was interpolated: make it again with nearest neighbour"
)


def _texts(errors: dict[str, DataError]) -> set[str]:
    return {str(e) for e in errors.values()}


def choose(source: Source, most: int) -> list[int]:
    """At most ``most`` chips, evenly spaced within each split, every split in proportion."""
    total = len(source)
    if total <= most:
        return list(range(total))
    by_split: dict[str, list[int]] = {}
    for index, split in enumerate(source.split_of):
        by_split.setdefault(split, []).append(index)
    chosen: list[int] = []
    for members in by_split.values():
        share = max(1, round(most * len(members) / total))
        at = np.linspace(0, len(members) - 1, min(share, len(members)))
        chosen += [members[round(float(a))] for a in at]
    return sorted(set(chosen))
