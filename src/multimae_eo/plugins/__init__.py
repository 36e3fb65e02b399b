"""A model in other frameworks: TerraTorch, torchgeo-bench, PANGAEA. Each imports its own package
and nothing here imports them."""
