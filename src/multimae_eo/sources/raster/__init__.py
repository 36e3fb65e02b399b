"""Reading rasters: headers and pixels."""
