"""Finished blocks of rows on disk, so that an interrupted map goes on where it stopped.

A hidden folder beside the results holds ``plan.json`` (settings, scene and model)
and a folder per finished block with a plain file of rows per raster, or of vectors. Blocks are
written under another name and renamed when complete; they do not depend on one another. A block
that two machines came to write is the first one's: both are equal.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import OutputError
from multimae_eo.files import (
    output_error,
    read_json,
    remove,
    sync_and_rename,
    temporary_path,
    write_file,
)
from multimae_eo.scenes.blend import BlendedRows
from multimae_eo.scenes.output_layers import OutputLayer
from multimae_eo.scenes.raster_output import rows_at_once
from multimae_eo.sources.raster.grid import Grid
from multimae_eo.sources.scene.chips import Area


class Blocks:
    """The finished blocks of one map. ``plan``: what must be equal to go on; None never goes on.

    Raises OutputError where the folder holds another command's blocks.
    """

    def __init__(self, folder: Path, plan: Mapping[str, object] | None) -> None:
        self.folder = folder
        mark = folder / "plan.json"
        if plan is None:
            self.delete()
        elif mark.is_file():
            _require_equal(folder, plan)
            self._sweep()
            return
        write_file(mark, json.dumps(plan or {}, indent=1).encode())

    def done(self, number: int) -> bool:
        """Whether a block is finished."""
        return (self.folder / f"block-{number:05d}").is_dir()

    def writer(self, number: int, layers: Sequence[OutputLayer], area: Area) -> BlockWriter:
        """A writer of a block. ``area``: where a layer of errors reads the truth."""
        return BlockWriter(self.folder / f"block-{number:05d}", layers, area)

    @contextmanager
    def new(self, number: int) -> Iterator[Path]:
        """A folder to write a block into; it gets its name when the context ends."""
        path = self.folder / f"block-{number:05d}"
        part = temporary_path(path)
        try:
            part.mkdir(parents=True)
            yield part
            sync_and_rename(part, path)
        except OSError as error:
            if not path.is_dir():
                raise output_error(path, error) from error
        finally:
            remove(part)

    def vectors(self, number: int, width: int) -> Iterator[tuple[Any, npt.NDArray[np.float32]]]:
        """The vectors (width,) of a block, each with its record; see ``write_vectors``."""
        folder = self.folder / f"block-{number:05d}"
        records = read_json(folder / "records.json", OutputError, remedy="delete the folder")
        with (folder / "vectors").open("rb") as file:
            for record in records:
                yield record, np.frombuffer(file.read(4 * width), np.float32)

    def rows(self, layer: OutputLayer, grid: Grid, count: int) -> Iterator[npt.NDArray[np.generic]]:
        """The rows of a raster from top to bottom, some at a time: (bands, n, W).

        ``count``: how many blocks there are, all of them finished.
        """
        profile = layer.profile
        step = rows_at_once(grid.width, profile)
        row = len(profile.bands) * grid.width * np.dtype(profile.dtype).itemsize
        for number in range(count):
            path = self.folder / f"block-{number:05d}" / f"{layer.stem}.rows"
            with path.open("rb") as file:
                while data := file.read(row * step):
                    rows = np.frombuffer(data, profile.dtype)
                    yield rows.reshape(-1, len(profile.bands), grid.width).transpose(1, 0, 2)

    def delete(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def leave(self) -> None:
        """After a failure: keep the finished blocks, or nothing where there are none."""
        self._sweep()
        if not any(self.folder.glob("block-*")):
            self.delete()

    def _sweep(self) -> None:
        for part in [*self.folder.glob("*.part"), *self.folder.glob(".*.part")]:
            remove(part)


def write_vectors(folder: Path, vectors: Iterable[tuple[object, npt.NDArray[np.float32]]]) -> None:
    """Write vectors as float32 into the folder of a block, and a JSON record of each."""
    records = []
    with (folder / "vectors").open("wb") as file:
        for record, vector in vectors:
            records.append(record)
            file.write(np.ascontiguousarray(vector, np.float32).data)
    write_file(folder / "records.json", json.dumps(records).encode(), durable=False)


class BlockWriter:
    """Takes the blended rows of one block from top to bottom and writes all its rasters."""

    def __init__(self, path: Path, layers: Sequence[OutputLayer], area: Area) -> None:
        self.path, self._layers, self._area = path, layers, area
        self._part = temporary_path(path)
        self._files: dict[str, BinaryIO] = {}
        try:
            self._part.mkdir(parents=True)
            for layer in layers:
                self._files[layer.stem] = (self._part / f"{layer.stem}.rows").open("wb")
        except OSError as error:
            raise output_error(self.path, error) from error

    def write(self, rows: BlendedRows) -> None:
        """Append rows to each raster."""
        for layer in self._layers:
            values = layer.rows(rows, self._area)
            try:
                file = self._files[layer.stem]
                file.write(np.ascontiguousarray(values.transpose(1, 0, 2)).data)
            except OSError as error:
                raise output_error(self.path, error) from error

    def finish(self) -> None:
        """Bring everything to the disk, then give the block its name."""
        try:
            for file in self._files.values():
                file.close()
            sync_and_rename(self._part, self.path)
        except OSError as error:
            if self.path.is_dir():
                self.discard()
                return
            raise output_error(self.path, error) from error

    def discard(self) -> None:
        """Leave nothing of the block."""
        for file in self._files.values():
            try:
                file.close()
            except OSError:  # what is left in the buffer has no room either
                continue
        remove(self._part)


def _require_equal(folder: Path, plan: Mapping[str, object]) -> None:
    try:
        stored = read_json(folder / "plan.json", OutputError)
    except OutputError:
        stored = None
    if not isinstance(stored, dict):
        stored = {}
    ours = json.loads(json.dumps(plan))
    keys = [k for k in ours if stored.get(k) != ours[k]]
    if keys:
        differences = ", ".join(f"{k}: {stored.get(k)!r} there, {ours[k]!r} here" for k in keys)
        raise OutputError(
            f"{folder}: holds an interrupted map of another command ({differences}); "
            "repeat that one, choose another --out, or delete the folder"
        )
