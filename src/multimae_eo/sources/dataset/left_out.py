"""Files that the patterns of a dataset file do not match, counted in one line per pattern."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from multimae_eo.sources.dataset.chip_files import ChipFiles, Pattern
from multimae_eo.sources.dataset.labels import ChipLabels
from multimae_eo.sources.dataset.schema import DatasetSpec
from multimae_eo.sources.file_names import counted, links_outside

_SIDECARS = (
    ".aux.xml", ".ovr", ".msk", ".prj", ".tfw", ".tifw", ".wld", ".pgw", ".jgw", ".rpb", ".ini",
    ".db",
)  # fmt: skip


def left_out(
    spec: DatasetSpec,
    files: Mapping[Pattern, ChipFiles],
    keys: Sequence[str],
    labels: ChipLabels | None,
) -> Iterator[str]:
    """Lines such as ``{id}.tif leaves out 7 other files (.png 5, .txt 2), first x.png``."""
    groups = dict(files)
    if labels is not None and spec.labels and spec.labels.mask:
        groups[spec.labels.mask] = labels.masks
    taken = {path for group in groups.values() for path in group.all_paths}
    tables = {t for t in (spec.table, spec.split_table, spec.file) if t is not None}
    seen: set[str] = set()
    for pattern, group in groups.items():
        others = [
            name
            for name in group.others
            if name not in taken
            and name not in seen
            and not name.lower().endswith(_SIDECARS)
            and not any((spec.root / name) == t or t.name == name for t in tables)
        ]
        seen.update(others)
        if others:
            yield f"{pattern.text} leaves out {counted(others)}, first {others[0]}"
    yield from _without_chip(spec, groups, set(keys))


def outward_links(
    spec: DatasetSpec, files: Mapping[Pattern, ChipFiles], labels: ChipLabels | None
) -> Iterator[str]:
    """Lines such as ``{id}.tif: 2 files are links that lead outside data, first a.tif -> /x.tif``:
    with them a data set of others reads any file that its reader may read."""
    groups = dict(files)
    if labels is not None and spec.labels and spec.labels.mask:
        groups[spec.labels.mask] = labels.masks
    named = {pattern.text: list(group.all_paths) for pattern, group in groups.items()}
    tables = [t for t in (spec.table, spec.split_table) if t is not None]
    named |= {table.name: [str(table)] for table in tables}
    for text, names in named.items():
        if links := list(links_outside(spec.root, names)):
            name, target = links[0]
            yield (
                f"{text}: {len(links)} of its files are links that lead outside {spec.root}, "
                f"first {name} -> {target}"
            )


def _without_chip(
    spec: DatasetSpec, groups: Mapping[Pattern, ChipFiles], keys: Collection[str]
) -> Iterator[str]:
    for pattern, group in groups.items():
        lone = sorted(set(group) - set(keys) - spec.exclude)
        if lone:
            first = group[lone[0]]
            yield f"{pattern.text}: {len(lone)} of its files belong to no chip, first {first}"
    if spec.exclude:
        yield f"`exclude:` leaves out {len(spec.exclude)} chips"
