"""Appends chips to a finished store. Readers see it either without them or with all of them.

The new chips are prepared as a store of their own inside the folder, which a killed run continues;
its shards are then linked in behind the others, and index and header replaced. The header, which
holds the number of chips, is replaced last: until then the old one is valid.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from multimae_eo.errors import ConfigError, DataError, FormatError, did_you_mean
from multimae_eo.files import reading, remove, replacing, require_regular, single_writer
from multimae_eo.sources.base import Source
from multimae_eo.sources.yaml_section import one_line
from multimae_eo.statistics import Statistics
from multimae_eo.store import layout
from multimae_eo.store.reader import ChipStore
from multimae_eo.store.writer import prepare, write_json

ADDITION = "addition"


@single_writer(argument="path")
def append(
    source: Source,
    path: Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ChipStore:
    """Add a source's chips to the store at ``path``, or continue an interrupted ``append``.

    Statistics of each split are merged. Existing shards are left as they are. ``workers`` and
    ``progress`` as in ``prepare``.

    Raises:
        ConfigError: other modalities, classes, sizes, types or labels than the store's.
        DataError: a chip's key is in the store already. And what ``prepare`` raises.
    """
    store = ChipStore(path)
    staging = store.path / ADDITION
    stored_keys = set(store.keys)
    twice = [k for k in source.keys if k in stored_keys]
    if twice and len(twice) == len(source) and staging.is_dir():
        # All were added, and the run was killed before it could tidy up.
        shutil.rmtree(staging)
        return store
    if twice:
        raise DataError(
            f"{store.path}: has a chip {twice[0]!r} already, and {len(twice) - 1} more of these; "
            "keys must be unique: leave them out, or give the source another `name:`"
        )
    _require_alike(store, source)
    addition = prepare(
        source, staging, workers=workers, shard_chips=store.shard_chips, progress=progress
    )
    _require_same_arrays(store, addition)
    _join(store, addition)
    shutil.rmtree(staging, ignore_errors=True)
    return ChipStore(path)


def _require_alike(store: ChipStore, source: Source) -> None:
    theirs, ours = source.modalities, store.modalities
    for name in theirs:
        if name not in ours:
            raise ConfigError(f"{store.path}: has no modality {name!r}; {did_you_mean(name, ours)}")
        if theirs[name] != ours[name]:
            a, b = theirs[name].to_dict(), ours[name].to_dict()
            differs = "; ".join(
                f"{key}: {one_line(str(a[key]), 80)}, the store's {one_line(str(b[key]), 80)}"
                for key in a
                if a[key] != b[key]
            )
            raise ConfigError(
                f"{source.name}: modality {name!r} is not that of the store ({differs}); declare "
                "it alike, or prepare another store"
            )
    if theirs != ours:
        raise ConfigError(
            f"{source.name}: has the modalities {', '.join(theirs)}, the store {', '.join(ours)}; "
            "they must be the same, in the same order (chips may lack some)"
        )
    if tuple(source.class_names) != store.class_names:
        raise ConfigError(
            f"{source.name}: its label classes are {', '.join(source.class_names) or 'none'}; the "
            f"store's are {', '.join(store.class_names) or 'none'}"
        )


def _require_same_arrays(store: ChipStore, addition: ChipStore) -> None:
    """A modality, or labels, that only one of the two has cannot differ."""
    ours, theirs = ({**s.header["arrays"], "labels": s.header["labels"]} for s in (store, addition))
    for name in ours.keys() & theirs.keys():
        if ours[name] and theirs[name] and _shape(ours[name]) != _shape(theirs[name]):
            raise ConfigError(
                f"{name}: the chips have {theirs[name]}, those of {store.path} {ours[name]}; "
                f"prepare them as a store of their own (and delete {addition.path})"
            )


def _shape(record: Mapping[str, Any]) -> dict[str, Any]:
    """What chips of a store must share: not whether they are series."""
    return {key: value for key, value in record.items() if key != "series"}


def _join(store: ChipStore, addition: ChipStore) -> None:
    first = len(store.shard_starts)
    added = layout.read_json(addition.path / layout.CHECKSUMS)
    sums = layout.read_json(store.path / layout.CHECKSUMS)
    for name, expected in added.items():
        if name.endswith(".npy"):
            moved = _renumbered(name, first)
            _link(addition.path / name, store.path / moved)
            sums[moved] = expected
    old, new = store.header, addition.header
    starts = [*store.shard_starts, *(s + old["count"] for s in addition.shard_starts)]
    arrays = {n: {**new["arrays"].get(n, {}), **a} for n, a in old["arrays"].items()}
    header = {
        **old,
        "format_version": max(old["format_version"], new["format_version"]),
        "count": old["count"] + new["count"],
        "shard_starts": starts,
        "arrays": {**new["arrays"], **arrays},
        "labels": old["labels"] or new["labels"],
        "splits": {
            s: old["splits"].get(s, 0) + new["splits"].get(s, 0)
            for s in {**old["splits"], **new["splits"]}
        },
        "statistics": _merged(store, old["statistics"], new["statistics"]),
        "provenance": {
            **old["provenance"],
            "appended": [*old["provenance"].get("appended", []), new["provenance"]],
        },
    }
    index = _index(store, addition)
    sums[layout.INDEX] = layout.checksum(index)
    sums[layout.HEADER] = layout.checksum(layout.json_bytes(header))
    layout.write_bytes(store.path / layout.INDEX, index)
    write_json(store.path / layout.CHECKSUMS, sums)
    write_json(store.path / layout.HEADER, header)


def _renumbered(name: str, first: int) -> str:
    folder, file = name.rsplit("/", 1)
    number, rest = file.split(".", 1)
    return f"{folder}/{int(number) + first:05d}.{rest}"


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has none."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
    # Where both are names of one file, replacing does nothing and leaves the first.
    remove(temporary)


def _merged(store: ChipStore, old: dict[str, Any], new: dict[str, Any]) -> dict[str, object]:
    statistics = {s: Statistics.from_dict(store.modalities, r) for s, r in old.items()}
    for split, record in new.items():
        more = Statistics.from_dict(store.modalities, record)
        statistics[split] = statistics[split].merge(more) if split in statistics else more
    return {s: f.to_dict() for s, f in statistics.items()}


def _index(store: ChipStore, addition: ChipStore) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # An interrupted run may have left the new index beside the old header.
    tables = []
    for each in (store, addition):
        path = each.path / layout.INDEX
        require_regular(path, FormatError)
        with reading(path, FormatError, "delete the store and prepare it again", form="Parquet"):
            tables.append(pq.read_table(path).slice(0, len(each)))
    buffer = io.BytesIO()
    # The labels' column of a store without any has the type null.
    table = pa.concat_tables(tables, promote_options="default")
    pq.write_table(table.combine_chunks(), buffer, compression="zstd")
    return buffer.getvalue()
