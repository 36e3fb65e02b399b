"""Public data sets and weights: their records, and how their files are brought here safely."""
