"""The version of this package, written here only."""

__version__ = "0.2.0"
