"""Products as their producers distribute them: bands, calibration, quality masks."""
