"""The chip store: chips memory-mapped in their own number types, and an index of them."""
