"""Scenes: rasters on any grids that cover one area, and the chips cut from them."""
