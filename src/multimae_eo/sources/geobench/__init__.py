"""GEO-Bench data sets, as distributed."""
