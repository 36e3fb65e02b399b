"""The folder of a user's data: ``root: ${MULTIMAE_EO_DATA:-../data}/NAME`` in a dataset file.

The same in ``series:`` of a table of points.

Only this one variable is read, so that a file of somebody else cannot put the environment's secrets
into addresses or messages.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from multimae_eo.errors import ConfigError

DATA_VARIABLE = "MULTIMAE_EO_DATA"
"""Names the folder below which data sets lie, each in a folder of its own name."""
_REFERENCE = re.compile(r"\$\{(?P<name>[^}:]*)(?P<default>:-[^}]*)?\}")


def expanded_root(text: str, where: str, key: str = "root") -> str:
    """``root:``, or another ``key``, with the variable's value in place of ``${MULTIMAE_EO_DATA}``.

    ``${MULTIMAE_EO_DATA:-FOLDER}``: FOLDER where the variable is not set or empty. A relative
    value is relative to the current folder, a default to the file. Raises ConfigError, which begins
    with ``where``, for any other variable, and for one that is neither set nor has a default.
    """

    def value(match: re.Match[str]) -> str:
        if match["name"] != DATA_VARIABLE:
            raise ConfigError(
                f"{where}: {key}: only ${{{DATA_VARIABLE}}} is read from the environment; "
                f"got {match[0]}"
            )
        if set_value := os.environ.get(DATA_VARIABLE, ""):
            return str(Path(set_value).expanduser().absolute())
        if match["default"] is None:
            raise ConfigError(
                f"{where}: {key}: {DATA_VARIABLE} is not set; set it to the folder of your data "
                "sets"
            )
        return match["default"].removeprefix(":-")

    return _REFERENCE.sub(value, text)


def root_remedy(text: str) -> str:
    """What to do where a ``root:`` with the variable is not there; "" for other ones."""
    if DATA_VARIABLE not in text:
        return ""
    return f"; set {DATA_VARIABLE} to the folder of your data sets, or see multimae-eo fetch --list"
