"""Weights of other projects, loaded safely and converted into model folders."""
