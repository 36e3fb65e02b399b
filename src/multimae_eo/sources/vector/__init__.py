"""Vector files: features with classes or values, and their pixels on the grid of a raster."""
