"""The demonstration: a page on which to hide, map, search and look. See docs/demo.md."""
