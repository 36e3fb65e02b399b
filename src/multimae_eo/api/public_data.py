"""Public data sets and the reference's weights: ``fetch`` and ``public_data``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multimae_eo.errors import ConfigError

if TYPE_CHECKING:
    from multimae_eo.download.fetch import Fetched
    from multimae_eo.download.records import PublicRecord


def fetch(
    name: str,
    *,
    out: str | Path | None = None,
    mirrors: Sequence[str] = (),
    convert: str | Path | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Fetched:
    """Fetch a public data set, or the reference's released weights, and verify it.

    An interrupted call continues where it ended; a data set that is there already is left as it is.

    Args:
        name: One of ``public_data()``.
        out: Folder of data sets (default: ``$MULTIMAE_EO_DATA``, else ``data``).
        mirrors: Addresses of mirrors, tried before the publisher's: ``MIRROR/NAME/FILE``, or with
            ``{record}`` and ``{file}`` in them. Those of ``$MULTIMAE_EO_MIRRORS`` follow.
        convert: Model folder to convert a fetched checkpoint into.
        progress: Takes the stage ("download" in bytes, "unpack" in files), what is done, and all
            or None.

    Returns:
        ``folder``, the record with its licence, and per file its address, size, SHA-256, and
        whether that was compared with a published checksum or recorded at first use.

    Raises:
        ConfigError: no such name, or nothing to convert. DownloadError: no address has a file, or
        it is not what was published. OutputError: the disk is full, or the folder is in use.
    """
    from multimae_eo.api.models import convert_checkpoint
    from multimae_eo.download.fetch import configured_mirrors, fetch_record
    from multimae_eo.download.records import public_record

    record = public_record(name)
    if convert is not None and not record.checkpoint:
        raise ConfigError(f"{name}: has no checkpoint to convert; leave out --convert")
    fetched = fetch_record(
        record, data_folder(out), mirrors=configured_mirrors(mirrors), progress=progress
    )
    if convert is not None:
        statistics = fetched.folder / record.statistics if record.statistics else None
        convert_checkpoint(fetched.folder / record.checkpoint, out=convert, statistics=statistics)
    return fetched


def public_data() -> list[PublicRecord]:
    """Every public data set that ``fetch`` knows, with its source, licence and files."""
    from multimae_eo.download.records import public_records

    return list(public_records().values())


def data_folder(out: str | Path | None = None) -> Path:
    """The folder of data sets: ``out``, else ``$MULTIMAE_EO_DATA``, else ``data``."""
    from multimae_eo.sources.data_root import DATA_VARIABLE

    if out is not None:
        return Path(out)
    return Path(os.environ.get(DATA_VARIABLE, "") or "data").expanduser()
