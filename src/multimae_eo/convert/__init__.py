"""Weights of other projects, loaded safely and turned into model folders."""
