"""Subcommands of data: fetch, init, inspect, prepare."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from multimae_eo.cli.output import counter, print_json, print_table, scene_counter, stages
from multimae_eo.cli.parser import Subcommand, argument
from multimae_eo.errors import ConfigError
from multimae_eo.sources.yaml_section import BLANK


def _public_names() -> list[str]:
    from multimae_eo.api.public_data import public_data

    return [record.name for record in public_data()]


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Fetch a public data set or the reference's weights, and verify it; run again to resume.

    Args:
        name: the data set; --list shows sizes and licences
        out: folder of data sets (default: $MULTIMAE_EO_DATA, else data)
        list: list the data sets
        mirror: address that is tried before the publisher's, as MIRROR/NAME/FILE or with {record}
            and {file} in it; may be given again. Those of $MULTIMAE_EO_MIRRORS follow
        convert: model folder to convert a fetched checkpoint into
        json: print as JSON
    """

    examples: ClassVar[tuple[str, ...]] = (
        "fetch --list",
        "fetch eurosat-100",
        "fetch sen1floods11 --out /data --mirror https://mirror.example/eo",
        "fetch reference-checkpoint --mirror https://host.example/{file} --convert model",
    )
    name: str | None = argument(positional=True, default=None, choices=_public_names)
    out: str | None = None
    list: bool = False
    mirror: tuple[str, ...] | None = None
    convert: str | None = None
    json: bool = False

    def run(self) -> None:
        """Print the folder, the licence, and checksums that were recorded at first use."""
        if self.list:
            print_public_data(as_json=self.json)
            return
        if self.name is None:
            raise ConfigError(f"which data set? one of {', '.join(_public_names())}")
        from multimae_eo.api.public_data import fetch

        with stages(download="B", unpack="files") as progress:
            fetched = fetch(
                self.name,
                out=self.out,
                mirrors=self.mirror or (),
                convert=self.convert,
                progress=progress,
            )
        record = fetched.record
        if self.json:
            print_json(
                {"name": record.name, "folder": str(fetched.folder), "licence": record.licence,
                 "source": record.source, "present": fetched.present,
                 "files": [vars(file) for file in fetched.files]}
            )  # fmt: skip
            return
        print(f"{fetched.folder}{' (was there already)' if fetched.present else ''}")
        print(f"licence: {record.licence}; source: {record.source}")
        for example in record.examples:
            print(f"read by {example}")
        if self.convert is not None:
            print(self.convert)
        if fetched.first_use and not fetched.present:
            print(f"no published checksum, recorded at first use: {len(fetched.first_use)} files")
            for file in fetched.first_use:
                print(f"  {file.name}  sha256 {file.sha256}")


def print_public_data(*, as_json: bool) -> None:
    """Print what ``fetch`` knows: a table, or every record in full."""
    from dataclasses import asdict

    from multimae_eo.api.public_data import public_data

    records = public_data()
    if as_json:
        print_json([asdict(record) for record in records])
        return
    print_table(
        [
            {"name": r.name, "size": _size_text(r.size), "licence": r.licence.split(";")[0],
             "data": r.title}
            for r in records
        ]
    )  # fmt: skip
    for record in records:
        if record.note:
            print(f"{record.name}: {record.note}")


def _size_text(size: int | None) -> str:
    return "see below" if size is None else f"{size / 1e9:.2f} GB"


@dataclass(frozen=True, kw_only=True)
class Init:
    """Draft a dataset or scene file from the files that are there.

    Args:
        paths: folders or files: class folders, images and masks, tables, rasters of an area
        out: file to write, dataset.yaml or scene.yaml (default: print it)
    """

    examples: ClassVar[tuple[str, ...]] = (
        "init chips --out dataset.yaml",
        "init S2_L2A.tif elevation.tif --out scene.yaml",
    )
    paths: tuple[str, ...] = argument(positional=True)
    out: str | None = None

    def run(self) -> None:
        """Print the draft; of a file that is written, what was recognised and the blanks."""
        from multimae_eo.api.stores import init

        draft = init(self.paths, out=self.out)
        if self.out is None:
            print(draft.text(Path()), end="")
            return
        for line in (*draft.evidence, *(f"decide: {d}" for d in draft.doubts)):
            print(line)
        lines = Path(self.out).read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            if line.endswith(f": {BLANK}"):
                print(f"{self.out}, line {number}: fill in `{line.strip()}`")


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Examine a source for faults before training: the data doctor.

    Args:
        source: SOURCE
        json: print as JSON
        html: report to write, with pictures
        chips: examine at most so many chips
    """

    examples: ClassVar[tuple[str, ...]] = (
        "inspect dataset.yaml --html report.html",
        "inspect mmearth:DIR --json",
    )
    source: str = argument(positional=True)
    json: bool = False
    html: str | None = None
    chips: int = 2000

    def run(self) -> None:
        """Print the diagnosis."""
        import shutil

        from multimae_eo.api.stores import inspect
        from multimae_eo.doctor.table import table

        with counter("chips") as progress:
            diagnosis = inspect(self.source, chips=self.chips, html=self.html, progress=progress)
        if self.json:
            print_json(diagnosis.to_dict())
        else:
            width = min(shutil.get_terminal_size().columns, 120)
            color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
            print(table(diagnosis, width=width, colour=color))


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Write any source into a chip store, with statistics; run again to resume.

    Args:
        source: SOURCE; with {scene} in --out scenes with a store each: a,b,c, a pattern, a folder,
            a .txt list, a STAC file
        out: chip store to write; of several scenes STORES/{scene}
        workers: number of reading processes
        dask: address of a Dask scheduler, or its scheduler file (.json), whose workers read
        retries: how often scenes that failed are tried again, after all others
        shard_chips: chips per shard
        append: add chips to a finished store
    """

    examples: ClassVar[tuple[str, ...]] = (
        "prepare dataset.yaml --out store",
        "prepare mmearth:DIR --out store --workers 4",
        "prepare 'scenes/*.yaml' --out 'stores/{scene}'",
    )
    source: str = argument(positional=True)
    out: str
    workers: int = 1
    dask: str = ""
    retries: int = 1
    shard_chips: int = 512
    append: bool = False

    def run(self) -> None:
        """Print the store's path, its number of chips and its modalities."""
        from multimae_eo.api.stores import prepare, prepare_scenes
        from multimae_eo.scenes.each_scene import is_pattern

        one_each = is_pattern(self.out) and not self.append
        with scene_counter(self.out, "chips") as progress:
            if one_each:
                stores = prepare_scenes(
                    self.source,
                    out=self.out,
                    workers=self.workers,
                    dask=self.dask,
                    retries=self.retries,
                    shard_chips=self.shard_chips,
                    progress=progress,
                )
            else:
                store = prepare(
                    self.source,
                    out=self.out,
                    workers=self.workers,
                    dask=self.dask,
                    shard_chips=self.shard_chips,
                    append=self.append,
                    progress=progress,
                )
                stores = [store]
        for store in stores:
            path = store.path if one_each else self.out
            print(f"{path}: {len(store)} chips, {', '.join(store.modalities)}")


DATA_COMMANDS: dict[str, type[Subcommand]] = {
    "fetch": Fetch,
    "init": Init,
    "inspect": Inspect,
    "prepare": Prepare,
}
