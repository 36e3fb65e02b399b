"""Reading rasters: what a file's header says, and its pixels."""
