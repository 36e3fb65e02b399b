"""Dataset files (YAML): chips that lie in raster files, with their labels and splits."""
