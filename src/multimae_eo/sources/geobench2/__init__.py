"""GEO-Bench-2: data sets in tortilla files (version 1 of the TACO format)."""
