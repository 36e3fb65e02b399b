"""The version of this package, written here only."""

__version__ = "0.1.0"
