"""The data doctor: inspects a source's contents and finds its faults before training.

>>> diagnosis = inspect(open_source("dataset.yaml"))  # doctest: +SKIP
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from multimae_eo.doctor.alignment import AlignmentScan
from multimae_eo.doctor.bands import StackScan, copy_findings
from multimae_eo.doctor.classes import ClassScan
from multimae_eo.doctor.dates import DateScan
from multimae_eo.doctor.duplicates import DuplicateScan
from multimae_eo.doctor.finding import Diagnosis, Finding, Severity, worst_first
from multimae_eo.doctor.gaps import gap_findings
from multimae_eo.doctor.levels import level_findings
from multimae_eo.doctor.locations import LocationScan
from multimae_eo.doctor.order import order_findings
from multimae_eo.doctor.scale import scale_findings
from multimae_eo.doctor.scan import ChipReader, choose
from multimae_eo.doctor.values import ValueScan
from multimae_eo.errors import ConfigError
from multimae_eo.sources.base import Source

__all__ = ["CHIPS", "Diagnosis", "Finding", "Severity", "inspect"]

CHIPS = 2000
"""Chips examined by default; a larger source is sampled evenly within each split."""


def inspect(
    source: Source, *, chips: int = CHIPS, progress: Callable[[int, int], None] | None = None
) -> Diagnosis:
    """Examine a source in one pass over at most ``chips`` of its chips.

    Chips that cannot be read become findings. ``progress``: called with (done, total). Raises
    ConfigError for ``chips`` < 1, and where a reader lacks a library.
    """
    if chips < 1:
        raise ConfigError(f"inspect: chips must be 1 or more, got {chips}")
    indices = choose(source, chips)
    reader = ChipReader(source, indices)
    values = ValueScan(source.modalities, len(indices))
    stacks = StackScan(source.modalities)
    classes = ClassScan(source.modalities, source.class_names)
    alignment = AlignmentScan(source.modalities, len(indices))
    locations = LocationScan(source.modalities)
    duplicates = DuplicateScan(source.modalities)
    dates = DateScan()
    present: Counter[str] = Counter()
    for done, chip in enumerate(reader.chips(), start=1):
        if chip is not None:
            present.update(chip.sample.pixels.keys())
            for scan in (values, stacks, classes, alignment, locations, duplicates, dates):
                scan.add(chip)
        if progress is not None:
            progress(done, len(indices))
    results = list(stacks.results.values())
    scales = list(scale_findings(values.results))
    # Levels are recognised by the darkest pixels, which a wrong scale makes meaningless.
    scaled_rightly = not any(f.severity == "error" for f in scales)
    findings = [
        *reader.findings(),
        *_opening_remarks(source),
        *scales,
        *(level_findings(values.results) if scaled_rightly else ()),
        *gap_findings(values.results),
        *copy_findings(results),
        *order_findings(results),
        *classes.findings(),
        *alignment.findings(),
        *duplicates.findings(source),
        *locations.findings(),
        *dates.findings(),
        *_presence(source, present, reader),
    ]
    return Diagnosis(
        source=source.name,
        chips=len(source),
        examined=len(indices),
        splits=Counter(source.split_of),
        present={n: present[n] for n in source.modalities},
        bands=tuple(b for v in values.results.values() for b in v.summaries()),
        classes=tuple(classes.summaries()),
        findings=worst_first(findings),
    )


def _opening_remarks(source: Source) -> list[Finding]:
    """What the source reports when it is opened."""
    links = _remarks(
        source.outward_links,
        check="links",
        severity="warning",
        remedy="nothing to do if they are yours; of others' data, copy the files in",
    )
    return links + _remarks(
        source.notes,
        check="left-out",
        severity="note",
        remedy="nothing to do if they are no chips; else mend the pattern",
    )


def _remarks(texts: Sequence[str], *, check: str, severity: Severity, remedy: str) -> list[Finding]:
    """A finding for each text that the source gives when it is opened."""
    return [
        Finding(check=check, severity=severity, where="", what=text, evidence={}, remedy=remedy)
        for text in texts
    ]


def _presence(source: Source, present: Counter[str], reader: ChipReader) -> list[Finding]:
    """Modalities that some or all chips lack, other than by a reader's refusal."""
    refused = Counter(r.modality for r in reader.refusals)
    expected = len(reader.indices) - refused[""]
    missing = {n: expected - refused[n] - present[n] for n in source.modalities}
    return [
        Finding(
            check="absent",
            severity="note" if present[name] else "error",
            where=name,
            what="chips without this modality" if present[name] else "no chip has this modality",
            evidence={"chips": count, "of": expected},
            remedy="nothing to do: chips may lack modalities"
            if present[name]
            else "check its `path:` and its nodata value, or leave it out",
        )
        for name, count in missing.items()
        if count > 0
    ]
