"""Opening HDF5 files of others: only what lies in the file itself is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from multimae_eo.errors import FormatError
from multimae_eo.files import reading, require_regular

REMEDY = "the file is truncated or damaged, download it again"


def open_hdf5(path: Path) -> h5py.File:
    """An HDF5 file for reading; FormatError where it is damaged or points out of itself."""
    require_regular(path, FormatError)
    with reading(path, FormatError, REMEDY):
        # Network and read-only file systems cannot lock; nothing is written here.
        file = h5py.File(path, "r", locking="best-effort")
    try:
        with reading(path, FormatError, REMEDY):
            _require_no_links(path, file)
    except FormatError:
        file.close()
        raise
    return file


@contextmanager
def opened_hdf5(path: Path) -> Iterator[h5py.File]:
    """``open_hdf5`` as a context; whatever goes wrong inside is a FormatError of the file."""
    with open_hdf5(path) as file, reading(path, FormatError, REMEDY):
        yield file


def _require_no_links(path: Path, file: h5py.File) -> None:
    """FormatError for links to other names and files, and for data kept elsewhere."""
    groups, seen = [file], set()
    while groups:
        group = groups.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise FormatError(
                    f"{path}: {name[:60]!r} is a link to other data, which is not followed; copy "
                    "the data into the file"
                )
            item = group[name]
            if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                raise FormatError(
                    f"{path}: {name[:60]!r} keeps its data in other files, which are not read; "
                    "copy the data into the file"
                )
            # Hard links may make a group its own member.
            address = h5py.h5o.get_info(item.id).addr
            if isinstance(item, h5py.Group) and address not in seen:
                seen.add(address)
                groups.append(item)
