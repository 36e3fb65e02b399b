"""Whole scenes: tiling, engine, blending, raster output; predict, reconstruct, embed."""
