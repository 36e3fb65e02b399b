"""Exceptions for errors of users. A message states what is wrong, where, the value, the remedy.

::

    MultiMAEError            the CLI prints it in one line and exits with 1
    ├── ConfigError          a recipe, dataset file or option: unknown key, wrong type, bad value
    ├── DataError            what is in the user's files
    │   ├── BandError        a band is missing, unknown or ambiguous
    │   ├── FormatError      a file is truncated, unreadable, or of the wrong type or size
    │   ├── ClassMapError    a class id outside the declared class map
    │   └── SplitError       an empty, unknown or contradictory split
    ├── ContractError        a model and the data do not fit each other
    ├── CheckpointError      weights that cannot be loaded, or not safely
    ├── DownloadError        public data cannot be fetched, or are not what was published
    ├── TrainingError        training cannot go on (a loss that is not finite, …)
    ├── OutputError          a result cannot be written (disk full, path taken, …)
    └── ScenesError          some of several scenes failed; the others are done
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MultiMAEError(Exception):
    """Base of all errors that are the user's to mend; never a bug in this package."""


class ConfigError(MultiMAEError):
    """A recipe, dataset file or option is wrong."""


class DataError(MultiMAEError):
    """Something in the user's data is wrong."""


class BandError(DataError):
    """A band is missing, unknown or ambiguous."""


class FormatError(DataError):
    """A file is truncated, unreadable, or of an unexpected type or size."""


class ClassMapError(DataError):
    """A class id that the declared class map does not hold."""


class SplitError(DataError):
    """A split is empty, unknown or contradictory."""


class ContractError(MultiMAEError):
    """A model and the data offered to it do not fit."""


class CheckpointError(MultiMAEError):
    """Weights cannot be loaded, or not safely."""


class DownloadError(MultiMAEError):
    """Public data cannot be fetched, or are not what was published."""


class TrainingError(MultiMAEError):
    """Training cannot go on."""


class OutputError(MultiMAEError):
    """A result cannot be written."""


class ScenesError(MultiMAEError):
    """Some of several scenes failed; the others are done."""


class InputWarning(MultiMAEError, UserWarning):  # noqa: N818
    """The data can be read, but look unlike what the model has learnt from; an error where warnings
    are made errors (``--strict``)."""


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Return a remedy naming the nearest of ``valid``, else all of them.

    >>> did_you_mean("elevaton", ["rgb", "elevation"])
    "did you mean 'elevation'? valid: rgb, elevation"
    """
    names = [str(v) for v in valid]
    lower = {n.lower(): n for n in names}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    listed = f"valid: {', '.join(names)}" if names else "none are defined"
    return f"did you mean {lower[near[0]]!r}? {listed}" if near else listed
