"""Old model folders: how each format version becomes the next.

A change of what ``config.json`` or ``modalities.json`` hold raises ``FORMAT_VERSION`` and adds the
function that rewrites the records of the version before. Weights keep their names and shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from multimae_eo.errors import CheckpointError

FORMAT_VERSION = 1

Record = dict[str, Any]
Migration = Callable[[Record, Record], tuple[Record, Record]]

MIGRATIONS: dict[int, Migration] = {}
"""By the version it reads: (config, contract) of that version to those of the next."""


def migrated(config: Record, contract: Record, *, where: str) -> tuple[Record, Record]:
    """The records of a model folder as this version writes them.

    Raises CheckpointError for a version that is newer, unknown or too old.
    """
    version = config.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise CheckpointError(
            f"{where}: config.json names no format version (got {version!r}); "
            "is it another program's model? `multimae-eo convert` reads the reference's"
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{where}: model format {version}, this version reads up to {FORMAT_VERSION}; "
            "update multimae-eo"
        )
    while version < FORMAT_VERSION:
        if version not in MIGRATIONS:
            raise CheckpointError(
                f"{where}: model format {version} is no longer read (oldest: "
                f"{min(MIGRATIONS, default=FORMAT_VERSION)}); save it again with an older version"
            )
        config, contract = MIGRATIONS[version](config, contract)
        version += 1
        config = {**config, "format_version": version}
    return config, contract
