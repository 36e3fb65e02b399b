"""Class maps and labels: ids of no class, traces of interpolation, balance over splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from multimae_eo.doctor.finding import ClassSummary, Finding, percent
from multimae_eo.doctor.scan import Bool, Chip
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sample import Pixels

_BETWEEN = 0.75
_IMBALANCE = 20.0


@dataclass
class ClassMapCounts:
    """One class map over the examined chips.

    ``pixels``: per id. ``holding``: chips with an id of no class. ``thin``: runs of
    one pixel between two other classes; ``between``: those whose id lies between the two ids;
    ``borders``: pairs of neighbours of different class.
    """

    modality: Modality
    pixels: Counter[float] = field(default_factory=Counter)
    holding: dict[float, list[str]] = field(default_factory=dict)
    thin: int = 0
    between: int = 0
    borders: int = 0
    chips: int = 0
    single: list[str] = field(default_factory=list)

    def add(self, chip: Chip, ids: Pixels, ok: Bool) -> None:
        """Take in one chip's ids, (H, W)."""
        values, counts = np.unique(ids[ok], return_counts=True)
        self.chips += 1
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.pixels[float(value)] += count
            if value not in self.modality.class_ids:
                self.holding.setdefault(float(value), []).append(chip.key)
        if len(values) == 1:
            self.single.append(chip.key)
        for grid, valid in ((ids, ok), (ids.T, ok.T)):
            a, c, b = grid[:, :-2], grid[:, 1:-1], grid[:, 2:]
            observed = valid[:, :-2] & valid[:, 1:-1] & valid[:, 2:]
            thin = observed & (a != c) & (b != c) & (a != b)
            self.thin += int(thin.sum())
            self.between += int((thin & ((a < c) == (c < b))).sum())
            self.borders += int((observed & (a != c)).sum())

    def findings(self) -> Iterator[Finding]:
        """What is wrong with this class map."""
        if self.holding:
            yield self._outside()
        # By chance the middle id of three different ones lies between the others once in three.
        if self.borders > 200 and self.thin > 0.1 * self.borders:
            share = self.between / self.thin
            if share > _BETWEEN:
                yield Finding(
                    check="interpolated-classes",
                    severity="error",
                    where=self.modality.name,
                    what="ids that lie between their neighbours' ids line the borders: the class "
                    "map was interpolated",
                    evidence={
                        "one-pixel classes": percent(self.thin / self.borders) + " of borders",
                        "of these between": percent(share),
                        "expected": "about 33 %",
                    },
                    remedy="resample class maps with nearest neighbour, from the original",
                )
        if self.chips > 1 and len(self.single) == self.chips and len(self.pixels) == 1:
            yield Finding(
                check="constant",
                severity="warning",
                where=self.modality.name,
                what="one class everywhere",
                evidence={"id": next(iter(self.pixels)), "chips": self.chips},
                remedy="leave the modality out; it carries nothing",
            )

    def _outside(self) -> Finding:
        total = sum(self.pixels.values())
        strange = {i: self.pixels[i] for i in self.holding}
        fractions = any(i % 1 for i in strange)
        chips = list(dict.fromkeys(k for keys in self.holding.values() for k in keys))
        return Finding(
            check="class-ids",
            severity="error",
            where=self.modality.name,
            what="class ids that are no whole numbers: the class map was interpolated"
            if fractions
            else "class ids of no known class",
            evidence={
                "ids": sorted(strange)[:12],
                "pixels": percent(sum(strange.values()) / total),
                "chips": len(chips),
            },
            remedy="resample class maps with nearest neighbour, from the original"
            if fractions
            else "add the ids to `legend:`, or to `nodata:`",
            chips=tuple(chips[:8]),
        )


