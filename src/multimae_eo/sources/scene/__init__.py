"""Scenes: rasters on any grids that cover one area, and the chips cut from them."""

from multimae_eo.sources.scene.scene import Scene

__all__ = ["Scene"]
