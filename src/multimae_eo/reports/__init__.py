"""Everything that draws: HTML reports, plots, pictures, tables."""