class ClassScan:
    """Collects class maps and labels."""

    def __init__(self, modalities: ModalitySet, class_names: Sequence[str]) -> None:
        self._modalities = modalities
        self._names = tuple(class_names)
        self.maps: dict[str, ClassMapCounts] = {}
        self.labels: dict[str, Counter[int]] = {}
        self._unlabelled: list[str] = []
        self._labelled = 0
        self._by_pixel = False

    def add(self, chip: Chip) -> None:
        """Take in one chip."""
        for name, pixels in chip.sample.pixels.items():
            modality = self._modalities[name]
            if modality.categorical:
                ok = chip.sample.validity(name)[0]
                self.maps.setdefault(name, ClassMapCounts(modality)).add(chip, pixels[0], ok)
        if chip.sample.label is None:
            self._unlabelled.append(chip.key)
            return
        self._labelled += 1
        results = self.labels.setdefault(chip.split, Counter())
        results.update(self._classes_of(chip.sample.label))

    def _classes_of(self, label: object) -> dict[int, int]:
        """Class index to count: chips, or pixels of a label map."""
        array = np.asarray(label)
        if array.dtype.kind == "f" and array.ndim != 1:
            return {}  # values
        if array.ndim == 2:
            self._by_pixel = True
            values, counts = np.unique(array[array >= 0], return_counts=True)
            return dict(zip(values.tolist(), counts.tolist(), strict=True))
        if array.ndim == 1:
            return {int(i): 1 for i in np.flatnonzero(array)}
        return {int(array): 1}

    def findings(self) -> Iterator[Finding]:
        """Findings about every class map, then about labels."""
        for results in self.maps.values():
            yield from results.findings()
        yield from self._label_findings()

    def summaries(self) -> list[ClassSummary]:
        """Shares of the classes of every class map, and of the labels."""
        rows = []
        for name, results in self.maps.items():
            every = max(sum(results.pixels.values()), 1)
            for entry in results.modality.classes:
                share = results.pixels[float(entry.id)] / every
                rows.append(ClassSummary(modality=name, name=entry.name, share=share))
        total: Counter[int] = Counter()
        for counts in self.labels.values():
            total.update(counts)
        every = max(sum(total.values()), 1)
        for index in range(max([len(self._names), *(i + 1 for i in total)])):
            name = self._name(index)
            rows.append(ClassSummary(modality="labels", name=name, share=total[index] / every))
        return rows

    def _label_findings(self) -> Iterator[Finding]:
        if self._labelled and self._unlabelled:
            yield Finding(
                check="labels",
                severity="warning",
                what="chips without a label",
                evidence={"chips": len(self._unlabelled), "labelled": self._labelled},
                remedy="complete the table, or exclude them",
                chips=tuple(self._unlabelled[:8]),
            )
        total: Counter[int] = Counter()
        for counts in self.labels.values():
            total.update(counts)
        if not total:
            return
        yield from self._balance(total)
        for split, counts in self.labels.items():
            missing = [i for i in range(len(self._names)) if i in total and not counts[i]]
            if missing:
                yield Finding(
                    check="class-balance",
                    severity="warning" if split == "train" else "note",
                    where=f"labels, split {split or '(none)'}",
                    what="classes that this split lacks",
                    evidence={"classes": ", ".join(self._name(i) for i in missing[:12])},
                    remedy="draw the splits class by class",
                )

    def _balance(self, total: Counter[int]) -> Iterator[Finding]:
        what = "pixels" if self._by_pixel else "chips"
        never = [n for i, n in enumerate(self._names) if not total[i]]
        if never:
            yield Finding(
                check="class-balance",
                severity="warning",
                where="labels",
                what="classes that no examined chip has",
                evidence={"classes": ", ".join(never[:12])},
                remedy="remove them from `classes:`, or check how ids map to classes",
            )
        (most, top), (least, bottom) = total.most_common(1)[0], total.most_common()[-1]
        ratio = top / bottom
        every = sum(total.values())
        yield Finding(
            check="class-balance",
            severity="warning" if ratio > _IMBALANCE or len(total) == 1 else "note",
            where="labels",
            what=_balance_text(len(total), ratio, self._name(most), self._name(least), what),
            evidence={
                f"largest, share of {what}": percent(top / every),
                "smallest": percent(bottom / every),
                "classes": len(total),
            },
            remedy="report per-class scores; weight the loss or sample rare classes more often"
            if ratio > _IMBALANCE
            else "nothing to do",
        )

    def _name(self, index: int) -> str:
        return self._names[index] if index < len(self._names) else str(index)


def _balance_text(classes: int, ratio: float, most: str, least: str, what: str) -> str:
    if classes == 1:
        return f"one class only: {most}"
    if ratio < 1.5:
        return f"{classes} balanced classes"
    return f"{most} has {ratio:.3g} times the {what} of {least}"
