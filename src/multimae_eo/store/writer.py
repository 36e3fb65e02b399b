"""``prepare``: any source into a chip store. Killed at any moment, it continues where it was.

A shard is the unit of work: its arrays are written first and its *part* record (index rows,
statistics, checksums) last, so a part that exists is a shard that is whole. When all parts are
there they are merged in order and the index is written, last and atomically. The result does not
depend on the number of processes or on interruptions, to the byte.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.dask_cluster import connected
from multimae_eo.errors import ConfigError, DataError, MultiMAEError, OutputError
from multimae_eo.files import LOCK, is_temporary, output_lock
from multimae_eo.modality import ModalitySet, class_ids
from multimae_eo.processes import WorkerPool
from multimae_eo.sample import Pixels, Sample
from multimae_eo.sources.base import Source
from multimae_eo.statistics import Statistics
from multimae_eo.store import layout
from multimae_eo.store.layout import LABELS, Plan
from multimae_eo.store.reader import ChipStore
from multimae_eo.version import __version__

_log = logging.getLogger(__name__)

Arrays = dict[str, dict[str, Any]]
"""Shape and type of a chip's array per modality (and ``LABELS``), and the first chip with one."""


def prepare(
    source: Source,
    out: Path,
    *,
    workers: int = 1,
    dask: str = "",
    shard_chips: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> ChipStore:
    """Write a source's chips into a store at ``out``, or continue an interrupted ``prepare``.

    Args:
        source: chips of one size per modality; chips may lack modalities, and have any dates.
        out: folder; a finished store of the same plan there is left as it is.
        workers: processes that read, started afresh (scripts need ``if __name__ == "__main__"``).
        dask: address of a Dask scheduler whose workers read instead; they see source and ``out``
            under the same absolute paths.
        shard_chips: chips per shard; each process holds one shard in memory.
        progress: called with (chips done, chips in all).

    Raises:
        ConfigError: ``out`` holds a store of something else.
        DataError: a chip cannot be read, or chips differ in size or type; names the chip.
        OutputError: ``out`` is taken, or the disk is full.
    """
    if workers < 1 or shard_chips < 1:
        raise ConfigError(f"workers and shard_chips must be ≥ 1, got {workers}, {shard_chips}")
    if dask and workers > 1:
        raise ConfigError("workers: give either workers (here) or dask (elsewhere)")
    out = Path(out)
    plan = _plan(source, shard_chips)
    if (out / layout.INDEX).is_file() and not (out / layout.PARTS).exists():
        _require_plan(out, plan)
        return ChipStore(out)  # without a lock: it may lie where nothing can be written
    if out.is_file():
        raise OutputError(f"{out}: is a file and no chip store; choose another --out")
    for links in source.outward_links:
        _log.warning("%s: %s", source.name, links)
    with output_lock(out):
        _prepare(source, out, plan, workers, dask, progress)
    return ChipStore(out)


def _prepare(
    source: Source,
    out: Path,
    plan: Plan,
    workers: int,
    dask: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    _claim(out, plan)
    if not (out / layout.INDEX).is_file():
        missing = [s for s in range(plan.shards) if not (out / layout.part_path(s)).is_file()]
        done = plan.chips - sum(len(plan.members(s)) for s in missing)
        seen: Arrays = {}
        work = _Work(source, out, plan)
        written = _by_dask(work, missing, dask) if dask else _written(work, missing, workers)
        for shard, arrays in written:
            _agree(seen, arrays, out)
            done += len(plan.members(shard))
            if progress is not None:
                progress(done, plan.chips)
        _finish(source, out, plan)
    shutil.rmtree(out / layout.PARTS, ignore_errors=True)


def _plan(source: Source, shard_chips: int) -> Plan:
    layout.check_names(list(source.modalities))
    if not len(source):
        raise DataError(f"{source.name}: has no chips to prepare")
    keys = hashlib.sha256()
    seen: set[str] = set()
    for key, split in zip(source.keys, source.split_of, strict=True):
        if key in seen:
            raise DataError(f"{source.name}: two chips are called {key!r}; keys must be unique")
        seen.add(key)
        keys.update(json.dumps([key, split]).encode())
    meaning = json.dumps([_definitions(source.modalities), source.class_names], sort_keys=True)
    return Plan(
        source=source.name,
        modalities=hashlib.sha256(meaning.encode()).hexdigest()[:16],
        chips=len(source),
        keys=keys.hexdigest()[:16],
        shard_chips=shard_chips,
    )


def _definitions(modalities: ModalitySet) -> list[dict[str, Any]]:
    """Records of modalities by which plans are the same; bandwidths do not matter (``Band``)."""
    records: list[dict[str, Any]] = modalities.to_list()
    for record in records:
        record["bands"] = [
            {key: value for key, value in band.items() if key != "bandwidth_um"}
            for band in record["bands"]
        ]
    return records


def _claim(out: Path, plan: Plan) -> None:
    """Make ``out`` the folder of this plan; an error when it is another's."""
    path = out / layout.PLAN
    if path.is_file():
        _require_plan(out, plan)
    elif not all(p.name == LOCK or is_temporary(p) for p in out.iterdir()):
        raise OutputError(f"{out}: exists and is no chip store; choose another --out")
    else:
        layout.write_bytes(path, plan.to_json().encode())


def _require_plan(out: Path, plan: Plan) -> None:
    """ConfigError where ``out`` holds a store of another plan."""
    path = out / layout.PLAN
    if path.is_file():
        there = layout.read_json(path)
        here = json.loads(plan.to_json())
        names = sorted(here.keys() | there.keys())
        differs = [n for n in names if there.get(n) != here.get(n)]
        if differs:
            differences = "; ".join(
                f"{n}: {there.get(n)} there, {here.get(n)} here" for n in differs
            )
            raise ConfigError(
                f"{out}: holds a store of other data ({differences}); choose another --out, delete "
                "it, or use the source it was started with"
            )


class _Work:
    """Writes shards. Travels once to each process."""

    def __init__(self, source: Source, out: Path, plan: Plan) -> None:
        self.source, self.out, self.plan = source, out, plan

    def write(self, shard: int) -> Arrays:
        """Read a shard's chips, write its arrays, then its part record."""
        members = self.plan.members(shard)
        samples = [_read(self.source, i) for i in members]
        rows = [_row(self.source, i, s) for i, s in zip(members, samples, strict=True)]
        statistics: dict[str, Statistics] = {}
        for row, sample in zip(rows, samples, strict=True):
            statistics.setdefault(row["split"], Statistics(self.source.modalities)).update(sample)
        arrays = self._agreed(samples)
        sums: dict[str, str] = {}
        for name in self.source.modalities:
            self._write_modality(name, shard, samples, rows, sums)
        maps = [(r, s.label) for r, s in zip(rows, samples, strict=True) if _is_map(s.label)]
        if maps:
            for number, (row, _) in enumerate(maps):
                row["label_row"] = number
            stacked = [np.asarray(m)[None] for _, m in maps]
            self._write_array(layout.array_path(LABELS, shard), stacked, sums)
        part = {
            "rows": rows,
            "statistics": {split: s.to_dict() for split, s in statistics.items()},
            "arrays": arrays,
            "checksums": sums,
        }
        layout.write_bytes(self.out / layout.part_path(shard), json.dumps(part).encode())
        return arrays

    def _agreed(self, samples: Sequence[Sample]) -> Arrays:
        agreed: Arrays = {}
        for sample in samples:
            arrays = {n: p for n, p in sample.pixels.items() if n in self.source.modalities}
            if sample.label is not None:
                arrays[LABELS] = np.asarray(sample.label)
            mine: dict[str, dict[str, Any]] = {}
            for name, array in arrays.items():
                series = name in sample.dates
                shape = list(array.shape[1:] if series else array.shape)
                mine[name] = {"shape": shape, "dtype": array.dtype.str, "key": sample.key}
                if series:
                    mine[name]["series"] = True
            _agree(agreed, mine, self.out)
        return agreed

    def _write_modality(
        self,
        name: str,
        shard: int,
        samples: Sequence[Sample],
        rows: Sequence[dict[str, Any]],
        sums: dict[str, str],
    ) -> None:
        having = [i for i, s in enumerate(samples) if name in s.pixels]
        if not having:
            return
        pixels = [_rows_of(samples[i].pixels[name]) for i in having]
        starts = np.cumsum([0, *(len(p) for p in pixels)]).tolist()
        for i, start in zip(having, starts, strict=False):
            rows[i]["modalities"][name]["row"] = start
        self._write_array(layout.array_path(name, shard), pixels, sums)
        mask_bands = [rows[i]["modalities"][name]["valid_bands"] for i in having]
        if any(mask_bands):
            shape = (max(mask_bands), *pixels[0].shape[2:])
            # A mask without an invalid pixel may have more bands than the others; it is not stored.
            every = np.ones((1, 1, 1), dtype=bool)
            masks = [
                np.broadcast_to(samples[i].valid[name] if n else every, (*p.shape[:-3], *shape))
                for i, n, p in zip(having, mask_bands, pixels, strict=True)
            ]
            packed = [np.packbits(m, axis=-1) for m in masks]
            self._write_array(layout.array_path(name, shard, valid=True), packed, sums)

    def _write_array(
        self, path: str, arrays: Sequence[npt.NDArray[np.generic]], sums: dict[str, str]
    ) -> None:
        sums[path] = layout.write_array(self.out / path, np.concatenate(arrays))


def _rows_of(pixels: Pixels) -> Pixels:
    """A chip's rows (n, C, H, W) of a shard: one, or one for each date of a series."""
    return pixels[None] if pixels.ndim == 3 else pixels


def _agree(agreed: Arrays, arrays: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Add ``arrays`` to ``agreed``; DataError where a chip differs from an earlier one."""
    for name, mine in arrays.items():
        first = agreed.setdefault(name, dict(mine))
        if mine.get("series"):
            first["series"] = True
        if (first["shape"], first["dtype"]) == (mine["shape"], mine["dtype"]):
            continue
        a, b = (
            f"{r['key']!r} has {np.dtype(r['dtype']).name} {tuple(r['shape'])}"
            for r in (mine, first)
        )
        raise DataError(
            f"{name}: chip {a}, chip {b}; a store holds one size and type of each. Cut the chips "
            f"alike or prepare them as separate stores (delete {out} first)"
        )


def _read(source: Source, index: int) -> Sample:
    """Chip ``index``, checked; whatever goes wrong is an error that names it."""
    key = source.keys[index]
    try:
        sample = source.read(index)
    except MultiMAEError as error:
        if key in str(error):
            raise
        raise type(error)(f"{source.name}: chip {key!r}: {error}") from error
    except Exception as error:
        raise DataError(
            f"{source.name}: chip {key!r} cannot be read ({type(error).__name__}: {error}); "
            "restore its files or leave it out"
        ) from error
    problem = _problem(source, sample)
    if problem:
        raise DataError(f"{source.name}: chip {key!r}: {problem}")
    return sample


def _problem(source: Source, sample: Sample) -> str:
    """What keeps a sample from being stored; nothing for a good one."""
    for name, pixels in sample.pixels.items():
        channels = source.modalities[name].channels
        axes = f"(T, {channels}, H, W)" if name in sample.dates else f"({channels}, H, W)"
        is_chip = pixels.ndim == axes.count(",") + 1 and pixels.shape[-3] == channels
        if not is_chip or pixels.dtype.kind not in "biuf":
            return f"{name}: expected real numbers shaped {axes}, got {pixels.dtype} {pixels.shape}"
        ok = sample.valid.get(name)
        shapes = {(*pixels.shape[:-3], c, *pixels.shape[-2:]) for c in (1, channels)}
        if ok is not None and (ok.dtype != np.bool_ or ok.shape not in shapes):
            return f"{name}: validity is {ok.dtype} {ok.shape} beside pixels {pixels.shape}"
    try:
        label = np.asarray(0 if sample.label is None else sample.label)
    except ValueError as error:
        return f"label: {error}"
    if label.ndim > 2 or label.dtype.kind not in "biuf":
        return f"label: expected a number, a vector or a map, got {label.dtype} {label.shape}"
    return ""


def _is_map(label: npt.ArrayLike) -> bool:
    return np.ndim(label) == 2


def _row(source: Source, index: int, sample: Sample) -> dict[str, Any]:
    """A chip's row of the index, as plain data."""
    modalities: dict[str, dict[str, Any]] = {}
    for name, modality in source.modalities.items():
        if name in sample.pixels:
            calibration = sample.calibration_of(modality)
            ok = sample.valid.get(name)
            modalities[name] = {
                "present": True,
                "valid_fraction": 1.0 if ok is None else float(ok.mean()),
                "valid_bands": 0 if ok is None or bool(ok.all()) else ok.shape[-3],
                "scale": float(calibration.scale),
                "offset": float(calibration.offset),
                "level": calibration.level,
            }
            if name in sample.dates:
                modalities[name][layout.DATES] = sample.dates[name].tolist()
    label = None
    if sample.label is not None and not _is_map(sample.label):
        values = np.asarray(sample.label)
        label = values.astype(np.float64 if values.dtype.kind == "f" else np.int64).tolist()
    geometry = sample.geometry
    return {
        "key": source.keys[index],
        "split": source.split_of[index],
        "label": label,
        "label_row": -1,
        "crs": None if geometry is None else geometry.crs,
        "bounds": None if geometry is None else [float(b) for b in geometry.bounds],
        "time": sample.time,
        "modalities": modalities,
    }


def _written(work: _Work, shards: Sequence[int], workers: int) -> Iterator[tuple[int, Arrays]]:
    """Write shards, in this process or in several; yields each, in order, when it is whole."""
    if workers == 1 or len(shards) <= 1:
        for shard in shards:
            yield shard, work.write(shard)
        return
    pool = WorkerPool(min(workers, len(shards)), initializer=_start_worker, initargs=(work,))
    try:
        with pool:
            futures = [pool.submit(_work_on, s) for s in shards]
            for shard, future in zip(shards, futures, strict=True):
                yield shard, future.result()
    except BrokenProcessPool as error:
        raise DataError(
            f"{work.source.name}: a reading process died, of too little memory perhaps; run again "
            "to continue, with fewer --workers"
        ) from error


def _by_dask(work: _Work, shards: Sequence[int], address: str) -> Iterator[tuple[int, Arrays]]:
    """Write shards by the workers of a Dask scheduler; yields each when it is whole."""
    with connected(address) as cluster:
        yield from cluster.results(_write_shard, shards, cluster.hold(work), folder=work.out)


def _write_shard(shard: int, work: _Work) -> tuple[int, Arrays]:
    return shard, work.write(shard)


_this_process: dict[str, _Work] = {}


def _start_worker(work: _Work) -> None:
    _this_process["work"] = work


def _work_on(shard: int) -> Arrays:
    return _this_process["work"].write(shard)


def _finish(source: Source, out: Path, plan: Plan) -> None:
    """Merge the parts in order; write header, checksums and, last, the index."""
    names = list(source.modalities)
    parts, labels = [], []
    arrays: Arrays = {}
    splits: dict[str, int] = {}
    statistics: dict[str, Statistics] = {}
    sums = {layout.PLAN: layout.checksum_file(out / layout.PLAN)}
    for shard in range(plan.shards):
        part = layout.read_json(out / layout.part_path(shard))
        _agree(arrays, part["arrays"], out)
        parts.append(part["rows"])
        labels += [row["label"] for row in part["rows"]]
        sums |= part["checksums"]
        for row in part["rows"]:
            splits[row["split"]] = splits.get(row["split"], 0) + 1
        for split, record in part["statistics"].items():
            more = Statistics.from_dict(source.modalities, record)
            statistics[split] = statistics[split].merge(more) if split in statistics else more
    shapes: Arrays = {
        n: {k: a[k] for k in ("shape", "dtype", "series") if k in a} for n, a in arrays.items()
    }
    labelled = shapes.pop(LABELS, None)
    series = [n for n, a in shapes.items() if "series" in a]
    tables = [layout.index_table(rows, names, series) for rows in parts]
    header = {
        "format_version": layout.FORMAT_VERSION if series else layout.IMAGES_VERSION,
        "name": source.name,
        "count": plan.chips,
        "shard_chips": plan.shard_chips,
        "modalities": source.modalities.to_list(),
        "fingerprint": source.modalities.fingerprint,
        "arrays": shapes,
        "labels": labelled,
        "class_names": list(source.class_names),
        **({"class_ids": list(source.class_ids)} if _has_explicit_ids(source) else {}),
        "splits": splits,
        "statistics": {s: moments.to_dict() for s, moments in statistics.items()},
        "provenance": {
            "source": source.name,
            "reader": type(source).__name__,
            "written_by": f"multimae-eo {__version__}",
        },
    }
    sums[layout.HEADER] = write_json(out / layout.HEADER, header)
    index = layout.index_bytes(tables, labels, labelled)
    sums[layout.INDEX] = layout.checksum(index)
    write_json(out / layout.CHECKSUMS, sums)
    layout.write_bytes(out / layout.INDEX, index)


def write_json(path: Path, record: Mapping[str, object]) -> str:
    """Write a JSON object, the same bytes for equal ones; returns its checksum."""
    return layout.write_bytes(path, layout.json_bytes(record))


def _has_explicit_ids(source: Source) -> bool:
    """Whether the ids of the source's classes do not follow from their names."""
    return bool(source.class_ids) and source.class_ids != class_ids(source.class_names)
