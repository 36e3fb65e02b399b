"""The chip store: chips memory-mapped in their dtypes, and an index of them."""
