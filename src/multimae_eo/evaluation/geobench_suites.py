"""The benchmarks that ``benchmark`` runs: data sets, their paths, and groups to aggregate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multimae_eo.errors import ConfigError
from multimae_eo.sources.base import Source
from multimae_eo.sources.geobench.bands import DATASETS, GeoBenchData, find_dataset
from multimae_eo.sources.geobench.source import GeoBenchSource
from multimae_eo.sources.geobench2.records import DATASETS2, GROUPS, find_dataset2
from multimae_eo.sources.geobench2.source import SUFFIX, GeoBench2Source

SuiteName = Literal["geobench", "geobench2"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkSuite:
    """A benchmark. ``groups``: names of the data sets whose scores are aggregated, by group.

    ``find``: a data set by its name; raises ConfigError. ``paths``: where a data set is in the
    benchmark's folder; empty where it is not there. ``open_dataset``: a data set's source, from the
    folder, its name and a partition.
    """

    title: str
    datasets: Mapping[str, GeoBenchData]
    groups: Mapping[str, tuple[str, ...]]
    find: Callable[[str], GeoBenchData]
    paths: Callable[[Path, str], list[Path]]
    open_dataset: Callable[[Path, str, str], Source]


def _geobench_paths(root: Path, name: str) -> list[Path]:
    names = dict.fromkeys((name, *DATASETS[name].folders))
    return [p for n in names for p in (root / n, *root.glob(f"*_v*/{n}")) if p.is_dir()]


def _open_geobench(root: Path, name: str, partition: str) -> Source:
    paths = _geobench_paths(root, name)
    return GeoBenchSource(paths[0] if paths else root / name, partition=partition)


def _geobench2_paths(root: Path, name: str) -> list[Path]:
    names = (name, *DATASETS2[name].folders)
    files = (f for n in names for f in root.glob(f"geobench_{n}*{SUFFIX}"))
    folders = (root / n for n in names if next((root / n).glob(f"*{SUFFIX}"), None))
    return [*folders, *sorted(files)]


def _open_geobench2(root: Path, name: str, partition: str) -> Source:
    if partition != "default":
        raise ConfigError(
            f"{name}: GEO-Bench-2 has no partitions, got {partition!r}; leave out --partitions"
        )
    paths = _geobench2_paths(root, name)
    return GeoBench2Source(paths[0] if paths else root / name)


def _folders_of_geobench() -> Mapping[str, tuple[str, ...]]:
    kinds = dict.fromkeys(d.benchmark for d in DATASETS.values())
    return {k: tuple(d.name for d in DATASETS.values() if d.benchmark == k) for k in kinds}


SUITES: Mapping[SuiteName, BenchmarkSuite] = {
    "geobench": BenchmarkSuite(
        title="GEO-Bench",
        datasets=DATASETS,
        groups=_folders_of_geobench(),
        find=find_dataset,
        paths=_geobench_paths,
        open_dataset=_open_geobench,
    ),
    "geobench2": BenchmarkSuite(
        title="GEO-Bench-2",
        datasets=DATASETS2,
        groups=GROUPS,
        find=find_dataset2,
        paths=_geobench2_paths,
        open_dataset=_open_geobench2,
    ),
}
