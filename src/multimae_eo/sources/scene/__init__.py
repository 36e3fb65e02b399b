"""Scenes: rasters of any grid that cover one place, and the chips cut from them."""
