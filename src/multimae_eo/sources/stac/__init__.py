"""Scenes out of STAC catalogues."""
