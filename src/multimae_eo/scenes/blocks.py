"""Finished blocks of rows on disk, so that an interrupted map goes on where it was.

A hidden folder beside the results holds ``plan.json`` (what was asked, of which scene and model)
and a folder per finished block with a plain file of rows per raster. Blocks are written under
another name and renamed when whole; they do not depend on one another. A block that two machines
came to write is the first one's: both are equal.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import OutputError
from multimae_eo.reports.html import write_whole
from multimae_eo.scenes.layers import Layer
from multimae_eo.scenes.raster_output import RowWriter, rows_at_once, tagged
from multimae_eo.scenes.tiling import Cut
from multimae_eo.sources.raster.grid import Grid

Plan = Mapping[str, Any]


class Blocks:
    """The finished blocks of one map. ``plan``: what must be equal to go on; None never goes on.

    Raises OutputError where the folder holds another command's blocks.
    """

    def __init__(self, folder: Path, plan: Plan | None) -> None:
        self.folder = folder
        mark = folder / "plan.json"
        if plan is None:
            self.delete()
        elif mark.is_file():
            _require_equal(folder, plan)
            self._sweep()
            return
        write_whole(mark, json.dumps(plan or {}, indent=1).encode())

    def done(self, number: int) -> bool:
        """Whether a block is finished."""
        return (self.folder / f"block-{number:05d}").is_dir()

    def writer(self, number: int, layers: Sequence[Layer]) -> BlockWriter:
        """Write a block anew."""
        return BlockWriter(self.folder / f"block-{number:05d}", layers)

    def rows(self, layer: Layer, grid: Grid, cut: Cut) -> Iterator[npt.NDArray[Any]]:
        """The rows of a raster from top to bottom, some at a time: (bands, n, W)."""
        profile = layer.profile
        step = rows_at_once(grid.width, profile)
        row = len(profile.bands) * grid.width * np.dtype(profile.dtype).itemsize
        for number in range(len(cut.blocks)):
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
        for part in self.folder.glob("*.part"):
            shutil.rmtree(part, ignore_errors=True)


class BlockWriter:
    """Takes the rows of one block from top to bottom, of all its rasters."""

    def __init__(self, path: Path, layers: Sequence[Layer]) -> None:
        self.path = path
        self._part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
        self._files: dict[str, BinaryIO] = {}
        try:
            self._part.mkdir(parents=True)
            for layer in layers:
                self._files[layer.stem] = (self._part / f"{layer.stem}.rows").open("wb")
        except OSError as error:
            raise self._told(error) from error

    def write(self, stem: str, rows: npt.NDArray[Any]) -> None:
        """Append rows (bands, n, W)."""
        try:
            self._files[stem].write(np.ascontiguousarray(rows.transpose(1, 0, 2)).data)
        except OSError as error:
            raise self._told(error) from error

    def finish(self) -> None:
        """Bring everything to the disk, then give the block its name."""
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
            os.replace(self._part, self.path)
        except OSError as error:
            if self.path.is_dir():
                self.discard()
                return
            raise self._told(error) from error

    def discard(self) -> None:
        """Leave nothing of the block."""
        for file in self._files.values():
            try:
                file.close()
            except OSError:  # what is left in the buffer has no room either
                continue
        shutil.rmtree(self._part, ignore_errors=True)

    def _told(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path}: cannot be written: {error.strerror or error}; free space or choose "
            "another --out"
        )


def assemble(blocks: Blocks, layer: Layer, cut: Cut, path: Path, tags: Mapping[str, str]) -> Path:
    """Make one raster of its blocks: a COG at ``path``."""
    grid = cut.grid.coarser(layer.ratio)
    writer = RowWriter(path, grid, tagged(layer.profile, tags))
    try:
        for rows in blocks.rows(layer, grid, cut):
            writer.write(rows)
        return writer.finish()
    except BaseException:
        writer.discard()
        raise


def _require_equal(folder: Path, plan: Plan) -> None:
    try:
        there = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except ValueError:
        there = {}
    ours = json.loads(json.dumps(plan))
    differs = [k for k in ours if there.get(k) != ours[k]]
    if differs:
        told = ", ".join(f"{k}: {there.get(k)!r} there, {ours[k]!r} here" for k in differs)
        raise OutputError(
            f"{folder}: holds an interrupted map of another command ({told}); repeat that one, "
            "choose another --out, or delete the folder"
        )
